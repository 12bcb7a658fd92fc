"""What the book has of the same eight networks in three places: each with its groups and images."""

import numpy as np
import pandas as pd
import pytest
from planting import TREE_WINS, clean, digits, plant_accuracy, plant_conditions, planted_comparison

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.report import repeated
from lab.training.plan import Planned
from lab.training.recipe import Recipe


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


def plant_comparison(networks):
    recipe = Recipe(**{name: networks[name] for name in ("width", "batch_size", "learning_rate", "initial")})
    columns = Planned("tiny", "digits", recipe, tuple(networks["epochs"]), 16).columns(networks["epochs"][-1])
    other = columns | {"width": 2 * recipe.width}
    table = planted_comparison([columns, other], [(1, 2, 4), (30, 30, 30)], (0, 0, 0), (0, 0, 0), 16)
    given = results.declared_parameters("comparison") | {"run": "mine"}
    results.finish(clean(results.begin("comparison", given)), digits(), {"nodes": table}, models="some")
    return given["comparison_test_images"]


def test_accuracies_of_one_recipe_come_with_their_groups_and_images(own_results):
    plant_accuracy("mine", TREE_WINS, 4)
    networks = results.declared_parameters("accuracy")["networks"]
    recipe = (networks["width"], networks["initial"], networks["epochs"][-1], networks["weight_decay"])
    plant_conditions("mine", {recipe: (3, 9), (2 * recipe[0], *recipe[1:]): (30, 30)})
    images = plant_comparison(networks)
    facts = repeated.accuracies("mine", "mine", "mine")
    assert facts.outcome == "in all three"
    expected = {"hierarchy_conditions": "53.0", "many_conditions": "50.0", "n_conditions": "1"}
    expected |= {"hierarchy_comparison": "54.0", "many_comparison": "50.0", "n_comparison": "2"}
    expected |= {"n_accuracy": "4", "images_accuracy": "200", "images_comparison": str(images)}
    assert expected.items() <= facts.values.items()


def test_a_recipe_that_another_notebook_does_not_have_was_not_measured(own_results):
    plant_accuracy("mine", TREE_WINS, 4)
    plant_conditions("mine", {(7, "torch", 3, 0.0): (3, 9)})
    plant_comparison(results.declared_parameters("accuracy")["networks"])
    assert repeated.accuracies("mine", "mine", "mine").outcome == "not measured"


def test_in_the_committed_tables_they_are_the_same_networks(monkeypatch):
    # So that the chapters may call their networks the first ones of the hierarchy's.
    monkeypatch.setenv("REBASIN_RESULTS", str(ROOT / "results"))
    networks = results.provenance("cpu", "accuracy")["parameters"]["networks"]
    images = results.read("cpu", "accuracy", "images")
    images = images[images["n_leaves"] == repeated.BLOCK].set_index(["algorithm", "node"])
    correct = images.apply(
        lambda row: np.unpackbits(np.frombuffer(row["correct"], np.uint8), count=row["images"]), axis=1
    )
    tested = results.provenance("cpu", "comparison")["parameters"]["comparison_test_images"]
    chosen = np.random.default_rng(0).permutation(len(correct.iloc[0]))[:tested]  # as Split.sample chooses
    for notebook, table, seen in (("conditions", "conditions", slice(None)), ("comparison", "nodes", chosen)):
        own = repeated.of_recipe(results.read("cpu", notebook, table), networks)
        own = own[own["algorithm"].isin(repeated.COMPARED)].set_index(["algorithm", "node"])["value"]
        again = pd.Series({kind: correct[kind][seen].mean() for kind in own.index})
        assert again.to_numpy() == pytest.approx(own.to_numpy(), abs=1e-9), notebook
