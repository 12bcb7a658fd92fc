"""Scores of units against units, and the assignment that is best by them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rebasin.assignment import solve_assignment
from rebasin.spec import Part, PermutationSpec
from rebasin.weights import Weights, real


def viewed(spec: PermutationSpec, weights: Weights) -> dict[str, Tensor]:
    """The entries that are weights, in real numbers, grouped convolutions made whole."""
    return {key: real(spec.view(key, weights[key])) for key in spec.weights}


def assign(spec: PermutationSpec, group: str, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best permutations of a group and of those within its blocks, (batch, *index_shape) each.

    ``scores[g]`` is (batch, units, units): what it is worth that unit i of the first network meets unit j of the
    second. Blocks are worth what their units are under the best permutation within them.
    """
    inner = spec.within(group)
    if not inner:
        return {group: solve_assignment(scores[group])}
    blocks = spec.sizes[group]
    total, best = scores.get(group, torch.zeros(())), {}
    for name in inner:
        n = spec.sizes[name]
        pairs = scores[name].unflatten(-1, (blocks, n)).unflatten(-3, (blocks, n)).transpose(-3, -2)
        best[name] = solve_assignment(pairs)  # (batch, blocks, blocks, units)
        total = total + torch.take_along_dim(pairs, best[name].unsqueeze(-1), -1).sum((-2, -1))
    index = solve_assignment(total)
    meeting = index[..., None, None]
    return {group: index, **{g: torch.take_along_dim(b, meeting, -2).squeeze(-2) for g, b in best.items()}}


def assign_all(spec: PermutationSpec, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best permutations of all groups that have scores, by ``assign``; of blocks, those within may suffice."""
    index: dict[str, Tensor] = {}
    for group, members in spec.families.items():
        told = {member: scores[member] for member in members if member in scores}
        if told:
            index |= assign(spec, group, told)
    return index


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
