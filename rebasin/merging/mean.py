"""The naive average of models as they are, and how well models lie on one another."""

from __future__ import annotations

import torch
from torch import Tensor

from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights


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


def _mean(tensor: Tensor, axis: int) -> Tensor:
    """The mean along an axis; of whole numbers (counters) the first."""
    return tensor.mean(axis) if tensor.is_floating_point() else tensor.select(axis, 0)


def _group_shape(spec: PermutationSpec, models: Weights) -> torch.Size:
    """``*batch`` of models stacked along a last leading axis, (*batch, n)."""
    shape = spec.batch_shape(models, "models")
    if not len(shape) or not shape.numel():
        raise ValueError("no models to merge: weights need a leading axis of one model or more")
    return shape[:-1]


def _unmoved(spec: PermutationSpec, batch: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """The identity's indices (*batch, *index_shape), to be written to."""
    return {group: index.clone() for group, index in Permutation.identity(spec, batch, device).indices.items()}
