"""Networks that were fine-tuned on a task each, from foundations of their own or from one: what their merges keep."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import MENDINGS
from lab.report.arena import accuracy, name_of
from lab.report.claims import picked
from lab.report.facts import Facts, reads
from lab.report.verdicts import claim
from lab.report.words import decimal, points

DATA = {"cifar10": "CIFAR-10", "mnist": "MNIST"}
FOUNDATIONS = {"tuned": "one each", "tuned alike": "one for both"}
# The networks themselves, each at its own task, and the merges of one network's size: method, mending.
SHOWN = (
    ("ensemble", "none"), ("mean", "none"), ("mean", "repair"), ("mean", "repair by task"), ("weights", "none"),
    ("weights", "repair"), ("weights", "repair by task"), ("correlation", "none"), ("correlation", "repair by task"),
    ("zip", "none"), ("pleas", "none"), ("pleas_refitted", "none"),
)  # fmt: skip


@reads("arena")
def kept(run: str) -> Facts:
    """Accuracies at a task that is told, in percent, mean over both: ``weights_repair_mnist``, ``mean_alike_mnist``.

    The outcome is the verdicts on N1, N2 and N3; ``not measured``.
    """
    decided = [claim(run, name).verdict for name in ("N1", "N2", "N3")]
    values = {}
    for data in DATA:
        for tasks in FOUNDATIONS:
            rows = _at_tasks(run, data, tasks)
            for method, mended in SHOWN if len(rows) else ():
                reached = accuracy(rows, method, _size(method), mended)
                words = (method, *mended.replace("none", "").split(), *tasks.split()[1:], data)
                if reached is not None:
                    values["_".join(words)] = decimal(reached.mean, 1)
            if len(rows):
                values["n"] = str(rows["node"].nunique())
    return Facts(", ".join(decided) if values else "not measured", values)


@reads("arena")
def table(run: str) -> pd.DataFrame:
    """Accuracy at a task that is told, by data set, foundations, method and mending."""
    shown = []
    for data, title in DATA.items():
        for tasks, foundations in FOUNDATIONS.items():
            rows = _at_tasks(run, data, tasks)
            for method, mended in SHOWN if len(rows) else ():
                reached = accuracy(rows, method, _size(method), mended)
                if reached is not None:
                    named = "the networks themselves" if method == "ensemble" else name_of(method)
                    row = {"data": title, "foundations": foundations, "method": named}
                    shown.append(row | {"mended": MENDINGS[mended], "accuracy (%)": points(reached), "n": reached.n})
    return pd.DataFrame(shown)


def _size(method: str) -> float:
    """The ensemble is both networks, side by side."""
    return 2.0 if method == "ensemble" else 1.0


def _at_tasks(run: str, data: str, tasks: str) -> pd.DataFrame:
    """Accuracies of these networks' merges at a task that is told, the mean over both tasks, a row per merge."""
    kind = {"dataset": data, "tasks": tasks, "architecture": "mlp", "metric": "accuracy"}
    entries = picked(results.read(run, "arena", "entries"), kind)
    told = entries[entries["task"] != "joint"]
    return told.groupby(["method", "mended", "size", "node"], sort=False)["value"].mean().reset_index()
