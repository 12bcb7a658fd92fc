"""Operators that sum over axes, compare entries along them, or normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.shapes import without
from rebasin.tracing.units import RULES, Labels, Relations, Value, outer, placed, rule, tie_axes, within


def reduced_axes(x: Value, arguments: Sequence[Any], options: Mapping[str, Any]) -> Sequence[int]:
    """The axes that a sum is told to go over, counted as they are given: all of them where nothing is said."""
    first = arguments[0] if arguments and not isinstance(arguments[0], bool) else None
    dims = options.get("dim", first)
    if dims is None or dims == []:
        return range(len(x.shape))
    return [dims] if isinstance(dims, int) else dims


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "prod", "nanmean", "nansum")
def reduced(relations: Relations, shape: tuple[int, ...], x: Value, *arguments: Any, **options: Any) -> Value:
    """Axes summed up, or the like."""
    dims = {dim % len(x.shape) for dim in reduced_axes(x, arguments, options)}
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
    thin = tuple(1 if axis in dims else size for axis, size in enumerate(x.shape))
    whole = Value(thin, tuple(out), even=x.even - dims)
    return whole if keep else without(whole, sorted(dims), shape)


@rule("std_mean", "var_mean", "aminmax")
def reduced_twice(
    relations: Relations, shapes: Sequence[tuple[int, ...]], x: Value, *given: Any, **options: Any
) -> Any:
    """The deviation and the mean over axes, or the least and the largest entry."""
    return [reduced(relations, shape, x, *given, **options) for shape in shapes]


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def compared(relations: Relations, shape: tuple[int, ...], x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Entries weighed against the others along an axis."""
    within(relations, x, [dim % len(x.shape)], "weighed against one another")
    return Value(shape, x.labels)


def _pool(places: int) -> None:
    """Register the rule of windows over the last ``places`` axes."""

    linear = ("linear", "bilinear", "trilinear")[places - 1]
    names = ("max_pool", "avg_pool", "adaptive_avg_pool", "upsample_nearest", "_upsample_nearest_exact")

    @rule(*(f"{name}{places}d" for name in (*names, f"upsample_{linear}")))
    def pooled(relations: Relations, shape: tuple[int, ...], x: Value, *_: Any, **__: Any) -> Value:
        return Value(shape, placed(relations, x, range(-places, 0), "pooled").labels)


for places in (1, 2, 3):
    _pool(places)
RULES |= dict.fromkeys(
    (
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "reflection_pad2d",
        "replication_pad2d",
    ),
    RULES["max_pool2d"],
)


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d",
      "adaptive_max_pool3d")  # fmt: skip
def pooled_with_places(relations: Relations, shapes: Sequence[tuple[int, ...]], x: Value, *_: Any, **__: Any) -> Any:
    """The largest entry of each window, and where it stands."""
    labels = placed(relations, x, range(2, len(x.shape)), "pooled").labels
    return [Value(shape, labels) for shape in shapes]


@rule("linalg_vector_norm", "norm")
def measured(
    relations: Relations, shape: tuple[int, ...], x: Value, order: Any = 2, dim: Any = None, *_: Any, **__: Any
) -> Value:
    """The length of what lies along axes."""
    return reduced(relations, shape, x, dim)


@rule("_weight_norm")
def rescaled(relations: Relations, shape: tuple[int, ...], x: Value, lengths: Value, dim: int = 0) -> Value:
    """A weight of which each slice along an axis is given a length."""
    within(relations, x, [axis for axis in range(len(shape)) if dim == -1 or axis != dim % len(shape)], "rescaled")
    return elementwise(relations, shape, x, lengths)


@rule("_weight_norm_interface")
def rescaled_and_measured(
    relations: Relations, shapes: Sequence[tuple[int, ...]], x: Value, lengths: Value, dim: int = 0
) -> list[Value]:
    """The same, and the lengths that the slices had."""
    value = rescaled(relations, shapes[0], x, lengths, dim)
    return [value, Value(shapes[1], lengths.labels)]


@rule("batch_norm", "instance_norm")
def normed_by_channel(relations: Relations, shape: tuple[int, ...], x: Value, *given: Any, **_: Any) -> Value:
    """Each channel shifted and scaled by numbers of its own; by those of its places, if so told after four tensors."""
    if given[4:5] == (True,):
        within(relations, x, range(2, len(x.shape)), "normalised in blocks")
    for tensor in given:
        if isinstance(tensor, Value):
            tie_axes(relations, x, 1, tensor, 0, "normalised with statistics that stay")
    return Value(x.shape, x.labels)


@rule("_native_batch_norm_legit_no_training")
def normed_for_good(relations: Relations, shapes: Any, x: Value, *tensors: Any, **_: Any) -> list[Value]:
    """The same, as torch writes it once it knows that statistics are not updated."""
    return [normed_by_channel(relations, shapes[0], x, *tensors), *(Value(shape) for shape in shapes[1:])]


@rule("_native_batch_norm_legit", "native_batch_norm")
def normed_by_itself(relations: Relations, shapes: Any, x: Value, *tensors: Any, **_: Any) -> list[Value]:
    """Each channel brought to mean 0 and deviation 1 over all else, as weights are that are standardised."""
    within(relations, x, [axis for axis in range(len(x.shape)) if axis != 1], "normalised in blocks")
    own = (tensor for tensor in tensors if isinstance(tensor, Value))
    return [normed_by_channel(relations, shapes[0], x, *own), *(Value(shape) for shape in shapes[1:])]


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
    why = "normalised in blocks"
    within(relations, x, range(1 if groups == 1 else 2, len(x.shape)), why)
    labels = x.on(1)
    if labels is not None and labels.axes == (1,):
        relations.reach(labels.units)
        if groups > 1:
            relations.heads(labels.units.reshape(groups, -1), 1, why)
    elif labels is not None and 1 < groups < x.shape[1]:
        relations.pin(labels.units, "normalised in blocks of blocks")
    return normed_by_channel(relations, shape, x, *(tensor for tensor in tensors if isinstance(tensor, Value)))
