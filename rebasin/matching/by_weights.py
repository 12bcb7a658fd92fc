"""Weight matching: two models in, the permutation that brings the second closest to the first out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rebasin.arguments import check_count, check_seed
from rebasin.inner_products import entry_product
from rebasin.matching.pairs import Matching, Solution, match_pairs
from rebasin.matching.scores import assign, gram, viewed
from rebasin.permutation import Permutation, flatten, permute, permuted_entry
from rebasin.spec import Part, PermutationSpec
from rebasin.weights import Models, Weights, single, take

# A sweep that gains no more than this ends the search (the authors' code).
TOLERANCE = 1e-12


def weight_matching(
    spec: PermutationSpec,
    a: Models,
    b: Models,
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    chunk: int | None = None,
    start: Permutation | None = None,
) -> Matching:
    """Match each ``b`` to its ``a`` by their weights alone (Git Re-Basin, Algorithm 1).

    Both are modules, dicts of tensors with the same leading axes (*batch), or lists of either. Coordinate descent from
    ``start``, by default the identity: a sweep visits the groups in random order, and gives each the permutation that
    maximises the inner product of the two weight vectors while all other groups are held. A pair is done after a sweep
    without gain, or after ``max_sweeps``.

    The visiting order depends on ``seed`` alone and is shared by all pairs, so that a pair's result does not depend on
    its company. ``chunk`` pairs are matched at once: by default all on a GPU, and one by each thread on a CPU. Where a
    group lies on two axes of one weight, as in grouped convolutions, the product of both permutations is replaced by
    its slope, and the answer is taken if it is better than the last one.

    Memory, beside the models and for each pair at once: the scores of each group (units, units) in single precision, as
    many numbers again as a model has at most, and one entry of the models.

    Raises ValueError if the weights do not fit the spec or each other, lie on different devices, or are not finite, and
    TypeError or ValueError for other arguments of another kind, negative ones, and a start of another spec.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> other = rebasin.Permutation.random(spec).apply(model)
    >>> matching = weight_matching(spec, model, other)
    >>> all(torch.equal(p, q) for p, q in zip(matching.apply(other).parameters(), model.parameters()))
    True
    """

    check_seed(seed)
    check_count(max_sweeps, "max_sweeps", 0)

    def solve(a: Weights, b: Weights, index: dict[str, Tensor]) -> Solution:
        return _coordinate_descent(spec, a, b, index, seed, max_sweeps)

    return match_pairs(spec, a, b, solve, chunk, start)


def _coordinate_descent(
    spec: PermutationSpec, a: Weights, b: Weights, index: dict[str, Tensor], seed: int, max_sweeps: int
) -> Solution:
    """Algorithm 1 for weights (pairs, ...) from ``index``, all pairs side by side, the finished ones masked."""
    history = [_product(spec, a, b, flatten(spec, index))]
    a, b = viewed(spec, a), viewed(spec, b)
    pairs, device = len(history[0]), history[0].device
    told = {part.group for key in spec.weights for part in spec.parts[key]}
    # What lies along statistics alone stays: no weight tells its units apart.
    families = [(group, members) for group, members in spec.families.items() if told.intersection(members)]
    scores: list[_Scores] = []
    room = sum(a[key][0].numel() for key in a)  # what is kept of the scores takes no more than one model
    for _, members in families:
        scores.append(_Scores(spec, a, b, members, room))
        room -= scores[-1].kept_numbers
    active = torch.ones(pairs, dtype=torch.bool, device=device)
    sweeps = torch.zeros(pairs, dtype=torch.int64, device=device)
    order = np.random.default_rng(seed)
    while active.any() and len(history) <= max_sweeps:
        gained = torch.zeros(pairs, dtype=torch.float64, device=device)
        for position in order.permutation(len(families)):
            # A group none of whose neighbours moved would be given the same permutation again.
            rows = (active & scores[position].stale).nonzero().squeeze(-1)
            if not len(rows):
                continue
            group, members = families[position]
            flat = flatten(spec, index)
            matrices = scores[position].refresh(rows, flat)
            new = assign(spec, group, matrices)
            new_flat = flatten(spec, new)
            gain = scores[position].gain(rows, matrices, flat, new_flat)
            taken = (gain > 0) | (not scores[position].coupled)
            changed = torch.stack([(flat[member][rows] != new_flat[member]).any(-1) for member in members]).any(0)
            gained[rows] += gain.where(taken, 0)
            for member in members:
                index[member][rows[taken]] = new[member][taken]
            for other in scores:
                other.mark(members, rows[taken & changed])
        sweeps += active
        history.append(history[-1] + gained)
        active = active & (gained > TOLERANCE)
    path = torch.stack(history, -1)
    return Solution(index, history[-1], sweeps, path, path)


def _product(spec: PermutationSpec, a: Weights, b: Weights, flat: Mapping[str, Tensor]) -> Tensor:
    """The inner product of the weights of ``a`` with those of the permuted ``b``, entry by entry: (pairs,)."""
    total = torch.zeros((), dtype=torch.float64)
    for key in spec.weights:
        total = total + entry_product(a[key], permuted_entry(spec, key, b[key], flat), len(spec.shapes[key]))
    return total


class _Scores:
    """What each assignment of a group is worth, given the other groups: kept per pair until a neighbour moves.

    The groups within its blocks are assigned together with it: ``members`` are itself and those. Of each pair, no more
    than ``room`` numbers are kept; what else is needed is computed each time.
    """

    def __init__(self, spec: PermutationSpec, a: Weights, b: Weights, members: list[str], room: int) -> None:
        self.a, self.b = a, b
        terms: list[tuple[str, Part, list[Part]]] = []  # a part of the group, and the parts on other axes of its entry
        for key in spec.weights:
            for part in spec.parts[key]:
                if part.group in members:
                    others = [other for other in spec.parts[key] if other.axis != part.axis]
                    terms.append((key, part, others))
        # A weight with the group on two axes is worth a product of permutations, which an assignment may lessen.
        self.coupled = any(other.group in members for _, _, others in terms for other in others)
        self.parts = {key: spec.parts[key] for key, _, _ in terms}
        self.units = {part.group: spec.units(part.group) for _, part, _ in terms}
        some = single(a[terms[0][0]][:, :0])  # of the number format that scores have
        # Terms whose other axes never move are one constant; the rest are kept apart, each with its own neighbours.
        self.fixed = [(key, part) for key, part, others in terms if not others]
        self.terms = [term for term in terms if term[2]]
        fixed_groups = {part.group for _, part in self.fixed}
        numbers = sum(self.units[group] ** 2 for group in fixed_groups)
        self.constant = self._constant(torch.arange(len(some), device=some.device)) if numbers <= room else None
        self.kept_numbers = numbers if numbers <= room else 0
        self.values: list[Tensor | None] = []
        for _, part, _ in self.terms:
            units = self.units[part.group]
            is_kept = self.kept_numbers + units**2 <= room
            self.values.append(some.new_empty(len(some), units, units) if is_kept else None)
            self.kept_numbers += units**2 * is_kept
        self.old = [torch.ones(len(some), dtype=torch.bool, device=some.device) for _ in self.terms]
        self.stale = torch.ones(len(some), dtype=torch.bool, device=some.device)

    def mark(self, moved_groups: list[str], rows: Tensor) -> None:
        """Note that these groups have moved in the pairs ``rows``."""
        for old, (_, _, others) in zip(self.old, self.terms, strict=True):
            if any(other.group in moved_groups for other in others):
                old[rows] = True
                self.stale[rows] = True

    def refresh(self, rows: Tensor, flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores (rows, units, units) of these pairs, recomputing the terms whose neighbours moved."""
        constant = self.constant
        total = self._constant(rows) if constant is None else take(constant, rows)
        for value, old, (key, part, others) in zip(self.values, self.old, self.terms, strict=True):
            again = rows if value is None else rows[old[rows]]
            if len(again):
                here = {other.group: flat[other.group][again] for other in others}
                a, b = self._entry(key, again)
                score = gram(a, permute(b, others, here, b.ndim - 1), part)
                old[again] = False
                if value is not None:
                    value.index_copy_(0, again, score)
            if value is not None:
                score = value.index_select(0, rows)
            _add(total, part.group, score)
        self.stale[rows] = False
        return total

    def _constant(self, rows: Tensor) -> dict[str, Tensor]:
        """What the terms are worth whose other axes never move, by group: (rows, units, units)."""
        total: dict[str, Tensor] = {}
        for key, part in self.fixed:
            _add(total, part.group, gram(*self._entry(key, rows), part))
        return total

    def _entry(self, key: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """An entry of both models of these pairs: (rows, ...)."""
        return single(self.a[key].index_select(0, rows)), single(self.b[key].index_select(0, rows))

    def gain(
        self, rows: Tensor, matrices: Mapping[str, Tensor], flat: Mapping[str, Tensor], new: Mapping[str, Tensor]
    ) -> Tensor:
        """How much the objective grows in these pairs if the group goes from ``flat`` to ``new``: (rows,), float64."""
        if self.coupled:
            before = {group: index[rows] for group, index in flat.items()}
            return self._worth(rows, {**before, **new}) - self._worth(rows, before)
        gain = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for group, matrix in matrices.items():
            both = torch.stack([flat[group][rows], new[group]], -1)
            value = torch.take_along_dim(matrix, both, -1).sum(-2, dtype=torch.float64)
            gain += value[:, 1] - value[:, 0]
        return gain

    def _worth(self, rows: Tensor, flat: Mapping[str, Tensor]) -> Tensor:
        """The inner product of all weights that carry the group, in these pairs."""
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for key, parts in self.parts.items():
            a, b = self._entry(key, rows)
            total += (a * permute(b, parts, flat, b.ndim - 1)).flatten(1).sum(-1, dtype=torch.float64)
        return total


def _add(total: dict[str, Tensor], group: str, score: Tensor) -> None:
    """Add to a group's scores, in place; the first of them is taken as it is."""
    if group in total:
        total[group] += score
    else:
        total[group] = score
