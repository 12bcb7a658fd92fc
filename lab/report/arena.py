"""The arena: what merges of a given size reach, of two networks that know half of the classes each, and of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import CONTESTANTS, MENDINGS
from lab.networks import ARCHITECTURES
from lab.report.claims import contrast_of_nodes, picked
from lab.report.draw import interval_line, legend_below, on_page, width
from lab.report.facts import Facts, outcome, reads
from lab.report.statistics import Interval, interval, unsigned
from lab.report.verdicts import claim
from lab.report.words import points

ONE = 1.0  # the size of one network
# What is no merge of one network's size: floor, ceiling, a head that needs labels, and training.
NO_MERGES = ("parent", "ensemble", "head", "distilled")
# What figures over the size show.
OVER_SIZE = ("zip", "pleas", "pleas_refitted")
# What figures over the number of networks show, some of it after REPAIR, too.
OVER_NUMBER = ("mean", "weights", "universe", "hierarchy", "pleas", "pleas_refitted", "pleas_tree", "ensemble")
REPAIRED = ("weights", "universe", "hierarchy")
# How lines are drawn where it is not a plain one.
LINES = {"pleas_refitted": "--"}


def halves(run: str, with_floor: bool = True) -> dict[str, pd.DataFrame]:
    """Accuracies over all classes of merges of networks that know half of them, by what a reader calls the networks.

    They are those of the run's first data set, CIFAR-10 in the book; ``with_floor`` only of settings in which one
    parent was measured, the floor of all.
    """
    entries = picked(results.read(run, "arena", "entries"), {"tasks": "halves", "task": "joint", "metric": "accuracy"})
    if with_floor:
        entries = entries[entries["setting"].isin(entries[entries["method"] == "parent"]["setting"])]
    entries = entries[entries["dataset"] == entries["dataset"].iloc[0]] if len(entries) else entries
    return {title_of(rows): rows for _, rows in entries.groupby("setting", sort=False)}


def title_of(rows: pd.DataFrame) -> str:
    """What a reader calls the networks of a setting: ``MLP``, ``VGG-11, 1/4``."""
    first = rows.iloc[0]
    kind = ARCHITECTURES[first["architecture"]]
    factor = first["width"] / kind.width
    return kind.title if factor == 1 else f"{kind.title}, {'1/' if factor < 1 else ''}{max(factor, 1 / factor):g}"


def shown_as(rows: pd.DataFrame, method: str) -> str:
    """How a method is mended where a figure shows it once: statistics measured anew, where there are batch norms."""
    return "reset" if "reset" in set(rows[rows["method"] == method]["mended"]) else "none"


def accuracy(rows: pd.DataFrame, method: str, size: float = ONE, mended: str | None = None) -> Interval | None:
    """The accuracy of a method in one setting, in percent; None if it was not tried there."""
    mended = shown_as(rows, method) if mended is None else mended
    chosen = picked(rows, {"method": method, "size": size, "mended": mended})
    return interval(100 * chosen["value"].to_numpy()) if len(chosen) else None


def difference(rows: pd.DataFrame, first: Sequence, second: Sequence) -> Interval:
    """How many points a (method, size, mended) has more than another, node by node."""
    terms = [
        {"method": method, "size": size, "mended": mended, "weight": weight}
        for (method, size, mended), weight in ((first, 1), (second, -1))
    ]
    return interval(contrast_of_nodes(rows, terms, "points"))


@reads("arena")
def best(run: str) -> Facts:
    """Which merge of the size of one network is the most accurate in the mean, of each kind of networks.

    The outcome names them in the order of the kinds, and whether each is ``nearer`` to the ensemble than to one parent
    or ``farther``: ``pleas nearer, pleas_refitted farther``. The values are accuracies in percent, of the best merge,
    of one parent and of the ensemble, by kind: ``best_mlp``, ``parent_mlp``, ``ensemble_mlp``.
    """
    outcomes, values = [], {}
    for kind, rows in by_kind(run).items():
        merges = {name: accuracy(rows, name) for name in CONTESTANTS if name not in NO_MERGES}
        merges = {name: value for name, value in merges.items() if value is not None}
        name = max(merges, key=lambda merge: merges[merge].mean)
        reached = {
            "best": merges[name], "parent": accuracy(rows, "parent"), "ensemble": accuracy(rows, "ensemble", 2.0)
        }  # fmt: skip
        nearer = reached["ensemble"].mean - reached["best"].mean < reached["best"].mean - reached["parent"].mean
        outcomes.append(f"{name} {'nearer' if nearer else 'farther'}")
        values |= {f"{what}_{kind}": points(value) for what, value in reached.items()}
    return Facts(", ".join(outcomes) or "not measured", values)


@reads("arena")
def over_zip(run: str) -> Facts:
    """What PLeaS has over ZipIt!, at the size of one network: see ``_conditions``."""
    return _conditions(run, "P1", "zip_")


@reads("arena")
def over_permuted(run: str) -> Facts:
    """What PLeaS has over correlation matching, at the size of one network: see ``_conditions``."""
    return _conditions(run, "P1", "permuted_")


@reads("arena")
def over_repaired(run: str) -> Facts:
    """What PLeaS has over correlation matching with REPAIR, at the size of one network: see ``_conditions``."""
    return _conditions(run, "P1", "repaired_")


@reads("arena")
def beside_the_ensemble(run: str) -> Facts:
    """What PLeaS at 1.2 has over four fifths of the way to the ensemble: see ``_conditions``."""
    return _conditions(run, "P2")


@reads("arena")
def without_data(run: str) -> Facts:
    """What PLeaS at 1.2 loses on other images: see ``_conditions``."""
    return _conditions(run, "P3")


@reads("arena")
def matching(run: str) -> Facts:
    """What PLeaS has over RegMean, which matches nothing: see ``_conditions``."""
    return _conditions(run, "P4")


@reads("arena")
def parts(run: str) -> Facts:
    """What merging all layers in part has over merging the first layers whole: see ``_conditions``."""
    return _conditions(run, "P5")


@reads("arena")
def closed_form(run: str) -> Facts:
    """What the closed form has over 400 steps of Adam: see ``_conditions``."""
    return _conditions(run, "P6")


@reads("arena")
def gains(run: str) -> Facts:
    """What gains by mismatch have over linear ones: see ``_conditions``."""
    return _conditions(run, "P7")


@reads("arena")
def over_many(run: str) -> Facts:
    """What PLeaS of many networks has over MergeMany with REPAIR: see ``_conditions``; by their number, ``at_4``."""
    return _conditions(run, "P8")


@reads("arena")
def refitted(run: str) -> Facts:
    """What fitting to the merge's own inputs has over fitting to the parents': see ``_conditions``."""
    return _conditions(run, "P9")


def _conditions(run: str, name: str, start: str = "") -> Facts:
    """The conditions of a claim that were measured, by kind of networks, each beside its bound: see ``_sides``."""
    conditions = [condition for condition in claim(run, name).conditions if condition.id.startswith(start)]
    return _sides({c.id.removeprefix(start): (c.effect, c.bound) for c in conditions})


@reads("arena")
def matching_refitted(run: str) -> Facts:
    """What PLeaS has over RegMean once both are refitted: see ``_sides``."""
    return _sides(_by_kind(run, "pleas_refitted", "regmean_refitted"))


@reads("arena")
def matching_of_many(run: str) -> Facts:
    """The same for networks of one task, by how many were merged, ``at_2``, ``at_4``, ...: see ``_sides``."""
    return _sides(_by_number(run, "pleas_refitted", "regmean_refitted"))


@reads("arena")
def cost_of_many(run: str) -> Facts:
    """What refitted PLeaS of several networks of one task has over one of them, likewise: see ``_sides``."""
    return _sides(_by_number(run, "pleas_refitted", "parent"))


def _by_number(run: str, first: str, second: str) -> dict[str, tuple[Interval, float]]:
    """What one method has over another at the size of one network, by how many of one task were merged; the bound 0."""
    return {
        f"at_{number}": (difference(rows, (first, ONE, "none"), (second, ONE, "none")), 0.0)
        for number, rows in many(run).groupby("parents")
    }


@reads("arena")
def new_head(run: str) -> Facts:
    """What the best merge by least squares, PLeaS refitted, has over one parent with a new head: see ``_sides``."""
    return _sides(_by_kind(run, "pleas_refitted", "head"))


@reads("arena")
def distilled(run: str) -> Facts:
    """What PLeaS refitted has over the matched average that was trained to answer as its parents: see ``_sides``."""
    return _sides(_by_kind(run, "pleas_refitted", "distilled"))


@reads("arena")
def canonical(run: str) -> Facts:
    """What CCA Merge has over correlation matching, at the size of one network: see ``_sides``."""
    return _sides(_by_kind(run, "cca", "correlation"))


@reads("arena")
def mixed(run: str) -> Facts:
    """What MuDSC, weights and correlation at once, has over correlation alone: see ``_sides``."""
    return _sides(_by_kind(run, "mixed", "correlation"))


@reads("arena")
def number(run: str) -> Facts:
    """Merges of 8 networks of one task, of the size of one: accuracies in percent, ``_repaired`` after REPAIR.

    The outcome is which is the most accurate in the mean, and where its difference to one of the networks lies:
    ``pleas open``.
    """
    return _of_many(run, 8)


@reads("arena")
def largest(run: str) -> Facts:
    """The same for the largest ``number`` of networks, of which there are ``n`` groups."""
    rows = many(run)
    if not len(rows):
        return Facts("not measured", {})
    most = int(rows["parents"].max())
    groups = picked(rows, {"parents": most})["node"].nunique()
    facts = _of_many(run, most)
    return Facts(facts.outcome, {**facts.values, "number": str(most), "n": str(groups)})


def _of_many(run: str, number: int) -> Facts:
    rows = picked(many(run), {"parents": number})
    values, merges = {}, {}
    for method in ("parent", *OVER_NUMBER):
        for mended in ("none", "repair"):
            reached = accuracy(rows, method, float(number) if method == "ensemble" else ONE, mended)
            if reached is not None:
                values[method if mended == "none" else f"{method}_repaired"] = points(reached)
                if method not in NO_MERGES:
                    merges[method, mended] = reached.mean
    if not merges:
        return Facts("not measured", {})
    method, mended = max(merges, key=merges.__getitem__)
    beside = difference(rows, (method, ONE, mended), ("parent", ONE, "none"))
    values |= {"beside_parent": points(beside, signed=True), "n": str(beside.n)}
    return Facts(f"{method} {outcome(beside)}", values)


@reads("arena")
def attacked(run: str) -> Facts:
    """What refitted PLeaS of 8 networks has under every attack, over one of them and over MergeMany: see ``_sides``.

    ``parent_2``, ``many_4``, ... by what it is held against, and the radius in grey levels.
    """
    rows = picked(results.read(run, "arena", "attacks"), {"parents": 8})
    beyond = {}
    for what, method in (("parent", "parent"), ("many", "weights")):
        for epsilon in (2, 4):
            at = picked(rows, {"epsilon": epsilon})
            if len(at):
                beyond[f"{what}_{epsilon}"] = (
                    difference(at, ("pleas_refitted", ONE, "none"), (method, ONE, "none")),
                    0.0,
                )
    return _sides(beyond)


def _by_kind(run: str, first: str, second: str) -> dict[str, tuple[Interval, float]]:
    """What a method has over another at the size of one network, by kinds of networks that have both; beside 0."""
    sides = {}
    for kind, rows in by_kind(run).items():
        if {first, second} <= set(rows["method"]):
            beyond = difference(rows, *((name, ONE, shown_as(rows, name)) for name in (first, second)))
            sides[kind] = beyond, 0.0
    return sides


def _sides(beyond: Mapping[str, tuple[Interval, float]]) -> Facts:
    """Differences in points by their names, each beside a bound, and ``n``, the fewest pairs or groups.

    They have their signs, and none as ``size_`` and the name. The outcome says where each interval lies: ``mlp above,
    vgg11 open``; ``not measured`` if there are none.
    """
    if not beyond:
        return Facts("not measured", {})
    values = {name: points(value, signed=True) for name, (value, _) in beyond.items()}
    values |= {f"size_{name}": points(unsigned(value)) for name, (value, _) in beyond.items()}
    sides = [f"{name} {outcome(value, bound)}" for name, (value, bound) in beyond.items()]
    return Facts(", ".join(sides), {**values, "n": str(min(value.n for value, _ in beyond.values()))})


@reads("arena")
def recipe(run: str) -> Facts:
    """How networks of halves were trained and merged: ``epochs_mlp``, ``images_mlp`` of a parent, ``nodes``, pairs."""
    values = {}
    for kind, rows in by_kind(run).items():
        first = rows.iloc[0]
        values |= {f"epochs_{kind}": str(first["epochs"]), f"images_{kind}": str(first["images"])}
        values["nodes"] = str(rows["node"].nunique())
    return Facts(", ".join(by_kind(run)) or "not measured", values)


def by_kind(run: str) -> dict[str, pd.DataFrame]:
    """The settings of CIFAR-10's halves by the last word of their name: ``mlp``, ``vgg11``, ``resnet20``."""
    return {rows["setting"].iloc[0].split()[-1]: rows for rows in halves(run).values()}


@reads("arena")
def accuracy_by_size(run: str) -> Figure:
    """Accuracy over all classes by the size of the merge: a panel for each kind of networks."""
    settings = halves(run) or halves(run, with_floor=False)
    size = (width(), 0.5 + 2.5 * len(settings))
    figure, panels = plt.subplots(len(settings), 1, figsize=size, sharex=True, squeeze=False)
    for (title, rows), axes in zip(settings.items(), panels[:, 0], strict=True):
        for method in OVER_SIZE:
            sizes = sorted(rows[rows["method"] == method]["size"].unique())
            reached = [accuracy(rows, method, size) for size in sizes]
            interval_line(axes, sizes, reached, CONTESTANTS[method], name_of(method), LINES.get(method, "-"))
        for method, size in (("correlation", ONE), ("regmean", ONE), ("head", ONE), ("ensemble", 2.0)):
            reached = accuracy(rows, method, size)
            if reached is not None:
                interval_line(axes, [size], [reached], CONTESTANTS[method], name_of(method), line="none")
        parent = accuracy(rows, "parent")
        if parent is not None:
            grey = on_page(CONTESTANTS["parent"].colour)
            axes.axhline(parent.mean, color=grey, linestyle=":", label=name_of("parent"), zorder=1)
        axes.set_title(title)
        axes.set_ylabel("accuracy (%)")
    panels[-1, 0].set_xlabel("size: multiply-adds, in multiples of one network")
    legend_below(figure, panels[0, 0])
    return figure


@reads("arena")
def accuracy_by_number(run: str) -> Figure:
    """Accuracy of merges of many networks of one task, of the size of one, over how many were merged."""
    rows = many(run)
    numbers = sorted(rows["parents"].unique())
    figure, axes = plt.subplots(figsize=(width(), 3.8))
    shown = [(method, "none", LINES.get(method, "-")) for method in OVER_NUMBER]
    shown += [(method, "repair", ":") for method in REPAIRED]
    for method, mended, line in shown:
        reached = {}
        for number in numbers:
            size = float(number) if method == "ensemble" else ONE
            value = accuracy(rows[rows["parents"] == number], method, size, mended)
            if value is not None:
                reached[number] = value
        if reached:
            label = name_of(method) if mended == "none" else f"{name_of(method)}, {MENDINGS[mended]}"
            interval_line(axes, list(reached), list(reached.values()), CONTESTANTS[method], label, line)
    parent = accuracy(rows, "parent")
    if parent is not None:
        grey = on_page(CONTESTANTS["parent"].colour)
        axes.axhline(parent.mean, color=grey, linestyle=":", label=name_of("parent"), zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set(xlabel="networks that were merged", ylabel="accuracy (%)")
    legend_below(figure, axes)
    return figure


def many(run: str) -> pd.DataFrame:
    """Accuracies of merges of MLPs that all know the same and have no penalty, by the number of ``parents``."""
    return picked(together(run), {"architecture": "mlp", "l1": 0.0})


def together(run: str) -> pd.DataFrame:
    """Accuracies of merges of networks that all know the same."""
    entries = results.read(run, "arena", "entries")
    return picked(entries, {"tasks": "whole", "subset": "all", "task": "joint", "metric": "accuracy"})


def name_of(method: str) -> str:
    """What a reader calls a method."""
    return CONTESTANTS[method].title
