"""Layers whose units are split: run as blocks, so that nothing is multiplied by a zero, and normed model by model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rebasin.graph import operator
from rebasin.merging.axes import Axis, CannotSplit
from rebasin.merging.rewriting import Block, Rewriting, becomes
from rebasin.tracing.rules import products, sums

aten = torch.ops.aten
Node = torch.fx.Node
MOST_SLICES = 8  # slices of an axis that are cut out and joined; of more, the entries are looked up by number
Part = tuple[np.ndarray, Node]  # slices of an axis, and a tensor that has them along it


@becomes(products.linear)
def _linear(merge: Rewriting, node: Node) -> Node:
    return _weighted(merge, node, -1)


@becomes(products.convolution)
def _convolution(merge: Rewriting, node: Node) -> Node:
    groups = node.args[6] if len(node.args) > 6 else 1
    if groups == 1:
        return _weighted(merge, node, 1)
    # Blocks stay or merge whole, so that the number of blocks grows as the channels do.
    x, weight = node.args[:2]
    channels = merge.axis(x, 1)
    many = groups * channels.size // channels.index.shape[1]
    _need_blocks(channels, groups, operator(node))
    _need_blocks(merge.axis(weight, 0), groups, operator(node))
    new = merge.copied(node, [*node.args[:6], many])
    _count(merge, node, new, 1)
    return new


def _weighted(merge: Rewriting, node: Node, axis: int) -> Node:
    """A linear layer or a convolution, as one product for each set of columns that some rows read.

    A row reads the columns that share a model with it: of a pair, the rows of both models read all columns, those of
    one the columns of both and its own.
    """
    x, weight, bias, *rest = (*node.args, None)[: max(3, len(node.args))]
    rows, columns = merge.axis(weight, 0), merge.axis(weight, 1)
    if weight not in merge.keys and rows.groups + columns.groups:
        raise CannotSplit((rows.groups + columns.groups)[0], f"since the weight of {operator(node)} is computed")
    parts = _readers(rows, columns)
    if len(parts) == 1:
        new = merge.copied(node)
        _count(merge, node, new, axis)
        return new
    computed: list[Part] = []
    for own, read in parts:
        blocks = [merge.parameter(Block(merge.keys[weight], own, read)), None]
        if bias is not None:
            blocks[1] = merge.parameter(Block(merge.keys[bias], own))
        new = merge.call(node.target, taken(merge, merge.new_of(x), axis, columns.size, read), *blocks, *rest)
        _count(merge, node, new, axis)
        computed.append((own, new))
    return joined(merge, axis, computed)


def _readers(rows: Axis, columns: Axis) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows that read the same columns, and those columns."""
    owners, which = np.unique(rows.owners, axis=1, return_inverse=True)
    read_by: dict[bytes, tuple[list[int], np.ndarray]] = {}
    for number, models in enumerate(owners.T):
        read = np.flatnonzero(columns.owners[models].any(0))
        read_by.setdefault(read.tobytes(), ([], read))[0].append(number)
    parts = [(np.flatnonzero(np.isin(which.ravel(), numbers)), read) for numbers, read in read_by.values()]
    return sorted(parts, key=lambda part: int(part[0][0]))


def _count(merge: Rewriting, node: Node, new: Node, axis: int) -> None:
    """Note for how many places of one input the weight is multiplied: each value of a unit, over the batch."""
    weight = new.args[1]
    if isinstance(weight, Node) and weight.op == "get_attr":
        shape = merge.value(node).shape
        merge.places[weight.target] += int(np.prod(shape)) // shape[axis] // merge.batch


def _need_blocks(axis: Axis, blocks: int, name: str) -> None:
    """Raise CannotSplit unless the slices of each of the blocks lie side by side in the merge, whole."""
    runs = axis.index.reshape(len(axis.index), blocks, -1)
    size = runs.shape[-1]
    if (runs[..., :1] + np.arange(size) != runs).any() or (runs[..., 0] % size).any():
        raise CannotSplit(axis.groups[0], f"since {name} takes its units in blocks that are not whole")


@becomes(sums.normed)
def _normed(merge: Rewriting, node: Node) -> Node:
    """LayerNorm and RMSNorm, of the last axes."""
    x, shape, *tensors = node.args
    first = len(merge.value(x).shape) - len(shape)
    axes = [merge.axis(x, first + place) for place in range(len(shape))]
    split = [place for place, axis in enumerate(axes) if axis.groups]
    if not split:
        return merge.copied(node)
    if len(split) > 1:
        raise CannotSplit(axes[split[0]].groups[0], f"since {operator(node)} goes along several split axes")
    (place,) = split
    axis, at = axes[place], place - len(shape)
    scales = 1 if operator(node) == "rms_norm" else 2  # the weight, and the bias
    weight, bias = (*tensors[:scales], None, None)[:2] if scales == 2 else ((*tensors, None)[0], None)
    rest = tensors[scales:]

    def norm(x: Node, size: int) -> Node:
        own = [*shape[:place], size, *shape[place + 1 :]]
        return merge.call(node.target, x, own, *[None] * scales, *rest)

    normed = _model_by_model(merge, merge.new_of(x), at, axis, norm)
    return _affine(merge, normed, [tensor and merge.new_of(tensor) for tensor in (weight, bias)])


@becomes(sums.normed_in_groups)
def _normed_in_groups(merge: Rewriting, node: Node) -> Node:
    """GroupNorm: of one group, model by model; of more, whole groups."""
    x, groups, *tensors = node.args
    axis = merge.axis(x, 1)
    if not axis.groups:
        return merge.copied(node)
    if groups > 1:
        _need_blocks(axis, groups, "group_norm")
        return merge.copied(node, [x, groups * axis.size // axis.index.shape[1], *tensors])
    weight, bias = (*tensors, None, None)[:2]
    normed = _model_by_model(
        merge, merge.new_of(x), 1, axis, lambda x, size: merge.call(node.target, x, 1, None, None, *tensors[2:])
    )
    places = [1] * (len(merge.value(x).shape) - 2)
    scales = [
        tensor and merge.call(aten.reshape.default, merge.new_of(tensor), [-1, *places]) for tensor in (weight, bias)
    ]
    return _affine(merge, normed, scales)


def _model_by_model(merge: Rewriting, x: Node, at: int, axis: Axis, norm: Any) -> Node:
    """Each model's own slots normed by themselves; a shared slot takes the mean of what its owners give it."""
    by_model: list[tuple[np.ndarray, Node]] = []
    normed: dict[bytes, Node] = {}  # models with the same slots are normed once
    for own in np.sort(axis.index, 1):
        if own.tobytes() not in normed:
            normed[own.tobytes()] = norm(taken(merge, x, at, axis.size, own), len(own))
        by_model.append((own, normed[own.tobytes()]))
    sets, which = np.unique(axis.owners, axis=1, return_inverse=True)
    parts: list[Part] = []
    for number, models in enumerate(sets.T):
        slots = np.flatnonzero(which.ravel() == number)
        shares = []
        for model in np.flatnonzero(models):
            own, value = by_model[model]
            # Of a model's units that share a slot, the values are alike: the first stands for all.
            shares.append(taken(merge, value, at, len(own), np.searchsorted(own, slots)))
        parts.append((slots, _mean(merge, shares)))
    return joined(merge, at, parts)


def _mean(merge: Rewriting, nodes: Sequence[Node]) -> Node:
    if all(node is nodes[0] for node in nodes):
        return nodes[0]
    total = nodes[0]
    for node in nodes[1:]:
        total = merge.call(aten.add.Tensor, total, node)
    return merge.call(aten.div.Scalar, total, len(nodes))


def _affine(merge: Rewriting, x: Node, tensors: Sequence[Node | None]) -> Node:
    for target, tensor in zip((aten.mul.Tensor, aten.add.Tensor), tensors, strict=True):
        if tensor is not None:
            x = merge.call(target, x, tensor)
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
    if len(parts) == 1:
        return parts[0][1]
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
    return merge.call(aten.cat.default, windows, at)


def _runs(breaks: np.ndarray) -> list[slice]:
    """The runs of a sequence, of which ``breaks`` tells whether one ends between each entry and the next."""
    ends = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(breaks) + 1]
    return [slice(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
