"""The figure of the chapter on MergeMany: confidence against accuracy."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping.vocabulary import COLOURS, LABELS, MARKERS
from lab.measures.many import ALGORITHMS

RAREST = 0.005  # the share of images below which a bin is left out: its accuracy is mostly chance


def reliability_diagram(table: pd.DataFrame) -> Figure:
    """Accuracy of the answers of each bin of confidence, over all nodes: a panel for each size of group.

    ``table`` is the table ``reliability`` of notebooks/many.ipynb, of which the networks trained on halves are shown.
    """
    groups = half_groups(table)
    figure, panels = plt.subplots(1, len(groups), figsize=(5.6, 3.1), sharex=True, sharey=True, squeeze=False)
    for group, axes in zip(groups, panels[0], strict=True):
        axes.plot([0, 100], [0, 100], color=plt.rcParams["text.color"], linewidth=1, zorder=1)
        for algorithm in ALGORITHMS:
            bins = pooled(table[(table["group"] == group) & (table["algorithm"] == algorithm)])
            axes.plot(
                100 * bins["confidence"], 100 * bins["accuracy"], color=COLOURS[algorithm], marker=MARKERS[algorithm],
                markersize=5, linewidth=1.5, label=LABELS[algorithm].removesuffix(" of the leaves"),
            )  # fmt: skip
        axes.set_title(f"groups of {group.removeprefix('half ')}")
        axes.set(xlabel="confidence (%)", xlim=(0, 102), ylim=(0, 102), aspect="equal")
    panels[0, 0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.tight_layout()
    return figure


def pooled(bins: pd.DataFrame) -> pd.DataFrame:
    """Confidence and accuracy of each bin over all nodes, each node's counted by its share; rare bins are left out."""
    share = bins.groupby("bin")["share"].mean()
    seen = bins[bins["share"] > 0]
    means = {
        name: seen.groupby("bin").apply(lambda part, name=name: np.average(part[name], weights=part["share"]))
        for name in ("confidence", "accuracy")
    }
    return pd.DataFrame(means)[share[share >= RAREST].reindex(means["accuracy"].index).notna()]


def half_groups(table: pd.DataFrame) -> list[str]:
    """The names of the groups of networks trained on halves, the smallest first."""
    halves = [group for group in table["group"].unique() if group.startswith("half ")]
    return sorted(halves, key=lambda group: int(group.removeprefix("half ")))
