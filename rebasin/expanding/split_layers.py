"""Layers whose units are split: run as blocks, so that nothing is multiplied by a zero, and normed model by model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rebasin.expanding.axes import Axis, CannotSplit
from rebasin.expanding.rewriting import Block, Node, Rewriting, becomes, target_of
from rebasin.graph import operator
from rebasin.tracing.rules import products, sums

aten = torch.ops.aten
MOST_SLICES = 8  # windows of a tensor that are joined; where there are more, slices are looked up by number
Part = tuple[np.ndarray, Node]  # slices of an axis, and the tensor that has them along it


@becomes(products.linear)
def _linear(merge: Rewriting, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Node:
    """One product, or one for each part of the rows."""
    return _weighted(merge, node, -1, x, weight, bias)


@becomes(products.convolution)
def _convolution(
    merge: Rewriting, node: Node, x: Node, weight: Node, bias: Node | None = None, *settings: Any, **_: Any
) -> Node:
    """One convolution, or one for each part of the rows; of as many blocks as the merge has if it is grouped."""
    groups = settings[3] if len(settings) > 3 else 1
    if groups == 1:
        return _weighted(merge, node, 1, x, weight, bias, *settings)
    channels = merge.axis(x, 1)
    for axis in (channels, merge.axis(weight, 0)):
        _need_blocks(axis, groups, operator(node))
    new = merge.copied(node, [x, weight, bias, *settings[:3], groups * channels.size // channels.index.shape[1]])
    _count(merge, node, new, 1)
    return new


def _weighted(merge: Rewriting, node: Node, at: int, x: Node, weight: Node, bias: Node | None, *settings: Any) -> Node:
    """A layer whose units lie along the axis ``at``, as one product for each set of columns that some rows read."""
    rows, columns = merge.axis(weight, 0), merge.axis(weight, 1)
    if weight not in merge.keys and (rows.groups or columns.groups):
        raise CannotSplit((rows.groups + columns.groups)[0], f"since the weight of {operator(node)} is computed")
    if merge.axis(x, at).size != columns.size:
        raise CannotSplit(columns.groups[0], f"since {operator(node)} reads a constant of its size")
    products = _products(rows, columns)
    if len(products) == 1:
        new = merge.copied(node)
        _count(merge, node, new, at)
        return new
    parts: list[Part] = []
    for own, read in products:
        new_weight = merge.parameter(Block(merge.keys[weight], own, read))
        new_bias = bias and merge.parameter(Block(merge.keys[bias], own))
        new = merge.call(
            target_of(node), taken(merge, merge.new_of(x), at, columns.size, read), new_weight, new_bias, *settings
        )
        _count(merge, node, new, at)
        parts.append((own, new))
    return joined(merge, at, parts)


def _products(rows: Axis, columns: Axis) -> list[tuple[np.ndarray, np.ndarray]]:
    """The parts of the rows that read the same columns, and those columns.

    A row reads the columns that share a model with it. Of a pair, the rows of both models read all columns, those of
    one model its own and those of both.
    """
    owners, which = np.unique(rows.owners, axis=1, return_inverse=True)
    sets_by_columns: dict[bytes, tuple[list[int], np.ndarray]] = {}
    for number, models in enumerate(owners.T):
        read = np.flatnonzero(columns.owners[models].any(0))
        sets_by_columns.setdefault(read.tobytes(), ([], read))[0].append(number)
    products = [(np.flatnonzero(np.isin(which.ravel(), sets)), read) for sets, read in sets_by_columns.values()]
    return sorted(products, key=lambda product: int(product[0][0]))


def _count(merge: Rewriting, node: Node, new: Node, at: int) -> None:
    """Note for how many places of one input the weight is multiplied: the values of one unit, over the batch."""
    weight, shape = new.args[1], merge.value(node).shape
    if isinstance(weight, Node) and weight.op == "get_attr":
        merge.places[str(weight.target)] += int(np.prod(shape)) // shape[at] // merge.batch


def _need_blocks(axis: Axis, blocks: int, name: str) -> None:
    """Raise CannotSplit unless the slices of each block lie side by side in the merge, in a place of a whole block."""
    places = axis.index.reshape(len(axis.index), blocks, -1)
    size = places.shape[-1]
    if (places[..., :1] + np.arange(size) != places).any() or (places[..., 0] % size).any():
        raise CannotSplit(axis.groups[0], f"since {name} takes blocks of units, which are not whole")


@becomes(sums.normed)
def _normed(merge: Rewriting, node: Node, x: Node, shape: Sequence[int], *tensors: Any) -> Node:
    """LayerNorm and RMSNorm, of the last axes; one of them may be split."""
    first = len(merge.value(x).shape) - len(shape)
    split = [axis for axis in range(first, first + len(shape)) if merge.axis(x, axis).groups]
    if not split:
        return merge.copied(node)
    if len(split) > 1:
        raise CannotSplit(merge.axis(x, split[0]).groups[0], f"since {operator(node)} goes along several split axes")
    scales = 1 if operator(node) == "rms_norm" else 2  # the weight alone, or with a bias
    at, own, settings = split[0], list(shape), tensors[scales:]
    own[at - first] = merge.value(x).shape[at]

    def plain(x: Node) -> Node:
        return merge.call(target_of(node), x, own, *[None] * scales, *settings)

    return _scaled(merge, _model_by_model(merge, x, at, plain), tensors[:scales], places=0)


@becomes(sums.normed_in_groups)
def _normed_in_groups(merge: Rewriting, node: Node, x: Node, groups: int, *tensors: Any) -> Node:
    """GroupNorm: of one group model by model, of more with each block in one group."""
    axis = merge.axis(x, 1)
    if not axis.groups:
        return merge.copied(node)
    if groups > 1:
        _need_blocks(axis, groups, "group_norm")
        return merge.copied(node, [x, groups * axis.size // axis.index.shape[1], *tensors])

    def plain(x: Node) -> Node:
        return merge.call(target_of(node), x, 1, None, None, *tensors[2:])

    return _scaled(merge, _model_by_model(merge, x, 1, plain), tensors[:2], places=len(merge.value(x).shape) - 2)


def _model_by_model(merge: Rewriting, x: Node, at: int, plain: Callable[[Node], Node]) -> Node:
    """Each model's own slots normed by themselves; a slot of several models takes the mean of what they give it."""
    axis = merge.axis(x, at)
    normed: dict[bytes, Node] = {}  # models with the same slots are normed once
    slots_of = np.sort(axis.index, 1)
    for own in slots_of:
        if own.tobytes() not in normed:
            normed[own.tobytes()] = plain(taken(merge, merge.new_of(x), at, axis.size, own))
    owners, which = np.unique(axis.owners, axis=1, return_inverse=True)
    parts: list[Part] = []
    for number, models in enumerate(owners.T):
        slots = np.flatnonzero(which.ravel() == number)
        values = []
        for own in slots_of[models]:
            # Units of one model that share a slot have the same value: the first stands for them.
            values.append(taken(merge, normed[own.tobytes()], at, len(own), np.searchsorted(own, slots)))
        parts.append((slots, _mean(merge, values)))
    return joined(merge, at, parts)


def _mean(merge: Rewriting, values: Sequence[Node]) -> Node:
    total = values[0]
    if all(value is total for value in values):
        return total
    for value in values[1:]:
        total = merge.call(aten.add.Tensor, total, value)
    return merge.call(aten.div.Scalar, total, len(values))


def _scaled(merge: Rewriting, x: Node, tensors: Sequence[Node | None], places: int) -> Node:
    """Each unit scaled by a weight and shifted by a bias, where ``places`` axes follow that of the units."""
    for target, tensor in zip((aten.mul.Tensor, aten.add.Tensor), tensors, strict=False):
        if tensor is not None:
            factor = merge.new_of(tensor)
            x = merge.call(
                target, x, merge.call(aten.reshape.default, factor, [-1, *[1] * places]) if places else factor
            )
    return x


def taken(merge: Rewriting, x: Node, at: int, size: int, slices: np.ndarray) -> Node:
    """Some slices of a tensor along an axis of ``size``."""
    if np.array_equal(slices, np.arange(size)):
        return x
    runs = _runs(np.diff(slices) != 1)
    if len(runs) > MOST_SLICES:
        return merge.call(aten.index_select.default, x, at, merge.constant(torch.from_numpy(slices.copy())))
    windows = [merge.call(aten.slice.Tensor, x, at, int(slices[run][0]), int(slices[run][-1]) + 1) for run in runs]
    return windows[0] if len(windows) == 1 else merge.call(aten.cat.default, windows, at)


def joined(merge: Rewriting, at: int, parts: Sequence[Part]) -> Node:
    """One tensor of parts, each of which has some slices of an axis."""
    size = sum(len(slices) for slices, _ in parts)
    part, place = np.empty(size, np.int64), np.empty(size, np.int64)  # of each slice
    for number, (slices, _) in enumerate(parts):
        part[slices], place[slices] = number, np.arange(len(slices))
    runs = _runs((np.diff(part) != 0) | (np.diff(place) != 1))
    if len(runs) > MOST_SLICES * len(parts):
        together = merge.call(aten.cat.default, [node for _, node in parts], at)
        return taken(merge, together, at, size, np.argsort(np.concatenate([slices for slices, _ in parts])))
    windows = []
    for run in runs:
        slices, node = parts[part[run][0]]
        windows.append(taken(merge, node, at, len(slices), place[run]))
    return windows[0] if len(windows) == 1 else merge.call(aten.cat.default, windows, at)


def _runs(breaks: np.ndarray) -> list[slice]:
    """The runs of a sequence, of which ``breaks`` tells whether one ends between each entry and the next."""
    ends = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(breaks) + 1]
    return [slice(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
