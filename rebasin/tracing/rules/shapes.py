"""Operators that move entries: new shapes, other orders, parts and wholes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    labels = list(x.labels)
    # Axes of size 1 hold no order; what is left pairs up in runs of the same size.
    old = [axis for axis, size in enumerate(x.shape) if size != 1]
    new = [axis for axis, size in enumerate(shape) if size != 1]
    at: dict[int, tuple[int, ...]] = {}
    done: list[Labels] = []
    for before, after in _runs([x.shape[axis] for axis in old], [shape[axis] for axis in new]):
        here, there = [old[i] for i in before], [new[i] for i in after]
        at.update(dict.fromkeys(here, tuple(there)))
        touching = [found for found in labels if set(found.axes) & set(here)]
        if len(here) == len(there) == 1 or not touching:
            continue
        if len(touching) > 1:
            for found in touching:
                relations.pin(found.units, "reshaped together with another group")
            labels = [found for found in labels if found not in touching]
            continue
        (found,) = touching
        labels.remove(found)
        labels.append(_spread(found, here, there, x.shape, shape))
    for found in labels:
        axes: list[int] = []
        for axis in found.axes:
            if axis < 0:
                axes.append(-axis - 1)  # it has its new place already
            elif axis in at:
                axes += at[axis]
        units = found.units.reshape([shape[axis] for axis in axes])
        done.append(tidy(axes, units))
    return Value(shape, tuple(found for found in done if found.axes))


def _spread(found: Labels, here: list[int], there: list[int], old: tuple[int, ...], new: tuple[int, ...]) -> Labels:
    """These labels after the axes ``here`` became the axes ``there``; new axes are written -axis - 1."""
    outside = [axis for axis in found.axes if axis not in here]
    order = [found.axes.index(axis) for axis in outside + [axis for axis in here if axis in found.axes]]
    units = found.units.transpose(order)
    full = [units.shape[i] for i in range(len(outside))] + [old[axis] if axis in found.axes else 1 for axis in here]
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
    return Value(shape, tuple(renumbered(found, place) for found in x.labels))


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


@rule("expand")
def expanded(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
    """Axes of size 1 repeated."""
    return Value(shape, broadcast(relations, x, shape, "repeated").labels)


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
    one = _taken(relations, x, kept, dim, slice(index, index + 1 or None))
    return without(one, [dim], shape)


def _taken(relations: Relations, x: Value, shape: tuple[int, ...], dim: int, window: slice) -> Value:
    """A window of an axis. What becomes of its units may not become of the others: they are a set of their own."""
    labels = []
    for found in x.labels:
        if dim in found.axes:
            at = tuple(window if axis == dim else slice(None) for axis in found.axes)
            relations.use(found.units[at])
            found = tidy(found.axes, found.units[at]) if shape[dim] > 1 else Labels(found.axes, found.units[at])
        labels.append(found)
    return Value(shape, tuple(found for found in labels if found.axes))


def without(x: Value, dims: Sequence[int], shape: tuple[int, ...]) -> Value:
    """The value without axes of size 1."""
    place = {axis: new for new, axis in enumerate(axis for axis in range(len(x.shape)) if axis not in dims)}
    labels = []
    for found in x.labels:
        axes = tuple(axis for axis in found.axes if axis not in dims)
        if axes:
            units = found.units.squeeze(tuple(i for i, axis in enumerate(found.axes) if axis in dims))
            labels.append(Labels(tuple(place[axis] for axis in axes), units))
    return Value(shape, tuple(labels))


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
    along = {found.axes for value in values for found in value.labels if dim in found.axes}
    rest = []
    for value in values:
        across = tuple(found for found in value.labels if dim not in found.axes)
        full = tuple(1 if axis == dim else size for axis, size in enumerate(value.shape))
        rest.append(Value(full, across))
    labels = list(meet(relations, rest, why))
    if len(along) == 1:
        (axes,) = along
        parts = []
        for value in values:
            found = value.on(dim)
            size = [value.shape[axis] for axis in axes]
            parts.append(np.full(size, FIXED) if found is None else found.units)
        labels = [found for found in labels if not set(found.axes) & set(axes)]
        labels.append(Labels(axes, np.concatenate(parts, axes.index(dim))))
    elif along:
        for value in values:
            if value.on(dim) is not None:
                relations.pin(value.on(dim).units, why)
    return Value(shape, tuple(labels))


@rule("stack")
def stacked(relations: Relations, shape: tuple[int, ...], values: Sequence[Value], dim: int = 0) -> Value:
    """Tensors side by side along a new axis."""
    dim = dim % len(shape)
    one = (*shape[:dim], 1, *shape[dim + 1 :])
    return joined(relations, shape, [reshaped(relations, one, value) for value in values], dim)


@rule("roll")
def rolled(relations: Relations, shape: tuple[int, ...], x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Slices moved on along axes, the last ones to the front."""
    shifts, dims = ([each] if isinstance(each, int) else each for each in (shifts, dims))
    if not dims:
        return follow(relations, "roll of the flattened tensor", shape, [x], {})
    labels = []
    for found in x.labels:
        units = found.units
        for shift, dim in zip(shifts, dims, strict=True):
            if dim % len(shape) in found.axes:
                units = np.roll(units, shift, found.axes.index(dim % len(shape)))
        labels.append(Labels(found.axes, units))
    return Value(shape, tuple(labels))


@rule("flip")
def flipped(relations: Relations, shape: tuple[int, ...], x: Value, dims: Sequence[int]) -> Value:
    """Axes backwards."""
    labels = []
    for found in x.labels:
        places = [found.axes.index(dim % len(shape)) for dim in dims if dim % len(shape) in found.axes]
        labels.append(Labels(found.axes, np.flip(found.units, places)))
    return Value(shape, tuple(labels))


@rule("pad")
def padded(relations: Relations, shape: tuple[int, ...], x: Value, pad: Sequence[int], *_: Any, **__: Any) -> Value:
    """Places added at the ends of axes."""
    touched = [len(shape) - 1 - i // 2 for i, amount in enumerate(pad) if amount]
    return Value(shape, placed(relations, x, touched, "padded").labels)


@rule("index")
def indexed(relations: Relations, shape: tuple[int, ...], x: Value, indices: Sequence[Value | None]) -> Value:
    """Slices looked up by number along one axis, or along several that follow one another."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    x = placed(relations, x, axes, "looked up by number")
    grown = len(shape) - (len(x.shape) - len(axes))
    place = {axis: axis if axis < axes[0] else axis - len(axes) + grown for axis in range(len(x.shape))}
    if axes != list(range(axes[0], axes[0] + len(axes))):
        x = placed(relations, x, range(len(x.shape)), "looked up by number")
    return Value(shape, tuple(renumbered(found, place) for found in x.labels))


@rule("embedding")
def embedded(relations: Relations, shape: tuple[int, ...], weight: Value, indices: Value, *_: Any, **__: Any) -> Value:
    """Rows of a matrix looked up by number."""
    weight = placed(relations, weight, [0], "looked up by number")
    labels = tuple(Labels((len(shape) - 1,), found.units) for found in weight.labels)
    return Value(shape, labels)
