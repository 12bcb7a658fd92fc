"""Figures of the counterexample: the error along the four paths, and where on the square the networks are wrong."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lab.bookkeeping.vocabulary import COLOURS

# Two paths have the same error everywhere: a dashed line on a wide one shows both.
STYLES = {
    "12/12": {"color": COLOURS["l2"], "linewidth": 6, "solid_capstyle": "butt"},
    "12/21": {"color": COLOURS["merge_many"], "linewidth": 2, "linestyle": (0, (3, 2))},
    "21/12": {"color": COLOURS["naive"], "linewidth": 2},
    "21/21": {"color": COLOURS["tree"], "linewidth": 2, "linestyle": (0, (6, 1.5, 1.5, 1.5))},
}


def error_along_paths(paths: pd.DataFrame) -> Figure:
    """The share of the square that is misclassified between A and each permutation of B, in percent.

    ``paths`` is the table of that name of notebooks/counterexample.ipynb.
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    for permutation, path in paths.groupby("permutation"):
        path = path.sort_values("lam")
        axes.plot(path["lam"], 100 * path["value"], label=permutation, **STYLES[permutation])
    axes.set(xlabel="λ, from A to the permuted B", ylabel="misclassified (% of the square)", ylim=(0, None))
    figure.legend(
        title="order of the units in both hidden layers", loc="upper center", ncols=4, bbox_to_anchor=(0.54, -0.03),
        handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


def misclassified_squares(regions: pd.DataFrame) -> Figure:
    """Where on the square each path's worst network is wrong.

    ``regions`` is the table of that name of notebooks/counterexample.ipynb: corners of polygons that do not overlap.
    """
    ink = plt.rcParams["text.color"]
    figure, panels = plt.subplots(2, 2, figsize=(5.2, 5.7), sharex=True, sharey=True)
    for axes, (permutation, region) in zip(panels.flat, regions.groupby("permutation"), strict=True):
        colour = STYLES[permutation]["color"]
        for _, corners in region.groupby("polygon"):
            # An edge of the same colour closes the hair between neighbouring polygons.
            axes.fill(corners["x1"], corners["x2"], facecolor=colour, edgecolor=colour, linewidth=0.8, alpha=0.85)
        axes.add_patch(Rectangle((-1, 0), 1, 1, fill=False, edgecolor=ink, linewidth=2, clip_on=False, zorder=3))
        axes.set_title(f"{permutation}, λ = {region['lam'].iloc[0]:.2f}")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
        axes.spines[["top", "right"]].set_visible(True)
    for axes in panels[1]:
        axes.set_xlabel("$x_1$")
    for axes in panels[:, 0]:
        axes.set_ylabel("$x_2$")
    marks = [
        Patch(facecolor=plt.rcParams["axes.edgecolor"], alpha=0.6, label="misclassified"),
        Patch(facecolor="none", edgecolor=ink, linewidth=2, label="should be positive"),
    ]
    figure.legend(handles=marks, loc="upper center", ncols=2, bbox_to_anchor=(0.54, 0.0))
    figure.tight_layout()
    return figure
