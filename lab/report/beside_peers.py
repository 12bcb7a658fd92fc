"""Matching, merging, training and attacks beside their floors and other packages, as ``make bench`` timed them."""

from __future__ import annotations

import pandas as pd

from lab.report.facts import Facts, reads
from lab.report.library import measured
from lab.report.words import decimal

CLEARLY = 0.1  # by so much of the other's time ours is ahead or behind; less may be the machine's doing
NONE = "–"


@reads()
def ratios() -> Facts:
    """In how many of the ``contests`` that another program has taken part ours is ``ahead``, and where it is behind.

    ``worst`` is where it is the furthest behind, ``times`` how many times the other's seconds it takes there. The
    outcome is ``some behind`` or ``none behind``.
    """
    rows = [row for row in measured("bench")["rows"] if row["ours_over_peer"] is not None]
    worst = max(rows, key=lambda row: row["ours_over_peer"])
    behind = [row["what"] for row in rows if row["ours_over_peer"] > 1 + CLEARLY]
    values = {
        "contests": str(len(rows)),
        "ahead": str(sum(row["ours_over_peer"] < 1 - CLEARLY for row in rows)),
        "behind": "; ".join(behind) or "none",
        "worst": worst["what"],
        "times": decimal(worst["ours_over_peer"], 1),
        "over_floor": decimal(worst["ours_over_floor"], 0),
        "machine": measured("bench")["hardware"]["processor"],
    }
    return Facts("some behind" if behind else "none behind", values)


@reads()
def table() -> pd.DataFrame:
    """A row for each contest: medians in seconds of ours, the floor and the fastest other, and the two ratios."""
    return pd.DataFrame(
        {
            "": row["what"],
            "ours (s)": f"{row['ours_seconds']:.3g}",
            "floor": f"{row['floor']}, {row['floor_seconds']:.3g} s",
            "ours over the floor": decimal(row["ours_over_floor"], 2),
            "fastest other": NONE if row["peer_seconds"] is None else f"{row['peer']}, {row['peer_seconds']:.3g} s",
            "ours over it": NONE if row["ours_over_peer"] is None else decimal(row["ours_over_peer"], 2),
            "threads": str(row["threads"]),
        }
        for row in measured("bench")["rows"]
    )
