"""Pairs of networks in the tables of barriers: a metric's mean over pairs, and barriers on logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lab.bookkeeping.vocabulary import DATASETS
from lab.networks import ARCHITECTURES
from lab.report.claims import picked
from lab.report.draw import legend_below, paper, width
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.verdicts import ZERO
from lab.report.words import side

GONE, STILL_THERE, NOT_DECIDED = "gone", "still there", "not decided"
FALLS, RISES, EITHER = "falls", "rises", "open"
SHAPES = ("o", "s", "^", "D", "v", "P")  # of networks, by their order
# Barriers below these are drawn there, on axes that have no zero.
FLOOR = {"loss": 0.001, "accuracy": 0.05}


def by_pair(table: pd.DataFrame, metric: str, matcher: str = "weights", mended: str = "none") -> pd.Series:
    """A metric by node, one value for each pair. Raises ValueError if a pair has several: the table mixes networks."""
    rows = picked(table, {"metric": metric, "matcher": matcher, "mended": mended})
    return rows.set_index("node", verify_integrity=True)["value"].sort_index()


def in_nats(table: pd.DataFrame, metric: str, matcher: str = "weights", mended: str = "none") -> Interval:
    """A metric's mean over pairs, as it is in the table: nats of loss, or a temperature."""
    return interval(by_pair(table, metric, matcher, mended).to_numpy())


def in_points(table: pd.DataFrame, metric: str, matcher: str = "weights", mended: str = "none") -> Interval:
    """The mean over pairs of a metric of accuracy, in percent or points."""
    return interval(100 * by_pair(table, metric, matcher, mended).to_numpy())


def state(barrier: Interval, zero: float) -> str:
    """Whether a barrier is gone, still there, or neither: where its interval lies beside what counts as zero."""
    return side(barrier, zero, STILL_THERE, GONE, NOT_DECIDED)


def title_of_networks(rows: pd.DataFrame) -> str:
    """What a reader calls the networks of a table's rows: ``CIFAR-10 ResNet20, LayerNorm``."""
    return networks_title(rows["dataset"].iloc[0], rows["architecture"].iloc[0])


def networks_title(dataset: str, architecture: str) -> str:
    """The same, of a data set and an architecture."""
    known = ARCHITECTURES[architecture]
    norm = "" if known.norm == "none" else f", {known.norm}"
    return f"{DATASETS[dataset]} {known.title}{norm}"


def shade_zero(span: Callable[..., Any], metric: str) -> None:
    """Shade what counts as zero on a logarithmic axis, by its ``axhspan`` or ``axvspan``."""
    span(FLOOR[metric] / 2, ZERO[metric], color=plt.rcParams["grid.color"], alpha=0.6, linewidth=0)


def above_floor(value: Interval, metric: str) -> tuple[float, float, float]:
    """Lower end, mean and upper end of an interval as a logarithmic axis shows them; NaN where there is none."""
    floor, mean = FLOOR[metric], max(value.mean, FLOOR[metric])
    if value.n < FEWEST_FOR_INTERVAL:
        return np.nan, mean, np.nan
    return min(max(value.low, floor), mean), mean, max(value.high, mean)


def barriers_over(table: pd.DataFrame, axis: str, title: str) -> Figure:
    """Barriers of matched pairs over ``axis``, as merged and after REPAIR: a line for each recipe of a table.

    Loss above, accuracy below, on logarithmic axes; the strip at the bottom is what counts as zero.
    """
    ticks = sorted(table[axis].unique())
    figure, panels = plt.subplots(2, 1, figsize=(width(), 5.6), sharex=True)
    for panel, (metric, unit) in zip(panels, (("loss", "nats"), ("accuracy", "points")), strict=True):
        mean = in_nats if metric == "loss" else in_points
        shade_zero(panel.axhspan, metric)
        for number, (_, recipe) in enumerate(table.groupby("recipe", sort=False)):
            style = {"color": f"C{number}", "marker": SHAPES[number % len(SHAPES)], "capsize": 3, "elinewidth": 1.2}
            for mended, line, fill in (("none", "-", f"C{number}"), ("repair", ":", paper())):
                heights = {at: mean(part, f"{metric}_barrier", mended=mended) for at, part in recipe.groupby(axis)}
                low, middle, high = np.transpose([above_floor(value, metric) for value in heights.values()])
                label = title_of_networks(recipe) + (", REPAIR" if mended == "repair" else "")
                panel.errorbar(
                    list(heights), middle, (middle - low, high - middle), linestyle=line,
                    markerfacecolor=fill, label=label, **style,
                )  # fmt: skip
        panel.set(yscale="log", ylabel=f"barrier in {metric} ({unit})")
        panel.text(0.01, 0.02, "counts as zero", transform=panel.transAxes)
        panel.set_ylim(bottom=FLOOR[metric] / 1.5)
        panel.yaxis.set_major_formatter("{x:g}")
    panels[1].set(xscale="log", xlabel=title)
    panels[1].set_xticks(ticks, ticks)
    panels[1].xaxis.set_minor_locator(NullLocator())
    figure.align_ylabels(panels)
    legend_below(figure, panels[0])
    return figure
