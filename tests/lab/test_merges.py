"""Node k of size s is the merge of exactly the leaves k s to (k + 1) s - 1, and is computed once."""

import shutil

import pytest
import torch

from lab import merges
from lab.bookkeeping.cache import KEPT
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.content import function_fingerprint
from lab.merges import ALGORITHMS, merge_all, unmerged
from rebasin.inner_products import mean_inner_product
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.permutation import Permutation
from rebasin.weights import grouped, mean

# Means of up to eight float64 numbers of order 1, and inner products of order 100, taken in another order.
ROUNDING = {"rtol": 1e-12, "atol": 1e-11}
SIZES = (2, 4, 8)


@pytest.fixture(scope="module")
def leaves(random_weights):
    return random_weights(16)


def leaves_of(leaves, node, size):
    return {key: tensor[node * size : (node + 1) * size] for key, tensor in leaves.items()}


def by_kind(found):
    return {(nodes.algorithm, nodes.n_leaves): nodes for nodes in found}


def same(found, others):
    assert len(found) == len(others)
    for one, other in zip(found, others, strict=True):
        assert (one.algorithm, one.n_leaves) == (other.algorithm, other.n_leaves)
        assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights | other.weights)
        assert torch.equal(one.alignment, other.alignment)
        assert torch.equal(one.effort, other.effort)
        assert all(torch.equal(one.indices[group], other.indices[group]) for group in one.indices | other.indices)


def forbid(monkeypatch, *names):
    for name in names:

        def refuse(*args, name=name, **kwargs):
            raise AssertionError(f"{name} was called again")

        monkeypatch.setattr(merges, name, refuse)


def test_every_algorithm_makes_all_nodes_of_every_size(spec, leaves):
    found = merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    assert [(nodes.algorithm, nodes.n_leaves) for nodes in found] == [(a, s) for a in ALGORITHMS for s in SIZES]
    for nodes in found:
        count = 16 // nodes.n_leaves
        assert {key: tensor.shape for key, tensor in nodes.weights.items()} == {
            key: (count, *tensor.shape[1:]) for key, tensor in leaves.items()
        }
        assert nodes.alignment.shape == nodes.effort.shape == (count,)
        assert {group: index.shape for group, index in nodes.indices.items()} == {
            group: (count, nodes.n_leaves, units) for group, units in spec.sizes.items()
        }


@pytest.mark.parametrize(
    ("many_leaves", "many"), [(8, [2, 4, 8]), (32, [2, 4, 8]), (7, [2, 4]), (4, [2, 4]), (2, [2]), (1, []), (0, [])]
)
def test_mergemany_goes_up_to_its_own_number_of_leaves(spec, leaves, monkeypatch, many_leaves, many):
    merged = []
    monkeypatch.setattr(
        merges, "merge_many", lambda spec, models, **o: merged.append(1) or merge_many(spec, models, **o)
    )
    found = by_kind(merge_all(spec, leaves, tree_leaves=8, many_leaves=many_leaves))
    assert [size for algorithm, size in found if algorithm == "merge_many"] == many
    assert len(merged) == len(many), "what is not wanted is not computed"
    for algorithm in ("tree", "naive"):
        assert [size for name, size in found if name == algorithm] == [2, 4, 8]


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_a_node_is_the_merge_of_its_own_leaves(spec, leaves, chunk):
    found = by_kind(merge_all(spec, leaves, tree_leaves=8, many_leaves=8, seed=3, chunk=chunk))
    for size in SIZES:
        for node in range(16 // size):
            own = leaves_of(leaves, node, size)
            many = merge_many(spec, own, seed=3)
            tree = merge_hierarchical(spec, own, seed=3)
            expected = {
                "tree": (tree.weights, tree.permutation.apply(own), tree.stages[-1].matching.sweeps[0]),
                "merge_many": (many.weights, many.permutation.apply(own), many.rounds),
                "naive": (mean(own), own, torch.tensor(0)),
            }
            for algorithm, (weights, permuted, effort) in expected.items():
                nodes = found[algorithm, size]
                for key, tensor in weights.items():
                    torch.testing.assert_close(nodes.weights[key][node], tensor, **ROUNDING)
                torch.testing.assert_close(nodes.alignment[node], mean_inner_product(spec, permuted), **ROUNDING)
                assert nodes.effort[node] == effort


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_a_node_is_the_mean_of_its_leaves_in_the_order_of_its_indices(spec, leaves, chunk):
    found = merge_all(spec, leaves, tree_leaves=8, many_leaves=8, seed=3, chunk=chunk)
    # From the cache the second time.
    for nodes in [
        *found,
        *merge_all(spec, leaves, tree_leaves=8, many_leaves=8, seed=3),
        unmerged(spec, leaves),
    ]:
        for group, index in nodes.indices.items():
            assert torch.equal(index.sort(-1).values, torch.arange(spec.sizes[group]).expand_as(index))
        own = grouped(leaves, nodes.n_leaves)
        permuted = Permutation(spec, nodes.indices).apply(own)
        for key, tensor in nodes.weights.items():
            torch.testing.assert_close(tensor, permuted[key].mean(1), **ROUNDING)
        if nodes.n_leaves > 1:
            torch.testing.assert_close(nodes.alignment, mean_inner_product(spec, permuted), **ROUNDING)
        as_they_are = all(torch.equal(permuted[key], own[key]) for key in own)
        assert as_they_are == (nodes.algorithm in ("naive", "unmerged"))


def test_the_leaves_are_nodes_of_one_leaf(spec, leaves):
    nodes = unmerged(spec, leaves)
    assert (nodes.algorithm, nodes.n_leaves) == ("unmerged", 1)
    assert nodes.weights.keys() == leaves.keys()
    assert all(torch.equal(nodes.weights[key], tensor) for key, tensor in leaves.items())
    assert nodes.alignment.shape == nodes.effort.shape == (16,)
    assert nodes.alignment.isnan().all() and not nodes.effort.any()
    assert {group: index.shape for group, index in nodes.indices.items()} == {
        group: (16, 1, units) for group, units in spec.sizes.items()
    }


def test_matching_aligns_leaves_better_than_leaving_them_as_they_are(spec, leaves):
    found = by_kind(merge_all(spec, leaves, tree_leaves=8, many_leaves=8))
    for size in SIZES:
        for algorithm in ("tree", "merge_many"):
            assert (found[algorithm, size].alignment > found["naive", size].alignment).all()


def test_a_second_call_computes_nothing_and_gives_the_same(spec, leaves, monkeypatch):
    first = merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    forbid(monkeypatch, "merge_hierarchical", "merge_many")
    same(merge_all(spec, leaves, tree_leaves=8, many_leaves=8), first)


def other_leaves(leaves):
    tensor = leaves["0.bias"].clone()
    tensor[3, 2] += 1e-9
    return leaves | {"0.bias": tensor}


@pytest.mark.parametrize(
    "change", [{"leaves": other_leaves}, {"seed": 1}, {"chunk": 1}], ids=["leaves", "seed", "chunk"]
)
@pytest.mark.parametrize("name", ["merge_hierarchical", "merge_many"])
def test_other_leaves_another_seed_or_chunk_are_computed_anew(spec, leaves, monkeypatch, change, name):
    merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    forbid(monkeypatch, name)
    changed = {key: value(leaves) if key == "leaves" else value for key, value in change.items()}
    with pytest.raises(AssertionError, match=f"{name} was called again"):
        merge_all(spec, **{"leaves": leaves, "tree_leaves": 8, "many_leaves": 8} | changed)


def test_other_code_of_the_merges_does_not_read_what_this_code_made(tmp_path):
    # Seen: after a change in lab/merges.py, merge_all gave the old numbers.
    for package in ("lab", "rebasin"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    merged_trees, merged_at_once = (
        next(keeper.function for keeper in KEPT if keeper.function.__name__ == name)
        for name in ("merged_trees", "merged_at_once")
    )
    before = [function_fingerprint(function, tmp_path) for function in (merged_trees, merged_at_once)]
    path = tmp_path / "lab" / "merges.py"
    path.write_text(path.read_text().replace("2**number", "2 ** (number + 1)"))
    after = [function_fingerprint(function, tmp_path) for function in (merged_trees, merged_at_once)]
    assert not set(before) & set(after)


def test_smaller_trees_need_no_new_merge_many(spec, leaves, monkeypatch):
    large = by_kind(merge_all(spec, leaves, tree_leaves=8, many_leaves=8))
    forbid(monkeypatch, "merge_many")
    small = merge_all(spec, leaves, tree_leaves=4, many_leaves=8)
    same(small, [large[nodes.algorithm, nodes.n_leaves] for nodes in small])


def test_what_mergemany_merged_before_is_not_merged_again_for_more_leaves(spec, leaves, monkeypatch, tmp_path):
    whole = merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path / "another"))
    merge_all(spec, leaves, tree_leaves=8, many_leaves=4)
    forbid(monkeypatch, "merge_hierarchical")
    sizes = []
    monkeypatch.setattr(
        merges,
        "merge_many",
        lambda spec, models, **o: sizes.append(models["0.bias"].shape[1]) or merge_many(spec, models, **o),
    )
    same(merge_all(spec, leaves, tree_leaves=8, many_leaves=8), whole)
    assert sizes == [8]


def test_an_interrupted_merge_keeps_what_was_finished(spec, leaves, monkeypatch, tmp_path):
    whole = merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path / "another"))
    calls = []

    def interrupted(spec, models, **options):
        calls.append(models)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return merge_many(spec, models, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merges, "merge_many", interrupted)
        merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    calls.clear()
    forbid(monkeypatch, "merge_hierarchical")
    monkeypatch.setattr(merges, "merge_many", lambda *a, **o: calls.append(a) or merge_many(*a, **o))
    same(merge_all(spec, leaves, tree_leaves=8, many_leaves=8), whole)
    assert len(calls) == 2, "sizes 4 and 8 were left"


def test_the_leaves_are_not_modified(spec, leaves, random_weights):
    merge_all(spec, leaves, tree_leaves=8, many_leaves=8)
    assert all(torch.equal(leaves[key], tensor) for key, tensor in random_weights(16).items())


@pytest.mark.parametrize("tree_leaves", [-2, 0, 1, 3, 6, 12, 32])
def test_trees_that_cannot_be_made_are_refused(spec, leaves, tree_leaves):
    message = f"tree_leaves must be a power of two from 2 that divides the 16 models, got {tree_leaves}"
    with pytest.raises(ValueError, match=message):
        merge_all(spec, leaves, tree_leaves, 8)


def test_models_that_do_not_fill_trees_are_refused(spec, random_weights):
    with pytest.raises(ValueError, match="power of two from 2 that divides the 12 models, got 8"):
        merge_all(spec, random_weights(12), 8, 8)
