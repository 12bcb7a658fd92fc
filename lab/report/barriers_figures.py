"""Figures of the chapters on barriers: over width, over training time, and loss against accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lab.bookkeeping.vocabulary import DATASETS
from lab.report.chapter import ZERO
from lab.report.statistics import Interval, interval

# Of recipes, by their order: Okabe and Ito's palette.
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("o", "s", "^", "D", "v", "P")
ARCHITECTURES = {
    "mlp": "MLP", "resnet20_ln": "ResNet20", "resnet20_bn": "ResNet20, BatchNorm", "vgg16_ln": "VGG-16"
}  # fmt: skip
# Barriers below these are drawn there, on axes that have no zero.
FLOOR = {"loss": 0.001, "accuracy": 0.05}
OPTIMISERS = {"adam": "Adam", "sgd": "SGD"}
AXES = {"width": "width of the first layer", "epochs": "epochs of training"}


def label(row: pd.Series) -> str:
    """A recipe's data set and architecture, in words."""
    return f"{DATASETS[row['dataset']]} {ARCHITECTURES.get(row['architecture'], row['architecture'])}"


def loss_against_accuracy(found: Sequence[tuple[str, Interval, Interval]]) -> Figure:
    """Barrier in loss (nats) and in accuracy (points) of each recipe: one mark for each, with both its intervals.

    ``found`` has a name for the legend and the two barriers. What counts as zero is shaded.
    """
    figure, axes = plt.subplots(figsize=(5.6, 4.4))
    shade = {"color": plt.rcParams["grid.color"], "alpha": 0.6, "linewidth": 0}
    axes.axvspan(FLOOR["loss"] / 2, ZERO["loss"], **shade)
    axes.axhspan(FLOOR["accuracy"] / 2, ZERO["accuracy"], **shade)
    names = list(dict.fromkeys(name for name, _, _ in found))
    for name, *both in found:
        means = [max(value.mean, floor) for value, floor in zip(both, FLOOR.values(), strict=True)]
        ends = [
            np.nan_to_num([[at - max(value.low, floor)], [value.high - at]]).clip(0)
            for at, value, floor in zip(means, both, FLOOR.values(), strict=True)
        ]
        number = names.index(name)
        axes.errorbar(
            means[0], means[1], ends[1], ends[0], color=SHADES[number % len(SHADES)], linestyle="none",
            marker=SHAPES[number % len(SHAPES)], markersize=7, elinewidth=1, alpha=0.85, label=name,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="barrier in test loss (nats)", ylabel="barrier in accuracy (points)")
    axes.set(xlim=(FLOOR["loss"] / 2, None), ylim=(FLOOR["accuracy"] / 2, None))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend(first.values(), first.keys(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.tight_layout()
    return figure


def barriers_over(table: pd.DataFrame, axis: str) -> Figure:
    """Barriers of matched pairs over ``axis`` (width or epochs), as they are and after REPAIR: a line for each recipe.

    ``table`` is the table ``barriers`` of notebooks/barriers.ipynb, of recipes with several values on that axis.
    """
    figure, panels = plt.subplots(2, 1, figsize=(5.6, 6.4), sharex=True)
    matched = table[table["algorithm"] == "weights"]
    ticks = sorted(matched[axis].unique())
    aside = (ticks[-1] / ticks[0]) ** 0.01
    for panel, (metric, unit) in zip(panels, (("loss", "nats"), ("accuracy", "points")), strict=True):
        scale = 100 if metric == "accuracy" else 1
        panel.axhspan(0, ZERO[metric], color=plt.rcParams["grid.color"], linewidth=0)
        for number, (_, recipe) in enumerate(matched.groupby("recipe", sort=False)):
            colour, marker = SHADES[number % len(SHADES)], SHAPES[number % len(SHAPES)]
            for mended, style, fill in (("none", "-", colour), ("repair", ":", "none")):
                rows = recipe[(recipe["mended"] == mended) & (recipe["metric"] == f"{metric}_barrier")]
                found = {at: interval(scale * part["value"].to_numpy()) for at, part in rows.groupby(axis)}
                # Beside each other, so that their intervals can be told apart.
                places = np.array(list(found)) * (aside if mended == "repair" else 1 / aside)
                means = np.array([f.mean for f in found.values()])
                error = np.nan_to_num([[f.mean - f.low, f.high - f.mean] for f in found.values()]).T
                panel.errorbar(
                    places, means, error, linestyle=style, color=colour, marker=marker, markerfacecolor=fill,
                    markersize=6, capsize=3, label=label(recipe.iloc[0]) + (", REPAIR" if mended == "repair" else ""),
                )  # fmt: skip
        panel.set_ylabel(f"barrier in {metric} ({unit})")
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
    panels[1].set(xscale="log", xlabel=AXES[axis])
    panels[1].set_xticks(ticks, ticks)
    panels[1].xaxis.set_minor_locator(NullLocator())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.align_ylabels(panels)
    figure.tight_layout()
    return figure
