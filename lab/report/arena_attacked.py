"""Merges of networks of different tasks under attack: whether robustness is there once accuracy is."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping import results
from lab.report.arena import ONE, difference, name_of
from lab.report.arena_tables import by_radius, mending
from lab.report.claims import picked
from lab.report.facts import Facts, outcome, reads
from lab.report.statistics import interval
from lab.report.words import points

ENSEMBLE = ("ensemble", 2.0, "none")
REFITTED = ("pleas_refitted", ONE, "none")
MATCHED = ("correlation", ONE, "none")


@reads("arena")
def halves(run: str) -> Facts:
    """Accuracy over all classes in percent under every attack, of networks that know a half of the classes each.

    The outcome is where refitted PLeaS lies beside the ensemble of both, and beside the average of matched networks, by
    the radius in grey levels, 0 without an attack: ``ensemble_0 below, matched_0 above, ensemble_1 below, ...``. Values
    are ``refitted_1``, ``ensemble_1``, ``matched_1``; the differences ``beside_ensemble_1``, ``beside_matched_1``; and
    ``n``, how many pairs there are.
    """
    rows = _rows(run)
    if not len(rows):
        return Facts("not measured", {})
    outcomes, values = [], {"n": str(rows["node"].nunique())}
    for epsilon, at in rows.groupby("epsilon"):
        refitted = interval(100 * _of(at, REFITTED)["value"].to_numpy())
        values[f"refitted_{epsilon:g}"] = points(refitted)
        for name, other in (("ensemble", ENSEMBLE), ("matched", MATCHED)):
            beside = difference(at, REFITTED, other)
            values[f"{name}_{epsilon:g}"] = points(interval(100 * _of(at, other)["value"].to_numpy()))
            values[f"beside_{name}_{epsilon:g}"] = points(beside, signed=True)
            outcomes.append(f"{name}_{epsilon:g} {outcome(beside)}")
    return Facts(", ".join(outcomes), values)


@reads("arena")
def table(run: str) -> pd.DataFrame:
    """The same for every method, size and mending."""
    shown = []
    for (method, size, mended), own in _rows(run).groupby(["method", "size", "mended"], sort=False):
        row = {"method": name_of(method), "size": f"{size:g}", "mending": mending(mended)}
        shown.append(row | by_radius(own))
    return pd.DataFrame(shown)


def _rows(run: str) -> pd.DataFrame:
    return picked(results.read(run, "arena", "attacks"), {"tasks": "halves"})


def _of(rows: pd.DataFrame, of: tuple[str, float, str]) -> pd.DataFrame:
    method, size, mended = of
    return picked(rows, {"method": method, "size": size, "mended": mended})
