"""The tables on robustness: mending as a column, and on each row how many images it is measured on.

Mended merges had the mending in the algorithm's name. A severity gets the amount that it stands for, and clean accuracy
the number of classes, of which chance is one.
"""

from __future__ import annotations

import pandas as pd

from lab.bookkeeping.vocabulary import KIND
from lab.measures.perturbations import PERTURBATIONS

CLASSES = 10  # of CIFAR-10
# Test images, by the preset: many for what the claims compare, few for all others.
MANY, FEW = 2000, 500
CLAIMED = [("unmerged", "none", 1), ("tree", "none", 2), ("tree", "none", 8), ("early_stopped", "none", 8)]


def mended(table: pd.DataFrame) -> pd.DataFrame:
    """The mending as a column beside the algorithm."""
    repaired = table["algorithm"].str.endswith("_repaired")
    table = table.assign(
        algorithm=table["algorithm"].str.removesuffix("_repaired"),
        mended=repaired.map({True: "repair", False: "none"}),
    )
    others = [column for column in table if column not in KIND]
    return table[[*KIND, *others]]


def with_images(table: pd.DataFrame) -> pd.DataFrame:
    """On each row how many images it is measured on; in L2 it was few for all."""
    table = mended(table)
    claimed = pd.Series(list(zip(*(table[column] for column in KIND[:3]), strict=True)), table.index).isin(CLAIMED)
    if "norm" in table:
        claimed &= table["norm"] == "linf"
    table.insert(table.columns.get_loc("value"), "images", claimed.map({True: MANY, False: FEW}))
    return table


def with_amounts(table: pd.DataFrame) -> pd.DataFrame:
    """Beside each severity what it stands for."""
    table = with_images(table)
    amounts = {("clean", 0): float("nan")}
    for kind, strengths in PERTURBATIONS.items():
        amounts |= {(kind, severity): float(amount) for severity, amount in enumerate(strengths, 1)}
    settings = zip(table["perturbation"], table["severity"], strict=True)
    table.insert(table.columns.get_loc("images"), "amount", [amounts[setting] for setting in settings])
    return table


def with_classes(table: pd.DataFrame) -> pd.DataFrame:
    table = mended(table)
    table.insert(table.columns.get_loc("value") + 1, "classes", CLASSES)
    return table


TABLES = {
    ("attack", "curves"): with_images,
    ("attack", "images"): mended,
    ("attack", "transfer"): mended,
    ("attack", "checks"): mended,
    ("attack", "clean"): with_classes,
    ("perturbations", "curves"): with_amounts,
    ("perturbations", "images"): mended,
    ("regularisation", "nodes"): mended,
    ("regularisation", "layers"): mended,
    ("regularisation", "radii"): mended,
    ("autoattack", "nodes"): mended,
}
PARAMETERS = {}
