"""Two networks that no permutation connects: the barriers of the four paths, and where the networks are wrong."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS
from lab.report.draw import ON_PHONE, ink, on_page, width
from lab.report.facts import Facts, reads
from lab.report.words import decimal, listed

# By the order of the units in the first and in the second hidden layer. Two paths have the same error everywhere: a
# dashed line on a wide one shows both.
STYLES = {
    ("12", "12"): {"color": ALGORITHMS["l1"].colour, "linewidth": 6, "solid_capstyle": "butt"},
    ("12", "21"): {"color": ALGORITHMS["many"].colour, "linewidth": 2, "linestyle": (0, (3, 2))},
    ("21", "12"): {"color": ALGORITHMS["mean"].colour, "linewidth": 2},
    ("21", "21"): {"color": ALGORITHMS["hierarchy"].colour, "linewidth": 2, "linestyle": (0, (6, 1.5, 1.5, 1.5))},
}


@reads("counterexample")
def smallest(run: str) -> Facts:
    """The smallest of the permutations' barriers, in percent of the square.

    The outcome is ``none connects`` the networks, or ``connected``; ``connecting`` names the permutations that do.
    """
    barriers, paths, lowest = (results.read(run, "counterexample", name) for name in ("barriers", "paths", "smallest"))
    share = lowest["value"].item()
    connecting = [label(row.first, row.second) for row in barriers[barriers["value"] <= 0].itertuples()]
    return Facts(
        "none connects" if share > 0 else "connected",
        {
            "share": f"{100 * share:g}",
            "permutations": str(len(barriers)),
            "points": str(paths["lam"].nunique()),
            "connecting": listed(connecting) if connecting else "none",
        },
    )


@reads("counterexample")
def matched(run: str) -> Facts:
    """Which permutation weight matching finds, and the barrier on its path, in percent of the square.

    The outcome is the hidden layers that it permutes (``none``, ``first``, ``second``, ``both``), and whether that is
    the permutation whose weights are nearest to A's by the inner product: ``both, nearest`` or ``both, not nearest``.
    """
    barriers = results.read(run, "counterexample", "barriers")
    row = barriers[barriers["matched"]].iloc[0]
    layers = {
        ("12", "12"): "none", ("21", "12"): "first", ("12", "21"): "second", ("21", "21"): "both"
    }[row["first"], row["second"]]  # fmt: skip
    nearest = row["inner_product"] == barriers["inner_product"].max()
    values = {"orders": label(row["first"], row["second"]), "share": f"{100 * row['value']:g}"}
    return Facts(f"{layers}, {'nearest' if nearest else 'not nearest'}", values)


@reads("counterexample")
def table(run: str) -> pd.DataFrame:
    """A row for each permutation: its barrier, where its path is worst, and the inner product with A."""
    barriers, paths = (results.read(run, "counterexample", name) for name in ("barriers", "paths"))
    rows = []
    for row in barriers.itertuples():
        path = paths[paths["node"] == row.node]
        worst = path[path["value"] == path["value"].max()]["lam"]
        rows.append(
            {
                "order of the units": label(row.first, row.second),
                "barrier (% of the square)": f"{100 * row.value:g}",
                "worst at λ": f"{worst.min():.2f}" + (f" to {worst.max():.2f}" if len(worst) > 1 else ""),
                "inner product with A": decimal(row.inner_product, 0),
                "weight matching": "finds this one" if row.matched else "",
            }
        )
    return pd.DataFrame(rows)


@reads("counterexample")
def error_along_paths(run: str) -> Figure:
    """The share of the square that is misclassified between A and each permutation of B, in percent."""
    figure, axes = plt.subplots(figsize=(width(), 4.0))
    for orders, path in results.read(run, "counterexample", "paths").groupby(["first", "second"]):
        path, style = path.sort_values("lam"), STYLES[orders] | {"color": on_page(STYLES[orders]["color"])}
        axes.plot(path["lam"], 100 * path["value"], label=label(*orders), **style)
    axes.set(xlabel="λ, from A to the permuted B", ylabel="misclassified (% of the square)", ylim=(0, None))
    figure.legend(
        title="order of the units in both hidden layers", loc="outside lower center", ncols=4,
        handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


@reads("counterexample")
def misclassified_squares(run: str) -> Figure:
    """Where on the square each path's worst network is wrong: polygons that do not overlap."""
    regions = results.read(run, "counterexample", "regions").groupby(["first", "second"])
    figure, panels = plt.subplots(2, 2, figsize=(ON_PHONE, 5.6), sharex=True, sharey=True)
    for axes, (orders, region) in zip(panels.flat, regions, strict=True):
        colour = on_page(STYLES[orders]["color"])
        for _, corners in region.groupby("polygon"):
            # An edge of the same colour closes the hair between neighbouring polygons.
            axes.fill(corners["x1"], corners["x2"], facecolor=colour, edgecolor=colour, linewidth=0.8, alpha=0.85)
        axes.add_patch(Rectangle((-1, 0), 1, 1, fill=False, edgecolor=ink(), linewidth=2, clip_on=False, zorder=3))
        axes.set_title(f"{label(*orders)}, λ = {region['lam'].iloc[0]:.2f}")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
        axes.spines[["top", "right"]].set_visible(True)
    for axes in panels[1]:
        axes.set_xlabel("$x_1$")
    for axes in panels[:, 0]:
        axes.set_ylabel("$x_2$")
    marks = [
        Patch(facecolor=plt.rcParams["axes.edgecolor"], alpha=0.6, label="misclassified"),
        Patch(facecolor="none", edgecolor=ink(), linewidth=2, label="should be positive"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2)
    return figure


def label(first: str, second: str) -> str:
    """What a reader calls a permutation: the order of the units of the first, and of the second hidden layer."""
    return f"{first}/{second}"
