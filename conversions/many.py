"""MergeMany's tables: ``subset`` and ``n_leaves`` in place of a group's name. The counterexample: a column a layer."""

from __future__ import annotations

import pandas as pd


def split_group(table: pd.DataFrame) -> pd.DataFrame:
    """``five`` is of 5 networks on all images, ``half 4`` of 4 on halves of them."""
    on_halves = table["group"].str.startswith("half ")
    n_leaves = table["group"].str.removeprefix("half ").replace("five", "5").astype(int)
    subset = on_halves.map({True: "half", False: "all"})
    return table.drop(columns="group").assign(subset=subset, n_leaves=n_leaves)


def split_permutation(table: pd.DataFrame) -> pd.DataFrame:
    """``12/21`` leaves the units of the first hidden layer in place and swaps those of the second."""
    layers = table["permutation"].str.split("/", expand=True)
    new = table.drop(columns=["permutation", "algorithm"], errors="ignore")
    return new.assign(first=layers[0], second=layers[1])


TABLES = {
    ("many", "nodes"): split_group,
    ("many", "members"): split_group,
    ("many", "reliability"): split_group,
    ("counterexample", "paths"): split_permutation,
    ("counterexample", "barriers"): split_permutation,
    ("counterexample", "regions"): split_permutation,
}
PARAMETERS = {"many": lambda parameters: parameters | {"mnist_architecture": "mlp"}}
