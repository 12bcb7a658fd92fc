"""Operators that multiply tensors and sum: matrix products, attention, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.sums import compared, normed_by_channel
from rebasin.tracing.units import (
    FIXED,
    Labels,
    Relations,
    Value,
    follow,
    join,
    outer,
    placed,
    renumbered,
    rule,
    tie_axes,
)


def product(relations: Relations, shape: tuple[int, ...], a: Value, b: Value, formula: str) -> Value:
    """The sum of products that an einsum formula like ``nk,km->nm`` tells, of two tensors."""
    inputs, out = formula.split("->")
    names = inputs.split(",")
    why = "multiplied with something that stays"
    shared = set(names[0]) & set(names[1])
    named: list[list[tuple[str, np.ndarray]]] = []
    for position, (value, letters) in enumerate(zip((a, b), names, strict=True)):
        other = (b, a)[position]
        named.append([])
        for found in value.labels:
            on = "".join(letters[axis] for axis in found.axes)
            strange = any(
                letter in shared and other.on(names[1 - position].index(letter)) is None
                and other.shape[names[1 - position].index(letter)] > 1
                for letter in on
            )  # fmt: skip
            if strange:
                relations.pin(found.units, why)
            else:
                named[-1].append((on, found.units))
    number = {letter: place for place, letter in enumerate(dict.fromkeys(names[0] + names[1] + out))}
    every = [
        renumbered(Labels(tuple(range(len(on))), units), {place: number[letter] for place, letter in enumerate(on)})
        for each in named
        for on, units in each
    ]
    # What meets along shared axes is tied; what is summed over leaves the heads of its blocks.
    for one in every[: len(named[0])]:
        for two in every[len(named[0]) :]:
            common = tuple(axis for axis in one.axes if axis in two.axes)
            if common:
                relations.tie(outer(relations, one, common, why), outer(relations, two, common, why), why)
    left: list[Labels] = []
    kept = {number[letter]: place for place, letter in enumerate(out)}
    for found in every:
        axes = tuple(axis for axis in found.axes if axis in kept)
        if axes:
            left.append(renumbered(Labels(axes, outer(relations, found, axes, why)), kept))
        else:
            relations.use(found.units)
    return Value(shape, join(relations, left, why))


@rule("einsum")
def einsum(relations: Relations, shape: tuple[int, ...], formula: str, values: Sequence[Value], **_: Any) -> Value:
    """A sum of products of two tensors, as the formula tells."""
    formula = formula.replace(" ", "")
    inputs = formula.split("->")[0].split(",")
    plain = "->" in formula and "." not in formula and all(len(set(letters)) == len(letters) for letters in inputs)
    if len(values) != 2 or not plain:
        return follow(relations, f"einsum of {formula!r}", shape, values, {})
    return product(relations, shape, *values, formula)


@rule("linear")
def linear(relations: Relations, shape: tuple[int, ...], x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Rows of a matrix times the last axis, plus a bias."""
    places = _letters(len(x.shape) - 1)
    out = product(relations, shape, x, weight, f"{places}K,NK->{places}N")
    return out if bias is None else elementwise(relations, shape, out, bias)


@rule("addmm")
def addmm(relations: Relations, shape: tuple[int, ...], bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """A bias plus the product of two matrices."""
    return elementwise(relations, shape, product(relations, shape, a, b, "nk,km->nm"), bias)


@rule("matmul", "bmm", "mm")
def matmul(relations: Relations, shape: tuple[int, ...], a: Value, b: Value) -> Value:
    """Matrix products over the last two axes, batch axes broadcast."""
    if len(b.shape) == 1 or len(a.shape) == 1:
        return follow(relations, "matmul with a vector", shape, [a, b], {})
    places = _letters(len(shape) - 2)
    names = []
    for value, ends in ((a, "NK"), (b, "KM")):
        own = places[len(places) - (len(value.shape) - 2) :]
        names.append(own + ends)
    return product(relations, shape, a, b, f"{names[0]},{names[1]}->{places}NM")


@rule("scaled_dot_product_attention")
def attention(
    relations: Relations,
    shape: tuple[int, ...],
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Softmax of queries times keys, times values."""
    if enable_gqa:
        return follow(relations, "attention with fewer heads of keys than of queries", shape, [q, k, v, attn_mask], {})
    places = _letters(len(shape) - 2)
    scores = (*shape[:-2], q.shape[-2], k.shape[-2])
    weights = product(relations, scores, q, k, f"{places}QD,{places}KD->{places}QK")
    if attn_mask is not None:
        weights = elementwise(relations, scores, weights, attn_mask)
    weights = compared(relations, scores, weights, -1)
    return product(relations, shape, weights, v, f"{places}QK,{places}KE->{places}QE")


def _letters(count: int) -> str:
    return "abcdefghij"[:count]


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    relations: Relations,
    shape: tuple[int, ...],
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **_: Any,
) -> Value:
    """Channels mixed within groups, over windows of places."""
    if len(x.shape) != len(weight.shape):
        return follow(relations, "convolution without a batch", shape, [x, weight, bias], {})
    why = "the places of a convolution"
    x = placed(relations, x, range(2, len(x.shape)), why)
    weight = placed(relations, weight, range(2, len(weight.shape)), why)
    out = weight.on(0)
    out = np.full(weight.shape[0], FIXED) if out is None else out.units
    if groups == 1:
        tie_axes(relations, x, 1, weight, 1, "fed by the input or by something that stays")
    else:
        found = x.on(1)
        channels = np.full(x.shape[1], FIXED) if found is None or len(found.axes) > 1 else found.units
        why = "blocks of channels of which some stay"
        inside = relations.heads(channels.reshape(groups, -1), 1, why)
        relations.tie(inside, relations.heads(out.reshape(groups, -1), 1, why), why)
        if weight.shape[1] > 1:
            if weight.key is None or weight.key in relations.columns:
                relations.pin(channels, "a computed weight of a grouped convolution")
            else:
                relations.columns[weight.key] = channels, groups
    value = Value(shape, (Labels((1,), out),))
    return value if bias is None else normed_by_channel(relations, shape, value, bias)
