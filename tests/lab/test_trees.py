"""A tree of networks is the same alone as among others, and its tables say of every node what a plain loop finds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lab.controls import spoiled
from lab.measures.by_block import counts_by_block
from lab.measures.trees import every_node, fooled_groups, grow, numbered, under_attack, under_halving
from lab.merges import merge_all
from lab.networks import build
from lab.outputs import evaluate
from lab.report.claims import contrast
from lab.report.hierarchy import term
from lab.training.early_stopping import stop_early
from lab.training.plan import Planned
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.permutation import Permutation
from rebasin.tracing import trace
from rebasin.weights import grouped, take

RECIPE = Recipe(width=16, batch_size=64, learning_rate=3e-3, initial="lecun_normal")
NETWORKS = Planned("networks", "digits", RECIPE, (3,), 8, held_out=200, chunk=8)  # in one tree
MERGES = {"hierarchy": [2, 4, 8], "many": [4, 8], "mean": [8]}
L2 = 0.01
IMAGES = 40
# Sums of up to 64 float32 products of order 1.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(digits):
    return build("mlp", digits, RECIPE.width).eval()


@pytest.fixture(scope="module")
def spec(model, digits):
    return trace(model, digits.example)


@pytest.fixture(scope="module")
def tree(digits, spec):
    """The second tree."""
    return grow(1, NETWORKS, digits, spec, MERGES, "cpu", 32)


@pytest.fixture(scope="module")
def inputs(digits):
    return digits.train.sample(100).pixels


@pytest.fixture(scope="module")
def groups(tree, model, spec, digits, inputs):
    return fooled_groups(tree, model, spec, digits, NETWORKS, inputs, L2, "cpu")


def of(groups, algorithm, n_leaves=8, mended="none"):
    (found,) = [g for g in groups if (g.algorithm, g.n_leaves, g.mended) == (algorithm, n_leaves, mended)]
    return found


def test_a_tree_is_made_of_the_networks_that_would_be_trained_with_all_others(tree, digits):
    all_of_them = train(RECIPE, digits, 16, (3,), "cpu", 8).last
    assert tree.first_leaf == 8
    for key, tensor in tree.leaves.items():
        assert torch.equal(tensor, all_of_them[key][8:])


def test_a_tree_is_merged_in_an_order_of_its_own(tree, spec):
    (many,) = [nodes for nodes in tree.merged if (nodes.algorithm, nodes.n_leaves) == ("many", 8)]
    orders = [merge_all(spec, tree.leaves, {"many": [8]}, seed, "cpu")[0] for seed in (1, 2)]
    assert same(many.weights, orders[0].weights)
    assert not same(many.weights, orders[1].weights), "the order decides"


def test_every_node_has_its_accuracy_and_its_norm_as_merged_and_after_repair(tree, model, spec, digits, inputs):
    nodes, images = every_node(tree, model, spec, digits.test, inputs, "cpu", 8)
    counts = nodes[nodes["metric"] == "accuracy"].groupby(["algorithm", "mended", "n_leaves"]).size()
    assert counts["unmerged", "none", 1] == 8
    for algorithm, sizes in MERGES.items():
        for size in sizes:
            assert counts[algorithm, "none", size] == counts[algorithm, "repair", size] == 8 // size
    value = nodes.set_index(["algorithm", "mended", "n_leaves", "node", "metric"])["value"]
    (four,) = [merged for merged in tree.merged if (merged.algorithm, merged.n_leaves) == ("hierarchy", 4)]
    # The node by its definition: the mean of its permuted leaves.
    mean = {k: v.mean(1) for k, v in Permutation(spec, four.indices).apply(grouped(tree.leaves, 4)).items()}
    right = evaluate(model, mean, digits.test, "cpu", 2).correct
    for node in range(2):
        assert value["hierarchy", "none", 4, node, "accuracy"] == pytest.approx(float(right[node].double().mean()))
        matrices = [tensor[node].flatten() for tensor in mean.values() if tensor.ndim > 2]
        norm = float(torch.cat(matrices).double().norm())
        assert value["hierarchy", "none", 4, node, "l2_norm"] == pytest.approx(norm, rel=1e-5)
    assert value["unmerged", "none", 1, 0, "lipschitz"] > value["hierarchy", "none", 8, 0, "lipschitz"]
    bits = images.set_index(["algorithm", "n_leaves", "node"])["correct"]
    for (algorithm, size, node), packed in bits.items():
        unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(digits.test.labels))
        assert unpacked.mean() == pytest.approx(value[algorithm, "none", size, node, "accuracy"])


def test_controls_are_as_accurate_as_the_merge_and_made_of_its_first_leaf(tree, groups, model, digits):
    def accuracy(group):
        return evaluate(model, group.weights, digits.held_out, "cpu", 8).correct.double().mean(1)

    target = accuracy(of(groups, "hierarchy"))
    stopped, noisy, penalised = of(groups, "early_stopped"), of(groups, "noise"), of(groups, "l2")
    assert stopped.nodes == noisy.nodes == penalised.nodes == (0,)
    # Of 200 images; noise of a continuous strength comes nearer than a whole step of training.
    assert (accuracy(noisy) - target).abs().max() <= 0.03
    assert (accuracy(stopped) - target).abs().max() <= 0.1
    leaf = take(tree.leaves, slice(1))
    for key, tensor in noisy.weights.items():
        assert torch.equal(tensor, leaf[key]) == (tensor.ndim < 3), "noise is on matrices alone"
    targets = target.reshape(1, 1)
    assert same(take(stop_early(RECIPE, digits, [8], targets, 3, "cpu", 8).weights, 0), stopped.weights)
    trained = train(replace(RECIPE, l2=L2), digits, 1, (3,), "cpu", first=8).last
    assert same(trained, penalised.weights) and penalised.strength == L2


def same(a, b):
    return all(torch.allclose(a[key], b[key], **ROUNDING) for key in a)


def test_what_is_spoiled_to_its_own_accuracy_is_left_as_it_is(tree, groups, digits):
    leaf = of(groups, "unmerged", 1)
    assert same(spoiled(leaf, tree.leaves, digits, 0, "cpu", 8).weights, leaf.weights)


def test_attacked_images_are_lost_for_good_and_merges_stand_beside_their_controls(groups, digits):
    split = digits.test.sample(IMAGES)
    attacked = under_attack(groups, split, [0, 4, 16], 3, 0, "cpu", 8)
    assert len(attacked) == 3 * len(groups) and set(attacked["images"]) == {IMAGES}
    bits = attacked.set_index(["algorithm", "mended", "n_leaves", "epsilon"])["correct"]
    for algorithm, mended, n_leaves in {key[:3] for key in bits.index}:
        curve = [np.unpackbits(np.frombuffer(bits[algorithm, mended, n_leaves, at], np.uint8)) for at in (0, 4, 16)]
        assert (curve[0] >= curve[1]).all() and (curve[1] >= curve[2]).all() and curve[2].sum() < curve[0].sum()
    right = evaluate(groups[0].model, groups[0].weights, split, "cpu", 8).correct[0]
    assert np.unpackbits(np.frombuffer(bits["unmerged", "none", 1, 0], np.uint8), count=IMAGES).sum() == right.sum()


def test_what_is_retained_is_the_share_above_chance(groups, digits):
    table = under_halving(groups[:1], digits.test, {"contrast": 0.2, "rotation": 30.0}, 0, "cpu", 8)
    value = table.set_index("metric")["value"]
    shares = [(value[kind] - 0.1) / (value["clean"] - 0.1) for kind in ("contrast", "rotation")]
    assert value["retained"] == pytest.approx(np.mean(shares))
    assert table.set_index("metric")["amount"].dropna().to_dict() == {"contrast": 0.2, "rotation": 30.0}


def test_what_nodes_get_right_is_counted_block_by_block_and_contrasts_stay_the_same(tree, model, spec, digits, inputs):
    _, images = every_node(tree, model, spec, digits.test, inputs, "cpu", 8)
    later = images.assign(node=images["node"] + 8 // images["n_leaves"])  # the same nodes in the next block
    bits = pd.concat([images, later], ignore_index=True)
    counts = counts_by_block(bits, 8)
    assert len(counts) == 2 * len(images.groupby(["algorithm", "n_leaves"]))
    leaves = counts[counts["algorithm"] == "unmerged"]
    assert leaves["node"].tolist() == [0, 8] and leaves["out_of"].tolist() == [8, 8]
    right = evaluate(model, tree.leaves, digits.test, "cpu", 8).correct.sum(0)
    assert np.frombuffer(leaves["correct"].iloc[0], np.uint8).tolist() == right.tolist()
    for minuend, size in (("hierarchy", 4), ("hierarchy", 8), ("many", 8)):
        terms = [term(minuend, size), term("unmerged", 1, -1)]
        assert np.allclose(contrast(bits, terms, 8), contrast(counts, terms, 8), rtol=0, atol=1e-12)


def test_nodes_larger_than_a_block_are_refused_to_be_counted():
    images = pd.DataFrame({"n_leaves": [16], "node": [0]})
    with pytest.raises(ValueError, match="nodes of 16 leaves are larger than blocks of 8"):
        counts_by_block(images, 8)


def test_nodes_are_numbered_on_from_tree_to_tree(tree):
    table = pd.DataFrame({"n_leaves": [1, 4, 8], "node": [3, 1, 0]})
    told = numbered(table, tree)
    assert told["node"].tolist() == [8 + 3, 2 + 1, 1 + 0] and told["tree"].tolist() == [1, 1, 1]
