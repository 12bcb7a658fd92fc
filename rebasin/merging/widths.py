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

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, vstack

Gains = Sequence[np.ndarray]
GAP = 1e-4  # how close to the best the solver stops, relative
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
    is apart, and ``begun[c]`` in {0, 1} lets it be more than 0 once the cells before are full. Between the ends of a
    cell the programme is a relaxation, as it overrates the gain and underrates the cost:

    - the gain is interpolated, plus the most by which the table is above that within the cell;
    - the product of two fills is replaced by what it is at most, the smaller one, where products make the merge
      cheaper, and by what it is at least, ``fill + fill - 1``, where they make it dearer.

    So its bound holds for all counts. Cells of one unit are exact: their fill is a whole number.
    """
    ends = [_cells(of_group, levels) for of_group in gains]  # (cells + 1,) each
    sizes = np.concatenate([np.diff(of_group) for of_group in ends])
    cells = len(sizes)
    first = np.cumsum([0, *(len(of_group) - 1 for of_group in ends)])
    group = np.repeat(np.arange(len(ends)), np.diff(first))
    begun, fill = np.arange(cells), cells + np.arange(cells)  # columns of the variables
    following = np.flatnonzero(group[:-1] == group[1:])  # cells with another after them
    # Pairs of cells whose product counts.
    g, h = np.nonzero(products)
    pairs = [itertools.product(range(*first[i : i + 2]), range(*first[j : j + 2])) for i, j in zip(g, h, strict=True)]
    left, right = np.array(list(itertools.chain(*pairs)), int).reshape(-1, 2).T
    product = 2 * cells + np.arange(len(left))
    weights = products[group[left], group[right]] * sizes[left] * sizes[right]

    gain = np.zeros(2 * cells + len(left))
    above = np.zeros(cells)  # the most by which the table is above its interpolation within the cell
    for of_group, at, start in zip(gains, ends, first, strict=False):
        own = slice(start, start + len(at) - 1)
        gain[fill[own]] = np.diff(of_group[at])
        over = of_group - np.interp(np.arange(len(of_group)), at, of_group[at])
        above[own] = np.maximum.reduceat(over[:-1], at[:-1])
    gain[begun] = above
    gain[begun[following + 1]] -= above[following]
    cost = np.zeros_like(gain)
    cost[fill], cost[product] = linear[group] * sizes, weights

    cheaper = weights < 0
    rows = [
        _rows(len(gain), (1, fill), (-1, begun)),  # <= 0, as the next three
        _rows(len(gain), (1, begun[following + 1]), (-1, fill[following])),
        _rows(len(gain), (1, product[cheaper]), (-1, fill[left[cheaper]])),
        _rows(len(gain), (1, product[cheaper]), (-1, fill[right[cheaper]])),
        _rows(len(gain), (1, fill[left[~cheaper]]), (1, fill[right[~cheaper]]), (-1, product[~cheaper])),  # <= 1
    ]
    limits = [np.zeros(sum(part.shape[0] for part in rows[:-1])), np.ones(rows[-1].shape[0])]
    # The solver's tolerances are absolute: gains and costs are given to it as shares of all that there is.
    whole = float(sum(np.ptp(of_group) for of_group in gains)) or 1.0
    dearest = float(np.abs(cost).sum()) or 1.0
    integers = np.zeros(len(gain))
    integers[begun] = 1
    integers[fill] = sizes == 1
    result = milp(
        -gain / whole,
        integrality=integers,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(
            vstack([*rows, cost[None] / dearest], format="csr"), -np.inf, np.concatenate([*limits, [room / dearest]])
        ),
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
    nothing = float(sum(of_group[0] for of_group in gains))
    most = float(sum(of_group.max() for of_group in gains))
    bound = most if result.mip_dual_bound is None else min(most, nothing - result.mip_dual_bound * whole)
    shares = np.zeros(cells) if result.x is None else result.x[fill]
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


def _rows(columns: int, *entries: tuple[int, np.ndarray]) -> coo_array:
    """A row for each number of variables, which all entries have as many of: their factors in these columns."""
    count = len(entries[0][1])
    factors = np.concatenate([np.full(count, factor) for factor, _ in entries])
    at = np.concatenate([variables for _, variables in entries])
    return coo_array((factors, (np.tile(np.arange(count), len(entries)), at)), shape=(count, columns))
