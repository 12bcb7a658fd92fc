"""A claim is decided by its rule alone: planted results come out with the verdict that was planted."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from rebasin.lab import results
from rebasin.lab.claims import (
    FEWEST_FOR_VERDICT,
    INCONCLUSIVE,
    NOT_REPLICATED,
    NOT_RUN,
    PARTLY,
    REPLICATED,
    combine,
    contrast,
    decide,
    judge,
    stated_claims,
)
from rebasin.lab.data import load
from rebasin.lab.merges import ALGORITHMS
from rebasin.lab.statistics import Interval


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


def images_table(nodes):
    """The table ``images`` of notebooks/accuracy.ipynb from bits by (algorithm, number of leaves, node)."""
    rows = [(*kind, np.packbits(np.array(bits, bool)).tobytes(), len(bits)) for kind, bits in nodes.items()]
    return pd.DataFrame(rows, columns=["algorithm", "n_leaves", "node", "correct", "images"])


def planted_images(accuracy, trees, images=200):
    """Nodes of 8-leaf trees: ``accuracy`` by (algorithm, leaves), of which each node misses a little, at random."""
    hardness = np.random.default_rng(0).random(images)
    nodes = {}
    for (algorithm, size), share in accuracy.items():
        for node in range(trees * 8 // size):
            # MergeMany has the hierarchy's noise with neighbours swapped: equal shares give a mean gap of exactly 0.
            rng = np.random.default_rng((size, node ^ (algorithm == "merge_many")))
            nodes[algorithm, size, node] = hardness + rng.normal(0, 0.02, images) < share
    return images_table(nodes)


def plant(run, tables):
    """Let a run have these tables of notebooks/accuracy.ipynb."""
    parameters = results.declared_parameters("accuracy") | {"run": run}
    results.finish(clean(results.begin("accuracy", parameters)), load("digits"), tables)


def clean(experiment):
    """The experiment as from a clean tree, whatever the tree that the tests run in."""
    return dataclasses.replace(experiment, code=experiment.code | {"clean": True})


TREE_WINS = {
    ("unmerged", 1): 0.95,
    ("tree", 4): 0.85, ("merge_many", 4): 0.80, ("naive", 4): 0.4,
    ("tree", 8): 0.80, ("merge_many", 8): 0.60, ("naive", 8): 0.2,
}  # fmt: skip
SWAPPED = {"tree": "merge_many", "merge_many": "tree"}
TREE_LOSES = {(SWAPPED.get(algorithm, algorithm), size): share for (algorithm, size), share in TREE_WINS.items()}


def term(algorithm, n_leaves, weight=1):
    return {"algorithm": algorithm, "n_leaves": n_leaves, "weight": weight}


def test_a_contrast_is_the_weighted_sum_of_accuracies_by_block_and_image():
    # Two blocks of two leaves, on three images: nine bits would not fill a byte either.
    images = images_table(
        {
            ("unmerged", 1, 0): [1, 1, 0],
            ("unmerged", 1, 1): [1, 0, 0],
            ("unmerged", 1, 2): [0, 1, 1],
            ("unmerged", 1, 3): [0, 1, 1],
            ("tree", 2, 0): [0, 1, 0],
            ("tree", 2, 1): [1, 1, 0],
        }
    )
    found = contrast(images, [term("unmerged", 1), term("tree", 2, -1)], 2)
    assert found.tolist() == [[100, -50, 0], [-100, 0, 100]]
    assert contrast(images, [term("tree", 2, 0.5)], 2).tolist() == [[0, 50, 0], [50, 50, 0]]


def test_a_contrast_pairs_nodes_by_their_numbers_in_whatever_order_the_table_has_them():
    images = planted_images(TREE_WINS, trees=4)
    terms = [term("unmerged", 1), term("tree", 8, -1), term("merge_many", 4)]
    shuffled = images.sample(frac=1, random_state=0)
    assert (contrast(shuffled, terms, 8) == contrast(images, terms, 8)).all()


def test_a_contrast_takes_the_blocks_that_all_its_terms_have():
    images = planted_images(TREE_WINS, trees=4)
    few = images[(images["algorithm"] != "unmerged") | (images["node"] < 23)]
    terms = [term("unmerged", 1), term("tree", 8, -1)]
    assert (contrast(few, terms, 8) == contrast(images, terms, 8)[:2]).all()


def test_a_node_larger_than_the_block_is_refused():
    with pytest.raises(ValueError, match="nodes of 8 leaves do not fill blocks of 4"):
        contrast(planted_images(TREE_WINS, trees=1), [term("tree", 8)], 4)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (term("tree", 2), "no block of 8 leaves has all its tree nodes of 2 leaves"),
        (term("pleas", 8), "no block of 8 leaves has all its pleas nodes of 8 leaves"),
    ],
)
def test_nodes_that_were_not_made_are_refused(missing, message):
    with pytest.raises(ValueError, match=message):
        contrast(planted_images(TREE_WINS, trees=1), [term("tree", 8), missing], 8)


def test_a_block_that_is_not_whole_is_refused():
    images = planted_images(TREE_WINS, trees=1)
    with pytest.raises(ValueError, match="no block of 8 leaves has all its unmerged nodes of 1 leaves"):
        contrast(images[images["node"] < 7], [term("unmerged", 1)], 8)


@pytest.mark.parametrize(
    ("low", "high", "n", "verdict"),
    [
        (1.1, 3.0, 8, REPLICATED),
        (1.0, 3.0, 8, INCONCLUSIVE),
        (0.9, 3.0, 8, INCONCLUSIVE),
        (-3.0, 1.0, 8, INCONCLUSIVE),
        (-3.0, 0.9, 8, NOT_REPLICATED),
        (1.1, 3.0, 7, INCONCLUSIVE),
        (-3.0, 0.9, 7, INCONCLUSIVE),
        (np.nan, np.nan, 1, INCONCLUSIVE),
    ],
)
def test_an_effect_is_judged_by_the_side_of_the_bound_that_its_interval_lies_on(low, high, n, verdict):
    assert FEWEST_FOR_VERDICT == 8
    assert judge(Interval((low + high) / 2, low, high, n), above=1.0) == verdict


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_claim_is_what_its_conditions_are_together(length):
    for verdicts in itertools.product((REPLICATED, NOT_REPLICATED, INCONCLUSIVE), repeat=length):
        holds = verdicts.count(REPLICATED)
        if holds == length:
            expected = REPLICATED
        elif holds:
            expected = PARTLY
        else:
            expected = NOT_REPLICATED if NOT_REPLICATED in verdicts else INCONCLUSIVE
        assert combine(verdicts) == expected, verdicts


def test_a_claim_without_conditions_was_not_run_yet():
    assert combine([]) == NOT_RUN


def test_without_a_run_no_claim_was_run_yet():
    decided = decide(None)
    assert [claim.id for claim in decided] == [stated["id"] for stated in stated_claims()]
    assert {(claim.verdict, claim.conditions) for claim in decided} == {(NOT_RUN, ())}


@pytest.mark.parametrize(
    ("accuracy", "trees", "verdicts"),
    [
        (TREE_WINS, 8, {"H1": REPLICATED, "H2": REPLICATED, "H3": REPLICATED}),
        (TREE_LOSES, 8, {"H1": REPLICATED, "H2": NOT_REPLICATED, "H3": REPLICATED}),
        (TREE_WINS | {("merge_many", 4): 0.55}, 8, {"H2": PARTLY}),
        (TREE_WINS | {("tree", 8): 0.95}, 8, {"H3": NOT_REPLICATED}),
        (TREE_WINS | {("naive", 8): 0.9}, 8, {"H1": NOT_REPLICATED}),
        (TREE_WINS, 7, {"H1": INCONCLUSIVE, "H2": INCONCLUSIVE, "H3": INCONCLUSIVE}),
        (TREE_WINS, 1, {"H1": INCONCLUSIVE, "H2": INCONCLUSIVE, "H3": INCONCLUSIVE}),
    ],
    ids=["wins", "loses", "gap shrinks", "nothing lost", "naive is better", "seven trees", "one tree"],
)
def test_planted_results_get_the_verdict_that_was_planted(accuracy, trees, verdicts):
    plant("planted", {"images": planted_images(accuracy, trees)})
    decided = {claim.id: claim for claim in decide("planted")}
    assert {name: decided[name].verdict for name in verdicts} == verdicts
    assert decided["H2"].conditions[0].effect.n == trees
    assert {claim.verdict for name, claim in decided.items() if name not in ("H1", "H2", "H3")} == {NOT_RUN}


def test_the_effect_of_a_condition_is_in_percentage_points():
    plant("planted", {"images": planted_images(TREE_WINS, 8)})
    effect = next(claim for claim in decide("planted") if claim.id == "H2").conditions[0].effect
    # Of 200 images, evenly hard, those between 60 and 80 % were planted: 20 points. Random hardness moves it by
    # 100 sqrt(.2 * .8 / 200) = 2.8 points.
    assert effect.mean == pytest.approx(20, abs=3 * 2.8)
    assert effect.low < effect.mean < effect.high


def test_a_run_without_results_is_no_run_to_decide_on():
    with pytest.raises(FileNotFoundError, match="no table 'images' of notebook 'accuracy' in run 'never'"):
        decide("never")


def test_every_claim_is_stated_in_full_and_once():
    stated = stated_claims()
    for claim in stated:
        assert set(claim) == {"id", "paper", "source", "claim", "statistic", "conditions"}, claim["id"]
        assert all(isinstance(claim[key], str) and claim[key] for key in set(claim) - {"conditions"}), claim["id"]
        for condition in claim["conditions"]:
            assert set(condition) == {"name", "block", "above", "contrast"}, claim["id"]
    ids = [claim["id"] for claim in stated]
    assert len(ids) == len(set(ids))


def test_every_contrast_is_of_nodes_that_an_experiment_makes():
    rules = [rule for claim in stated_claims() for rule in claim["conditions"]]
    assert rules
    for rule in rules:
        assert sum(part["weight"] for part in rule["contrast"]) == 0, rule["name"]
        for part in rule["contrast"]:
            assert set(part) == {"algorithm", "n_leaves", "weight"}
            assert part["algorithm"] in ("unmerged", *ALGORITHMS)
            # Trees have 2, 4, 8, ... leaves, and only a leaf itself is unmerged.
            assert (part["n_leaves"] == 1) == (part["algorithm"] == "unmerged")
            assert part["n_leaves"].bit_count() == 1
            assert rule["block"] % part["n_leaves"] == 0


def test_the_bounds_are_those_that_were_chosen_before_the_runs():
    bounds = {claim["id"]: [rule["above"] for rule in claim["conditions"]] for claim in stated_claims()}
    assert {name: bound for name, bound in bounds.items() if bound} == {"H1": [0], "H2": [0, 0], "H3": [1]}
