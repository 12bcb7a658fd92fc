"""One recipe in three notebooks: why the same eight networks have several accuracies in the book."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import RECIPE
from lab.report.claims import contrast, picked
from lab.report.facts import Facts, reads
from lab.report.hierarchy import BLOCK, NOT_MEASURED, term
from lab.report.words import decimal

COMPARED = ("hierarchy", "many")


@reads("accuracy", "conditions", "comparison")
def accuracies(accuracy: str, conditions: str, comparison: str) -> Facts:
    """Merges of eight networks of the recipe of notebook accuracy, as each of the three notebooks has them, in percent.

    Outcomes: ``in all three``, or ``not measured`` by one of them. Values are by algorithm and notebook, such as
    ``hierarchy_accuracy`` and ``many_conditions``; ``n_comparison`` counts the groups that a notebook averages over,
    and ``images_comparison`` the test images.
    """
    networks = results.provenance(accuracy, "accuracy")["parameters"]["networks"]
    images = results.read(accuracy, "accuracy", "images")
    whole = {name: contrast(images, [term(name, BLOCK)], BLOCK) for name in COMPARED}
    values = {f"{name}_accuracy": decimal(shares.mean(), 1) for name, shares in whole.items()}
    values |= {"n_accuracy": str(len(whole["hierarchy"])), "images_accuracy": str(whole["hierarchy"].shape[1])}
    for notebook, run, table in (("conditions", conditions, "conditions"), ("comparison", comparison, "nodes")):
        own = of_recipe(results.read(run, notebook, table), networks)
        for name in COMPARED:
            nodes = picked(own, {"algorithm": name})["value"]
            if not len(nodes):
                return Facts(NOT_MEASURED, {})
            values |= {f"{name}_{notebook}": decimal(100 * nodes.mean(), 1), f"n_{notebook}": str(len(nodes))}
    tested = results.provenance(comparison, "comparison")["parameters"]["comparison_test_images"]
    return Facts("in all three", values | {"images_comparison": str(tested)})


def of_recipe(table: pd.DataFrame, networks: dict[str, Any]) -> pd.DataFrame:
    """The test accuracies of merges of eight, as merged, of the networks that a plan has after its last epoch."""
    recipe = {name: networks[name] for name in ("dataset", *RECIPE) if name in table and name in networks}
    kind = {"metric": "accuracy", "mended": "none", "n_leaves": BLOCK, "epochs": networks["epochs"][-1]}
    return picked(table, recipe | kind)
