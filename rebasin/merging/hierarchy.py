"""The hierarchy: models merged pairwise, stage by stage, into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin.matching.by_weights import weight_matching
from rebasin.matching.pairs import Matching
from rebasin.merging.mean import _group_shape, _unmoved
from rebasin.permutation import Permutation, compose
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights


@dataclass(frozen=True)
class Stage:
    """One stage of the hierarchy.

    ``weights`` (*batch, nodes, ...); ``leaves[k]`` are the models that node ``k`` is made of; ``permutation``
    (*batch, n) brings each model into the basin of its node, so that, unless it is mended, a node is the mean of its
    permuted leaves; ``matching`` (*batch, pairs) tells how the stage's pairs were matched, None at stage 0.
    """

    weights: dict[str, Tensor]
    leaves: tuple[tuple[int, ...], ...]
    permutation: Permutation
    matching: Matching | None


def merge_hierarchical(
    spec: PermutationSpec,
    models: Weights,
    seed: int = 0,
    shuffle: bool = False,
    chunk: int | None = None,
    mend: Callable[[Weights, Weights], dict[str, Tensor]] | None = None,
) -> list[Stage]:
    """Merge models (*batch, n, ...) pairwise, stage by stage, into one (Hierarchical Re-Basin, Figure 1).

    Stage 0 is the models. Each further stage weight-matches disjoint pairs and takes the midpoint, until one node is
    left: 2^n models make n stages. Neighbours are paired, or with ``shuffle`` nodes at random, alike in the whole
    batch. Of an odd number the last node passes up as it is; where two nodes own different numbers of leaves, the
    midpoint is weighted by them. ``chunk`` is that of ``weight_matching``. ``mend(merged, parents)`` is what
    is done to the midpoints (b, ...) of two nodes each (b, 2, ...) before they are matched in their turn: REPAIR, or a
    reset of norm statistics.
    Raises ValueError if the weights do not fit the spec or there are none.
    """
    batch = _group_shape(spec, models)
    axis = len(batch)
    some = models[next(iter(spec.shapes))]
    n, device = some.shape[axis], some.device
    nodes = dict(models)
    leaves = [(i,) for i in range(n)]
    index = _unmoved(spec, (*batch, n), device)
    stages = [Stage(nodes, tuple(leaves), Permutation(spec, index), None)]
    rng = np.random.default_rng(seed)
    while len(leaves) > 1:
        order = rng.permutation(len(leaves)) if shuffle else np.arange(len(leaves))
        pairs = len(order) // 2
        first, second, odd = order[: 2 * pairs : 2], order[1 : 2 * pairs : 2], order[2 * pairs :]

        def take(positions: np.ndarray, nodes: Weights = nodes) -> dict[str, Tensor]:
            where = torch.as_tensor(positions, device=device)
            return {key: tensor.index_select(axis, where) for key, tensor in nodes.items()}

        a, b = take(first), take(second)
        found = weight_matching(spec, a, b, int(rng.integers(2**31)), chunk=chunk)
        b = found.permutation.apply(b)
        index = {group: held.clone() for group, held in index.items()}
        for pair, node in enumerate(second):
            for leaf in leaves[node]:
                moved = {group: i.select(axis, pair) for group, i in found.permutation.indices.items()}
                before = {group: held.select(axis, leaf) for group, held in index.items()}
                for group, composed in compose(spec, moved, before).items():
                    index[group].select(axis, leaf).copy_(composed)
        owned = [(len(leaves[i]), len(leaves[j])) for i, j in zip(first, second, strict=True)]
        share = torch.tensor([right / (left + right) for left, right in owned], dtype=torch.float64, device=device)
        merged = {key: _lerp(a[key], b[key], share, axis) for key in nodes}
        if mend is not None:
            flat = {key: tensor.flatten(0, axis) for key, tensor in merged.items()}
            parents = {key: torch.stack([a[key], b[key]], axis + 1).flatten(0, axis) for key in nodes}
            merged = {key: tensor.unflatten(0, (*batch, pairs)) for key, tensor in mend(flat, parents).items()}
        passed = take(odd)
        nodes = {key: torch.cat([merged[key], passed[key]], axis) for key in nodes}
        leaves = [leaves[i] + leaves[j] for i, j in zip(first, second, strict=True)] + [leaves[i] for i in odd]
        stages.append(Stage(nodes, tuple(leaves), Permutation(spec, index), found))
    return stages


def _lerp(a: Tensor, b: Tensor, share: Tensor, axis: int) -> Tensor:
    """``(1 - share) a + share b``, one share for each entry along ``axis``."""
    if not a.is_floating_point():
        return a
    return torch.lerp(a, b, share.to(a.dtype).reshape(-1, *[1] * (a.ndim - axis - 1)))
