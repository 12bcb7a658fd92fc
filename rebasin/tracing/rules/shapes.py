"""Operators that move entries: new shapes, other orders, parts and wholes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rebasin.tracing.units import (
    FIXED,
    Labels,
    Relations,
    Value,
    broadcast,
    follow,
    meet,
    placed,
    renumbered,
    rule,
    tidy,
)


@rule("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshaped(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
    """The same entries in the same order: labels go with them."""
    out = list(x.labels)
    # Axes of size 1 hold no order; what is left pairs up in runs of the same size.
    old = [axis for axis, size in enumerate(x.shape) if size != 1]
    new = [axis for axis, size in enumerate(shape) if size != 1]
    at: dict[int, tuple[int, ...]] = {}
    done: list[Labels] = []
    even: set[int] = set()
    for before, after in _runs([x.shape[axis] for axis in old], [shape[axis] for axis in new]):
        here, there = [old[i] for i in before], [new[i] for i in after]
        at.update(dict.fromkeys(here, tuple(there)))
        if x.even.issuperset(here):
            even.update(there)
        touching = [labels for labels in out if set(labels.axes) & set(here)]
        if len(here) == len(there) == 1 or not touching:
            continue
        # Pairs of units of two groups are no units: the group that has more of them is kept.
        touching.sort(key=lambda labels: np.unique(labels.units).size)
        *fewer, labels = touching
        for other in fewer:
            relations.pin(other.units, "reshaped together with another group")
            out.remove(other)
        out.remove(labels)
        out.append(_spread(labels, here, there, x.shape, shape))
    for labels in out:
        axes: list[int] = []
        for axis in labels.axes:
            if axis < 0:
                axes.append(-axis - 1)  # it has its new place already
            elif axis in at:
                axes += at[axis]
        units = labels.units.reshape([shape[axis] for axis in axes])
        done.append(tidy(axes, units))
    return Value(shape, tuple(labels for labels in done if labels.axes), even=frozenset(even))


def _spread(labels: Labels, here: list[int], there: list[int], old: tuple[int, ...], new: tuple[int, ...]) -> Labels:
    """These labels after the axes ``here`` became the axes ``there``; new axes are written -axis - 1."""
    outside = [axis for axis in labels.axes if axis not in here]
    order = [labels.axes.index(axis) for axis in outside + [axis for axis in here if axis in labels.axes]]
    units = labels.units.transpose(order)
    full = [units.shape[i] for i in range(len(outside))] + [old[axis] if axis in labels.axes else 1 for axis in here]
    units = np.broadcast_to(units.reshape(full), [*full[: len(outside)], *(old[axis] for axis in here)])
    units = units.reshape([*full[: len(outside)], *(new[axis] for axis in there)])
    return Labels((*outside, *(-axis - 1 for axis in there)), units)


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """The shortest runs of neighbouring axes of two shapes that hold as many entries."""
    i = j = 0
    while i < len(old) and j < len(new):
        before, after = [i], [j]
        a, b = old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a *= old[i]
                before.append(i)
                i += 1
            else:
                b *= new[j]
                after.append(j)
                j += 1
        yield before, after


@rule("permute")
def permuted(relations: Relations, shape: tuple[int, ...], x: Value, dims: Sequence[int], **_: Any) -> Value:
    """Axes in another order."""
    place = {dim % len(x.shape): new for new, dim in enumerate(dims)}
    labels = tuple(renumbered(labels, place) for labels in x.labels)
    return Value(shape, labels, even=frozenset(place[axis] for axis in x.even))


@rule("transpose", "swapaxes")
def transposed(relations: Relations, shape: tuple[int, ...], x: Value, a: int, b: int) -> Value:
    """Two axes change places."""
    dims = list(range(len(x.shape)))
    dims[a], dims[b] = dims[b], dims[a]
    return permuted(relations, shape, x, dims)


@rule("t")
def turned(relations: Relations, shape: tuple[int, ...], x: Value) -> Value:
    """The axes in reverse."""
    return permuted(relations, shape, x, list(range(len(x.shape)))[::-1])


@rule("linalg_inv", "inverse")
def inverted(relations: Relations, shape: tuple[int, ...], x: Value) -> Value:
    """The inverse of matrices: its rows are in the order of their columns, and its columns in that of their rows."""
    return Value(shape, transposed(relations, shape, x, -2, -1).labels)


@rule("expand")
def expanded(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
    """Axes of size 1 repeated."""
    lifted = broadcast(relations, x, shape, "repeated")
    return Value(shape, lifted.labels, even=frozenset(axis for axis, size in enumerate(lifted.shape) if size == 1))


@rule("slice")
def sliced(
    relations: Relations,
    shape: tuple[int, ...],
    x: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    """Some slices of an axis."""
    return _taken(relations, x, shape, dim % len(x.shape), slice(start, end, step))


@rule("select")
def selected(relations: Relations, shape: tuple[int, ...], x: Value, dim: int, index: int) -> Value:
    """One slice of an axis, which goes."""
    dim = dim % len(x.shape)
    kept = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    window = _taken(relations, x, kept, dim, slice(index, index + 1 or None))
    for labels in window.labels:
        if labels.axes == (dim,):  # it leaves no label behind
            relations.reach(labels.units)
    return without(window, [dim], shape)


def _taken(relations: Relations, x: Value, shape: tuple[int, ...], dim: int, window: slice) -> Value:
    """A window of an axis. What becomes of its units may not become of the others: they are a set of their own."""
    out = []
    for labels in x.labels:
        if dim in labels.axes:
            at = tuple(window if axis == dim else slice(None) for axis in labels.axes)
            relations.part(labels.units[at])
            labels = tidy(labels.axes, labels.units[at]) if shape[dim] > 1 else Labels(labels.axes, labels.units[at])
        out.append(labels)
    return Value(shape, tuple(labels for labels in out if labels.axes), even=x.even)


def without(x: Value, dims: Sequence[int], shape: tuple[int, ...]) -> Value:
    """The value without axes of size 1."""
    kept = [axis for axis in range(len(x.shape)) if axis not in dims]
    place = {axis: new for new, axis in enumerate(kept)}
    out = []
    for labels in x.labels:
        axes = tuple(axis for axis in labels.axes if axis not in dims)
        if axes:
            units = labels.units.squeeze(tuple(i for i, axis in enumerate(labels.axes) if axis in dims))
            out.append(Labels(tuple(place[axis] for axis in axes), units))
    return Value(shape, tuple(out), even=frozenset(place[axis] for axis in x.even - set(dims)))


@rule("split", "split_with_sizes", "chunk")
def parted(relations: Relations, shapes: Sequence[tuple[int, ...]], x: Value, _: Any, dim: int = 0) -> list[Value]:
    """An axis in parts."""
    dim, start, parts = dim % len(x.shape), 0, []
    for shape in shapes:
        parts.append(_taken(relations, x, shape, dim, slice(start, start + shape[dim])))
        start += shape[dim]
    return parts


@rule("unbind")
def unbound(relations: Relations, shapes: Sequence[tuple[int, ...]], x: Value, dim: int = 0) -> list[Value]:
    """The slices of an axis, one by one."""
    return [selected(relations, shape, x, dim, index) for index, shape in enumerate(shapes)]


@rule("getitem")
def item(relations: Relations, shape: Any, parts: Sequence[Value], index: int) -> Value:
    """One of several outputs."""
    return parts[index]


@rule("cat", "concat")
def joined(relations: Relations, shape: tuple[int, ...], values: Sequence[Value], dim: int = 0) -> Value:
    """Tensors one after another along an axis: there labels follow one another, elsewhere they are tied."""
    dim, why = dim % len(shape), "concatenated with something that stays"
    values = [value for value in values if len(value.shape) == len(shape)]  # torch passes over empty vectors
    along = {labels.axes for value in values for labels in value.labels if dim in labels.axes}
    rest = []
    for value in values:
        across = tuple(labels for labels in value.labels if dim not in labels.axes)
        full = tuple(1 if axis == dim or axis in value.even else size for axis, size in enumerate(value.shape))
        rest.append(Value(full, across))
    out = list(meet(relations, rest, why))
    even = frozenset(axis for axis in range(len(shape)) if axis != dim and all(axis in value.even for value in values))
    if len(along) == 1:
        (axes,) = along
        parts = []
        for value in values:
            labels = value.on(dim)
            size = [value.shape[axis] for axis in axes]
            if labels is None:
                parts.append(_alike(relations, size) if value.even.issuperset(axes) else np.full(size, FIXED))
            else:
                parts.append(labels.units)
        out = [labels for labels in out if not set(labels.axes) & set(axes)]
        out.append(Labels(axes, np.concatenate(parts, axes.index(dim))))
    elif along:
        for value in values:
            for labels in value.labels:
                if dim in labels.axes:
                    relations.pin(labels.units, why)
    return Value(shape, tuple(out), even=even)


def _alike(relations: Relations, shape: Sequence[int]) -> np.ndarray:
    """New units for slices that are all equal, such as zeros."""
    units = relations.fresh(math.prod(shape)).reshape(shape)
    relations.part(units)
    return units


@rule("stack")
def stacked(relations: Relations, shape: tuple[int, ...], values: Sequence[Value], dim: int = 0) -> Value:
    """Tensors side by side along a new axis."""
    dim = dim % len(shape)
    thin = (*shape[:dim], 1, *shape[dim + 1 :])
    return joined(relations, shape, [reshaped(relations, thin, value) for value in values], dim)


@rule("roll")
def rolled(relations: Relations, shape: tuple[int, ...], x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Slices moved on along axes, the last ones to the front."""
    shifts, dims = ([given] if isinstance(given, int) else given for given in (shifts, dims))
    if not dims:
        return follow(relations, "roll of the flattened tensor", shape, [x], {})
    out = []
    for labels in x.labels:
        units = labels.units
        for shift, dim in zip(shifts, dims, strict=True):
            if dim % len(shape) in labels.axes:
                units = np.roll(units, shift, labels.axes.index(dim % len(shape)))
        out.append(Labels(labels.axes, units))
    return Value(shape, tuple(out))


@rule("flip")
def flipped(relations: Relations, shape: tuple[int, ...], x: Value, dims: Sequence[int]) -> Value:
    """Axes backwards."""
    out = []
    for labels in x.labels:
        places = tuple(labels.axes.index(dim % len(shape)) for dim in dims if dim % len(shape) in labels.axes)
        out.append(Labels(labels.axes, np.flip(labels.units, places)))
    return Value(shape, tuple(out))


@rule("pad", "constant_pad_nd")
def padded(relations: Relations, shape: tuple[int, ...], x: Value, pad: Sequence[int], mode: Any = "constant",
           *_: Any, **__: Any) -> Value:  # fmt: skip
    """Slices added at the ends of axes: of one number, which may change places, or of others."""
    for i in range(0, len(pad), 2):
        axis, ends = len(shape) - 1 - i // 2, pad[i : i + 2]
        if not any(ends):
            continue
        labels = x.on(axis)
        full = (*x.shape[:axis], shape[axis], *x.shape[axis + 1 :])
        if labels is None or labels.axes != (axis,) or min(ends) < 0 or isinstance(mode, str) and mode != "constant":
            x = replace(placed(relations, x, [axis], "padded"), shape=full)
            continue
        units = np.concatenate([_alike(relations, ends[:1]), labels.units, _alike(relations, ends[1:])])
        x = Value(full, tuple(Labels((axis,), units) if own is labels else own for own in x.labels))
    return Value(shape, x.labels)
