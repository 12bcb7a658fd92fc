"""Straight-through matching: the permutation is learned by descending the midpoint's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from rebasin.arguments import check_count, check_number, check_seed, check_tensor
from rebasin.graph import each_model, first_line, without_cache
from rebasin.inner_products import inner_product
from rebasin.inputs import Inputs, arguments_of
from rebasin.matching.batches import batches_of
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.pairs import ALL_AT_ONCE, Matching, Solution, match_pairs
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, Weights, check_device, check_module, copied, in_evaluation, interpolate, over


def straight_through_matching(
    spec: PermutationSpec,
    a: Models,
    b: Models,
    *,
    model: nn.Module,
    loader: Iterable[tuple[Inputs, Tensor]],
    epochs: int = 1,
    learning_rate: float = 1e-2,
    loss: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy,
    seed: int = 0,
    chunk: int = 1,
) -> Matching:
    """Match each ``b`` to its ``a`` such that the midpoint's loss is low (Git Re-Basin, Algorithm 2).

    ``a`` and ``b`` are those of ``weight_matching``; they are weights of ``model``, which is taken as in evaluation.
    ``loader`` gives batches of inputs and targets, ``epochs`` times over; several inputs are a tuple or a dict, and
    ``loss`` takes whatever the model gives. A free point starts at ``a``. On every batch ``b`` is weight-matched to it,
    the loss of the midpoint of ``a`` and the permuted ``b`` is taken, and its gradient moves the free point (SGD,
    momentum 0.9). The permutation of the batch with the lowest loss is kept. ``chunk`` gradients are taken at once.

    ``maximised_by_sweep`` is minus the loss of the best midpoint so far; before the first batch it is minus infinity.
    Raises ValueError if the weights do not fit, lie on another device than model or data, if the loader gives nothing,
    if the model cannot take the inputs, or if these or the loss of a midpoint are not finite.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> other = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batches = [(torch.randn(9, 3), torch.randint(2, (9,))) for _ in range(4)]
    >>> straight_through_matching(spec, model, other, model=model, loader=batches).sweeps
    tensor(4)
    """

    check_module(model, "straight_through_matching(..., model=model)", "model")
    check_count(epochs, "epochs")
    check_number(learning_rate, "learning_rate", above=0)
    check_seed(seed)
    check_count(chunk, "chunk")
    if not callable(loss):
        raise TypeError(f"loss must be a function of outputs and targets, got {type(loss).__name__}")

    def solve(a: Weights, b: Weights, identity: dict[str, Tensor]) -> Solution:
        check_device(model, a)
        return _descend(spec, a, b, identity, model, loader, epochs, learning_rate, loss, seed, chunk)

    return match_pairs(spec, a, b, solve, ALL_AT_ONCE)


def _descend(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    best: dict[str, Tensor],
    model: nn.Module,
    loader: Iterable[tuple[Inputs, Tensor]],
    epochs: int,
    learning_rate: float,
    loss: Callable[[Any, Tensor], Tensor],
    seed: int,
    chunk: int,
) -> Solution:
    """Algorithm 2 for weights (pairs, ...), all pairs side by side; ``best`` are the indices so far."""
    own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = without_cache(in_evaluation(copied(model, own)))
    free = {key: a[key].clone() for key in spec.weights}
    speed = over(free, torch.zeros_like)
    basin = Permutation(spec, over(best, Tensor.clone))
    objective = [inner_product(spec, a, b)]
    history = [torch.full_like(objective[0], -torch.inf)]

    def midpoint_loss(weights: dict[str, Tensor], statistics: dict[str, Tensor], x: Inputs, y: Tensor) -> Tensor:
        try:
            # A tensor of two names is passed under both.
            outputs = functional_call(model, {**weights, **statistics}, *arguments_of(x), tie_weights=False)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"the model cannot be computed for the loader's inputs: {first_line(error)}") from error
        try:
            return loss(outputs, y)
        except TypeError as error:
            raise TypeError(
                f"the loss cannot take what the model gives, which is of type {type(outputs).__name__}: "
                f"{first_line(error)}. Give another one, as loss=lambda outputs, targets: ..."
            ) from error

    gradient_and_loss = each_model(grad_and_value(midpoint_loss), (0, 0, None, None), chunk)
    for batch in batches_of(loader, a, "straight-through matching", epochs):
        if len(batch) != 2:
            raise ValueError("straight-through matching needs batches of inputs and targets: (inputs, targets)")
        x, y = batch
        basin = weight_matching(spec, {**a, **free}, b, seed=seed, start=basin).permutation
        moved = basin.apply(b)
        middle = dict(interpolate(a, moved, 0.5))
        statistics = {key: middle.pop(key) for key in spec.statistics}
        check_tensor(y, "the loader's targets")
        gradient, losses = gradient_and_loss(middle, statistics, x, y)
        if not losses.isfinite().all():
            raise ValueError("the loss of a midpoint is NaN or infinite: a lower learning rate may help")
        for key, tensor in free.items():
            # The midpoint moves half as far as the permuted b, which stands for the free point.
            speed[key] = 0.9 * speed[key] + gradient[key] / 2
            free[key] = tensor - learning_rate * speed[key]
        better = -losses.double() > history[-1]
        for group, index in basin.indices.items():
            best[group][better] = index[better]
        history.append(torch.maximum(history[-1], -losses.double()))
        objective.append(torch.where(better, inner_product(spec, a, moved), objective[-1]))
    sweeps = torch.full((len(objective[0]),), len(history) - 1, device=objective[0].device)
    return Solution(best, objective[-1], sweeps, torch.stack(objective, -1), torch.stack(history, -1))
