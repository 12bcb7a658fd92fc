"""The tables of the notebooks mnist and barriers in the columns of one schema.

``algorithm`` becomes ``matcher``, in which ``naive`` is ``none``; the tables of mnist get the columns of their recipe,
that of barriers the section that each recipe is trained for. Metrics that every path has by now are added as far as the
tables hold them: to barriers the barrier over the ends and the midpoint alone, from the mean of the ends, the midpoint
and its gain; to mnist all of them, from the paths, which were kept after the last epoch only. Of mnist's earlier epochs
they cannot be had.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from lab.bookkeeping.results import provenance, results_folder
from lab.measures.paths import PATH, path_barriers
from lab.training.recipe import Recipe

RUN = "cpu"  # the only run of these notebooks that is committed
MATCHER = {"naive": "none"}
SECTIONS = {
    "width": ["mnist width", "resnet20 width", "vgg16 width", "digits width"],
    "epochs": ["cifar10 mlp", "digits mlp"],
    "failures": ["mnist sgd low", "mnist adam high", "mnist vgg", "digits sgd low"],
    "norms": ["resnet20 batch norm", "resnet20 layer norm"],
    "split": ["cifar10 split", "cifar10 whole", "digits split", "digits whole"],
}
SECTION_OF = {recipe: section for section, recipes in SECTIONS.items() for recipe in recipes}


def with_matcher(old: pd.DataFrame) -> pd.DataFrame:
    return old.rename(columns={"algorithm": "matcher"}).replace({"matcher": MATCHER})


def mnist_setting(parameters: dict) -> dict:
    """The columns that are the same in all rows of mnist's tables."""
    width, size, rate = (parameters[f"mnist_{name}"] for name in ("width", "batch_size", "learning_rate"))
    recipe = Recipe("mlp", width, size, rate, seed=parameters["seed"], initial="lecun_normal")
    setting = {"mended": "none", "points": parameters["barrier_points"]}
    return setting | {"dataset": parameters["mnist_dataset"], **asdict(recipe)}


def mnist_paths(old: pd.DataFrame, parameters: dict) -> pd.DataFrame:
    return with_matcher(old).assign(**mnist_setting(parameters))


def mnist_barriers(old: pd.DataFrame, paths: pd.DataFrame, parameters: dict) -> pd.DataFrame:
    """With the metrics of the paths after the last epoch below the old rows."""
    table = with_matcher(old)
    whole = path_barriers(with_matcher(paths))
    known = table.merge(whole, on=[*PATH, "metric"], suffixes=("", "_again"))
    # What is there already comes out again, to the last bit, so that what is added is what would have been measured.
    assert (known["value"] == known["value_again"]).all()
    added = whole[~whole["metric"].isin(old["metric"].unique())]
    return pd.concat([table, added], ignore_index=True).assign(**mnist_setting(parameters))


def barriers(old: pd.DataFrame) -> pd.DataFrame:
    """With the barrier over the ends and the midpoint alone below the old rows."""
    table = with_matcher(old)
    table.insert(table.columns.get_loc("recipe"), "section", table["recipe"].map(SECTION_OF))
    return pd.concat([table, of_three(table, "loss"), of_three(table, "accuracy")], ignore_index=True)


def of_three(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of the barrier over the ends and the midpoint: the worst of the three minus the mean of the ends.

    The worse end is twice their mean minus the better one, which is the midpoint plus (of accuracy, minus) its gain.
    """
    rows = {name: table[table["metric"] == f"{metric}_{name}"] for name in ("barrier", "ends", "midpoint", "gain")}
    names = [column for column in table if column not in ("metric", "value")]
    for part in rows.values():
        assert (part[names].to_numpy() == rows["barrier"][names].to_numpy()).all()
    barrier, ends, midpoint, gain = (part["value"].to_numpy() for part in rows.values())
    sign = 1 if metric == "loss" else -1
    better = sign * midpoint + gain
    height = np.maximum(sign * midpoint, 2 * sign * ends - better) - sign * ends
    # Of paths of three points it is the barrier that was measured.
    value = np.where(rows["barrier"]["points"] == 3, barrier, height)
    return rows["barrier"].assign(metric=f"{metric}_barrier_of_three", value=value)


def committed_mnist_barriers(old: pd.DataFrame) -> pd.DataFrame:
    # Before the paths are converted: tables are, in the order of TABLES.
    paths = pd.read_parquet(results_folder() / RUN / "mnist-paths.parquet")
    return mnist_barriers(old, paths, provenance(RUN, "mnist")["parameters"])


def committed_mnist_paths(old: pd.DataFrame) -> pd.DataFrame:
    return mnist_paths(old, provenance(RUN, "mnist")["parameters"])


def barriers_parameters(old: dict) -> dict:
    entries = [
        {"recipe": entry["recipe"], "section": SECTION_OF[entry["recipe"]]} | entry for entry in old["barrier_recipes"]
    ]
    return old | {"barrier_recipes": entries}


TABLES = {
    ("mnist", "barriers"): committed_mnist_barriers,
    ("mnist", "paths"): committed_mnist_paths,
    ("barriers", "barriers"): barriers,
}
PARAMETERS = {"barriers": barriers_parameters}
ADDED = {("mnist", "barriers"), ("barriers", "barriers")}  # tables that get rows below their old ones
