"""The hierarchy beside MergeMany under many conditions: where it is ahead, by how much, and what REPAIR gives back.

A condition is one recipe of training on one data set. All gaps are the hierarchy minus MergeMany on the same groups of
networks, in points of test accuracy.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset
from lab.bookkeeping.vocabulary import ALGORITHMS, DATASETS, MENDINGS, Drawn
from lab.networks import ARCHITECTURES
from lab.report.claims import picked
from lab.report.draw import ON_PHONE, errors, ink, legend_below, offsets, on_page
from lab.report.facts import ABOVE, BELOW, FEW, OPEN, Facts, outcome, reads
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.words import decimal, listed, points

# Every other column of the table is a part of the recipe.
MEASURED = ("algorithm", "mended", "n_leaves", "stage", "node", "split", "metric", "value")
# How MergeMany is mended that each mending of the hierarchy is compared with: it has no stages.
BESIDE = {"none": "none", "repair": "repair", "repair every stage": "repair"}
# In colours that neither algorithm has.
STYLES = {
    "none": Drawn(MENDINGS["none"], ALGORITHMS["unmerged"].colour, "o"),
    "repair": Drawn(MENDINGS["repair"], ALGORITHMS["l2"].colour, "D"),
    "repair every stage": Drawn(MENDINGS["repair every stage"], ALGORITHMS["ensemble"].colour, "s"),
}
# (algorithm, mended) of every merge after REPAIR.
MENDED = (("hierarchy", "repair"), ("hierarchy", "repair every stage"), ("many", "repair"), ("mean", "repair"))
# Percent of test images: twice what guessing gives of ten classes, which all data sets have.
GUESSING = 20
TIED = 1e-9  # points: what is less is the rounding of a difference of sums
FEWEST_STAGED = 4  # models: with two, the hierarchy has one stage, and merges a pair as MergeMany does
ERRS = 0.05  # the share of 95 % intervals that leave out zero by chance
DEFAULT_ARCHITECTURE = "mlp"  # of an entry of a plan that names none


@reads("comparison")
def against_many(run: str) -> Facts:
    """In how many comparisons either is ahead with its interval clear of zero, from four models on.

    A comparison is one condition, number of models and mending, with enough groups for an interval. Outcomes:
    ``hierarchy``, ``MergeMany``, ``both`` or ``neither``, whichever is ahead somewhere; ``too few`` groups everywhere.
    ``behind_in`` names where MergeMany is, and how the hierarchy was mended there; ``most`` is the most groups.
    """
    comparisons = [
        ((*label, MENDINGS[mended]), interval(gap(condition, mended, size)))
        for label, condition in conditions(run).items()
        for mended in BESIDE
        for size in sizes_of(condition)
        if size >= FEWEST_STAGED
    ]
    sure = [(label, value) for label, value in comparisons if value.n >= FEWEST_FOR_INTERVAL]
    values = {"fewest": str(FEWEST_FOR_INTERVAL), "most": str(max((value.n for _, value in comparisons), default=0))}
    if not sure:
        return Facts(FEW, values)
    ahead, behind = ([label for label, value in sure if lies(value) == where] for where in (ABOVE, BELOW))
    values |= {
        "comparisons": str(len(sure)),
        "conditions": str(len({label[:-1] for label, _ in sure})),
        "ahead": str(len(ahead)),
        "ahead_in": listed(map(", ".join, ahead)) if ahead else "none",
        "behind": str(len(behind)),
        "behind_in": listed(map(", ".join, behind)) if behind else "none",
        "by_chance": decimal(ERRS * len(sure), 1),
    }
    names = {(True, True): "both", (True, False): "hierarchy", (False, True): "MergeMany", (False, False): "neither"}
    return Facts(names[bool(ahead), bool(behind)], values)


@reads("comparison")
def largest(run: str) -> Facts:
    """In how many conditions the hierarchy is behind in the mean at the largest number of models, by mending.

    Conditions in which both only guess do not count: ``none_of`` is of how many that is for merges as they are.
    Outcomes: behind in ``most`` of those that count under every mending, or ``not most``.
    """
    by_label = conditions(run)
    values, most = {}, True
    for mended in BESIDE:
        every = [(part, sizes_of(part)[-1]) for part in by_label.values()]
        counting = [part for part, size in every if not only_guess(part, mended, BESIDE[mended], size)]
        behind = sum(gap(part, mended, sizes_of(part)[-1]).mean() < -TIED for part in counting)
        name = mended.replace(" ", "_")
        values |= {name: str(behind), f"{name}_of": str(len(counting))}
        most &= behind > len(counting) / 2
    groups = [len(gap(part, "none", sizes_of(part)[-1])) for part in by_label.values()]
    values |= {"conditions": str(len(by_label)), "groups": spread(min(groups), max(groups))}
    return Facts("most" if most else "not most", values)


def only_guess(condition: pd.DataFrame, mended: str, many_mended: str, size: int) -> bool:
    """Whether neither the hierarchy nor MergeMany, each mended so, does much better than guessing."""
    both = percent(condition, "hierarchy", mended, size), percent(condition, "many", many_mended, size)
    return max(accuracy.mean() for accuracy in both) < GUESSING


@reads("comparison")
def growth(run: str) -> Facts:
    """Where the hierarchy is ahead and the gap grows with the number of models, as the paper says.

    Outcomes: ``for certain`` where at some doubling the gap and its growth have intervals above zero; else ``in the
    mean`` where the hierarchy is ahead in the mean, and by more with every doubling; ``guessing`` if both only guess in
    all of these; else ``nowhere``. ``growing`` counts those in the mean, over conditions and mendings, and
    ``growing_in`` names them with both accuracies.
    """
    by_label = conditions(run)
    certain, growing, guessing = 0, [], True
    for label, condition in by_label.items():
        for mended in BESIDE:
            certain += _grows_for_certain(condition, mended)
            if _grows(condition, mended):
                growing.append(f"{', '.join(label)} ({_accuracies(condition, mended)})")
                guessing &= only_guess(condition, mended, BESIDE[mended], sizes_of(condition)[-1])
    values = {
        "conditions": str(len(by_label)),
        "certain": str(certain),
        "growing": str(len(growing)),
        "growing_in": listed(growing) if growing else "none",
    }
    in_the_mean = "guessing" if guessing else "in the mean"
    return Facts("for certain" if certain else in_the_mean if growing else "nowhere", values)


def _grows(condition: pd.DataFrame, mended: str) -> bool:
    """Whether in the mean the hierarchy is ahead at the largest size, and by more than at each size before."""
    means = [gap(condition, mended, size).mean() for size in sizes_of(condition)]
    return len(means) > 1 and means[-1] > TIED and bool((np.diff(means) > TIED).all())


def _grows_for_certain(condition: pd.DataFrame, mended: str) -> bool:
    """Whether at some size the gap, and what it has grown by since half that size, lie wholly above zero."""
    return any(
        lies(interval(gap(condition, mended, size))) == ABOVE == lies(interval(gap_growth(condition, mended, size)))
        for size in sizes_of(condition)[1:]
    )


def _accuracies(condition: pd.DataFrame, mended: str) -> str:
    """At a condition's largest size, the accuracies that the gap lies between."""
    size = sizes_of(condition)[-1]
    hierarchy = decimal(percent(condition, "hierarchy", mended, size).mean(), 1)
    many = decimal(percent(condition, "many", BESIDE[mended], size).mean(), 1)
    return f"{MENDINGS[mended]}, {hierarchy} against {many} % at {size} models"


@reads("comparison")
def given_back(run: str) -> Facts:
    """The points of test accuracy that REPAIR gives back at the largest size of each condition.

    Outcomes: ``end`` or ``every stage``, whichever gives the hierarchy more in most conditions; ``nothing`` where, in
    the mean over conditions, REPAIR at the end gives nothing to the hierarchy or to MergeMany.
    """
    table = _given_back(run)
    more = int((table["hierarchy repair"] > table["many repair"]).sum())
    better = int((table["hierarchy repair every stage"] > table["hierarchy repair"]).sum())
    values = {"conditions": str(len(table)), "more": str(more), "better": str(better)}
    for algorithm, mended in MENDED:
        points_back = table[f"{algorithm} {mended}"]
        name = algorithm if mended == "repair" else "every_stage"
        values[name] = decimal(points_back.mean(), 1, signed=True)
        least, most = (decimal(value, 1, signed=True) for value in (points_back.min(), points_back.max()))
        values[f"{name}_range"] = f"{least} to {most}"
    if min(table["hierarchy repair"].mean(), table["many repair"].mean()) <= TIED:
        return Facts("nothing", values)
    return Facts("every stage" if better > len(table) / 2 else "end", values)


def _given_back(run: str) -> pd.DataFrame:
    """A row per condition at its largest size: points lost as merged, and the points that each mending adds."""
    rows = []
    for label, condition in conditions(run).items():
        size = sizes_of(condition)[-1]
        row = {"condition": ", ".join(label), "models": size}
        unmerged = percent(condition, "unmerged", "none", 1).mean()
        for algorithm, mended in MENDED:
            plain = percent(condition, algorithm, "none", size).mean()
            row[f"{algorithm} lost"] = unmerged - plain
            row[f"{algorithm} {mended}"] = percent(condition, algorithm, mended, size).mean() - plain
        rows.append(row)
    return pd.DataFrame(rows)


@reads("comparison")
def not_run(run: str) -> Facts:
    """How many conditions of the plan of preset ``gpu`` the run does not have: ``some`` or ``none``."""
    missing = len(_missing(run))
    return Facts("some" if missing else "none", {"missing": str(missing)})


@reads("comparison")
def not_run_table(run: str) -> pd.DataFrame:
    """The conditions of the plan of preset ``gpu`` that the run does not have."""
    rows = [condition_name(pd.Series(entry)) for entry in _missing(run)]
    return pd.DataFrame(rows, columns=["data and training", "network"])


def _missing(run: str) -> list[dict[str, object]]:
    """The snapshots of the plan of preset ``gpu`` that the plan of a run lacks, whatever the number of models."""
    wanted = _snapshots(load_preset("gpu")["comparison_recipes"])
    had = _snapshots(results.provenance(run, "comparison")["parameters"]["comparison_recipes"])
    return [entry for entry in wanted if entry not in had]


def _snapshots(plan: list[dict[str, object]]) -> list[dict[str, object]]:
    """An entry of a plan for each of its epochs, without what changes no network."""
    snapshots = []
    for entry in plan:
        recipe = {name: value for name, value in entry.items() if name not in ("models", "chunk")}
        for epochs in entry["epochs"]:
            snapshots.append({"architecture": DEFAULT_ARCHITECTURE} | recipe | {"epochs": epochs})
    return snapshots


@reads("comparison")
def counts_table(run: str) -> pd.DataFrame:
    """By mending and number of models, in how many conditions the hierarchy is ahead, and clearly so."""
    by_label = conditions(run)
    rows = []
    for mended in BESIDE:
        for size in sorted({size for condition in by_label.values() for size in sizes_of(condition)}):
            gaps = [interval(gap(part, mended, size)) for part in by_label.values() if size in sizes_of(part)]
            places = [lies(value) for value in gaps if value.n >= FEWEST_FOR_INTERVAL]
            rows.append(
                {
                    "mending": MENDINGS[mended],
                    "models": str(size),
                    "ahead in the mean": f"{sum(value.mean > TIED for value in gaps)} of {len(gaps)}",
                    "interval above zero": f"{places.count(ABOVE)} of {len(places)}" if places else "–",
                    "interval below zero": f"{places.count(BELOW)} of {len(places)}" if places else "–",
                }
            )
    return pd.DataFrame(rows)


@reads("comparison")
def gaps_table(run: str) -> pd.DataFrame:
    """A row per condition and number of models: accuracies in percent, gaps in points, starred if clear of zero."""
    rows = []
    for label, condition in conditions(run).items():
        unmerged = decimal(percent(condition, "unmerged", "none", 1).mean(), 1)
        for size in sizes_of(condition):
            row = {"condition": ", ".join(label), "models": str(size), "unmerged": unmerged}
            for mended, beside in BESIDE.items():
                value, title = interval(gap(condition, mended, size)), MENDINGS[mended]
                row[f"hierarchy, {title}"] = decimal(percent(condition, "hierarchy", mended, size).mean(), 1)
                if beside == mended:
                    row[f"MergeMany, {title}"] = decimal(percent(condition, "many", beside, size).mean(), 1)
                star = " *" if lies(value) in (ABOVE, BELOW) else ""
                row[f"gap, {title}"] = points(value, signed=True) + star
            rows.append(row | {"n": str(value.n)})
    return pd.DataFrame(rows)


@reads("comparison")
def repair_table(run: str) -> pd.DataFrame:
    """By condition, at its largest size: the points that merging loses and that REPAIR gives back."""
    table = _given_back(run)
    texts = {"condition": table["condition"], "models": table["models"].astype(str)}
    for algorithm in dict.fromkeys(algorithm for algorithm, _ in MENDED):
        title = ALGORITHMS[algorithm].title
        texts[f"{title}: lost"] = [decimal(value, 1) for value in table[f"{algorithm} lost"]]
        for mended in (mended for other, mended in MENDED if other == algorithm):
            back = [decimal(value, 1) for value in table[f"{algorithm} {mended}"]]
            texts[f"{title}: back {'at the end' if mended == 'repair' else 'at every stage'}"] = back
    return pd.DataFrame(texts)


@reads("comparison")
def gap_by_condition(run: str) -> Figure:
    """The gap at each condition's largest number of models, a row for each; intervals where there are enough groups."""
    by_label = dict(sorted(conditions(run).items(), key=lambda entry: largest_gap(entry[1], "none").mean))
    figure, axes = plt.subplots(figsize=(ON_PHONE, 1.0 + 0.62 * len(by_label)))
    axes.vlines(0, -1.3, -0.7, color=ink(), linewidth=1.5)
    for row, ((first, second), condition) in enumerate(by_label.items()):
        size = sizes_of(condition)[-1]
        for offset, (mended, drawn) in zip(offsets(len(STYLES), 0.24), STYLES.items(), strict=True):
            value = largest_gap(condition, mended)
            axes.errorbar(
                value.mean, row + 0.2 + offset, xerr=errors([value]), color=on_page(drawn.colour), marker=drawn.marker,
                elinewidth=1.2, capsize=2, linestyle="none", label=drawn.title,
            )  # fmt: skip
        axes.vlines(0, row - 0.08, row + 0.5, color=ink(), linewidth=1.5, zorder=1)
        # Above its marks, and not beside them: so the axis is as wide as the page.
        name = f"{first}, {second}; of {size}"
        axes.text(0, row - 0.28, name, transform=axes.get_yaxis_transform(), va="center")
        axes.axhline(row + 0.56, color=plt.rcParams["grid.color"], linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(by_label) - 0.4, -1.3)
    axes.spines["left"].set_visible(False)
    reach = 1.08 * max(map(abs, axes.get_xlim()))
    axes.set_xlim(-reach, max(reach / 3, axes.get_xlim()[1]))
    for words, place, side in (("← MergeMany ahead", -6, "right"), ("hierarchy ahead →", 6, "left")):
        axes.annotate(words, (0, -1), xytext=(place, 0), textcoords="offset points", ha=side, va="center")
    axes.set_xlabel("hierarchy minus MergeMany (points)")
    legend_below(figure, axes)
    return figure


def conditions(run: str) -> dict[tuple[str, str], pd.DataFrame]:
    """The test accuracies of each condition, in the plan's order, by its two lines of label.

    Conditions that would have the same label are told apart by all that differs between them.
    """
    nodes = results.read(run, "comparison", "nodes")
    accuracy = nodes[nodes["metric"] == "accuracy"]
    recipe = [column for column in accuracy if column not in MEASURED]
    alike: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for _, part in accuracy.groupby(recipe, sort=False):
        alike.setdefault(condition_name(part.iloc[0]), []).append(part)
    by_label = {}
    for (first, second), parts in alike.items():
        differing = [column for column in recipe if len({part[column].iloc[0] for part in parts}) > 1]
        for part in parts:
            differences = [f"{column} {part[column].iloc[0]}" for column in differing]
            by_label[first, ", ".join([second, *differences])] = part
    return by_label


def condition_name(recipe: pd.Series) -> tuple[str, str]:
    """The data and the training, and the network, in words."""
    architecture = ARCHITECTURES[recipe["architecture"]]
    norm = f", {architecture.norm}" if architecture.norm != "none" else ""
    epochs = f"{recipe['epochs']} epoch{'s' if recipe['epochs'] > 1 else ''}"
    return f"{DATASETS[recipe['dataset']]}, {epochs}", f"{architecture.title}{norm}, width {recipe['width']}"


def percent(condition: pd.DataFrame, algorithm: str, mended: str, size: int) -> np.ndarray:
    """Test accuracy of every node of one kind (nodes,), in percent."""
    kind = picked(condition, {"algorithm": algorithm, "mended": mended, "n_leaves": size})
    return 100 * kind.sort_values("node")["value"].to_numpy()


def gap(condition: pd.DataFrame, mended: str, size: int) -> np.ndarray:
    """The hierarchy minus MergeMany on each group of ``size`` leaves (groups,), in points, mended alike."""
    return percent(condition, "hierarchy", mended, size) - percent(condition, "many", BESIDE[mended], size)


def largest_gap(condition: pd.DataFrame, mended: str) -> Interval:
    """The mean gap at the largest number of leaves that a condition has merges of."""
    return interval(gap(condition, mended, sizes_of(condition)[-1]))


def gap_growth(condition: pd.DataFrame, mended: str, size: int) -> np.ndarray:
    """By how much the gap is larger at ``size`` leaves than at half as many, on the same leaves (groups,)."""
    return gap(condition, mended, size) - gap(condition, mended, size // 2).reshape(-1, 2).mean(1)


def sizes_of(condition: pd.DataFrame) -> list[int]:
    """The numbers of leaves that a condition has merges of."""
    return sorted(set(condition["n_leaves"].tolist()) - {1})


def lies(value: Interval) -> str:
    """``facts.outcome`` against zero, where a difference of the size of rounding is none."""
    return OPEN if value.low <= TIED and value.high >= -TIED else outcome(value)


def spread(least: int, most: int) -> str:
    """``1 to 4``, or ``1`` where they are the same."""
    return f"{least} to {most}" if least < most else str(most)
