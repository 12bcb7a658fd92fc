"""The figures of the chapter on pairs of MNIST networks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.measures.matched import ALGORITHMS

# Of the house palette; where a merge by weight matching is shown elsewhere, it is blue too.
STYLES = {
    "naive": ("#009E73", ":", "as they are"),
    "activations": ("#E69F00", "--", "matched by activations"),
    "weights": ("#0072B2", "-", "matched by weights"),
    "straight-through": ("#CC79A7", "-.", "straight-through matching"),
}
SPLITS = ("train", "test")


def along_the_line(paths: pd.DataFrame) -> Figure:
    """Loss and accuracy from one network of a pair to the other: a thin line for each pair, their mean thick.

    ``paths`` is the table ``paths`` of notebooks/mnist.ipynb. Each panel ends where its matched pairs do, and what is
    not matched leaves it.
    """
    figure, panels = plt.subplots(2, 2, figsize=(6.2, 6.0), sharex=True)
    for metric, row in zip(("loss", "accuracy"), panels, strict=True):
        for split, axes in zip(SPLITS, row, strict=True):
            for algorithm in ALGORITHMS:
                colour, style, label = STYLES[algorithm]
                values = _along(paths, algorithm, split, metric) * (100 if metric == "accuracy" else 1)
                axes.plot(values.index, values, color=colour, linewidth=0.8, alpha=0.3)
                axes.plot(values.index, values.mean(axis=1), style, color=colour, label=label)
            of_panel = (paths["metric"] == metric) & (paths["split"] == split) & (paths["algorithm"] != "naive")
            matched = paths[of_panel]["value"] * (100 if metric == "accuracy" else 1)
            margin = 0.1 * (matched.max() - matched.min())
            axes.set_ylim(matched.min() - margin, matched.max() + margin)
    panels[0, 0].set_ylabel("loss (nats)")
    panels[1, 0].set_ylabel("accuracy (%)")
    for split, top, bottom in zip(SPLITS, *panels, strict=True):
        top.set_title(f"{split} images")
        bottom.set(xlabel="λ", xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.align_ylabels(panels[:, 0])
    figure.tight_layout()
    return figure


def _along(paths: pd.DataFrame, algorithm: str, split: str, metric: str) -> pd.DataFrame:
    """The values along every path of one kind: a row for each point, a column for each pair."""
    chosen = paths[(paths["algorithm"] == algorithm) & (paths["split"] == split) & (paths["metric"] == metric)]
    return chosen.pivot(index="lam", columns="node", values="value")


def barrier_by_epoch(barriers: pd.DataFrame) -> Figure:
    """Barrier in test loss over epochs of training, as they are and matched by weights: a dot for each pair."""
    chosen = barriers[(barriers["split"] == "test") & (barriers["metric"] == "loss_barrier")]
    figure, axes = plt.subplots(figsize=(5.2, 3.6))
    for algorithm in ("naive", "weights"):
        colour, style, label = STYLES[algorithm]
        values = chosen[chosen["algorithm"] == algorithm].pivot(index="epochs", columns="node", values="value")
        axes.plot(values.index, values, ".", color=colour, alpha=0.7)
        axes.plot(values.index, values.mean(axis=1), style, color=colour, label=label)
    epochs = sorted(chosen["epochs"].unique())
    axes.set(xscale="log", xlabel="epochs of training", ylabel="barrier in test loss (nats)")
    axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
    axes.minorticks_off()
    axes.set_ylim(bottom=min(0.0, float(chosen["value"].min())))
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    return figure
