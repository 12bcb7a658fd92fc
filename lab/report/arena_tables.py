"""The tables of the arena: every method at every size, what it cost, and what other people measured."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import GREY_LEVELS, MENDINGS
from lab.report.arena import ONE, accuracy, by_kind, halves, many, name_of, title_of
from lab.report.arena_benchmarks import memory_taken
from lab.report.claims import FEWEST_FOR_VERDICT, picked
from lab.report.facts import reads
from lab.report.statistics import interval
from lab.report.words import decimal, points, seconds

# VGG-11 of full width with cross-entropy, each trained to the end: accuracy over ten classes (ZipIt!, table 11).
PUBLISHED = {"parent": 44.6, "mean": 10.2, "correlation": 25.4, "zip": 33.2, "ensemble": 66.6}


@reads("arena")
def size_table(run: str) -> pd.DataFrame:
    """Accuracy of every method at every size, with its mending, by kind of networks."""
    table = []
    for title, rows in halves(run).items():
        for (method, mended), own in rows.groupby(["method", "mended"], sort=False):
            row = {"networks": title, "method": name_of(method), "mending": mending(mended)}
            for size in sorted(rows["size"].unique()):
                row[f"at {size:g}"] = cell(own[own["size"] == size])
            table.append(row)
    return pd.DataFrame(table)


@reads("arena")
def number_table(run: str) -> pd.DataFrame:
    """Accuracy of merges of networks of one task, of the size of one, by how many were merged."""
    return by_number(many(run))


def by_number(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of merges of one kind of networks, a row for each method and mending, a column for each number."""
    table = []
    for (method, mended), own in rows.groupby(["method", "mended"], sort=False):
        row = {"method": name_of(method), "mending": mending(mended)}
        for number, of_number in rows.groupby("parents"):
            size = float(number) if method == "ensemble" else ONE
            nodes = of_number["node"].nunique()
            row[f"{number} networks (n = {nodes})"] = cell(picked(own, {"parents": number, "size": size}))
        table.append(row)
    return pd.DataFrame(table)


@reads("arena")
def published_table(run: str) -> pd.DataFrame:
    """Our VGG-11 beside that of ZipIt!'s table 11."""
    rows = by_kind(run).get("vgg11")
    table = []
    for method, theirs in PUBLISHED.items():
        ours = None if rows is None else accuracy(rows, method, 2.0 if method == "ensemble" else ONE)
        own = "–" if ours is None else points(ours)
        table.append({"method": name_of(method), "ours (%)": own, "theirs (%)": decimal(theirs, 1)})
    return pd.DataFrame(table)


@reads("arena")
def cost_table(run: str) -> pd.DataFrame:
    """What each method took in seconds and memory at its smallest size, and what else was measured of its merge."""
    entries, times = (results.read(run, "arena", table) for table in ("entries", "times"))
    took_memory = memory_taken()
    table = []
    for rows in halves(run).values():
        setting = rows["setting"].iloc[0]
        of_setting = picked(entries, {"setting": setting, "task": "joint", "mended": "none"})
        for method, own in of_setting.groupby("method", sort=False):
            size = own["size"].min()
            own = own[own["size"] == size].groupby("metric")["value"].mean()
            took = picked(times, {"setting": setting, "method": method, "mended": "none", "size": size})["value"]
            table.append(
                {
                    "networks": title_of(of_setting),
                    "method": name_of(method),
                    "accuracy (%)": decimal(100 * own["accuracy"], 1),
                    "loss (nats)": decimal(own["loss"], 2),
                    "calibration error (points)": decimal(100 * own["calibration_error"], 1),
                    "multiply-adds": decimal(own["structured"], 2),
                    "parameters": decimal(own["parameters"], 2),
                    "seconds": seconds(took.median()),
                    "memory (MiB)": took_memory.get((setting, method), "–"),
                }
            )
    return pd.DataFrame(table)


@reads("arena")
def attack_table(run: str) -> pd.DataFrame:
    """Accuracy under every attack by its radius, of merges of as many networks as there are eight groups of."""
    rows = picked(results.read(run, "arena", "attacks"), {"tasks": "whole"})
    groups = rows.groupby("parents")["node"].nunique()
    enough = groups[groups >= FEWEST_FOR_VERDICT]
    rows = rows[rows["parents"] == enough.index.max()] if len(enough) else rows
    table = []
    for (method, mended), own in rows.groupby(["method", "mended"], sort=False):
        table.append({"method": name_of(method), "mending": mending(mended), **by_radius(own)})
    return pd.DataFrame(table)


def by_radius(rows: pd.DataFrame) -> dict[str, str]:
    """The accuracy of these rows under attack, by its radius."""
    return {
        "no attack" if epsilon == 0 else f"{epsilon:g}/{GREY_LEVELS}": cell(at)
        for epsilon, at in rows.groupby("epsilon")
    }


def mending(mended: str) -> str:
    """What was done to a merge; nothing of one as it is."""
    return "" if mended == "none" else MENDINGS[mended]


def cell(rows: pd.DataFrame) -> str:
    """The accuracy of these rows in percent, with its interval."""
    return points(interval(100 * rows["value"].to_numpy())) if len(rows) else "–"
