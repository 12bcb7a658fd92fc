"""What changed on the way: H1 to H3 on the first networks, from other initial weights, beside those of the book."""

from __future__ import annotations

import pandas as pd

from lab.report.claims import NOT_RUN, Claim, Condition, decide
from lab.report.facts import Facts, reads
from lab.report.hierarchy import NOT_MEASURED
from lab.report.words import listed, points

# The tables of commit 1007025 under the names of today. No chapter shows this run.
FIRST = "first"
CLAIMS = ("H1", "H2", "H3")


@reads("accuracy")
def two_runs(run: str) -> Facts:
    """The effects of H1 to H3 in the first run and in the one that the book shows, in points.

    The outcome is ``all the same`` if the two have the same verdicts, of the claims and of each condition, else ``not
    all the same``; and ``H2 higher`` if the hierarchy stands better beside MergeMany in the second run, else ``H2 not
    higher``. Joined: ``all the same, H2 higher``; or ``not measured`` where one run lacks a condition. Values are by
    claim, condition and run, such as ``h2_at_8_first`` and ``h2_at_8_second``; ``n`` is the fewest groups of eight.
    """
    first, second = decide(FIRST, CLAIMS), decide(run, CLAIMS)
    if any(claim.missing or claim.verdict == NOT_RUN for claim in (*first, *second)):
        return Facts(NOT_MEASURED, {})
    same = "all the same" if list(map(_verdicts, first)) == list(map(_verdicts, second)) else "not all the same"
    before, after = (claims[CLAIMS.index("H2")].condition("at_8").effect.mean for claims in (first, second))
    values = {
        f"{claim.id.lower()}_{condition.id}_{name}": points(condition.effect)
        for name, claims in (("first", first), ("second", second))
        for claim, condition in _conditions(claims)
    }
    values["n"] = str(min(condition.effect.n for _, condition in _conditions([*first, *second])))
    return Facts(f"{same}, H2 {'higher' if after > before else 'not higher'}", values)


@reads("accuracy")
def two_runs_table(run: str) -> pd.DataFrame:
    """A row for each condition of H1 to H3: its effect and verdict in the first run and in the one that the book shows.

    Both are decided by the rules as they are today. A condition that one of the runs lacks has no row.
    """
    second = {claim.id: claim for claim in decide(run, CLAIMS)}
    rows = []
    for claim, before in _conditions(decide(FIRST, CLAIMS)):
        after = second[claim.id].condition(before.id)
        if after is not None:
            rows.append(
                {
                    "claim": f"{claim.id}, {before.name}",
                    "first run (points)": points(before.effect, signed=True),
                    "second run (points)": points(after.effect, signed=True),
                    "must lie": f"{before.side} {before.bound:g}",
                    "n": listed([str(before.effect.n), str(after.effect.n)]),
                    "first verdict": before.verdict,
                    "second verdict": after.verdict,
                }
            )
    return pd.DataFrame(rows)


def _verdicts(claim: Claim) -> list[str]:
    """The verdict on a claim, and on each of its conditions."""
    return [claim.verdict, *(condition.verdict for condition in claim.conditions)]


def _conditions(claims: list[Claim]) -> list[tuple[Claim, Condition]]:
    """Each condition with the claim that it belongs to."""
    return [(claim, condition) for claim in claims for condition in claim.conditions]
