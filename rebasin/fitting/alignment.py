"""Which units of n models answer alike, from the Gram matrices of what their layers read: no input is read again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rebasin.arguments import check_choice
from rebasin.expanding.layout import whole
from rebasin.fitting.grams import Grams, check_grams
from rebasin.fitting.rows import layers_of
from rebasin.matching.by_activations import Similarity
from rebasin.matching.scores import assign_all
from rebasin.permutation import Permutation, flatten
from rebasin.spec import Part, PermutationSpec

# Of a unit's mean square, what rounding in float32 leaves of a variance that is none.
ROUNDING = 16 * torch.finfo(torch.float32).eps
MOST_ROUNDS = 100


@dataclass(frozen=True, eq=False)
class UnitSums:
    """Sums of a group's values over inputs and places: ``products`` (n units, n units), ``sums`` (n units,), ``count``.

    Rows are the units of model 0, those of all blocks taken together, then those of model 1, and so on.
    """

    products: Tensor
    sums: Tensor
    count: float

    def __add__(self, other: UnitSums) -> UnitSums:
        return UnitSums(self.products + other.products, self.sums + other.sums, self.count + other.count)

    @property
    def covariance(self) -> Tensor:
        """The covariance of all units of all models; 0 with units that never vary."""
        covariance = (self.products - torch.outer(self.sums, self.sums) / self.count) / self.count
        varies = covariance.diagonal() > ROUNDING * self.products.diagonal() / self.count
        return covariance * varies * varies.unsqueeze(-1)

    @property
    def correlation(self) -> Tensor:
        """The correlation of all units of all models; 0 with units that never vary."""
        covariance = self.covariance
        deviation = covariance.diagonal().sqrt()
        scale = torch.outer(deviation, deviation)
        return torch.where(scale > 0, covariance / scale, 0)


def unit_sums(grams: Grams) -> dict[str, UnitSums]:
    """For each group, the sums over the values that layers read, or where none reads them, that layers give.

    Of a convolution's window the middle is taken. Values that several layers read count once.
    """
    sums: dict[str, UnitSums] = {}
    counted: set[tuple[str, object]] = set()
    for node, (key, _) in layers_of(grams.program).items():
        for part in grams.spec.parts[key]:
            # A layer that is used twice has one Gram matrix for both.
            if part.axis == 1 and not counted & {(part.group, node.args[0]), (part.group, key)}:
                counted |= {(part.group, node.args[0]), (part.group, key)}
                of_layer = _values_read(grams, key, part)
                sums[part.group] = sums[part.group] + of_layer if part.group in sums else of_layer
    given: dict[str, UnitSums] = {}
    for key in grams.layers:
        for part in grams.spec.parts[key]:
            if part.axis == 0 and part.group not in sums:
                of_layer = _values_given(grams, key, part)
                given[part.group] = given[part.group] + of_layer if part.group in given else of_layer
    return sums | given


def match_grams(grams: Grams, *, similarity: Similarity = "correlation") -> Permutation:
    """Match the units of n models by what they answer: (n,), of which the first stays as it is.

    ``similarity`` is that of ``activation_matching``, computed from the Gram matrices. More than two models are matched
    in turn, each to all others, until none moves: MergeMany (Git Re-Basin, Algorithm 3) on activations. Raises
    ValueError for a group whose values no linear layer or convolution reads or gives.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> match_grams(rebasin.collect(spec, models, torch.randn(100, 3)))
    Permutation(1 group, 8 units, batch (2,))
    """
    check_grams(grams, "match_grams(grams)")
    check_choice(similarity, "similarity", get_args(Similarity))
    spec, n = grams.spec, grams.n
    scores = {}
    for group, sums in unit_sums(grams).items():
        matrix = sums.correlation if similarity == "correlation" else sums.products
        scores[group] = matrix.unflatten(1, (n, -1)).unflatten(0, (n, -1)).transpose(1, 2)  # (n, n, units, units)
    for group in spec.sizes:
        if group not in scores and not spec.within(group):
            raise ValueError(f"no layer reads or gives the units of {group!r}: match these models by their weights")
    index = {group: units.clone() for group, units in Permutation.identity(spec, (n,)).indices.items()}
    matched = [0]
    for m in range(1, n):
        _match_one(spec, scores, index, m, matched)
        matched.append(m)
    for _ in range(MOST_ROUNDS if n > 2 else 0):
        moved = False
        for m in range(1, n):
            others = [k for k in range(n) if k != m]
            moved |= _match_one(spec, scores, index, m, others)
        if not moved:
            break
    return Permutation(spec, index)


def correlations(grams: Grams) -> dict[str, Tensor]:
    """How alike all units of all models are, as they stand: (n units, n units) by group, as ``zip_slots`` takes it.

    Groups are those that lie in no other. Two blocks are as alike as their units are on average, the first unit of one
    with the first of the other, and so on.
    """
    spec = grams.spec
    alike: dict[str, list[Tensor]] = defaultdict(list)
    for group, sums in unit_sums(grams).items():
        own = spec.sizes[group] if group in spec.inside else 1
        in_blocks = sums.correlation.unflatten(1, (-1, own)).unflatten(0, (-1, own))  # (blocks, units, blocks, units)
        alike[spec.inside.get(group, group)].append(in_blocks.diagonal(dim1=1, dim2=3).mean(2))
    return {group: torch.stack(matrices).mean(0) for group, matrices in alike.items()}


def mismatch(grams: Grams, permutation: Permutation) -> dict[str, Tensor]:
    """What merging each unit of the permuted models costs the layers that read it: (units,) by group, 0 or more.

    It is the variance that is lost when the models' values of a unit are replaced by their mean, times the squares of
    the weights that read it, as a share of the variance of what the layer gives. Groups are those that lie in no
    other; the units of a block are added up. Groups that no layer reads are left out.
    """
    spec, n = grams.spec, grams.n
    lost: dict[str, Tensor] = {}
    for key in grams.layers:
        parts = [part for part in spec.parts[key] if part.axis == 1]
        weight = spec.view(key, grams.weights[key]).double()  # (n, out, in, ...)
        given = _values_given(grams, key).covariance.diagonal().sum() / n if parts else 0.0
        for part in parts:
            covariance = _unit_by_unit(spec, part.group, _values_read(grams, key, part).covariance, permutation)
            apart = covariance.diagonal(dim1=1, dim2=2).mean(1) - covariance.mean((1, 2))
            squares = (
                weight.square().sum(1).reshape(n, weight.shape[2], -1).sum(2)[:, part.positions].sum(2)
            )  # (n, units)
            moved = squares.take_along_dim(permutation.flat[part.group].to(squares.device), 1).mean(0)
            share = _by_block(spec, part.group, apart.clamp(min=0) * moved / given if given > 0 else apart * 0).sum(1)
            group = spec.inside.get(part.group, part.group)
            lost[group] = lost[group] + share if group in lost else share
    return lost


def _match_one(
    spec: PermutationSpec, scores: Mapping[str, Tensor], index: dict[str, Tensor], m: int, others: list[int]
) -> bool:
    """Match one model to others, as they are permuted by now; whether it moved to something better."""
    flat = flatten(spec, index)
    to_others = {}
    for group, matrix in scores.items():
        rows = [matrix[k, m][flat[group][k].to(matrix.device)] for k in others]
        to_others[group] = torch.stack(rows).sum(0, keepdim=True)  # (1, units, units)
    best = {group: units.squeeze(0).to(index[group]) for group, units in assign_all(spec, to_others).items()}
    own = {group: units[m] for group, units in index.items()}
    if _worth(spec, to_others, best) <= _worth(spec, to_others, own) * (1 + 1e-9):
        return False
    for group, units in best.items():
        index[group][m] = units
    return True


def _worth(spec: PermutationSpec, scores: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> float:
    """The sum of the scores (1, units, units) that a permutation takes."""
    flat = flatten(spec, index)
    return sum(
        float(matrix[0].take_along_dim(flat[g].to(matrix.device)[:, None], 1).sum()) for g, matrix in scores.items()
    )


def _unit_by_unit(spec: PermutationSpec, group: str, matrix: Tensor, permutation: Permutation) -> Tensor:
    """Of a matrix (n units, n units), the entries of each unit of the permuted models with itself: (units, n, n)."""
    units = spec.units(group)
    n = len(matrix) // units
    rows = permutation.flat[group].to(matrix.device) + units * torch.arange(n, device=matrix.device).unsqueeze(-1)
    return matrix[rows.T.unsqueeze(2), rows.T.unsqueeze(1)]


def _by_block(spec: PermutationSpec, group: str, values: Tensor) -> Tensor:
    """Values of units (units,), those of each block in a row; of other groups a row each."""
    return values.unflatten(0, (-1, spec.sizes[group] if group in spec.inside else 1))


def _values_read(grams: Grams, key: str, part: Part) -> UnitSums:
    """The sums over the values of a part's units that a layer reads."""
    layer = grams.layers[key]
    gram, kernel = layer.gram.sum(0), grams.weights[key][0, 0, 0].numel()
    positions = part.positions.to(gram.device) * kernel + kernel // 2  # (units, copies), the middle of each window
    readers = 1 if layer.alike else grams.n
    return _chosen(gram[:-1, :-1], gram[:-1, -1], grams.n, readers, positions, float(layer.rows.sum()))


def _values_given(grams: Grams, key: str, part: Part | None = None) -> UnitSums:
    """The sums over the values of a part's units that a layer gives; of all its outputs without one."""
    layer, weight = grams.layers[key], torch.stack([whole(one, grams.layers[key].blocks) for one in grams.weights[key]])
    gram, outputs = layer.gram.sum(0), weight.shape[1]
    columns = (len(gram) - 1) // (1 if layer.alike else grams.n)
    values = gram.new_zeros(grams.n, outputs, len(gram))  # each output as a linear function of columns and constant
    for m in range(grams.n):
        first = 0 if layer.alike else m * columns
        values[m, :, first : first + columns] = weight[m].flatten(1)
    if layer.bias is not None:
        values[..., -1] = grams.weights[layer.bias]
    flat = values.flatten(0, 1)
    positions = torch.arange(outputs).unsqueeze(-1) if part is None else part.positions
    products = flat @ gram @ flat.T
    return _chosen(products, flat @ gram[:, -1], grams.n, grams.n, positions.to(gram.device), float(layer.rows.sum()))


def _chosen(products: Tensor, sums: Tensor, n: int, readers: int, positions: Tensor, rows: float) -> UnitSums:
    """The sums of units that own the slices ``positions`` (units, copies) of each of n models.

    There are the slices of as many ``readers``: of the n, or of one, where all have the same values.
    """
    units, copies = positions.shape
    first = len(products) // readers * torch.arange(n, device=products.device).clamp(max=readers - 1)
    at = first[:, None, None] + positions  # (n, units, copies)
    total = products.new_zeros(n * units, n * units)
    for copy in at.flatten(0, 1).T:
        total += products[copy.unsqueeze(-1), copy]
    return UnitSums(total, sums[at].sum(2).flatten(), rows * copies)
