"""The arena elsewhere: networks of one head that know other classes or other shares of them, and MNIST's halves."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping import results
from lab.report.arena import NO_MERGES, ONE, accuracy, difference, name_of, shown_as
from lab.report.arena_tables import cell
from lab.report.claims import picked
from lab.report.facts import Facts, outcome, reads
from lab.report.words import points


@reads("arena")
def shares(run: str) -> Facts:
    """Networks with one head that have seen other shares of each class: see ``_levels``."""
    entries = results.read(run, "arena", "entries")
    return _levels(picked(entries, {"tasks": "whole", "subset": "split", "task": "joint", "metric": "accuracy"}))


@reads("arena")
def digits(run: str) -> Facts:
    """Networks that know half of MNIST's digits each: see ``_levels``."""
    entries = results.read(run, "arena", "entries")
    return _levels(picked(entries, {"tasks": "halves", "dataset": "mnist", "task": "joint", "metric": "accuracy"}))


@reads("arena")
def coded(run: str) -> Facts:
    """MLPs that know half of the classes each and answer by class codes, under one head: see ``_levels``."""
    entries = results.read(run, "arena", "entries")
    kind = {"tasks": "coded", "architecture": "mlp_codes", "task": "joint", "metric": "accuracy"}
    return _levels(picked(entries, kind))


def _levels(rows: pd.DataFrame) -> Facts:
    """Accuracies in percent in one setting, by method; ``_small`` at 1.2, ``_large`` at 1.8; and ``n``, how many pairs.

    The outcome is which merge of the size of one network is the most accurate in the mean, and where its difference to
    one parent lies; and where what was distilled lies beside it: ``pleas_refitted above, distilled open``.
    """
    if not len(rows):
        return Facts("not measured", {})
    values, merges = {"n": str(rows["node"].nunique())}, {}
    for method in rows["method"].unique():
        for size, name in ((ONE, method), (1.2, f"{method}_small"), (1.8, f"{method}_large"), (2.0, method)):
            reached = accuracy(rows, method, size)
            if reached is not None:
                values[name] = points(reached)
                if size == ONE and method not in NO_MERGES:
                    merges[method] = reached.mean
    method = max(merges, key=merges.__getitem__)
    best, parent, distilled = ((name, ONE, shown_as(rows, name)) for name in (method, "parent", "distilled"))
    beside, trained = difference(rows, best, parent), difference(rows, distilled, best)
    values["beside_parent"] = points(beside, signed=True)
    return Facts(f"{method} {outcome(beside)}, distilled {outcome(trained)}", values)


@reads("arena")
def table(run: str) -> pd.DataFrame:
    """Accuracy of every method, as merged, where networks share out images of all classes, and on MNIST."""
    entries = picked(results.read(run, "arena", "entries"), {"task": "joint", "metric": "accuracy", "mended": "none"})
    settings = {
        "CIFAR-10, halves, class codes": picked(entries, {"tasks": "coded"}),
        "CIFAR-10, shared out": picked(entries, {"tasks": "whole", "subset": "split"}),
        "MNIST, halves": picked(entries, {"dataset": "mnist"}),
    }
    shown = []
    for title, rows in settings.items():
        for method, own in rows.groupby("method", sort=False):
            row = {"networks": title, "method": name_of(method)}
            for size in sorted(rows["size"].unique()):
                row[f"at {size:g}"] = cell(own[own["size"] == size])
            shown.append(row)
    return pd.DataFrame(shown)
