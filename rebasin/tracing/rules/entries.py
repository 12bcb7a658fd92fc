"""Operators on one entry at a time, or on those at the same place of several tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rebasin.tracing.units import Labels, Relations, Value, broadcast, meet, placed, rule


@rule(
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid",
    "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "log_sigmoid", "neg", "abs", "exp", "log", "log1p", "sqrt",
    "rsqrt", "square", "reciprocal", "erf", "floor", "ceil", "round", "sign", "tan", "atan", "acos", "asin", "sinh",
    "cosh", "exp2", "expm1", "log2", "log10", "trunc", "erfc", "sinc", "nan_to_num", "logit", "softshrink", "threshold",
    "tanhshrink", "softsign", "isinf", "isfinite", "sin", "cos", "bitwise_not", "logical_not", "isnan", "clone",
    "detach", "alias", "_to_copy", "to", "type_as", "lift_fresh_copy", "contiguous", "dropout", "real", "imag", "conj",
    "_conj", "resolve_conj", "lgamma", "digamma", "erfinv", "asinh", "acosh", "atanh", "angle", "sgn", "frac",
)  # fmt: skip
def entrywise(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
    """Functions of one entry at a time."""
    return Value(shape, x.labels, x.key, x.even)


@rule("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "where", "masked_fill", "fill", "eq", "ne", "lt",
      "le", "gt", "ge", "logical_and", "logical_or", "addcmul", "lerp", "copy", "logical_xor", "bitwise_and",
      "bitwise_or", "bitwise_xor", "addcdiv", "atan2", "fmod", "remainder", "floor_divide", "fmax", "fmin", "hypot",
      "logaddexp", "logaddexp2", "xlogy", "polar", "complex", "heaviside", "copysign", "__and__", "__or__",
      "__xor__")  # fmt: skip
def elementwise(relations: Relations, shape: tuple[int, ...], *values: Any, **_: Any) -> Value:
    """Functions of entries at the same place, broadcast: what meets there is tied."""
    why = "added to or multiplied with something that stays"
    values = tuple(value for value in values if isinstance(value, Value))
    lifted = [broadcast(relations, value, shape, why) for value in values]
    even = (axis for axis in range(len(shape)) if all(value.shape[axis] == 1 for value in lifted))
    return Value(shape, meet(relations, lifted, why), _scaled(values, lifted, shape), frozenset(even))


def _scaled(values: Sequence[Value], lifted: Sequence[Value], shape: tuple[int, ...]) -> str | None:
    """The key of a tensor of which all others scale or shift whole rows."""
    for value, own in zip(values, lifted, strict=True):
        others = [other for other in lifted if other is not own]
        if value.key and value.shape == shape and all(other.shape[1:2] == (1,) for other in others):
            return value.key
    return None


@rule("clamp", "clamp_min", "clamp_max")
def clamped(relations: Relations, shape: tuple[int, ...], *values: Any, **bounds: Any) -> Value:
    """Entries kept within bounds, which may be tensors."""
    return elementwise(relations, shape, *values, *bounds.values())


@rule("new_zeros", "new_ones", "new_full", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like",
      "empty", "new_empty", "empty_like")  # fmt: skip
def constant(relations: Relations, shape: tuple[int, ...], *_: Any, **__: Any) -> Value:
    """A tensor of equal entries, or of entries that are yet to be written."""
    return Value(shape, even=frozenset(range(len(shape))))


@rule("eye")
def identity(relations: Relations, shape: tuple[int, ...], *_: Any, **__: Any) -> Value:
    """The identity matrix: it stays what it is where rows and columns move together, wherever it is used."""
    if shape[0] != shape[1]:
        return Value(shape)
    units = relations.fresh(shape[0])
    return Value(shape, (Labels((0,), units), Labels((1,), units)))


@rule("bucketize")
def counted_off(relations: Relations, shape: tuple[int, ...], x: Value, bounds: Value, **_: Any) -> Value:
    """Each entry's place among bounds."""
    placed(relations, bounds, [0], "bounds in their order")
    return Value(shape, x.labels, even=x.even)


@rule("arange", "linspace", "scalar_tensor", "rand_like", "randn_like")
def counted(relations: Relations, shape: tuple[int, ...], *_: Any, **__: Any) -> Value:
    """A tensor whose content depends on no other's."""
    return Value(shape)


@rule("prelu")
def bent(relations: Relations, shape: tuple[int, ...], x: Value, slope: Value) -> Value:
    """Entries below zero times a slope, which may be one of each channel."""
    if slope.shape == (1,) or len(shape) < 2:
        return elementwise(relations, shape, x, slope)
    return elementwise(relations, shape, x, Value((*slope.shape, *[1] * (len(shape) - 2)), slope.labels))
