"""The claims as HTML: each with its verdict, and what was measured of it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Mapping

import pandas as pd

from lab.report.claims import INCONCLUSIVE, NOT_REPLICATED, NOT_RUN, PARTLY, REPLICATED, TOO_FEW, Claim, Condition
from lab.report.tables import csv_link, with_half_width
from lab.report.verdicts import corrected_p, shown_claims
from lab.report.words import nats, points

# The verdicts from the best to none, each with a sign for those who see no colours.
SIGNS = {REPLICATED: "✓", PARTLY: "◐", NOT_REPLICATED: "✗", INCONCLUSIVE: "?", TOO_FEW: "?", NOT_RUN: "…"}
SPACE = "\N{NO-BREAK SPACE}"
HEAD = "".join(f'<th scope="col">{title}</th>' for title in ("claim", "verdict", "measured, and what it must be"))


def claims_table(ids: Collection[str] | None = None, rules: str = "claims") -> str:
    """The claims with these ids; all, which a script lets a reader choose from by paper and verdict, without.

    ``rules`` are those of book/claims.yml that decide: ``claims``, or ``again``. On a phone each claim is a card.
    """
    every = shown_claims(None, rules)
    claims, corrected = [claim for claim in every if ids is None or claim.id in ids], corrected_p(every)
    filtered = " data-filtered" if ids is None else ""
    name = "-".join([rules, *(ids or ())])
    return (
        f'<div class="claims full-width"{filtered}><table class="table"><thead><tr>{HEAD}</tr></thead>'
        f"<tbody>{''.join(_row(claim, corrected) for claim in claims)}</tbody></table></div>"
        f"{csv_link(claims_frame(claims, corrected), name)}"
    )


def claims_frame(claims: Collection[Claim], corrected: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """The claims for machines: a row for each condition, also of those that were not measured.

    ``corrected`` is what ``corrected_p`` gives.
    """
    rows = []
    for claim in claims:
        stated = {"claim": claim.id, "paper": claim.paper, "says": claim.claim, "reported": claim.reported}
        stated["verdict"] = claim.verdict
        for condition in claim.conditions:
            effect = condition.effect
            ends = {"effect": effect.mean, "low": effect.low, "high": effect.high}
            rows.append(
                stated
                | {"condition": condition.name}
                | {name: _number(value) for name, value in ends.items()}
                | {"unit": condition.unit, "must lie": f"{condition.side} {condition.bound:g}", "n": str(effect.n)}
                | {"p, corrected": _number(corrected[claim.id, condition.id])}
                | {"condition's verdict": condition.verdict}
            )
        rows += [stated | {"condition": name, "condition's verdict": "not measured"} for name in claim.missing]
    return pd.DataFrame(rows).fillna("")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def kind(verdict: str) -> str:
    """The class that gives a verdict its colour."""
    return "is-" + verdict.replace(" ", "-")


def sign(verdict: str) -> str:
    """The sign of a verdict, for those who see no colours."""
    return SIGNS.get(verdict, "?")


def _row(claim: Claim, corrected: Mapping[tuple[str, str], float]) -> str:
    measured = f"<small>{claim.statistic}</small>"
    if claim.conditions:
        missing = [f"<li><span>{name}</span> <em>not measured</em></li>" for name in map(html.escape, claim.missing)]
        found = [_condition(condition, corrected[claim.id, condition.id]) for condition in claim.conditions]
        measured = f'<ul class="conditions">{"".join([*found, *missing])}</ul>'
    return (
        f'<tr data-paper="{html.escape(claim.paper)}" data-verdict="{claim.verdict}">'
        f'<td><span class="claim-id">{claim.id}</span> {formulas(claim.claim)} <small>({claim.source})</small>'
        f'<small class="reported">In the paper: {html.escape(claim.reported, quote=False)}</small></td>'
        f"<td>{verdict_text(claim)}</td><td>{measured}</td></tr>"
    )


def formulas(text: str) -> str:
    """A text with the formulas between its dollar signs set in HTML: a letter, and a power of one."""
    powers = re.sub(r"\$(\w+)\^(\w+)\$", r"\1<sup><em>\2</em></sup>", text)
    return re.sub(r"\$(\w+)\$", r"<em>\1</em>", powers)


def verdict_text(claim: Claim) -> str:
    """A claim's verdict, and how many of its conditions hold where it is replicated in part."""
    hold = sum(condition.verdict == REPLICATED for condition in claim.conditions)
    part = f" <small>({hold} of {len(claim.conditions) + len(claim.missing)} conditions)</small>"
    return f"{signed(claim.verdict)}{part if claim.verdict == PARTLY else ''}"


def signed(verdict: str) -> str:
    """A verdict with its sign, in its colour."""
    return f'<strong class="verdict {kind(verdict)}">{sign(verdict)} {verdict}</strong>'


def _condition(condition: Condition, p: float) -> str:
    """A condition's effect beside its bound, and whether it holds; where ``n`` is too small, how many are needed.

    ``p`` is the corrected one.
    """
    decisive = " <small>(decisive)</small>" if condition.decisive else ""
    needed = f", {condition.needed} are needed" if condition.verdict == TOO_FEW else p_text(p)
    bound = f"{condition.side} {condition.bound:g}".replace("-", "−")
    return (
        f'<li><span>{condition.name}{decisive}</span> <span class="effect">{effect_text(condition)}</span> '
        f"<small>{bound}, n = {condition.effect.n}{needed}</small> "
        f"{signed(condition.verdict)}</li>"
    )


def p_text(p: float) -> str:
    """A corrected p as it stands behind n: nothing where there is none."""
    if math.isnan(p):
        return ""
    return f", p{SPACE}&lt;{SPACE}0.001" if p < 0.001 else f", p{SPACE}={SPACE}{p:.3f}"


def effect_text(condition: Condition) -> str:
    """The effect of a condition with its unit; with its sign if it is a difference."""
    written = nats if condition.unit == "nats" else points
    return f"{with_half_width(written(condition.effect, signed=condition.difference))} {condition.unit}"
