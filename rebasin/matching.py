"""Weight matching: two models in, the permutation that brings the second closest to the first out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rebasin.assignment import solve_assignment
from rebasin.permutation import Part, Permutation, PermutationSpec, Weights, flatten, permute
from rebasin.progress import track

# A sweep that gains no more than this ends the search (the authors' code).
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Matching:
    """What a matcher found for a batch of pairs.

    ``permutation`` is to be applied to the second models. ``objective`` (*batch,) is the inner product of the first
    model's weights with the permuted second's, whatever the matcher maximised. ``sweeps`` (*batch,) counts the sweeps
    until one gained nothing, ``history`` (*batch, 1 + most sweeps) is what was maximised, before the first and after
    each. ``seconds`` is the wall time of all pairs together.
    """

    permutation: Permutation
    objective: Tensor
    sweeps: Tensor
    history: Tensor
    seconds: float


def inner_product(spec: PermutationSpec, a: Weights, b: Weights) -> Tensor:
    """The inner product of two weight vectors, in float64: (*batch,) for weights with leading axes ``*batch``."""
    return sum(
        (a[key] * b[key]).flatten(a[key].ndim - len(spec.shapes[key])).sum(-1, dtype=torch.float64)
        if spec.shapes[key]
        else (a[key] * b[key]).double()
        for key in spec.weights
    )


def assign(spec: PermutationSpec, group: str, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best permutations of a group and of those within its blocks, (batch, *index_shape) each.

    ``scores[g]`` is (batch, units, units): what it is worth that unit i of the first network meets unit j of the
    second. Blocks are worth what their units are under the best permutation within them.
    """
    inner = spec.within(group)
    if not inner:
        return {group: solve_assignment(scores[group])}
    blocks = spec.sizes[group]
    total, best = scores.get(group, 0), {}
    for name in inner:
        n = spec.sizes[name]
        pairs = scores[name].unflatten(-1, (blocks, n)).unflatten(-3, (blocks, n)).transpose(-3, -2)
        best[name] = solve_assignment(pairs)  # (batch, blocks, blocks, units)
        total = total + torch.take_along_dim(pairs, best[name].unsqueeze(-1), -1).sum((-2, -1))
    index = solve_assignment(total)
    meeting = index[..., None, None]
    return {group: index, **{g: torch.take_along_dim(b, meeting, -2).squeeze(-2) for g, b in best.items()}}


def assign_all(spec: PermutationSpec, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best permutations of all groups by ``assign``; a group of blocks may have no scores of its own."""
    index: dict[str, Tensor] = {}
    for group, members in spec.families.items():
        index |= assign(spec, group, {member: scores[member] for member in members if member in scores})
    return index


def weight_matching(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    seed: int = 0,
    max_sweeps: int = 100,
    chunk: int | None = None,
    start: Permutation | None = None,
) -> Matching:
    """Match each ``b`` to its ``a`` by their weights alone (Git Re-Basin, Algorithm 1).

    Coordinate descent from ``start``, by default the identity: a sweep visits the groups in random order, and gives
    each the permutation that maximises the inner product of the two weight vectors with all other groups held. Of a
    group that lies on two axes of one weight, as in grouped convolutions, the product of both permutations is replaced
    by its slope, and the answer taken if it is better than the last one. A pair is done after a sweep without gain, or
    after ``max_sweeps``.

    ``a`` and ``b`` are weights with the same leading axes (*batch), of which ``chunk`` pairs are matched at once, by
    default all on a GPU, and on a CPU one by each thread. The visiting order depends on ``seed`` alone and is shared by
    all pairs, so that a pair's result does not depend on its company. Raises ValueError if the weights do not fit the
    spec or each other.
    """
    return match_pairs(
        spec, a, b, chunk, lambda a, b, start: _coordinate_descent(spec, a, b, start, seed, max_sweeps), start
    )


def check_pairs(spec: PermutationSpec, a: Weights, b: Weights) -> torch.Size:
    """The leading axes of pairs of models. Raises ValueError if they do not fit the spec or each other."""
    batch = spec.batch_shape(a, "a")
    spec.batch_shape(b, "b")
    for key in spec.shapes:
        if a[key].shape != b[key].shape:
            raise ValueError(f"{key!r}: a has shape {tuple(a[key].shape)}, b has {tuple(b[key].shape)}")
        if a[key].dtype != b[key].dtype:
            raise ValueError(f"{key!r}: a is {a[key].dtype}, b is {b[key].dtype}")
    if batch.numel() < 1:
        raise ValueError("nothing to match: no pairs")
    return batch


def match_pairs(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    chunk: int | None,
    solve: Callable[[Weights, Weights, dict[str, Tensor]], Found],
    start: Permutation | None = None,
) -> Matching:
    """Match pairs (*batch) by ``solve``, which takes ``chunk`` of them at once and their indices to start from.

    On a CPU several chunks are matched at once, one by each thread.
    """
    begun = time.perf_counter()
    batch = check_pairs(spec, a, b)
    pairs = batch.numel()
    flat_a, flat_b = (
        {key: t.detach().reshape(pairs, *t.shape[len(batch) :]) for key, t in weights.items()} for weights in (a, b)
    )
    device = flat_a[next(iter(spec.shapes))].device
    # On a CPU every thread takes pairs of its own: together they would wait for the slowest.
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    chunk = (1 if device.type == "cpu" else pairs) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"nothing to match: {chunk} pairs at once")
    begin = (Permutation.identity(spec, batch, device) if start is None else start).indices
    begin = {g: i.expand(*batch, *spec.index_shape(g)).reshape(pairs, *spec.index_shape(g)) for g, i in begin.items()}

    def solve_chunk(at: int) -> Found:
        rows = slice(at, at + chunk)
        some = ({key: t[rows] for key, t in weights.items()} for weights in (flat_a, flat_b))
        return solve(*some, {group: i[rows].clone() for group, i in begin.items()})

    starts = range(0, pairs, chunk)
    found = []
    with track(pairs if len(starts) > 1 else 0, f"match {pairs} pairs", "pair") as bar:
        for part in _in_threads(solve_chunk, starts, threads):
            found.append(part)
            bar.update(len(part.sweeps))
    longest = max(part.history.shape[-1] for part in found)
    # Pairs that were done early keep their last objective.
    paths = [torch.cat([p.history, p.history[:, -1:].expand(-1, longest - p.history.shape[1])], 1) for p in found]
    index = {g: torch.cat([p.index[g] for p in found]).reshape(*batch, *spec.index_shape(g)) for g in spec.sizes}
    objective, sweeps = (
        torch.cat([getattr(p, name) for p in found]).reshape(batch) for name in ("objective", "sweeps")
    )
    history = torch.cat(paths).reshape(*batch, longest)
    return Matching(Permutation(spec, index), objective, sweeps, history, time.perf_counter() - begun)


def _in_threads(function: Callable[[int], Found], arguments: Sequence[int], threads: int) -> Iterator[Found]:
    """``function`` of each argument, in order, by so many threads at once, each of which computes with one."""
    if threads == 1 or len(arguments) == 1:
        yield from map(function, arguments)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, arguments)
    finally:
        torch.set_num_threads(threads)  # which a thread sets for those that come after it, too


class Found(NamedTuple):
    """What was found for some pairs: indices, objective, sweeps (pairs,) and history (pairs, 1 + sweeps)."""

    index: dict[str, Tensor]
    objective: Tensor
    sweeps: Tensor
    history: Tensor


def _coordinate_descent(
    spec: PermutationSpec, a: Weights, b: Weights, index: dict[str, Tensor], seed: int, max_sweeps: int
) -> Found:
    """Algorithm 1 for weights (pairs, ...) from ``index``, all pairs side by side, the finished ones masked."""
    history = [inner_product(spec, a, Permutation(spec, index).apply(b))]
    a, b = ({key: spec.view(key, weights[key]) for key in spec.weights} for weights in (a, b))
    pairs, device = len(history[0]), history[0].device
    families = list(spec.families.items())
    scores = [_Scores(spec, a, b, members) for _, members in families]
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
            moved = rows[taken & torch.stack([(flat[g][rows] != new_flat[g]).any(-1) for g in members]).any(0)]
            gained[rows] += gain.where(taken, 0)
            for member in members:
                index[member][rows[taken]] = new[member][taken]
            for other in scores:
                other.mark(members, moved)
        sweeps += active
        history.append(history[-1] + gained)
        active = active & (gained > TOLERANCE)
    return Found(index, history[-1], sweeps, torch.stack(history, -1))


class _Scores:
    """What each assignment of a group is worth, given the other groups: kept per pair until a neighbour moves.

    The groups within its blocks are assigned together with it: ``members`` are itself and those.
    """

    def __init__(self, spec: PermutationSpec, a: Weights, b: Weights, members: list[str]) -> None:
        self.a, self.b = a, b
        terms = [
            (key, part, [other for other in spec.parts[key] if other.axis != part.axis])
            for key in spec.weights
            for part in spec.parts[key]
            if part.group in members
        ]
        # A weight with the group on two axes is worth a product of permutations, which an assignment may lessen.
        self.coupled = any(other.group in members for _, _, others in terms for other in others)
        self.parts = {key: spec.parts[key] for key, _, _ in terms}
        some = a[terms[0][0]]
        # Terms whose other axes never move are one constant; the rest are kept apart, each with its own neighbours.
        self.constant = {part.group: some.new_zeros(len(some), *[spec.units(part.group)] * 2) for _, part, _ in terms}
        for key, part, others in terms:
            if not others:
                self.constant[part.group] += gram(a[key], b[key], part)
        self.terms = [term for term in terms if term[2]]
        self.values = [torch.empty_like(self.constant[part.group]) for _, part, _ in self.terms]
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
        total = {group: constant.index_select(0, rows) for group, constant in self.constant.items()}
        for value, old, (key, part, others) in zip(self.values, self.old, self.terms, strict=True):
            again = rows[old[rows]]
            if len(again):
                here = {other.group: flat[other.group][again] for other in others}
                a, b = (weights[key].index_select(0, again) for weights in (self.a, self.b))
                value.index_copy_(0, again, gram(a, permute(b, others, here, b.ndim - 1), part))
                old[again] = False
            total[part.group] += value.index_select(0, rows)
        self.stale[rows] = False
        return total

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
            b = permute(self.b[key][rows], parts, flat, self.b[key].ndim - 1)
            total += (self.a[key][rows] * b).flatten(1).sum(-1, dtype=torch.float64)
        return total


def gram(a: Tensor, b: Tensor, part: Part) -> Tensor:
    """Inner products of the units of ``part`` in two tensors (pairs, ...): (pairs, units, units)."""
    rows, columns = by_unit(a, part), by_unit(b, part)
    return rows @ columns.transpose(1, 2)


def by_unit(tensor: Tensor, part: Part) -> Tensor:
    """What each unit of ``part`` holds of a tensor (pairs, ...): (pairs, units, copies times everything else)."""
    units, copies = part.positions.shape
    whole = (units, copies) == (tensor.shape[part.axis + 1], 1) and torch.equal(
        part.positions.squeeze(-1), torch.arange(units)
    )
    if not whole:
        tensor = tensor.index_select(part.axis + 1, part.positions.flatten().to(tensor.device))
    return tensor.movedim(part.axis + 1, 1).reshape(len(tensor), units, -1)
