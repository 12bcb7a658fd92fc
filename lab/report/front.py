"""The front page: accuracy by the number of networks that were merged, with a slider, and what a reader may expect."""

from __future__ import annotations

import numpy as np

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, DATASETS, title_of
from lab.report.claims import picked
from lab.report.explorers import Frame, explorer, ink, moving, panel, reading, slider, ticks
from lab.report.facts import Facts, outcome, reads
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.words import decimal, points

# From the best to the worst: algorithm and mending.
WAYS = [
    ("ensemble", "none"), ("many", "repair"), ("hierarchy", "repair"), ("many", "none"), ("hierarchy", "none"),
    ("mean", "none"),
]  # fmt: skip
NOT_MEASURED = "–"


def by_number(run: str) -> dict[tuple[str, str], dict[int, Interval]]:
    """Accuracy on the whole test set in percent, by way of merging and number of networks; of one, the unmerged."""
    table = picked(results.read(run, "attack", "clean"), {"split": "test"})
    found = {}
    for way in [("unmerged", "none"), *WAYS]:
        rows = picked(table, dict(zip(("algorithm", "mended"), way, strict=True)))
        found[way] = {int(size): interval(100 * part["value"].to_numpy()) for size, part in rows.groupby("n_leaves")}
    return found


@reads("attack")
def many_repaired(run: str) -> Facts:
    """The accuracy of MergeMany of eight after REPAIR in percent, beside the first of its networks, and their ensemble.

    Outcomes: where the merge minus its first network lies, ``above`` zero, ``below`` or ``open``, or ``too few``; ``not
    measured`` without such merges. ``lost`` has no sign.
    """
    table = picked(results.read(run, "attack", "clean"), {"split": "test"})
    merged = picked(table, {"algorithm": "many", "mended": "repair", "n_leaves": 8}).set_index("node")["value"]
    leaves = picked(table, {"algorithm": "unmerged"}).set_index("node")["value"]
    first = leaves.reindex(8 * merged.index).set_axis(merged.index)
    gaps = (100 * (merged - first)).dropna().to_numpy()
    if not len(gaps):
        return Facts("not measured", {})
    of_ways = by_number(run)
    values = {"many": points(of_ways["many", "repair"][8]), "unmerged": points(of_ways["unmerged", "none"][1])}
    if 8 in of_ways["ensemble", "none"]:
        values["ensemble"] = points(of_ways["ensemble", "none"][8])
    return Facts(outcome(interval(gaps)), values | {"lost": points(interval(-gaps)), "n": str(len(gaps))})


@reads("attack")
def models(run: str) -> str:
    """Accuracy by the number of networks merged into one, with a slider for that number."""
    of_ways = by_number(run)
    curves = {way: of_ways[way] for way in WAYS if of_ways[way]}
    sizes = sorted({size for curve in curves.values() for size in curve})
    at = sizes.index(8) if 8 in sizes else len(sizes) - 1
    content = _picture(curves, of_ways["unmerged", "none"], sizes, at) + _readings(curves, sizes, at)
    spoken = [
        f"{size} networks: " + "; ".join(f"{title_of(*way)} {_value(curve, size)}" for way, curve in curves.items())
        for size in sizes
    ]
    return explorer(
        "explorer-models", "Networks", [panel(_data(run), spoken, content)],
        slider("Networks merged into one:", [str(size) for size in sizes], at),
    )  # fmt: skip


def _data(run: str) -> str:
    return DATASETS[results.read(run, "attack", "clean")["dataset"].iloc[0]]


def _value(curve: dict[int, Interval], size: int) -> str:
    """An accuracy as a reader sees it, its interval as ±, or how many there are where there is none."""
    if size not in curve:
        return NOT_MEASURED
    value = curve[size]
    if value.n < FEWEST_FOR_INTERVAL:
        return f"{decimal(value.mean, 1)} % (n = {value.n})"
    return f"{decimal(value.mean, 1)} ± {decimal(value.high - value.mean, 1)} %"


def _kind(way: tuple[str, str]) -> str:
    return "dashed" if way[1] == "none" and way[0] != "ensemble" else "solid"


def _readings(curves: dict[tuple[str, str], dict[int, Interval]], sizes: list[int], at: int) -> str:
    rows = [
        reading(ALGORITHMS[way[0]].colour, _kind(way), title_of(*way), [_value(curve, size) for size in sizes], at)
        for way, curve in curves.items()
    ]
    return f'<dl class="simple readings">{"".join(rows)}</dl>'


def _picture(
    curves: dict[tuple[str, str], dict[int, Interval]], unmerged: dict[int, Interval], sizes: list[int], at: int
) -> str:
    """A curve for each way over the number of networks, by doublings, and one network by itself as a level line."""
    top = 10 * np.ceil(max(value.mean for curve in curves.values() for value in curve.values()) / 10)
    doublings = {size: float(np.log2(size)) for size in sizes}
    frame = Frame(400, 300, 34, 14, 24, 40, (doublings[sizes[0]], doublings[sizes[-1]]), (0, top))
    parts = [frame.text(0, 12, "test accuracy (%)", "start"), frame.rules(ticks(top, 6))]
    parts.append(frame.foot([(x, str(size)) for size, x in doublings.items()]))
    parts.append(frame.text((frame.left + frame.wide - frame.right) / 2, frame.high - 4, "networks merged into one"))
    places = [frame.place(x, 0) for x in doublings.values()]
    parts.append(moving(f'<path class="at" d="M0 0V{frame.top - places[0][1]:g}"/>', places, at))
    if unmerged:
        level = [(x, unmerged[1].mean) for x in frame.x]
        x, y = frame.place(*level[-1])
        parts += [frame.curve(level, "level"), frame.text(x, y - 5, "one of them by itself", "end")]
    for way, curve in curves.items():
        drawn = ink(ALGORITHMS[way[0]].colour)
        dots = [(doublings[size], value.mean) for size, value in curve.items()]
        parts.append(frame.curve(dots, f"curve {_kind(way)}", drawn))
        for x, y in (frame.place(*dot) for dot in dots):
            parts.append(f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="3.5"{drawn}/>')
    return frame.svg("chart", *parts)
