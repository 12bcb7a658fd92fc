"""What goes into a model: one tensor, a tuple of tensors in their order, or a dict of them by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rebasin.arguments import check_tensor

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def check_kind(inputs: Any, what: str) -> None:
    """Raise TypeError, or ValueError, unless inputs are a tensor, or one or more in a tuple or a dict."""
    if isinstance(inputs, list):
        raise TypeError(f"{what} must be a tensor, or a tuple of the tensors that the model takes, got a list")
    if not isinstance(inputs, tuple | Mapping):
        check_tensor(inputs, what)
    elif not inputs:
        raise ValueError(f"{what} are none: the {type(inputs).__name__} is empty")
    for called, x in _called(inputs, what).items():
        check_tensor(x, called)


def check_batch(inputs: Any, what: str) -> None:
    """Raise TypeError or ValueError unless inputs are tensors (m, ...), of one m."""
    check_kind(inputs, what)
    first, *others = _called(inputs, what).items()
    for called, x in (first, *others):
        if not x.ndim:
            raise ValueError(f"{called} must have a batch axis, got a single number")
    for called, x in others:
        if len(x) != len(first[1]):
            raise ValueError(f"the batch axis is the first: {first[0]} has {len(first[1])} entries, {called} {len(x)}")


def check_two_or_more(count: int, what: str) -> None:
    """Raise ValueError for fewer than two inputs."""
    if count < 2:
        raise ValueError(f"{what} needs two inputs or more, got {count}")


def check_inputs(inputs: Any, what: str, device: torch.device) -> None:
    """Raise TypeError or ValueError unless inputs are tensors (m, ...) that weights on a device can be applied to."""
    check_batch(inputs, what)
    if not batch_size(inputs):
        raise ValueError(f"{what} must be one or more, got none")
    for called, x in _called(inputs, what).items():
        if x.device != device:
            raise ValueError(f"{called} are on {x.device}, the weights on {device}")
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError(f"{called} hold NaN or infinite values")


def _called(inputs: Inputs, what: str) -> dict[str, Tensor]:
    """The tensors, each with what a message calls it."""
    if isinstance(inputs, Mapping):
        return {f"{what}: {name!r}": x for name, x in inputs.items()}
    if isinstance(inputs, tuple) and len(inputs) > 1:
        return {f"{what}: number {number}": x for number, x in enumerate(inputs)}
    return dict.fromkeys([what], inputs[0] if isinstance(inputs, tuple) else inputs)


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors in their order."""
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return inputs if isinstance(inputs, tuple) else (inputs,)


def arguments_of(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """What a module is called with: ``module(*args, **kwargs)``."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tensors_of(inputs), {})


def on_each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """What a function makes of each tensor, as what the inputs are."""
    if isinstance(inputs, Mapping):
        return {name: function(x) for name, x in inputs.items()}
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def batch_size(inputs: Inputs) -> int:
    """How many entries the batch axis has."""
    return len(tensors_of(inputs)[0])


def shapes_of(inputs: Inputs) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shape of each tensor, with its name or number: a graph is of one such."""
    if isinstance(inputs, Mapping):
        return tuple((name, tuple(x.shape)) for name, x in sorted(inputs.items()))
    return tuple((str(number), tuple(x.shape)) for number, x in enumerate(tensors_of(inputs)))
