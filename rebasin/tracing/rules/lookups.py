"""Operators that look up slices by number, and those that go along one axis and leave others alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.shapes import joined, reshaped, sliced, without
from rebasin.tracing.rules.sums import reduced
from rebasin.tracing.units import Labels, Relations, Value, follow, meet, placed, renumbered, rule

BY_NUMBER = "looked up by number"


@rule("index")
def indexed(relations: Relations, shape: tuple[int, ...], x: Value, indices: Sequence[Value | None]) -> Value:
    """Slices looked up by number along one axis, or along several that follow one another."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    x = placed(relations, x, axes, BY_NUMBER)
    grown = len(shape) - (len(x.shape) - len(axes))
    place = {axis: axis if axis < axes[0] else axis - len(axes) + grown for axis in range(len(x.shape))}
    if axes != list(range(axes[0], axes[0] + len(axes))):
        x = placed(relations, x, range(len(x.shape)), BY_NUMBER)
    numbers = [index for index in indices if index is not None]
    out = [renumbered(labels, place) for labels in x.labels]
    if len(numbers) == 1:
        at = {axis: axes[0] + axis for axis in range(grown)}
        out += [renumbered(labels, at) for labels in numbers[0].labels]
    else:
        for index in numbers:
            placed(relations, index, range(len(index.shape)), BY_NUMBER)
    return Value(shape, tuple(out))


@rule("embedding")
def embedded(relations: Relations, shape: tuple[int, ...], weight: Value, indices: Value, *_: Any, **__: Any) -> Value:
    """Rows of a matrix looked up by number."""
    weight = placed(relations, weight, [0], BY_NUMBER)
    out = tuple(Labels((len(shape) - 1,), labels.units) for labels in weight.labels)
    return Value(shape, (*indices.labels, *out))


@rule("index_select")
def chosen(relations: Relations, shape: tuple[int, ...], x: Value, dim: int, index: Value) -> Value:
    """Slices of one axis looked up by number."""
    placed(relations, index, range(len(index.shape)), BY_NUMBER)
    return Value(shape, placed(relations, x, [dim], BY_NUMBER).labels)


@rule("gather", "scatter", "scatter_add", "scatter_reduce")
def gathered(relations: Relations, shape: tuple[int, ...], x: Value, dim: int, *others: Any, **_: Any) -> Value:
    """Entries looked up, or written, by number along one axis, each line by itself; on others, entries meet."""
    values = [x, *(value for value in others if isinstance(value, Value) and value.shape)]
    axes = {axis for axis in range(len(shape)) if any(value.shape[axis] != shape[axis] for value in values)}
    axes.add(dim % len(shape))
    kept = []
    for value in values:
        lines = placed(relations, value, axes, BY_NUMBER)
        whole = axes | value.even
        kept.append(Value(tuple(1 if axis in whole else size for axis, size in enumerate(shape)), lines.labels))
    return Value(shape, meet(relations, kept, BY_NUMBER))


@rule("cumsum", "cumprod", "sort", "argsort", "median", "cummax", "cummin", "max", "min", "mode",
      "argmax", "argmin", "all", "any", "count_nonzero", "unfold", "_fft_r2c", "_fft_c2r",
      "_fft_c2c")  # fmt: skip
def along_one(relations: Relations, shape: Any, x: Value, *arguments: Any, **options: Any) -> Any:
    """Operators along an axis, whose slices they tell apart; others are left alone."""
    if arguments and isinstance(arguments[0], Value):
        return elementwise(relations, shape, x, arguments[0])  # the larger of two
    ordered = isinstance(shape, list)  # the sorted entries, and where they stood
    dim = options.get("dim", arguments[0] if arguments else -1 if ordered else None)
    dims = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted({dim % len(x.shape) for dim in dims}) if x.shape else []
    kept = placed(relations, x, dims, "told apart along an axis")
    several = []
    for own in shape if ordered else [shape]:
        thin = len(own) < len(x.shape)
        several.append(without(kept, dims, own) if thin else Value(own, kept.labels))
    return several if ordered else several[0]


@rule("topk", "kthvalue", "fft_rfft", "fft_irfft", "fft_fft", "fft_ifft")
def along_the_second(
    relations: Relations, shape: Any, x: Value, _: Any = None, dim: int = -1, *__: Any, **___: Any
) -> Any:
    """The same, where something else is told before the axis."""
    return along_one(relations, shape, x, dim)


@rule("max", "min", "median", "mode", first_output=True)
def ranked(relations: Relations, shapes: Any, x: Value, dim: int = -1, *_: Any, **__: Any) -> list[Value]:
    """Values by their rank along an axis, which do not depend on its order, as long as nobody asks where they stood."""
    axis = dim % len(x.shape)
    values = reduced(relations, (*x.shape[:axis], 1, *x.shape[axis + 1 :]), x, [axis])
    if len(shapes[0]) < len(x.shape):
        values = without(values, [axis], shapes[0])
    return [Value(shape, values.labels) for shape in shapes]


@rule("topk", "kthvalue", first_output=True)
def ranked_by_number(
    relations: Relations, shapes: Any, x: Value, _: Any, dim: int = -1, *__: Any, **___: Any
) -> list[Value]:
    """The same, where a number is told before the axis."""
    return ranked(relations, shapes, x, dim)


@rule("sort", first_output=True)
def in_order(relations: Relations, shapes: Any, x: Value, *arguments: Any, **options: Any) -> list[Value]:
    """All values in their order along an axis, which may be told by name."""
    return ranked(relations, shapes, x, options.get("dim", arguments[0] if arguments else -1))


@rule("index_add")
def added_by_number(
    relations: Relations, shape: tuple[int, ...], x: Value, dim: int, index: Value, new: Value, **_: Any
) -> Value:
    """Slices of one axis added to those of another, by number, as nodes of a graph gather what others send."""
    dim = dim % len(shape)
    placed(relations, index, [0], BY_NUMBER)
    kept = []
    for value in (x, new):
        lines = placed(relations, value, [dim], BY_NUMBER)
        whole = value.even | {dim}
        kept.append(Value(tuple(1 if axis in whole else size for axis, size in enumerate(shape)), lines.labels))
    return Value(shape, meet(relations, kept, BY_NUMBER))


@rule("index_put")
def put_by_number(
    relations: Relations, shape: tuple[int, ...], x: Value, indices: Sequence[Value | None], new: Value, *_: Any
) -> Value:
    """The same along the first axis, added or written; along others, nothing is followed."""
    if len(indices) != 1 or indices[0] is None or len(indices[0].shape) != 1 or len(new.shape) != len(shape):
        return follow(relations, "index_put along several axes", shape, [x, indices, new], {})
    return added_by_number(relations, shape, x, 0, indices[0], new)


@rule("grid_sampler")
def sampled(relations: Relations, shape: tuple[int, ...], x: Value, grid: Value, *_: Any) -> Value:
    """Places looked up by coordinates."""
    placed(relations, grid, range(len(grid.shape)), "coordinates of places")
    return Value(shape, placed(relations, x, [0, *range(2, len(x.shape))], "looked up by coordinates").labels)


@rule("slice_scatter")
def written(
    relations: Relations, shape: tuple[int, ...], x: Value, new: Value, dim: int = 0, start: Any = None,
    end: Any = None, step: int = 1,
) -> Value:  # fmt: skip
    """Some slices of an axis replaced."""
    dim = dim % len(shape)
    first, last, step = slice(start, end, step).indices(shape[dim])
    if step != 1:
        return follow(relations, "slice_scatter in steps", shape, [x, new], {})
    parts = []
    for begin, stop, value in ((0, first, x), (first, last, new), (last, shape[dim], x)):
        if begin < stop:
            window = (*shape[:dim], stop - begin, *shape[dim + 1 :])
            parts.append(value if value is new else sliced(relations, window, x, dim, begin, stop))
    return joined(relations, shape, parts, dim)


@rule("select_scatter")
def written_once(relations: Relations, shape: tuple[int, ...], x: Value, new: Value, dim: int, index: int) -> Value:
    """One slice of an axis replaced."""
    dim = dim % len(shape)
    start = index % shape[dim]
    thin = reshaped(relations, (*shape[:dim], 1, *shape[dim + 1 :]), new)
    return written(relations, shape, x, thin, dim, start, start + 1)
