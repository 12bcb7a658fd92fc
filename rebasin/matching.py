"""Weight matching: two models in, the permutation that brings the second closest to the first out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rebasin.assignment import solve_assignment
from rebasin.permutation import Permutation, PermutationSpec, Weights, permute_axis
from rebasin.progress import track

# A sweep that gains no more than this ends the search (the authors' code).
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Matching:
    """What a matcher found for a batch of pairs.

    ``permutation`` is to be applied to the second models. ``objective`` (*batch,) is the inner product
    of the first model's weights with the permuted second's, ``sweeps`` (*batch,) the number of sweeps until one
    gained nothing, ``history`` (*batch, 1 + most sweeps) the objective before the first and after each sweep.
    """

    permutation: Permutation
    objective: Tensor
    sweeps: Tensor
    history: Tensor


def inner_product(spec: PermutationSpec, a: Weights, b: Weights) -> Tensor:
    """The inner product of two weight vectors, in float64: (*batch,) for weights with leading axes ``*batch``."""
    return sum(
        (a[key] * b[key]).flatten(a[key].ndim - len(axes)).sum(-1, dtype=torch.float64)
        if axes
        else (a[key] * b[key]).double()
        for key, axes in spec.axes.items()
    )


def weight_matching(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    seed: int = 0,
    max_sweeps: int = 100,
    chunk: int | None = None,
) -> Matching:
    """Match each ``b`` to its ``a`` by their weights alone (Git Re-Basin, Algorithm 1).

    Coordinate descent from the identity: a sweep visits the groups in random order, and gives each the permutation
    that maximises the inner product of the two weight vectors with all other groups held. A pair is done after a
    sweep without gain, or after ``max_sweeps``.

    ``a`` and ``b`` are weights with the same leading axes (*batch), of which ``chunk`` pairs are matched at once, by
    default all. The visiting order depends on ``seed`` alone and is shared by all pairs, so that a pair's result
    does not depend on its company. Raises ValueError if the weights do not fit the spec or each other.
    """
    batch = spec.batch_shape(a, "a")
    spec.batch_shape(b, "b")
    for key in spec.axes:
        if a[key].shape != b[key].shape:
            raise ValueError(f"{key!r}: a has shape {tuple(a[key].shape)}, b has {tuple(b[key].shape)}")
        if a[key].dtype != b[key].dtype:
            raise ValueError(f"{key!r}: a is {a[key].dtype}, b is {b[key].dtype}")
    pairs = batch.numel()
    chunk = pairs if chunk is None else chunk
    if pairs < 1 or chunk < 1:
        raise ValueError(f"nothing to match: {pairs} pairs, {chunk} at once")
    flat_a, flat_b = (
        {key: t.reshape(pairs, *t.shape[len(batch) :]) for key, t in weights.items()} for weights in (a, b)
    )
    found = []
    with track(pairs if chunk < pairs else 0, f"match {pairs} pairs", "pair") as bar:
        for start in range(0, pairs, chunk):
            rows = slice(start, start + chunk)
            found.append(
                _match(
                    spec,
                    {key: t[rows] for key, t in flat_a.items()},
                    {key: t[rows] for key, t in flat_b.items()},
                    seed,
                    max_sweeps,
                )
            )
            bar.update(len(found[-1].sweeps))
    longest = max(part.history.shape[-1] for part in found)
    # Pairs that were done early keep their last objective.
    paths = [torch.cat([p.history, p.history[:, -1:].expand(-1, longest - p.history.shape[1])], 1) for p in found]
    history = torch.cat(paths).reshape(*batch, longest)
    index = {g: torch.cat([p.index[g] for p in found]).reshape(*batch, n) for g, n in spec.sizes.items()}
    sweeps = torch.cat([p.sweeps for p in found]).reshape(batch)
    return Matching(Permutation(spec, index), history[..., -1], sweeps, history)


class _Found(NamedTuple):
    index: dict[str, Tensor]
    sweeps: Tensor
    history: Tensor


def _match(spec: PermutationSpec, a: Weights, b: Weights, seed: int, max_sweeps: int) -> _Found:
    """Algorithm 1 for weights (pairs, ...), all pairs side by side, the finished ones masked."""
    some = a[next(iter(spec.axes))]
    pairs, device = len(some), some.device
    index = {group: torch.arange(n, device=device).repeat(pairs, 1) for group, n in spec.sizes.items()}
    scores = {group: _Scores(spec, a, b, group) for group in spec.sizes}
    active = torch.ones(pairs, dtype=torch.bool, device=device)
    sweeps = torch.zeros(pairs, dtype=torch.int64, device=device)
    history = [inner_product(spec, a, b)]
    order = np.random.default_rng(seed)
    groups = list(spec.sizes)
    while active.any() and len(history) <= max_sweeps:
        gained = torch.zeros(pairs, dtype=torch.float64, device=device)
        for position in order.permutation(len(groups)):
            group = groups[position]
            # A group none of whose neighbours moved would be given the same permutation again.
            rows = (active & scores[group].stale).nonzero().squeeze(-1)
            if not len(rows):
                continue
            matrix = scores[group].refresh(rows, index)
            old, new = index[group][rows], solve_assignment(matrix)
            value = torch.take_along_dim(matrix, torch.stack([old, new], -1), -1).sum(-2, dtype=torch.float64)
            gained[rows] += value[:, 1] - value[:, 0]
            index[group][rows] = new
            moved = rows[(old != new).any(-1)]
            for other in groups:
                scores[other].mark(group, moved)
        sweeps += active
        history.append(history[-1] + gained)
        active = active & (gained > TOLERANCE)
    return _Found(index, sweeps, torch.stack(history, -1))


class _Scores:
    """What each assignment of one group is worth, given the other groups: kept per pair until a neighbour moves."""

    def __init__(self, spec: PermutationSpec, a: Weights, b: Weights, group: str) -> None:
        self.a, self.b = a, b
        self.terms = [
            (key, axis, [(i, g) for i, g in enumerate(groups) if g is not None and g != group])
            for key, groups in spec.axes.items()
            for axis, name in enumerate(groups)
            if name == group
        ]
        pairs, units = a[self.terms[0][0]].shape[0], spec.sizes[group]
        like = a[self.terms[0][0]]
        # Terms whose other axes never move are one constant; the rest are kept apart, each with its own neighbours.
        self.constant = like.new_zeros(pairs, units, units)
        for key, axis, others in self.terms:
            if not others:
                self.constant += _gram(a[key], b[key], axis)
        self.terms = [term for term in self.terms if term[2]]
        self.values = [torch.empty_like(self.constant) for _ in self.terms]
        self.old = [torch.ones(pairs, dtype=torch.bool, device=like.device) for _ in self.terms]
        self.stale = torch.ones(pairs, dtype=torch.bool, device=like.device)

    def mark(self, moved_group: str, rows: Tensor) -> None:
        """Note that ``moved_group`` has moved in the pairs ``rows``."""
        for old, (_, _, others) in zip(self.old, self.terms, strict=True):
            if any(group == moved_group for _, group in others):
                old[rows] = True
                self.stale[rows] = True

    def refresh(self, rows: Tensor, index: dict[str, Tensor]) -> Tensor:
        """The scores (rows, units, units) of these pairs, recomputing the terms whose neighbours moved."""
        total = self.constant[rows]
        for value, old, (key, axis, others) in zip(self.values, self.old, self.terms, strict=True):
            again = rows[old[rows]]
            if len(again):
                b = self.b[key][again]
                for other, group in others:
                    b = permute_axis(b, index[group][again], other, b.ndim - 1)
                value[again] = _gram(self.a[key][again], b, axis)
                old[again] = False
            total += value[rows]
        self.stale[rows] = False
        return total


def _gram(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Inner products of all slices along ``axis``: (pairs, n, n) from two tensors (pairs, ...)."""
    rows = a.movedim(axis + 1, 1).flatten(2) if a.ndim > 2 else a.unsqueeze(-1)
    columns = b.movedim(axis + 1, 1).flatten(2) if b.ndim > 2 else b.unsqueeze(-1)
    return rows @ columns.transpose(1, 2)
