"""From what a network demands of its units to its permutation groups: the units that nothing tells apart."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rebasin.spec import Part, PermutationSpec
from rebasin.tracing.copies import Row, order_marks, row_of
from rebasin.tracing.units import FIXED, Labels, Relations, Value

UNREACHED = "not reached by the example"


@dataclass(frozen=True)
class _Place:
    """The unit of each slice of one axis."""

    key: str
    axis: int
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Membership:
    """What became of each label: its unit, and the group that the unit is in, as which of its units.

    Each array has an entry per label and a last one for FIXED. ``group`` counts in ``names``, and is FIXED for units
    that stay. ``reasons`` tells why a unit stays.
    """

    names: tuple[str, ...]
    unit: np.ndarray
    group: np.ndarray
    number: np.ndarray
    reasons: Mapping[int, str]


def find_groups(relations: Relations, tensors: Mapping[str, Value]) -> tuple[PermutationSpec, Membership]:
    """The groups of the units that lie along the axes of ``tensors``, as the relations among them allow."""
    _pin_columns(relations, tensors)
    unit_of, rows = _unify(relations)
    children = {head: set().union(*sets) for head, sets in rows.items()}
    tied, count = unit_of, int(unit_of.max(initial=-1)) + 1
    reasons: dict[int, str] = {}
    for units, why in relations.pins:
        for unit in np.unique(unit_of[units]).tolist():
            reasons.setdefault(unit, why)
    for unit in _unreached(relations, tensors, unit_of, children):
        reasons.setdefault(unit, UNREACHED)
    uses = [unit_of[units[units != FIXED]] for units in relations.uses]
    marks = [(unit_of[units[units != FIXED]], places[units != FIXED]) for units, places in relations.marks]
    marks += _several_rows(relations, rows, unit_of)
    uses += _pin_blocks(rows, reasons, _refine(count, [], uses, marks) if _overlap(children) else unit_of)
    fixed = np.zeros(count + 1, bool)
    fixed[list(reasons)] = True
    unit_of = np.where(fixed[unit_of], FIXED, unit_of)
    children = {head: units for head, units in children.items() if not fixed[head]}

    places = _places(relations, tensors, unit_of)
    kind = _kinds(relations, tensors, tied, places, uses, marks)
    groups = _grouped(children, kind, places)
    owner, number = np.full(count + 1, FIXED), np.zeros(count + 1, np.int64)
    for position, units in enumerate(groups.units):
        for column in units.T:
            owner[column], number[column] = position, np.arange(len(units))
    names = list(groups.sizes)
    parts: dict[str, list[Part]] = {key: [] for key in tensors}
    for place in places:
        owners = np.where(place.units == FIXED, FIXED, owner[place.units])
        for group in np.unique(owners[owners != FIXED]).tolist():
            slices = np.flatnonzero(owners == group)
            units = place.units[slices]
            slices = slices[np.lexsort((slices, kind[units], number[units]))]
            positions = torch.from_numpy(slices.reshape(len(groups.units[group]), -1))
            parts[place.key].append(Part(names[group], place.axis, positions))
    spec = PermutationSpec(
        groups.sizes,
        {key: tuple(own) for key, own in parts.items()},
        {key: value.shape for key, value in tensors.items()},
        groups.inside,
        {key: blocks for key, (_, blocks) in relations.columns.items()},
        pinned=_pinned(relations, tensors, parts, tied, reasons),
    )
    moving = np.append(unit_of, FIXED)
    return spec, Membership(tuple(names), np.append(tied, FIXED), owner[moving], number[moving], reasons)


@dataclass
class _Groups:
    """The groups by name; ``units[k]`` has a row for each unit of the k-th, several entries if they move as one."""

    sizes: dict[str, int] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    units: list[np.ndarray] = field(default_factory=list)

    def add(self, name: str, size: int, units: np.ndarray) -> None:
        self.sizes[name] = size
        self.units.append(units)


def _grouped(children: Mapping[int, set[int]], kind: np.ndarray, places: list[_Place]) -> _Groups:
    """Blocks that may change places and the units within them, then the units that may change places elsewhere.

    Worked example, two heads of attention. Block 20 holds the units 0 1 2, block 21 holds 3 4 5. The units 0 1 3 4 are
    of kind 7, as rows of the queries are; 2 and 5 are of kind 8, as a scale that each head has but one of.

    1. Both blocks hold the kinds 7 7 8, so that they may change places. Sorted by kind, their units stand in
       corresponding order, a row for each block: [[0 1 2], [3 4 5]].
    2. Kind 8 has one column. Its units move with their blocks: the group "query blocks" has the two units [20 2] and
       [21 5], several numbers that move as one.
    3. Kind 7 has two columns. Its units change places within a block: the group "query" of size 2 lies inside of
       "query blocks", and has the units 0 1 of the first block, then 3 4 of the second.
    4. Units that are left, of one kind and in the same block or in none, are a group if there are two or more.
    """
    rank = _rank(len(kind), places)
    lies = rank < np.iinfo(np.int64).max  # whether a unit lies anywhere
    names = _Names(places)
    groups = _Groups()
    block_of = np.full(len(kind), FIXED)
    for block, units in children.items():
        block_of[list(units)] = block
    done = np.zeros(len(kind), bool)
    for blocks in _alike_blocks(children, kind):
        units_of = []
        for block in blocks:
            units_of.append(np.array([unit for unit in children[block] if lies[unit]], int))
        if len(blocks) < 2 or not len(units_of[0]):
            continue
        # (blocks, units), the units of all blocks in corresponding order: by kind, then by rank.
        rows = np.stack([units[np.lexsort((rank[units], kind[units]))] for units in units_of])
        rows = rows[np.argsort(rank[rows].min(1), kind="stable")]
        _, columns, counts = np.unique(kind[rows[0]], return_index=True, return_counts=True)
        # What a block has but one of moves with it; the block may lie somewhere itself, as in a table of biases.
        single = [rows[:, column] for column, count in zip(columns, counts, strict=True) if count == 1]
        outer = names.of(int(rows[0][rank[rows[0]].argmin()]), " blocks")
        blocks = block_of[rows[:, 0]]
        groups.add(outer, len(blocks), np.stack([blocks, *single], 1))
        for at in np.argsort(rank[rows[0, columns]], kind="stable"):
            column, count = int(columns[at]), int(counts[at])
            if count > 1:
                inner = names.of(int(rows[0, column]))
                groups.add(inner, count, rows[:, column : column + count].reshape(-1, 1))
                groups.inside[inner] = outer
        done[rows] = True
        done[blocks] = True
    free = np.flatnonzero(lies & ~done)
    free = free[np.lexsort((rank[free], block_of[free], kind[free]))]
    alike = np.split(free, 1 + np.flatnonzero((np.diff(kind[free]) != 0) | (np.diff(block_of[free]) != 0)))
    for members in sorted((units for units in alike if len(units) > 1), key=lambda units: rank[units[0]]):
        if members[0] not in children:
            groups.add(names.of(int(members[0])), len(members), members.reshape(-1, 1))
    return groups


def _pin_columns(relations: Relations, tensors: Mapping[str, Value]) -> None:
    """Pin the channels of grouped convolutions whose weight is used in another way too, where blocks share columns."""
    if not relations.columns:
        return
    told = [*relations.marks, *relations.blocks, *relations.pins]
    tied = itertools.chain.from_iterable(relations.ties)
    touched = np.concatenate([np.zeros(0, int), *tied, *(units.ravel() for units, _ in told)])
    for key, (channels, _) in relations.columns.items():
        own = tensors[key].on(1)
        if own is None:
            continue
        used = [np.isin(own.units, units) for units in relations.uses]
        in_part = any(columns.any() and not columns.all() for columns in used)
        if in_part or np.isin(own.units, touched).any():
            for units in (channels, own.units):
                relations.pin(units, "a grouped convolution whose weight is used in another way too")


def _unify(relations: Relations) -> tuple[np.ndarray, dict[int, set[Row]]]:
    """Each label's unit once ties are taken into account, and the sets of units that each block is made of.

    There are several where blocks of different tensors are tied: a unit of one cannot take the place of one of another.
    """
    ties = [(np.zeros(0, int), np.zeros(0, int)), *relations.ties]
    while True:
        a, b = np.concatenate([tie[0] for tie in ties]), np.concatenate([tie[1] for tie in ties])
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(relations.count, relations.count))
        unit_of = connected_components(graph, directed=False)[1].astype(np.int64)
        children: dict[int, set[Row]] = defaultdict(set)
        same: dict[Row, int] = {}
        twins = []
        for rows, heads in relations.blocks:
            for row, label in zip(unit_of[rows], heads.tolist(), strict=True):
                head, units = int(unit_of[label]), row_of(row)
                children[head].add(units)
                # Blocks of the same units are the same block.
                twin = same.setdefault(units, label)
                if unit_of[twin] != head:
                    twins.append((twin, label))
        if not twins:
            return unit_of, dict(children)
        ties.append(tuple(np.array(twins).T))


def _several_rows(
    relations: Relations, rows: Mapping[int, set[Row]], unit_of: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Marks that keep apart the sets of units of blocks which have several, each the same in all of its blocks."""
    marks = []
    for block_rows, heads in relations.blocks:
        if all(len(rows[head]) == 1 for head in unit_of[heads].tolist()):
            continue
        seen: dict[int, list[Row]] = defaultdict(list)
        numbers = []
        for row, head in zip(unit_of[block_rows], unit_of[heads].tolist(), strict=True):
            units = row_of(row)
            if units not in seen[head]:
                seen[head].append(units)
            numbers.append(seen[head].index(units))
        marks.append((unit_of[block_rows].ravel(), np.repeat(numbers, block_rows.shape[1])))
    return marks


def _unreached(
    relations: Relations, tensors: Mapping[str, Value], unit_of: np.ndarray, children: Mapping[int, set[int]]
) -> list[int]:
    """The units of tensors that nothing depends on, be it that they are left out on the way; blocks aside."""
    empty = np.zeros(0, int)
    of_tensors = (_own_labels(value, key in relations.columns) for key, value in tensors.items())
    lying = np.concatenate([empty, *(labels.units for several in of_tensors for labels in several)])
    read = np.concatenate([empty, *relations.read])
    unread = np.setdiff1d(unit_of[lying], unit_of[read[read != FIXED]])
    return [unit for unit in unread.tolist() if unit not in children]


def _overlap(children: Mapping[int, set[int]]) -> bool:
    return len(set().union(*children.values())) < sum(map(len, children.values()))


def _pin_blocks(rows: Mapping[int, set[Row]], reasons: dict[int, str], kind: np.ndarray) -> list[np.ndarray]:
    """Pin the blocks that cannot move as wholes; their units, each of which keeps to its block.

    Of blocks that overlap, as those along one axis and those along another do, those move that are more alike, by
    ``kind``, or smaller, of which there are more.
    """
    children = {head: set().union(*sets) for head, sets in rows.items()}
    if _overlap(children):
        alike = {head: len(blocks) for blocks in _alike_blocks(children, kind) for head in blocks}
        children = dict(sorted(children.items(), key=lambda block: (-alike[block[0]], len(block[1]), block[0])))
    taken: set[int] = set()
    for head, units in children.items():
        stays = next((reasons[unit] for unit in sorted(units) if unit in reasons), None)
        if stays or not taken.isdisjoint(units) or not children.keys().isdisjoint(units):
            reasons.setdefault(head, stays or "blocks that overlap or lie within blocks")
        elif head not in reasons:
            taken |= units
    return [np.array(sorted(row)) for head, sets in rows.items() if head in reasons for row in sets]


def _places(relations: Relations, tensors: Mapping[str, Value], unit_of: np.ndarray) -> list[_Place]:
    places = []
    for key, value in tensors.items():
        for labels in _own_labels(value, key in relations.columns):
            places.append(_Place(key, labels.axes[0], unit_of[labels.units]))
        if key in relations.columns:
            channels, _ = relations.columns[key]
            places.append(_Place(key, 1, np.where(channels == FIXED, FIXED, unit_of[channels])))
    return [place for place in places if (place.units != FIXED).any()]


def _refine(
    count: int,
    places: Iterable[np.ndarray],
    uses: Iterable[np.ndarray],
    marks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """A number per unit: two have the same if they lie equally often in each place and use, and have the same marks."""
    kind = np.zeros(count, np.int64)
    for units in [*places, *uses]:
        lying, times = np.unique(units[units != FIXED], return_counts=True)
        _, new = np.unique(kind[lying] * (times.max(initial=0) + 1) + times, return_inverse=True)
        kind[lying] = kind.max() + 1 + new
    random = np.random.default_rng(0)
    for units, marked in marks:
        # What a unit is marked with, in any order, as a sum of random numbers.
        lying, place = np.unique(units, return_inverse=True)
        total = np.zeros(len(lying), np.uint64)
        np.add.at(total, place, random.integers(2**63, size=int(marked.max(initial=0)) + 1, dtype=np.uint64)[marked])
        _, new = np.unique(np.stack([kind[lying].astype(np.uint64), total]), axis=1, return_inverse=True)
        kind[lying] = kind.max() + 1 + new.ravel()
    return kind


def _kinds(
    relations: Relations,
    tensors: Mapping[str, Value],
    tied: np.ndarray,
    places: Sequence[_Place],
    uses: Sequence[np.ndarray],
    marks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """A number per unit: those of one number may change places, slice by slice."""
    count, along = int(tied.max(initial=-1)) + 1, [place.units for place in places]
    kind = _refine(count, along, uses, marks)
    own = (labels.units for key, value in tensors.items() for labels in _own_labels(value, key in relations.columns))
    orders = order_marks(relations, own, tied)
    refined = _refine(count, along, uses, [*marks, *orders])
    lying = np.unique(np.concatenate([np.zeros(0, int), *along]))
    lying = lying[lying != FIXED]
    return refined if len(np.unique(refined[lying])) > len(np.unique(kind[lying])) else kind


def _rank(count: int, places: Iterable[_Place]) -> np.ndarray:
    """The order in which units first lie anywhere."""
    rank = np.full(count, np.iinfo(np.int64).max)
    seen = 0
    for place in places:
        lying, first = np.unique(place.units, return_index=True)
        new = (lying != FIXED) & (rank[lying] == np.iinfo(np.int64).max)
        rank[lying[new]] = seen + first[new]
        seen += len(place.units)
    return rank


def _alike_blocks(children: Mapping[int, set[int]], kind: np.ndarray) -> list[list[int]]:
    """The blocks that may change places: those that hold the same kinds of units."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for head, units in children.items():
        alike[int(kind[head]), *sorted(kind[list(units)].tolist())].append(head)
    return list(alike.values())


class _Names:
    """A name for each group: the layer whose rows its units are, or whatever tensor they lie in first."""

    def __init__(self, places: list[_Place]) -> None:
        self.used: set[str] = set()
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
        while name in self.used:
            name, number = f"{layer} {number}", number + 1
        self.used.add(name)
        return name


def _pinned(
    relations: Relations,
    tensors: Mapping[str, Value],
    parts: Mapping[str, list[Part]],
    unit_of: np.ndarray,
    reasons: Mapping[int, str],
) -> dict[str, str]:
    """Why nothing of a tensor moves, and how much of it the example does not reach if something does."""
    pinned = {}
    for key, value in tensors.items():
        if not parts[key]:
            pinned[key] = _reason(value, unit_of, reasons)
            continue
        left_out = [
            f"{count} of {value.shape[axis]} slices along axis {axis}"
            for axis, count in unreached_slices(value, key in relations.columns, unit_of, reasons).items()
        ]
        if left_out:
            pinned[key] = f"{' and '.join(left_out)}: {UNREACHED}"
    return pinned


def unreached_slices(value: Value, in_blocks: bool, unit_of: np.ndarray, reasons: Mapping[int, str]) -> dict[int, int]:
    """How many slices the example does not reach, along each axis of a parameter or buffer that has such."""
    counts = {}
    for labels in _own_labels(value, in_blocks):
        why = [reasons.get(unit) for unit in unit_of[labels.units].tolist()]
        counts[labels.axes[0]] = why.count(UNREACHED)
    return {axis: count for axis, count in counts.items() if count}


def _own_labels(value: Value, in_blocks: bool) -> list[Labels]:
    """The labels of a tensor; without its columns where it is the weight of a grouped convolution."""
    return [labels for labels in value.labels if labels.axes == (0,) or not in_blocks]


def _reason(value: Value, unit_of: np.ndarray, reasons: Mapping[int, str]) -> str:
    """Why nothing of a tensor moves."""
    if not value.labels:
        return "a single number"
    units = np.concatenate([labels.units for labels in value.labels])
    every = [reasons.get(unit, "a unit like no other") for unit in unit_of[units].tolist()]
    return max(set(every), key=every.count)
