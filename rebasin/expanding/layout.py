"""Where the slices of an entry lie once its units are slots: the order along an axis stays, the units become more."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rebasin.expanding.slots import Slots
from rebasin.permutation import permute
from rebasin.spec import PermutationSpec
from rebasin.weights import over


@dataclass(frozen=True)
class Run:
    """A stretch of an axis: ``copies`` slices of each unit of a group in turn, or so many that stay (group None)."""

    group: str | None
    copies: int


def runs(spec: PermutationSpec, key: str, axis: int) -> list[Run]:
    """The stretches that an axis of an entry is made of, in the shape that ``spec.parts`` count in.

    Each goes once through the units of a group that lies in no other, or through slices of no unit. Channels that were
    flattened are one run with a copy for each pixel if a channel's pixels lie side by side, and a run for each pixel if
    a pixel's channels do. Of blocks, a copy is a slice of the block.

    Raises ValueError, naming the entry and the group, if an axis is not made of such stretches: units that are shuffled
    or interleaved with others cannot become more.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> spec = rebasin.trace(model, torch.randn(1, 3, 8, 8))
    >>> runs(spec, "2.weight", 1)
    [Run(group='0', copies=36)]
    """
    names = list(spec.families)
    group, unit = _units(spec, key, axis)
    stretches: list[Run] = []
    start = 0
    while start < len(unit):
        name = names[group[start]] if group[start] >= 0 else None
        ends = ((group != group[start]) | (unit != unit[start]))[start:].nonzero()
        copies = int(ends[0]) if len(ends) else len(unit) - start
        units = unit[start : start + 1] if name is None else torch.arange(spec.sizes[name])
        expected = units.repeat_interleave(copies)
        stretch = slice(start, start + len(expected))
        if not torch.equal(unit[stretch], expected) or (group[stretch] != group[start]).any():
            raise ValueError(
                f"the units of {name!r} do not lie in order along axis {axis} of {key!r}: they can only be merged whole"
            )
        stretches.append(Run(name, copies))
        start = stretch.stop
    return stretches


def places(slots: Slots, key: str, axis: int, *, stacked: bool = False) -> tuple[Tensor, int]:
    """Where the slices of an axis of each permuted model go: int64 (n, slices), and the new number of slices.

    Slices of no unit are shared by all models, or ``stacked`` model by model. Axes are counted in the shape that
    ``spec.parts`` count in. Raises ValueError if a group that is not merged whole lies as ``runs`` does not know.
    """
    spec, n = slots.spec, slots.n
    length = spec.view_shape(key)[axis]
    groups = {spec.inside.get(part.group, part.group) for part in spec.parts[key] if part.axis == axis}
    if not stacked and all(_whole(slots, group) for group in groups):
        return torch.arange(length).expand(n, -1), length
    stretches, width = [], 0
    for run in runs(spec, key, axis):
        copies = torch.arange(run.copies)
        if run.group is not None:
            units, size = slots.index[run.group].cpu(), slots.widths[run.group]
        else:
            units = torch.arange(n).unsqueeze(-1) if stacked else torch.zeros(n, 1, dtype=torch.int64)
            size = n if stacked else 1
        stretches.append(width + (units.unsqueeze(-1) * run.copies + copies).flatten(1))
        width += size * run.copies
    return torch.cat(stretches, 1), width


def places_as_given(slots: Slots, key: str, axis: int, *, stacked: bool = False) -> tuple[Tensor, int]:
    """Where the slices of an axis of each model as it is, unpermuted, go: see ``places``."""
    index, width = places(slots, key, axis, stacked=stacked)
    parts = [replace(part, axis=0) for part in slots.spec.parts[key] if part.axis == axis]
    # Slice j of permuted model m is slice source[m, j] of the model.
    source = permute(
        torch.arange(index.shape[1]).expand(slots.n, -1), parts, over(slots.permutation.flat, Tensor.cpu), 1
    )
    return torch.empty_like(index).scatter_(1, source, index), width


def whole(weight: Tensor, blocks: int) -> Tensor:
    """A grouped convolution (out, in / blocks, ...) made whole: (out, in, ...), zero outside of its blocks."""
    if blocks == 1:
        return weight
    rows = weight.unflatten(0, (blocks, -1)).movedim(0, -1)  # (out / blocks, in / blocks, ..., blocks)
    return torch.diag_embed(rows, dim1=0, dim2=2).flatten(2, 3).flatten(0, 1)


def blocks_of(weight: Tensor, blocks: int) -> Tensor:
    """The inverse of ``whole``."""
    if blocks == 1:
        return weight
    rows = weight.unflatten(0, (blocks, -1)).unflatten(2, (blocks, -1))  # (blocks, rows, blocks, columns, ...)
    return rows.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)


def _whole(slots: Slots, group: str) -> bool:
    """Whether all models share each unit of a group, so that it lies as it did."""
    return torch.equal(slots.index[group].cpu(), torch.arange(slots.spec.sizes[group]).expand(slots.n, -1))


def _units(spec: PermutationSpec, key: str, axis: int) -> tuple[Tensor, Tensor]:
    """For each slice of an axis, which of the groups that lie in no other it belongs to, and its unit; -1 for none."""
    names = list(spec.families)
    group, unit = torch.full((2, spec.view_shape(key)[axis]), -1)
    for part in spec.parts[key]:
        if part.axis == axis:
            outer, slices = spec.inside.get(part.group, part.group), part.positions.cpu()
            per_block = spec.sizes[part.group] if part.group in spec.inside else 1
            group[slices] = names.index(outer)
            unit[slices] = (torch.arange(len(slices)) // per_block).unsqueeze(-1)
    return group, unit
