"""Tree after tree of one recipe: the paper's figures at its own number of networks, and its claims decided again."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, MENDINGS, PERTURBATIONS, Drawn, title_of
from lab.networks import ARCHITECTURES
from lab.report.attacks import radius_text
from lab.report.claims import FEWEST_FOR_VERDICT, REPLICATED, TOO_FEW, contrast, picked
from lab.report.draw import interval_line, interval_rows, name_ends, width, word_colour
from lab.report.facts import Facts, outcome, reads
from lab.report.hierarchy import dots_by_leaves, sizes_of, term
from lab.report.kinds import Kind, by_kind, names, percent, percent_left
from lab.report.regularisation import norms_and_bounds
from lab.report.statistics import Interval, interval, less_in_percent, unsigned
from lab.report.verdicts import claim, gaps
from lab.report.words import decimal, points

BLOCK = 8  # leaves of the nodes that the claims are decided on
ALL_TREES = 50  # of 32 networks: the paper's 1600
CONTROLS = ("early_stopped", "noise", "l2")
HIERARCHY, REPAIRED_HIERARCHY = Kind("hierarchy", n_leaves=BLOCK), Kind("hierarchy", "repair", BLOCK)
MERGED = (Kind("hierarchy", n_leaves=2), HIERARCHY, Kind("many", n_leaves=BLOCK), REPAIRED_HIERARCHY)
# Drawn under attack: leaves, merges, and the controls.
CONTROLS_OF_BLOCK = tuple(Kind(control, n_leaves=BLOCK) for control in CONTROLS)
ATTACKED = (Kind("unmerged"), *MERGED, *CONTROLS_OF_BLOCK)


@reads("trees")
def size(run: str) -> Facts:
    """How many networks there are, in how many trees, of how many trees nodes were attacked, hours of training.

    The outcome is ``all`` where there are as many networks as in the paper, else ``some``.
    """
    made = results.provenance(run, "trees")
    parameters = made["parameters"]
    networks, trees = parameters["networks"], parameters["trees"]
    values = {
        "networks": str(trees * networks["models"]),
        "trees": str(trees),
        "all_trees": str(ALL_TREES),
        "attacked": str(min(parameters["attacked_trees"], trees)),
        "kind": f"{ARCHITECTURES[networks['architecture']].title}s of width {networks['width']}",
        "epochs": str(networks["epochs"][-1]),
        "accuracy": decimal(percent(_by_node(run, Kind("unmerged"))).mean, 1),
        "hours": f"{made['training_seconds'] / 3600:.0f}",
    }
    return Facts("all" if trees >= ALL_TREES else "some", values)


@reads("trees")
def against_many(run: str) -> Facts:
    """Test accuracy of the hierarchy of eight minus that of MergeMany, in points, and how much it grows from four.

    Outcomes: where both lie, ``below``, or where they differ ``below, open``; ``not measured``.
    """
    facts = gaps(claim(run, "H2", "again"), {"gap": "at_8", "growth": "grows"})
    kinds = {algorithm: Kind(algorithm, n_leaves=BLOCK) for algorithm in ("hierarchy", "many", "mean")}
    values = {algorithm: decimal(percent(_by_node(run, kind)).mean, 1) for algorithm, kind in kinds.items()}
    gap = claim(run, "H2", "again").condition("at_8")
    lead = {} if gap is None else {"lead": decimal(abs(gap.effect.mean), 1)}
    return Facts(facts.outcome, {**facts.values, **values, **lead})


@reads("trees")
def after_repair(run: str) -> Facts:
    """The same gap after REPAIR, over nodes of eight; outcomes ``above``, ``below``, ``open`` or ``too few``."""
    by_way = {way: _by_node(run, Kind(way, "repair", BLOCK)) for way in ("hierarchy", "many")}
    gap = interval(100 * (by_way["hierarchy"] - by_way["many"]).to_numpy())
    means = {way: decimal(100 * values.mean(), 1) for way, values in by_way.items()}
    return Facts(outcome(gap, 0, FEWEST_FOR_VERDICT), {"gap": points(gap, signed=True), "n": str(gap.n), **means})


@reads("trees")
def against_naive(run: str) -> Facts:
    """Test accuracy of the hierarchy of eight minus that of the naive average of the same networks, in points."""
    return gaps(claim(run, "H1", "again"), {"gap": "at_8"})


@reads("trees")
def cost(run: str) -> Facts:
    """How many points of test accuracy the hierarchy of four lies below its own leaves, beside the claim's bound."""
    return gaps(claim(run, "H3", "again"), {"lost": "at_4"})


@reads("trees")
def many_beyond_eight(run: str) -> Facts:
    """Test accuracy of MergeMany of the most networks minus that of eight, tree by tree, in points, as merged.

    ``gap`` is the difference, ``size_gap`` the same without signs, ``models`` the most networks; ``hierarchy`` and
    ``size_hierarchy`` are those of the hierarchy. Outcomes: where the gap of MergeMany lies; ``not measured`` without
    merges of more than eight.
    """
    table = picked(results.read(run, "trees", "nodes"), {"metric": "accuracy", "mended": "none"})
    largest = sizes_of(table, "many")[-1]
    if largest <= BLOCK:
        return Facts("not measured", {})
    gap, hierarchy = (_beyond_eight(run, way, largest) for way in ("many", "hierarchy"))
    values = {"gap": points(gap, signed=True), "size_gap": points(unsigned(gap)), "n": str(gap.n)}
    values |= {"hierarchy": points(hierarchy, signed=True), "size_hierarchy": points(unsigned(hierarchy))}
    return Facts(outcome(gap), values | {"models": str(largest)})


def _beyond_eight(run: str, way: str, n_leaves: int) -> Interval:
    """What a way of merging has of so many networks minus what it has of eight of them, in points, tree by tree."""
    large, small = (_by_node(run, Kind(way, n_leaves=size)) for size in (n_leaves, BLOCK))
    return interval(100 * (large - small.groupby(small.index * BLOCK // n_leaves).mean()).to_numpy())


@reads("trees")
def against_leaves(run: str) -> Facts:
    """What is left under attack at each radius of the hierarchy of eight, minus that of its leaves, in points.

    Outcomes: where the gaps lie at 2, 4, 6 and 8 grey levels: ``below, open, above, above``; ``not measured``.
    """
    radii = {f"at_{radius}": f"leaves_{radius}" for radius in (2, 4, 6, 8)}
    return _each(gaps(claim(run, "H4", "again"), radii), len(radii))


@reads("trees")
def against_controls(run: str) -> Facts:
    """The same at 4 grey levels, minus unmerged networks of the merge's accuracy, by how they came by it.

    Outcomes: where the gaps lie for networks that were stopped early, spoiled by noise, trained with a penalty.
    """
    kinds = {control: f"{control}_4" for control in CONTROLS}
    return _each(gaps(claim(run, "H4", "again"), kinds), len(kinds))


@reads("trees")
def many_under_attack(run: str) -> Facts:
    """What MergeMany of eight has left at 4 grey levels, minus what the hierarchy of eight and the leaves have.

    In points, on the same groups of eight and images; ``hierarchy`` and ``leaves`` are the gaps. Outcomes: where they
    lie, ``above, open``.
    """
    rows = picked(results.read(run, "trees", "attacked"), {"epsilon": 4.0, "mended": "none"})
    outcomes, values = [], {}
    for name, other in (("hierarchy", term("hierarchy", BLOCK, -1)), ("leaves", term("unmerged", 1, -1))):
        gap = interval(contrast(rows, [term("many", BLOCK), other], BLOCK))
        values |= {name: points(gap, signed=True), f"size_{name}": points(unsigned(gap)), f"n_{name}": str(gap.n)}
        outcomes.append(outcome(gap))
    return Facts(", ".join(outcomes), values)


@reads("trees")
def with_more(run: str) -> Facts:
    """What merges of eight have more than merges of two by the hierarchy: left under attack, and retained.

    ``at_4`` and ``at_8`` are points at so many grey levels; ``retained`` is by how many percent merges of two retain
    less under perturbations. Outcomes: where the three lie, ``open, above, below``; or ``not measured``.
    """
    attacked = gaps(claim(run, "H4", "again"), {"at_4": "grows_4", "at_8": "grows_8"})
    perturbed = gaps(claim(run, "H5", "again"), {"retained": "grows"})
    if not (attacked.values and perturbed.values):
        return Facts("not measured", {})
    n = str(min(int(attacked.values["n"]), int(perturbed.values["n"])))
    values = {**attacked.values, **perturbed.values, "n": n}
    return Facts(f"{_each(attacked, 2).outcome}, {perturbed.outcome}", values)


@reads("trees")
def under_perturbations(run: str) -> Facts:
    """By how many percent others retain less than the hierarchy of eight does under perturbations.

    Others are its leaves, and the three kinds of controls; outcomes in this order as for ``against_controls``.
    """
    kinds = {"leaves": "leaves", **{control: control for control in CONTROLS}}
    return _each(gaps(claim(run, "H5", "again"), kinds), len(kinds))


@reads("trees")
def retained(run: str) -> Facts:
    """By how many percent leaves retain less than merges of eight do under perturbations; below 0 they retain more.

    ``hierarchy`` and ``many`` are merges as they are, ``repaired`` is the hierarchy after REPAIR. Outcomes: where each
    lies, ``below, above, above``.
    """
    kinds = {"hierarchy": HIERARCHY, "many": Kind("many", n_leaves=BLOCK), "repaired": REPAIRED_HIERARCHY}
    outcomes, values = [], {}
    for name, kind in kinds.items():
        less = _leaves_retain_less(run, kind)
        values |= {name: points(less, signed=True), f"size_{name}": points(unsigned(less)), "n": str(less.n)}
        outcomes.append(outcome(less))
    return Facts(", ".join(outcomes), values)


def _leaves_retain_less(run: str, kind: Kind) -> Interval:
    """By how many percent leaves retain less than a kind does: of geometric means over groups of eight."""
    rows = picked(results.read(run, "trees", "perturbed"), {"metric": "retained"})
    own = picked(rows, {"algorithm": kind.algorithm, "mended": kind.mended})
    both = pd.concat([own, picked(rows, {"algorithm": "unmerged"})])
    logs = contrast(both, [term(kind.algorithm, kind.n_leaves), term("unmerged", 1, -1)], BLOCK)
    return less_in_percent(interval(logs))


def _each(facts: Facts, count: int) -> Facts:
    """The facts with an outcome that has a word for each effect, also where they are all the same."""
    words = facts.outcome.split(", ")
    return Facts(", ".join(words * count) if len(words) == 1 and facts.values else facts.outcome, facts.values)


@reads("trees")
def of_weights(run: str) -> Facts:
    """Norm and bound of the hierarchy at the largest size, as shares of what its leaves have, in percent.

    ``repaired_norm`` and ``repaired`` are those after REPAIR. The outcome is ``fall`` if both fall at every stage by
    the rules of H6, ``fall so far`` if some stages have too few nodes for a verdict or none, else the verdict on it.
    """
    decided = claim(run, "H6", "again")
    nodes = picked(results.read(run, "trees", "nodes"), {"mended": "none"})
    largest = sizes_of(nodes, "hierarchy")[-1]
    shares = {}
    for name, metric in (("norm", "l2_norm"), ("bound", "lipschitz")):
        shares[name] = _share_of_leaves(run, metric, Kind("hierarchy", n_leaves=largest))
    shares["repaired_norm"] = _share_of_leaves(run, "l2_norm", Kind("hierarchy", "repair", largest))
    shares["repaired"] = _share_of_leaves(run, "lipschitz", Kind("hierarchy", "repair", largest))
    verdicts = {condition.verdict for condition in decided.conditions}
    if verdicts == {REPLICATED} and not decided.missing:
        told = "fall"
    elif REPLICATED in verdicts and verdicts <= {REPLICATED, TOO_FEW}:
        told = "fall so far"
    else:
        told = decided.verdict
    return Facts(told, {"models": str(largest), **shares})


@reads("trees")
def of_naive_weights(run: str) -> Facts:
    """Norm and bound of the naive average at the largest size, as shares of what its leaves have, in percent.

    Outcomes: where its norm and its bound lie beside those of the hierarchy of the same networks, ``below, below``.
    """
    nodes = picked(results.read(run, "trees", "nodes"), {"mended": "none"})
    naive, hierarchy = (Kind(way, n_leaves=sizes_of(nodes, "mean")[-1]) for way in ("mean", "hierarchy"))
    outcomes, values = [], {"models": str(naive.n_leaves)}
    for name, metric in (("norm", "l2_norm"), ("bound", "lipschitz")):
        values[name] = _share_of_leaves(run, metric, naive)
        gap = interval((_by_node(run, naive, metric) - _by_node(run, hierarchy, metric)).to_numpy())
        values["n"] = str(gap.n)
        outcomes.append(outcome(gap))
    return Facts(", ".join(outcomes), values)


def _share_of_leaves(run: str, metric: str, kind: Kind) -> str:
    """The mean of a metric over nodes of a kind, in percent of that over the leaves."""
    merged, leaves = (_by_node(run, each, metric).mean() for each in (kind, Kind("unmerged")))
    return f"{100 * merged / leaves:.0f}"


@reads("trees")
def accuracy_of_trees(run: str) -> Figure:
    """Test accuracy of every node by the number of its leaves, as merged (Hierarchical Re-Basin, Figure 2)."""
    nodes = results.read(run, "trees", "nodes")
    return dots_by_leaves(picked(nodes, {"metric": "accuracy", "mended": "none"}))


@reads("trees")
def attacks_on_trees(run: str) -> Figure:
    """Test accuracy that is left under attack, by the radius (Hierarchical Re-Basin, Figure 3)."""
    table = results.read(run, "trees", "attacked")
    images, known = int(table["images"].min()), dict(by_kind(table))
    figure, axes = plt.subplots(figsize=(width(), 4.6))
    ends = []
    for kind in ATTACKED:
        if kind.algorithm == "l2":  # its strength is a parameter of the run
            kind = next((other for other in known if other.algorithm == "l2"), kind)
        if kind not in known:
            continue
        curve = {epsilon: percent_left(rows, images) for epsilon, rows in known[kind].groupby("epsilon")}
        drawn, filled = ALGORITHMS[kind.algorithm], kind.mended == "none"
        line = ":" if kind.algorithm in CONTROLS else "-" if filled else "--"
        interval_line(axes, list(curve), list(curve.values()), drawn, kind_title(kind), line, filled)
        ends.append((list(curve.values())[-1].mean, kind_title(kind), word_colour(drawn.colour)))
    axes.set(xlabel="radius of the attack (grey levels of 255)", ylabel="test accuracy left (%)", ylim=(0, None))
    axes.set_xticks(sorted(table["epsilon"].unique()))
    name_ends(axes, ends)
    return figure


def kind_title(kind: Kind) -> str:
    """A kind as the end of its line names it: ``hierarchy of 8``."""
    if kind.algorithm in CONTROLS:
        return {"early_stopped": "stopped early", "noise": "spoiled by noise", "l2": "L2 penalty"}[kind.algorithm]
    if kind.mended != "none":
        return MENDINGS[kind.mended]
    return "unmerged" if kind.n_leaves == 1 else f"{title_of(kind.algorithm)} of {kind.n_leaves}"


@reads("trees")
def retained_by_kind(run: str) -> Figure:
    """By how many percent leaves retain less than each kind of networks does under perturbations, a row for each."""
    styles = {
        MERGED: Drawn("merged", "#0072B2", "o"),
        CONTROLS_OF_BLOCK: Drawn("as accurate, not merged", "#7F7F7F", "D"),
    }
    rows = {}
    for kinds, drawn in styles.items():
        for kind in kinds:
            title = kind_title(kind._replace(mended="none"))
            title += "" if kind.mended == "none" else f", {MENDINGS[kind.mended]}"
            rows[title] = [(drawn, _leaves_retain_less(run, kind))]
    return interval_rows(rows, "how much less leaves retain (%)")


@reads("trees")
def weights_of_trees(run: str) -> Figure:
    """Norm and Lipschitz bound by the number of networks merged (Hierarchical Re-Basin, Figure 4)."""
    return norms_and_bounds(results.read(run, "trees", "nodes"))


@reads("trees")
def accuracy_table(run: str) -> pd.DataFrame:
    """Test accuracy by number of models and way of merging, as merged and after REPAIR, and the gap to MergeMany."""
    nodes = picked(results.read(run, "trees", "nodes"), {"metric": "accuracy"})
    rows = []
    for n_leaves in sorted(nodes["n_leaves"].unique())[1:]:
        for mended in ("none", "repair"):
            row = {"models": str(n_leaves), "mended": MENDINGS[mended]}
            by_way = {way: _by_node(run, Kind(way, mended, n_leaves)) for way in ("hierarchy", "many", "mean")}
            row |= {ALGORITHMS[way].title: points(percent(values)) for way, values in by_way.items() if len(values)}
            gap = interval(100 * (by_way["hierarchy"] - by_way["many"]).to_numpy())
            rows.append(row | {"hierarchy − MergeMany": points(gap, signed=True), "n": gap.n})
    return pd.DataFrame(rows)


@reads("trees")
def attack_table(run: str) -> pd.DataFrame:
    """What is left under attack by kind of network and radius."""
    table = results.read(run, "trees", "attacked")
    images, rows = int(table["images"].min()), []
    for kind, own in by_kind(table):
        row = names(kind)
        for epsilon, at in own.groupby("epsilon"):
            row[f"left at {radius_text(epsilon)} (%)" if epsilon else "clean (%)"] = points(percent_left(at, images))
        rows.append(row | {"n": own["node"].nunique()})
    return pd.DataFrame(rows)


@reads("trees")
def perturbation_table(run: str) -> pd.DataFrame:
    """Accuracy by kind of network under each perturbation, and the share of what is above chance that is retained."""
    rows = []
    for kind, own in by_kind(results.read(run, "trees", "perturbed")):
        row = names(kind)
        for metric, at in own.groupby("metric", sort=False):
            title = PERTURBATIONS[metric][0] if metric in PERTURBATIONS else metric
            row[f"{title} (%)"] = decimal(100 * at["value"].mean(), 1)
        rows.append(row | {"n": own["node"].nunique()})
    return pd.DataFrame(rows)


@reads("trees")
def amounts_table(run: str) -> pd.DataFrame:
    """How strong each perturbation is."""
    table = results.read(run, "trees", "perturbed").dropna(subset="amount")
    amounts = table.groupby("metric", sort=False)["amount"].first()
    return pd.DataFrame(
        {"perturbation": PERTURBATIONS[kind][0], "amount": f"{value:.3g}", "unit": PERTURBATIONS[kind][1]}
        for kind, value in amounts.items()
    )


def _by_node(run: str, kind: Kind, metric: str = "accuracy") -> pd.Series:
    """A metric of every node of a kind, by the node's number."""
    table = picked(results.read(run, "trees", "nodes"), kind._asdict() | {"metric": metric})
    return table.set_index("node")["value"].sort_index()
