"""From measurements to verdicts, by the rules of book/claims.yml."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.report.statistics import Interval, interval, less_in_percent, p_value, share_interval, share_p_value

FEWEST_FOR_VERDICT = 8
REPLICATED, NOT_REPLICATED, PARTLY = "replicated", "not replicated", "partly"
INCONCLUSIVE, TOO_FEW, NOT_RUN = "inconclusive", "too few", "not run yet"


@dataclass(frozen=True)
class Condition:
    """One condition of a claim: its effect in ``unit``, the bound that it must lie above or below, and the verdict.

    ``p`` is the two-sided p of the effect being the bound, NaN where there are too few nodes or nothing was sampled.
    ``id`` is what code knows it by, ``name`` what a reader sees. A claim whose ``decisive`` condition fails is not
    replicated, whatever its others say. ``needed`` is the fewest nodes with which the condition can hold. The effect is
    a ``difference`` if it compares several values, and a level if it is of one.
    """

    id: str
    name: str
    effect: Interval
    unit: str
    side: str  # above or below
    bound: float
    decisive: bool
    needed: int
    difference: bool
    verdict: str
    p: float = math.nan


@dataclass(frozen=True)
class Claim:
    """A claim of a paper with what this book says of it.

    ``reported`` is the number that the paper has for it, as far as we know; ``missing`` are conditions that were not
    measured. Of a claim that is ``ours`` the paper says nothing: it is a question of this book.
    """

    id: str
    paper: str
    source: str
    claim: str
    reported: str
    statistic: str
    conditions: tuple[Condition, ...]
    missing: tuple[str, ...]
    verdict: str
    ours: bool = False

    def condition(self, name: str) -> Condition | None:
        """The condition with this id; None if it was not measured."""
        return next((condition for condition in self.conditions if condition.id == name), None)


def stated_claims() -> list[dict[str, Any]]:
    """The claims as book/claims.yml states them."""
    return results.stated()["claims"]


def decide(run: str | None, ids: Collection[str] | None = None, rules: str = "claims") -> list[Claim]:
    """The claims with these ids, or all, with their verdicts on a run; with None, for no run, each is "not run yet".

    ``rules`` are those of book/claims.yml that decide: ``claims``, or ``again`` for those of many more networks. A
    condition that the run did not measure decides nothing: with others it leaves a claim replicated in part at most.
    Of several snapshots of a node the last one counts where a rule names no epochs.
    """
    decided = []
    book = results.stated()  # once: reading YAML is slow
    read = cache(partial(results.read, run))  # nor is any table read for each of its rules
    for stated in book[rules]:
        if ids is not None and stated["id"] not in ids:
            continue
        each = stated.pop("conditions")
        found = [
            None if run is None else _condition(run, rule, book["measures"][rule["measure"]], read) for rule in each
        ]
        conditions = tuple(condition for condition in found if condition is not None)
        missing = tuple(rule["name"] for rule, condition in zip(each, found, strict=True) if condition is None)
        verdicts = [c.verdict for c in conditions] + [INCONCLUSIVE] * (len(missing) if conditions else 0)
        verdict = combine(verdicts, [c.decisive for c in conditions] + [False] * (len(verdicts) - len(conditions)))
        decided.append(Claim(**stated, conditions=conditions, missing=missing, verdict=verdict))
    return decided


def _condition(
    run: str, rule: dict[str, Any], measure: dict[str, Any], read: Callable[[str, str], pd.DataFrame]
) -> Condition | None:
    """A rule about a measure applied to a run, whose tables ``read`` gives; None if it lacks these measurements."""
    if not results.is_shown(run, measure["notebook"]):
        return None
    measured = read(measure["notebook"], measure["table"])
    where = dict(rule.get("where", {}))
    if "epsilon" in rule:
        where["epsilon"] = rule["epsilon"]
    if "block" in rule and measure["unit"] == "%":
        where["metric"] = measure.get("metric", rule["measure"])
    measured = picked(measured, where)
    if "block" in rule:
        if not _shared_blocks(measured, rule["contrast"], rule["block"]):
            return None
        values = contrast(measured, rule["contrast"], rule["block"])
    else:
        if not any("epochs" in named for named in (where, *rule["contrast"])):
            measured = last_snapshots(measured)
        values = contrast_of_nodes(measured, rule["contrast"], measure["unit"])
        if not len(values):
            return None
    side = "above" if "above" in rule else "below"
    bound, needed = rule[side], FEWEST_FOR_VERDICT
    if measure.get("exact"):
        effect, needed, p = Interval(*[float(values.mean())] * 3, len(values)), 1, math.nan
    elif measure.get("share"):
        effect, needed = share_of_nodes(values), fewest_for_share(side, bound)
        p = share_p_value(int((values == 100).sum()), len(values), bound / 100)
    else:
        # What counts in percent is a logarithm still.
        effect, p = interval(values), p_value(values, -math.log1p(-bound / 100) if measure["unit"] == "%" else bound)
    if measure["unit"] == "%":
        effect = less_in_percent(effect)
    verdict, decisive = judge(effect, side, bound, needed), rule.get("decisive", False)
    unit, difference = "%" if measure.get("share") else measure["unit"], len(rule["contrast"]) > 1
    return Condition(rule["id"], rule["name"], effect, unit, side, bound, decisive, needed, difference, verdict, p)


def share_of_nodes(values: np.ndarray) -> Interval:
    """The share of nodes that have 100 where the others have 0 (n,), in percentage points with its exact interval.

    Raises ValueError for other values: those are no shares.
    """
    if not np.isin(values, (0, 100)).all():
        raise ValueError(f"a share is of nodes that have 0 or 100: got {sorted(set(values.tolist()))}")
    share = share_interval(int((values == 100).sum()), len(values))
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n)


def fewest_for_share(side: str, bound: float) -> int:
    """Of how many nodes all must agree for the exact interval of their share to lie beyond ``bound`` points."""
    agreeing = bound / 100 if side == "above" else 1 - bound / 100
    return max(FEWEST_FOR_VERDICT, math.floor(math.log(0.025) / math.log(agreeing)) + 1)


def judge(effect: Interval, side: str, bound: float, needed: int = FEWEST_FOR_VERDICT) -> str:
    """Whether the interval lies wholly on this side of the bound, wholly on the other, or neither.

    Neither is inconclusive, or too few nodes where ``needed`` are; and fewer than eight decide nothing, unless fewer
    are needed.
    """
    if effect.n < min(needed, FEWEST_FOR_VERDICT):
        return TOO_FEW
    sides = {"above": effect.low > bound, "below": effect.high < bound}
    if sides.pop(side):
        return REPLICATED
    if any(sides.values()):
        return NOT_REPLICATED
    return TOO_FEW if effect.n < needed else INCONCLUSIVE


def combine(verdicts: Sequence[str], decisive: Sequence[bool]) -> str:
    """A claim holds if all its conditions do, in part if some do, and not at all if none does and one fails.

    Nor does it hold if a decisive condition fails. What is open is too few where all its conditions are.
    """
    if not verdicts:
        return NOT_RUN
    if NOT_REPLICATED in [verdict for verdict, decides in zip(verdicts, decisive, strict=True) if decides]:
        return NOT_REPLICATED
    if REPLICATED in verdicts:
        return REPLICATED if set(verdicts) == {REPLICATED} else PARTLY
    if NOT_REPLICATED in verdicts:
        return NOT_REPLICATED
    return TOO_FEW if set(verdicts) == {TOO_FEW} else INCONCLUSIVE


def picked(measured: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a table whose columns have these values."""
    for column, value in where.items():
        measured = measured[measured[column] == value]
    return measured


def last_snapshots(measured: pd.DataFrame) -> pd.DataFrame:
    """Of networks that were measured at several epochs, the rows of the last, recipe by recipe and width by width."""
    kind = [column for column in ("recipe", "width") if column in measured]
    if "epochs" not in measured or not kind or not len(measured):
        return measured
    return measured[measured["epochs"] == measured.groupby(kind)["epochs"].transform("max")]


def contrast_of_nodes(measured: pd.DataFrame, terms: Sequence[dict[str, Any]], unit: str) -> np.ndarray:
    """A weighted sum of values for each node (n,) that has one for every term, in ``unit``.

    Each term says which values of which columns it is about. A value counts as it is, a share in percentage points, and
    where the unit is % as its logarithm. Raises ValueError if a node has several values for a term.
    """
    scale = {"points": lambda value: 100 * value, "%": np.log}.get(unit, lambda value: value)
    parts = []
    for term in terms:
        rows = picked(measured, {column: value for column, value in term.items() if column != "weight"})
        if rows["node"].duplicated().any():
            raise ValueError(f"a node has several values for {term}: they differ in a column that no rule names")
        parts.append(term["weight"] * scale(rows.set_index("node")["value"].astype(float)))
    return pd.concat(parts, axis=1, join="inner").sum(axis=1).to_numpy()


def contrast(measured: pd.DataFrame, terms: Sequence[dict[str, Any]], block: int) -> np.ndarray:
    """A weighted sum of measurements over shared blocks of ``block`` leaves: (blocks, images).

    Each term names an algorithm, a number of leaves and a weight; the nodes measured in a block are averaged. What is
    measured image by image counts in percentage points, over the images that all terms have, which are the first ones;
    what is measured once per node, (blocks, 1), as its logarithm. Raises ValueError if no block has nodes of all terms,
    or a node is larger than the block.
    """
    shared = _shared_blocks(measured, terms, block)
    if not shared:
        told = ", ".join(f"{term['algorithm']} of {term['n_leaves']}" for term in terms)
        raise ValueError(f"no block of {block} leaves has the nodes of all terms: {told}")
    parts = []
    for term in terms:
        nodes = _nodes(measured, term, block)
        means = [np.mean([_values(row) for row in nodes[number].itertuples()], axis=0) for number in shared]
        parts.append(term["weight"] * np.stack(means))
    images = min(part.shape[1] for part in parts)
    return sum(part[:, :images] for part in parts)


def _shared_blocks(measured: pd.DataFrame, terms: Sequence[dict[str, Any]], block: int) -> list[int]:
    """The blocks in which every term has as many nodes as in any block."""
    whole = []
    for term in terms:
        nodes = _nodes(measured, term, block)
        most = max(map(len, nodes.values()), default=0)
        whole.append({number for number, rows in nodes.items() if len(rows) == most})
    return sorted(set.intersection(*whole))


def _nodes(measured: pd.DataFrame, term: dict[str, Any], block: int) -> dict[int, pd.DataFrame]:
    """The rows of a term's nodes by the block that they lie in."""
    if block % term["n_leaves"]:
        raise ValueError(f"nodes of {term['n_leaves']} leaves do not fill blocks of {block}")
    chosen = measured[(measured["algorithm"] == term["algorithm"]) & (measured["n_leaves"] == term["n_leaves"])]
    return dict(list(chosen.groupby(chosen["node"] * term["n_leaves"] // block)))


def _values(row: Any) -> np.ndarray:
    """What one row of a table holds for each image, in percent; the logarithm of what it holds for the node."""
    if hasattr(row, "value"):
        return np.array([np.log(row.value)])
    counts = np.frombuffer(row.correct, np.uint8)
    if hasattr(row, "out_of"):
        return 100.0 * counts / row.out_of
    return 100.0 * np.unpackbits(counts, count=row.images)
