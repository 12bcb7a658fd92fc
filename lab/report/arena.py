"""The arena: what merges of a given size reach, of two networks that know half of the classes each, and of many."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import CONTESTANTS, DATASETS, MENDINGS, Drawn
from lab.networks import ARCHITECTURES
from lab.report.claims import contrast_of_nodes, picked
from lab.report.draw import interval_line, legend_below
from lab.report.facts import OPEN, Facts, outcome, reads
from lab.report.statistics import Interval, interval
from lab.report.verdicts import claim
from lab.report.words import decimal, points, seconds

ONE = 1.0  # the size of one network
# What figures over the size show.
OVER_SIZE = ("zip", "pleas", "pleas_refitted")
# What figures over the number of networks show, each as it is mended best without a look at the result: see ``shown_as``.
OVER_NUMBER = ("mean", "weights", "hierarchy", "regmean", "pleas", "pleas_refitted", "pleas_tree", "ensemble")
# VGG-11 of full width with cross-entropy, each trained to the end: accuracy over ten classes (ZipIt!, table 11).
PUBLISHED = {"parent": 44.6, "mean": 10.2, "correlation": 25.4, "zip": 33.2, "ensemble": 66.6}


def settings_of(run: str, tasks: str) -> dict[str, pd.DataFrame]:
    """Accuracies over all classes by the title of their setting: of ``halves``, or of networks with one task, ``whole``."""
    entries = results.read(run, "arena", "entries")
    entries = picked(entries, {"tasks": tasks, "task": "joint", "metric": "accuracy"})
    return {title_of(rows): rows for _, rows in entries.groupby("setting", sort=False)}


def title_of(rows: pd.DataFrame) -> str:
    """What a reader calls the networks of a setting: ``MLP``, ``VGG-11, 1/4``."""
    first = rows.iloc[0]
    kind = ARCHITECTURES[first["architecture"]]
    factor = first["width"] / kind.width
    return kind.title if factor == 1 else f"{kind.title}, {'1/' if factor < 1 else ''}{max(factor, 1 / factor):g}"


def shown_as(rows: pd.DataFrame, method: str) -> str:
    """How a method is mended where a figure shows it once: statistics measured anew, where there are batch norms."""
    return "reset" if "reset" in set(rows[rows["method"] == method]["mended"]) else "none"


def accuracy(rows: pd.DataFrame, method: str, size: float = ONE, mended: str | None = None) -> Interval | None:
    """The accuracy of a method in one setting, in percent; None if it was not tried there."""
    mended = shown_as(rows, method) if mended is None else mended
    chosen = picked(rows, {"method": method, "size": size, "mended": mended})
    return interval(100 * chosen["value"].to_numpy()) if len(chosen) else None


def difference(rows: pd.DataFrame, first: Sequence, second: Sequence) -> Interval:
    """How many points a (method, size, mended) has more than another, node by node."""
    terms = [
        {"method": method, "size": size, "mended": mended, "weight": weight}
        for (method, size, mended), weight in ((first, 1), (second, -1))
    ]
    return interval(contrast_of_nodes(rows, terms, "points"))


@reads("arena")
def accuracy_by_size(run: str) -> Figure:
    """Accuracy over all classes by the size of the merge: a panel for each kind of networks."""
    settings = settings_of(run, "halves")
    figure, panels = plt.subplots(len(settings), 1, figsize=(5.4, 0.4 + 2.6 * len(settings)), sharex=True, squeeze=False)
    for (title, rows), axes in zip(settings.items(), panels[:, 0], strict=True):
        for method in OVER_SIZE:
            sizes = sorted(rows[rows["method"] == method]["size"].unique())
            interval_line(axes, sizes, [accuracy(rows, method, size) for size in sizes], CONTESTANTS[method], _name(method))
        for method, size in (("correlation", ONE), ("regmean", ONE), ("head", ONE), ("ensemble", 2.0)):
            reached = accuracy(rows, method, size)
            if reached is not None:
                interval_line(axes, [size], [reached], CONTESTANTS[method], _name(method), line="none")
        parent = accuracy(rows, "parent")
        if parent is not None:
            axes.axhline(parent.mean, color=CONTESTANTS["parent"].colour, linestyle="--", label=_name("parent"), zorder=1)
        axes.set_title(title)
        axes.set_ylabel("accuracy (%)")
    panels[-1, 0].set_xlabel("size: multiply-adds, in multiples of one network")
    figure.tight_layout()
    legend_below(figure, panels[0, 0])
    return figure


@reads("arena")
def at_one_size(run: str) -> Figure:
    """Accuracy over all classes of every method at the size of one network: a panel for each kind of networks."""
    settings = settings_of(run, "halves")
    methods = [name for name in CONTESTANTS if any(accuracy(rows, name) is not None for rows in settings.values())]
    figure, panels = plt.subplots(
        1, len(settings), figsize=(2.4 + 1.5 * len(settings), 0.9 + 0.26 * len(methods)), sharey=True, squeeze=False
    )
    for (title, rows), axes in zip(settings.items(), panels[0], strict=True):
        for position, method in enumerate(methods):
            for mended, filled in ((None, True), ("repair", False)):
                reached = accuracy(rows, method, mended=mended)
                if reached is not None:
                    _dot(axes, reached, position, CONTESTANTS[method], filled)
        ensemble = accuracy(rows, "ensemble", 2.0)
        if ensemble is not None:
            axes.axvline(ensemble.mean, color=CONTESTANTS["ensemble"].colour, linestyle="--", zorder=1)
        axes.set_title(title)
        axes.set_xlabel("accuracy (%)")
    panels[0, 0].set_yticks(range(len(methods)), [_name(method) for method in methods])
    panels[0, 0].invert_yaxis()
    figure.tight_layout()
    return figure


def _dot(axes: plt.Axes, value: Interval, position: float, drawn: Drawn, filled: bool) -> None:
    error = np.array([[value.mean - value.low], [value.high - value.mean]])
    axes.errorbar(
        [value.mean], [position], xerr=error, color=drawn.colour, marker=drawn.marker, markersize=6, capsize=3,
        markerfacecolor=drawn.colour if filled else "none",
    )  # fmt: skip


@reads("arena")
def accuracy_by_number(run: str) -> Figure:
    """Accuracy of merges of many networks of one task, of the size of one, over how many were merged."""
    rows = many(run)
    numbers = sorted(rows["parents"].unique())
    figure, axes = plt.subplots(figsize=(5.4, 3.6))
    for method in OVER_NUMBER:
        for mended, line in (("none", "-"), ("repair", ":")):
            reached = {}
            for number in numbers:
                of_number = rows[rows["parents"] == number]
                size = float(number) if method == "ensemble" else ONE
                if (value := accuracy(of_number, method, size, mended)) is not None:
                    reached[number] = value
            if reached:
                label = _name(method) if mended == "none" else f"{_name(method)}, {MENDINGS['repair']}"
                interval_line(axes, list(reached), list(reached.values()), CONTESTANTS[method], label, line)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set(xlabel="networks that were merged", ylabel="accuracy (%)")
    figure.tight_layout()
    legend_below(figure, axes)
    return figure


def many(run: str) -> pd.DataFrame:
    """Accuracies of merges of networks that all know the same, by the number of ``parents``."""
    entries = results.read(run, "arena", "entries")
    return picked(entries, {"tasks": "whole", "subset": "all", "task": "joint", "metric": "accuracy"})


def _name(method: str) -> str:
    return CONTESTANTS[method].title
