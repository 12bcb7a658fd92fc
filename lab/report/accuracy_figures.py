"""Figures of the hierarchy's chapters: accuracy by number of leaves, paths, barriers, and the conditions."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping.vocabulary import COLOURS, INITIALS, LABELS, MARKERS
from lab.measures.paths import barrier
from lab.merges import ALGORITHMS
from lab.report.statistics import interval

# What readers call the schemes by which weights begin, in the order of tables and figures.
RECIPE = ["width", "initial", "epochs", "weight_decay"]


def accuracy_by_leaves(nodes: pd.DataFrame) -> Figure:
    """Test accuracy of every node by the number of its leaves (Hierarchical Re-Basin, Figure 2).

    ``nodes`` is the table ``nodes`` of notebooks/accuracy.ipynb: a dot per node, a bar at the median.
    """
    accuracy = nodes[(nodes["metric"] == "accuracy") & (nodes["split"] == "test")]
    unmerged = 100 * accuracy[accuracy["algorithm"] == "unmerged"]["value"].to_numpy()
    sizes = sorted(accuracy["n_leaves"].unique())
    figure, axes = plt.subplots(figsize=(5.6, 4.0))
    median = {"color": COLOURS["unmerged"], "linestyle": "--", "label": "median of the unmerged"}
    axes.axhline(np.median(unmerged), linewidth=1.5, zorder=1, **median)
    _dots(axes, 0, unmerged, "unmerged")
    for offset, algorithm in zip((-0.25, 0, 0.25), ALGORITHMS, strict=True):
        for size in sizes_of(accuracy, algorithm):
            chosen = accuracy[(accuracy["algorithm"] == algorithm) & (accuracy["n_leaves"] == size)]
            _dots(axes, sizes.index(size) + offset, 100 * chosen["value"].to_numpy(), algorithm)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set(xlabel="models merged into a node", ylabel="test accuracy (%)")
    axes.grid(axis="x", visible=False)
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    figure.legend(first.values(), first.keys(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    return figure


def sizes_of(table: pd.DataFrame, algorithm: str) -> list[int]:
    """The numbers of leaves that a table has nodes of: MergeMany may stop at fewer than the others."""
    return sorted(table[table["algorithm"] == algorithm]["n_leaves"].unique().tolist())


def _dots(axes: plt.Axes, x: float, values: np.ndarray, algorithm: str) -> None:
    """One dot per node, spread a little so that they can be told apart, and a bar at their median."""
    spread = (np.random.default_rng(0).random(len(values)) - 0.5) * 0.16
    colour = COLOURS[algorithm]
    axes.scatter(
        x + spread, values, s=14, color=colour, alpha=0.55, linewidth=0, marker=MARKERS[algorithm],
        label=LABELS[algorithm],
    )  # fmt: skip
    axes.hlines(np.median(values), x - 0.11, x + 0.11, color=colour, linewidth=2.5)


def paths(table: pd.DataFrame, split: str) -> Figure:
    """Accuracy and loss along the line between two parents, mean over pairs with its 95 % band.

    ``table`` is the table ``paths`` of notebooks/accuracy.ipynb; ``split`` is train or test.
    """
    figure, panels = plt.subplots(2, 1, figsize=(5.6, 6.0), sharex=True)
    chosen = table[table["split"] == split]
    sizes = sorted(chosen[chosen["algorithm"] == "tree"]["n_leaves"].unique())
    shades = plt.get_cmap("Blues")(np.linspace(0.45, 0.95, len(sizes)))
    if plt.rcParams["text.color"] != "#1F2328":
        shades = plt.get_cmap("Blues")(np.linspace(0.75, 0.2, len(sizes)))
    lines = [("naive", 2, COLOURS["naive"], "two leaves, as they are", "--")]
    lines += [("tree", size, shade, f"into a node of {size}", "-") for size, shade in zip(sizes, shades, strict=True)]
    for metric, axes in zip(("accuracy", "loss"), panels, strict=True):
        for algorithm, size, colour, label, style in lines:
            along = _along(chosen, algorithm, size, metric) * (100 if metric == "accuracy" else 1)
            bounds = [interval(along[:, point]) for point in range(along.shape[1])]
            lams = np.linspace(0, 1, along.shape[1])
            axes.plot(lams, [b.mean for b in bounds], style, color=colour, label=f"{label} (n = {len(along)})")
            axes.fill_between(
                lams, [b.low for b in bounds], [b.high for b in bounds], color=colour, alpha=0.25, linewidth=0
            )
    panels[0].set_ylabel(f"{split} accuracy (%)")
    panels[1].set(ylabel=f"{split} loss (nats)", xlabel="λ, from one parent to the other")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.align_ylabels(panels)
    figure.tight_layout()
    return figure


def barriers(table: pd.DataFrame) -> pd.DataFrame:
    """Both barriers of every path: one row per algorithm, n_leaves, node, split and metric.

    Accuracy is taken as error, in points; loss in nats. ``barrier`` is measured from the mean of the two ends,
    ``above_line`` from the straight line between them.
    """
    import torch

    rows = []
    keys = ["algorithm", "n_leaves", "node", "split", "metric"]
    for key, path in table.groupby(keys):
        path = path.sort_values("lam")
        values = torch.tensor(path["value"].to_numpy())
        values = -100 * values if key[-1] == "accuracy" else values
        from_mean, above = barrier(values, torch.tensor(path["lam"].to_numpy()))
        rows.append((*key, float(from_mean), float(above)))
    return pd.DataFrame(rows, columns=[*keys, "barrier", "above_line"])


def drop_by_leaves(nodes: pd.DataFrame) -> Figure:
    """What merging costs: mean of a node's leaves minus the node in accuracy, the node minus its leaves in loss."""
    figure, panels = plt.subplots(2, 1, figsize=(5.6, 6.0), sharex=True)
    sizes = sorted(nodes["n_leaves"].unique())[1:]
    for metric, axes in zip(("accuracy", "loss"), panels, strict=True):
        for split, style in (("test", "-"), ("train", ":")):
            for shift, algorithm in zip((-0.08, 0, 0.08), ALGORITHMS, strict=True):
                made = sizes_of(nodes, algorithm)
                if not made:
                    continue
                found = [interval(node_drops(nodes, algorithm, size, split, metric)) for size in made]
                positions = np.array([sizes.index(size) for size in made]) + shift
                means = np.array([f.mean for f in found])
                error = np.nan_to_num([[f.mean - f.low, f.high - f.mean] for f in found]).T
                axes.errorbar(
                    positions, means, error, linestyle=style, color=COLOURS[algorithm], marker=MARKERS[algorithm],
                    markersize=5, capsize=3, label=f"{LABELS[algorithm]}, {split}",
                )  # fmt: skip
        axes.axhline(0, color=COLOURS["unmerged"], linewidth=1)
    panels[0].set_ylabel("accuracy lost (points)")
    panels[1].set(ylabel="loss gained (nats)", xlabel="models merged into a node")
    panels[1].set_xticks(range(len(sizes)), sizes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.align_ylabels(panels)
    figure.tight_layout()
    return figure


def node_drops(nodes: pd.DataFrame, algorithm: str, n_leaves: int, split: str, metric: str) -> np.ndarray:
    """The barrier of n models: (nodes,), how much worse each node is than the mean of its own leaves.

    In points of accuracy, or nats of loss; positive is worse.
    """
    chosen = nodes[(nodes["split"] == split) & (nodes["metric"] == metric)]
    leaves = chosen[chosen["algorithm"] == "unmerged"].sort_values("node")["value"].to_numpy()
    merged = chosen[(chosen["algorithm"] == algorithm) & (chosen["n_leaves"] == n_leaves)].sort_values("node")
    drop = leaves.reshape(-1, n_leaves).mean(1) - merged["value"].to_numpy()
    return 100 * drop if metric == "accuracy" else -drop


def _along(table: pd.DataFrame, algorithm: str, n_leaves: int, metric: str) -> np.ndarray:
    """The values of all paths of one kind: (pairs, points)."""
    chosen = table[(table["algorithm"] == algorithm) & (table["n_leaves"] == n_leaves) & (table["metric"] == metric)]
    return chosen.pivot(index="node", columns="lam", values="value").to_numpy()


def by_recipe(conditions: pd.DataFrame) -> list[tuple[tuple[int, str, int, float], pd.DataFrame]]:
    """The rows of each recipe, (width, initial weights, epochs, weight decay), in the order of tables and figures."""
    order = list(INITIALS)
    return sorted(conditions.groupby(RECIPE), key=lambda part: (part[0][0], order.index(part[0][1]), *part[0][2:]))


def gap_by_condition(conditions: pd.DataFrame) -> Figure:
    """Test accuracy of eight-leaf nodes under every condition: one row each, as they are and after REPAIR."""
    accuracy = conditions[conditions["metric"] == "accuracy"]
    settings = by_recipe(accuracy)
    # Narrow, since the labels beside it are wide: on a phone the whole must still be readable.
    figure, axes = plt.subplots(figsize=(4.4, 1.6 + 0.45 * len(settings)))
    labels = []
    for row, ((width, initial, epochs, weight_decay), here) in enumerate(settings):
        labels.append(f"{INITIALS[initial]}, width {width}\n{epochs} epochs, weight decay {weight_decay:g}")
        unmerged = 100 * here[here["algorithm"] == "unmerged"]["value"].mean()
        axes.plot(unmerged, row, MARKERS["unmerged"], color=COLOURS["unmerged"], markersize=6)
        for algorithm in ("tree", "merge_many"):
            one = here[here["algorithm"] == algorithm]
            plain, repaired = (100 * one[one["repair"] == flag]["value"].mean() for flag in (False, True))
            up = row - (0.14 if algorithm == "tree" else -0.14)
            axes.plot([plain, repaired], [up, up], color=COLOURS[algorithm], linewidth=1.2)
            shape = MARKERS[algorithm]
            axes.plot(plain, up, shape, color=COLOURS[algorithm], markersize=7)
            axes.plot(repaired, up, shape, color=COLOURS[algorithm], markersize=7, markerfacecolor="none")
    axes.set_yticks(range(len(settings)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy (%)")
    for algorithm in ("tree", "merge_many", "unmerged"):
        axes.plot([], [], MARKERS[algorithm], color=COLOURS[algorithm], label=LABELS[algorithm])
    axes.plot([], [], "o", color=plt.rcParams["text.color"], markerfacecolor="none", label="after REPAIR")
    figure.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.54, -0.03))
    return figure
