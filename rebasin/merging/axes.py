"""Layout: where the slices of an axis go when the units along it go into slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rebasin.merging.slots import Slots
from rebasin.tracing.groups import Membership
from rebasin.tracing.units import FIXED, Value


class CannotSplit(ValueError):
    """Some units of ``group`` are kept apart, and ``reason`` says why it must be merged whole."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"group {group!r} cannot be split, {reason}: merge it whole")
        self.group, self.reason = group, reason


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of the merge: slice s of model m becomes slice ``index[m, s]``, of ``size``; ``index`` is (n, slices).

    ``groups`` are those that are split along it.
    """

    index: np.ndarray
    size: int
    groups: tuple[str, ...] = ()

    @property
    def unchanged(self) -> bool:
        """Whether it is an axis of one model: each slice belongs to all models."""
        return not self.groups

    @property
    def owners(self) -> np.ndarray:
        """Which models each slice of the merge belongs to: bool (n, size)."""
        owners = np.zeros((len(self.index), self.size), bool)
        np.put_along_axis(owners, self.index, True, 1)
        return owners

    def boundary(self, slices: int) -> int | None:
        """Where the first so many slices of each model end in the merge; None if others lie among them."""
        before, after = self.index[:, :slices], self.index[:, slices:]
        end = int(before.max(initial=-1)) + 1
        return end if end <= int(after.min(initial=self.size)) else None


@dataclass(eq=False)
class Layout:
    """The axes of the merge, from the labels on the axes of one model.

    A *sweep* goes along an axis through all units of a group in their order, each with as many slices side by side. An
    axis is made of sweeps: one for the rows of a layer; two for two concatenated layers; one, with as many slices a
    unit as an image has places, after (channels, height, width) is flattened, and as many sweeps as there are places
    after (height, width, channels) is. In the merge each sweep goes through all slots.

    ``slots.index`` gives the slots of groups, and ``outputs`` those of the units that the network puts out, if heads
    stand side by side: for each unit the slot of each model, (n,).
    """

    slots: Slots
    membership: Membership
    outputs: Mapping[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec, membership = self.slots.spec, self.membership
        # Units within blocks go where their block goes; whole groups are as units that stay.
        self._names = ["", *self.slots.index]
        self._index: list[np.ndarray] = [np.zeros((self.slots.n, 0), np.int64)]
        self._widths = [0]
        for index in self.slots.index.values():
            self._index.append(index.cpu().numpy())
            self._widths.append(int(index.max()) + 1)
        # For each label: the split group that it lies in, 0 if there is none, and the unit or block.
        self._group = np.zeros(len(membership.group), np.int64)
        self._unit = np.zeros(len(membership.group), np.int64)
        for position, name in enumerate(membership.names):
            family = spec.inside.get(name, name)
            place = self._names.index(family)
            index = self._index[place]
            if (index == np.arange(index.shape[1])).all():
                continue
            labels = membership.group == position
            self._group[labels] = place
            self._unit[labels] = membership.number[labels] // (spec.sizes[name] if name in spec.inside else 1)
        if self.outputs:
            self._names.append("the outputs")
            units = list(self.outputs)
            self._index.append(np.stack([self.outputs[unit] for unit in units], 1))
            self._widths.append(int(self._index[-1].max()) + 1)
            for number, unit in enumerate(units):
                labels = membership.unit == unit
                self._group[labels], self._unit[labels] = len(self._names) - 1, number
        self._axes: dict[tuple[int, int], tuple[Axis, object]] = {}

    def axis(self, value: Value, axis: int) -> Axis:
        """An axis of a tensor in the merge. Raises CannotSplit for units that do not lie in sweeps."""
        axis %= len(value.shape)
        labels = value.on(axis)
        if labels is None:
            return self._plain(value.shape[axis])
        known = self._axes.get((id(labels), axis))
        if known is None:
            rows = np.moveaxis(labels.units, labels.axes.index(axis), 0)
            lines = np.unique(self._coded(rows.reshape(len(rows), -1)), axis=1)
            parsed = [self._sweeps(line) for line in lines.T]
            for other in parsed[1:]:
                if other.size != parsed[0].size or (other.index != parsed[0].index).any():
                    raise CannotSplit((parsed[0].groups + other.groups)[0], "since its units lie askew along two axes")
            known = self._axes[id(labels), axis] = parsed[0], labels  # the labels are kept, and so is their id
        return known[0]

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a tensor in the merge."""
        return tuple(self.axis(value, axis).size for axis in range(len(value.shape)))

    def _plain(self, size: int) -> Axis:
        return Axis(np.broadcast_to(np.arange(size), (self.slots.n, size)), size)

    def _coded(self, labels: np.ndarray) -> np.ndarray:
        """One number for group and unit, 0 for what is not split."""
        most = int(self._unit.max(initial=0)) + 1
        return np.where(self._group[labels] == 0, 0, self._group[labels] * most + self._unit[labels])

    def _sweeps(self, line: np.ndarray) -> Axis:
        """The axis of which ``line`` tells the group and unit of each slice."""
        most = int(self._unit.max(initial=0)) + 1
        group, unit = line // most, line % most
        if (line == line[0]).all():  # places, or the inside of one block
            return self._plain(len(line))
        index = np.empty((self.slots.n, len(line)), np.int64)
        start = size = 0
        groups: dict[str, None] = {}
        while start < len(line):
            if group[start] == 0:
                rest = np.flatnonzero(group[start:])
                length = int(rest[0]) if len(rest) else len(line) - start
                index[:, start : start + length] = size + np.arange(length)
                start, size = start + length, size + length
                continue
            slots, width = self._index[group[start]], self._widths[group[start]]
            others = np.flatnonzero(line[start:] != line[start])
            copies = int(others[0]) if len(others) else len(line) - start
            end = start + copies * slots.shape[1]
            name = self._names[group[start]]
            sweep = np.repeat(np.arange(slots.shape[1]), copies)
            if end > len(line) or (group[start:end] != group[start]).any() or (unit[start:end] != sweep).any():
                raise CannotSplit(name, "since its units lie in another order along some axis")
            # (n, units, copies): the slices of a slot lie side by side, as those of a unit do.
            placed = slots[:, :, None] * copies + np.arange(copies)
            index[:, start:end] = size + placed.reshape(len(slots), -1)
            groups[name] = None
            start, size = end, size + copies * width
        return Axis(index, size, tuple(groups))


def whole(index: np.ndarray) -> bool:
    """Whether slots (n, units) share each unit among all models, in order."""
    return bool((index == np.arange(index.shape[1])).all())


__all__ = ["FIXED", "Axis", "CannotSplit", "Layout", "whole"]
