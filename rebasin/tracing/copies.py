"""Units that own several slices of an axis, which are tied to one another: in the same order in each, or in another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rebasin.tracing.units import FIXED, Relations

Row = tuple[int, ...]


def row_of(units: np.ndarray) -> Row:
    """The units of a block, sorted, each as often as it is there; what is there whole several times counts once.

    So the two halves of a head that are tied by its angles, and the head of both, are one block; a frame that holds
    some units twice and others once is another than one that holds all of them once.
    """
    own, times = np.unique(units, return_counts=True)
    return tuple(np.repeat(own, times // np.gcd.reduce(times)).tolist())


def order_marks(
    relations: Relations, axes: Iterable[np.ndarray], unit_of: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Marks that keep apart units whose slices along an axis are tied in another order.

    ``axes`` holds the label of each slice of each axis, and ``unit_of`` the unit of each label. Worked example: let a
    network add its units 0 ... 7 to themselves as they stand once a matrix of 2 x 4 is turned, 0 4 1 5 2 6 3 7. So 1, 4
    and 2 are one unit, and 3, 5 and 6 another. The first slice of the one meets its third, that of the other its
    second: they could not change places slice by slice.
    """
    copy, has_several = _numbered_copies(relations.count, axes, unit_of)
    marks = []
    for a, b in relations.ties:
        twisted = has_several[unit_of[a]]
        if twisted.any():
            pairs = np.stack([copy[a[twisted]], copy[b[twisted]]])
            _, mark = np.unique(pairs, axis=1, return_inverse=True)
            marks.append((unit_of[a[twisted]], mark.ravel()))
    return marks


def _numbered_copies(count: int, axes: Iterable[np.ndarray], unit_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each label, which of its unit's it is along its axis, and of each unit, whether it has several along one."""
    copy, has_several = np.zeros(count, np.int64), np.zeros(len(unit_of) + 1, bool)
    for slices in axes:
        labels = np.unique(slices[slices != FIXED])
        units = unit_of[labels]
        order = np.argsort(units, kind="stable")
        own, first, times = np.unique(units[order], return_index=True, return_counts=True)
        copy[labels[order]] = np.arange(len(labels)) - np.repeat(first, times)
        has_several[own[times > 1]] = True
    return copy, has_several
