"""C2M3: all models are matched to one universe of units at once, so that every cycle of matchings closes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rebasin.arguments import check_count, check_number
from rebasin.inner_products import mean_inner_product
from rebasin.matching.frank_wolfe import check_two_axes, mix, vertex_of
from rebasin.matching.scores import assign_all, gram
from rebasin.merging.record import Merge, merged_like, side_by_side, unmoved
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, Weights, flat, mean, real, single, take

Point = dict[str, Tensor]  # of each group, a doubly stochastic matrix for each model but the first


def merge_universe(spec: PermutationSpec, models: Models, *, max_sweeps: int = 200, tolerance: float = 1e-6) -> Merge:
    """Merge n models all at once, each matched to one universe of units (C2M3: Crisostomi et al. 2024, Algorithm 1).

    ``models`` is a list of modules or of dicts of tensors, or a dict of tensors (*batch, n, ...). The universe's units
    are numbered as the first model's. Of all other models, the permutations of all groups maximise the inner product of
    the permuted weights, summed over all pairs of models: what brings a to b, and b to c, brings a to c. The search is
    that of ``frank_wolfe_matching``, over the hull of the permutations, from its centre: a sweep goes towards the
    vertex that the gradient points to, by the length that is best along the segment, on which the objective is a
    polynomial of degree four. It ends once the vertex promises no more than ``tolerance`` of the objective, or after
    ``max_sweeps``; one more assignment rounds the point to permutations. Where they are worth less than the identity,
    the models stay as they are. Nothing is random. Of two models it is the search of
    ``frank_wolfe_matching``, which may end a little earlier or later.

    Raises ValueError if the models do not fit the spec or there are none, or if a weight has more than two axes that
    move.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(3)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> merge_universe(spec, models)
    Merge(3 models -> Sequential; ... rounds, ... sweeps)
    """
    weights, batch = side_by_side(spec, models, "merge_universe(spec, models)")
    check_count(max_sweeps, "max_sweeps", 0)
    check_number(tolerance, "tolerance", least=0)
    check_two_axes(spec)
    groups = flat(weights, len(batch))  # (groups, n, ...)
    some = groups[next(iter(spec.shapes))]
    index = unmoved(spec, tuple(some.shape[:2]), some.device)
    sweeps = torch.zeros(len(some), dtype=torch.int64, device=some.device)
    if some.shape[1] > 1 and spec.sizes:
        for number in range(len(some)):
            sweeps[number] = _match_all(spec, take(groups, number), take(index, number), max_sweeps, tolerance)
    permutation = Permutation(spec, {group: held.reshape(*batch, *held.shape[1:]) for group, held in index.items()})
    merged = mean(permutation.apply(weights), len(batch))
    return Merge(merged_like(models, merged), merged, permutation, sweeps.reshape(batch), sweeps.reshape(batch))


def _match_all(
    spec: PermutationSpec, models: Weights, index: Mapping[str, Tensor], max_sweeps: int, tolerance: float
) -> int:
    """Write into ``index`` (n, *index_shape) what brings models (n, ...) to the first one's units; gives the sweeps."""
    objective = _Objective(spec, models)
    point = objective.centre()
    value, sweeps = objective.along(point, point)[0], 0
    with track(max_sweeps, f"universe of {objective.n} models, sweeps at most", "sweep") as bar:
        while sweeps < max_sweeps:
            gradient = objective.gradient(point)
            vertex = vertex_of(spec, gradient)
            slope = sum(float((gradient[g] * (vertex[g] - point[g])).sum(dtype=torch.float64)) for g in point)
            if slope <= tolerance * abs(value):
                break
            step, reached = _highest(objective.along(point, vertex))
            sweeps += 1
            bar.update()
            if reached <= value:
                break
            point = {g: torch.lerp(point[g], vertex[g], step) for g in point}
            value = reached
    found = {group: held.clone() for group, held in index.items()}
    for group, assigned in assign_all(spec, point).items():
        found[group][1:] = assigned
    before, after = (mean_inner_product(spec, Permutation(spec, dict(of)).apply(models)) for of in (index, found))
    if after > before:
        for group, held in index.items():
            held.copy_(found[group])
    return sweeps


class _Objective:
    """The inner products of all pairs of n models under doubly stochastic matrices (n - 1, units, units) by group.

    The first model stays: its units are the universe's.
    """

    def __init__(self, spec: PermutationSpec, models: Weights) -> None:
        self.spec = spec
        self.weights = {key: single(real(spec.view(key, models[key]))) for key in spec.weights if spec.parts[key]}
        self.n = len(next(iter(self.weights.values())))

    def centre(self) -> Point:
        """The matrices that make each unit the mean of all."""
        some = next(iter(self.weights.values()))
        moving = dict.fromkeys(part.group for key in self.weights for part in self.spec.parts[key])
        units = {group: self.spec.units(group) for group in moving}
        return {group: some.new_full((self.n - 1, count, count), 1 / count) for group, count in units.items()}

    def mixed(self, key: str, point: Point) -> Tensor:
        """An entry of all models (n, ...), the first as it is and the others' units mixed by the matrices."""
        first, others = self.weights[key][:1], self.weights[key][1:]
        return torch.cat([first, mix(others, self.spec.parts[key], point)])

    def gradient(self, point: Point) -> Point:
        """The derivative with respect to each matrix."""
        slopes = {group: torch.zeros_like(matrix) for group, matrix in point.items()}
        for key, weight in self.weights.items():
            mixed = self.mixed(key, point)
            others = mixed.sum(0) - mixed[1:]  # what each model but the first is held against
            parts = self.spec.parts[key]
            for axis in {part.axis for part in parts}:
                half = mix(weight[1:], [part for part in parts if part.axis != axis], point)
                for part in parts:
                    if part.axis == axis:
                        slopes[part.group] += gram(others, half, part)
        return slopes

    def along(self, point: Point, vertex: Point) -> np.ndarray:
        """The objective on the segment from a point to a vertex, at 0, 1/4, 1/2, 3/4 and 1: (5,)."""
        middle = {group: (point[group] + vertex[group]) / 2 for group in point}
        values = np.zeros(5)
        for key in self.weights:
            start, half, end = (self.mixed(key, at).double().flatten(1) for at in (point, middle, vertex))
            # Entries are polynomials of degree two along the segment: start + linear t + bend t^2.
            bend = 2 * (start + end) - 4 * half
            linear = end - start - bend
            for at, t in enumerate(np.linspace(0, 1, 5)):
                entries = start + linear * t + bend * t**2
                values[at] += float(entries.sum(0).square().sum() - entries.square().sum()) / 2
        return values


def _highest(values: np.ndarray) -> tuple[float, float]:
    """Where a polynomial of degree four, given at 0, 1/4, 1/2, 3/4 and 1, is highest in [0, 1], and how high."""
    coefficients = np.polyfit(np.linspace(0, 1, 5), values, 4)
    turns = np.roots(np.polyder(coefficients))
    real_turns = turns.real[np.abs(turns.imag) < 1e-9]
    places = np.array([0.0, 1.0, *real_turns[(real_turns > 0) & (real_turns < 1)]])
    heights = np.polyval(coefficients, places)
    best = int(heights.argmax())
    return float(places[best]), float(heights[best])
