"""Operators that sum over axes, compare entries along them, or normalise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.shapes import without
from rebasin.tracing.units import Labels, Relations, Value, outer, placed, rule, tie_axes, within


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "prod")
def reduced(relations: Relations, shape: tuple[int, ...], x: Value, *arguments: Any, **options: Any) -> Value:
    """Axes summed up, or the like."""
    dims = options.get("dim", arguments[0] if arguments and not isinstance(arguments[0], bool) else None)
    dims = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = {dim % len(x.shape) for dim in dims}
    keep = len(shape) == len(x.shape)
    out = []
    for labels in x.labels:
        left = tuple(axis for axis in labels.axes if axis not in dims)
        if not left:
            relations.use(labels.units)
        elif left == labels.axes:
            out.append(labels)
        else:
            out.append(Labels(left, outer(relations, labels, left, "summed in blocks")))
    whole = Value(tuple(1 if axis in dims else size for axis, size in enumerate(x.shape)), tuple(out))
    return whole if keep else without(whole, sorted(dims), shape)


@rule("softmax", "log_softmax")
def compared(relations: Relations, shape: tuple[int, ...], x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Entries weighed against the others along an axis."""
    within(relations, x, [dim % len(x.shape)], "weighed against one another")
    return x


def _pool(places: int) -> None:
    """Register the rule of windows over the last ``places`` axes."""

    @rule(f"max_pool{places}d", f"avg_pool{places}d", f"adaptive_avg_pool{places}d", f"upsample_nearest{places}d")
    def pooled(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
        return Value(shape, placed(relations, x, range(-places, 0), "pooled").labels)


for places in (1, 2, 3):
    _pool(places)


@rule("batch_norm", "instance_norm")
def normed_by_channel(relations: Relations, shape: tuple[int, ...], x: Value, *tensors: Any, **_: Any) -> Value:
    """Each channel shifted and scaled by numbers of its own."""
    for tensor in tensors:
        if isinstance(tensor, Value):
            tie_axes(relations, x, 1, tensor, 0, "normalised with statistics that stay")
    return x


@rule("_native_batch_norm_legit_no_training")
def normed_for_good(relations: Relations, shapes: Any, x: Value, *tensors: Any, **_: Any) -> list[Value]:
    """The same, as torch writes it once it knows that statistics are not updated."""
    return [normed_by_channel(relations, shapes[0], x, *tensors), *(Value(shape) for shape in shapes[1:])]


@rule("layer_norm", "rms_norm")
def normed(
    relations: Relations, shape: tuple[int, ...], x: Value, normalized: Sequence[int], *tensors: Any, **_: Any
) -> Value:
    """The last axes brought to mean 0 and deviation 1, or to square mean 1, then shifted and scaled."""
    axes = list(range(len(x.shape) - len(normalized), len(x.shape)))
    within(relations, x, axes, "normalised in blocks")
    return elementwise(relations, shape, x, *(tensor for tensor in tensors if isinstance(tensor, Value)))


@rule("group_norm")
def normed_in_groups(
    relations: Relations, shape: tuple[int, ...], x: Value, groups: int, *tensors: Any, **_: Any
) -> Value:
    """Blocks of channels brought to mean 0 and deviation 1, then shifted and scaled."""
    labels = x.on(1)
    if labels is not None and labels.axes == (1,):
        if groups == 1:
            relations.use(labels.units)
        else:
            relations.reach(labels.units)
            relations.heads(labels.units.reshape(groups, -1), 1, "normalised in blocks")
    return normed_by_channel(relations, shape, x, *(tensor for tensor in tensors if isinstance(tensor, Value)))
