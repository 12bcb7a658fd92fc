"""Sentences and tables of the book's chapters, made from results: no number in them is typed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import product

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import STEPS, load_preset
from lab.bookkeeping.vocabulary import INITIALS, LABELS
from lab.merges import ALGORITHMS
from lab.report.accuracy_figures import RECIPE, barriers, by_recipe, node_drops, sizes_of
from lab.report.claims import (
    FEWEST_FOR_VERDICT,
    NOT_REPLICATED,
    NOT_RUN,
    PARTLY,
    REPLICATED,
    Claim,
    Condition,
    contrast,
    decide,
)
from lab.report.page import runs
from lab.report.statistics import Interval, interval
from lab.report.words import decimal, nats, points, side
from rebasin.merging.many import merge_many

# What counts as a zero barrier in this book: points of accuracy, nats of loss.
ZERO = {"accuracy": 0.5, "loss": 0.02}
# Notebooks about the leaves that notebooks/train.ipynb trained.
READ_TRAINED = ("merge", "accuracy", "attack", "perturbations", "regularisation", "autoattack", "planted")
# The axes of the plan of recipes: a preset's parameter for each, and its values in words.
PLAN = {
    "condition_widths": "width {}",
    "condition_initials": "initial weights {}",
    "condition_epochs": "{} epochs",
    "condition_weight_decays": "weight decay {}",
}


def hierarchy_facts(run: str) -> dict[str, str]:
    """The findings of the hierarchy's chapter: one paragraph each, by name."""
    return {
        "hierarchy_finding": _hierarchy_finding(run),
        "drop_finding": _drop_finding(run),
        "path_finding": _path_finding(run),
        "rounds_note": _rounds_note(run),
    }


def _hierarchy_finding(run: str) -> str:
    claims = {claim.id: claim for claim in decide(run)}
    for claim, made in (("H3", "no nodes"), ("H2", "no MergeMany")):
        if not claims[claim].conditions:
            return f"<strong>Run {run} has {made} of eight leaves</strong>, on which the claims are decided."
    gap = claims["H2"].conditions[0]
    lost = claims["H3"].conditions[0].effect
    images = results.read(run, "accuracy", "images")
    tree, many = (interval(contrast(images, [_term(name, 8)], 8)) for name in ("tree", "merge_many"))
    made = results.provenance(run, "accuracy")
    network = f"{made['parameters']['architecture'].upper()}s of width {made['parameters']['width']}"
    evidence = (
        f"eight {network} trained on {made['dataset']['title']}, and merged into one, have a test accuracy of "
        f"{tree.mean:.1f} % by the hierarchy, {many.mean:.1f} % by MergeMany"
    )
    if gap.verdict == REPLICATED:
        opening = f"<strong>The hierarchy beats MergeMany</strong>, as the paper says: {evidence}"
    elif gap.verdict == NOT_REPLICATED:
        opening = f"<strong>MergeMany beats the hierarchy</strong>, against the paper's main claim: {evidence}"
    elif gap.effect.n < FEWEST_FOR_VERDICT:
        opening = (
            f"<strong>This run has too few networks to tell the hierarchy from MergeMany</strong> "
            f"(n = {gap.effect.n}, {FEWEST_FOR_VERDICT} are needed): {evidence}"
        )
    else:
        opening = f"<strong>The hierarchy and MergeMany cannot be told apart</strong>: {evidence}"
    return (
        f"{opening}, a gap of {points(gap.effect, signed=True)} points (n = {gap.effect.n}). The hierarchy's node lies "
        f"{points(lost)} points below the mean of its own eight networks (n = {lost.n})."
    )


def _drop_finding(run: str) -> str:
    nodes, images = (results.read(run, "accuracy", table) for table in ("nodes", "images"))
    made = {algorithm: sizes for algorithm in ALGORITHMS if (sizes := sizes_of(images, algorithm))}
    told = []
    # MergeMany may end before the others do: then all are told where it ends, too.
    for size in sorted({sizes[-1] for sizes in made.values()}, reverse=True):
        lost = {
            LABELS[algorithm]: interval(contrast(images, [_term("unmerged", 1), _term(algorithm, size, -1)], size))
            for algorithm, sizes in made.items()
            if size in sizes
        }
        each = ", ".join(f"{label} {points(drop)}" for label, drop in lost.items())
        told.append(f"by nodes of {size} leaves (n = {lost[LABELS['tree']].n}): {each}")
    opening = (
        "<strong>The more models, the higher the cost</strong>: in the mean, the hierarchy and MergeMany lose more "
        "accuracy with every doubling tried. "
        if _grows(nodes)
        else ""
    )
    return f"{opening}Points of test accuracy lost {'; '.join(told)}."


def _grows(nodes: pd.DataFrame) -> bool:
    """Whether the hierarchy and MergeMany, as far as each was run, lose more accuracy at every doubling."""
    for algorithm in ("tree", "merge_many"):
        lost = [node_drops(nodes, algorithm, n, "test", "accuracy").mean() for n in sizes_of(nodes, algorithm)]
        if not lost or [0.0, *lost] != sorted([0.0, *lost]):
            return False
    return True


def _path_finding(run: str) -> str:
    found = barriers(results.read(run, "accuracy", "paths"))
    pairs = found[(found["n_leaves"] == 2) & (found["split"] == "test")]

    def height(algorithm: str, metric: str) -> Interval:
        return interval(pairs[(pairs["algorithm"] == algorithm) & (pairs["metric"] == metric)]["barrier"].to_numpy())

    accuracy, loss = height("tree", "accuracy"), height("tree", "loss")
    both = (("accuracy", accuracy), ("loss", loss))
    states = {metric: state(value, ZERO[metric]) for metric, value in both}
    if any(value.mean >= height("naive", metric).mean for metric, value in both):
        opening = "Matching does not lower the barrier between two trained networks"
    elif set(states.values()) == {"gone"}:
        opening = "Matching removes the barrier between two trained networks"
    else:
        opening = (
            "Matching lowers the barrier between two trained networks: "
            f"in accuracy it is {states['accuracy']}, in loss {states['loss']}"
        )
    return (
        f"<strong>{opening}</strong>: {points(accuracy)} points of test accuracy are left of "
        f"{points(height('naive', 'accuracy'))}, and {nats(loss)} nats of test loss of "
        f"{nats(height('naive', 'loss'))} (n = {accuracy.n} pairs; zero means under {ZERO['accuracy']} points or "
        f"{ZERO['loss']} nats)."
    )


def _rounds_note(run: str) -> str:
    """How often MergeMany used up its rounds, so that it may not have been done."""
    if results.provenance(run, "merge") is None:
        return ""
    limit = inspect.signature(merge_many).parameters["max_rounds"].default
    table = results.read(run, "merge", "nodes")
    rounds = table[(table["algorithm"] == "merge_many") & (table["metric"] == "effort")]
    stopped = rounds[rounds["value"] >= limit].groupby("n_leaves").size()
    if not len(stopped):
        return "MergeMany always came to a round that shortened no distance."
    groups = rounds.groupby("n_leaves").size()
    told = ", ".join(f"{count} of {groups[size]} groups of {size} models" for size, count in stopped.items())
    return f"MergeMany used up its {limit} rounds, and may not have been done, in {told}."


def state(barrier: Interval, zero: float) -> str:
    """What the interval says of a barrier, given what counts as zero."""
    return side(barrier, zero, "still there", "gone", "not decided")


def accuracy_table(run: str) -> pd.DataFrame:
    """Test accuracy by number of leaves and algorithm, and the hierarchy's gap to MergeMany, as texts.

    A cell is empty where an algorithm was not run.
    """
    images = results.read(run, "accuracy", "images")
    made = {algorithm: sizes_of(images, algorithm) for algorithm in ALGORITHMS}
    rows = []
    for size in sorted(images["n_leaves"].unique()):
        if size == 1:
            alone = interval(contrast(images, [_term("unmerged", 1)], 1))
            rows.append({"models": size, LABELS["unmerged"]: points(alone), "n": alone.n})
            continue
        means = {
            LABELS[algorithm]: interval(contrast(images, [_term(algorithm, size)], size))
            for algorithm in ALGORITHMS
            if size in made[algorithm]
        }
        row = {"models": size, "n": means[LABELS["tree"]].n} | {label: points(mean) for label, mean in means.items()}
        if size in made["merge_many"]:
            gap = interval(contrast(images, [_term("tree", size), _term("merge_many", size, -1)], size))
            row["gap"] = points(gap, signed=True)
        rows.append(row)
    columns = ["models", LABELS["unmerged"], *(LABELS[a] for a in ALGORITHMS), "gap", "n"]
    return pd.DataFrame([{column: row.get(column, "") for column in columns} for row in rows])


def _term(algorithm: str, n_leaves: int, weight: int = 1) -> dict[str, object]:
    return {"algorithm": algorithm, "n_leaves": n_leaves, "weight": weight}


def verdict_table(run: str | None, ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Claims, verdicts and effects as texts: those with these ids, or all."""
    rows = []
    for claim in decide(run):
        if ids is not None and claim.id not in ids:
            continue
        effects = [
            f"{c.name}{' <small>(decisive)</small>' if c.decisive else ''}: {_effect(c)}, "
            f"to lie {c.side} {c.bound:g}, n = {c.effect.n}: <em>{c.verdict}</em>"
            for c in claim.conditions
        ]
        effects += [f"{name}: <em>not measured</em>" for name in claim.missing if claim.conditions]
        rows.append(
            {
                "": claim.id,
                "claim": f"{claim.claim} <small>({claim.source})</small>",
                "verdict": _verdict(claim),
                "effect": "<br>".join(effects) or f"<small>{claim.statistic}</small>",
            }
        )
    return pd.DataFrame(rows)


def _verdict(claim: Claim) -> str:
    """A claim's verdict, and how many of its conditions hold where it is replicated in part."""
    if claim.verdict == NOT_RUN:
        return claim.verdict
    hold = sum(condition.verdict == REPLICATED for condition in claim.conditions)
    part = f" <small>({hold} of {len(claim.conditions) + len(claim.missing)} conditions)</small>"
    return f"<strong>{claim.verdict}</strong>{part if claim.verdict == PARTLY else ''}"


def _effect(condition: Condition) -> str:
    """The effect of a condition with its unit."""
    if condition.unit == "nats":
        return f"{nats(condition.effect, signed=True)} nats"
    return f"{points(condition.effect, signed=True)} {condition.unit}"


def barrier_table(run: str) -> pd.DataFrame:
    """Barriers of pairs by both definitions, on both splits, in accuracy and loss, as texts."""
    found = barriers(results.read(run, "accuracy", "paths"))
    rows = []
    for (algorithm, size, split), group in found.groupby(["algorithm", "n_leaves", "split"]):
        row = {"path": "two leaves, as they are" if algorithm == "naive" else f"into a node of {size}", "split": split}
        for metric, unit in (("accuracy", "points"), ("loss", "nats")):
            one = group[group["metric"] == metric]
            for column, title in (("barrier", "from mean"), ("above_line", "above line")):
                value = interval(one[column].to_numpy())
                row[f"{metric}, {title} ({unit})"] = points(value) if metric == "accuracy" else nats(value)
        rows.append(row | {"n": len(group) // 2})
    return pd.DataFrame(rows)


def conditions_table(run: str) -> pd.DataFrame:
    """Test accuracy of eight-leaf nodes under every recipe, as they are and after REPAIR, as texts."""
    rows = []
    for (width, initial, epochs, weight_decay), row in _by_recipe(run).iterrows():
        text = {"width": width, "initial weights": INITIALS[initial], "epochs": epochs}
        text["weight decay"] = f"{weight_decay:g}"
        text["unmerged"] = f"{row['unmerged', False]:.1f}"
        for repaired in (False, True):
            after = " after REPAIR" if repaired else ""
            for algorithm in ("tree", "merge_many"):
                text[LABELS[algorithm] + after] = f"{row[algorithm, repaired]:.1f}"
            gap = row["tree", repaired] - row["merge_many", repaired]
            text["gap" + after] = decimal(gap, 1, signed=True)
        rows.append(text)
    return pd.DataFrame(rows)


def _by_recipe(run: str) -> pd.DataFrame:
    """Mean test accuracy in percent: a row per recipe, a column per (algorithm, repaired)."""
    table = results.read(run, "conditions", "conditions")
    accuracy = table[table["metric"] == "accuracy"]
    means = 100 * accuracy.pivot_table(index=RECIPE, columns=["algorithm", "repair"], values="value")
    return means.loc[[recipe for recipe, _ in by_recipe(accuracy)]]


def conditions_finding() -> str:
    """In how many recipes the hierarchy is ahead of MergeMany, with and without REPAIR."""
    if not runs("conditions"):
        return "Other recipes were not run yet."
    run = runs("conditions")[0]
    found = _by_recipe(run)
    gaps = {flag: found["tree", flag] - found["merge_many", flag] for flag in (False, True)}
    made = results.provenance(run, "conditions")
    trees = made["parameters"]["condition_models"] // 8
    opening = (
        f"As merged, the hierarchy is ahead of MergeMany under {_ahead(gaps[False])} recipes; "
        f"after REPAIR, under {_ahead(gaps[True])}"
    )
    spread = {
        flag: f"from {decimal(gap.min(), 1, signed=True)} to {decimal(gap.max(), 1, signed=True)}"
        for flag, gap in gaps.items()
    }
    return (
        f"<strong>{opening}.</strong> The gap at eight leaves lies {spread[False]} points as merged and {spread[True]} "
        f"after REPAIR (run {run}, {made['dataset']['title']}; means over {trees} tree{'s' if trees > 1 else ''} a "
        "recipe, without intervals)."
    )


def initial_finding() -> str:
    """What the hierarchy keeps from each kind of initial weights, over the other settings of the recipes."""
    if not runs("conditions"):
        return ""
    by_initial = dict(list(_by_recipe(runs("conditions")[0]).groupby(level="initial", sort=False)))
    if len(by_initial) < 2:
        return ""
    kept = {
        algorithm: ", ".join(
            f"{decimal(part[algorithm, False].min(), 1)} to {decimal(part[algorithm, False].max(), 1)} % from "
            f"{INITIALS[name]}"
            for name, part in by_initial.items()
        )
        for algorithm in ("unmerged", "tree")
    }
    return (
        f"Test accuracy over the other settings: of unmerged networks, {kept['unmerged']}; of the hierarchy of eight, "
        f"{kept['tree']}."
    )


def _ahead(gap: pd.Series) -> str:
    """Under how many recipes the gap is positive, by initial weights where they differ."""
    count = int((gap > 0).sum())
    if count in (0, len(gap)):
        return f"all {count}" if count else f"none of {len(gap)}"
    by_initial = {name: int((part > 0).sum()) for name, part in gap.groupby(level="initial", sort=False)}
    told = [f"{ahead} from {INITIALS[name]}" for name, ahead in by_initial.items()]
    return f"{count} of {len(gap)}" + (f" ({', '.join(told)})" if len(told) > 1 else "")


def conditions_missing() -> str:
    """Which recipes of the full plan, that of preset gpu, the run did not reach."""
    if not runs("conditions"):
        return ""
    run = runs("conditions")[0]
    plan = load_preset("gpu")
    axes = {axis: tuple(plan[axis]) for axis in PLAN}
    made = results.provenance(run, "conditions")
    if made["dataset"]["name"] != plan["dataset"]:
        return f"This run is a small one, on {made['dataset']['title']}."
    planned = set(product(*axes.values()))
    missing = planned - set(_by_recipe(run).index)
    if not missing:
        return "Every recipe of the plan was run."
    told = "; ".join(_in_words(missing, axes))
    return f"Planned and not run here ({len(missing)} of the plan's {len(planned)} recipes): {told or 'all'}."


def _in_words(recipes: Collection[tuple], axes: Mapping[str, tuple]) -> list[str]:
    """Recipes of a plan in few words: an axis is left out where all its values go with what is told."""
    if len(recipes) == math.prod(map(len, axes.values())):
        return [""]
    axis, *others = axes
    alike: dict[frozenset, list] = {}
    for value in axes[axis]:
        rest = frozenset(recipe[1:] for recipe in recipes if recipe[0] == value)
        alike.setdefault(rest, []).append(value)
    told = []
    for rest, values in alike.items():
        if not rest:
            continue
        names = [INITIALS[value] if axis == "condition_initials" else f"{value:g}" for value in values]
        own = PLAN[axis].format(" or ".join(names)) if len(values) < len(axes[axis]) else ""
        told += [", ".join(filter(None, (own, more))) for more in _in_words(rest, {a: axes[a] for a in others})]
    return told


def costs() -> pd.DataFrame:
    """What every table of the book cost to make, as texts."""
    rows = []
    for step in STEPS:
        for run in runs(step):
            made = results.provenance(run, step)
            hardware = made["hardware"]
            rows.append(
                {
                    "run": run,
                    "notebook": step,
                    # Those read the weights that train made; what they train besides is in their own time.
                    "training": "" if step in READ_TRAINED else f"{made['training_seconds'] / 60:.1f} min",
                    "notebook time": f"{made['wall_seconds'] / 60:.1f} min",
                    "memory": f"{made['peak_memory_gb']:.1f} GB",
                    "on": hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores",
                }
            )
    return pd.DataFrame(rows).sort_values("run", kind="stable") if rows else pd.DataFrame()
