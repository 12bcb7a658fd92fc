"""Weights: a model is a dict of tensors, as ``state_dict()`` gives it; many models are that with leading axes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from rebasin.arguments import check_count, check_number, check_tensor

Weights = Mapping[str, Tensor]
Model = nn.Module | Weights
Models = Model | Sequence[Model]
Module = TypeVar("Module", bound=nn.Module)
Kind = TypeVar("Kind", bound=Models)  # what is given back is what was given
EXTRA_STATE = "_extra_state"  # so ends the key of what a module's get_extra_state() gives


def weights_of(models: Models, what: str = "models") -> dict[str, Tensor]:
    """The weights of a model as a dict; those of a list of models side by side, along a new first axis.

    What is a dict of tensors already, with whatever leading axes, stays as it is. Raises TypeError for anything else,
    and ValueError, naming the first key, for a list of models that do not fit one another.
    """
    if isinstance(models, nn.Module | Mapping):
        weights = state_of(models) if isinstance(models, nn.Module) else dict(models)
        for key, tensor in weights.items():
            check_tensor(tensor, f"{what}: {key!r}")
        return over(weights, Tensor.detach) if isinstance(models, nn.Module) else weights
    if isinstance(models, list | tuple):
        if not models:
            raise ValueError(f"{what}: the list is empty")
        return stack([weights_of(model, f"{what}[{number}]") for number, model in enumerate(models)])
    hint = ": load_weights(path, spec) reads a file" if isinstance(models, str | Path) else ""
    kind = type(models).__name__
    raise TypeError(f"{what}: a module, a dict of tensors or a list of them is needed, got {kind}{hint}")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The entries of a module's state but for what ``get_extra_state()`` gives, which may be no tensor."""
    return {key: value for key, value in module.state_dict().items() if not key.endswith(EXTRA_STATE)}


def like(models: Kind, weights: Weights) -> Kind:
    """Weights as the kind of thing that ``models`` are: a module, a list, or a dict of tensors.

    A module is a copy, which keeps its device, its number format, and whether it is training; ``forgetful`` says what
    it does not keep. Raises ValueError if two of its entries share their memory, and get different values.
    """
    if isinstance(models, nn.Module):
        module = forgetful(copied(models))
        extra = {key: value for key, value in module.state_dict().items() if key.endswith(EXTRA_STATE)}
        module.load_state_dict({**extra, **weights})
        _check_ties(module, weights)
        return module
    if isinstance(models, list | tuple):
        several = [like(model, take(weights, number)) for number, model in enumerate(models)]
        return cast(Kind, several if isinstance(models, list) else tuple(several))
    return cast(Kind, dict(weights))


def in_evaluation(module: Module) -> Module:
    """The module, told to evaluate, which may give back nothing."""
    module.eval()
    return module


def forgetful(module: Module) -> Module:
    """The module, once those parts of it that keep tensors beside their weights were told to train, and back.

    What they have computed and keep is then forgotten, as some vision transformers do with the biases of attention.
    """
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        own = {name: value for name, value in vars(part).items() if name not in ("_parameters", "_buffers", "_modules")}
        if any(isinstance(value, Tensor) for kept in own.values() for value in _values(kept)):
            part.train()
            part.train(modes[part])
    for part, mode in modes.items():
        part.training = mode
    return module


def _values(kept: Any) -> list[Any]:
    """What an attribute holds: itself, or what is in a dict, list or tuple."""
    if isinstance(kept, Mapping):
        return list(kept.values())
    return list(kept) if isinstance(kept, list | tuple) else [kept]


def _check_ties(module: nn.Module, weights: Weights) -> None:
    """Raise ValueError if entries of a module that share their memory got different values."""
    keys: dict[int, list[str]] = {}
    state = state_of(module)
    for key, tensor in state.items():
        if tensor.layout == torch.strided and tensor.numel():
            keys.setdefault(tensor.untyped_storage().data_ptr(), []).append(key)
    for shared in keys.values():
        for key in shared if len(shared) > 1 else []:
            if not torch.allclose(state[key], weights[key].to(state[key]), rtol=0, atol=0, equal_nan=True):
                others = " and ".join(repr(other) for other in shared if other != key)
                raise ValueError(
                    f"{key!r} shares its memory with {others}, and they get different values: let them be tensors of "
                    "their own first, or give a dict, module.state_dict(), for a dict"
                )


def copied(model: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy of a module; ``memo[id(tensor)]`` is what stands there in place of a tensor.

    A weight that a module has computed from its parameters, and keeps as ``torch.nn.utils.weight_norm`` does, is copied
    as plain numbers: torch copies no tensor that has a history. Raises ValueError, naming the attribute, if one cannot
    be copied, such as a lock or an open file.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except TypeError as error:
        raise ValueError(
            f"the model cannot be copied{_uncopied(model)}: {error}. Take it away for the while, or make it where it "
            "is used"
        ) from error


def _uncopied(model: nn.Module) -> str:
    """The attribute that keeps a model from being copied, as the middle of a message."""
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}
        for key, value in own.items():
            try:
                copy.deepcopy(value)
            except TypeError:
                path = f"{name}.{key}" if name else key
                return f" for its attribute {path!r}"
    return ""


def interpolate(a: Kind, b: Models, weight: float) -> Kind:
    """The point ``(1 - weight) a + weight b`` between two models, or between many pairs.

    Both are modules, dicts of tensors with any leading axes, or lists of either; the answer is what ``a`` is. Whole
    numbers, such as counters, are those of ``a``, and what is infinite in both alike, as in a mask, stays. Raises
    ValueError, naming the first key, if the two do not fit, hold NaN, or are infinite where there is no point between
    them, and for a weight that is not finite.

    >>> a, b = {"bias": torch.zeros(2)}, {"bias": torch.ones(2)}
    >>> interpolate(a, b, 0.25)
    {'bias': tensor([0.2500, 0.2500])}
    """
    from_a, from_b = weights_of(a, "a"), weights_of(b, "b")
    check_alike(from_a, from_b, "a", "b")
    check_number(weight, "weight")
    weight = float(weight)
    for what, weights in (("a", from_a), ("b", from_b)):
        for key, tensor in weights.items():
            if tensor.isnan().any():
                raise ValueError(f"{what}: {key!r} holds NaN")
    between = {}
    for key, tensor in from_a.items():
        between[key] = tensor.clone() if is_whole(tensor) else point_between(tensor, from_b[key], weight)
        infinite = tensor.isinf() | from_b[key].isinf()
        if weight not in (0, 1) and (infinite & (tensor != from_b[key])).any():
            raise ValueError(f"{key!r} is infinite where a and b differ: there is no point between them")
    return like(a, between)


def point_between(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """``(1 - weight) a + weight b``; where both are the same infinity, that, and at the ends what stands there."""
    point = torch.lerp(a, b, weight)
    if point.isfinite().all():
        return point
    if not isinstance(weight, Tensor) and weight in (0, 1):
        return (b if weight else a).clone()
    return torch.where(a == b, a, point)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, such as counters, which no merge averages."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def real(tensor: Tensor) -> Tensor:
    """A tensor; one of complex numbers as their real and imaginary parts, along a new last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def single(tensor: Tensor) -> Tensor:
    """A tensor in single precision at least: products of small half numbers are 0, of large ones infinite."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean(weights: Weights, axis: int = 0) -> dict[str, Tensor]:
    """The plain mean over one of the leading axes; of whole numbers, such as counters, the first.

    Raises ValueError, naming the first key, for an entry that has no such axis.

    >>> mean({"bias": torch.tensor([[0.0, 1.0], [2.0, 3.0]])})
    {'bias': tensor([1., 2.])}
    """
    weights = weights_of(weights, "weights")
    check_count(axis, "axis", 0)
    for key, tensor in weights.items():
        if tensor.ndim <= axis or not tensor.shape[axis]:
            raise ValueError(f"{key!r} has the shape {tuple(tensor.shape)}, and no axis {axis} to take a mean over")
    return over(weights, lambda tensor: tensor.select(axis, 0).clone() if is_whole(tensor) else tensor.mean(axis))


def stack(models: Sequence[Weights], axis: int = 0) -> dict[str, Tensor]:
    """Models side by side, along a new leading axis. Raises ValueError if there are none or they do not fit."""
    if not models:
        raise ValueError("there are no models")
    for number, model in enumerate(models[1:], 1):
        check_alike(models[0], model, "model 0", f"model {number}")
    stacked = {}
    for key in models[0]:
        stacked[key] = torch.stack([model[key] for model in models], axis)
    return stacked


def take(weights: Weights, index: int | slice | Tensor, axis: int = 0) -> dict[str, Tensor]:
    """The models at some places along a leading axis; an integer takes one, and the axis goes."""
    if isinstance(index, Tensor):
        return over(weights, lambda tensor: tensor.index_select(axis, index))
    return over(weights, lambda tensor: tensor[(*[slice(None)] * axis, index)])


def grouped(weights: Weights, size: int) -> dict[str, Tensor]:
    """Neighbouring models (n, ...) in groups of ``size``: (n / size, size, ...)."""
    return over(weights, lambda tensor: tensor.unflatten(0, (-1, size)))


def flat(weights: Weights, axes: int) -> dict[str, Tensor]:
    """The first ``axes`` axes as one, of which there is one entry if they are none."""
    return over(weights, lambda tensor: tensor.flatten(0, axes - 1) if axes else tensor.unsqueeze(0))


def unflat(weights: Weights, batch: Sequence[int]) -> dict[str, Tensor]:
    """The first axis as the axes ``batch``: the inverse of ``flat``."""
    return over(weights, lambda tensor: tensor.reshape((*batch, *tensor.shape[1:])))


def to(weights: Weights, device: torch.device | str) -> dict[str, Tensor]:
    """The weights on a device."""
    return over(weights, lambda tensor: tensor.to(device))


def over(weights: Weights, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What a function makes of each tensor."""
    return {key: function(tensor) for key, tensor in weights.items()}


def check_alike(a: Weights, b: Weights, name_a: str, name_b: str) -> None:
    """Raise ValueError, naming the first key, unless two models have the same keys, shapes, formats and device."""
    for key in [*a, *b]:
        if key not in a or key not in b:
            raise ValueError(f"{key!r} is in {name_a if key in a else name_b} and not in the other model")
        if a[key].shape != b[key].shape:
            raise ValueError(f"{key!r}: {name_a} has shape {tuple(a[key].shape)}, {name_b} has {tuple(b[key].shape)}")
        if a[key].dtype != b[key].dtype:
            raise ValueError(f"{key!r}: {name_a} is {a[key].dtype}, {name_b} is {b[key].dtype}")
        if a[key].device != b[key].device:
            raise ValueError(f"{key!r}: {name_a} is on {a[key].device}, {name_b} is on {b[key].device}")


def leading_axes_of(shapes: Mapping[str, Sequence[int]], weights: Weights, what: str, owner: str) -> torch.Size:
    """The leading axes ``*batch`` of weights (*batch, *shape), by the shapes of their entries.

    ``owner`` is what the shapes belong to, in words. Raises TypeError for what is no dict of tensors, ValueError if
    there are no shapes, or, naming the first key, for other keys or shapes, and for leading axes or devices that differ
    between entries.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"{what}: a dict of tensors is needed, got {type(weights).__name__}")
    if not shapes:
        raise ValueError(f"{what}: {owner} has no entries, and so nothing that could be matched or merged")
    for key in shapes:
        if key not in weights:
            raise ValueError(f"{what}: {owner} has {key!r}, the weights have not")
        check_tensor(weights[key], f"{what}: {key!r}")
    for key in weights:
        if key not in shapes:
            raise ValueError(f"{what}: the weights have {key!r}, {owner} has not")
    leading: dict[str, tuple[int, ...]] = {}
    device = weights[next(iter(shapes))].device
    for key, own in shapes.items():
        shape = tuple(weights[key].shape)
        leading[key] = shape[: max(0, len(shape) - len(own))]
        if shape[len(leading[key]) :] != tuple(own):
            raise ValueError(f"{what}: {key!r} has shape {shape[len(leading[key]) :]}, {owner} has {tuple(own)}")
        if weights[key].device != device:
            raise ValueError(f"{what}: {key!r} is on {weights[key].device}, others are on {device}")
    # One entry that differs is named, be it the first.
    batch = Counter(leading.values()).most_common(1)[0][0]
    for key, axes in leading.items():
        if axes != batch:
            raise ValueError(f"{what}: {key!r} has leading axes {axes}, others have {batch}")
    return torch.Size(batch)


def check_fits(model: nn.Module, weights: Weights, what: str) -> torch.Size:
    """The leading axes of weights of a model. Raises ValueError, naming the first key, if they do not fit."""
    state = state_of(model)
    batch = leading_axes_of({key: tensor.shape for key, tensor in state.items()}, weights, what, "the model")
    for key, tensor in state.items():
        if is_whole(weights[key]) and not is_whole(tensor):
            raise ValueError(f"{what}: {key!r} is {weights[key].dtype}, the model's is {tensor.dtype}")
    return batch


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise ValueError for a tensor without values, or with NaN or infinite ones."""
    if tensor.is_meta:
        raise ValueError(f"{what} is on the device 'meta', and has no values")
    if not is_whole(tensor) and tensor.numel() and not torch.isfinite(torch.stack(real(tensor).aminmax())).all():
        raise ValueError(f"{what} holds NaN or infinite values")


def check_device(model: nn.Module, weights: Weights) -> None:
    """Raise ValueError unless a model lies where the weights lie."""
    device = next(iter(weights.values())).device
    for key, tensor in state_of(model).items():
        if tensor.device != device:
            raise ValueError(f"{key!r}: the model is on {tensor.device}, the weights are on {device}")


def check_module(model: nn.Module, call: str, argument: str = "the first argument") -> None:
    """Raise TypeError, with the right order of the arguments in ``call``, unless an argument is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{argument} is the model, and a {type(model).__name__} was given: {call}")
