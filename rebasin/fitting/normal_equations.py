"""The normal equations of one layer of a merge, from the Gram matrix of what its models read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rebasin.expanding.layout import places_as_given, whole
from rebasin.expanding.slots import Slots, owners_of
from rebasin.fitting.grams import LayerGram
from rebasin.weights import Weights

Objective = Literal["averaged", "stacked"]


@dataclass(frozen=True, eq=False)
class Layout:
    """How a layer of n models lies in the merge. Columns are those of its weight, flattened; a bias is one more.

    - ``rows`` (n, outputs), ``columns`` (n, columns): which of the merge's each of a model's goes into.
    - ``members`` (n, columns of the merge): how many columns of each model go into each; of the bias, the model's own.
    - ``allowed``: pairs of output slots and of the columns that they read, those of a common owner.
    - ``owners``: for each of those pairs, the models that own its slots.
    """

    rows: Tensor
    columns: Tensor
    members: Tensor
    allowed: list[tuple[Tensor, Tensor]]
    owners: list[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Equations:
    """Sums over rows of data for a layer of a merge, for each half of the images.

    With x the columns that the layer reads and y its targets, a weight W leaves ``energy - 2 W . cross + W gram W`` of
    the targets' squares.

    - ``models``: whose rows they are.
    - ``gram`` (2, columns, columns): of x with x; ``cross`` (2, outputs, columns): of y with x.
    - ``energy`` (2, outputs): of y with y.
    - ``count`` (2,): the number of rows.
    """

    models: tuple[int, ...]
    gram: Tensor
    cross: Tensor
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
    owns_row, owns_channel = (owners_of(index, size) for index, size in ((rows, height), (channels, width)))
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
    members = torch.stack([torch.bincount(own, minlength=width * kernel) for own in columns])
    if layer.bias is not None:
        members = torch.cat([members, torch.ones_like(members[:, :1])], 1)
    return Layout(rows, columns, members, allowed, [tuple(owners) for _, *owners in alike])


def equations_of(layer: LayerGram, layout: Layout, weights: Weights, objective: Objective) -> list[Equations]:
    """The normal equations of a layer.

    ``"averaged"``: a slot reads the mean of the units that share it, and its target is the mean of what they give.
    ``"stacked"``: those of each model by itself, with its own units in its slots.
    """
    n = len(layout.rows)
    if objective == "averaged":
        return [_equations(layer, layout, weights, range(n))]
    return [_equations(layer, layout, weights, [m]) for m in range(n)]


def restricted(
    equations: Sequence[Equations], layout: Layout, rows: Tensor, columns: Tensor, owners: Sequence[int]
) -> Equations:
    """The equations of some outputs, which read these columns, from the data of the models that own them.

    Where models are stacked, a slot that an output's owners do not all own holds less than in the merge, which all feed
    at once. What a model has in it counts for the others, so that the mean over the models is what the merge reads.
    """
    own = [some for some in equations if set(some.models) & set(owners)]
    like = own[0].gram
    at_row, at_column = rows.to(like.device), columns.to(like.device)
    gram, cross = like.new_zeros(2, len(columns), len(columns)), like.new_zeros(2, len(rows), len(columns))
    for some in own:
        shares = layout.members[:, columns].to(like)
        scale = shares[list(some.models)].sum(0) / shares[list(owners)].sum(0) * len(owners) / len(some.models)
        if len(own) == 1:
            scale = torch.ones_like(scale)
        gram += some.gram[:, at_column.unsqueeze(-1), at_column] * scale * scale.unsqueeze(-1)
        cross += some.cross[:, at_row.unsqueeze(-1), at_column] * scale
    energy = torch.stack([some.energy[:, at_row] for some in own]).sum(0)
    return Equations(tuple(owners), gram, cross, energy, torch.stack([some.count for some in own]).sum(0))


def _equations(layer: LayerGram, layout: Layout, weights: Weights, models: Sequence[int]) -> Equations:
    """The equations of some of the models, whose units are averaged in each slot."""
    width = layout.members.shape[1]
    constant = layer.gram.shape[-1] - 1
    columns = layout.columns.shape[1]
    # Which entries of the joint Gram matrix these models have: theirs, and the constant.
    starts = [0 if layer.alike else m * columns for m in models]
    own = torch.cat([torch.arange(at, at + columns) for at in starts] + [torch.tensor([constant])])
    # Which column of the merge each goes into. Without a bias, the constant of the targets goes nowhere.
    into = layout.columns[list(models)].flatten()
    if layer.bias is not None:
        into = torch.cat([into, torch.tensor([width - 1])])
    share = 1 / torch.bincount(into, minlength=width).clamp(min=1).to(layer.gram)
    into = into.to(layer.gram.device)
    targets = _targets(layer, layout, weights, models)
    sums = []
    for gram in layer.gram:
        part = gram if torch.equal(own, torch.arange(len(gram))) else gram[own][:, own]
        # Columns of one slot are added up, then divided by their number: along one axis, then along the other.
        narrow = _added(part[:, : len(into)], into, width) * share  # (own, columns)
        of_columns = _added(narrow[: len(into)].T, into, width) * share
        sums.append((of_columns, targets @ narrow, ((targets @ part) * targets).sum(1)))
    gram, cross, energy = (torch.stack(halves) for halves in zip(*sums, strict=True))
    return Equations(tuple(models), gram, cross, energy, layer.rows)


def _targets(layer: LayerGram, layout: Layout, weights: Weights, models: Sequence[int]) -> Tensor:
    """What the outputs of the merge should be, as a linear function of the columns of these models and the constant.

    Each is the mean over the units that share its slot; outputs in which these models have no unit are 0.
    """
    columns, height = layout.columns.shape[1], int(layout.rows.max()) + 1
    targets = layer.gram.new_zeros(height, len(models) * columns + 1)
    for position, m in enumerate(models):
        rows = layout.rows[m].to(targets.device)
        weight = whole(weights[layer.weight][m], layer.blocks).flatten(1).to(targets)
        targets[:, position * columns : (position + 1) * columns].index_add_(0, rows, weight)
        if layer.bias is not None:
            targets[:, -1].index_add_(0, rows, weights[layer.bias][m].to(targets))
    members = torch.bincount(layout.rows[list(models)].flatten(), minlength=height).to(targets)
    return targets / members.clamp(min=1).unsqueeze(-1)


def _added(matrix: Tensor, into: Tensor, width: int) -> Tensor:
    """The columns of a matrix added up into ``width`` others: column j into column ``into[j]``."""
    return matrix.new_zeros(len(matrix), width).index_add_(1, into, matrix)
