"""Straight-through matching: the permutation is learned by descending the midpoint's loss."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sized

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from rebasin.graph import each_model
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.pairs import Matching, check_pairs, inner_product
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, interpolate


def straight_through_matching(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    epochs: int = 1,
    learning_rate: float = 1e-2,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    seed: int = 0,
    chunk: int = 1,
) -> Matching:
    """Match each ``b`` to its ``a`` such that the midpoint's loss is low (Git Re-Basin, Algorithm 2).

    A free point starts at ``a``. On every batch ``b`` is weight-matched to it, the loss of the midpoint of ``a`` and
    the permuted ``b`` is taken, and its gradient moves the free point (SGD, momentum 0.9). The permutation of the batch
    with the lowest loss is kept. ``a`` and ``b`` are weights of ``model``, taken as in evaluation, with the same
    leading axes (*batch); ``loader`` gives inputs and targets, ``epochs`` times over; ``chunk`` gradients are taken at
    once. ``sweeps`` counts the batches and ``history`` is minus the loss of the best midpoint so far, before the first
    batch minus infinity. Raises ValueError if the weights do not fit or the loader gives nothing.
    """
    begun = time.perf_counter()
    batch = check_pairs(spec, a, b)
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}).eval()
    flat_a, flat_b = ({key: t.reshape(-1, *spec.shapes[key]) for key, t in weights.items()} for weights in (a, b))
    free = {key: flat_a[key].clone() for key in spec.weights}
    speed = {key: torch.zeros_like(tensor) for key, tensor in free.items()}
    pairs, device = batch.numel(), next(iter(free.values())).device
    basin = Permutation.identity(spec, (pairs,), device)
    best = {group: index.clone() for group, index in basin.indices.items()}
    history = [torch.full((pairs,), -torch.inf, dtype=torch.float64, device=device)]

    def midpoint_loss(weights: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        # Tensors of two names are told twice.
        return loss(functional_call(model, {**weights, **statistics}, (x,), tie_weights=False), y)

    descend = each_model(grad_and_value(midpoint_loss), (0, 0, None, None), chunk)
    steps = epochs * len(loader) if isinstance(loader, Sized) else 0
    with track(steps, "straight-through matching", "batch") as bar:
        for x, y in (each for _ in range(epochs) for each in loader):
            basin = weight_matching(spec, {**flat_a, **free}, flat_b, seed, start=basin).permutation
            middle = interpolate(flat_a, basin.apply(flat_b), 0.5)
            statistics = {key: middle.pop(key) for key in spec.statistics}
            gradient, losses = descend(middle, statistics, x, y)
            for key, tensor in free.items():
                # The midpoint moves half as far as the permuted b, which stands for the free point.
                speed[key] = 0.9 * speed[key] + gradient[key] / 2
                free[key] = tensor - learning_rate * speed[key]
            better = -losses.double() > history[-1]
            for group, index in basin.indices.items():
                best[group][better] = index[better]
            history.append(torch.maximum(history[-1], -losses.double()))
            bar.update()
    if len(history) == 1:
        raise ValueError("the loader gave no batches")
    permutation = Permutation(spec, {g: i.reshape(*batch, *spec.index_shape(g)) for g, i in best.items()})
    return Matching(
        permutation,
        inner_product(spec, a, permutation.apply(b)),
        torch.full(batch, len(history) - 1),
        torch.stack(history, -1).reshape(*batch, -1),
        time.perf_counter() - begun,
    )
