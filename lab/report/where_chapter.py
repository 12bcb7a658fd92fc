"""What the chapter on where the hierarchy wins says: its sentences and tables, made from the table ``nodes``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset
from lab.report.page import runs
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.where_figures import CONDITION, GAPS, conditions, gap, growth, name_of, percent, sizes_of
from lab.report.words import decimal, points
from lab.training.plan import read_plan

TIED = 1e-9  # points: what is less is the rounding of a difference of sums
FEWEST_STAGED = 4  # models: with two, the hierarchy has one stage, and merges a pair as MergeMany does


def where_finding() -> str:
    """In how many comparisons the hierarchy is ahead of MergeMany beyond chance, and behind, as merged and mended."""
    if not runs("where"):
        return "Not run yet."
    run = runs("where")[0]
    found = _found(run)
    gaps = {kind: [bound for size, bound in _gaps(found, kind) if size >= FEWEST_STAGED] for kind in GAPS}
    most = max((bound.n for bound in gaps["as merged"]), default=0)
    if most < FEWEST_FOR_INTERVAL:
        return (
            f"<strong>Run {run} has too few networks to tell the hierarchy from MergeMany</strong>: {most} groups of "
            f"{FEWEST_STAGED} or more at most of one recipe, {FEWEST_FOR_INTERVAL} are needed."
        )
    tallies = [_tally(bounds) for bounds in gaps.values()]
    ahead, behind = ([tally[which] or "none" for tally in tallies] for which in (1, 2))
    last = {kind: [gap(one, kind, sizes_of(one)[-1]) for one in found.values()] for kind in GAPS}
    outdone = [sum(each.mean() < -TIED for each in of_kind) or "none" for of_kind in last.values()]
    fewest, most = (pick(len(each) for each in last["as merged"]) for pick in (min, max))
    groups = f"{fewest} to {most} groups" if fewest < most else f"{most} group{'s' if most > 1 else ''}"
    return (
        f"<strong>From {FEWEST_STAGED} models on, the hierarchy is ahead of MergeMany with a 95 % interval above zero "
        f"in {ahead[0]} of {tallies[0][-1]} comparisons as merged</strong>, in {ahead[1]} after REPAIR at the end, in "
        f"{ahead[2]} with REPAIR at every stage; MergeMany in {behind[0]}, {behind[1]} and {behind[2]}. A comparison "
        f"is one condition at one number of models, with {FEWEST_FOR_INTERVAL} groups of networks or more; at two "
        "models, where both merge one pair, there is nothing to tell. At the largest number of models of each of "
        f"{len(found)} conditions ({groups}) the hierarchy is behind in the mean in {outdone[0]}, {outdone[1]} and "
        f"{outdone[2]} of them (run {run})."
    )


def growth_finding() -> str:
    """Where the hierarchy is ahead and the gap grows with the number of models, as merged and mended."""
    if not runs("where"):
        return ""
    found = _found(runs("where")[0])
    told, certain = [], []
    for kind in GAPS:
        growing = [_growing(label, condition, kind) for label, condition in found.items() if _grows(condition, kind)]
        told.append(f"in {len(growing) or 'none'}" + (f" ({'; '.join(growing)})" if growing else ""))
        certain.append(str(sum(_grows_for_certain(condition, kind) for condition in found.values()) or "none"))
    return (
        f"<strong>Of the {len(found)} conditions, the hierarchy is ahead, and by more with every doubling of the "
        f"models, {told[0]} as merged</strong>, {told[1]} after REPAIR at the end, {told[2]} with REPAIR at every "
        f"stage; of ten classes, chance is 10 %. At one doubling or more the intervals of both lie above zero in "
        f"{certain[0]}, {certain[1]} and {certain[2]}."
    )


def _growing(label: tuple[str, str], condition: pd.DataFrame, kind: str) -> str:
    """A condition's name, and at its largest size the accuracies in percent that the gap lies between."""
    size = sizes_of(condition)[-1]
    tree, many = (
        decimal(percent(condition, algorithm, mended, size).mean(), 1)
        for algorithm, mended in zip(("tree", "merge_many"), GAPS[kind], strict=True)
    )
    n = len(gap(condition, kind, size))
    return f"{', '.join(label)}: {tree} against {many} % at {size} models, n = {n}"


def _grows(condition: pd.DataFrame, kind: str) -> bool:
    """Whether in the mean the hierarchy is ahead at the largest size, and by more than at each size before."""
    means = [gap(condition, kind, size).mean() for size in sizes_of(condition)]
    return len(means) > 1 and means[-1] > TIED and bool((np.diff(means) > TIED).all())


def _grows_for_certain(condition: pd.DataFrame, kind: str) -> bool:
    """Whether at some size the gap, and what it has grown by since half that size, lie wholly above zero."""
    return any(
        interval(gap(condition, kind, size)).low > TIED and interval(growth(condition, kind, size)).low > TIED
        for size in sizes_of(condition)[1:]
    )


def repair_finding() -> str:
    """What REPAIR gives back to the hierarchy and to MergeMany at the largest size of each condition."""
    if not runs("where"):
        return ""
    table = _given_back(runs("where")[0])
    more = int((table["tree end"] > table["merge_many end"]).sum())
    better = int((table["tree every stage"] > table["tree end"]).sum())
    spread = {
        name: f"{decimal(table[name].mean(), 1, signed=True)} points "
        f"({decimal(table[name].min(), 1, signed=True)} to {decimal(table[name].max(), 1, signed=True)})"
        for name in ("tree end", "tree every stage", "merge_many end", "naive end")
    }
    return (
        f"<strong>REPAIR at the end gives more back to the hierarchy than to MergeMany in {more or 'none'} of "
        f"{len(table)} conditions</strong>, at the largest size of each: in the mean over conditions, and from the "
        f"least to the most, {spread['tree end']} to the hierarchy, {spread['merge_many end']} to MergeMany, and "
        f"{spread['naive end']} to the naive average. At every stage it gives the hierarchy "
        f"{spread['tree every stage']}, more than at the end in {better or 'none'} of {len(table)}."
    )


def repair_table(run: str) -> pd.DataFrame:
    """By condition, at its largest size: the points that merging loses and that REPAIR gives back, as texts."""
    names = {
        "tree lost": "hierarchy: lost", "tree end": "back at the end", "tree every stage": "back, every stage",
        "merge_many lost": "MergeMany: lost", "merge_many end": "back at the end ",
        "naive lost": "naive average: lost", "naive end": "back at the end  ",
    }  # fmt: skip
    table = _given_back(run)
    texts = {title: [decimal(value, 1) for value in table[name]] for name, title in names.items()}
    return pd.DataFrame({"condition": table["condition"], "models": table["models"], **texts})


def _given_back(run: str) -> pd.DataFrame:
    """A row per condition at its largest size: points lost as merged, and the points that each mending adds."""
    rows = []
    for label, condition in _found(run).items():
        size = sizes_of(condition)[-1]
        row = {"condition": "<br>".join(label).replace(" ", "&nbsp;"), "models": size}
        unmerged = percent(condition, "unmerged", "none", 1).mean()
        for algorithm, mended in (("tree", "end"), ("tree", "every stage"), ("merge_many", "end"), ("naive", "end")):
            plain = percent(condition, algorithm, "none", size).mean()
            row[f"{algorithm} lost"] = unmerged - plain
            row[f"{algorithm} {mended}"] = percent(condition, algorithm, mended, size).mean() - plain
        rows.append(row)
    return pd.DataFrame(rows)


def counts_table(run: str) -> pd.DataFrame:
    """By mending and number of leaves, in how many conditions the hierarchy is ahead, and by what interval."""
    rows = []
    for kind in GAPS:
        by_size: dict[int, list[Interval]] = {}
        for size, bound in _gaps(_found(run), kind):
            by_size.setdefault(size, []).append(bound)
        for size, bounds in sorted(by_size.items()):
            mean, ahead, behind, sure = _tally(bounds)
            rows.append(
                {
                    "": kind,
                    "models": size,
                    "ahead in the mean": f"{mean} of {len(bounds)}",
                    "interval above zero": f"{ahead} of {sure}" if sure else "–",
                    "interval below zero": f"{behind} of {sure}" if sure else "–",
                }
            )
    return pd.DataFrame(rows)


def gaps_table(run: str) -> pd.DataFrame:
    """A row per condition and size: accuracy in percent and gaps in points, bold where beyond chance, as texts."""
    rows = []
    for label, condition in _found(run).items():
        for size in sizes_of(condition):
            told = "<br>".join(label).replace(" ", "&nbsp;") if size == sizes_of(condition)[0] else ""
            row = {"condition": told, "models": size}
            row["unmerged"] = decimal(percent(condition, "unmerged", "none", 1).mean(), 1)
            for kind, (tree, many) in GAPS.items():
                bound = interval(gap(condition, kind, size))
                text = points(bound, signed=True)
                row[f"hierarchy, {kind}"] = decimal(percent(condition, "tree", tree, size).mean(), 1)
                if kind != "REPAIR at every stage":  # MergeMany has no stages: it is the one before
                    row[f"MergeMany, {kind}"] = decimal(percent(condition, "merge_many", many, size).mean(), 1)
                row[f"gap, {kind}"] = f"<strong>{text}</strong>" if bound.low > TIED or bound.high < -TIED else text
            rows.append(row | {"n": bound.n})
    return pd.DataFrame(rows)


def missing(run: str) -> str:
    """Which conditions of the plans a run does not have, and what command runs them."""
    nodes = results.read(run, "where", "nodes")
    made = set(nodes[CONDITION].drop_duplicates().itertuples(index=False, name=None))
    told = []
    for preset in ("cpu", "gpu"):
        lacking = []
        for planned in read_plan(load_preset(preset)["where_recipes"]):
            for row in [pd.Series(planned.columns(epochs)) for epochs in planned.epochs]:
                if tuple(row[CONDITION]) not in made:
                    made.add(tuple(row[CONDITION]))
                    lacking.append(", ".join(name_of(row)))
        if lacking:
            command = f"<code>.venv/bin/python -m lab.bookkeeping.pipeline {preset} where</code>"
            told.append(f"{'; '.join(lacking)} ({command})")
    return f"Not run in run {run}: {'; '.join(told)}." if told else ""


def _found(run: str) -> dict[tuple[str, str], pd.DataFrame]:
    return conditions(results.read(run, "where", "nodes"))


def _gaps(found: dict[tuple[str, str], pd.DataFrame], kind: str) -> Iterator[tuple[int, Interval]]:
    """The number of leaves and the gap of every comparison."""
    return ((size, interval(gap(one, kind, size))) for one in found.values() for size in sizes_of(one))


def _tally(gaps: Sequence[Interval]) -> tuple[int, int, int, int]:
    """How many gaps are above zero in the mean, wholly above, wholly below, and have an interval at all."""
    sure = [gap for gap in gaps if gap.n >= FEWEST_FOR_INTERVAL]
    mean = sum(gap.mean > TIED for gap in gaps)
    return mean, sum(gap.low > TIED for gap in sure), sum(gap.high < -TIED for gap in sure), len(sure)
