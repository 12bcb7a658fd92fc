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
from lab.networks import ARCHITECTURES
from lab.report.claims import picked
from lab.report.draw import interval_line, interval_rows, legend_below, on_page, width
from lab.report.facts import FEW, Facts, outcome, reads
from lab.report.page import data_titles
from lab.report.statistics import FEWEST_FOR_INTERVAL, interval, unsigned
from lab.report.words import decimal, listed, points

NOT_MEASURED = "not measured"
SIZES = (4, 8)  # networks in a group: where the rule looks at the gap
# What a change gives: the paper's figure; the hierarchy ahead at both sizes, and by no more at the larger; or neither.
FIGURE, AHEAD, NOT = "the paper's figure", "ahead", "not"
VARIANTS = {
    "printed": Drawn("as printed", ALGORITHMS["many"].colour, ALGORITHMS["many"].marker),
    "one sweep": Drawn("one sweep a matching", ALGORITHMS["l2"].colour, "v"),
    "own share": Drawn("the mean of all", ALGORITHMS["unmerged"].colour, "X"),
    "at once": Drawn("all moved at once", ALGORITHMS["early_stopped"].colour, "P"),
    "activations": Drawn("by activations", ALGORITHMS["mean"].colour, "D"),
}
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
    "one_sweep": Change("one sweep a matching, three rounds", many={"variant": "one sweep", "limit": 3}),
    "one_sweep_twice": Change("one sweep a matching, two rounds", many={"variant": "one sweep", "limit": 2}),
    "one_sweep_once": Change("one sweep a matching, one round", many={"variant": "one sweep", "limit": 1}),
    "own_share": Change("the mean of all, itself included", many={"variant": "own share"}),
    "at_once": Change("all moved at once, five rounds", many={"variant": "at once", "limit": 5}),
    "at_once_once": Change("all moved at once, one round", many={"variant": "at once", "limit": 1}),
    "activations": Change(
        "activations in both, three rounds", {"variant": "activations"}, {"variant": "activations", "limit": 3}
    ),
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
    in_group = size // kind["n_leaves"]
    # Smaller nodes: those of one group are neighbours.
    return by_node[: len(by_node) // in_group * in_group].reshape(-1, in_group).mean(1)


def gap(nodes: pd.DataFrame, change: Change, size: int) -> np.ndarray:
    """The hierarchy minus MergeMany of each group of ``size`` networks (groups,), in points; empty if not run."""
    hierarchy = accuracies(nodes, "hierarchy", change.hierarchy, size)
    many = accuracies(nodes, "many", change.many, size)
    return hierarchy - many if len(hierarchy) and len(many) else np.array([])


def growth(at_four: np.ndarray, at_eight: np.ndarray) -> np.ndarray:
    """By how much the gap at eight networks is larger than at four, on the same networks (groups,)."""
    small, large = SIZES
    return at_eight - at_four.reshape(-1, large // small).mean(1)


def measured(run: str) -> tuple[pd.DataFrame, dict[str, Change]]:
    """The table of a run, and the changes that it has at both sizes."""
    nodes = results.read(run, "variants", "nodes")
    nodes = nodes[nodes["metric"] == "accuracy"]
    return nodes, {
        name: change for name, change in CHANGES.items() if all(len(gap(nodes, change, size)) for size in SIZES)
    }


def gives(at_four: np.ndarray, at_eight: np.ndarray) -> str:
    """The rule: what a change gives, by the gaps of each group of four networks and of eight.

    The paper's figure is given where the hierarchy is ahead at four networks and at eight, and the gap grows from four
    to eight: three intervals wholly above zero.
    """
    grows = interval(growth(at_four, at_eight))
    if grows.n < FEWEST_FOR_INTERVAL:
        return FEW
    if any(interval(gaps).low <= 0 for gaps in (at_four, at_eight)):
        return NOT
    return FIGURE if grows.low > 0 else AHEAD


def gaps_of(nodes: pd.DataFrame, change: Change) -> tuple[np.ndarray, np.ndarray]:
    """The gaps of a change, of each group of four networks and of eight."""
    at_four, at_eight = (gap(nodes, change, size) for size in SIZES)
    return at_four, at_eight


def told(run: str, *names: str) -> Facts:
    """What these changes give: their outcomes, joined by commas, and of each the gaps and accuracies by its name.

    ``one_round_4`` is a gap in points with its interval, ``size_one_round_4`` the same without signs,
    ``one_round_growth`` by how much it grows, and ``one_round_many_8`` an accuracy of MergeMany in percent. Outcomes:
    ``too few`` groups, or ``not measured``.
    """
    nodes, changes = measured(run)
    if not set(names) <= set(changes):
        return Facts(NOT_MEASURED, {})
    values = {}
    for name in names:
        change = changes[name]
        values[f"{name}_growth"] = points(interval(growth(*gaps_of(nodes, change))), signed=True)
        for size in SIZES:
            value = interval(gap(nodes, change, size))
            values |= {f"{name}_{size}": points(value, signed=True), f"size_{name}_{size}": points(unsigned(value))}
            for algorithm, changed in (("hierarchy", change.hierarchy), ("many", change.many)):
                mean = accuracies(nodes, algorithm, changed, size).mean()
                values[f"{name}_{algorithm}_{size}"] = decimal(mean, 1)
    values |= {f"n_{size}": str(len(gap(nodes, CHANGES[names[0]], size))) for size in SIZES}
    return Facts(", ".join(gives(*gaps_of(nodes, changes[name])) for name in names), values)


@reads("variants")
def figure(run: str) -> Facts:
    """Which changes give the paper's figure: the outcome names them, or is ``none``; or ``too few`` groups.

    ``leading`` counts them with those that put the hierarchy ahead at both sizes without a gap that grows, which
    ``ahead_names`` lists; ``not_names`` lists the others. Both as printed is no change.
    """
    nodes, changes = measured(run)
    given = {name: gives(*gaps_of(nodes, change)) for name, change in changes.items() if name != "printed"}
    by_outcome = {told: [name for name in given if given[name] == told] for told in (FIGURE, AHEAD, NOT, FEW)}
    values = {"of": str(len(given)), "leading": str(len(by_outcome[FIGURE]) + len(by_outcome[AHEAD]))}
    for name, told_of in (("names", FIGURE), ("ahead_names", AHEAD), ("not_names", NOT)):
        values[name] = "; ".join(CHANGES[change].title for change in by_outcome[told_of]) or "none"
    values |= {"ahead": str(len(by_outcome[AHEAD])), "not": str(len(by_outcome[NOT]))}
    return Facts(FEW if by_outcome[FEW] else ", ".join(by_outcome[FIGURE]) or "none", values)


@reads("variants")
def control(run: str) -> Facts:
    """Both as printed: outcomes as ``facts.outcome`` has them for the gap at eight networks, on these networks."""
    facts = told(run, "printed")
    nodes, _ = measured(run)
    return Facts(outcome(interval(gap(nodes, CHANGES["printed"], SIZES[-1]))), facts.values)


@reads("variants")
def rounds(run: str) -> Facts:
    """MergeMany stopped after one, two and three rounds; outcomes and values as ``told``."""
    return told(run, "one_round", "two_rounds", "three_rounds")


@reads("variants")
def sweeps(run: str) -> Facts:
    """MergeMany with one sweep a matching, after one round, two and three; outcomes and values as ``told``."""
    return told(run, "one_sweep_once", "one_sweep_twice", "one_sweep")


@reads("variants")
def own_share(run: str) -> Facts:
    """Each model matched to the mean of all, itself included; outcomes and values as ``told``.

    ``naive_4`` is the accuracy of the naive average of the same networks, in percent.
    """
    facts = told(run, "own_share")
    nodes, _ = measured(run)
    naive = {f"naive_{size}": decimal(accuracies(nodes, "mean", {}, size).mean(), 1) for size in SIZES}
    return Facts(facts.outcome, {**facts.values, **naive})


@reads("variants")
def at_once(run: str) -> Facts:
    """All models moved at once, after one round and after five; outcomes and values as ``told``."""
    return told(run, "at_once_once", "at_once")


@reads("variants")
def activations(run: str) -> Facts:
    """Matched by activations: both after one round, both, the hierarchy alone; outcomes and values as ``told``."""
    return told(run, "activations_once", "activations", "activations_tree")


@reads("variants")
def mending(run: str) -> Facts:
    """Both after REPAIR, the hierarchy alone at its end, and at its stages; outcomes and values as ``told``."""
    return told(run, "repair", "repair_hierarchy", "repair_stages")


@reads("variants")
def pairs(run: str) -> Facts:
    """The hierarchy of two beside MergeMany of all; outcomes and values as ``told``."""
    return told(run, "pairs")


@reads("variants")
def recipe(run: str) -> Facts:
    """What was merged, and how often MergeMany was stopped by the limit on its rounds.

    Outcomes: ``rounds end`` where, as printed, it always came to a round that gained nothing; else ``rounds stopped``.
    ``orders`` is how many visiting orders and pairings there are of both as printed, in their first rounds.
    """
    nodes = results.read(run, "variants", "nodes")
    made = results.provenance(run, "variants")
    networks = made["parameters"]["variant_networks"]
    printed = picked(nodes, PRINTED | {"algorithm": "many"})
    ended = printed[printed["limit"] == printed["limit"].max()]
    title = ARCHITECTURES[networks["architecture"]].title
    values = {
        "networks": f"{networks['models']} {title}s of width {networks['width']}",
        "data": listed(data_titles(made["dataset"])),
        "orders": str(printed["order"].nunique()),
        "limit": str(ended["limit"].max()),
        "most_rounds": str(ended["rounds"].max()),
    }
    values |= {f"groups_{size}": str(ended[ended["n_leaves"] == size]["node"].nunique()) for size in SIZES}
    return Facts("rounds end" if (ended["rounds"] < ended["limit"]).all() else "rounds stopped", values)


@reads("variants")
def gaps_table(run: str) -> pd.DataFrame:
    """A row for each change: accuracies in percent, gaps and their growth in points, and what it gives by the rule."""
    nodes, changes = measured(run)
    rows = []
    for change in changes.values():
        row = {"changed": change.title}
        for size in SIZES:
            row[f"hierarchy of {size}"] = decimal(accuracies(nodes, "hierarchy", change.hierarchy, size).mean(), 1)
            row[f"MergeMany of {size}"] = decimal(accuracies(nodes, "many", change.many, size).mean(), 1)
            row[f"gap at {size}"] = points(interval(gap(nodes, change, size)), signed=True)
        row["growth"] = points(interval(growth(*gaps_of(nodes, change))), signed=True)
        rows.append(row | {"gives": gives(*gaps_of(nodes, change))})
    return pd.DataFrame(rows)


@reads("variants")
def rounds_table(run: str) -> pd.DataFrame:
    """Accuracy in percent by variant and rounds, as merged, and the mean number of matchings that this takes."""
    nodes, _ = measured(run)
    merged = picked(nodes[nodes["n_leaves"].isin(SIZES)], {"mended": "none"})
    rows = []
    for (algorithm, variant, limit), kind in merged.groupby(["algorithm", "variant", "limit"], sort=False):
        row = {
            "algorithm": ALGORITHMS[algorithm].title,
            "variant": VARIANTS[variant].title,
            "rounds": str(limit) if algorithm == "many" else "",
        }
        for size in SIZES:
            of_size = picked(kind, {"n_leaves": size})
            row[f"of {size}"] = decimal(100 * of_size["value"].mean(), 1)
            row[f"matchings, of {size}"] = decimal(of_size["matchings"].mean(), 0)
        rows.append(row)
    return pd.DataFrame(rows)


@reads("variants")
def accuracy_by_round(run: str) -> Figure:
    """Test accuracy of MergeMany by its rounds, a panel for each number of networks, with the hierarchy as a line."""
    nodes, _ = measured(run)
    many = picked(nodes, {"algorithm": "many", "mended": "none"})
    limits = [0, *sorted(many["limit"].unique())]
    figure, panels = plt.subplots(len(SIZES), 1, figsize=(width(), 6.2), sharex=True)
    for size, axes in zip(SIZES, panels, strict=True):
        for variant, drawn in VARIANTS.items():
            own = sorted(picked(many, {"variant": variant})["limit"].unique())
            if not own:
                continue
            means = [accuracies(nodes, "many", {"variant": variant, "limit": limit}, size) for limit in own]
            shares = [interval(of_groups) for of_groups in (accuracies(nodes, "mean", {}, size), *means)]
            interval_line(axes, [limits.index(limit) for limit in (0, *own)], shares, drawn, drawn.title)
        hierarchy = ALGORITHMS["hierarchy"]
        reached = accuracies(nodes, "hierarchy", {}, size).mean()
        axes.axhline(reached, color=on_page(hierarchy.colour), linewidth=1.5, linestyle="--", label=hierarchy.title)
        axes.set(title=f"{size} networks", ylabel="test accuracy (%)")
    panels[-1].set_xticks(range(len(limits)), limits)
    panels[-1].set_xlabel("rounds of MergeMany, at most")
    legend_below(figure, panels[0])
    return figure


@reads("variants")
def gaps_by_variant(run: str) -> Figure:
    """The gap at four and at eight networks under every change, a row for each, with its interval."""
    nodes, changes = measured(run)
    rows = {
        change.title: [(drawn, interval(gap(nodes, change, size))) for size, drawn in STYLES.items()]
        for change in changes.values()
    }
    return interval_rows(rows, "hierarchy minus MergeMany (points)")
