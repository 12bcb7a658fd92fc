"""The figure of weight matching's run times."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping.vocabulary import COLOURS

# Git Re-Basin, section 5: seconds of Algorithm 1 on a V100, between trained networks.
PAPER = {"mlp": 3, "resnet50": 33, "resnet20 x32": 194}
PAPER_MLP = 0.9  # million weights: 3 hidden layers of 512 units, for MNIST
NAMES = {"mlp": "MLP", "resnet50": "ResNet50"}
FAMILIES = {"mlp": ("merge_many", "s"), "resnet50": ("naive", "^"), "resnet20": ("tree", "o")}


def network_name(network: str) -> str:
    """What readers call a network."""
    return NAMES.get(network, network.replace("resnet20", "ResNet20"))


def by_size(networks: list[str]) -> list[str]:
    """The MLP, ResNet50, and ResNet20 from the narrowest to the widest."""
    order = list(NAMES)
    return sorted(
        networks, key=lambda name: (order.index(name), 0) if name in order else (len(order), int(name.split("x")[-1]))
    )


def seconds_by_size(times: pd.DataFrame) -> Figure:
    """Seconds of weight matching over the number of weights, a mark for each pair, with the paper's seconds beside.

    ``times`` is the table of that name of notebooks/planted.ipynb. Of the paper's networks only those are drawn that
    were timed here, at our number of weights; and its MLP only beside one that is as large.
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.8))
    labelled = set()
    for network in by_size(times["network"].unique().tolist()):
        one = times[times["network"] == network]
        seconds, weights = (one[one["metric"] == metric]["value"] for metric in ("seconds", "parameters"))
        family = network.split(" ")[0]
        colour, marker = FAMILIES[family]
        label = None if family in labelled else network_name(family)
        labelled.add(family)
        axes.plot(weights, seconds, marker, color=COLOURS[colour], markersize=6, alpha=0.7, label=label)
        if " " in network:
            axes.annotate(
                network.split(" ")[1], (weights.iloc[0], seconds.max()), xytext=(0, 5), textcoords="offset points",
                ha="center",
            )  # fmt: skip
        if network in PAPER and (network != "mlp" or weights.iloc[0] > PAPER_MLP):
            ink = plt.rcParams["text.color"]
            label = None if "paper" in labelled else "the paper's, on a V100"
            labelled.add("paper")
            axes.plot(
                weights.iloc[0], PAPER[network], marker, color=ink, markersize=8, markerfacecolor="none", label=label
            )
    axes.set(xscale="log", yscale="log", xlabel="weights (millions)", ylabel="weight matching (s)")
    axes.margins(0.12, 0.15)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    return figure
