"""What the chapter on the counterexample says, made from results: no number is typed."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping import results
from lab.report import tabs as report
from lab.report.words import decimal


def finding() -> str:
    """Whether some permutation connects the two networks, and what the smallest barrier is."""
    if not report.runs("counterexample"):
        return "The counterexample was not computed yet."
    run = report.runs("counterexample")[0]
    barriers, paths, smallest = (
        results.read(run, "counterexample", table) for table in ("barriers", "paths", "smallest")
    )
    share, points = smallest["value"].item(), paths["lam"].nunique()
    if share > 0:
        return (
            f"<strong>No permutation connects the two networks</strong>, as the paper says: on the straight line from "
            f"the one to each of the {len(barriers)} permutations of the other, some network misclassifies at least "
            f"{100 * share:g} % of the square more than the ends do. The areas are exact, at {points} points of each "
            "path."
        )
    connecting = " and ".join(barriers[barriers["value"] <= 0]["permutation"])
    return (
        f"<strong>A permutation connects the two networks</strong>, against the paper: {connecting}, at all "
        f"{points} points of its path. The areas are exact."
    )


def matched_finding() -> str:
    """Which permutation weight matching finds, and the barrier on its path."""
    if not report.runs("counterexample"):
        return ""
    barriers = results.read(report.runs("counterexample")[0], "counterexample", "barriers")
    found = barriers[barriers["matched"]].iloc[0]
    nearest = found["inner_product"] == barriers["inner_product"].max()
    orders = zip(found["permutation"].split("/"), ("first", "second"), strict=True)
    swapped = [layer for order, layer in orders if order == "21"]
    what = (
        f"swaps the units of the {' and the '.join(swapped)} hidden layer" if swapped else "leaves all units in place"
    )
    return (
        f"Weight matching {what} ({found['permutation']}), {'the' if nearest else 'not the'} permutation nearest to A "
        f"by the inner product of the weights; the barrier on its path is {100 * found['value']:g} % of the square."
    )


def table(run: str) -> pd.DataFrame:
    """A row for each permutation, as texts: barrier, where its path is worst, and the inner product with A."""
    barriers, paths = (results.read(run, "counterexample", name) for name in ("barriers", "paths"))
    rows = []
    for row in barriers.itertuples():
        path = paths[paths["node"] == row.node]
        wrong = path[path["value"] == path["value"].max()]["lam"]
        lams = f"{wrong.min():.2f}" if len(wrong) == 1 else f"{wrong.min():.2f} to {wrong.max():.2f}"
        rows.append(
            {
                "order of the units": f"<strong>{row.permutation}</strong>" if row.matched else row.permutation,
                "barrier (% of the square)": f"{100 * row.value:g}",
                "most is misclassified at λ": lams,
                "inner product with A": decimal(row.inner_product, 0),
            }
        )
    return pd.DataFrame(rows)
