"""A merge by hand: two small networks, their units' scores and their average, while a reader reorders the second.

All 24 orders are written into the page here; book/_static/reordering.js shows the one that is chosen.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from lab.report.explorers import Frame, ink
from lab.report.facts import reads
from lab.report.four_units import (
    PLANTED,
    SPOTS,
    UNITS,
    Network,
    Order,
    best,
    distance,
    orders,
    pair,
    score,
    scores,
    spots_of_light,
)
from lab.report.words import decimal

IN_ORDER: Order = tuple(range(UNITS))
# What a unit does: the letter and the colour of A's unit, and of B's unit that was made from it.
LETTERS = "abcd"
COLOURS = ("#0072B2", "#B84A00", "#00735A", "#8C4A78")

# Places in a picture: of inputs, units and the output from the left, of the first unit, and from each unit to the next.
FRAME = Frame(180, 208, 0, 0, 0, 0, (0, 1), (0, 1))
INPUT, UNIT, OUTPUT = 16, 84, 146
FIRST, STEP = 46, 44
SWAP = 170  # where the buttons are that swap neighbours
MIDDLE = FIRST + STEP * (UNITS - 1) / 2
RADIUS, THICKNESS = 13, 5  # of a unit, and of a wire of weight 1
LEFT, SIDE = 30, 36  # of the table of scores: where its first column begins, and how wide a column is


@reads()
def by_hand() -> str:
    """Both networks, the scores of their units, and their average: with B as it is, and in the best order.

    A script shows one of the two, in any order that a reader makes.
    """
    known = {_key(order): _of_order(order) for order in orders()}
    stored = html.escape(json.dumps(known, separators=(",", ":"), ensure_ascii=False))
    titled = (("B as it is", IN_ORDER), ("B in the best order", best()))
    buttons = "".join(f'<button type="button" data-order="{_key(order)}">{title}</button>' for title, order in titled)
    panels = "".join(_panel(title, order) for title, order in titled)
    return (
        f'<div class="explorer explorer-reordering" data-orders="{stored}">'
        f'<p class="reordering-choice" hidden>Drag B’s units up and down, or swap neighbours. {buttons}</p>'
        f"{panels}</div>"
    )


def _panel(title: str, order: Order) -> str:
    """The four pictures, the answers and what is read off, with B in one order."""
    a, b = pair()
    turned = b.reordered(order)
    pictures = (
        FRAME.svg("network", _name("A"), _wires(a, _coloured(IN_ORDER)), _units(IN_ORDER)),
        FRAME.svg("network of-b", _name("B"), _wires(b, _coloured(PLANTED), order), _units(PLANTED, order)) + _swaps(),
        FRAME.svg("scores", _name("scores"), _matrix(order)),
        FRAME.svg(
            "network",
            _name("average"),
            _wires(a.mean(turned), [f' data-place="{place}"' for place in IN_ORDER]),
            _halves(order),
        ),
    )
    cells = "".join(f'<div class="reordering-cell">{picture}</div>' for picture in pictures)
    return (
        f'<div class="reordering-panel" data-shown="{_key(order)}"><p class="explorer-title">{title}</p>'
        f'<div class="reordering-cells">{cells}</div>'
        f'<div class="explorer-panel">{_answers(order)}{_readings(order)}</div></div>'
    )


def _of_order(order: Order) -> dict[str, object]:
    """What the script shows of an order: words, the wires of the average, and the curve of its answers."""
    a, b = pair()
    turned = b.reordered(order)
    average = a.mean(turned)
    return {
        "score": f"{decimal(score(order), 1)} of at most {decimal(score(best()), 1)}",
        "moved": decimal(distance(b, turned), 2),
        "error": decimal(distance(a, average), 2),
        "wires": [[round(THICKNESS * float(weight), 2) for weight in _weights(average, unit)] for unit in IN_ORDER],
        "curve": _path(average),
    }


def _readings(order: Order) -> str:
    """The lines of what is read off, which the script keeps up to date."""
    values = _of_order(order)
    lines = "".join(
        f'<div><dt>{words}</dt><dd data-reading="{name}">{values[name]}</dd></div>'
        for name, words in (
            ("score", "Score of all units"),
            ("moved", "B’s answers have moved by"),
            ("error", "The average’s answers are off A’s by"),
        )
    )
    return f'<dl class="simple readings" aria-live="polite">{lines}</dl>'


def _swaps() -> str:
    """A button between each two neighbours of B."""
    return "".join(
        f'<button type="button" class="swap" data-swap="{place}" hidden '
        f'style="top: {100 * (FIRST + STEP * (place + 0.5)) / FRAME.high:.1f}%; left: {100 * SWAP / FRAME.wide:.1f}%" '
        f'aria-label="Swap the units at places {place + 1} and {place + 2} of B">⇅</button>'
        for place in range(UNITS - 1)
    )


def _coloured(jobs: Sequence[int]) -> list[str]:
    """Attributes of the wires of each unit, in the colour of what it does."""
    return [f' data-unit="{unit}"{ink(COLOURS[job])}' for unit, job in enumerate(jobs)]


def _wires(network: Network, attributes: Sequence[str], order: Order = IN_ORDER) -> str:
    """The wires of a network whose units stand in this order, and its inputs and output."""
    inputs = [(INPUT, _height(source)) for source in range(UNITS)]
    ends, lines = [*inputs, (OUTPUT, MIDDLE)], []
    for place, unit in enumerate(order):
        for end, weight in zip(ends, _weights(network, unit), strict=True):
            lines.append(_wire(*end, weight, place, attributes[unit]))
    return "".join(lines) + "".join(f'<circle class="end" cx="{x}" cy="{y:g}" r="5"/>' for x, y in ends)


def _weights(network: Network, unit: int) -> list[float]:
    """The weights of a unit: from each input, and to the output."""
    return [*network.reads[unit], network.answers[unit]]


def _wire(x: float, y: float, weight: float, place: int, attributes: str) -> str:
    """From (x, y) to the unit at a place: the thicker the larger its weight, dashed where that is negative."""
    kind = "wire negative" if weight < 0 else "wire"
    return (
        f'<line class="{kind}" stroke-width="{THICKNESS * abs(weight):.2f}"{attributes} '
        f'x1="{x}" y1="{y:g}" x2="{UNIT}" y2="{_height(place):g}"/>'
    )


def _units(jobs: Sequence[int], order: Order = IN_ORDER) -> str:
    """The units in this order, each with the letter and the colour of what it does."""
    return "".join(
        f'<g class="unit" data-unit="{unit}" transform="translate({UNIT} {_height(place):g})">'
        f'<circle r="{RADIUS}" fill="{COLOURS[jobs[unit]]}"/>{_letter(jobs[unit])}</g>'
        for place, unit in enumerate(order)
    )


def _halves(order: Order) -> str:
    """The units of the average: the left half is of A, the right half of B's unit at that place."""
    right = f"M0 {-RADIUS}A{RADIUS} {RADIUS} 0 0 1 0 {RADIUS}Z"
    left = f"M0 {-RADIUS}A{RADIUS} {RADIUS} 0 0 0 0 {RADIUS}Z"
    return "".join(
        f'<g class="unit" transform="translate({UNIT} {_height(place):g})"><path d="{left}" fill="{COLOURS[place]}"/>'
        f'<path d="{right}" data-half="{place}" fill="{COLOURS[PLANTED[unit]]}"/></g>'
        for place, unit in enumerate(order)
    )


def _matrix(order: Order) -> str:
    """The scores of A's units, in rows, with those of B, in columns that stand in B's order; the diagonal is framed."""
    top = FIRST - SIDE / 2 + 14
    highest = scores().max()
    parts = [
        f'<g class="unit small" transform="translate({LEFT - 14} {top + SIDE * (row + 0.5):g}) scale(0.75)">'
        f'<circle r="{RADIUS}" fill="{COLOURS[row]}"/>{_letter(row)}</g>'
        for row in IN_ORDER
    ]
    for place, unit in enumerate(order):
        cells = [
            f'<rect y="{top + SIDE * row:g}" width="{SIDE}" height="{SIDE}" fill="#0072B2" '
            f'fill-opacity="{max(0.0, scores()[row, unit] / highest) * 0.6:.2f}"/>'
            + FRAME.text(SIDE / 2, top + SIDE * (row + 0.5) + 4, decimal(scores()[row, unit], 1))
            for row in IN_ORDER
        ]
        head = (
            f'<g class="unit small" transform="translate({SIDE / 2:g} {top - 13:g}) scale(0.75)">'
            f'<circle r="{RADIUS}" fill="{COLOURS[PLANTED[unit]]}"/>{_letter(PLANTED[unit])}</g>'
        )
        parts.append(
            f'<g data-column="{unit}" transform="translate({LEFT + SIDE * place} 0)">{head}{"".join(cells)}</g>'
        )
    parts += [
        f'<rect class="framed" x="{LEFT + SIDE * place}" y="{top + SIDE * place:g}" width="{SIDE}" height="{SIDE}"/>'
        for place in IN_ORDER
    ]
    return "".join(parts)


def _answers(order: Order) -> str:
    """The answers of A, of B, and of the average, while a spot of light passes over the inputs."""
    a, b = pair()
    frame, parts = _answers_frame(), []
    average = a.mean(b.reordered(order))
    shown = (("A", "of-a", a, ""), ("B", "of-b dashed", b, ""), ("average", "of-average", average, " data-curve"))
    for number, (words, kind, network, mark) in enumerate(shown):
        x = 120 + 60 * number
        parts += [f'<path class="curve {kind}" d="M{x} 8h26"/>', frame.text(x + 32, 12, words, "start")]
        parts.append(f'<path class="curve {kind}"{mark} d="{_path(network)}"/>')
    inputs = [(place, f"input {place + 1}" if place == 0 else str(place + 1)) for place in range(UNITS)]
    rules = [frame.text(0, 12, "answer", "start"), frame.rules((-0.5, 0, 0.5, 1), 1), frame.foot(inputs)]
    return frame.svg("answers", *rules, *parts)


def _answers_frame() -> Frame:
    return Frame(340, 190, 40, 18, 22, 24, (0, UNITS - 1), (-0.75, 1.15))


def _path(network: Network) -> str:
    places = [_answers_frame().place(x, y) for x, y in zip(SPOTS, network(spots_of_light()), strict=True)]
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _height(place: int) -> float:
    return FIRST + STEP * place


def _letter(job: int) -> str:
    return f'<text y="5" text-anchor="middle">{LETTERS[job]}</text>'


def _name(words: str) -> str:
    return FRAME.text(UNIT, 16, words, kind="name")


def _key(order: Order) -> str:
    return "".join(map(str, order))
