"""The claims of the papers, each decided on the run that the book shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping

from lab.bookkeeping import results
from lab.report import page
from lab.report.claims import NOT_REPLICATED, REPLICATED, Claim, decide
from lab.report.facts import Facts, outcome, reads
from lab.report.statistics import holm, unsigned
from lab.report.words import points

# What counts as a zero barrier in this book: points of accuracy, nats of loss.
ZERO = {"accuracy": 0.5, "loss": 0.02}


def claim(run: str, name: str, rules: str = "claims") -> Claim:
    """One claim with its verdict on a run; ``rules`` as for ``decide``."""
    (decided,) = decide(run, [name], rules)
    return decided


def shown_claims(ids: Collection[str] | None = None, rules: str = "claims") -> list[Claim]:
    """The claims with these ids, or all, each decided on the run that the book shows of its notebook.

    ``rules`` are those of book/claims.yml: ``claims``, or ``again``.
    """
    book = results.stated()
    by_run: dict[str | None, list[str]] = {}
    for stated in book[rules]:
        if ids is None or stated["id"] in ids:
            notebooks = [book["measures"][rule["measure"]]["notebook"] for rule in stated["conditions"]]
            run = next((page.shown_run(notebook) for notebook in notebooks if page.runs(notebook)), None)
            by_run.setdefault(run, []).append(stated["id"])
    # Run by run, for the rules are read anew each time, and that is slow.
    decided = {claim.id: claim for run, own in by_run.items() for claim in decide(run, own, rules)}
    return [decided[stated["id"]] for stated in book[rules] if stated["id"] in decided]


def corrected_p(claims: Collection[Claim]) -> dict[tuple[str, str], float]:
    """The p of every condition of these claims, by claim and condition, corrected for their number."""
    p_values = {(claim.id, each.id): each.p for claim in claims for each in claim.conditions}
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


@reads()
def after_correction() -> Facts:
    """How many conditions are ``decided``, and how many of these have a corrected p of 0.05 or more, ``doubtful``.

    The outcome is ``some`` or ``none`` of these.
    """
    claims = shown_claims()
    corrected = corrected_p(claims)
    decided = [
        corrected[claim.id, condition.id]
        for claim in claims
        for condition in claim.conditions
        if condition.verdict in (REPLICATED, NOT_REPLICATED) and not math.isnan(condition.p)
    ]
    doubtful = sum(p >= 0.05 for p in decided)
    return Facts("some" if doubtful else "none", {"decided": str(len(decided)), "doubtful": str(doubtful)})


@reads()
def tally() -> Facts:
    """How many claims of papers the book has, ``all``, and how many of these have each verdict, as ``not_replicated``.

    ``ours`` is how many questions of our own there are besides. The outcome is the most frequent verdict, the first of
    them in the order of the claims.
    """
    claims = shown_claims()
    counts = Counter(decided.verdict for decided in claims if not decided.ours)
    values = {verdict.replace(" ", "_"): str(count) for verdict, count in counts.items()}
    values |= {"all": str(counts.total()), "ours": str(len(claims) - counts.total())}
    return Facts(counts.most_common(1)[0][0], values)


@reads()
def once_more() -> Facts:
    """Which claims have another verdict once they are decided again, by better rules and on more networks.

    The outcome names them with the new verdict, ``H4 partly, H6 replicated``; or ``all the same``. Values are ``same``,
    how many have the verdict that they had, and ``all`` that were decided again.
    """
    again = shown_claims(rules="again")
    first = {claim.id: claim.verdict for claim in shown_claims([claim.id for claim in again])}
    other = [f"{claim.id} {claim.verdict}" for claim in again if claim.verdict != first[claim.id]]
    values = {"same": str(len(again) - len(other)), "all": str(len(again))}
    return Facts(", ".join(other) or "all the same", values)


def gaps(decided: Claim, conditions: Mapping[str, str]) -> Facts:
    """The effects of a claim's conditions, ``conditions`` by the name of their value, and ``n``.

    They have their signs, and none as ``size_`` and the name. The outcome says where they lie, beside their bounds:
    ``below``, or where they differ ``below, open``; or ``not measured`` if the run lacks one of them.
    """
    measured = {name: decided.condition(condition) for name, condition in conditions.items()}
    if None in measured.values():
        return Facts("not measured", {})
    sides = [outcome(condition.effect, condition.bound) for condition in measured.values()]
    values = {name: points(condition.effect, signed=True) for name, condition in measured.items()}
    values |= {f"size_{name}": points(unsigned(condition.effect)) for name, condition in measured.items()}
    values["n"] = str(min(condition.effect.n for condition in measured.values()))
    return Facts(sides[0] if len(set(sides)) == 1 else ", ".join(sides), values)
