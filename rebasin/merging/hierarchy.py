"""The hierarchy: models merged pairwise, stage by stage, into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rebasin.arguments import check_flag, check_seed
from rebasin.matching.by_weights import weight_matching
from rebasin.merging.mending import Mend, check_mend, mended_by
from rebasin.merging.record import Merge, Stage, merged_like, one_by_one, unmoved
from rebasin.permutation import Permutation, compose, permuted_entry
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, Weights, flat, is_whole, over, point_between, stack, take


def merge_hierarchical(
    spec: PermutationSpec,
    models: Models,
    *,
    seed: int = 0,
    shuffle: bool = False,
    chunk: int | None = None,
    mend: Mend | None = None,
) -> Merge:
    """Merge n models pairwise, stage by stage, into one (Hierarchical Re-Basin, Figure 1).

    ``models`` is a list of modules or of dicts of tensors, or a dict of tensors (*batch, n, ...). Each stage
    weight-matches disjoint pairs of nodes and takes the midpoint of each, until one node is left: 2^s models make s
    stages. Neighbours are paired, or with ``shuffle`` nodes at random, alike in the whole batch. Of an odd number the
    last node passes up as it is; where two nodes are made of different numbers of models, the midpoint is weighted by
    them. ``chunk`` is that of ``weight_matching``. ``mend(merged, parents)`` is what is done to the midpoints (m, ...)
    of two nodes each, (m, 2, ...), before they are matched in their turn: see ``mender``.

    Raises ValueError if the models do not fit the spec or there are none.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(4)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> merge_hierarchical(spec, models).stages
    (Stage(2 nodes of 4 models), Stage(1 node of 4 models))
    """
    nodes, batch = one_by_one(spec, models, "merge_hierarchical(spec, models)")
    check_seed(seed)
    check_flag(shuffle, "shuffle")
    check_mend(mend)
    axis = len(batch)
    device = nodes[0][next(iter(spec.shapes))].device
    leaves = [(leaf,) for leaf in range(len(nodes))]
    index = unmoved(spec, (*batch, len(nodes)), device)
    sweeps = torch.zeros(batch, dtype=torch.int64, device=device)
    stages = []
    rng = np.random.default_rng(seed)
    while len(leaves) > 1:
        order = rng.permutation(len(leaves)) if shuffle else np.arange(len(leaves))
        paired = len(order) - len(order) % 2
        first, second, odd = order[:paired:2], order[1:paired:2], order[paired:]
        a, b = (_together([nodes[node] for node in half], axis) for half in (first, second))
        matching = weight_matching(spec, a, b, seed=int(rng.integers(2**31)), chunk=chunk)
        index = _passed_down(spec, index, matching.permutation, [leaves[node] for node in second], axis)
        owned = [(len(leaves[i]), len(leaves[j])) for i, j in zip(first, second, strict=True)]
        share = torch.tensor([right / (left + right) for left, right in owned], dtype=torch.float64, device=device)
        order_of_b = matching.permutation.flat
        merged: dict[str, Tensor] = {}
        for key in a:  # one entry at a time is permuted
            merged[key] = _between(a[key], permuted_entry(spec, key, b[key], order_of_b), share, axis)
        if mend is not None:
            parents = flat(stack([a, matching.apply(b)], axis + 1), axis + 1)
            mended = mended_by(mend, flat(merged, axis + 1), parents)
            merged = {key: tensor.unflatten(0, (*batch, len(first))) for key, tensor in mended.items()}
        for node in odd:
            for key, tensor in nodes[node].items():
                merged[key] = torch.cat([merged[key], tensor.unsqueeze(axis)], axis)
        leaves = [leaves[i] + leaves[j] for i, j in zip(first, second, strict=True)] + [leaves[i] for i in odd]
        nodes = [take(merged, number, axis) for number in range(len(leaves))]
        stages.append(Stage(merged, tuple(leaves), Permutation(spec, index), matching))
        sweeps += matching.sweeps.sum(-1)
    top = nodes[0] if stages else over(nodes[0], Tensor.clone)
    rounds = torch.full_like(sweeps, len(stages))
    return Merge(merged_like(models, top), top, Permutation(spec, index), rounds, sweeps, tuple(stages))


def _together(nodes: Sequence[Weights], axis: int) -> dict[str, Tensor]:
    """Nodes (*batch, ...) side by side, (*batch, nodes, ...); one alone is not copied."""
    if len(nodes) == 1:
        return over(nodes[0], lambda tensor: tensor.unsqueeze(axis))
    return stack(nodes, axis)


def _passed_down(
    spec: PermutationSpec,
    index: Mapping[str, Tensor],
    permutation: Permutation,
    leaves: Sequence[Sequence[int]],
    axis: int,
) -> dict[str, Tensor]:
    """The indices (*batch, n) once the leaves of pair k's second node are permuted by ``permutation`` (*batch, k)."""
    index = {group: held.clone() for group, held in index.items()}
    for pair, own in enumerate(leaves):
        later = take(permutation.indices, pair, axis)
        for leaf in own:
            for group, composed in compose(spec, later, take(index, leaf, axis)).items():
                index[group].select(axis, leaf).copy_(composed)
    return index


def _between(a: Tensor, b: Tensor, share: Tensor, axis: int) -> Tensor:
    """``(1 - share) a + share b``, with a share for each entry along ``axis``; whole numbers are those of ``a``."""
    if is_whole(a):
        return a.clone()
    return point_between(a, b, share.to(a.dtype).reshape(-1, *[1] * (a.ndim - axis - 1)))
