"""The normal equations of one layer of a merge, from the Gram matrix of what its models read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rebasin.merging.grams import LayerGram
from rebasin.merging.layout import places_as_given, whole
from rebasin.merging.slots import Slots
from rebasin.weights import Weights

Objective = Literal["averaged", "stacked"]


@dataclass(frozen=True, eq=False)
class Layout:
    """How a layer of n models lies in the merge. Columns are those of its weight, flattened; a bias is one more.

    - ``rows`` (n, outputs), ``columns`` (n, columns): which of the merge's each of a model's goes into.
    - ``allowed``: pairs of output slots and of the columns that they read, those of a common owner.
    - ``owners``: for each of those pairs, the models that own its slots.
    """

    rows: Tensor
    columns: Tensor
    allowed: list[tuple[Tensor, Tensor]]
    owners: list[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Equations:
    """Sums over rows of data for a change D (outputs, columns) of a layer's weight, for each half of the images.

    With x the columns that the merge reads and r what its weight leaves of the targets y, what D leaves is
    ``left - 2 D . pull + D gram D``.

    - ``models``: whose rows they are.
    - ``gram`` (2, columns, columns): of x with x; ``pull`` (2, outputs, columns): of r with x.
    - ``left`` (2, outputs): of r with r; ``energy`` (2, outputs): of y with y.
    - ``count`` (2,): the number of rows.
    """

    models: tuple[int, ...]
    gram: Tensor
    pull: Tensor
    left: Tensor
    energy: Tensor
    count: Tensor


def layout_of(slots: Slots, layer: LayerGram, weights: Weights, *, stacked: bool = False) -> Layout:
    """Where the slices of a layer go, and which of its outputs read which columns.

    ``weights`` (n, ...) are the models; ``stacked`` puts outputs of the network side by side.
    """
    outputs, inputs, *_ = weights[layer.weight].shape[1:]
    kernel = weights[layer.weight][0, 0, 0].numel()
    rows, height = places_as_given(slots, layer.weight, 0, stacked=stacked)
    if layer.blocks > 1 and inputs == 1:
        # A depthwise convolution does not say what it reads: a channel for each block of its outputs.
        per_block = outputs // layer.blocks
        channels, width = rows[:, ::per_block] // per_block, height // per_block
    else:
        channels, width = places_as_given(slots, layer.weight, 1)
    owns_row, owns_channel = (_owns(index, size) for index, size in ((rows, height), (channels, width)))
    blocks = width // inputs if layer.blocks > 1 else 1
    block_of_channel = torch.arange(width) // (width // blocks)
    alike: dict[tuple[int, ...], list[int]] = {}  # by block and owners
    for row, owners in enumerate(owns_row.T.tolist()):
        kind = row // (height // blocks), *(m for m, own in enumerate(owners) if own)
        alike.setdefault(kind, []).append(row)
    allowed = []
    for block, *owners in alike:
        read = owns_channel[owners].any(0) & (block_of_channel == block)
        channel = read.nonzero()  # (channels, 1)
        at = (channel * kernel + torch.arange(kernel)).flatten()
        if layer.bias is not None:
            at = torch.cat([at, torch.tensor([width * kernel])])
        allowed.append((torch.tensor(alike[block, *owners]), at))
    columns = (channels.unsqueeze(-1) * kernel + torch.arange(kernel)).flatten(1)
    return Layout(rows, columns, allowed, [tuple(owners) for _, *owners in alike])


def equations_of(
    layer: LayerGram, layout: Layout, weights: Weights, start: Tensor, objective: Objective
) -> list[Equations]:
    """The normal equations of a layer around the weight ``start`` (outputs, columns).

    ``"averaged"``: a slot reads the mean of the units that share it, and its target is the mean of what they give
    (PLeaS). ``"stacked"``: each model's rows by themselves, with its own units in its slots (RegMean).
    """
    n = len(layout.rows)
    if objective == "averaged":
        return [_equations(layer, layout, weights, start, tuple(range(n)))]
    return [_equations(layer, layout, weights, start, (m,)) for m in range(n)]


def _equations(layer: LayerGram, layout: Layout, weights: Weights, start: Tensor, models: Sequence[int]) -> Equations:
    """The equations of some of the models, whose units are averaged in each slot."""
    device = layer.gram.device
    columns = layout.columns.shape[1]
    # Which entries of the joint Gram matrix these models have: theirs, and the constant.
    constant = layer.gram.shape[-1] - 1
    own = torch.cat([torch.arange(m * columns, (m + 1) * columns) for m in models] + [torch.tensor([constant])])
    # Which column of the merge each goes into. Without a bias the constant, which the targets need, goes nowhere.
    into = torch.cat([layout.columns[list(models)].flatten(), torch.tensor([start.shape[1] - 1])])
    read = slice(None) if layer.bias is not None else slice(-1)
    into = into[read].to(device)
    share = 1 / torch.bincount(into, minlength=start.shape[1]).to(layer.gram)[into]
    targets = _targets(layer, layout, weights, models, start)  # (outputs, own)
    residual = targets.clone()
    residual[:, read] -= start[:, into] * share
    sums = []
    for gram in layer.gram:
        part = gram if len(own) == len(gram) else gram[own][:, own]
        narrow = _gathered(part[:, read] * share, into, start.shape[1])  # (own, columns)
        of_columns = _gathered((narrow[read] * share.unsqueeze(-1)).T, into, start.shape[1])
        of_residual = residual @ part
        left = (of_residual * residual).sum(1)
        energy = ((targets @ part) * targets).sum(1)
        sums.append((of_columns, residual @ narrow, left, energy))
    gram, pull, left, energy = (torch.stack(parts) for parts in zip(*sums, strict=True))
    return Equations(tuple(models), gram, pull, left, energy, layer.rows)


def _targets(layer: LayerGram, layout: Layout, weights: Weights, models: Sequence[int], start: Tensor) -> Tensor:
    """What the outputs of the merge should be, as a linear function of the columns of these models and the constant.

    Each is the mean over the units that share its slot; outputs in which these models have no unit are 0.
    """
    columns = layout.columns.shape[1]
    targets = start.new_zeros(len(start), len(models) * columns + 1)
    for position, m in enumerate(models):
        rows = layout.rows[m].to(start.device)
        weight = whole(weights[layer.weight][m], layer.blocks).flatten(1).to(start)
        targets[:, position * columns : (position + 1) * columns].index_add_(0, rows, weight)
        if layer.bias is not None:
            targets[:, -1].index_add_(0, rows, weights[layer.bias][m].to(start))
    members = torch.bincount(layout.rows[list(models)].flatten(), minlength=len(start)).to(start)
    return targets / members.clamp(min=1).unsqueeze(-1)


def _gathered(matrix: Tensor, into: Tensor, width: int) -> Tensor:
    """The columns of a matrix added up into ``width`` others: column j into column ``into[j]``."""
    return matrix.new_zeros(len(matrix), width).index_add_(1, into, matrix)


def _owns(index: Tensor, width: int) -> Tensor:
    """Which models have a slice in each of the merge's: bool (n, width)."""
    return torch.zeros(len(index), width, dtype=torch.bool).scatter_(1, index, True)
