"""Operators that repeat slices, or take channels apart into places and put them together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.shapes import parted, permuted, reshaped, transposed, without
from rebasin.tracing.units import Labels, Relations, Value, follow, placed, rule


@rule("repeat_interleave")
def interleaved(
    relations: Relations, shape: tuple[int, ...], x: Value, times: Any, dim: int | None = None, **_: Any
) -> Value:
    """Each slice of an axis several times in a row."""
    if not isinstance(times, int) or dim is None:
        return follow(relations, "repeat_interleave of the flattened tensor", shape, [x, times], {})
    dim = dim % len(shape)
    out = []
    for labels in x.labels:
        repeated = dim in labels.axes
        units = np.repeat(labels.units, times, labels.axes.index(dim)) if repeated else labels.units
        out.append(Labels(labels.axes, units))
    even = x.even | {dim} if x.shape[dim] == 1 else x.even
    return Value(shape, tuple(out), even=even)


@rule("repeat", "tile")
def tiled(relations: Relations, shape: tuple[int, ...], x: Value, times: Sequence[int]) -> Value:
    """All slices of an axis, then all of them again."""
    new = len(shape) - len(x.shape)
    counts = [1] * (len(shape) - len(times)) + list(times)
    out = []
    for labels in x.labels:
        axes = tuple(axis + new for axis in labels.axes)
        out.append(Labels(axes, np.tile(labels.units, [counts[axis] for axis in axes])))
    even = {axis for axis in range(len(shape)) if axis < new or x.shape[axis - new] == 1 or axis - new in x.even}
    return Value(shape, tuple(out), even=frozenset(even))


@rule("glu")
def gated(relations: Relations, shape: tuple[int, ...], x: Value, dim: int = -1) -> Value:
    """The first half of an axis times a gate, the second half."""
    first, second = parted(relations, [shape, shape], x, None, dim)
    return elementwise(relations, shape, first, second)


@rule("view_as_complex")
def paired(relations: Relations, shape: tuple[int, ...], x: Value) -> Value:
    """The last axis, of a real and an imaginary part, goes: the two move together."""
    out = []
    for labels in x.labels:
        if labels.axes[-1] == len(shape):
            real, imaginary = labels.units[..., 0], labels.units[..., 1]
            relations.tie(real, imaginary, "a real part whose imaginary part stays")
            labels = Labels(labels.axes[:-1], real)
        out.append(labels)
    return Value(shape, tuple(labels for labels in out if labels.axes), even=x.even - {len(shape)})


@rule("view_as_real")
def unpaired(relations: Relations, shape: tuple[int, ...], x: Value) -> Value:
    """A last axis of a real and an imaginary part."""
    return Value(shape, x.labels)


@rule("pixel_shuffle")
def spread_over_places(relations: Relations, shape: tuple[int, ...], x: Value, factor: int) -> Value:
    """Blocks of channels become squares of places: (..., c r r, h, w) to (..., c, h r, w r)."""
    *batch, channels, high, wide = shape
    sizes = (*batch, channels, factor, factor, high // factor, wide // factor)
    first = len(batch)
    order = [*range(first + 1), first + 3, first + 1, first + 4, first + 2]
    moved = permuted(relations, tuple(sizes[i] for i in order), reshaped(relations, sizes, x), order)
    return reshaped(relations, shape, moved)


@rule("pixel_unshuffle")
def gathered_from_places(relations: Relations, shape: tuple[int, ...], x: Value, factor: int) -> Value:
    """Squares of places become channels: (..., c, h r, w r) to (..., c r r, h, w)."""
    *batch, channels, high, wide = x.shape
    sizes = (*batch, channels, high // factor, factor, wide // factor, factor)
    first = len(batch)
    order = [*range(first + 1), first + 2, first + 4, first + 1, first + 3]
    moved = permuted(relations, tuple(sizes[i] for i in order), reshaped(relations, sizes, x), order)
    return reshaped(relations, shape, moved)


@rule("channel_shuffle")
def shuffled(relations: Relations, shape: tuple[int, ...], x: Value, groups: int) -> Value:
    """One channel of each group after another."""
    blocks = (shape[0], groups, shape[1] // groups, *shape[2:])
    turned = (shape[0], shape[1] // groups, groups, *shape[2:])
    return reshaped(relations, shape, transposed(relations, turned, reshaped(relations, blocks, x), 1, 2))


@rule("im2col")
def unfolded(relations: Relations, shape: tuple[int, ...], x: Value, kernel: Sequence[int], *_: Any) -> Value:
    """Windows of places: (n, c, h, w) to (n, c times places of a window, windows)."""
    if len(x.shape) != 4:
        return follow(relations, "im2col without a batch", shape, [x], {})
    x = placed(relations, x, [2, 3], "windows of places")
    each = kernel[0] * kernel[1]
    return Value(shape, tuple(_times(labels, 1, each) for labels in x.labels))


def _times(labels: Labels, axis: int, times: int) -> Labels:
    return (
        Labels(labels.axes, np.repeat(labels.units, times, labels.axes.index(axis))) if axis in labels.axes else labels
    )


@rule("col2im")
def folded(relations: Relations, shape: tuple[int, ...], x: Value, size: Any, kernel: Sequence[int], *_: Any) -> Value:
    """Windows of places summed up where they belong: the inverse of im2col."""
    if len(x.shape) != 3:
        return follow(relations, "col2im without a batch", shape, [x], {})
    apart = reshaped(relations, (shape[0], shape[1], kernel[0] * kernel[1], x.shape[2]), x)
    return replace(placed(relations, apart, [2, 3], "windows of places"), shape=shape, even=frozenset())


@rule("diagonal")
def diagonal(
    relations: Relations, shape: tuple[int, ...], x: Value, offset: int = 0, a: int = 0, b: int = 1, **named: int
) -> Value:
    """A diagonal of the matrices that two axes are, as a new last axis."""
    axes = sorted({named.get("dim1", a) % len(x.shape), named.get("dim2", b) % len(x.shape)})
    rest = without(placed(relations, x, axes, "a diagonal of a matrix"), axes, shape)
    return Value(shape, rest.labels, even=rest.even)


@rule("tril", "triu")
def cut(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
    """A part of the matrices that the last two axes are."""
    axes = [len(x.shape) - 2, len(x.shape) - 1]
    return Value(shape, placed(relations, x, axes, "a triangle of a matrix").labels)
