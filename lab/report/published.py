"""MergeMany and a hierarchy of pairs by a published program, beside ours on the same networks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.bookkeeping.vocabulary import ALGORITHMS
from lab.report.claims import picked
from lab.report.facts import Facts, reads
from lab.report.library import measured
from lab.report.statistics import interval
from lab.report.variants import SIZES, gives
from lab.report.words import decimal, points

PROGRAMS = {"ours": "ours", "published": "rebasin 0.0.47 of PyPI"}


def accuracies(program: str, algorithm: str, size: int) -> np.ndarray:
    """Test accuracy in percent of each group of so many networks, (groups,)."""
    rows = pd.DataFrame(measured("published_many")["rows"])
    chosen = picked(rows, {"program": program, "algorithm": algorithm, "networks": size})
    return 100 * chosen.sort_values("group")["accuracy"].to_numpy()


def gaps(program: str) -> tuple[np.ndarray, np.ndarray]:
    """The hierarchy minus MergeMany, in points, of each group of four networks and of eight."""
    at_four, at_eight = (accuracies(program, "hierarchy", n) - accuracies(program, "many", n) for n in SIZES)
    return at_four, at_eight


@reads()
def both_programs() -> Facts:
    """What both programs reach: ``published_many_8`` in percent, ``published_gap_8`` the hierarchy minus MergeMany.

    ``many_ahead_8`` is by how many points the published MergeMany is ahead of ours. The outcome is what the rule of the
    chapter makes of ours, and of the published program's.
    """
    values = {}
    for name in PROGRAMS:
        for size, gap in zip(SIZES, gaps(name), strict=True):
            values[f"{name}_gap_{size}"] = points(interval(gap), signed=True)
            values[f"n_{size}"] = str(len(gap))
            for algorithm in ("hierarchy", "many"):
                values[f"{name}_{algorithm}_{size}"] = decimal(accuracies(name, algorithm, size).mean(), 1)
    for size in SIZES:
        ahead = accuracies("published", "many", size) - accuracies("ours", "many", size)
        values[f"many_ahead_{size}"] = points(interval(ahead), signed=True)
    return Facts(", ".join(gives(*gaps(name)) for name in PROGRAMS), values)


@reads()
def table() -> pd.DataFrame:
    """A row for each program and algorithm: test accuracy in percent of merges of four and of eight."""
    return pd.DataFrame(
        {"program": title, "algorithm": ALGORITHMS[algorithm].title}
        | {f"of {size} (%)": points(interval(accuracies(name, algorithm, size))) for size in SIZES}
        for name, title in PROGRAMS.items()
        for algorithm in ("hierarchy", "many")
    )
