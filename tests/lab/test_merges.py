"""Node k of size s is the merge of exactly the leaves k s to (k + 1) s - 1, and is computed once."""

import shutil

import pytest
import torch

from lab import merges
from lab.bookkeeping.cache import KEPT
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.content import function_fingerprint
from lab.merges import merge_all, unmerged
from rebasin.inner_products import mean_inner_product
from rebasin.merging import merge
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.permutation import Permutation
from rebasin.weights import grouped, mean

# Means of up to four float64 numbers of order 1, and inner products of order 100, taken in another order.
ROUNDING = {"rtol": 1e-12, "atol": 1e-11}
SIZES = [2, 4]
ALL = dict.fromkeys(("hierarchy", "many", "mean"), SIZES)


@pytest.fixture(scope="module")
def leaves(random_weights):
    return random_weights(8)


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
    found = merge_all(spec, leaves, ALL)
    assert [(nodes.algorithm, nodes.n_leaves) for nodes in found] == [(a, s) for a in ALL for s in SIZES]
    for nodes in found:
        count = 8 // nodes.n_leaves
        assert {key: tensor.shape for key, tensor in nodes.weights.items()} == {
            key: (count, *tensor.shape[1:]) for key, tensor in leaves.items()
        }
        assert nodes.alignment.shape == nodes.effort.shape == (count,)
        assert {group: index.shape for group, index in nodes.indices.items()} == {
            group: (count, nodes.n_leaves, units) for group, units in spec.sizes.items()
        }


@pytest.mark.parametrize("many", [[2, 4], [4], []])
def test_each_method_makes_the_sizes_that_are_asked_of_it(spec, leaves, monkeypatch, many):
    merged = []
    monkeypatch.setattr(merges, "merge", lambda spec, models, **o: merged.append(o["by"]) or merge(spec, models, **o))
    nodes = merge_all(spec, leaves, {"hierarchy": [4], "many": many})
    assert [(kind.algorithm, kind.n_leaves) for kind in nodes] == [("hierarchy", 4), *(("many", size) for size in many)]
    assert merged == ["many"] * len(many), "what is not wanted is not computed"


@pytest.fixture(scope="module")
def one_by_one(spec, leaves):
    """Of each algorithm, size and node: the merge of its own leaves, these permuted, and the effort."""
    found = {}
    for size in SIZES:
        for node in range(8 // size):
            own = leaves_of(leaves, node, size)
            many = merge_many(spec, own, seed=3)
            tree = merge_hierarchical(spec, own, seed=3)
            effort = tree.stages[-1].matching.sweeps[0]
            found["hierarchy", size, node] = tree.weights, tree.permutation.apply(own), effort
            found["many", size, node] = many.weights, many.permutation.apply(own), many.rounds
            found["mean", size, node] = mean(own), own, torch.tensor(0)
    return found


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_a_node_is_the_merge_of_its_own_leaves(spec, leaves, one_by_one, chunk):
    found = by_kind(merge_all(spec, leaves, ALL, seed=3, chunk=chunk))
    for (algorithm, size, node), (weights, permuted, effort) in one_by_one.items():
        nodes = found[algorithm, size]
        for key, tensor in weights.items():
            torch.testing.assert_close(nodes.weights[key][node], tensor, **ROUNDING)
        torch.testing.assert_close(nodes.alignment[node], mean_inner_product(spec, permuted), **ROUNDING)
        assert nodes.effort[node] == effort


@pytest.mark.parametrize("size", [2, 4])
def test_trees_that_are_merged_apart_are_those_that_are_merged_at_once(spec, leaves, monkeypatch, size):
    parts = []
    merge = merges.merge_hierarchical
    monkeypatch.setattr(merges, "merge_hierarchical", lambda *given, **rest: parts.append(1) or merge(*given, **rest))
    (at_once,), (apart,) = (merge_all(spec, leaves, {"hierarchy": [size]}, chunk=chunk) for chunk in (32, 1))
    assert len(parts) == 1 + 8 // size
    for key, tensor in at_once.weights.items():
        torch.testing.assert_close(apart.weights[key], tensor, **ROUNDING)
    assert torch.equal(apart.effort, at_once.effort)


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_a_node_is_the_mean_of_its_leaves_in_the_order_of_its_indices(spec, leaves, chunk):
    found = merge_all(spec, leaves, ALL, seed=3, chunk=chunk)
    # From the cache the second time.
    for nodes in [
        *found,
        *merge_all(spec, leaves, ALL, seed=3),
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
        assert as_they_are == (nodes.algorithm in ("mean", "unmerged"))


def test_the_leaves_are_nodes_of_one_leaf(spec, leaves):
    nodes = unmerged(spec, leaves)
    assert (nodes.algorithm, nodes.n_leaves) == ("unmerged", 1)
    assert nodes.weights.keys() == leaves.keys()
    assert all(torch.equal(nodes.weights[key], tensor) for key, tensor in leaves.items())
    assert nodes.alignment.shape == nodes.effort.shape == (8,)
    assert nodes.alignment.isnan().all() and not nodes.effort.any()
    assert {group: index.shape for group, index in nodes.indices.items()} == {
        group: (8, 1, units) for group, units in spec.sizes.items()
    }


def test_matching_aligns_leaves_better_than_leaving_them_as_they_are(spec, leaves):
    found = by_kind(merge_all(spec, leaves, ALL))
    for size in SIZES:
        for algorithm in ("hierarchy", "many"):
            assert (found[algorithm, size].alignment > found["mean", size].alignment).all()


def test_a_second_call_computes_nothing_and_gives_the_same(spec, leaves, monkeypatch):
    first = merge_all(spec, leaves, ALL)
    forbid(monkeypatch, "merge_hierarchical", "merge")
    same(merge_all(spec, leaves, ALL), first)


def other_leaves(leaves):
    tensor = leaves["0.bias"].clone()
    tensor[3, 2] += 1e-9
    return leaves | {"0.bias": tensor}


@pytest.mark.parametrize(
    "change", [{"leaves": other_leaves}, {"seed": 1}, {"chunk": 1}], ids=["leaves", "seed", "chunk"]
)
@pytest.mark.parametrize(
    ("sizes", "name"), [({"hierarchy": [2]}, "merge_hierarchical"), ({"many": [2]}, "merge")], ids=["tree", "many"]
)
def test_other_leaves_another_seed_or_chunk_are_computed_anew(spec, leaves, monkeypatch, change, sizes, name):
    merge_all(spec, leaves, sizes)
    forbid(monkeypatch, name)
    changed = {key: value(leaves) if key == "leaves" else value for key, value in change.items()}
    with pytest.raises(AssertionError, match=f"{name} was called again"):
        merge_all(spec, **{"leaves": leaves, "sizes": sizes} | changed)


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


def test_smaller_trees_need_no_other_merge_anew(spec, leaves, monkeypatch):
    large = by_kind(merge_all(spec, leaves, ALL))
    forbid(monkeypatch, "merge")
    small = merge_all(spec, leaves, ALL | {"hierarchy": [2]})
    same(small, [large[nodes.algorithm, nodes.n_leaves] for nodes in small])


def test_an_interrupted_merge_keeps_what_was_finished(spec, leaves, monkeypatch, tmp_path):
    whole = merge_all(spec, leaves, ALL)
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path / "another"))
    sizes = []

    def counted(spec, models, **options):
        sizes.append((options["by"], models["0.bias"].shape[1]))
        return merge(spec, models, **options)

    def interrupted(spec, models, **options):
        if sizes:
            raise KeyboardInterrupt
        return counted(spec, models, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merges, "merge", interrupted)
        merge_all(spec, leaves, ALL)
    assert sizes == [("many", 2)]
    forbid(monkeypatch, "merge_hierarchical")
    monkeypatch.setattr(merges, "merge", counted)
    same(merge_all(spec, leaves, ALL), whole)
    assert sizes == [("many", 2), ("many", 4), ("mean", 2), ("mean", 4)]


def test_the_leaves_are_not_modified(spec, leaves, random_weights):
    merge_all(spec, leaves, ALL)
    assert all(torch.equal(leaves[key], tensor) for key, tensor in random_weights(8).items())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hierarchy": [2, 6]}, "'hierarchy': 8 models do not make nodes of 6"),
        ({"many": [16]}, "'many': 8 models do not make nodes of 16"),
        ({"mean": [1]}, "'mean': 8 models do not make nodes of 1"),
        ({"mean": [-2]}, "'mean': 8 models do not make nodes of -2"),
        ({"tree": [2]}, "unknown method 'tree': there are mean, many, hierarchy"),
    ],
)
def test_merges_that_cannot_be_made_are_refused(spec, leaves, sizes, message):
    with pytest.raises(ValueError, match=message):
        merge_all(spec, leaves, sizes)


def test_a_hierarchy_has_nodes_of_powers_of_two(spec, random_weights):
    with pytest.raises(ValueError, match="'hierarchy' makes nodes of 2, 4, 8, ... models, not of 3"):
        merge_all(spec, random_weights(12), {"many": [3], "hierarchy": [3]})
