"""From what a network demands of its units to its permutation groups: the units that nothing tells apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rebasin.operators.units import FIXED, Relations, Value


@dataclass(frozen=True)
class Part:
    """Where the units of a group lie along an axis of a parameter: unit u owns the slices ``positions[u]``.

    ``positions`` is (units, copies). A unit that lies there several times has several copies, as a channel has in a
    linear layer after flattening; copy k of one unit corresponds to copy k of every other.
    """

    group: str
    axis: int
    positions: np.ndarray


@dataclass(frozen=True)
class Groups:
    """The permutation groups of a network.

    ``sizes`` holds the number of units per group. A group in ``inside`` permutes units within one unit of another:
    ``inside["attention"] == ("attention blocks", 3)``. ``parts`` tells, for each parameter and buffer, where the groups
    lie, inner groups first, and ``shapes`` how to view it before: the first two axes of a grouped convolution are one.
    ``pinned`` tells why a parameter that no group moves stays.
    """

    sizes: Mapping[str, int]
    inside: Mapping[str, tuple[str, int]]
    parts: Mapping[str, tuple[Part, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    pinned: Mapping[str, str]


@dataclass(frozen=True)
class _Place:
    """The unit of each slice of one axis. A merged axis has two places: the units of its rows, those of its columns."""

    key: str
    axis: int
    units: np.ndarray


def find_groups(relations: Relations, tensors: Mapping[str, Value]) -> Groups:
    """The groups of the units that lie along the axes of ``tensors``, as the relations among them allow."""
    unit_of, children = _unify(relations)
    tied, count = unit_of, int(unit_of.max(initial=-1)) + 1
    reasons: dict[int, str] = {}
    for units, why in relations.pins:
        for unit in np.unique(unit_of[units]).tolist():
            reasons.setdefault(unit, why)
    uses = [unit_of[units[units != FIXED]] for units in relations.uses]
    uses += _pin_blocks(children, reasons)
    fixed = np.zeros(count + 1, bool)
    fixed[list(reasons)] = True
    unit_of = np.where(fixed[unit_of], FIXED, unit_of)
    places = _places(relations, tensors, unit_of)

    kind = _refine(count, [place.units for place in places], uses)
    rank = _rank(count, places)
    head_of = np.full(count, FIXED)
    for head, units in children.items():
        if not fixed[head]:
            head_of[[unit for unit in units if not fixed[unit]]] = head
    names = _Names(places)
    sizes: dict[str, int] = {}
    inside: dict[str, tuple[str, int]] = {}
    parts: dict[str, list[Part]] = defaultdict(list)

    # Blocks first, since inner groups are told which block they are in; their parts come last.
    outer: dict[int, tuple[str, int]] = {}
    last: list[tuple[str, Part]] = []
    for heads in _alike_blocks(children, fixed, kind):
        if len(heads) < 2:
            continue
        heads = sorted(heads, key=lambda head: min(rank[list(children[head])]))
        name = names.of(min(children[heads[0]], key=lambda unit: rank[unit]), " blocks")
        sizes[name] = len(heads)
        outer.update((head, (name, number)) for number, head in enumerate(heads))
        last += _block_parts(name, heads, head_of, kind, rank, places)

    lies = np.zeros(count, bool)
    for place in places:
        lies[place.units[place.units != FIXED]] = True
    free = np.flatnonzero(lies)
    free = free[np.lexsort((rank[free], head_of[free], kind[free]))]
    alike = np.split(free, 1 + np.flatnonzero((np.diff(kind[free]) != 0) | (np.diff(head_of[free]) != 0)))
    alike = [units for units in alike if len(units) > 1 and units[0] not in children]
    members: list[tuple[str, np.ndarray]] = []
    owner, within = np.full(count, FIXED), np.full(count, FIXED)
    for units in sorted(alike, key=lambda units: rank[units[0]]):
        name = names.of(int(units[0]))
        sizes[name] = len(units)
        owner[units], within[units] = len(members), np.arange(len(units))
        members.append((name, units))
        if head_of[units[0]] in outer:
            inside[name] = outer[int(head_of[units[0]])]
    for place in places:
        groups = np.where(place.units == FIXED, FIXED, owner[place.units])
        for group in np.unique(groups[groups != FIXED]).tolist():
            slices = np.flatnonzero(groups == group)
            slices = slices[np.argsort(within[place.units[slices]], kind="stable")]
            name, units = members[group]
            parts[place.key].append(Part(name, place.axis, slices.reshape(len(units), -1)))
    for key, part in last:
        parts[key].append(part)
    shapes = {
        key: (value.shape[0] * value.shape[1], *value.shape[2:]) if key in relations.columns else value.shape
        for key, value in tensors.items()
    }
    found = {key: tuple(parts.get(key, ())) for key in tensors}
    pinned = {key: _reason(tensors[key], tied, reasons) for key in tensors if not found[key]}
    return Groups(sizes, inside, found, shapes, pinned)


def _unify(relations: Relations) -> tuple[np.ndarray, dict[int, set[int]]]:
    """Each label's unit once ties are taken into account, and the units in each block."""
    ties = [(np.zeros(0, int), np.zeros(0, int)), *relations.ties]
    while True:
        a, b = (np.concatenate([tie[side] for tie in ties]) for side in (0, 1))
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(relations.count, relations.count))
        unit_of = connected_components(graph, directed=False)[1].astype(np.int64)
        children: dict[int, set[int]] = defaultdict(set)
        same: dict[tuple[int, ...], int] = {}
        twins = []
        for rows, heads in relations.blocks:
            for row, label in zip(unit_of[rows], heads.tolist(), strict=True):
                head = int(unit_of[label])
                children[head].update(row.tolist())
                # Blocks of the same units are the same block.
                twin = same.setdefault(tuple(sorted(set(row.tolist()))), label)
                if unit_of[twin] != head:
                    twins.append((twin, label))
        if not twins:
            return unit_of, dict(children)
        ties.append(tuple(np.array(twins).T))


def _pin_blocks(children: Mapping[int, set[int]], reasons: dict[int, str]) -> list[np.ndarray]:
    """Pin the blocks that cannot move as wholes; their units, each of which keeps to its block."""
    heads_of: dict[int, set[int]] = defaultdict(set)
    for head, units in children.items():
        for unit in units:
            heads_of[unit].add(head)
    for head, units in children.items():
        stays = next((reasons[unit] for unit in units if unit in reasons), None)
        if stays or any(len(heads_of[unit]) > 1 or unit in children for unit in units):
            reasons.setdefault(head, stays or "blocks that overlap or lie within blocks")
    return [np.array(sorted(units)) for head, units in children.items() if head in reasons]


def _places(relations: Relations, tensors: Mapping[str, Value], unit_of: np.ndarray) -> list[_Place]:
    places = []
    for key, value in tensors.items():
        columns = relations.columns.get(key)
        for labels in value.labels:
            (axis,) = labels.axes
            units = unit_of[labels.units]
            if columns is None:
                places.append(_Place(key, axis, units))
            elif axis == 0:
                places.append(_Place(key, 0, units.repeat(columns.shape[1])))
                own = np.where(columns == FIXED, FIXED, unit_of[columns])
                places.append(_Place(key, 0, own.ravel()))
    return [place for place in places if (place.units != FIXED).any()]


def _refine(count: int, places: Iterable[np.ndarray], uses: Iterable[np.ndarray]) -> np.ndarray:
    """A number per unit: two have the same if they lie equally often in each place and each use."""
    kind = np.zeros(count, np.int64)
    for units in [*places, *uses]:
        found, times = np.unique(units[units != FIXED], return_counts=True)
        _, new = np.unique(kind[found] * (times.max(initial=0) + 1) + times, return_inverse=True)
        kind[found] = kind.max() + 1 + new
    return kind


def _rank(count: int, places: Iterable[_Place]) -> np.ndarray:
    """The order in which units first lie anywhere."""
    rank = np.full(count, np.iinfo(np.int64).max)
    seen = 0
    for place in places:
        found, first = np.unique(place.units, return_index=True)
        new = (found != FIXED) & (rank[found] == np.iinfo(np.int64).max)
        rank[found[new]] = seen + first[new]
        seen += len(place.units)
    return rank


def _alike_blocks(children: Mapping[int, set[int]], fixed: np.ndarray, kind: np.ndarray) -> list[list[int]]:
    """The blocks that may change places: those that hold the same kinds of units."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for head, units in children.items():
        if not fixed[head]:
            alike[int(kind[head]), *sorted(kind[list(units)].tolist())].append(head)
    return list(alike.values())


def _block_parts(
    name: str, heads: list[int], head_of: np.ndarray, kind: np.ndarray, rank: np.ndarray, places: list[_Place]
) -> list[tuple[str, Part]]:
    """The parts of a group of blocks, the slices of each block in corresponding order."""
    number = np.full(len(head_of) + 1, FIXED)
    number[heads] = np.arange(len(heads))  # a block may itself lie somewhere, as do the heads of a table of biases
    inner = np.isin(head_of, heads)
    number[:-1][inner] = number[head_of[inner]]
    # A unit's place within its block: its kind, then its rank among those of its kind.
    units = np.flatnonzero(inner)
    units = units[np.lexsort((rank[units], kind[units], head_of[units]))]
    starts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(head_of[units]))])
    order = np.zeros(len(head_of) + 1, np.int64)
    order[units] = np.arange(len(units)) - np.repeat(starts, np.diff([*starts, len(units)]))
    parts: list[tuple[str, Part]] = []
    layers: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for place in places:
        layers[place.key, place.axis].append(place.units)
    for (key, axis), lying in layers.items():
        first, second = lying[0], lying[-1]
        block = np.where(number[first] != FIXED, number[first], number[second])
        slices = np.flatnonzero(block != FIXED)
        if len(slices):
            keys = (slices, order[second[slices]], order[first[slices]], block[slices])
            slices = slices[np.lexsort(keys)]
            parts.append((key, Part(name, axis, slices.reshape(len(heads), -1))))
    return parts


class _Names:
    """A name for each group: the layer whose rows its units are, or whatever tensor they lie in first."""

    def __init__(self, places: list[_Place]) -> None:
        self.given: set[str] = set()
        self.first: dict[int, tuple[str, int]] = {}
        for rows in (True, False):
            for place in places:
                if (place.axis == 0) == rows:
                    for unit in np.unique(place.units).tolist():
                        self.first.setdefault(unit, (place.key, place.axis))

    def of(self, unit: int, suffix: str = "") -> str:
        key, axis = self.first[unit]
        layer = key.removesuffix(".weight").removesuffix(".bias") + ("" if axis == 0 else f" axis {axis}") + suffix
        name, number = layer, 2
        while name in self.given:
            name, number = f"{layer} {number}", number + 1
        self.given.add(name)
        return name


def _reason(value: Value, unit_of: np.ndarray, reasons: Mapping[int, str]) -> str:
    """Why nothing of a tensor moves."""
    if not value.labels:
        return "a single number"
    units = np.concatenate([labels.units for labels in value.labels])
    told = [reasons.get(unit, "a unit like no other") for unit in unit_of[units].tolist()]
    return max(set(told), key=told.count)
