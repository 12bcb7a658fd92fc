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
from lab.measures.comparison import (
    accuracy_and_loss,
    check_plan,
    merged_and_repaired,
    repaired_at_every_stage,
    sizes_for,
)
from lab.merges import merge_all
from lab.networks import build
from lab.training.plan import read_plan
from rebasin.matching.by_weights import weight_matching
from rebasin.merging import METHODS
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
        return by_kind(kinds_of(model, leaves, inputs, [2, 4, 8]))


def kinds_of(model, leaves, inputs, sizes):
    """Every merge in groups of these sizes, as notebooks/comparison.ipynb composes them."""
    spec = trace(model, inputs[:2])
    merged = merge_all(spec, leaves, dict.fromkeys(METHODS, sizes))
    yield from merged_and_repaired(model, spec, leaves, merged, inputs, "cpu")
    yield from repaired_at_every_stage(model, spec, leaves, max(sizes), inputs, 0, "cpu", 32)


def by_kind(kinds):
    return {(algorithm, mended, size): weights for algorithm, mended, size, weights in kinds}


def groups_of(leaves, size):
    return {key: tensor.unflatten(0, (-1, size)) for key, tensor in leaves.items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **ROUNDING)


def test_there_are_nodes_of_every_kind_and_size(found):
    mendings = {
        "hierarchy": ("none", "repair", "repair every stage"),
        "many": ("none", "repair"),
        "mean": ("none", "repair"),
        "universe": ("none", "repair"),
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
        "hierarchy": (tree.weights, tree.permutation.apply(groups)),
        "many": (many.weights, many.permutation.apply(groups)),
        "mean": (mean(groups, axis=1), groups),
    }
    for algorithm, (merged, parents) in direct.items():
        assert_close(found[algorithm, "none", size], merged)
        assert_close(found[algorithm, "repair", size], repair(model, merged, parents, inputs))


def test_merges_of_one_size_are_those_of_all_sizes(network, found):
    some = by_kind(kinds_of(*network, [8]))
    assert {kind for kind in found if kind[2] == 8} <= set(some)
    for kind, weights in some.items():
        assert_close(weights, found[kind])


@pytest.mark.parametrize("architecture", ["resnet20_bn", "vit"])
def test_every_kind_of_network_is_merged_mended_and_tested(architecture, shallow_vit):
    data = load("digits")
    model = build(architecture, data, 8 if architecture == "vit" else 2)
    leaves = {key: torch.stack([tensor, tensor.clone()]) for key, tensor in model.state_dict().items()}
    inputs = data.train.images[:20].float() / 255
    table = accuracy_and_loss(model, kinds_of(model, leaves, inputs, [2]), data.test.sample(30), "cpu", 2)
    kinds = table.groupby(["algorithm", "mended"]).size()
    assert kinds["unmerged", "none"] == 4 and kinds["hierarchy", "repair every stage"] == 2 and len(kinds) == 10
    of = table[table["metric"] == "loss"].set_index(["algorithm", "mended"])["value"]
    # Twice the same network: its merge is itself.
    assert of["hierarchy", "none"] == pytest.approx(of["unmerged", "none"].iloc[0], rel=1e-4)


def test_of_two_leaves_the_end_is_every_stage(found):
    assert_close(found["hierarchy", "repair every stage", 2], found["hierarchy", "repair", 2])


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
        assert_close(found["hierarchy", "repair every stage", size], expected)


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
def test_a_plan_that_cannot_be_is_refused(entries, sizes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_plan(read_plan(entries), sizes)


def test_merges_are_made_once_and_their_table_is_tidy(network, monkeypatch):
    model, leaves, inputs = network
    tested = load("digits").test.sample(40)
    first = accuracy_and_loss(model, kinds_of(model, leaves, inputs, [2, 4]), tested, "cpu", 8)
    for module, name in ((merges, "merge"), (merges, "merge_hierarchical"), (comparison, "merge_hierarchical")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("merged again"))
    again = accuracy_and_loss(model, kinds_of(model, leaves, inputs, [2, 4]), tested, "cpu", 8)
    pd.testing.assert_frame_equal(first, again)
    columns = {"algorithm", "mended", "n_leaves", "stage", "node", "split", "metric", "value"}
    assert set(first.columns) == columns
    assert not first.duplicated(list(columns - {"value"})).any()
    assert set(first["metric"]) == {"accuracy", "loss"}
    assert (2 ** first["stage"] == first["n_leaves"]).all()


def test_images_for_repair_are_part_of_what_a_mended_tree_is_kept_by(network):
    model, leaves, inputs = network
    with_all, with_few = (by_kind(kinds_of(model, leaves, some, [2])) for some in (inputs, inputs[:20]))
    key = "layer1.bias"
    assert torch.equal(with_all["hierarchy", "none", 2][key], with_few["hierarchy", "none", 2][key])
    assert not torch.equal(
        with_all["hierarchy", "repair every stage", 2][key], with_few["hierarchy", "repair every stage", 2][key]
    )
