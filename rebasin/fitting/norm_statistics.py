"""Running statistics of a network's batch norms, measured over batches of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rebasin.graph import Programs, run
from rebasin.inputs import Inputs, batch_size
from rebasin.matching.batches import Loader, batches_of
from rebasin.merging.mending import norms_of
from rebasin.weights import copied, weights_of

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def measure_norms(model: Module, loader: Loader) -> Module:
    """A copy of a model whose batch norms have running statistics measured anew: the means of those of all batches.

    ``loader`` gives batches of two inputs or more, or tuples that begin with them. In each batch a norm sees what the
    norms before it give with the batch's own statistics, as in training; ``reset_norms`` takes one batch. Raises
    ValueError if the loader gives nothing, or a batch that has one value of a unit, and so no variance.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    >>> x = torch.randn(100, 3)
    >>> torch.allclose(measure_norms(model, [x[:50], x[50:]])[1].running_mean, model[0](x).mean(0), atol=1e-6)
    True
    """
    weights = weights_of(model)
    totals: dict[str, Tensor] = {}
    programs = Programs(model)
    images = 0
    for inputs, *_ in batches_of(loader, weights, "norm statistics"):
        for key, value in _statistics(programs.of(inputs), weights, inputs).items():
            totals[key] = totals.get(key, 0) + batch_size(inputs) * value.double()
        images += batch_size(inputs)
    measured = copied(model)
    buffers = dict(measured.named_buffers())
    for key, total in totals.items():
        buffers[key].copy_(total / images)
    return measured


def _statistics(program: torch.export.ExportedProgram, weights: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """The mean and the variance that each norm with running statistics sees, by the keys of these."""
    norms = norms_of(program)
    statistics: dict[str, Tensor] = {}

    def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
        if node in norms:
            args[3:5] = batch_statistics(args[0])
            statistics.update(zip(norms[node], args[3:5], strict=True))
        return compute(*args)

    run(program, weights, inputs, visit)
    return statistics


def batch_statistics(x: Tensor) -> list[Tensor]:
    """Mean and variance of each channel of (images, channels, ...). Raises ValueError for a single value of each."""
    if x[:, 0].numel() == 1:
        raise ValueError("a batch of one image has no variance: pass drop_last=True to the DataLoader")
    variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1])
    return [mean, variance]
