"""The hierarchy given what MergeMany is not: REPAIR at its stages, or fewer networks; in other tables of this book."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import MENDINGS
from lab.report.claims import contrast
from lab.report.comparison import conditions, gap, only_guess, percent, sizes_of
from lab.report.facts import Facts, reads
from lab.report.hierarchy import sizes_of as sizes_by
from lab.report.hierarchy import term
from lab.report.statistics import interval
from lab.report.words import decimal, listed, points


@reads("accuracy")
def wide_pairs(run: str) -> Facts:
    """The hierarchy of two minus MergeMany of more, of the networks that decide the paper's claim, in points.

    Outcomes: ``grows`` where that is more at every larger number of networks, else ``does not grow``. ``first`` is the
    gap at the smallest number, ``last`` that at the largest, ``models``.
    """
    images = results.read(run, "accuracy", "images")
    larger = [size for size in sizes_by(images, "many") if size > 2]
    terms = {size: [term("hierarchy", 2), term("many", size, -1)] for size in larger}
    gaps = [interval(contrast(images, terms[size], size)) for size in larger]
    grows = bool((np.diff([value.mean for value in gaps]) > 0).all())
    values = {"first": points(gaps[0], signed=True), "last": points(gaps[-1], signed=True)}
    return Facts("grows" if grows else "does not grow", values | {"fewest": str(larger[0]), "models": str(larger[-1])})


@reads("comparison")
def mending(run: str) -> Facts:
    """The hierarchy with REPAIR at every stage minus MergeMany as merged, condition by condition, at four networks.

    Outcomes: the hierarchy is ahead in the mean in ``all``, ``most`` or ``few`` of the conditions in which one of both
    does not only guess. ``growing`` counts those in which it is ahead by more with every doubling from four networks
    on. ``batch_norm`` has the gaps with BatchNorm, and ``batch_norm_many`` what MergeMany has there, in percent.
    """
    counting = {}
    for label, part in conditions(run).items():
        if 4 not in sizes_of(part) or not only_guess(part, "repair every stage", "none", 4):
            counting[", ".join(label)] = part
    gaps = {label: gaps_of(part) for label, part in counting.items()}
    of_four = {label: by_size[4] for label, by_size in gaps.items() if 4 in by_size}
    ahead = sum(value > 0 for value in of_four.values())
    growing = [label for label, by_size in gaps.items() if 4 in by_size and _grows(list(by_size.values())[1:])]
    norms = [label for label in of_four if "BatchNorm" in label]
    many = [percent(counting[label], "many", "none", 4).mean() for label in norms]
    values = {
        "conditions": str(len(of_four)),
        "ahead": str(ahead),
        "growing": str(len(growing)),
        "growing_in": listed(growing) if growing else "none",
        "most": decimal(max(of_four.values()), 1, signed=True),
        "batch_norm": listed(decimal(of_four[label], 1, signed=True) for label in norms) if norms else "none",
        "batch_norm_many": listed(decimal(value, 1) for value in many) if norms else "none",
    }
    share = "all" if ahead == len(of_four) else "most" if ahead > len(of_four) / 2 else "few"
    return Facts(share, values)


def gaps_of(condition: pd.DataFrame) -> dict[int, float]:
    """The mean gap in points by number of networks: the hierarchy with REPAIR at every stage, MergeMany as merged."""
    return {
        size: (
            percent(condition, "hierarchy", "repair every stage", size) - percent(condition, "many", "none", size)
        ).mean()
        for size in sizes_of(condition)
    }


def _grows(gaps: list[float]) -> bool:
    """Whether there are several, all above zero, each larger than the one before."""
    return len(gaps) > 1 and min(gaps) > 0 and bool((np.diff(gaps) > 0).all())


@reads("comparison")
def gaps_table(run: str) -> pd.DataFrame:
    """The same gaps, a row for each condition, a column for each number of networks; beside them those mended alike."""
    rows = []
    for label, condition in conditions(run).items():
        for size, unequal in gaps_of(condition).items():
            row = {"condition": ", ".join(label), "models": str(size)}
            row["REPAIR at the hierarchy's stages alone"] = decimal(unequal, 1, signed=True)
            for mended in ("none", "repair"):
                row[MENDINGS[mended]] = decimal(gap(condition, mended, size).mean(), 1, signed=True)
            rows.append(row | {"n": str(len(gap(condition, "none", size)))})
    return pd.DataFrame(rows)
