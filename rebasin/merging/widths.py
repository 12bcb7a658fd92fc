"""The programme under a budget: how many units of each group to keep apart, for the greatest gain within a cost.

Groups are numbered here. ``apart`` (groups,) counts the units that are kept apart for each model, and ``gains[g]``
(units + 1,) is what keeping so many of group g apart is worth. A merge costs what one model costs, and in addition
``linear @ apart + apart @ products @ apart``, where ``products`` is upper triangular: its entries are negative for
structured cost, as units of two models are not multiplied with one another, and positive for dense cost.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, vstack

Gains = Sequence[np.ndarray]
GAP, COARSE_GAP = 1e-4, 5e-3  # how close to its own best the solver stops, with cells of one unit and larger ones
LINES = 5  # by which the gain is limited within a cell
SHARES = 1024  # in how fine steps counts are made to fit
ROUNDING = 1e-12


def extra_cost(linear: np.ndarray, products: np.ndarray, apart: np.ndarray) -> int:
    """What a merge costs more than one model, in whole numbers."""
    return int(linear @ apart + apart @ products @ apart)


def total_gain(gains: Gains, apart: np.ndarray) -> float:
    """The sum of the gains of all groups."""
    return float(sum(of_group[count] for of_group, count in zip(gains, apart, strict=True)))


def relaxed(
    gains: Gains, linear: np.ndarray, products: np.ndarray, room: int, levels: int, seconds: float
) -> tuple[np.ndarray, float]:
    """Counts apart that nearly fit into ``room``, and a bound of the gain of any that do.

    Each group is cut into cells of units, filled one after another: ``fill[c]`` in [0, 1] is the share of cell c that
    is apart, and ``begun[c]`` in {0, 1} lets it be more than 0 once the cell before is full. Within a cell the
    programme is a relaxation, so that its bound holds for all counts:

    - ``excess[c]``, by how much the gain is above the line from the cell's start to its end, is limited by other lines
      that the table never crosses;
    - the product of two fills is replaced by the most that it can be, the smaller one, where products make the merge
      cheaper, and by the least, ``fill + fill - 1``, where they make it dearer.

    Cells of one unit are exact: their fill is a whole number.
    """
    ends = [_cells(of_group, levels) for of_group in gains]  # (cells + 1,) for each group
    whole = float(sum(map(np.ptp, gains))) or 1.0  # the solver's tolerances are absolute: it sees shares of this
    tables = []  # the gains within each cell, from its start to its end
    for of_group, own in zip(gains, ends, strict=True):
        tables += [of_group[start : end + 1] / whole for start, end in itertools.pairwise(own)]
    first = np.cumsum([0, *(len(own) - 1 for own in ends)])  # the first cell of each group
    group = np.repeat(np.arange(len(ends)), np.diff(first))
    sizes = np.array([len(table) - 1 for table in tables])
    begun, fill, excess = np.arange(3 * len(tables)).reshape(3, -1)  # the columns of the variables
    before = np.flatnonzero(group[:-1] == group[1:])  # the cells with another of their group after them
    left, right = _cell_pairs(products, first)
    product = 3 * len(tables) + np.arange(len(left))
    columns = 3 * len(tables) + len(left)

    gain, cost = np.zeros((2, columns))
    gain[fill], gain[excess] = [table[-1] - table[0] for table in tables], 1
    cost[fill] = linear[group] * sizes
    cost[product] = products[group[left], group[right]] * sizes[left] * sizes[right]
    cheaper = cost[product] < 0
    cell, slope, height = _lines(tables)
    # Each is a row for as many sets of variables as there are, and what it must not exceed.
    constraints = [
        (_rows(columns, (1, fill), (-1, begun)), 0),
        (_rows(columns, (1, begun[before + 1]), (-1, fill[before])), 0),
        (_rows(columns, (1, excess[cell]), (-slope, fill[cell])), height),
        (_rows(columns, (1, product[cheaper]), (-1, fill[left[cheaper]])), 0),
        (_rows(columns, (1, product[cheaper]), (-1, fill[right[cheaper]])), 0),
        (_rows(columns, (1, fill[left[~cheaper]]), (1, fill[right[~cheaper]]), (-1, product[~cheaper])), 1),
    ]
    dearest = float(np.abs(cost).sum()) or 1.0
    limits = [np.full(rows.shape[0], limit) for rows, limit in constraints]
    whole_numbers = np.zeros(columns)
    whole_numbers[begun], whole_numbers[fill] = 1, sizes == 1
    result = milp(
        -gain,
        integrality=whole_numbers,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(
            vstack([*(rows for rows, _ in constraints), cost[None] / dearest], format="csr"),
            -np.inf,
            np.concatenate([*limits, [room / dearest]]),
        ),
        options={"time_limit": seconds, "mip_rel_gap": GAP if (sizes == 1).all() else COARSE_GAP},
    )
    none = float(sum(of_group[0] for of_group in gains))
    most = float(sum(of_group.max() for of_group in gains))
    bound = most if result.mip_dual_bound is None else min(most, none - result.mip_dual_bound * whole)
    shares = np.zeros(len(tables)) if result.x is None else result.x[fill]
    return np.add.reduceat(shares * sizes, first[:-1]), bound


def polished(gains: Gains, linear: np.ndarray, products: np.ndarray, room: int, apart: np.ndarray) -> np.ndarray:
    """Whole counts apart that fit into ``room``, from ones that nearly do.

    All are first made smaller by one factor until they fit. Then a group gives or takes 0, 1, 2, 4 ... units, and of
    all groups the one that wins most by it takes the best count that fits, as long as the sum of the gains rises.
    """

    def shrunk(share: int) -> np.ndarray:
        return np.floor(apart * share / SHARES + 1e-6).astype(np.int64)  # a whole number less rounding stays

    fits = bisect.bisect_right(range(1, SHARES + 1), room, key=lambda x: extra_cost(linear, products, shrunk(x)))
    apart = shrunk(fits)
    groups, units = range(len(gains)), [len(of_group) - 1 for of_group in gains]
    best = [_best_up_to(of_group) for of_group in gains]
    both, own = products + products.T, np.diag(products)
    np.fill_diagonal(both, 0)
    steps = [0, *(sign * 2**power for power in range(max(units).bit_length()) for sign in (1, -1))]
    moved = True
    while moved:
        moved = False
        for g, step in itertools.product(groups, steps):
            trial = apart.copy()
            trial[g] += step
            if not 0 <= trial[g] <= units[g]:
                continue
            slope = linear + both @ trial
            left = room - extra_cost(linear, products, trial) + slope * trial + own * trial**2  # without group h
            won, counts = np.full(len(gains), -np.inf), trial.copy()
            for h in groups:
                most = _most(slope[h], own[h], left[h], units[h])
                if most >= 0:
                    counts[h] = best[h][most]
                    won[h] = gains[h][counts[h]] - gains[h][trial[h]] + gains[g][trial[g]] - gains[g][apart[g]]
            h = int(won.argmax())
            if won[h] > ROUNDING * np.ptp(gains[h]):
                trial[h] = counts[h]
                apart, moved = trial, True
    return apart


def _best_up_to(gains: np.ndarray) -> np.ndarray:
    """For each count, the one up to it that gains most; of equal ones the least."""
    greatest = np.maximum.accumulate(gains)
    rises = np.concatenate([[True], gains[1:] > greatest[:-1]])
    return np.maximum.accumulate(np.where(rises, np.arange(len(gains)), 0))


def _most(slope: int, own: int, left: int, units: int) -> int:
    """The greatest count up to ``units`` with ``slope * count + own * count**2 <= left``; -1 if there is none.

    The cost never falls from one count to the next.
    """
    return bisect.bisect_right(range(units + 1), left, key=lambda count: slope * count + own * count**2) - 1


def _cell_pairs(products: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The pairs of cells whose product counts: (2, pairs)."""
    pairs: list[tuple[int, int]] = []
    for g, h in np.argwhere(products):
        pairs += itertools.product(range(first[g], first[g + 1]), range(first[h], first[h + 1]))
    return np.array(pairs, int).reshape(-1, 2).T


def _lines(tables: Gains) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lines over each cell that its table never crosses, less the one from its start to its end.

    The cell, the slope over the whole cell and the height at its start are given for each line.
    """
    lines = []
    for cell, table in enumerate(tables):
        units, rises = len(table) - 1, table - table[0]
        counts = np.arange(units + 1)
        through_start = (rises[1:] / counts[1:]).max()
        through_end = ((table[-1] - table[:-1]) / counts[:0:-1]).min()
        between = np.diff(table)[np.linspace(0, units - 1, LINES).astype(int)]
        for slope in np.unique([through_start, through_end, *between]):
            lines.append((cell, units * slope - rises[-1], (rises - slope * counts).max()))
    cells, slopes, heights = zip(*lines, strict=True)
    return np.array(cells), np.array(slopes), np.array(heights)


def _cells(gains: np.ndarray, levels: int) -> np.ndarray:
    """The ends of at most ``levels`` cells of whole units: closer together where the gain changes most."""
    units = len(gains) - 1
    if units <= levels:
        return np.arange(units + 1)
    changes = np.abs(np.diff(gains))
    share = changes / changes.sum() if changes.any() else np.zeros(units)
    passed = np.concatenate([[0], np.cumsum(share + 1 / units)])
    ends = np.searchsorted(passed, np.linspace(0, passed[-1], levels + 1)[1:-1])
    return np.unique([0, *ends, units])


def _rows(columns: int, *entries: tuple[Any, np.ndarray]) -> coo_array:
    """A row for each set of variables: the factors that they have, and their columns, of which all have as many."""
    count = len(entries[0][1])
    factors = np.concatenate([np.broadcast_to(factor, count) for factor, _ in entries])
    at = np.concatenate([variables for _, variables in entries])
    return coo_array((factors, (np.tile(np.arange(count), len(entries)), at)), shape=(count, columns))
