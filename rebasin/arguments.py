"""What is checked of the arguments of public functions: errors name the argument, and nothing is computed before."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

LARGEST_SEED = 2**63 - 1


def check_tensor(value: Any, what: str) -> None:
    """Raise TypeError, or ValueError for a tensor that torch does not compute with: a sparse one, or of 8 bits."""
    if not isinstance(value, Tensor):
        hints = {"ndarray": ": torch.from_numpy makes one of it", "list": ": torch.tensor makes one of it"}
        hints["NoneType"] = ": leave out what is None"
        kind = type(value).__name__
        raise TypeError(f"{what} must be a tensor, got {kind}{hints.get(kind, '')}")
    if value.layout != torch.strided:
        raise ValueError(f"{what} has the layout {value.layout}: to_dense() makes a plain tensor of it")
    if value.is_quantized or (value.is_floating_point() and value.element_size() == 1):
        raise ValueError(f"{what} is {value.dtype}, which torch stores and does not compute with: convert it first")


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Raise TypeError unless ``value`` is a whole number, ValueError if it is less than ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} at least, got {value}")


def check_seed(seed: Any) -> None:
    """Raise TypeError unless a seed is a whole number, ValueError unless it lies from 0 to ``LARGEST_SEED``."""
    check_count(seed, "seed", 0)
    if seed > LARGEST_SEED:
        raise ValueError(f"seed must be {LARGEST_SEED} at most, got {seed}")


def check_number(value: Any, name: str, above: float | None = None, least: float | None = None) -> None:
    """Raise TypeError unless ``value`` is a number, ValueError unless it is finite and within its bounds."""
    single = isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()
    if not (isinstance(value, Real) or single) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {float(value)}")
    if above is not None and not value > above:
        raise ValueError(f"{name} must be above {above:g}, got {float(value):g}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be {least:g} at least, got {float(value):g}")


def check_flag(value: Any, name: str) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(value: Any, name: str, choices: Collection[str]) -> None:
    """Raise ValueError unless ``value`` is one of these words."""
    if not isinstance(value, str) or value not in choices:
        words = " or ".join(map(repr, choices))
        raise ValueError(f"{name} is {words}, not {value!r}")


def only_dtype(weights: Any) -> torch.dtype | None:
    """The number format of weights if their floating-point tensors have but one, else None."""
    formats = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return formats.pop() if len(formats) == 1 else None
