"""Axes: where the slices of an axis of any tensor in a network go, once the units along it go into slots."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rebasin.expanding.expansion import Heads, output_keys
from rebasin.expanding.slots import Slots
from rebasin.tracing import Followed
from rebasin.tracing.units import Labels, Value

OUTPUTS = "the outputs"  # the name of the network's outputs, as a group of units that heads side by side keep apart


class CannotSplit(ValueError):
    """Some units of ``group`` are kept apart, and ``reason`` says why it must be merged whole."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"group {group!r} cannot be split, {reason}: merge it whole")
        self.group, self.reason = group, reason


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of the merge: slice s of model m becomes slice ``index[m, s]``, of ``size``; ``index`` is (n, slices).

    ``groups`` are those that are split along it; if there are none, the axis is as in one model.
    """

    index: np.ndarray
    size: int
    groups: tuple[str, ...] = ()

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


class Axes:
    """The axes of a merge, from the labels that the tracer left on the axes of one model.

    A *sweep* goes along an axis through all units of a group in their order, each with as many slices side by side. An
    axis is made of sweeps: one for the rows of a layer; two for two layers that are concatenated; after (channels,
    height, width) was flattened one, in which a unit has as many slices as an image has places; after (height, width,
    channels) was, as many sweeps as there are places. In the merge, each sweep goes through all slots.

    With heads side by side, the outputs are a group as well, of which nothing is shared. Raises ValueError for slots of
    another spec than that of the model.
    """

    def __init__(self, followed: Followed, slots: Slots, heads: Heads = "shared") -> None:
        membership, spec, self.slots = followed.membership, slots.spec, slots
        own = followed.spec
        if own.sizes != spec.sizes or any(spec.parts.get(key) != parts for key, parts in own.parts.items()):
            raise ValueError(
                "the slots are of another spec than that of the model: trace it on an example of this size"
            )
        self._names: list[str] = []
        self._index: list[np.ndarray] = []  # (n, units), the slots of each group that is split
        # Of each label, the group that it is in and its unit; -1 if it is in none that is split.
        self._group = np.full(len(membership.group), -1)
        self._unit = np.full(len(membership.group), -1)
        for family, members in spec.families.items():
            index = slots.index[family].cpu().numpy()
            if (index == np.arange(index.shape[1])).all():
                continue
            for group in members:
                labels = membership.group == membership.names.index(group)
                # A unit within a block goes where its block goes.
                per_block = spec.sizes[group] if group != family else 1
                self._unit[labels] = membership.number[labels] // per_block
                self._group[labels] = len(self._names)
            self._names.append(family)
            self._index.append(index)
        if heads == "side by side":
            for units in output_units(followed):
                for number, unit in enumerate(units):
                    labels = membership.unit == unit
                    self._group[labels], self._unit[labels] = len(self._names), number
                self._names.append(OUTPUTS)
                self._index.append(np.arange(slots.n * len(units)).reshape(slots.n, -1))
        self._known: dict[tuple[int, int], tuple[Axis, Labels]] = {}

    def of(self, value: Value, axis: int) -> Axis:
        """An axis of a tensor of the model, in the merge. Raises CannotSplit if its units do not lie in sweeps."""
        axis %= len(value.shape)
        labels = value.on(axis)
        if labels is None:
            return self._plain(value.shape[axis])
        if (id(labels), axis) not in self._known:
            rows = np.moveaxis(labels.units, labels.axes.index(axis), 0).reshape(value.shape[axis], -1)
            # Along the axis, units must lie alike wherever one stands along the others.
            group_and_unit = np.stack([self._group[rows], self._unit[rows]])
            lines = [self._swept(group, unit) for group, unit in np.unique(group_and_unit, axis=2).transpose(2, 0, 1)]
            for line in lines:
                if line.size != lines[0].size or (line.index != lines[0].index).any():
                    raise CannotSplit((lines[0].groups + line.groups)[0], "since its units lie askew along two axes")
            self._known[id(labels), axis] = lines[0], labels  # which are held, so that no others get their id
        return self._known[id(labels), axis][0]

    def _plain(self, size: int) -> Axis:
        return Axis(np.broadcast_to(np.arange(size), (self.slots.n, size)), size)

    def _swept(self, group: np.ndarray, unit: np.ndarray) -> Axis:
        """The axis along which slices belong to these units, of these groups."""
        if (group == group[0]).all() and (unit == unit[0]).all():  # nothing split, or the inside of one block
            return self._plain(len(group))
        index = np.empty((self.slots.n, len(group)), np.int64)
        size = 0
        groups: dict[str, None] = {}
        for start, end, copies in self._sweeps(group, unit):
            # (n, units, copies): the slices of a slot lie side by side, as those of a unit do.
            slots = self._index[group[start]] if group[start] >= 0 else np.zeros((self.slots.n, 1), np.int64)
            places = slots[:, :, None] * copies + np.arange(copies)
            index[:, start:end] = size + places.reshape(self.slots.n, -1)
            size += (int(slots.max()) + 1) * copies
            if group[start] >= 0:
                groups[self._names[group[start]]] = None
        return Axis(index, size, tuple(groups))

    def _sweeps(self, group: np.ndarray, unit: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Where each sweep starts and ends, and how many slices of a unit lie side by side in it."""
        ends = [*(np.flatnonzero((np.diff(group) != 0) | (np.diff(unit) != 0)) + 1).tolist(), len(group)]
        start = 0
        while start < len(group):
            copies = ends[bisect_right(ends, start)] - start
            units = np.arange(self._index[group[start]].shape[1]) if group[start] >= 0 else np.array([-1])
            sweep = slice(start, start + len(units) * copies)
            if (group[sweep] != group[start]).any() or not np.array_equal(unit[sweep], np.repeat(units, copies)):
                raise CannotSplit(self._names[group[start]], "since its units lie in another order along some axis")
            yield sweep.start, sweep.stop, copies
            start = sweep.stop


def output_units(followed: Followed) -> list[list[int]]:
    """The units of each output of a network, in their order.

    Raises ValueError, naming it, for an output that is not made of units of its own, which nothing else holds in place,
    and which other layers than the last have, as where a residual stream is an output.
    """
    membership, last = followed.membership, output_keys(followed.program)
    inner = [value for key, value in followed.tensors.items() if key not in last]
    within = {unit for value in inner for labels in value.labels for unit in membership.unit[labels.units].flat}
    (end,) = (node for node in followed.program.graph.nodes if node.op == "output")
    units_of = []
    for node in end.all_input_nodes:
        own = []
        for labels in followed.values[node].labels:
            units = membership.unit[labels.units]
            reasons = {membership.reasons.get(unit) for unit in units.ravel().tolist()}
            if reasons == {"an output of the network"} and units.ndim == 1 and within.isdisjoint(units.tolist()):
                own.append(units.tolist())
        if len(own) != 1:
            raise ValueError(f"heads cannot stand side by side: the output {node.name!r} has no units of its own")
        units_of += own
    return units_of
