"""The most convolutional networks of one task that were merged into one of their size, and what that reaches."""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping import results
from lab.report.arena import NO_MERGES, ONE, difference, many, name_of, title_of, together
from lab.report.arena_tables import by_number
from lab.report.claims import picked
from lab.report.facts import Facts, outcome, reads
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, share_interval, unsigned
from lab.report.words import decimal, points

TEST_IMAGES = 5000  # where a setting does not say how many
CHOSEN = "weights_refitted"  # what counts as the record, chosen before any of these networks was merged


def convolutional(run: str) -> pd.DataFrame:
    """Accuracies of merges of convolutional networks that all know the same, those of the first kind that a run has."""
    rows = together(run)
    rows = rows[rows["architecture"] != "mlp"]
    return rows[rows["architecture"] == rows["architecture"].iloc[0]] if len(rows) else rows


@reads("arena")
def record(run: str) -> Facts:
    """What merges of the largest ``number`` of networks reach: accuracies in percent, with intervals over test images.

    Their names are those of the methods, ``weights_repair`` after REPAIR. ``parent`` is the mean over the first network
    of each of the smallest groups, ``groups`` how many of the largest there are, ``images`` the number of test images
    and ``seen`` that of the training images which methods see, ``kind`` the networks, ``best`` the highest of all
    merges and ``best_way`` what a reader calls it. Outcomes: the method that had been chosen is the ``first`` of all
    merges, is ``behind`` another, or cannot be told from the next, ``open``; ``not measured`` without it.
    """
    rows = convolutional(run)
    if CHOSEN not in set(rows["method"]):
        return Facts("not measured", {})
    largest = picked(rows, {"parents": rows["parents"].max()})
    groups, images = largest["node"].nunique(), _test_images(run, largest["setting"].iloc[0])
    merges, values = {}, {}
    for (method, mended), own in largest.groupby(["method", "mended"]):
        reached = in_percent(own["value"].mean(), images * groups)
        name = method if mended == "none" else f"{method}_{mended}"
        values[name] = points(reached)
        if method not in NO_MERGES:
            merges[name] = reached
    best = max(merges, key=lambda name: merges[name].mean)
    alone = picked(rows, {"parents": rows["parents"].min(), "method": "parent"})["value"]
    values |= {
        "best": values[best],
        "best_way": name_of(best.removesuffix("_repair").removesuffix("_reset")),
        "parent": decimal(100 * alone.mean(), 1),
        "number": str(largest["parents"].iloc[0]),
        "groups": str(groups),
        "images": str(images),
        "seen": str(largest["images"].iloc[0]),
        "kind": title_of(largest),
        "epochs": str(largest["epochs"].iloc[0]),
    }
    chosen = merges.pop(CHOSEN)
    next_best = max(other.mean for other in merges.values())
    return Facts("first" if chosen.low > next_best else "behind" if chosen.high < next_best else "open", values)


def in_percent(share: float, images: int) -> Interval:
    """An accuracy in percent with its exact interval over so many test images."""
    exact = share_interval(round(share * images), images)
    return Interval(100 * exact.mean, 100 * exact.low, 100 * exact.high, images)


def _test_images(run: str, setting: str) -> int:
    """How many test images a setting was measured on, as the notebook was told."""
    made = results.provenance(run, "arena")
    assert made is not None, "there are tables"
    (entry,) = (entry for entry in made["parameters"]["arena_settings"] if entry["setting"] == setting)
    return int(entry.get("test_images", TEST_IMAGES))


@reads("arena")
def record_table(run: str) -> pd.DataFrame:
    """Accuracy of merges of convolutional networks of one task, of the size of one, by how many were merged."""
    return by_number(convolutional(run))


@reads("arena")
def in_pairs(run: str) -> Facts:
    """PLeaS of MLPs in a tree of pairs minus PLeaS of all at once, in points, of the most that have an interval.

    ``gap`` is that with its sign, ``size_gap`` without, from ``n`` groups of ``number``. Outcomes: where it lies; ``not
    measured`` where no number has groups enough.
    """
    rows, found = many(run), {}
    for number, own in rows.groupby("parents"):
        if {"pleas", "pleas_tree"} <= set(own["method"]):
            found[number] = difference(own, ("pleas_tree", ONE, "none"), ("pleas", ONE, "none"))
    enough = [number for number, gap in found.items() if gap.n >= FEWEST_FOR_INTERVAL]
    if not enough:
        return Facts("not measured", {})
    gap = found[max(enough)]
    values = {"gap": points(gap, signed=True), "size_gap": points(unsigned(gap)), "n": str(gap.n)}
    return Facts(outcome(gap), values | {"number": str(max(enough))})


@reads("arena")
def penalised(run: str) -> Facts:
    """Networks with a penalty on their absolute weights: by how many points the hierarchy is ahead of MergeMany.

    ``gap_8`` and ``gap_4`` as merged, ``repaired_8`` after REPAIR of both, ``n_8`` groups; ``parent``, ``hierarchy``
    and ``many`` are accuracies in percent, the merges' of eight. The outcome is where ``gap_8`` and ``repaired_8`` lie.
    """
    rows = together(run)
    rows = rows[(rows["architecture"] == "mlp") & (rows["l1"] > 0)]
    if not len(rows):
        return Facts("not measured", {})
    values, gaps = {}, {}
    for number, own in rows.groupby("parents"):
        values[f"n_{number}"] = str(own["node"].nunique())
        for name, mended in (("gap", "none"), ("repaired", "repair")):
            gaps[f"{name}_{number}"] = difference(own, ("hierarchy", ONE, mended), ("weights", ONE, mended))
            values[f"{name}_{number}"] = points(gaps[f"{name}_{number}"], signed=True)
    most = rows["parents"].max()
    largest = picked(rows, {"parents": most, "mended": "none"})
    for name, method in (("parent", "parent"), ("hierarchy", "hierarchy"), ("many", "weights")):
        values[name] = decimal(100 * picked(largest, {"method": method})["value"].mean(), 1)
    return Facts(", ".join(outcome(gaps[f"{name}_{most}"]) for name in ("gap", "repaired")), values)
