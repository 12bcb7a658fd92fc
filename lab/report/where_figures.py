"""The hierarchy's gap to MergeMany, condition by condition and size by size: its values and their figure."""

from __future__ import annotations

from dataclasses import fields

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping.vocabulary import COLOURS, DATASETS
from lab.report.statistics import interval
from lab.training.recipe import Recipe

# What tells one condition from another: every part of the recipe, in the plan's order.
CONDITION = ["recipe", "dataset", *(field.name for field in fields(Recipe)), "epochs"]
# How each of the two is mended, the hierarchy and MergeMany: MergeMany has no stages, so the end is all there is.
GAPS = {
    "as merged": ("none", "none"),
    "REPAIR at the end": ("end", "end"),
    "REPAIR at every stage": ("every stage", "end"),
}
STYLES = {
    "as merged": ("o-", None),  # in the page's ink
    "REPAIR at the end": ("D--", "#E69F00"),
    "REPAIR at every stage": ("s:", "#56B4E9"),
}
NETWORKS = {
    "mlp": "MLP, 3 hidden layers", "mlp1": "MLP, 1 hidden layer", "mlp2": "MLP, 2 hidden layers",
    "mlp6": "MLP, 6 hidden layers", "resnet20_ln": "ResNet20, LayerNorm", "resnet20_bn": "ResNet20, BatchNorm",
    "vgg16_ln": "VGG-16, LayerNorm", "vgg16_bn": "VGG-16, BatchNorm", "vit": "ViT",
}  # fmt: skip
LEAST_SPAN = 1.0  # points: an axis shows at least so much on both sides of zero


def conditions(nodes: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The test accuracies of each condition, in the plan's order, by its two lines of label.

    ``nodes`` is the table of notebooks/where.ipynb. Conditions whose labels would be the same are told apart by what
    differs between them: the recipe's name, and, where they share that too, its other parts.
    """
    accuracy = nodes[nodes["metric"] == "accuracy"]
    parts = [part for _, part in accuracy.groupby(CONDITION, sort=False)]
    labels = [name_of(part.iloc[0]) for part in parts]
    found = {}
    for part, (first, second) in zip(parts, labels, strict=True):
        alike = [other.iloc[0] for other, label in zip(parts, labels, strict=True) if label == (first, second)]
        own = part.iloc[0]
        named = [other for other in alike if other["recipe"] == own["recipe"]]
        told = [second] + [str(own["recipe"])] * (len(alike) > 1)
        told += [f"{key} {own[key]}" for key in CONDITION if len({other[key] for other in named}) > 1]
        found[first, ", ".join(told)] = part
    return found


def name_of(row: pd.Series) -> tuple[str, str]:
    """The two lines that tell a condition from another."""
    epochs = f"{row['epochs']} epoch{'s' if row['epochs'] > 1 else ''}"
    return f"{DATASETS[row['dataset']]}, {epochs}", f"{NETWORKS[row['architecture']]}, width {row['width']}"


def percent(condition: pd.DataFrame, algorithm: str, mended: str, size: int) -> np.ndarray:
    """Test accuracy of every node of one kind (nodes,), in percent."""
    chosen = condition[
        (condition["algorithm"] == algorithm) & (condition["mended"] == mended) & (condition["n_leaves"] == size)
    ]
    return 100 * chosen.sort_values("node")["value"].to_numpy()


def gap(condition: pd.DataFrame, kind: str, size: int) -> np.ndarray:
    """The hierarchy minus MergeMany on each group of ``size`` leaves (groups,), in points; ``kind`` is of ``GAPS``."""
    tree, many = GAPS[kind]
    return percent(condition, "tree", tree, size) - percent(condition, "merge_many", many, size)


def growth(condition: pd.DataFrame, kind: str, size: int) -> np.ndarray:
    """By how much the gap is larger at ``size`` leaves than at half as many, on the same leaves (groups,)."""
    return gap(condition, kind, size) - gap(condition, kind, size // 2).reshape(-1, 2).mean(1)


def sizes_of(condition: pd.DataFrame) -> list[int]:
    """The numbers of leaves that a condition has merges of."""
    return sorted(set(condition["n_leaves"].tolist()) - {1})


def gap_by_leaves(nodes: pd.DataFrame) -> Figure:
    """The gap by number of leaves, a panel for each condition, as merged and mended."""
    found = conditions(nodes)
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(5.6, 0.9 + 1.75 * rows), squeeze=False)
    sizes = sorted({size for condition in found.values() for size in sizes_of(condition)})
    for axes, (label, condition) in zip(panels.flat, found.items(), strict=False):
        axes.axhline(0, color=COLOURS["unmerged"], linewidth=1.5)
        for shift, (kind, (style, colour)) in zip((-0.12, 0, 0.12), STYLES.items(), strict=True):
            bounds = [interval(gap(condition, kind, size)) for size in sizes_of(condition)]
            means = np.array([bound.mean for bound in bounds])
            error = np.nan_to_num([[bound.mean - bound.low, bound.high - bound.mean] for bound in bounds]).T
            axes.errorbar(
                np.arange(len(bounds)) + shift, means, error, fmt=style, color=colour or plt.rcParams["text.color"],
                markersize=5, capsize=2, linewidth=1.5, label=kind,
            )  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -LEAST_SPAN), max(high, LEAST_SPAN))
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_title("\n".join(label), fontsize=10, loc="left")
        axes.grid(axis="x", visible=False)
    for axes in panels.flat[len(found) :]:
        axes.axis("off")
    figure.supxlabel("models merged into a node", fontsize=11)
    figure.supylabel("hierarchy minus MergeMany (points)", fontsize=11)
    figure.tight_layout(h_pad=1.2)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    return figure
