"""Figures of the robustness chapters: accuracy under attack and perturbation, norms and bounds, certified radii."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lab.bookkeeping.vocabulary import COLOURS, LABELS, MARKERS
from lab.report.statistics import Interval, interval

# Below this clean accuracy, in percent, a model says nothing of robustness: a constant one is never fooled.
NEAR_CONSTANT = 20
# Stages run from light to dark on a light page, from dark to light on a dark one.
SHADES = {"tree": "Blues", "l1": "Oranges", "l2": "Greens", "early_stopped": "RdPu"}


def accuracy_over(curves: pd.DataFrame, axis: str, label: str) -> Figure:
    """Accuracy by attack strength or severity: stages above, models trained with a penalty below, with 95 % bands.

    ``curves`` has the columns algorithm, n_leaves, strength, ``axis`` and interval (Hierarchical Re-Basin, Figure 3).
    """
    figure, panels = plt.subplots(2, 1, figsize=(5.6, 8.4), sharey=True)
    sizes = sorted(curves[curves["algorithm"] == "tree"]["n_leaves"].unique())
    for axes in panels:
        _curve(axes, curves, "unmerged", axis, COLOURS["unmerged"], "unmerged", "--")
    for size, shade in zip(sizes, _shades("tree", len(sizes)), strict=True):
        _curve(panels[0], curves, "tree", axis, shade, f"{size} merged", "-", n_leaves=size)
    for penalty, style in (("l1", "-"), ("l2", "-.")):
        strengths = sorted(curves[curves["algorithm"] == penalty]["strength"].unique())
        for strength, shade in zip(strengths, _shades(penalty, len(strengths)), strict=True):
            name = f"{penalty.upper()}, {strength:g}"
            _curve(panels[1], curves, penalty, axis, shade, name, style, strength=strength)
    for axes in panels:
        axes.set_ylabel("test accuracy (%)")
        axes.set_xlabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.46, -0.17), ncols=3, fontsize=9.5, columnspacing=1.2)
    panels[0].set_title("merged by the hierarchy", loc="left")
    panels[1].set_title("trained with a penalty", loc="left")
    figure.tight_layout()
    return figure


def _curve(
    axes: plt.Axes, curves: pd.DataFrame, algorithm: str, axis: str, colour: str, label: str, style: str, **where: float
) -> None:
    chosen = curves[curves["algorithm"] == algorithm]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    chosen = chosen.sort_values(axis)
    at, found = chosen[axis].to_numpy(), list(chosen["interval"])
    axes.plot(at, [f.mean for f in found], style, color=colour, label=f"{label} (n = {found[0].n})")
    axes.fill_between(at, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.25, linewidth=0)


def by_node(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Intervals over nodes, in percent, of ``value`` for each algorithm, n_leaves, strength and ``axis``.

    What a node has several values of, as of kinds of perturbation, is averaged first.
    """
    keys = ["algorithm", "n_leaves", "strength", axis]
    nodes = 100 * table.groupby([*keys, "node"])["value"].mean()
    return nodes.groupby(keys).agg(lambda values: interval(values.to_numpy())).rename("interval").reset_index()


def by_node_and_image(images: pd.DataFrame) -> pd.DataFrame:
    """Intervals over nodes and images, in percent, for each algorithm, n_leaves, strength and epsilon.

    ``images`` is the table of that name of notebooks/attack.ipynb.
    """
    rows = []
    keys = ["algorithm", "n_leaves", "strength", "epsilon"]
    for key, group in images.groupby(keys):
        bits = np.stack([np.frombuffer(correct, np.uint8) for correct in group["correct"]])
        correct = np.unpackbits(bits, axis=1, count=int(group["images"].iloc[0]))
        rows.append((*key, interval(100.0 * correct)))
    return pd.DataFrame(rows, columns=[*keys, "interval"])


def _shades(kind: str, n: int) -> np.ndarray:
    """``n`` shades of a kind's colour that can be told from the page."""
    dark = plt.rcParams["text.color"] != "#1F2328"
    return plt.get_cmap(SHADES[kind])(np.linspace(0.25, 0.8, n)[::-1] if dark else np.linspace(0.4, 0.95, n))


def norms_by_leaves(nodes: pd.DataFrame, metrics: dict[str, str], algorithms: Sequence[str]) -> Figure:
    """Metrics by the number of models merged, one panel each, with 95 % intervals (Hierarchical Re-Basin, Figure 4).

    ``metrics`` gives the label of each metric's axis; that of the Lipschitz bound is logarithmic.
    """
    figure, panels = plt.subplots(len(metrics), 1, figsize=(5.6, 3.0 * len(metrics)), sharex=True)
    sizes = sorted(nodes[nodes["algorithm"] == "tree"]["n_leaves"].unique())
    for axes, (metric, label) in zip(np.atleast_1d(panels), metrics.items(), strict=True):
        one = nodes[nodes["metric"] == metric]
        alone = interval(one[one["algorithm"] == "unmerged"]["value"].to_numpy())
        colour = COLOURS["unmerged"]
        axes.axhline(alone.mean, linestyle="--", linewidth=1.5, color=colour, label=f"{LABELS['unmerged']}")
        for shift, algorithm in zip(np.linspace(-0.1, 0.1, len(algorithms)), algorithms, strict=True):
            found = {}
            for position, size in enumerate(sizes):
                values = one[(one["algorithm"] == algorithm) & (one["n_leaves"] == size)]["value"].to_numpy()
                if len(values):
                    found[position + shift] = interval(values)
            _with_errors(axes, found, algorithm)
        axes.set_ylabel(label)
        if metric == "lipschitz":
            _plain_log(axes)
        else:
            axes.set_ylim(bottom=0)
    last = np.atleast_1d(panels)[-1]
    last.set_xticks(range(len(sizes)), sizes)
    last.set_xlabel("models merged into a node")
    figure.legend(*last.get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.align_ylabels(panels)
    figure.tight_layout()
    return figure


def _plain_log(axes: plt.Axes) -> None:
    """A logarithmic axis whose ticks are told in plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _with_errors(axes: plt.Axes, found: dict[float, Interval], algorithm: str) -> None:
    means = [f.mean for f in found.values()]
    error = np.nan_to_num([[f.mean - f.low, f.high - f.mean] for f in found.values()]).T
    hollow = {"markerfacecolor": "none"} if algorithm.endswith("_repaired") else {}
    axes.errorbar(
        list(found), means, error, color=COLOURS[algorithm], marker=MARKERS[algorithm], markersize=6, capsize=3,
        linewidth=1.5, linestyle=":" if hollow else "-", label=LABELS[algorithm], **hollow,
    )  # fmt: skip


def robustness_by_accuracy(curves: pd.DataFrame, epsilons: Sequence[float]) -> Figure:
    """What is left under attack against clean accuracy: is a merge more robust than a model that is as accurate?

    ``curves`` is that of ``by_node_and_image``; a panel for each of ``epsilons``. Near-constant models are left out.
    """
    figure, panels = plt.subplots(len(epsilons), 1, figsize=(5.6, 4.0 * len(epsilons)), sharex=True, squeeze=False)
    table = curves.set_index(["epsilon", "algorithm", "n_leaves", "strength"])["interval"].sort_index()
    kinds = ["l1", "l2", "naive", "merge_many_repaired", "merge_many", "tree_repaired", "early_stopped", "tree"]
    for axes, epsilon in zip(panels[:, 0], epsilons, strict=True):
        for algorithm in [*kinds, "unmerged", "ensemble"]:
            if algorithm not in table[epsilon].index.get_level_values("algorithm"):
                continue
            clean, left = table[0.0][algorithm], table[epsilon][algorithm]
            known = [value.mean >= NEAR_CONSTANT for value in clean]
            if not any(known):
                continue
            clean, left = clean[known], left[known]
            x, y = ([value.mean for value in values] for values in (clean, left))
            error = np.nan_to_num([[value.mean - value.low, value.high - value.mean] for value in left]).T
            hollow = {"markerfacecolor": "none"} if algorithm.endswith("_repaired") else {}
            joined = algorithm in ("tree", "early_stopped", "l1", "l2")
            axes.errorbar(
                x, y, error, color=COLOURS[algorithm], marker=MARKERS[algorithm],
                markersize=11 if algorithm == "ensemble" else 7, linestyle="-" if joined else "none", linewidth=1.5,
                capsize=2, elinewidth=1, label=LABELS[algorithm], **hollow,
            )  # fmt: skip
            if algorithm in ("tree", "early_stopped"):
                for (size, _), at, up in zip(left.index, x, y, strict=False):
                    axes.annotate(
                        f"{size}", (at, up), xytext=(0, 9 if algorithm == "early_stopped" else -17), ha="center",
                        textcoords="offset points", fontsize=9.5, color=COLOURS[algorithm],
                    )  # fmt: skip
        axes.set_ylabel(f"accuracy left at {epsilon:g}/255 (%)")
        axes.set_ylim(bottom=0)
    panels[-1, 0].set_xlabel("clean test accuracy (%)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0), fontsize=10)
    figure.tight_layout()
    return figure


def certified_by_stage(radii: pd.DataFrame, nodes: pd.DataFrame) -> Figure:
    """Share of test images certified at each L2 radius, by stage; below, what the radius is made of."""
    figure, panels = plt.subplots(2, 1, figsize=(5.6, 7.2))
    sizes = sorted(radii[radii["algorithm"] == "tree"]["n_leaves"].unique())
    radii = by_node(radii[radii["radius"] > 0], "radius")
    _curve(panels[0], radii, "unmerged", "radius", COLOURS["unmerged"], "unmerged", "--")
    for size, shade in zip(sizes, _shades("tree", len(sizes)), strict=True):
        _curve(panels[0], radii, "tree", "radius", shade, f"{size} merged", "-", n_leaves=size)
    panels[0].set(xlabel="L2 radius (grey levels of 255)", ylabel="certified test accuracy (%)", xscale="log")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize=9.5)
    names = {
        "median_margin": "margin of the correct, median", "lipschitz": "Lipschitz bound",
        "largest_gradient": "largest gradient seen", "median_radius": "certified radius, median",
    }  # fmt: skip
    for (metric, label), marker in zip(names.items(), "osv^", strict=True):
        one = nodes[nodes["metric"] == metric]
        alone = one[one["algorithm"] == "unmerged"]["value"].mean()
        merged = one[one["algorithm"] == "tree"].groupby("n_leaves")["value"].mean() / alone
        panels[1].plot([0, *range(1, len(merged) + 1)], [1, *merged], marker=marker, markersize=6, label=label)
    _plain_log(panels[1])
    panels[1].set_xticks(range(len(sizes) + 1), [1, *sizes])
    panels[1].set(xlabel="models merged into a node", ylabel="relative to the unmerged")
    panels[1].legend(fontsize=9.5)
    figure.tight_layout()
    return figure


def by_perturbation(curves: pd.DataFrame) -> Figure:
    """Mean accuracy by kind of perturbation: leaves, nodes of eight, and unmerged models that are as accurate."""
    figure, axes = plt.subplots(figsize=(5.6, 4.6))
    harmed = curves[curves["severity"] > 0]
    kinds = list(dict.fromkeys(harmed["perturbation"]))
    size = 8 if 8 in set(harmed[harmed["algorithm"] == "tree"]["n_leaves"]) else harmed["n_leaves"].max()
    for shift, (algorithm, leaves) in zip(
        (-0.2, 0, 0.2), (("unmerged", 1), ("tree", size), ("early_stopped", size)), strict=True
    ):
        chosen = harmed[(harmed["algorithm"] == algorithm) & (harmed["n_leaves"] == leaves)]
        found = [
            interval(100 * chosen[chosen["perturbation"] == kind].groupby("node")["value"].mean().to_numpy())
            for kind in kinds
        ]
        error = np.nan_to_num([[f.mean - f.low, f.high - f.mean] for f in found]).T
        label = f"{LABELS[algorithm]} of {size}" if algorithm == "tree" else LABELS[algorithm]
        axes.errorbar(
            [f.mean for f in found], np.arange(len(kinds)) + shift, xerr=error, color=COLOURS[algorithm],
            marker=MARKERS[algorithm], markersize=6, linestyle="none", capsize=2, label=label,
        )  # fmt: skip
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, mean over severities (%)")
    figure.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.tight_layout()
    return figure
