"""Frank-Wolfe matching: all groups at once, over the convex hull of permutations, independent of any visiting order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rebasin.arguments import check_count, check_number
from rebasin.inner_products import inner_product
from rebasin.matching.pairs import Matching, Solution, match_pairs
from rebasin.matching.scores import assign_all, gram, viewed
from rebasin.permutation import Permutation, flatten
from rebasin.spec import Part, PermutationSpec, check_spec
from rebasin.weights import Models, Weights, over, single


def frank_wolfe_matching(
    spec: PermutationSpec,
    a: Models,
    b: Models,
    *,
    max_sweeps: int = 200,
    tolerance: float = 1e-6,
    chunk: int | None = None,
) -> Matching:
    """Match each ``b`` to its ``a`` by their weights alone, all groups together (after C2M3, Crisostomi et al. 2024).

    ``a``, ``b`` and ``chunk`` are those of ``weight_matching``. Maximises the inner product over the hull of all
    permutations, from its centre. A sweep is a step towards the vertex that the gradient points to, one assignment per
    group, by the length that is best along the segment, on which the objective is quadratic. A pair is done once the
    vertex promises no more than ``tolerance`` of the objective, or after ``max_sweeps``. A last sweep rounds the point
    to permutations by one more assignment per group; where that is below the identity, the identity is kept. Nothing is
    random, and no visiting order matters.

    ``maximised_by_sweep`` is the objective inside the hull, from the centre on. Raises ValueError if the weights do not
    fit, or if one has more than two axes that move.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> other = rebasin.Permutation.random(spec).apply(model)
    >>> matching = frank_wolfe_matching(spec, model, other)
    >>> all(torch.equal(p, q) for p, q in zip(matching.apply(other).parameters(), model.parameters()))
    True
    """
    check_spec(spec, "frank_wolfe_matching(spec, a, b)")
    check_count(max_sweeps, "max_sweeps", 0)
    check_number(tolerance, "tolerance", least=0)
    check_two_axes(spec)

    def solve(a: Weights, b: Weights, identity: dict[str, Tensor]) -> Solution:
        return _ascend(spec, a, b, identity, max_sweeps, tolerance)

    return match_pairs(spec, a, b, solve, chunk)


def check_two_axes(spec: PermutationSpec) -> None:
    """Raise ValueError for a weight with more than two axes that move: the objective would not be quadratic."""
    for key, parts in spec.parts.items():
        if len({part.axis for part in parts}) > 2:
            raise ValueError(f"Frank-Wolfe matching takes weights with two axes that move, {key!r} has more")


def _ascend(
    spec: PermutationSpec, a: Weights, b: Weights, identity: dict[str, Tensor], max_sweeps: int, tolerance: float
) -> Solution:
    """Frank-Wolfe for weights (pairs, ...), all pairs side by side; the finished ones stay where they are."""
    unmoved = inner_product(spec, a, b)
    objective = _Objective(spec, a, b)
    point = {group: torch.full_like(alone, 1 / alone.shape[-1]) for group, alone in objective.alone.items()}
    active = torch.ones(len(unmoved), dtype=torch.bool, device=unmoved.device)
    steps = torch.zeros(len(unmoved), dtype=torch.int64, device=unmoved.device)
    history = [objective.of(point)]
    while active.any() and len(history) <= max_sweeps:
        steps += active
        gradient = objective.gradient(point)
        vertex = vertex_of(spec, gradient)
        slope = sum((gradient[g] * (vertex[g] - point[g])).sum((1, 2), dtype=torch.float64) for g in gradient)
        bend = objective.of(vertex) - history[-1] - slope
        # now + slope t + bend t^2 is greatest inside the segment, or at its end.
        step = torch.where(bend < 0, (-slope / (2 * bend)).clamp(max=1), 1.0)
        gain = slope * step + bend * step.square()
        active = active & (slope > tolerance * history[-1].abs()) & (gain > 0)
        for group, matrix in vertex.items():
            point[group] = torch.lerp(point[group], matrix, step.where(active, 0).to(matrix.dtype).reshape(-1, 1, 1))
        history.append(history[-1] + gain.where(active, 0))
    index = {**identity, **assign_all(spec, point)}  # what lies along statistics alone stays
    rounded = inner_product(spec, a, Permutation(spec, index).apply(b))
    worse = rounded < unmoved
    for group, assigned in index.items():
        assigned[worse] = identity[group][worse]
    reached = torch.maximum(rounded, unmoved)
    # The rounding is the last sweep: (pairs, 1 + most steps + 1).
    inside = torch.stack([*history, history[-1]], -1)
    number = torch.arange(inside.shape[1], device=steps.device)
    by_sweep = torch.where(number <= steps[:, None], inside, reached[:, None])
    by_sweep[:, 0] = unmoved
    return Solution(index, reached, steps + 1, by_sweep, inside)


class _Objective:
    """The inner product of ``a`` with ``b`` under doubly stochastic matrices (pairs, units, units), one per group."""

    def __init__(self, spec: PermutationSpec, a: Weights, b: Weights) -> None:
        self.a, self.b = over(viewed(spec, a), single), over(viewed(spec, b), single)
        some = next(iter(self.a.values()))
        groups = dict.fromkeys(part.group for key in spec.weights for part in spec.parts[key])
        # What the products of axes that move alone are worth is the same all along.
        self.alone = {g: some.new_zeros(len(some), spec.units(g), spec.units(g)) for g in groups}
        self.fixed = torch.zeros(len(some), dtype=torch.float64, device=some.device)
        self.both: dict[str, tuple[Part, ...]] = {}
        for key in spec.weights:
            parts = spec.parts[key]
            if len({part.axis for part in parts}) == 2:
                self.both[key] = parts
                continue
            for part in parts:
                self.alone[part.group] += gram(self.a[key], self.b[key], part)
            self.fixed += self._of_what_stays(key, parts)

    def _of_what_stays(self, key: str, parts: tuple[Part, ...]) -> Tensor:
        """The inner product of the slices of an entry that are in no part, all of which lie along one axis."""
        a, b = self.a[key], self.b[key]
        if parts:
            moving = torch.cat([part.positions.flatten() for part in parts]).to(a.device)
            a = a.index_fill(parts[0].axis + 1, moving, 0)
        return (a * b).flatten(1).sum(-1, dtype=torch.float64) if a.ndim > 1 else (a * b).double()

    def of(self, point: Mapping[str, Tensor]) -> Tensor:
        """The objective, (pairs,), float64."""
        total = self.fixed + sum((self.alone[g] * point[g]).sum((1, 2), dtype=torch.float64) for g in point)
        for key, parts in self.both.items():
            total += (self.a[key] * mix(self.b[key], parts, point)).flatten(1).sum(-1, dtype=torch.float64)
        return total

    def gradient(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The derivative with respect to each group's matrix."""
        slopes = {group: matrix.clone() for group, matrix in self.alone.items()}
        for key, parts in self.both.items():
            for axis in {part.axis for part in parts}:
                mixed = mix(self.b[key], [part for part in parts if part.axis != axis], point)
                for part in parts:
                    if part.axis == axis:
                        slopes[part.group] += gram(self.a[key], mixed, part)
        return slopes


def vertex_of(spec: PermutationSpec, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutation matrices (pairs, units, units) that maximise the scores."""
    flat = flatten(spec, assign_all(spec, scores))
    return {g: torch.zeros_like(matrix).scatter_(-1, flat[g].unsqueeze(-1), 1) for g, matrix in scores.items()}


def mix(tensor: Tensor, parts: Iterable[Part], point: Mapping[str, Tensor]) -> Tensor:
    """A tensor (pairs, ...) whose slices in ``parts`` are mixed by each group's matrix (pairs, units, units)."""
    for part in parts:
        positions = part.positions.flatten().to(tensor.device)
        moving = tensor.movedim(part.axis + 1, 1)
        units = moving.index_select(1, positions).reshape(len(tensor), len(part.positions), -1)
        mixed = (point[part.group] @ units).reshape(len(tensor), len(positions), *moving.shape[2:])
        tensor = moving.index_copy(1, positions, mixed).movedim(1, part.axis + 1)
    return tensor
