"""What operators other than layers become in a merge: their sizes are rewritten, and none may mix split units."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rebasin.graph import operator
from rebasin.merging.axes import Axis, CannotSplit
from rebasin.merging.rewriting import Node, Rewriting, becomes
from rebasin.tracing.rules import entries, products, shapes, sums
from rebasin.tracing.units import RULES

aten = torch.ops.aten


def need_whole(merge: Rewriting, node: Node, axes: Sequence[int], what: str, where: Node | None = None) -> None:
    """Raise CannotSplit if one of the axes of a node's tensor is split."""
    for axis in axes:
        groups = merge.axis(node, axis).groups
        if groups:
            raise CannotSplit(groups[0], f"since {operator(where or node)} {what}")


@becomes(
    entries.entrywise, entries.elementwise, entries.constant, shapes.permuted, shapes.transposed, shapes.turned,
    shapes.item, shapes.joined, shapes.stacked, shapes.padded, shapes.indexed, shapes.embedded,
    sums.normed_by_channel, sums.normed_for_good, RULES["max_pool1d"], RULES["max_pool2d"], RULES["max_pool3d"],
)  # fmt: skip
def _copied(merge: Rewriting, node: Node) -> Node:
    """Operators that hold no sizes of axes with units, and mix no units."""
    return merge.copied(node)


@becomes(shapes.reshaped, shapes.expanded)
def _resized(merge: Rewriting, node: Node) -> Node:
    """Literal sizes become those of the merge."""
    name = operator(node)
    place = {"view": 1, "_unsafe_view": 1, "reshape": 1, "expand": 1, "unflatten": 2}.get(name, 0)
    if not isinstance(node.args[place], list | tuple):  # flatten, squeeze; a view as other numbers
        return merge.copied(node)
    value, sizes = merge.value(node), list(node.args[place])
    first = node.args[1] % len(merge.value(node.args[0]).shape) if name == "unflatten" else 0
    for entry, size in enumerate(sizes):
        axis = merge.axes.of(value, first + entry)
        if not axis.groups or size == -1:
            continue
        if isinstance(size, int):
            sizes[entry] = axis.size
        elif -1 in sizes or name == "expand":
            raise CannotSplit(axis.groups[0], f"since {name} computes two sizes")
        else:
            sizes[entry] = -1  # a size that is computed from the batch's
    if name in ("view", "_unsafe_view"):  # which need strides that the merge may not have
        return merge.call(aten.reshape.default, merge.new_of(node.args[0]), torch.fx.map_arg(sizes, merge.new_of))
    return merge.copied(node, [*node.args[:place], sizes, *node.args[place + 1 :]])


@becomes(shapes.sliced)
def _sliced(merge: Rewriting, node: Node) -> Node:
    """The ends of a window move to where the same units end in the merge."""
    x, dim, start, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    axis = merge.axis(x, dim)
    if not axis.groups:
        return merge.copied(node)
    start, end, _ = slice(start, end).indices(axis.index.shape[1])
    return merge.copied(node, [x, dim, _boundary(axis, start, node), _boundary(axis, end, node), step])


@becomes(shapes.selected)
def _selected(merge: Rewriting, node: Node) -> Node:
    """One slice of an axis, which all models share."""
    x, dim, index = node.args
    axis = merge.axis(x, dim)
    places = axis.index[:, index]
    if (places != places[0]).any():
        raise CannotSplit(axis.groups[0], "since select takes one of its units")
    return merge.copied(node, [x, dim, int(places[0])])


@becomes(shapes.parted)
def _parted(merge: Rewriting, node: Node) -> Node:
    """An axis in parts, each of the size that it has in the merge."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if not merge.axis(node.args[0], dim).groups:
        return merge.copied(node)
    sizes = [merge.axes.of(part, dim).size for part in merge.followed.values[node]]
    return merge.call(aten.split_with_sizes.default, merge.new_of(node.args[0]), sizes, dim)


def _boundary(axis: Axis, slices: int, node: Node) -> int:
    boundary = axis.boundary(slices)
    if boundary is None:
        raise CannotSplit(axis.groups[0], f"since {operator(node)} takes some of its units")
    return boundary


@becomes(shapes.unbound, shapes.rolled, shapes.flipped)
def _unmoved(merge: Rewriting, node: Node) -> Node:
    """Operators along axes that no group may be split along."""
    given = node.args[2 if operator(node) == "roll" else 1] if len(node.args) > 1 else 0
    need_whole(merge, node.args[0], [given] if isinstance(given, int) else given, "tells its units apart", node)
    return merge.copied(node)


@becomes(sums.reduced)
def _reduced(merge: Rewriting, node: Node) -> Node:
    """Sums over places, or within blocks."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = range(len(merge.value(node.args[0]).shape))
    if isinstance(dims, int) and not isinstance(dims, bool):
        axes = [dims]
    elif isinstance(dims, list | tuple) and dims:
        axes = dims
    need_whole(merge, node.args[0], axes, "takes its units together", node)
    return merge.copied(node)


@becomes(sums.compared)
def _compared(merge: Rewriting, node: Node) -> Node:
    """Weighed against one another: places, or what lies within blocks."""
    need_whole(merge, node.args[0], [node.args[1]], "weighs its units against one another", node)
    return merge.copied(node)


@becomes(products.matmul, products.addmm)
def _multiplied(merge: Rewriting, node: Node) -> Node:
    """Matrix products that sum over places, or within blocks."""
    a, b = node.args[-2:]
    need_whole(merge, a, [-1], "sums over its units", node)
    need_whole(merge, b, [-2 if len(merge.value(b).shape) > 1 else -1], "sums over its units", node)
    return merge.copied(node)


@becomes(products.einsum)
def _summed(merge: Rewriting, node: Node) -> Node:
    """Sums of products over places, or within blocks."""
    formula, factors = node.args[0].replace(" ", ""), node.args[1]
    if "->" in formula and "." not in formula:
        inputs, out = formula.split("->")
        for letters, factor in zip(inputs.split(","), factors, strict=True):
            summed = [axis for axis, letter in enumerate(letters) if letter not in out]
            need_whole(merge, factor, summed, "sums over its units", node)
    return merge.copied(node)


@becomes(products.attention)
def _attended(merge: Rewriting, node: Node) -> Node:
    """Whole heads, over places."""
    query, key, value = node.args[:3]
    for tensor, axes in ((query, [-1]), (key, [-1, -2]), (value, [-2])):
        need_whole(merge, tensor, axes, "sums over the units of a head", node)
    return merge.copied(node)
