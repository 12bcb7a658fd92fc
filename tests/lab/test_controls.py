"""The groups that robustness is compared on are made of the right leaves, and numbered by them."""

from dataclasses import replace

import pytest
import torch
from composing import compared
from torch.func import functional_call

from lab import controls, merges
from lab.controls import check_comparison, one_per_block, penalised, stopped_early
from lab.measures.norms import layer_norms
from lab.merges import merge_all
from lab.networks import build
from lab.outputs import evaluate
from lab.training import early_stopping
from lab.training import train as training
from lab.training.early_stopping import stop_early
from lab.training.plan import Planned
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.permutation import Permutation
from rebasin.tracing import trace
from rebasin.weights import grouped, take

RECIPE = Recipe(width=16, batch_size=64, learning_rate=3e-3, initial="lecun_normal")
NETWORKS = Planned("networks", "digits", RECIPE, (2,), 16, held_out=200, chunk=16)
SIZES = {"hierarchy": [2, 4, 8], "many": [2, 4], "mean": [2, 4, 8]}
PENALTIES = {"l1": [0.01], "l2": [0.01, 0.1]}
REPAIR_IMAGES = 100
PLAIN = ("hierarchy", "many", "mean")
# Two nodes of every size in two blocks of eight leaves.
NUMBERS = {1: (0, 8), 2: (0, 4), 4: (0, 2), 8: (0, 1)}
# Sums of up to 64 float32 products of order 1.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def made(digits, networks=NETWORKS, sizes=SIZES, penalties=PENALTIES, repair_images=REPAIR_IMAGES):
    return compared(digits, networks, sizes, penalties, 3, repair_images)


@pytest.fixture(scope="module")
def groups(digits):
    return made(digits)


@pytest.fixture(scope="module")
def leaves(digits, groups):
    return train(RECIPE, digits, NETWORKS.models, NETWORKS.epochs, "cpu", NETWORKS.chunk).last


@pytest.fixture(scope="module")
def model(digits):
    return build("mlp", digits, RECIPE.width)


@pytest.fixture(scope="module")
def spec_of_mlp(model, digits):
    return trace(model, digits.example)


@pytest.fixture(scope="module")
def merged(spec_of_mlp, leaves, tmp_path_factory):
    """All nodes of every plain merge, by algorithm and size, merged anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(tmp_path_factory.mktemp("other")))
        found = merge_all(spec_of_mlp, leaves, SIZES, RECIPE.seed)
    return {(nodes.algorithm, nodes.n_leaves): nodes for nodes in found}


def kinds(groups):
    return [(*group.kind, group.nodes) for group in groups]


def of(groups, *algorithms, mended="none"):
    chosen = [group for group in groups if group.algorithm in algorithms and group.mended == mended]
    assert chosen
    return chosen


def permuted_leaves(spec, leaves, nodes):
    """The leaves of all these nodes (nodes, n, ...), in their nodes' basins."""
    return Permutation(spec, nodes.indices).apply(grouped(leaves, nodes.n_leaves))


def entry(weights, *position):
    return {key: tensor[position] for key, tensor in weights.items()}


def forbid(monkeypatch, module, *names):
    for name in names:

        def refuse(*args, name=name, **kwargs):
            raise AssertionError(f"{name} was called again")

        monkeypatch.setattr(module, name, refuse)


def test_every_group_comes_out_with_one_node_for_each_block_of_eight_leaves(groups):
    expected = [("unmerged", 1), ("hierarchy", 2), ("hierarchy", 4), ("hierarchy", 8), ("many", 2), ("many", 4)]
    expected += [("mean", 2), ("mean", 4), ("mean", 8)]
    counted = [(algorithm, "none", size, 0.0, NUMBERS[size]) for algorithm, size in expected]
    mended = [("hierarchy", 2), ("hierarchy", 4), ("hierarchy", 8), ("many", 2), ("many", 4)]
    counted += [(algorithm, "repair", size, 0.0, NUMBERS[size]) for algorithm, size in mended]
    counted.append(("ensemble", "none", 8, 0.0, (0, 1)))
    counted += [("early_stopped", "none", size, 0.0, NUMBERS[size]) for size in (2, 4, 8)]
    penalised = [("l1", 0.01), ("l2", 0.01), ("l2", 0.1)]
    counted += [(penalty, "none", 1, strength, (0, 1, 2)) for penalty, strength in penalised]
    assert kinds(groups) == counted
    for group in groups:
        assert all(len(tensor) == len(group.nodes) for tensor in group.weights.values())
        assert group.alignment.shape == (len(group.nodes),)


def test_every_group_can_be_evaluated_by_its_own_model(groups, digits):
    for group in groups:
        assert not group.model.training
        correct = evaluate(group.model, group.weights, digits.test, "cpu", len(group.nodes)).correct
        assert correct.shape == (len(group.nodes), len(digits.test.labels))


def test_trees_wider_than_a_block_have_all_their_nodes_and_their_first_leaves_are_stopped(
    groups, digits, cache, monkeypatch
):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    wide = made(digits, sizes={"hierarchy": [2, 4, 8, 16], "mean": [2, 4, 8, 16]}, penalties={})
    numbers = [NUMBERS[2], NUMBERS[4], NUMBERS[8], (0,)]
    for algorithm in ("hierarchy", "mean", "early_stopped"):
        assert [group.nodes for group in of(wide, algorithm)] == numbers
    assert [group.nodes for group in of(wide, "hierarchy", mended="repair")] == numbers
    assert not {"many", "l1", "l2"} & {group.algorithm for group in wide}
    assert all(len(tensor) == 1 for tensor in of(wide, "early_stopped")[-1].weights.values())


def test_the_unmerged_are_the_first_leaf_of_each_block(groups, leaves):
    (group,) = of(groups, "unmerged")
    assert all(torch.equal(group.weights[key], tensor[[0, 8]]) for key, tensor in leaves.items())


def test_a_merged_node_is_the_mean_of_its_own_leaves(groups, leaves, merged, spec_of_mlp):
    for group in of(groups, *PLAIN):
        nodes, rows = merged[group.algorithm, group.n_leaves], list(group.nodes)
        permuted = permuted_leaves(spec_of_mlp, leaves, nodes)
        for key, tensor in group.weights.items():
            torch.testing.assert_close(tensor, nodes.weights[key][rows], **ROUNDING)
            torch.testing.assert_close(tensor, permuted[key].mean(1)[rows], **ROUNDING)
        torch.testing.assert_close(group.alignment, nodes.alignment[rows].to(group.alignment), **ROUNDING)


def test_only_plain_merges_have_an_alignment(groups):
    for group in groups:
        plain = group.algorithm in PLAIN and group.mended == "none"
        assert (group.alignment.isfinite() if plain else group.alignment.isnan()).all(), group.algorithm


def test_a_repaired_node_has_the_statistics_of_its_leaves(groups, leaves, merged, spec_of_mlp, digits, model):
    pixels = digits.train.sample(REPAIR_IMAGES).pixels
    x = model.normalise(pixels).flatten(1)

    def statistics(weights):
        found, here = [], x
        for layer in ("layer1", "layer2", "layer3"):
            before = here @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
            found.append(torch.stack([before.mean(0), before.std(0)]))
            here = before.clamp(min=0)
        return torch.stack(found)

    for group in of(groups, "hierarchy", "many", mended="repair"):
        permuted = permuted_leaves(spec_of_mlp, leaves, merged[group.algorithm, group.n_leaves])
        plain = next(g for g in groups if g.kind == (group.algorithm, "none", group.n_leaves, 0.0))
        for position, node in enumerate(group.nodes):
            goal = torch.stack([statistics(entry(permuted, node, i)) for i in range(group.n_leaves)]).mean(0)
            # Sums of 100 float32 numbers of order 1 to 10, each layer's error carried through the next.
            torch.testing.assert_close(statistics(entry(group.weights, position)), goal, rtol=1e-4, atol=1e-4)
            assert (statistics(entry(plain.weights, position)) - goal).abs().max() > 0.01, "there was much to repair"


def test_an_ensemble_says_the_mean_of_what_its_leaves_say(groups, leaves, digits, model):
    (group,) = of(groups, "ensemble")
    x = digits.test.images[:50].float() / 255
    for block in range(2):
        logits = functional_call(group.model, entry(group.weights, block), (x,))
        each = [functional_call(model, entry(leaves, leaf), (x,)) for leaf in range(8 * block, 8 * block + 8)]
        torch.testing.assert_close(logits, torch.stack(each).mean(0), **ROUNDING)


def test_the_first_leaf_of_each_node_is_stopped_at_the_accuracy_of_the_node(groups, digits):
    hierarchy, early = of(groups, "hierarchy"), of(groups, "early_stopped")
    assert [group.nodes for group in early] == [group.nodes for group in hierarchy]
    targets = torch.stack(
        [evaluate(group.model, group.weights, digits.held_out, "cpu").correct.double().mean(1) for group in hierarchy]
    )
    # In both blocks, whatever the size, the first leaf is the block's: 0 and 8.
    stopped = stop_early(RECIPE, digits, [0, 8], targets, NETWORKS.epochs[-1], "cpu", NETWORKS.chunk)
    for row, group in enumerate(early):
        assert all(torch.equal(group.weights[key], tensor[row]) for key, tensor in stopped.weights.items())
        correct = evaluate(group.model, group.weights, digits.held_out, "cpu").correct
        torch.testing.assert_close(correct.double().mean(1), stopped.accuracy[row])


def test_a_strong_penalty_leaves_smaller_weights(groups):
    def norm(group, order):
        return layer_norms(group.weights)["all", f"l{order}"]

    (leaves,), (l1,), (l2, stronger) = of(groups, "unmerged"), of(groups, "l1"), of(groups, "l2")
    assert norm(l1, 1).max() < norm(leaves, 1).min()
    assert norm(l2, 2).max() < norm(leaves, 2).min()
    assert norm(stronger, 2).max() < norm(l2, 2).min()


def test_a_second_call_trains_merges_repairs_and_stops_nothing(groups, digits, cache, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    forbid(monkeypatch, training, "train_stack")
    forbid(monkeypatch, merges, "merge_hierarchical", "merge")
    forbid(monkeypatch, controls, "repair")
    forbid(monkeypatch, early_stopping, "train_epoch")
    again = made(digits)
    assert kinds(again) == kinds(groups)
    for one, other in zip(again, groups, strict=True):
        assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights | other.weights)
        torch.testing.assert_close(one.alignment, other.alignment, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"repair_images": 50}, "repair"),
        ({"sizes": SIZES | {"many": [8]}}, "merge"),
        ({"networks": replace(NETWORKS, epochs=(1,))}, "train_stack"),
    ],
)
def test_another_setting_is_computed_anew(groups, digits, cache, monkeypatch, change, name):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    forbid(monkeypatch, training, "train_stack")
    forbid(monkeypatch, merges, "merge")
    forbid(monkeypatch, controls, "repair")
    with pytest.raises(AssertionError, match=f"{name} was called again"):
        made(digits, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0}, "on held-out images, and there are none: set held_out"),
        ({"models": 12}, "in blocks of 8 leaves, so that 12 models do not come out even"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_comparison(replace(NETWORKS, **change))


def test_nodes_that_fill_no_block_are_refused(spec_of_mlp, leaves, model):
    (three,) = merge_all(spec_of_mlp, take(leaves, slice(12)), {"mean": [3]})
    with pytest.raises(ValueError, match="nodes of 3 leaves cannot be compared block by block, of 8 leaves each"):
        one_per_block(three, model)


def test_without_merges_nothing_is_stopped_early(digits):
    assert stopped_early([], digits, NETWORKS, "cpu") == []


def test_a_penalty_that_there_is_not_is_named(digits, model):
    with pytest.raises(ValueError, match="unknown penalty 'l3': there are l1, l2"):
        penalised(model, digits, NETWORKS, {"l3": [0.1]}, 1, "cpu")
