"""What puts the hierarchy ahead of MergeMany: one change at a time, and whether it gives the paper's figure.

All gaps are the hierarchy minus MergeMany on the same groups of networks, in points of test accuracy, averaged over
visiting orders and pairings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, Drawn
from lab.report.claims import picked
from lab.report.draw import ON_PHONE, errors, ink, legend_below, offsets, on_page
from lab.report.facts import FEW, reads
from lab.report.statistics import FEWEST_FOR_INTERVAL, interval

SIZES = (4, 8)  # networks in a group: where the rule looks at the gap
# What a change gives: the paper's figure; the hierarchy ahead at both sizes, and by no more at the larger; or neither.
FIGURE, AHEAD, NOT = "the paper's figure", "ahead", "not"
STYLES = {4: Drawn("of 4", ALGORITHMS["l2"].colour, "D"), 8: Drawn("of 8", ALGORITHMS["hierarchy"].colour, "o")}


@dataclass(frozen=True)
class Change:
    """What is changed, and the rows of both algorithms that are then compared: as printed, where nothing is said.

    MergeMany's ``limit`` is how many rounds it has at most; none is as many as were tried.
    """

    title: str
    hierarchy: Mapping[str, Any] = field(default_factory=dict)
    many: Mapping[str, Any] = field(default_factory=dict)


CHANGES = {
    "printed": Change("nothing: both as printed"),
    "three_rounds": Change("three rounds", many={"limit": 3}),
    "two_rounds": Change("two rounds", many={"limit": 2}),
    "one_round": Change("one round", many={"limit": 1}),
    "one_sweep": Change("one sweep a matching, all rounds", many={"variant": "one sweep"}),
    "one_sweep_twice": Change("one sweep a matching, two rounds", many={"variant": "one sweep", "limit": 2}),
    "one_sweep_once": Change("one sweep a matching, one round", many={"variant": "one sweep", "limit": 1}),
    "own_share": Change("the mean of all, itself included", many={"variant": "own share"}),
    "at_once": Change("all moved at once, ten rounds", many={"variant": "at once", "limit": 10}),
    "at_once_once": Change("all moved at once, one round", many={"variant": "at once", "limit": 1}),
    "activations": Change("activations in both", {"variant": "activations"}, {"variant": "activations"}),
    "activations_once": Change(
        "activations in both, one round", {"variant": "activations"}, {"variant": "activations", "limit": 1}
    ),
    "activations_tree": Change("activations in the hierarchy alone", {"variant": "activations"}),
    "repair": Change("REPAIR at the end of both", {"mended": "repair"}, {"mended": "repair"}),
    "repair_hierarchy": Change("REPAIR at the hierarchy's end alone", {"mended": "repair"}),
    "repair_stages": Change("REPAIR at the hierarchy's stages alone", {"mended": "repair every stage"}),
    "pairs": Change("the hierarchy of 2, MergeMany of all", {"n_leaves": 2}),
}
PRINTED = {"variant": "printed", "mended": "none"}


def accuracies(nodes: pd.DataFrame, algorithm: str, changed: Mapping[str, Any], size: int) -> np.ndarray:
    """Test accuracy in percent of each group of ``size`` networks (groups,), the mean over orders; empty if not run."""
    kind = PRINTED | {"n_leaves": size} | dict(changed)
    limit = kind.pop("limit", None)
    rows = picked(nodes, kind | {"algorithm": algorithm})
    if algorithm == "many" and len(rows):
        rows = rows[rows["limit"] == (rows["limit"].max() if limit is None else limit)]
    by_node = 100 * rows.groupby("node")["value"].mean().to_numpy()
    # Smaller nodes: those of one group are neighbours.
    return by_node.reshape(-1, size // kind["n_leaves"]).mean(1)


def gap(nodes: pd.DataFrame, change: Change, size: int) -> np.ndarray:
    """The hierarchy minus MergeMany of each group of ``size`` networks (groups,), in points; empty if not run."""
    hierarchy = accuracies(nodes, "hierarchy", change.hierarchy, size)
    many = accuracies(nodes, "many", change.many, size)
    return hierarchy - many if len(hierarchy) and len(many) else np.array([])


def growth(nodes: pd.DataFrame, change: Change) -> np.ndarray:
    """By how much the gap at eight networks is larger than at four, on the same networks (groups,)."""
    small, large = SIZES
    return gap(nodes, change, large) - gap(nodes, change, small).reshape(-1, large // small).mean(1)


def measured(run: str) -> tuple[pd.DataFrame, dict[str, Change]]:
    """The table of a run, and the changes that it has at both sizes."""
    nodes = results.read(run, "variants", "nodes")
    nodes = nodes[nodes["metric"] == "accuracy"]
    return nodes, {
        name: change for name, change in CHANGES.items() if all(len(gap(nodes, change, size)) for size in SIZES)
    }


def gives(nodes: pd.DataFrame, change: Change) -> str:
    """The rule: what a change gives.

    The paper's figure is given where the hierarchy is ahead at four networks and at eight, and the gap grows from four
    to eight: three intervals wholly above zero.
    """
    gaps = [interval(gap(nodes, change, size)) for size in SIZES]
    grows = interval(growth(nodes, change))
    if grows.n < FEWEST_FOR_INTERVAL:
        return FEW
    if any(value.low <= 0 for value in gaps):
        return NOT
    return FIGURE if grows.low > 0 else AHEAD


@reads("variants")
def gaps_by_variant(run: str) -> Figure:
    """The gap at four and at eight networks under every change, a row for each, with its interval."""
    nodes, changes = measured(run)
    figure, axes = plt.subplots(figsize=(ON_PHONE, 1.0 + 0.55 * len(changes)))
    axes.axvline(0, color=ink(), linewidth=1.5, zorder=1)
    for row, change in enumerate(changes.values()):
        for offset, (size, drawn) in zip(offsets(len(STYLES), 0.2), STYLES.items(), strict=True):
            value = interval(gap(nodes, change, size))
            axes.errorbar(
                value.mean, row + 0.2 + offset, xerr=errors([value]), color=on_page(drawn.colour), marker=drawn.marker,
                elinewidth=1.2, capsize=2, linestyle="none", label=drawn.title,
            )  # fmt: skip
        # Above its marks, and not beside them: so the axis is as wide as the page.
        axes.text(0, row - 0.24, change.title, transform=axes.get_yaxis_transform(), va="center")
        axes.axhline(row + 0.5, color=plt.rcParams["grid.color"], linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(changes) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("hierarchy minus MergeMany (points)")
    legend_below(figure, axes)
    return figure
