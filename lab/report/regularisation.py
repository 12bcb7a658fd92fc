"""What merging does to the size of the weights and to the networks' steepness, and what follows for certified radii."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, GREY_LEVELS, KIND, MENDINGS, title_of
from lab.report.claims import contrast, picked
from lab.report.draw import interval_line, legend_below, name_ends, on_page, plain_log, shades, width, word_colour
from lab.report.facts import Facts, outcome, reads
from lab.report.kinds import UNMERGED, Kind, by_kind, names, percent_by_node, sizes
from lab.report.statistics import Interval, interval
from lab.report.verdicts import claim
from lab.report.words import in_words, points

BLOCK = 8  # leaves, over which the claims compare
# Columns of the table of bounds: label and decimals.
COLUMNS = {
    "l2_norm": ("L2 norm", 1), "l1_norm": ("L1 norm", 0), "spectral_product": ("product of spectral norms", 1),
    "averaged_bound": ("averaged activations", 1), "lipschitz": ("ECLipsE-Fast", 1),
    "largest_gradient": ("largest gradient", 2), "median_margin": ("margin, median", 2),
}  # fmt: skip
DRAWN_NORMS = [("hierarchy", "none"), ("many", "none"), ("mean", "none"), ("hierarchy", "repair")]
RELATIVE = {
    "median_margin": "margin of the correct, median", "lipschitz": "Lipschitz bound",
    "largest_gradient": "largest gradient seen", "median_radius": "certified radius, median",
}  # fmt: skip
LAYER_NORMS = {"l2": "L2 norm", "spectral": "spectral norm"}


@reads("regularisation")
def shrinking(run: str) -> Facts:
    """Norm and Lipschitz bound of the hierarchy of eight, as shares of what its leaves have.

    The outcome is the verdict on the norm and on the bound (H6), or ``not measured``.
    """
    decided = claim(run, "H6")
    norm, bound = decided.condition("norm_leaves"), decided.condition("bound_leaves")
    if norm is None or bound is None:
        return Facts("not measured", {})
    merged = Kind("hierarchy", n_leaves=BLOCK)
    values = {"norm": points(ratio(run, "l2_norm", merged)), "bound": points(ratio(run, "lipschitz", merged))}
    return Facts(f"{norm.verdict}, {bound.verdict}", values | {"n": str(norm.effect.n)})


@reads("regularisation")
def without_matching(run: str) -> Facts:
    """The same of the naive average of the same eight leaves.

    The outcome says whether the hierarchy shrinks norm and bound ``more`` than the naive average, ``less``, or neither
    for sure: ``less, less``.
    """
    decided = claim(run, "H6")
    norm, bound = decided.condition("norm_naive"), decided.condition("bound_naive")
    if norm is None or bound is None:
        return Facts("not measured", {})
    naive = Kind("mean", n_leaves=BLOCK)
    values = {"norm": points(ratio(run, "l2_norm", naive)), "bound": points(ratio(run, "lipschitz", naive))}
    sides = {"above": "more", "below": "less"}
    found = [outcome(condition.effect, condition.bound) for condition in (norm, bound)]
    return Facts(", ".join(sides.get(side, side) for side in found), values | {"n": str(norm.effect.n)})


def ratio(run: str, metric: str, kind: Kind) -> Interval:
    """The geometric mean of a metric over nodes of a kind as a share of that of their leaves, in percent."""
    table = picked(results.read(run, "regularisation", "nodes"), {"metric": metric})
    table = pd.concat([picked(table, kind._asdict()), picked(table, UNMERGED._asdict())])
    terms = [
        {"algorithm": kind.algorithm, "n_leaves": kind.n_leaves, "weight": 1},
        {"algorithm": UNMERGED.algorithm, "n_leaves": UNMERGED.n_leaves, "weight": -1},
    ]
    value = interval(contrast(table, terms, BLOCK))
    return Interval(*(100 * math.exp(end) for end in (value.mean, value.low, value.high)), value.n)


@reads("regularisation")
def identity(run: str) -> Facts:
    """How far the norms of plain means are from what their leaves and alignment imply, at most.

    The outcome is ``holds`` where they agree to six digits and more, else ``fails``.
    """
    wide = _wide(run)
    if "predicted_norm" not in wide:
        return Facts("not measured", {})
    off = (wide["parameter_norm"] / wide["predicted_norm"] - 1).abs().dropna()
    digits = int(-math.log10(max(off.max(), 1e-15)))
    return Facts("holds" if digits >= 6 else "fails", {"digits": str(digits), "n": str(len(off))})


@reads("regularisation")
def certified(run: str) -> Facts:
    """What happens to the median certified radius at eight leaves, and to what it is made of.

    The outcome is ``shrinks`` or ``grows``, or ``not measured``. Radii are in grey levels; margin and bound are what
    they are multiplied by.
    """
    means = results.read(run, "regularisation", "nodes").groupby([*KIND, "metric"])["value"].mean()
    merged = Kind("hierarchy", n_leaves=BLOCK)
    if (*merged, "median_radius") not in means:
        return Facts("not measured", {})
    margin, bound = (means[*merged, metric] / means[*UNMERGED, metric] for metric in ("median_margin", "lipschitz"))
    before, after = (GREY_LEVELS * means[*kind, "median_radius"] for kind in (UNMERGED, merged))
    values = {
        "before": f"{before:.2f}/{GREY_LEVELS}", "after": f"{after:.2f}/{GREY_LEVELS}", "margin": f"{margin:.2f}",
        "bound": f"{bound:.2f}",
    }  # fmt: skip
    return Facts("shrinks" if after < before else "grows", values)


@reads("regularisation")
def mended(run: str) -> Facts:
    """Norm and bound of the hierarchy of eight after REPAIR, as shares of what its leaves have.

    The outcome says where the bound lies, beside that of the leaves.
    """
    table = results.read(run, "regularisation", "nodes")
    kind = Kind("hierarchy", "repair", BLOCK)
    if not len(picked(table, kind._asdict() | {"metric": "lipschitz"})):
        return Facts("not measured", {})
    bound = ratio(run, "lipschitz", kind)
    values = {"norm": points(ratio(run, "l2_norm", kind)), "bound": points(bound)}
    return Facts(outcome(bound, 100), values)


@reads("regularisation")
def norms_by_leaves(run: str) -> Figure:
    """L2 norm and Lipschitz bound by the number of networks merged (Hierarchical Re-Basin, Figure 4)."""
    return norms_and_bounds(results.read(run, "regularisation", "nodes"))


def norms_and_bounds(nodes: pd.DataFrame) -> Figure:
    """The figure of norms and bounds, a row of each metric and node."""
    labels = {"l2_norm": "L2 norm of the weights", "lipschitz": "Lipschitz bound"}
    known = sizes(nodes)
    figure, panels = plt.subplots(2, 1, figsize=(width(), 6.0), sharex=True)
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        table = picked(nodes, {"metric": metric})
        kinds = dict(by_kind(table))
        grey, leaves = ALGORITHMS["unmerged"].colour, kinds[UNMERGED]["value"].mean()
        axes.axhline(leaves, linestyle="--", linewidth=1.5, color=on_page(grey))
        ends = [(leaves, "leaves", word_colour(grey))]
        for algorithm, mending in DRAWN_NORMS:
            drawn = {kind.n_leaves: rows for kind, rows in kinds.items() if kind[:2] == (algorithm, mending)}
            if not drawn:
                continue
            x = [known.index(size) for size in drawn]
            values = [interval(rows["value"].to_numpy()) for rows in drawn.values()]
            style, title, mended = ALGORITHMS[algorithm], title_of(algorithm, mending), mending != "none"
            interval_line(axes, x, values, style, title, ":" if mended else "-", filled=not mended)
            # In the colour of the hierarchy, and so near to others that there is no room for two lines.
            ends.append((values[-1].mean, MENDINGS[mending] if mended else title, word_colour(style.colour)))
        axes.set_ylabel(label)
        if metric == "lipschitz":
            plain_log(axes)
        else:
            axes.set_ylim(bottom=0)
        name_ends(axes, ends)
    panels[-1].set_xticks(range(len(known)), known)
    panels[-1].set_xlabel("networks merged into one")
    figure.align_ylabels(panels)
    return figure


@reads("regularisation")
def certified_by_stage(run: str) -> Figure:
    """Share of test images certified at each L2 radius, by stage; below, what the radius is made of."""
    nodes, radii = (results.read(run, "regularisation", table) for table in ("nodes", "radii"))
    figure, panels = plt.subplots(2, 1, figsize=(width(), 7.2))
    stages = [(kind, rows) for kind, rows in by_kind(radii[radii["radius"] > 0]) if kind[:2] == ("hierarchy", "none")]
    leaves = picked(radii[radii["radius"] > 0], UNMERGED._asdict())
    _certified_curve(panels[0], leaves, on_page(ALGORITHMS["unmerged"].colour), "leaves", "--")
    for colour, (kind, rows) in zip(shades(len(stages)), stages, strict=True):
        _certified_curve(panels[0], rows, colour, f"{kind.n_leaves} merged", "-")
    panels[0].set(xlabel="L2 radius (grey levels)", ylabel="certified test accuracy (%)", xscale="log", ylim=(0, None))
    panels[0].set_xlim(right=100)  # room for the legend
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].legend()
    means = nodes.groupby([*KIND, "metric"])["value"].mean()
    known = sizes(nodes)
    for (metric, label), marker in zip(RELATIVE.items(), "osv^", strict=True):
        values = [means[*kind, metric] for kind in (UNMERGED, *(Kind("hierarchy", n_leaves=size) for size in known))]
        panels[1].plot(np.array(values) / values[0], marker=marker, label=label)
    plain_log(panels[1])
    panels[1].set_xticks(range(len(known) + 1), [1, *known])
    panels[1].set(xlabel="networks merged into one", ylabel="relative to the leaves")
    legend_below(figure, panels[1])
    return figure


def _certified_curve(axes: plt.Axes, rows: pd.DataFrame, colour: str, label: str, line: str) -> None:
    """Certified accuracy over the radius, with a band for its intervals."""
    values = {radius: percent_by_node(at) for radius, at in rows.groupby("radius")}
    low, high = ([getattr(value, end) for value in values.values()] for end in ("low", "high"))
    label = f"{label} (n = {rows['node'].nunique()})"
    axes.plot(list(values), [value.mean for value in values.values()], line, color=colour, label=label)
    axes.fill_between(list(values), low, high, color=colour, alpha=0.2, linewidth=0)


@reads("regularisation")
def bounds_table(run: str) -> pd.DataFrame:
    """Norms, bounds from above and below, margins and radii of every kind of network."""
    rows = []
    for kind, own in by_kind(results.read(run, "regularisation", "nodes")):
        row = names(kind)
        for metric, (label, places) in COLUMNS.items():
            row[label] = _number(picked(own, {"metric": metric})["value"], places)
        radii = GREY_LEVELS * picked(own, {"metric": "median_radius"})["value"]
        row[f"radius, median (/{GREY_LEVELS})"] = _number(radii, 3)
        rows.append(row | {"n": own["node"].nunique()})
    return pd.DataFrame(rows)


@reads("regularisation")
def layers_table(run: str) -> pd.DataFrame:
    """L2 norm and largest singular value of each layer, of the leaves, the hierarchy's stages and naive averages."""
    layers = results.read(run, "regularisation", "layers")
    shown = layers[layers["algorithm"].isin(["unmerged", "hierarchy", "mean"]) & (layers["mended"] == "none")]
    rows = []
    for kind, own in by_kind(shown):
        for layer, at in own.groupby("layer", sort=False):
            row = names(kind) | {"layer": layer}
            for metric, label in LAYER_NORMS.items():
                values = picked(at, {"metric": metric})["value"]
                row[label] = f"{values.mean():.2f}" if len(values) else ""
            rows.append(row | {"n": at["node"].nunique()})
    return pd.DataFrame(rows)


def _wide(run: str) -> pd.DataFrame:
    """A row for each node, a column for each metric."""
    nodes = results.read(run, "regularisation", "nodes")
    return nodes.pivot(index=[*KIND, "node"], columns="metric", values="value")


def _number(values: pd.Series, places: int) -> str:
    """The mean over nodes with its interval; nothing of what was not measured."""
    return in_words(interval(values.to_numpy()), places) if len(values) else ""
