"""How well two models, or all of many, lie on one another: the inner product of their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from rebasin.spec import PermutationSpec, check_spec
from rebasin.weights import Models, Weights, real, single, weights_of


def inner_product(spec: PermutationSpec, a: Models, b: Models) -> Tensor:
    """The inner product of the weights of two models, statistics left out: (*batch,), float64.

    Both are modules, dicts of tensors (*batch, ...), or lists of either. Of complex weights it is the real part, one
    factor conjugated: that of their real and imaginary parts. Permuting both models alike does not change
    it, so that, of all permutations of ``b``, the one with the greatest inner product brings it closest to ``a``.

    Raises ValueError for models that do not fit the spec, and if their leading axes cannot be broadcast, or an entry is
    complex in one of them alone.

    >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(2)}, {"w": ("units",)})
    >>> inner_product(spec, {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    tensor(11., dtype=torch.float64)
    """
    check_spec(spec, "inner_product(spec, a, b)")
    a, b = weights_of(a, "a"), weights_of(b, "b")
    of_a, of_b = spec.leading_axes(a, "a"), spec.leading_axes(b, "b")
    try:
        torch.broadcast_shapes(of_a, of_b)
    except RuntimeError as error:
        raise ValueError(f"a has leading axes {tuple(of_a)}, b has {tuple(of_b)}, which do not broadcast") from error
    for key in spec.weights:
        if a[key].is_complex() != b[key].is_complex():
            raise ValueError(f"{key!r} is {a[key].dtype} in a and {b[key].dtype} in b: one is complex, one is not")
    total = torch.zeros((), dtype=torch.float64)
    for key in spec.weights:
        total = total + entry_product(a[key], b[key], len(spec.shapes[key]))
    return total


def entry_product(a: Tensor, b: Tensor, own_axes: int) -> Tensor:
    """The inner products of one entry of models, (*batch, ...) with so many axes of its own: (*batch,), float64."""
    products = single(real(a)) * single(real(b))
    axes = own_axes + a.is_complex()
    return products.flatten(-axes).sum(-1, dtype=torch.float64) if axes else products.double()


def mean_inner_product(spec: PermutationSpec, models: Models) -> Tensor:
    """The mean inner product over all pairs of n models (*batch, n, ...): (*batch,), float64.

    ``models`` is a list of modules or of dicts of tensors, or their stack. Raises ValueError for fewer than two models,
    and for models that do not fit the spec.

    >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(2)}, {"w": ("units",)})
    >>> mean_inner_product(spec, {"w": torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])})
    tensor(0.3333, dtype=torch.float64)
    """
    check_spec(spec, "mean_inner_product(spec, models)")
    models = weights_of(models)
    axis = len(group_shape(spec, models))
    n = models[next(iter(spec.shapes))].shape[axis]
    if n < 2:
        raise ValueError("a mean inner product needs two models or more")
    total = torch.zeros((), dtype=torch.float64)
    for key in spec.weights:
        tensor = single(real(models[key]))
        tensor = tensor.flatten(axis + 1) if tensor.ndim > axis + 1 else tensor.unsqueeze(-1)
        total = total + tensor.sum(axis).square().sum(-1, dtype=torch.float64)
        total = total - tensor.square().sum((axis, -1), dtype=torch.float64)
    return total / (n * (n - 1))


def group_shape(spec: PermutationSpec, models: Weights) -> torch.Size:
    """``*batch`` of models stacked along a last leading axis, (*batch, n). Raises ValueError if there are none."""
    shape = spec.batch_shape(models, "models")
    if not len(shape) or not shape.numel():
        raise ValueError(
            "no models to merge: weights need a leading axis of one model or more, or else pass a list of models"
        )
    return shape[:-1]
