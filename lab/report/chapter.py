"""What older chapters share: the table of verdicts, the state of a barrier, and what the tables cost."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import STEPS
from lab.report.claims import NOT_RUN, PARTLY, REPLICATED, Claim, Condition, decide
from lab.report.page import runs
from lab.report.statistics import Interval
from lab.report.words import nats, points, side

# What counts as a zero barrier in this book: points of accuracy, nats of loss.
ZERO = {"accuracy": 0.5, "loss": 0.02}
# Notebooks about the leaves that notebooks/train.ipynb trained.
READ_TRAINED = ("merge", "accuracy", "attack", "perturbations", "regularisation", "autoattack", "planted")


def state(barrier: Interval, zero: float) -> str:
    """What the interval says of a barrier, given what counts as zero."""
    return side(barrier, zero, "still there", "gone", "not decided")


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
