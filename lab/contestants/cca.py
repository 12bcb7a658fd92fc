"""CCA Merge: the units of one network as mixtures of another's, by canonical correlations."""

from __future__ import annotations

import torch
from torch import Tensor

from lab.contestants.arena import Arena, Entry, with_own_heads
from rebasin import Permutation, PermutationSpec, Slots, mean
from rebasin.fitting.alignment import UnitSums, unit_sums
from rebasin.spec import Part
from rebasin.weights import Weights, stack, take

RIDGE = 0.1  # added to both covariances, in mean variances of a unit; the authors' is 0.1 whatever the scale
LEAST = 1e-6  # a correlation far below any that images can show


def merged_by_canonical_correlations(arena: Arena, size: float) -> Entry | None:
    """CCA Merge (Horoi et al. 2024): every parent is mapped to the first by dense matrices, and the mean is taken.

    No matrix but a permutation of positive scales passes through a ReLU, so that a mapped parent is another function
    than it was. None above size 1, and for networks with more than linear layers and convolutions of one group between
    their units: norms, or attention.
    """
    if size != 1 or not _is_linear_between_units(arena):
        return None
    sums = unit_sums(arena.grams)
    mapped = [take(arena.parents, 0)]
    for m in range(1, arena.n):
        maps = {group: canonical_map(of_group, arena.n, m) for group, of_group in sums.items()}
        mapped.append(map_units(arena.spec, take(arena.parents, m), maps))
    parents = stack(mapped)
    merged = mean(parents)
    sizes = arena.sizes(Slots.of_permutation(Permutation.identity(arena.spec, (arena.n,))))
    return Entry(with_own_heads(arena, (merged,), parents), **sizes, weights=merged, parents=parents)


def _is_linear_between_units(arena: Arena) -> bool:
    layers = arena.grams.layers.values()
    known = {layer.weight for layer in layers} | {layer.bias for layer in layers}
    moved = {key for key, parts in arena.spec.parts.items() if parts}
    return moved <= known and not arena.spec.inside and all(layer.blocks == 1 for layer in layers)


def canonical_map(sums: UnitSums, n: int, m: int) -> Tensor:
    """The matrix (units, units) that makes values of model ``m``'s units those of model 0's units, as well as it can.

    The values are whitened, turned so that they correlate most with those of model 0, and given its covariance.
    """
    covariance = sums.covariance.unflatten(1, (n, -1)).unflatten(0, (n, -1))  # (n, units, n, units)
    first, between, second = covariance[0, :, 0], covariance[0, :, m], covariance[m, :, m]
    to_white, from_white = _power(second, -0.5), _power(first, 0.5)
    # Directions that no image varies in correlate with nothing: they stay as they are.
    correlation = _power(first, -0.5) @ between @ to_white + LEAST * torch.eye(len(first)).to(first)
    left, _, right = torch.linalg.svd(correlation)
    return from_white @ left @ right @ to_white


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """A power of a covariance (units, units), kept regular by a ridge."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(covariance.dtype).tiny)
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance)).to(covariance))
    return (vectors * values.clamp(min=ridge) ** exponent) @ vectors.T


def map_units(spec: PermutationSpec, weights: Weights, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """One network whose units are mixed by matrices (units, units), and unmixed by what reads them."""
    undone = {group: torch.linalg.pinv(matrix).T for group, matrix in maps.items()}
    mapped = {}
    for key, tensor in weights.items():
        mixed = tensor.double()
        for part in spec.parts[key]:
            mixed = _mix(mixed, part, maps[part.group] if part.axis == 0 else undone[part.group])
        mapped[key] = mixed.to(tensor)
    return mapped


def _mix(tensor: Tensor, part: Part, matrix: Tensor) -> Tensor:
    by_slice = tensor.movedim(part.axis, 0).clone()
    of_units = by_slice[part.positions]  # (units, copies, ...)
    by_slice[part.positions] = torch.tensordot(matrix.to(tensor), of_units, 1)
    return by_slice.movedim(0, part.axis)
