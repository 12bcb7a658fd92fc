"""How time and memory grow with the number of networks and their width, and what a cluster would need, on paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lab.bookkeeping import results
from lab.report.draw import legend_below, on_page, width
from lab.report.facts import Facts, reads
from lab.report.library import measured
from lab.report.words import decimal, listed, seconds

AXES = ("networks", "width")
COLOURS = {
    "training": "#009E73", "matching in pairs": "#0072B2", "MergeMany": "#D55E00", "universe": "#2F97D0",
    "PLeaS": "#8C6BB1", "attacks": "#7F7F7F",
}  # fmt: skip
STEEPER = 0.25  # above the floor's exponent, from where on something counts as growing faster
# The cluster on paper: networks, machines, and the bytes a second that a machine reads or writes (a gigabit).
NETWORKS, MACHINES, SPEED = 1600, 32, 125e6
BYTES = 4  # of a number


def exponents(axis: str) -> list[Mapping[str, Any]]:
    """How each thing grows along an axis."""
    return [row for row in measured("scaling")["exponents"] if row["axis"] == axis]


def growth(axis: str) -> Facts:
    """Whether something takes more time, as an axis grows, than a higher power of it than its floor does.

    The outcome is ``some above`` or ``none above``; ``steepest`` is what grows the fastest, ``exponent`` how fast.
    """
    rows = exponents(axis)
    above = [row["what"] for row in rows if row["time"] > row["time_floor"] + STEEPER]
    steepest = max(rows, key=lambda row: row["time"])
    values = {
        "above": listed(above) if above else "none",
        "steepest": steepest["what"],
        "exponent": decimal(steepest["time"], 1),
        "largest": str(max(row["largest"] for row in rows)),
        "machine": measured("scaling")["hardware"]["processor"],
    }
    return Facts("some above" if above else "none above", values)


@reads()
def networks() -> Facts:
    """``growth`` with the number of networks."""
    return growth("networks")


@reads()
def widths() -> Facts:
    """``growth`` with their width."""
    return growth("width")


@reads()
def exponents_table() -> pd.DataFrame:
    """A row for each thing: the exponents of its time and memory, in networks and in width, each beside the floor's."""
    by_axis = {axis: {row["what"]: row for row in exponents(axis)} for axis in AXES}
    rows = []
    for what in by_axis["networks"]:
        cells = {"": what}
        for axis in AXES:
            row = by_axis[axis][what]
            cells |= {
                f"{axis}, to": str(row["largest"]),
                f"time by {axis}": decimal(row["time"], 1),
                f"its floor by {axis}": str(row["time_floor"]),
                f"memory by {axis}": decimal(row["memory"], 1),
                f"floor of memory by {axis}": str(row["memory_floor"]),
            }
        rows.append(cells)
    return pd.DataFrame(rows)


@reads()
def points_table() -> pd.DataFrame:
    """A row for each measured point: what was done with how many networks of which width, its time and memory."""
    rows = [
        {
            "": row["what"],
            "networks": str(row["networks"]),
            "width": str(row["width"]),
            "processor seconds": seconds(row["seconds"]),
            "memory (MiB)": decimal(row["mebibytes"], 0),
        }
        for row in measured("scaling")["rows"]
    ]
    return pd.DataFrame(rows)


@reads()
def growing() -> Figure:
    """Processor seconds by the number of networks, and by their width, on logarithmic axes."""
    rows = measured("scaling")["rows"]
    figure, panels = plt.subplots(1, 2, figsize=(width(), 4.2), sharey=True)
    for axis, panel in zip(AXES, panels, strict=True):
        for what, colour in COLOURS.items():
            points = [row for row in rows if row["what"] == what and row["axis"] == axis]
            panel.plot(
                [row[axis] for row in points],
                [row["seconds"] for row in points],
                marker="o",
                markersize=4,
                color=on_page(colour),
                label=what,
            )
        panel.set(xscale="log", yscale="log", xlabel={"networks": "networks", "width": "units of a layer"}[axis])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_major_locator(LogLocator(10))
    panels[0].set_title("processor seconds")
    legend_below(figure, panels[0])
    return figure


@reads("train")
def cluster(run: str) -> Facts:
    """What training 1600 networks would take on 32 machines such as the one that trained the run's: on paper.

    ``alone`` is in hours on one of them and ``together`` in minutes on all. ``size`` is what goes into their one cache
    and out of it again, in GB, and ``moving`` what that takes one machine that reads it all, in minutes. The outcome is
    what takes longer, ``training`` or ``moving``.
    """
    made = results.provenance(run, "train")
    if made is None:
        raise FileNotFoundError(f"run {run!r} has no networks of notebook train")
    trained = made["parameters"]["networks"]
    each = made["training_seconds"] / trained["models"]
    alone, together = NETWORKS * each / 3600, NETWORKS / MACHINES * each / 60
    size = NETWORKS * BYTES * parameters_of_mlp(trained["width"])
    moving = size / SPEED / 60
    values = {
        "networks": str(NETWORKS),
        "machines": str(MACHINES),
        "width": str(trained["width"]),
        "each": decimal(each, 0),
        "alone": decimal(alone, 0),
        "together": decimal(together, 0),
        "size": decimal(size / 1e9, 0),
        "moving": decimal(moving, 1),
    }
    return Facts("training" if together > moving else "moving", values)


def parameters_of_mlp(units: int, inputs: int = 3072, outputs: int = 10) -> int:
    """The numbers of an MLP with three hidden layers of so many units, on images of CIFAR-10."""
    sizes = (inputs, units, units, units, outputs)
    return sum((before + 1) * after for before, after in zip(sizes[:-1], sizes[1:], strict=True))


@reads("trees")
def tree(run: str) -> Facts:
    """What training a tree of the run's networks took one core, in minutes, and what training the missing trees takes.

    ``rest`` are the hours of one core for the rest of 1600 networks. The outcome is ``some`` while trees are missing,
    else ``all``.
    """
    made = results.provenance(run, "trees")
    if made is None:
        raise FileNotFoundError(f"run {run!r} has no trees")
    count, leaves = made["parameters"]["trees"], made["parameters"]["networks"]["models"]
    training = made["training_seconds"] / count
    missing = max(0, NETWORKS // leaves - count)
    values = {
        "leaves": str(leaves),
        "trees": str(count),
        "minutes": decimal(training / 60, 0),
        "missing": str(missing),
        "rest": decimal(missing * training / 3600, 0),
    }
    return Facts("some" if missing else "all", values)
