"""What operators other than layers become in a merge: sizes are rewritten, and split units must not be mixed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from rebasin.expanding.axes import Axis, CannotSplit
from rebasin.expanding.rewriting import Node, Rewriting, becomes
from rebasin.graph import operator
from rebasin.tracing.rules import entries, lookups, products, shapes, sums
from rebasin.tracing.units import RULES, Value

aten = torch.ops.aten


@becomes(
    entries.entrywise, entries.constant, entries.counted, shapes.permuted, shapes.transposed, shapes.turned,
    shapes.item, lookups.indexed, lookups.embedded, sums.normed_by_channel, sums.normed_for_good, RULES["max_pool1d"],
    RULES["max_pool2d"], RULES["max_pool3d"],
)  # fmt: skip
def _copied(merge: Rewriting, node: Node, *_: Any, **__: Any) -> Node:
    """Operators that hold no sizes of axes with units, and mix no units."""
    return merge.copied(node)


@becomes(entries.elementwise, entries.clamped, shapes.joined, shapes.stacked)
def _met(merge: Rewriting, node: Node, *_: Any, **__: Any) -> Node:
    """The same, where tensors meet: one of equal entries keeps its size."""
    axes = len(merge.value(node).shape)
    for argument in node.all_input_nodes:
        value = merge.followed.values[argument]
        for axis in value.even if isinstance(value, Value) else ():
            groups = merge.axis(node, axis + axes - len(value.shape)).groups if value.shape[axis] > 1 else ()
            if groups:
                raise CannotSplit(groups[0], f"since {operator(node)} takes a constant of its size")
    return merge.copied(node)


@becomes(shapes.padded)
def _padded(merge: Rewriting, node: Node, x: Node, pad: Sequence[int], *_: Any, **__: Any) -> Node:
    """Slices added to places."""
    touched = [-1 - number // 2 for number, amount in enumerate(pad) if amount]
    _need_whole(merge, node, touched, "pad adds slices to its units")
    return merge.copied(node)


@becomes(shapes.reshaped, shapes.expanded)
def _resized(merge: Rewriting, node: Node, x: Node, *arguments: Any, **_: Any) -> Node:
    """Literal sizes become those of the merge."""
    name = operator(node)
    sizes = arguments[-1] if name == "unflatten" else arguments[0] if arguments else None
    if name not in ("view", "_unsafe_view", "reshape", "expand", "unflatten") or not isinstance(sizes, list | tuple):
        return merge.copied(node)  # flatten, squeeze, and a view as another number format
    first = arguments[0] % len(merge.value(x).shape) if name == "unflatten" else 0
    new = []
    for axis, size in enumerate(sizes, first):
        split = merge.axis(node, axis)
        if not split.groups or size == -1:
            new.append(size)
        elif isinstance(size, int):
            new.append(split.size)
        elif -1 in [*sizes, *new] or name == "expand":
            raise CannotSplit(split.groups[0], f"since {name} computes its number of units")
        else:
            new.append(-1)  # a number of units times that of inputs
    if name in ("expand", "unflatten"):
        return merge.copied(node, [x, *arguments[: name == "unflatten"], new])
    # A view needs strides that the merge may not have.
    return merge.call(aten.reshape.default, merge.new_of(x), torch.fx.map_arg(new, merge.new_of))


@becomes(shapes.sliced)
def _sliced(
    merge: Rewriting, node: Node, x: Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Node:
    """The ends of a window move to where the same units end in the merge."""
    axis = merge.axis(x, dim)
    if not axis.groups:
        return merge.copied(node)
    start, end, _ = slice(start, end).indices(axis.index.shape[1])
    return merge.copied(node, [x, dim, _boundary(axis, start), _boundary(axis, end), step])


def _boundary(axis: Axis, slices: int) -> int:
    boundary = axis.boundary(slices)
    if boundary is None:
        raise CannotSplit(axis.groups[0], "since slice takes some of its units")
    return boundary


@becomes(shapes.selected)
def _selected(merge: Rewriting, node: Node, x: Node, dim: int, index: int) -> Node:
    """One slice of an axis, which all models share."""
    axis = merge.axis(x, dim)
    places = axis.index[:, index]
    if (places != places[0]).any():
        raise CannotSplit(axis.groups[0], "since select takes one of its units")
    return merge.copied(node, [x, dim, int(places[0])])


@becomes(shapes.parted)
def _parted(merge: Rewriting, node: Node, x: Node, _: Any, dim: int = 0) -> Node:
    """An axis in parts, each of the size that it has in the merge."""
    if not merge.axis(x, dim).groups:
        return merge.copied(node)
    sizes = [merge.axes.of(part, dim).size for part in merge.followed.values[node]]
    return merge.call(aten.split_with_sizes.default, merge.new_of(x), sizes, dim)


@becomes(shapes.unbound, shapes.flipped)
def _unmoved(merge: Rewriting, node: Node, x: Node, dims: int | Sequence[int] = 0) -> Node:
    """The slices of an axis one by one, or backwards."""
    return _where_whole(merge, node, x, [dims] if isinstance(dims, int) else dims, "tells its units apart")


@becomes(shapes.rolled)
def _rolled(merge: Rewriting, node: Node, x: Node, shifts: Any, dims: Sequence[int] = ()) -> Node:
    """Slices moved on along axes."""
    return _where_whole(merge, node, x, dims or range(len(merge.value(x).shape)), "tells its units apart")


@becomes(sums.reduced)
def _reduced(merge: Rewriting, node: Node, x: Node, *arguments: Any, **options: Any) -> Node:
    """Sums over places, or within blocks."""
    axes = sums.reduced_axes(merge.value(x), arguments, options)
    return _where_whole(merge, node, x, axes, "takes its units together")


@becomes(sums.compared)
def _compared(merge: Rewriting, node: Node, x: Node, dim: int, *_: Any, **__: Any) -> Node:
    """Places weighed against one another, or what lies within a block."""
    return _where_whole(merge, node, x, [dim], "weighs its units against one another")


@becomes(products.matmul)
def _multiplied(merge: Rewriting, node: Node, a: Node, b: Node) -> Node:
    """Matrix products that sum over places, or within blocks."""
    _need_whole(merge, a, [-1], "matmul sums over its units")
    return _where_whole(merge, node, b, [max(-2, -len(merge.value(b).shape))], "sums over its units")


@becomes(products.addmm)
def _added(merge: Rewriting, node: Node, bias: Node, a: Node, b: Node, **__: Any) -> Node:
    """A matrix product, plus a bias."""
    return _multiplied(merge, node, a, b)


@becomes(products.einsum)
def _summed(merge: Rewriting, node: Node, formula: str, factors: Sequence[Node], **__: Any) -> Node:
    """Sums of products over places, or within blocks; other formulas are not followed, so that nothing is split."""
    inputs, _, out = formula.replace(" ", "").partition("->")
    for letters, factor in zip(inputs.split(","), factors, strict=True):
        summed = [axis for axis, letter in enumerate(letters) if out and letter not in out and "." not in formula]
        _need_whole(merge, factor, summed, "einsum sums over its units")
    return merge.copied(node)


@becomes(products.attention)
def _attended(merge: Rewriting, node: Node, query: Node, key: Node, value: Node, *_: Any, **__: Any) -> Node:
    """Whole heads, over places."""
    for tensor, axes in ((query, [-1]), (key, [-1, -2]), (value, [-2])):
        _need_whole(merge, tensor, axes, "attention sums over the units of a head")
    return merge.copied(node)


def _where_whole(merge: Rewriting, node: Node, x: Node, axes: Iterable[int], what: str) -> Node:
    """The operator as it is. Raises CannotSplit if one of these axes of what it takes is split."""
    _need_whole(merge, x, axes, f"{operator(node)} {what}")
    return merge.copied(node)


def _need_whole(merge: Rewriting, x: Node, axes: Iterable[int], reason: str) -> None:
    """Raise CannotSplit if one of these axes is split."""
    for axis in axes:
        groups = merge.axis(x, axis).groups
        if groups:
            raise CannotSplit(groups[0], f"since {reason}")
