"""Operators on one entry at a time, or on those at the same place of several tensors."""

from __future__ import annotations

from typing import Any

from rebasin.tracing.units import Relations, Value, broadcast, meet, rule


@rule(
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid",
    "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "log_sigmoid", "neg", "abs", "exp", "log", "log1p", "sqrt",
    "rsqrt", "square", "reciprocal", "clamp", "erf", "sin", "cos", "bitwise_not", "logical_not", "isnan", "clone",
    "detach", "alias", "_to_copy", "to", "type_as", "lift_fresh_copy", "contiguous", "dropout", "real", "imag", "conj",
    "_conj", "resolve_conj",
)  # fmt: skip
def entrywise(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
    """Functions of one entry at a time."""
    return Value(shape, x.labels)


@rule("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "where", "masked_fill", "fill", "eq", "ne", "lt",
      "le", "gt", "ge", "logical_and", "logical_or", "addcmul", "lerp", "copy")  # fmt: skip
def elementwise(relations: Relations, shape: tuple[int, ...], *values: Any, **_: Any) -> Value:
    """Functions of entries at the same place, broadcast: what meets there is tied."""
    why = "added to or multiplied with something that stays"
    lifted = [broadcast(relations, value, shape, why) for value in values if isinstance(value, Value)]
    return Value(shape, meet(relations, lifted, why))


@rule("new_zeros", "new_ones", "new_full", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "arange",
      "empty")  # fmt: skip
def constant(relations: Relations, shape: tuple[int, ...], *_: Any, **__: Any) -> Value:
    """A tensor whose content depends on no other's."""
    return Value(shape)
