"""The claims of the papers beside what this book finds: verdicts as a reader sees them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

import pandas as pd

from lab.bookkeeping import results
from lab.report import page
from lab.report.claims import NOT_RUN, PARTLY, REPLICATED, TOO_FEW, Claim, Condition, decide, stated_claims
from lab.report.facts import Facts, outcome, reads
from lab.report.words import nats, points

# What counts as a zero barrier in this book: points of accuracy, nats of loss.
ZERO = {"accuracy": 0.5, "loss": 0.02}


def claim(run: str, name: str) -> Claim:
    """One claim with its verdict on a run."""
    (decided,) = decide(run, [name])
    return decided


def shown_claims(ids: Collection[str] | None = None) -> list[Claim]:
    """The claims with these ids, or all, each decided on the run that the book shows of its notebook."""
    measures = results.stated()["measures"]
    decided = []
    for stated in stated_claims():
        if ids is None or stated["id"] in ids:
            notebooks = [measures[rule["measure"]]["notebook"] for rule in stated["conditions"]]
            run = next((page.shown_run(notebook) for notebook in notebooks if page.runs(notebook)), None)
            decided += decide(run, [stated["id"]])
    return decided


@reads()
def tally() -> Facts:
    """How many claims the book has, ``all``, and how many have each verdict: ``replicated``, ``not_replicated``, ...

    The outcome is the most frequent verdict, the first of them in the order of the claims.
    """
    counts = Counter(decided.verdict for decided in shown_claims())
    values = {verdict.replace(" ", "_"): str(count) for verdict, count in counts.items()}
    return Facts(counts.most_common(1)[0][0], {"all": str(counts.total()), **values})


def claims_table(ids: Collection[str] | None = None) -> pd.DataFrame:
    """Claims, verdicts and effects as texts: those with these ids, or all."""
    rows = []
    for decided in shown_claims(ids):
        effects = [condition_text(condition) for condition in decided.conditions]
        effects += [f"{name}: <em>not measured</em>" for name in decided.missing if decided.conditions]
        rows.append(
            {
                "": decided.id,
                "claim": f"{formulas(decided.claim)} <small>({decided.source})</small>",
                "verdict": verdict_text(decided),
                "effect": "<br>".join(effects) or f"<small>{decided.statistic}</small>",
            }
        )
    return pd.DataFrame(rows)


def formulas(text: str) -> str:
    """A text with the formulas between its dollar signs set in HTML: a letter, and a power of one."""
    powers = re.sub(r"\$(\w+)\^(\w+)\$", r"\1<sup><em>\2</em></sup>", text)
    return re.sub(r"\$(\w+)\$", r"<em>\1</em>", powers)


def verdict_text(decided: Claim) -> str:
    """A claim's verdict, and how many of its conditions hold where it is replicated in part."""
    if decided.verdict == NOT_RUN:
        return decided.verdict
    hold = sum(condition.verdict == REPLICATED for condition in decided.conditions)
    part = f" <small>({hold} of {len(decided.conditions) + len(decided.missing)} conditions)</small>"
    return f"<strong>{decided.verdict}</strong>{part if decided.verdict == PARTLY else ''}"


def condition_text(condition: Condition) -> str:
    """A condition's effect beside its bound, and whether it holds; where ``n`` is too small, how many are needed."""
    decisive = " <small>(decisive)</small>" if condition.decisive else ""
    needed = f", {condition.needed} are needed" if condition.verdict == TOO_FEW else ""
    return (
        f"{condition.name}{decisive}: {effect_text(condition)}, to lie {condition.side} {condition.bound:g}, "
        f"n = {condition.effect.n}: <em>{condition.verdict}</em>{needed}"
    )


def effect_text(condition: Condition) -> str:
    """The effect of a condition with its unit."""
    if condition.unit == "nats":
        return f"{nats(condition.effect, signed=True)} nats"
    return f"{points(condition.effect, signed=True)} {condition.unit}"


def gaps(decided: Claim, conditions: Mapping[str, str]) -> Facts:
    """The effects of a claim's conditions, ``conditions`` by the name of their value, and ``n``.

    The outcome says where they lie, beside their bounds: ``below``, or where they differ ``below, open``; or ``not
    measured`` if the run lacks one of them.
    """
    measured = {name: decided.condition(condition) for name, condition in conditions.items()}
    if None in measured.values():
        return Facts("not measured", {})
    sides = [outcome(condition.effect, condition.bound) for condition in measured.values()]
    values = {name: points(condition.effect, signed=True) for name, condition in measured.items()}
    values["n"] = str(min(condition.effect.n for condition in measured.values()))
    return Facts(sides[0] if len(set(sides)) == 1 else ", ".join(sides), values)
