"""The nodes that are compared are those of the merging functions, mended as told, and are computed once."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lab import merges
from lab.data import load
from lab.images import Split
from lab.measures import comparison
from lab.measures.comparison import compare, measure_merges, sizes_for
from lab.networks import build
from lab.training.plan import read_plan
from rebasin.matching.by_weights import weight_matching
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.merging.mending import mender, repair
from rebasin.tracing import trace
from rebasin.weights import mean

ENTRY = {"recipe": "tiny", "dataset": "digits", "epochs": [1, 2], "models": 4, "width": 8, "batch_size": 64, "chunk": 4}
# Sums of a few dozen float32 numbers of order 1, in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def network():
    """A small MLP on the digits, eight of its fresh weights, and images."""
    data = load("digits")
    model = build("mlp2", data, 8)
    torch.manual_seed(0)
    leaves = {key: 0.5 * torch.randn(8, *tensor.shape) for key, tensor in model.state_dict().items()}
    return model, leaves, Split(data.train.images[:200], data.train.labels[:200]).pixels


@pytest.fixture(scope="module")
def found(network, tmp_path_factory):
    """Every merge in groups of two, four and eight, by (algorithm, mending, number of leaves)."""
    model, leaves, inputs = network
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {(a, m, size): w for a, m, size, w in comparison.merges(model, leaves, inputs, [2, 4, 8], True)}


def groups_of(leaves, size):
    return {key: tensor.unflatten(0, (-1, size)) for key, tensor in leaves.items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **ROUNDING)


def test_there_are_nodes_of_every_kind_and_size(found):
    mendings = {
        "tree": ("none", "repair", "repair every stage"),
        "merge_many": ("none", "repair"),
        "naive": ("none", "repair"),
    }
    kinds = {(a, mended, size) for a, some in mendings.items() for mended in some for size in (2, 4, 8)}
    assert set(found) == kinds | {("unmerged", "none", 1)}
    for (_, _, size), weights in found.items():
        assert all(len(tensor) == 8 // size for tensor in weights.values())


@pytest.mark.parametrize("size", [2, 4, 8])
def test_nodes_are_those_of_the_merging_functions_called_on_their_leaves(network, found, size):
    model, leaves, inputs = network
    spec = trace(model, inputs[:2])
    groups = groups_of(leaves, size)
    tree = merge_hierarchical(spec, groups)
    many = merge_many(spec, groups)
    direct = {
        "tree": (tree.weights, tree.permutation.apply(groups)),
        "merge_many": (many.weights, many.permutation.apply(groups)),
        "naive": (mean(groups, axis=1), groups),
    }
    for algorithm, (merged, parents) in direct.items():
        assert_close(found[algorithm, "none", size], merged)
        assert_close(found[algorithm, "repair", size], repair(model, merged, parents, inputs))


def test_merges_of_one_size_are_those_of_all_sizes(network, found):
    model, leaves, inputs = network
    some = {(a, mended, size): w for a, mended, size, w in comparison.merges(model, leaves, inputs, [8], False)}
    kinds = {(a, mended, 8) for a in ("tree", "merge_many", "naive") for mended in ("none", "repair")}
    assert set(some) == kinds | {("unmerged", "none", 1)}
    for kind, weights in some.items():
        assert_close(weights, found[kind])


@pytest.mark.parametrize("architecture", ["resnet20_bn", "vgg16_ln", "vit"])
def test_every_kind_of_network_is_merged_mended_and_tested(architecture):
    data = load("digits")
    model = build(architecture, data, 8 if architecture == "vit" else 2)
    leaves = {key: torch.stack([tensor, tensor.clone()]) for key, tensor in model.state_dict().items()}
    inputs = data.train.images[:20].float() / 255
    table = measure_merges(model, leaves, inputs, data.test.sample(30), [2], True, 0, "cpu", 2, 8)
    kinds = table.groupby(["algorithm", "mended"]).size()
    assert kinds["unmerged", "none"] == 4 and kinds["tree", "repair every stage"] == 2 and len(kinds) == 8
    of = table[table["metric"] == "loss"].set_index(["algorithm", "mended"])["value"]
    # Twice the same network: its merge is itself.
    assert of["tree", "none"] == pytest.approx(of["unmerged", "none"].iloc[0], rel=1e-4)


def test_of_two_leaves_the_end_is_every_stage(found):
    assert_close(found["tree", "repair every stage", 2], found["tree", "repair", 2])


def test_mending_at_every_stage_is_a_plain_loop_that_repairs_each_midpoint_to_its_two_parents(network, found):
    model, leaves, inputs = network
    spec = trace(model, inputs[:2])
    nodes = [{key: tensor[i] for key, tensor in leaves.items()} for i in range(8)]
    rng = np.random.default_rng(0)  # as the hierarchy draws its visiting orders, one for each stage
    for size in (2, 4, 8):
        seed, above = int(rng.integers(2**31)), []
        for a, b in zip(nodes[::2], nodes[1::2], strict=True):
            b = weight_matching(spec, a, b, seed=seed).permutation.apply(b)
            middle = {key: (a[key] + b[key]) / 2 for key in a}
            parents = {key: torch.stack([a[key], b[key]]) for key in a}
            node = repair(model, middle, parents, inputs)
            above.append(node)
            # By hand, for the first layer: each unit has the mean of its parents' means and of their deviations.
            mine, *theirs = (inputs.flatten(1) @ w["layer1.weight"].T + w["layer1.bias"] for w in (node, a, b))
            torch.testing.assert_close(mine.mean(0), torch.stack(theirs).mean((0, 1)), **ROUNDING)
            torch.testing.assert_close(mine.std(0), torch.stack(theirs).std(1).mean(0), **ROUNDING)
        nodes = above
        expected = {key: torch.stack([node[key] for node in nodes]) for key in leaves}
        assert_close(found["tree", "repair every stage", size], expected)


def test_a_batch_norm_is_given_its_own_statistics_and_its_parents_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()
    parents = {
        key: torch.rand(1, 2, *tensor.shape) + 0.5 if tensor.is_floating_point() else tensor.expand(1, 2)
        for key, tensor in model.state_dict().items()
    }
    merged = {key: tensor.float().mean(1).to(tensor.dtype) for key, tensor in parents.items()}
    inputs = torch.randn(100, 6)
    mended = {key: tensor[0] for key, tensor in mender(model, inputs)(merged, parents).items()}

    def after(layers, weights):
        return functional_call(model[:layers], {k: w for k, w in weights.items() if int(k[0]) < layers}, (inputs,))

    summed = after(1, mended)
    torch.testing.assert_close(mended["1.running_mean"], summed.mean(0), **ROUNDING)
    torch.testing.assert_close(mended["1.running_var"], summed.var(0), **ROUNDING)
    theirs = torch.stack([after(2, {key: tensor[0, i] for key, tensor in parents.items()}) for i in range(2)])
    torch.testing.assert_close(after(2, mended).mean(0), theirs.mean((0, 1)), **ROUNDING)
    torch.testing.assert_close(after(2, mended).std(0), theirs.std(1).mean(0), **ROUNDING)


def test_of_each_recipe_only_sizes_that_it_has_models_for_are_merged():
    (planned,) = read_plan([ENTRY | {"models": 2, "epochs": [1]}])
    assert sizes_for(planned, [2, 4, 8, 16]) == [2]
    table, _, _ = compare([planned], [2, 4, 8], 50, 40, 0, "cpu", 32)
    assert set(table["n_leaves"]) == {1, 2}
    assert sizes_for(read_plan([ENTRY])[0], [2, 4, 8, 16]) == [2, 4]


@pytest.mark.parametrize(
    ("entries", "sizes", "message"),
    [
        ([ENTRY], [2, 8], "comparison_sizes must be 2, 4, 8, ...: got [2, 8]"),
        ([ENTRY], [], "comparison_sizes must be 2, 4, 8, ...: got []"),
        ([ENTRY | {"models": 6}], [2, 4, 8], "recipe 'tiny' needs a multiple of 4 models, got 6"),
        ([ENTRY | {"models": 1}], [2, 4, 8], "recipe 'tiny' needs a multiple of 2 models, got 1"),
        ([ENTRY, ENTRY], [2], "two entries of the plan are alike"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_trained(monkeypatch, entries, sizes, message):
    monkeypatch.setattr(comparison, "train_plan", lambda *args: pytest.fail("training began"))
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(read_plan(entries), sizes, 50, 40, 0, "cpu", 32)


def test_a_run_that_was_killed_finds_its_merges_and_ends_in_the_same_table(monkeypatch):
    plan = read_plan([ENTRY])
    first, datasets, seconds = compare(plan, [2, 4], 50, 40, 0, "cpu", 32)
    for module, name in ((merges, "merge_many"), (merges, "merge_hierarchical"), (comparison, "merge_hierarchical")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("merged again"))
    again, _, _ = compare(plan, [2, 4], 50, 40, 0, "cpu", 32)
    pd.testing.assert_frame_equal(first, again)
    assert [data.name for data in datasets] == ["digits"] and seconds > 0
    told = {"recipe", "dataset", "width", "epochs", "algorithm", "mended", "n_leaves", "stage", "node", "split"}
    assert told | {"metric", "value"} <= set(first.columns)
    assert set(first["metric"]) == {"accuracy", "loss"} and set(first["epochs"]) == {1, 2}
    assert (2 ** first["stage"] == first["n_leaves"]).all()


def test_images_for_repair_are_part_of_what_a_mended_tree_is_kept_by(network):
    model, leaves, inputs = network
    with_all, with_few = (
        {(a, m, size): w for a, m, size, w in comparison.merges(model, leaves, some, [2], True)}
        for some in (inputs, inputs[:20])
    )
    key = "layer1.bias"
    assert torch.equal(with_all["tree", "none", 2][key], with_few["tree", "none", 2][key])
    assert not torch.equal(
        with_all["tree", "repair every stage", 2][key], with_few["tree", "repair every stage", 2][key]
    )
