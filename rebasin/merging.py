"""Many models into one: naive averaging, MergeMany, and the hierarchy, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin.matching import TOLERANCE, Matching, weight_matching
from rebasin.permutation import Permutation, PermutationSpec, Weights, compose
from rebasin.progress import track


def interpolate(a: Weights, b: Weights, lam: float) -> dict[str, Tensor]:
    """The point ``(1 - lam) a + lam b``; whole numbers (counters) are those of ``a``.

    Raises ValueError, naming the first key, if keys or shapes differ.
    """
    for key in [*a, *b]:
        if key not in a or key not in b:
            raise ValueError(f"{key!r} is in one of the two models only")
        if a[key].shape != b[key].shape:
            raise ValueError(f"{key!r}: a has shape {tuple(a[key].shape)}, b has {tuple(b[key].shape)}")
    return {key: torch.lerp(a[key], b[key], lam) if a[key].is_floating_point() else a[key].clone() for key in a}


def average(spec: PermutationSpec, models: Weights) -> dict[str, Tensor]:
    """The naive average of models (*batch, n, ...) as they are: (*batch, ...). Of whole numbers it is the first."""
    axis = len(_group_shape(spec, models))
    return {key: _mean(tensor, axis) for key, tensor in models.items()}


def alignment(spec: PermutationSpec, models: Weights) -> Tensor:
    """The mean inner product over all pairs of n >= 2 models (*batch, n, ...): (*batch,), float64."""
    axis = len(_group_shape(spec, models))
    n = models[next(iter(spec.shapes))].shape[axis]
    if n < 2:
        raise ValueError("alignment needs two models or more")
    total = 0.0
    for key in spec.weights:
        tensor = models[key].flatten(axis + 1) if models[key].ndim > axis + 1 else models[key].unsqueeze(-1)
        total = total + tensor.sum(axis).square().sum(-1, dtype=torch.float64)
        total = total - tensor.square().sum((axis, -1), dtype=torch.float64)
    return total / (n * (n - 1))


@dataclass(frozen=True)
class Merged:
    """What MergeMany made of each group of n models.

    ``weights`` (*batch, ...); ``permutation`` (*batch, n) brings each model into the common basin; ``rounds``
    (*batch,) counts the rounds until one shortened no distance.
    """

    weights: dict[str, Tensor]
    permutation: Permutation
    rounds: Tensor


def merge_many(spec: PermutationSpec, models: Weights, seed: int = 0, max_rounds: int = 100) -> Merged:
    """Merge models (*batch, n, ...) all at once (Git Re-Basin, Algorithm 3, MergeMany).

    A round takes the models in random order and weight-matches each to the mean of the others; when a round shortens
    no model's distance to that mean, or after ``max_rounds``, the models are averaged. The order depends on ``seed``
    alone and is shared by the batch. Raises ValueError if the weights do not fit the spec or there are none.
    """
    batch = _group_shape(spec, models)
    n = models[next(iter(spec.shapes))].shape[len(batch)]
    groups = batch.numel()
    flat = {key: t.reshape(groups, n, *t.shape[len(batch) + 1 :]).clone() for key, t in models.items()}
    device = flat[next(iter(spec.shapes))].device
    index = _unmoved(spec, (groups, n), device)
    rounds = torch.zeros(groups, dtype=torch.int64, device=device)
    active = torch.full((groups,), n > 1, device=device)
    rng = np.random.default_rng(seed)
    with track(max_rounds, f"MergeMany, {groups} x {n} models, rounds at most", "round") as bar:
        for _ in range(max_rounds):
            if not active.any():
                break
            rows = active.nonzero().squeeze(-1)
            shortened = torch.zeros(len(rows), dtype=torch.bool, device=device)
            total = {key: tensor[rows].sum(1) for key, tensor in flat.items() if tensor.is_floating_point()}
            for i in rng.permutation(n):
                model = {key: tensor[rows, i] for key, tensor in flat.items()}
                others = {
                    key: (total[key] - tensor) / (n - 1) if key in total else tensor for key, tensor in model.items()
                }
                found = weight_matching(spec, others, model, seed=int(rng.integers(2**31)))
                # A permutation keeps the norm, so that the distance shrinks exactly when the inner product grows.
                shortened |= found.objective - found.history[..., 0] > TOLERANCE
                moved = found.permutation.apply(model)
                for key in total:
                    total[key] += moved[key] - model[key]
                for key, tensor in flat.items():
                    tensor[rows, i] = moved[key]
                before = {group: held[rows, i] for group, held in index.items()}
                for group, composed in compose(spec, found.permutation.indices, before).items():
                    index[group][rows, i] = composed
            rounds[rows] += 1
            active[rows] = shortened
            bar.set_postfix_str(f"{int(active.sum())} groups still moving")
            bar.update()
    return Merged(
        {key: _mean(tensor, 1).reshape((*batch, *tensor.shape[2:])) for key, tensor in flat.items()},
        Permutation(spec, {g: i.reshape(*batch, n, *spec.index_shape(g)) for g, i in index.items()}),
        rounds.reshape(batch),
    )


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


def _unmoved(spec: PermutationSpec, batch: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """The identity's indices (*batch, *index_shape), to be written to."""
    return {group: index.clone() for group, index in Permutation.identity(spec, batch, device).indices.items()}


def _lerp(a: Tensor, b: Tensor, share: Tensor, axis: int) -> Tensor:
    """``(1 - share) a + share b``, one share for each entry along ``axis``."""
    if not a.is_floating_point():
        return a
    return torch.lerp(a, b, share.to(a.dtype).reshape(-1, *[1] * (a.ndim - axis - 1)))


def _mean(tensor: Tensor, axis: int) -> Tensor:
    """The mean along an axis; of whole numbers (counters) the first."""
    return tensor.mean(axis) if tensor.is_floating_point() else tensor.select(axis, 0)


def _group_shape(spec: PermutationSpec, models: Weights) -> torch.Size:
    """``*batch`` of models stacked along a last leading axis, (*batch, n)."""
    shape = spec.batch_shape(models, "models")
    if not len(shape) or not shape.numel():
        raise ValueError("no models to merge: weights need a leading axis of one model or more")
    return shape[:-1]
