"""What the arena's benchmarks say: what least squares cost, memory, and merges of networks that nobody here trained."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping.vocabulary import CONTESTANTS, MENDINGS
from lab.report.facts import Facts, reads
from lab.report.library import measured
from lab.report.words import decimal

PARENTS = "parents"  # the row of the networks themselves
LONGEST = 120  # seconds that Gram matrices and solution should take at most
FASTER, DEARER = 10, 1.3  # how much faster than Adam, and at most how much slower than one network a merge at 1.2


@reads()
def outside() -> Facts:
    """Accuracies in percent of merges of other people's networks, ``pleas_2``, ``weights_8``, by how many there are.

    The outcome is where PLeaS as merged lies beside MergeMany, ``weights``, of each number: ``above at 2, above at 8``.
    """
    values, sides = {}, []
    accuracy = {}
    for row in measured("outside")["rows"]:
        if row["method"] == PARENTS:
            values |= {f"{end}_{row['networks']}": decimal(100 * row[end], 1) for end in ("lowest", "highest")}
        elif row["mended"] == "none":
            accuracy[row["method"], row["networks"]] = row["accuracy"]
    for (method, number), reached in accuracy.items():
        values[f"{method}_{number}"] = decimal(100 * reached, 1)
        if method == "pleas":
            sides.append(f"{'above' if reached > accuracy['weights', number] else 'below'} at {number}")
    return Facts(", ".join(sides), values)


@reads()
def outside_table() -> pd.DataFrame:
    """Accuracy of every method on other people's networks, by how many were merged."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in measured("outside")["rows"]:
        column = f"{row['networks']} networks (%)"
        if row["method"] == PARENTS:
            reached = f"{decimal(100 * row['lowest'], 1)} to {decimal(100 * row['highest'], 1)}"
            rows.setdefault(("one of them", ""), {})[column] = reached
        else:
            name = CONTESTANTS[row["method"]].title, "" if row["mended"] == "none" else MENDINGS[row["mended"]]
            rows.setdefault(name, {})[column] = decimal(100 * row["accuracy"], 1)
    table = [{"method": method, "mending": mended, **reached} for (method, mended), reached in rows.items()]
    return pd.DataFrame(table).fillna("–")


@reads()
def fitting() -> Facts:
    """What PLeaS of two ResNet20 takes in seconds, beside steps of Adam.

    The outcome says of three bars whether they are met: that Gram matrices and solution take two minutes at most, that
    Adam takes ten times as long, and that a merge of size 1.2 runs in 1.3 times one network's time: ``met, missed,
    met``.
    """
    figures = measured("fitting")
    seconds, left, runs = figures["seconds"], figures["left"], figures["runs_in_parents_time"]["1.2"]
    took = seconds["gram matrices"] + seconds["solution"]
    bars = (took <= LONGEST, figures["adam_over_closed_form"] >= FASTER, runs <= DEARER)
    values = {
        "took": f"{took:.0f}",
        "adam": f"{seconds['Adam']:.0f}",
        "times": f"{figures['adam_over_closed_form']:.1f}",
        "solution": decimal(seconds["solution"], 1),
        "runs": f"{runs:.2f}",
        "dearest": f"{DEARER:g}",
        "left": decimal(100 * left["closed form"], 1),
        "left_by_adam": decimal(100 * left["Adam"], 1),
        "left_averaged": decimal(100 * left["averaged"], 1),
    }
    return Facts(", ".join("met" if met else "missed" for met in bars), values)


@reads()
def memory() -> Facts:
    """What Gram matrices, PLeaS and PLeaS refitted take at their peak, in MiB, by kind: ``pleas_mlp``, ``grams_mlp``.

    The outcome is where the peak of PLeaS lies: ``pass``, where it is that of the pass over the images up to what
    repeated runs differ by, or ``fit``: ``mlp fit, vgg11 pass``.
    """
    taken, outcomes, values = memory_taken(), [], {}
    rows = {(row["setting"], row["method"]): row for row in measured("memory")["rows"]}
    for setting in dict.fromkeys(setting for setting, _ in taken):
        kind = setting.split()[-1]
        for method in ("grams", "pleas", "pleas_refitted"):
            values[f"{method}_{kind}"] = taken[setting, method]
        grams, pleas = rows[setting, "grams"], rows[setting, "pleas"]
        more, differs = pleas["mebibytes"] - grams["mebibytes"], max(grams["spread"], pleas["spread"])
        outcomes.append(f"{kind} {'fit' if more > differs else 'pass'}")
    return Facts(", ".join(outcomes), values)


def memory_taken() -> dict[tuple[str, str], str]:
    """What each method of a setting takes at its peak, in MiB."""
    return {(row["setting"], row["method"]): decimal(row["mebibytes"], 0) for row in measured("memory")["rows"]}


@reads()
def running() -> Facts:
    """What a merge of size 1.2 takes of the processor beside one network, both ResNet20 on one thread.

    The outcome is where most of what it takes more goes: to its ``convolutions``, more and smaller ones, to ``joining``
    what they give, or ``elsewhere``.
    """
    rows = {row["network"]: row for row in measured("running")["rows"]}
    parent, merge = rows["parent"], rows["merge of size 1.2"]
    excess = merge["milliseconds"] - parent["milliseconds"]
    parts = {part: (merge[part] - parent[part]) / excess for part in ("convolutions", "joining")}
    most = max(parts, key=parts.__getitem__)
    values = {
        "times": f"{merge['milliseconds'] / parent['milliseconds']:.2f}",
        "calls": str(merge["convolutions_calls"]),
        "parent_calls": str(parent["convolutions_calls"]),
        "convolutions": f"{100 * parts['convolutions']:.0f}",
        "joining": f"{100 * parts['joining']:.0f}",
    }
    return Facts(most if parts[most] > 0.5 else "elsewhere", values)
