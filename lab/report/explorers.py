"""Figures with a slider: SVG in the page's own colours, of which book/_static/explorers.js shows one step or another.

All words and places of every step are written into the page here, so that the script has nothing to compute. Without it
a figure stands at the step that it was drawn at.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from lab.report.words import decimal

Place = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A picture so ``wide`` and ``high``, and the box in it where values are drawn: which x and y its sides have."""

    wide: float
    high: float
    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> Place:
        """Where a value is in the picture."""
        (x0, x1), (y0, y1) = self.x, self.y
        across, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return (
            round(self.left + across * (self.wide - self.left - self.right), 1),
            round(self.high - self.bottom - up * (self.high - self.top - self.bottom), 1),
        )

    def svg(self, kind: str, *parts: str) -> str:
        """The picture with these parts; what it says is said by its explorer."""
        return (
            f'<svg class="{kind}" viewBox="0 0 {self.wide:g} {self.high:g}" aria-hidden="true" focusable="false">'
            f"{''.join(parts)}</svg>"
        )

    def text(self, x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
        """Words at a point of the picture."""
        mark = f' class="{kind}"' if kind else ""
        return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{mark}>{html.escape(words)}</text>'

    def rules(self, ticks: Iterable[float], places: int = 0) -> str:
        """Level lines at these values of y, each with its value on the left."""
        lines = []
        for tick in ticks:
            x, y = self.place(self.x[0], tick)
            lines.append(f'<path class="rule" d="M{x:g} {y:g}H{self.wide - self.right:g}"/>')
            lines.append(self.text(x - 6, y + 4, decimal(tick, places), "end"))
        return "".join(lines)

    def foot(self, ticks: Iterable[tuple[float, str]]) -> str:
        """Words below these values of x."""
        return "".join(
            self.text(self.place(x, self.y[0])[0], self.high - self.bottom + 17, words) for x, words in ticks
        )

    def curve(self, places: Iterable[Place], kind: str = "curve", style: str = "") -> str:
        """Values joined by a line."""
        d = "L".join(f"{x:g} {y:g}" for x, y in (self.place(*place) for place in places))
        return f'<path class="{kind}"{style} d="M{d}"/>'


def ticks(top: float, most: int = 5) -> list[float]:
    """Round values from zero up to ``top`` at most, of one digit."""
    return [float(tick) for tick in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(0, top) if 0 <= tick <= top]


def ink(colour: str) -> str:
    """An attribute that gives what is drawn a colour, which is lightened on dark pages."""
    return f' style="--ink: {colour}"'


def moving(content: str, places: Sequence[Place], at: int) -> str:
    """Something of an SVG, drawn around its origin, that has a place at every step."""
    x, y = places[at]
    return f'<g data-places="{_stored(places)}" transform="translate({x:g} {y:g})">{content}</g>'


def changing(words: Sequence[str], at: int) -> str:
    """Words that are others at every step."""
    return f'<span data-words="{_stored(words)}">{html.escape(words[at])}</span>'


def reading(colour: str, kind: str, title: str, words: Sequence[str], at: int) -> str:
    """A line of what the slider shows: a key in a colour, what it is, and its values."""
    key = f'<i class="key {kind}"></i>'
    return f"<div{ink(colour)}><dt>{key}{html.escape(title)}</dt><dd>{changing(words, at)}</dd></div>"


def slider(label: str, steps: Sequence[str], at: int) -> str:
    """The slider over steps, each in words: it stands still, and unseen, where there is no script that moves it."""
    return (
        f'<label class="explorer-slider"><span>{html.escape(label)} <strong>{changing(steps, at)}</strong></span>'
        f'<input type="range" min="0" max="{len(steps) - 1}" step="1" value="{at}" hidden></label>'
    )


def panel(title: str, spoken: Sequence[str], content: str) -> str:
    """One of the things that an explorer can show, and what is ``spoken`` of it at every step."""
    return (
        f'<div class="explorer-panel" data-title="{html.escape(title)}" data-spoken="{_stored(spoken)}">'
        f'<p class="explorer-title">{html.escape(title)}</p>{content}</div>'
    )


def snapshots(label: str, steps: Sequence[str], spoken: Sequence[Sequence[str]], contents: Sequence[str]) -> str:
    """What a panel shows at several times, with a slider over these ``steps`` that chooses one; at first the last.

    ``spoken`` has what is said of each at every step of the explorer's own slider.
    """
    last, parts = len(steps) - 1, []
    for number, (of_time, content) in enumerate(zip(spoken, contents, strict=True)):
        hidden = "" if number == last else " hidden"
        parts.append(f'<div class="explorer-snapshot" data-spoken="{_stored(of_time)}"{hidden}>{content}</div>')
    name = f'<strong data-names="{_stored(steps)}">{html.escape(steps[last])}</strong>'
    return (
        f'<label class="explorer-slider"><span>{html.escape(label)} {name}</span>'
        f'<input type="range" min="0" max="{last}" step="1" value="{last}" hidden></label>{"".join(parts)}'
    )


def explorer(kind: str, question: str, panels: Sequence[str], control: str) -> str:
    """The whole: its panels, of which a script shows the one that is chosen by its title, and its slider."""
    return f'<div class="explorer {kind}" data-question="{html.escape(question)}">{control}{"".join(panels)}</div>'


def _stored(steps: Sequence[str | Place]) -> str:
    """What the script reads of every step, as the value of an attribute."""
    return html.escape(json.dumps(list(steps), ensure_ascii=False, separators=(",", ":")))
