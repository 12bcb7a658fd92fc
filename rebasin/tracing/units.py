"""Units, what is known of a tensor's, and what operators demand of them; the rules are in the other files.

A *label* says which unit a slice of a tensor belongs to. Units are integers; two that always move together are tied.
A unit that an operator tells apart from its like, as by its place, is pinned. Where an operator treats units in blocks
(heads, grouped channels), each block is a unit as well, the *head* of the units in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

FIXED = -1  # the label of a slice that belongs to no unit


@dataclass(frozen=True, eq=False)
class Labels:
    """Units along some axes of a tensor together: ``units`` has one axis per entry of ``axes`` (ascending)."""

    axes: tuple[int, ...]
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor: its shape, and labels on disjoint sets of axes. Other axes are places.

    ``key`` names the parameter or buffer that the tensor is, as it is, or each entry scaled where it stands. All slices
    along the axes ``even`` are equal.
    """

    shape: tuple[int, ...]
    labels: tuple[Labels, ...] = ()
    key: str | None = None
    even: frozenset[int] = frozenset()

    def on(self, axis: int) -> Labels | None:
        """The labels that cover an axis."""
        return next((labels for labels in self.labels if axis % len(self.shape) in labels.axes), None)


@dataclass
class Relations:
    """What the operators demand of units: which are tied, which pinned and why, which are blocks of which."""

    count: int = 0
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)
    blocks: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    uses: list[np.ndarray] = field(default_factory=list)
    marks: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    read: list[np.ndarray] = field(default_factory=list)
    columns: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)  # of grouped convolutions

    def fresh(self, count: int) -> np.ndarray:
        """So many new units."""
        first, self.count = self.count, self.count + count
        return np.arange(first, self.count)

    def pin(self, units: np.ndarray, why: str) -> None:
        """These units cannot move."""
        self.pins.append((units[units != FIXED], why))

    def tie(self, a: np.ndarray, b: np.ndarray, why: str) -> None:
        """Each unit of ``a`` is the one of ``b`` at the same place."""
        self.pin(a[b == FIXED], why)
        self.pin(b[a == FIXED], why)
        both = (a != FIXED) & (b != FIXED) & (a != b)
        if both.any():
            self.ties.append((a[both], b[both]))

    def use(self, units: np.ndarray) -> None:
        """An operator takes these units as a set: none of them can change places with one outside."""
        self.uses.append(units.ravel())
        self.reach(units)

    def part(self, units: np.ndarray) -> None:
        """An operator passes on these units as a set, and may leave out others."""
        self.uses.append(units.ravel())

    def tell_apart(self, units: np.ndarray, axes: Iterable[int]) -> None:
        """An operator tells these units apart by their places along ``axes`` of the array, and alike along others."""
        places = np.zeros(units.shape, np.int64)
        for axis in axes:
            own = np.arange(units.shape[axis]).reshape([-1 if i == axis else 1 for i in range(units.ndim)])
            places = places * units.shape[axis] + own
        self.marks.append((units.ravel(), places.ravel()))

    def reach(self, units: np.ndarray) -> None:
        """What is computed depends on these units. Those that nothing depends on stay: another input may tell them."""
        self.read.append(units.ravel())

    def heads(self, units: np.ndarray, outer: int, why: str) -> np.ndarray:
        """The blocks of units (outer axes..., inner axes...), as units themselves: (outer axes...)."""
        shape, rows = units.shape[:outer], units.reshape(math.prod(units.shape[:outer]), -1)
        if rows.shape[1] == 1:
            return rows.reshape(shape)
        fixed = (rows == FIXED).any(1)
        self.pin(rows[fixed], why)
        heads = np.full(len(rows), FIXED)
        heads[~fixed] = self.fresh(int((~fixed).sum()))
        self.blocks.append((rows[~fixed], heads[~fixed]))
        return heads.reshape(shape)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
FIRST_OUTPUT_RULES: dict[str, Rule] = {}  # of operators of whose outputs only the first is used


def rule(*names: str, first_output: bool = False) -> Callable[[Rule], Rule]:
    """The decorated function is the rule of these ATen operators; or if only the first of their outputs is used."""

    def register(function: Rule) -> Rule:
        (FIRST_OUTPUT_RULES if first_output else RULES).update(dict.fromkeys(names, function))
        return function

    return register


def follow(
    relations: Relations,
    name: str,
    shape: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    first_output: bool = False,
) -> Any:
    """What is known of the operator's output, of ``shape`` (or several shapes), from its arguments.

    With ``first_output`` only the first of several outputs is used.
    """
    if first_output and name in FIRST_OUTPUT_RULES:
        return FIRST_OUTPUT_RULES[name](relations, shape, *args, **kwargs)
    if name in RULES:
        return RULES[name](relations, shape, *args, **kwargs)
    for value in _values([*args, *kwargs.values()]):
        for labels in value.labels:
            relations.pin(labels.units, f"the operator {name} is not followed")
    return [Value(part) for part in shape] if shape and not isinstance(shape[0], int) else Value(shape)


def _values(arguments: Iterable[Any]) -> list[Value]:
    values = []
    for argument in arguments:
        if isinstance(argument, Value):
            values.append(argument)
        elif isinstance(argument, list | tuple):
            values += _values(argument)
    return values


def renumbered(labels: Labels, place: dict[int, int]) -> Labels:
    """The same labels where each axis is called ``place[axis]``."""
    axes = [place[axis] for axis in labels.axes]
    order = np.argsort(axes)
    return Labels(tuple(axes[i] for i in order), labels.units.transpose(order))


def tidy(axes: Sequence[int], units: np.ndarray) -> Labels:
    """Labels with ascending axes, without those along which the units stay the same."""
    order = np.argsort(axes)
    axes, units = [axes[i] for i in order], units.transpose(order)
    for place in reversed(range(len(axes))):
        first = units.take([0], place)
        if (units == first).all():
            axes, units = axes[:place] + axes[place + 1 :], first.squeeze(place)
    return Labels(tuple(axes), units)


def outer(relations: Relations, labels: Labels, axes: tuple[int, ...], why: str) -> np.ndarray:
    """The units along ``axes`` of these labels: blocks where the labels have more axes."""
    if axes == labels.axes:
        return labels.units
    order = [labels.axes.index(axis) for axis in axes]
    rest = [place for place in range(len(labels.axes)) if place not in order]
    relations.reach(labels.units)
    return relations.heads(labels.units.transpose(order + rest), len(axes), why)


def placed(relations: Relations, x: Value, axes: Iterable[int], why: str) -> Value:
    """The value where these axes are places: units along them are pinned; of blocks of places, the heads are left."""
    axes = {axis % len(x.shape) for axis in axes}
    out = []
    for labels in x.labels:
        left = tuple(axis for axis in labels.axes if axis not in axes)
        if left == labels.axes:
            out.append(labels)
        elif told_apart(relations, labels, axes, why):
            out.append(Labels(left, outer(relations, labels, left, why)))
    return replace(x, labels=tuple(out), even=x.even - axes)


def told_apart(relations: Relations, labels: Labels, places: Iterable[int], why: str) -> bool:
    """Note that the axes ``places`` are such for an operator. Units along them alone are pinned: False is returned."""
    own = [number for number, axis in enumerate(labels.axes) if axis in places]
    if len(own) == len(labels.axes):
        relations.pin(labels.units, why)
        return False
    if own:
        relations.tell_apart(labels.units, own)
    return True


def within(relations: Relations, x: Value, axes: Sequence[int], why: str) -> None:
    """The operator compares entries along ``axes``, in any order: units keep to those that they are compared with."""
    for labels in x.labels:
        inside = [axis for axis in labels.axes if axis in axes]
        outside = tuple(axis for axis in labels.axes if axis not in axes)
        if inside and outside:
            outer(relations, labels, outside, why)
        elif inside:
            relations.use(labels.units)


def tie_axes(relations: Relations, x: Value, axis: int, other: Value, other_axis: int, why: str) -> None:
    """What lies along an axis of one tensor is what lies along an axis of another."""
    relations.tie(along(relations, x, axis, why), along(relations, other, other_axis, why), why)


def along(relations: Relations, value: Value, axis: int, why: str) -> np.ndarray:
    """The unit of each slice along an axis; FIXED where there is none. Units along several axes together are pinned."""
    labels = value.on(axis)
    if labels is not None and len(labels.axes) == 1:
        return labels.units
    if labels is not None:
        relations.pin(labels.units, why)
    return np.full(value.shape[axis % len(value.shape)], FIXED)


def broadcast(relations: Relations, value: Value, shape: tuple[int, ...], why: str) -> Value:
    """The value with its axes moved to where they meet ``shape``; ones that are broadcast, or even, have size 1."""
    shift = len(shape) - len(value.shape)
    lifted = []
    for labels in value.labels:
        if any(value.shape[axis] != shape[axis + shift] for axis in labels.axes):
            relations.pin(labels.units, why)
        else:
            lifted.append(Labels(tuple(axis + shift for axis in labels.axes), labels.units))
    own = tuple(1 if axis in value.even else size for axis, size in enumerate(value.shape))
    return Value((1,) * shift + own, tuple(lifted))


def meet(relations: Relations, values: Sequence[Value], why: str) -> tuple[Labels, ...]:
    """The labels of an entry by entry function of values with as many axes each, of size 1 where broadcast."""
    kept: list[Labels] = []
    for value in values:
        others = [other for other in values if other is not value]
        for labels in value.labels:
            places = {axis for axis in labels.axes for other in others if other.shape[axis] > 1 and not other.on(axis)}
            if told_apart(relations, labels, places, why):
                kept.append(labels)
    return join(relations, kept, why)


def join(relations: Relations, labels: Sequence[Labels], why: str) -> tuple[Labels, ...]:
    """Labels on disjoint axes, from ones that may overlap: what overlaps is tied, blocks by their heads."""
    joined: list[Labels] = []
    for new in sorted(labels, key=lambda labels: -len(labels.axes)):
        meeting = [other for other in joined if set(other.axes) & set(new.axes)]
        if not meeting:
            joined.append(new)
            continue
        for other in meeting:
            shared = tuple(axis for axis in new.axes if axis in other.axes)
            relations.tie(outer(relations, new, shared, why), outer(relations, other, shared, why), why)
        if any(set(new.axes) <= set(other.axes) for other in meeting):
            continue
        # Those that overlap in part cannot all stay: of others than the one with the most units, the heads are left,
        # which are tied, and the units within are told apart.
        most = max((*meeting, new), key=lambda labels: np.unique(labels.units).size)
        for other in (*meeting, new):
            own = [place for place, axis in enumerate(other.axes) if axis not in most.axes]
            if other is not most and len(own) < len(other.axes):
                relations.tell_apart(other.units, own)
                joined = [kept for kept in joined if kept is not other]
        if most is new:
            joined.append(new)
    return tuple(joined)
