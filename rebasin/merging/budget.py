"""The budget: how many units of each group to merge, so that a merge of a given size keeps apart what matters most."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from rebasin.arguments import check_choice, check_count, check_number, check_tensor
from rebasin.expanding.costs import LayerCost, Measure
from rebasin.merging.widths import extra_cost, polished, relaxed, total_gain
from rebasin.spec import PermutationSpec, check_family, check_spec

Shape = Literal["uniform", "prefix", "suffix"]
MEASURES = {"structured": "multiply-adds", "dense": "dense multiply-adds", "parameters": "parameters"}


@dataclass(frozen=True, eq=False, repr=False)
class Budget:
    """How many units of each group are merged, and how good that is.

    - ``merged[group]``: the number of units that all models share; the others stay apart for each model.
    - ``units[group]``: the number of units that one model has.
    - ``n``: the number of models.
    - ``size``: what the merge costs, in multiples of one model, counted unit by unit; ``limit``: what it may.
    - ``by``: in what cost is counted, as in ``count_cost``.
    - ``gain``: the sum of the gains; ``bound``: what the sum is at most, for any widths within the limit. Both are None
      for a budget that follows a shape.
    """

    merged: dict[str, int]
    units: dict[str, int]
    n: int
    size: float
    limit: float
    by: Measure
    gain: float | None = None
    bound: float | None = None

    @property
    def gap(self) -> float | None:
        """How far the gain is below the bound at most, as a share of the bound; 0 is the proved best."""
        if self.gain is None or self.bound is None:
            return None
        return (self.bound - self.gain) / abs(self.bound) if self.bound else 0.0

    def __repr__(self) -> str:
        shares = [self.merged[group] / units for group, units in self.units.items()]
        whole, apart = shares.count(1), shares.count(0)
        text = f"Budget({self.n} models in {self.size:.4g} of {self.limit:.4g} times one's {MEASURES[self.by]}; "
        text += f"{len(shares)} groups: {whole} merged, {apart} apart, {len(shares) - whole - apart} in part"
        if self.gap is not None:
            text += f"; gain {self.gain:.4g}, at most {self.bound:.4g}: gap {self.gap:.2%}"
        return text + ")"

    def summary(self) -> str:
        """A table of the groups: how many units each has, and how many of them are merged."""
        width = max([5, *map(len, self.merged)])
        rows = [f"{'group':{width}}  units  merged"]
        rows += [f"{group:{width}}  {self.units[group]:5}  {merged:6}" for group, merged in self.merged.items()]
        return "\n".join(rows)


def best_budget(
    spec: PermutationSpec,
    costs: Iterable[LayerCost],
    *,
    gains: Mapping[str, Tensor],
    size: float,
    n: int = 2,
    by: Measure = "structured",
    levels: int = 6,
    seconds: float = 60.0,
) -> Budget:
    """The widths with the greatest sum of gains whose merge costs at most ``size`` times one model.

    ``costs`` are those of ``layer_costs``. ``gains[group]`` (units + 1,): entry k is what keeping k units apart is
    worth, as ``mismatch_gains`` and ``linear_gains`` give it, or measured; groups without gains are merged whole, as
    those that ``kept_whole`` lists must be. ``size`` goes from 1, all merged, to the ``n`` of the ensemble, counted
    ``by`` structured or dense multiply-adds or parameters.

    A mixed integer programme over ``levels`` steps of each group is solved, for ``seconds`` at most, and polished in
    whole units. The bound that it proves holds for all widths, between the steps too; more levels make it tighter, and
    take longer. A time limit that is reached makes the answer depend on the machine. Source: the budget of PLeaS
    (Nasery et al. 2024), whose own programme is quadratic.

    Raises ValueError for a size that no merge has, and tables that do not fit.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.ones(1, 3)
    >>> spec = rebasin.trace(model, x)
    >>> gains = rebasin.merging.gains.linear_gains(spec, {"0": 1.0, "2": 2.0})
    >>> best_budget(spec, rebasin.expanding.costs.layer_costs(spec, model, x), gains=gains, size=1.5)
    Budget(2 models in 1.481 of 1.5 times one's multiply-adds; 2 groups: 1 merged, 0 apart, 1 in part; gain 1.25, ...)
    """
    check_spec(spec, "best_budget(spec, costs, gains=gains, size=size)")
    groups = list(gains)
    tables = [_checked_table(spec, group, gains[group]) for group in groups]
    if not groups:
        raise ValueError("there are no gains: nothing tells which units to keep apart")
    units = np.array([spec.sizes[group] for group in groups])
    terms = parent, merged, linear, products = cost_terms(spec, costs, groups, n, by)
    room = _room(terms, units, size, n, by)
    nearly, bound = relaxed(tables, linear, products, room, levels, seconds)
    apart = polished(tables, linear, products, room, nearly)
    gain = total_gain(tables, apart)
    reached = (merged + extra_cost(linear, products, apart)) / parent
    # The solver's bound is as exact as its tolerances.
    return Budget(_merged(spec, groups, apart), _units(spec), n, reached, size, by, gain, max(gain, bound))


def shaped_budget(
    spec: PermutationSpec,
    costs: Iterable[LayerCost],
    *,
    shape: Shape,
    size: float,
    n: int = 2,
    by: Measure = "structured",
    whole: Container[str] = (),
) -> Budget:
    """The largest merge of a given shape that costs at most ``size`` times one model.

    - ``"uniform"``: the same share of every group is merged;
    - ``"prefix"``: units are merged up to a depth, and apart from there on, as in the partial zip of ZipIt! (Stoica et
      al. 2024);
    - ``"suffix"``: units are apart up to a depth, and merged from there on (Qu and Horvath 2025).

    The group at that depth is merged in part. A group is as deep as the first layer that gives its units; ``costs`` are
    those of ``layer_costs``, in the order of layers. Groups in ``whole``, such as ``kept_whole`` lists, are merged
    whole. All else is as in ``best_budget``.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.ones(1, 3)
    >>> spec = rebasin.trace(model, x)
    >>> costs = rebasin.expanding.costs.layer_costs(spec, model, x)
    >>> shaped_budget(spec, costs, shape="prefix", size=1.5).merged
    {'0': 8, '2': 3}
    >>> shaped_budget(spec, costs, shape="suffix", size=1.5).merged
    {'0': 4, '2': 8}
    """
    check_spec(spec, "shaped_budget(spec, costs, shape=shape, size=size)")
    check_choice(shape, "shape", get_args(Shape))
    costs = list(costs)
    groups = list(dict.fromkeys(cost.out for cost in costs if cost.out is not None and cost.out not in whole))
    units = np.array([spec.sizes[group] for group in groups])
    terms = parent, merged, linear, products = cost_terms(spec, costs, groups, n, by)
    room = _room(terms, units, size, n, by)
    shapes: dict[str, Callable[[int], np.ndarray]] = {
        "uniform": lambda count: units * count // units.max(initial=1),
        # So many units are apart, those of the last groups first, or those of the first.
        "prefix": lambda count: np.clip(count - (units.sum() - units.cumsum()), 0, units),
        "suffix": lambda count: np.clip(count - (units.cumsum() - units), 0, units),
    }
    apart_at = shapes[shape]
    counts = range(1, int(units.max(initial=0) if shape == "uniform" else units.sum()) + 1)
    most = bisect.bisect_right(counts, room, key=lambda count: extra_cost(linear, products, apart_at(count)))
    apart = apart_at(most)
    reached = (merged + extra_cost(linear, products, apart)) / parent
    return Budget(_merged(spec, groups, apart), _units(spec), n, reached, size, by)


def cost_terms(
    spec: PermutationSpec, costs: Iterable[LayerCost], groups: Sequence[str], n: int, by: Measure
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """The cost of one model, of a merge with all units merged, and what units apart cost in addition.

    The latter is ``linear @ apart + apart @ products @ apart`` over the units apart of ``groups``; all other groups are
    merged whole. Of groups with u and v units, a and b of them apart, the merge has ``u + (n - 1) a`` and ``v + (n - 1)
    b``. Of all their pairs, those with a model in common are ``u v + (n - 1) (u b + v a - a b)``.
    """
    check_choice(by, "by", get_args(Measure))
    check_count(n, "n")
    number = {group: at for at, group in enumerate(groups)}
    parent, merged, linear = 0, 0, np.zeros(len(groups), np.int64)
    products = np.zeros((len(groups), len(groups)), np.int64)
    for cost in costs:
        weight = cost.parameters if by == "parameters" else cost.multiply_adds
        sides = [side for side in (cost.out, cost.reads) if side is not None]
        for side in sides:
            if side not in spec.families:
                raise ValueError(f"{cost.key!r} has a cost for group {side!r}, which the spec has not")
        own = math.prod(spec.sizes[side] for side in sides)
        parent += weight * own
        copies, more = 1, n - 1
        if cost.side_by_side:  # outputs of each model's own, which read the units of one model
            copies, more = n, n * (n - 1) if by == "dense" else 0
        merged += weight * own * copies
        for side in sides:
            if side in number:
                linear[number[side]] += weight * more * own // spec.sizes[side]
        if len(sides) == 2 and all(side in number for side in sides):
            g, h = sorted(number[side] for side in sides)
            products[g, h] += weight * ((n - 1) ** 2 if by == "dense" else 1 - n)
    return parent, merged, linear, products


def _room(terms: tuple[int, int, np.ndarray, np.ndarray], units: np.ndarray, size: float, n: int, by: Measure) -> int:
    """What units apart may cost in a merge of ``size``. Raises ValueError for a size that no merge has."""
    parent, merged, linear, products = terms
    check_number(size, "size")
    if not parent:
        raise ValueError("there are no costs: give what layer_costs gives")
    least = merged / parent
    most = (merged + extra_cost(linear, products, units)) / parent if by == "dense" else n
    if not least <= size <= most:
        raise ValueError(
            f"no merge of {n} models has size {size:g}: it goes from {least:.6g}, all units merged, to {most:.6g}, all "
            "apart"
        )
    return math.floor(round(size * parent - merged, 3))


def _checked_table(spec: PermutationSpec, group: str, gains: Tensor) -> np.ndarray:
    """A group's gains as numbers. Raises ValueError, naming the group, if they do not fit."""
    check_family(spec, group)
    check_tensor(gains, f"gains of {group!r}")
    if gains.shape != (spec.sizes[group] + 1,) or not gains.isfinite().all():
        raise ValueError(
            f"group {group!r} has {spec.sizes[group]} units: its gains are {spec.sizes[group] + 1} finite numbers, "
            "for 0 to all units kept apart"
        )
    return gains.detach().double().cpu().numpy()


def _units(spec: PermutationSpec) -> dict[str, int]:
    return {group: spec.sizes[group] for group in spec.families}


def _merged(spec: PermutationSpec, groups: Sequence[str], apart: np.ndarray) -> dict[str, int]:
    """The units merged of each group; all of them where nothing is said."""
    return _units(spec) | {group: spec.sizes[group] - int(count) for group, count in zip(groups, apart, strict=True)}
