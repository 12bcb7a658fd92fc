"""Every merge that an experiment compares: by any method of ``rebasin.merge``, of 2, 4, 8, ... leaves.

Node ``k`` of size ``s`` owns the leaves ``k s`` to ``(k + 1) s - 1`` under each method, so that nodes pair up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.device import pick_device
from rebasin.inner_products import mean_inner_product
from rebasin.merging import METHODS, merge
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.options import own_options
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, flat, grouped, take, to


@dataclass(frozen=True)
class Nodes:
    """All merges by one method at one size, on the CPU.

    ``weights`` (nodes, ...); ``alignment`` (nodes,), the mean inner product of pairs of permuted leaves; ``effort``
    (nodes,), sweeps of the node's own matching for the hierarchy, rounds for other methods; ``indices[group]`` (nodes,
    n_leaves, units) permute each leaf into the node's basin.
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
    sizes: Mapping[str, Sequence[int]],
    seed: int = 0,
    device: str = "auto",
    chunk: int = 32,
) -> list[Nodes]:
    """Merge ``leaves`` (n, ...) by every method of ``sizes``, into nodes of so many leaves: ``{"many": [2, 4, 8]}``.

    The hierarchy's nodes are those of one tree of the largest size. ``chunk`` pairs or groups go through at once; what
    is finished is kept, so that an interrupted run resumes. Raises ValueError for a method that there is not, for a
    size that does not divide n, and for one of the hierarchy's that is no power of two.
    """
    n = len(leaves[next(iter(spec.shapes))])
    for method, wanted in sizes.items():
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
        for size in wanted:
            if size < 2 or n % size:
                raise ValueError(f"{method!r}: {n} models do not make nodes of {size}")
            if method == "hierarchy" and size & (size - 1):
                raise ValueError(f"'hierarchy' makes nodes of 2, 4, 8, ... models, not of {size}")
    nodes = []
    for method, wanted in sizes.items():
        if method == "hierarchy" and wanted:
            trees = _trees(spec, leaves, max(wanted), seed, pick_device(device), chunk)
            nodes += [Nodes(method, size, **trees[size]) for size in wanted]
        else:
            nodes += [merged_groups(spec, leaves, size, method, seed, device, chunk) for size in wanted]
    return nodes


def unmerged(spec: PermutationSpec, leaves: Weights) -> Nodes:
    """The leaves (n, ...) themselves, as nodes of one leaf; of one model there is no alignment (NaN)."""
    n = len(leaves[next(iter(spec.shapes))])
    as_they_are = Permutation.identity(spec, (n, 1)).indices
    return Nodes(
        "unmerged", 1, dict(leaves), torch.full((n,), torch.nan), torch.zeros(n, dtype=torch.int64), dict(as_they_are)
    )


def _trees(
    spec: PermutationSpec, leaves: Weights, tree_leaves: int, seed: int, device: str, chunk: int
) -> dict[int, dict[str, Any]]:
    """``merged_trees`` of as many trees at a time as have ``chunk`` pairs of leaves, put together."""
    together = max(1, chunk // (tree_leaves // 2)) * tree_leaves
    n = len(next(iter(leaves.values())))
    calls = [
        (spec, take(leaves, slice(start, start + together)), tree_leaves, seed, device, chunk)
        for start in range(0, n, together)
    ]
    parts = list(each(merged_trees, calls, f"merge trees of {tree_leaves}"))
    return {size: _put_together([part[size] for part in parts]) for size in parts[0]}


def _put_together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of ``Nodes`` that were merged in parts."""
    whole: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in ("alignment", "effort")}
    for name in ("weights", "indices"):
        whole[name] = {key: torch.cat([part[name][key] for part in parts]) for key in parts[0][name]}
    return whole


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
    spec: PermutationSpec,
    leaves: Weights,
    size: int,
    method: str,
    seed: int = 0,
    device: str = "auto",
    chunk: int = 32,
) -> Nodes:
    """Neighbouring leaves (n, ...) merged in groups of ``size``, ``chunk`` of them at once."""
    groups = grouped(leaves, size)
    count = len(groups[next(iter(groups))])
    calls = [
        (spec, take(groups, slice(start, start + chunk)), method, seed, pick_device(device))
        for start in range(0, count, chunk)
    ]
    parts = []
    with track(count if count > chunk else 0, f"merge {size} by {method}", "group") as bar:
        for part in each(merged_at_once, calls, f"merge {size} by {method}"):
            parts.append(part)
            bar.update(len(part["effort"]))
    return Nodes(method, size, **_put_together(parts))


@kept
def merged_at_once(spec: PermutationSpec, groups: Weights, method: str, seed: int, device: str) -> dict[str, Any]:
    """The fields of ``Nodes`` that a method makes of groups of models (groups, size, ...)."""
    models = to(groups, device)
    options = {"seed": seed} if "seed" in own_options(METHODS[method]) else {}
    merged = merge(spec, models, by=method, **options)
    return {
        "weights": to(merged.weights, "cpu"),
        "alignment": mean_inner_product(spec, merged.permutation.apply(models)).cpu(),
        "effort": merged.rounds.cpu(),
        "indices": to(merged.permutation.indices, "cpu"),
    }
