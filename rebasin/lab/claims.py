"""From per-image correctness to verdicts, by the rules of book/claims.yml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rebasin.lab import results
from rebasin.lab.statistics import Interval, interval

FEWEST_FOR_VERDICT = 8
REPLICATED, NOT_REPLICATED, PARTLY = "replicated", "not replicated", "partly"
INCONCLUSIVE, NOT_RUN = "inconclusive", "not run yet"


@dataclass(frozen=True)
class Condition:
    """One condition of a claim: its effect in percentage points, the bound it is held against, and the verdict."""

    name: str
    effect: Interval
    above: float
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A claim of a paper with what this book says of it; no conditions where it was not run yet."""

    id: str
    paper: str
    source: str
    claim: str
    statistic: str
    conditions: tuple[Condition, ...]
    verdict: str


def stated_claims() -> list[dict[str, Any]]:
    """The claims as book/claims.yml states them."""
    return yaml.safe_load(results.CLAIMS.read_text())


def decide(run: str | None) -> list[Claim]:
    """Every claim with its verdict on a run; with None, for no run at all, every verdict is "not run yet".

    A condition that the run has no nodes for is left out.
    """
    images = None if run is None else results.read(run, "accuracy", "images")
    decided = []
    for stated in stated_claims():
        rules = stated.pop("conditions")
        conditions = tuple(
            _condition(rule["name"], rule["above"], interval(contrast(images, rule["contrast"], rule["block"])))
            for rule in rules
            if images is not None and all(_has_block(images, term, rule["block"]) for term in rule["contrast"])
        )
        decided.append(Claim(**stated, conditions=conditions, verdict=combine([c.verdict for c in conditions])))
    return decided


def _has_block(images: pd.DataFrame, term: dict[str, Any], block: int) -> bool:
    chosen = (images["algorithm"] == term["algorithm"]) & (images["n_leaves"] == term["n_leaves"])
    return int(chosen.sum()) * term["n_leaves"] >= block


def _condition(name: str, above: float, effect: Interval) -> Condition:
    return Condition(name, effect, above, judge(effect, above))


def judge(effect: Interval, above: float) -> str:
    """Whether the interval lies wholly above the bound, wholly below it, or neither; too few nodes decide nothing."""
    if effect.n < FEWEST_FOR_VERDICT:
        return INCONCLUSIVE
    if effect.low > above:
        return REPLICATED
    return NOT_REPLICATED if effect.high < above else INCONCLUSIVE


def combine(verdicts: Sequence[str]) -> str:
    """A claim holds if all its conditions do, in part if some do, and not at all if none does and one fails."""
    if not verdicts:
        return NOT_RUN
    if REPLICATED in verdicts:
        return REPLICATED if set(verdicts) == {REPLICATED} else PARTLY
    return NOT_REPLICATED if NOT_REPLICATED in verdicts else INCONCLUSIVE


def contrast(images: pd.DataFrame, terms: Sequence[dict[str, Any]], block: int) -> np.ndarray:
    """A weighted sum of accuracies over shared blocks of ``block`` leaves: (blocks, images), in percentage points.

    Each term names an algorithm, a number of leaves and a weight; its nodes within a block are averaged.
    Raises ValueError if there are no such nodes, or a node is larger than the block.
    """
    parts = []
    for term in terms:
        if block % term["n_leaves"]:
            raise ValueError(f"nodes of {term['n_leaves']} leaves do not fill blocks of {block}")
        parts.append(term["weight"] * _block_accuracy(images, term["algorithm"], term["n_leaves"], block))
    shared = min(len(part) for part in parts)
    return sum(part[:shared] for part in parts)


def _block_accuracy(images: pd.DataFrame, algorithm: str, n_leaves: int, block: int) -> np.ndarray:
    """Accuracy per block and image, in percent, of one algorithm's nodes of one size: (blocks, images)."""
    chosen = images[(images["algorithm"] == algorithm) & (images["n_leaves"] == n_leaves)].sort_values("node")
    if chosen["node"].tolist() != list(range(len(chosen))):
        raise ValueError(f"the {algorithm} nodes of {n_leaves} leaves are not numbered from 0 without a gap")
    per_block = block // n_leaves
    blocks = len(chosen) // per_block
    if not blocks:
        raise ValueError(f"no block of {block} leaves has all its {algorithm} nodes of {n_leaves} leaves")
    bits = np.stack([np.frombuffer(correct, np.uint8) for correct in chosen["correct"]])
    correct = np.unpackbits(bits, axis=1, count=int(chosen["images"].iloc[0]))
    return 100 * correct[: blocks * per_block].reshape(blocks, per_block, -1).mean(1)
