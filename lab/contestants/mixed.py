"""MuDSC: units are matched by their weights and by what they answer at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lab.contestants.arena import Arena, Entry
from lab.contestants.whole import averaged
from rebasin import Permutation, PermutationSpec
from rebasin.fitting.alignment import unit_sums
from rebasin.matching.scores import assign, by_unit
from rebasin.permutation import flatten, permute
from rebasin.weights import Weights, take

SHARE = 0.5  # of the weights in the score; the authors choose it by accuracy on training images
MOST_ROUNDS = 20


def matched_by_both(arena: Arena, size: float) -> Entry | None:
    """MuDSC (Xu et al. 2024) with permutations: the score is half the correlation of weights, half that of answers.

    None above size 1, and for more than two networks.
    """
    if size != 1 or arena.n > 2:
        return None
    first, second = take(arena.parents, 0), take(arena.parents, 1)
    answers = {}
    for group, sums in unit_sums(arena.grams).items():
        units = len(sums.products) // 2
        answers[group] = sums.correlation[:units, units:]
    return averaged(arena, match_by_both(arena.spec, first, second, answers, seed=arena.seed))


def match_by_both(
    spec: PermutationSpec, a: Weights, b: Weights, answers: Mapping[str, Tensor], *, seed: int
) -> Permutation:
    """The permutation (2,) that leaves a and matches b to it; ``answers`` (units, units) are correlations, by group.

    A round gives each group, in random order, the best permutation by the mixed score, while the others are held. It
    ends with a round in which nothing moves, or after 20.
    """
    a, b = ({key: spec.view(key, weights[key]).unsqueeze(0) for key in spec.weights} for weights in (a, b))
    index = dict(Permutation.identity(spec, (1,)).indices)
    families = list(spec.families.items())
    order = np.random.default_rng(seed)
    for _ in range(MOST_ROUNDS):
        moved = False
        for position in order.permutation(len(families)):
            group, members = families[position]
            flat = flatten(spec, index)
            scores = {
                member: SHARE * _correlation_of_weights(spec, a, b, flat, member)
                + (1 - SHARE) * answers[member].unsqueeze(0)
                for member in members
                if member in answers
            }
            for member, best in assign(spec, group, scores).items():
                moved |= not torch.equal(best, index[member])
                index[member] = best
        if not moved:
            break
    first = Permutation.identity(spec, (1,))
    return Permutation(spec, {group: torch.cat([first.indices[group], units]) for group, units in index.items()})


def _correlation_of_weights(
    spec: PermutationSpec, a: Weights, b: Weights, flat: Mapping[str, Tensor], group: str
) -> Tensor:
    """The correlation of all weights of each unit of a and of b, whose other groups are permuted: (1, units, units)."""
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for key in spec.weights:
        for part in spec.parts[key]:
            if part.group == group:
                others = [other for other in spec.parts[key] if other.axis != part.axis]
                rows[0].append(by_unit(a[key], part))
                rows[1].append(by_unit(permute(b[key], others, flat, b[key].ndim - 1), part))
    first, second = (torch.nn.functional.normalize(_centred(torch.cat(own, -1).double()), dim=-1) for own in rows)
    return first @ second.transpose(1, 2)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)
