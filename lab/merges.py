"""Every merge that an experiment compares: the hierarchy, MergeMany and naive averages, of 2, 4, 8, ... leaves.

Node ``k`` of size ``s`` owns the leaves ``k s`` to ``(k + 1) s - 1`` under each algorithm, so that nodes pair up.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lab.bookkeeping.cache import kept
from rebasin.inner_products import mean_inner_product
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, flat, grouped, mean, take, to

ALGORITHMS = ("tree", "merge_many", "naive")


@dataclass(frozen=True)
class Nodes:
    """All merges by one algorithm at one size, on the CPU.

    ``weights`` (nodes, ...); ``alignment`` (nodes,), the mean inner product of pairs of permuted leaves; ``effort``
    (nodes,), sweeps of the node's own matching for the hierarchy, rounds for MergeMany, 0 for naive averages;
    ``indices[group]`` (nodes, n_leaves, units) permute each leaf into the node's basin.
    """

    algorithm: str
    n_leaves: int
    weights: dict[str, Tensor]
    alignment: Tensor
    effort: Tensor
    indices: dict[str, Tensor]


def merge_all(
    spec: PermutationSpec,
    leaves: Weights,
    tree_leaves: int,
    many_leaves: int,
    seed: int = 0,
    device: str = "cpu",
    chunk: int = 32,
    sizes: Collection[int] | None = None,
) -> list[Nodes]:
    """Merge ``leaves`` (n, ...) by each algorithm into nodes of 2, 4, ..., ``tree_leaves`` leaves, or of ``sizes``.

    MergeMany, the costly one, goes up to ``many_leaves``. ``chunk`` pairs or groups go through at once; what is
    finished is kept, so that an interrupted run resumes. Raises ValueError if ``tree_leaves`` is no power of two from
    2, or does not divide n.
    """
    n = len(leaves[next(iter(spec.shapes))])
    if tree_leaves < 2 or tree_leaves & (tree_leaves - 1) or n % tree_leaves:
        raise ValueError(f"tree_leaves must be a power of two from 2 that divides the {n} models, got {tree_leaves}")
    sizes = sizes or [2**stage for stage in range(1, tree_leaves.bit_length())]
    tree = merged_trees(spec, leaves, tree_leaves, seed, device, chunk)
    nodes = [Nodes("tree", size, **tree[size]) for size in sizes]
    nodes += [merged_groups(spec, leaves, size, seed, device, chunk) for size in sizes if size <= many_leaves]
    for size in sizes:
        groups = grouped(leaves, size)
        as_they_are = Permutation.identity(spec, (n // size, size)).indices
        effort = torch.zeros(n // size, dtype=torch.int64)
        aligned = mean_inner_product(spec, groups)
        nodes.append(Nodes("naive", size, mean(groups, axis=1), aligned, effort, dict(as_they_are)))
    return nodes


def unmerged(spec: PermutationSpec, leaves: Weights) -> Nodes:
    """The leaves (n, ...) themselves, as nodes of one leaf; of one model there is no alignment (NaN)."""
    n = len(leaves[next(iter(spec.shapes))])
    as_they_are = Permutation.identity(spec, (n, 1)).indices
    return Nodes(
        "unmerged", 1, dict(leaves), torch.full((n,), torch.nan), torch.zeros(n, dtype=torch.int64), dict(as_they_are)
    )


@kept
def merged_trees(
    spec: PermutationSpec, leaves: Weights, tree_leaves: int, seed: int, device: str, chunk: int
) -> dict[int, dict[str, Any]]:
    """The fields of ``Nodes`` at each size of the trees of ``tree_leaves`` neighbouring leaves (n, ...)."""
    models = to(grouped(leaves, tree_leaves), device)
    stages = merge_hierarchical(spec, models, seed=seed, chunk=chunk).stages
    nodes = {}
    for number, stage in enumerate(stages, 1):
        permuted = stage.permutation.apply(models)
        groups = grouped(flat(permuted, 2), 2**number)
        nodes[2**number] = {
            "weights": to(flat(stage.weights, 2), "cpu"),
            "alignment": mean_inner_product(spec, groups).cpu(),
            "effort": stage.matching.sweeps.flatten().cpu(),
            # (trees, leaves, ...) to (nodes, n_leaves, ...): a group within blocks has an axis more.
            "indices": to(grouped(flat(stage.permutation.indices, 2), 2**number), "cpu"),
        }
    return nodes


def merged_groups(
    spec: PermutationSpec, leaves: Weights, size: int, seed: int = 0, device: str = "cpu", chunk: int = 32
) -> Nodes:
    """MergeMany of neighbouring leaves (n, ...) in groups of ``size``, ``chunk`` of them at once."""
    groups = grouped(leaves, size)
    count = len(groups[next(iter(groups))])
    parts = []
    with track(count if count > chunk else 0, f"MergeMany of {size}", "group") as bar:
        for start in range(0, count, chunk):
            some = take(groups, slice(start, start + chunk))
            parts.append(merged_at_once(spec, some, seed, device))
            bar.update(len(parts[-1]["effort"]))
    return Nodes(
        "merge_many",
        size,
        {key: torch.cat([part["weights"][key] for part in parts]) for key in groups},
        torch.cat([part["alignment"] for part in parts]),
        torch.cat([part["effort"] for part in parts]),
        {group: torch.cat([part["indices"][group] for part in parts]) for group in spec.sizes},
    )


@kept
def merged_at_once(spec: PermutationSpec, groups: Weights, seed: int, device: str) -> dict[str, Any]:
    """The fields of ``Nodes`` that MergeMany makes of groups of models (groups, size, ...)."""
    models = to(groups, device)
    merged = merge_many(spec, models, seed=seed)
    return {
        "weights": to(merged.weights, "cpu"),
        "alignment": mean_inner_product(spec, merged.permutation.apply(models)).cpu(),
        "effort": merged.rounds.cpu(),
        "indices": to(merged.permutation.indices, "cpu"),
    }
