"""Activation matching: units that answer alike to the same inputs are matched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rebasin.arguments import check_choice
from rebasin.graph import AFFINE, LAYERS, NORMS, Programs, each_model, layer_weight, operator, run, weight_keys
from rebasin.inner_products import inner_product
from rebasin.inputs import Inputs
from rebasin.matching.batches import Loader, batches_of
from rebasin.matching.pairs import ALL_AT_ONCE, Matching, Solution, match_pairs
from rebasin.matching.scores import assign_all
from rebasin.permutation import Permutation, flatten
from rebasin.spec import Part, PermutationSpec
from rebasin.weights import Models, Weights, check_device, check_module, over

Similarity = Literal["inner product", "correlation"]
Sums = dict[str, dict[str, Tensor]]


def activation_matching(
    spec: PermutationSpec,
    a: Models,
    b: Models,
    *,
    model: nn.Module,
    loader: Loader,
    similarity: Similarity = "inner product",
) -> Matching:
    """Match each ``b`` to its ``a`` by what their units answer to the same inputs (Git Re-Basin, section 3.1).

    ``a`` and ``b`` are those of ``weight_matching``; they are weights of ``model``, which is taken as in evaluation.
    ``loader`` gives batches of inputs, or tuples that begin with them, and is read once; one tensor is one batch.
    Several inputs are a tuple of tensors, or a dict of them by their names. Memory is bounded by the widths and by one
    batch.

    The score of two units is the inner product, or the correlation, of their values over all inputs and places: the
    values that the layers after them read, or where no layer reads a group, as inside attention, those that the layer
    before gives. There is one sweep; ``maximised_by_sweep`` is the scores' sum under the identity and at the end.

    Raises ValueError if the weights do not fit, lie on another device than model or data, if the loader gives nothing,
    or for a group whose values no layer reads or gives.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> other = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> activation_matching(spec, model, other, model=model, loader=torch.randn(100, 3)).sweeps
    tensor(1)
    """
    check_choice(similarity, "similarity", get_args(Similarity))
    check_module(model, "activation_matching(..., model=model)", "model")

    def solve(a: Weights, b: Weights, identity: dict[str, Tensor]) -> Solution:
        check_device(model, a)
        return _match_values(spec, a, b, identity, model, loader, similarity)

    return match_pairs(spec, a, b, solve, ALL_AT_ONCE)


@torch.no_grad()
def _match_values(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    identity: dict[str, Tensor],
    model: nn.Module,
    loader: Loader,
    similarity: Similarity,
) -> Solution:
    """Activation matching for weights (pairs, ...), all pairs side by side."""
    sums: Sums = {}
    programs = Programs(model)
    for inputs, *_ in batches_of(loader, a, "activations"):
        for group, of_batch in _sums(spec, programs.of(inputs), a, b, inputs).items():
            total = sums.setdefault(group, {})
            for name, value in of_batch.items():
                total[name] = total.get(name, 0) + value
    if similarity == "correlation":
        precision = max(torch.finfo(a[key].dtype).eps for key in spec.weights)
        scores = {group: _correlation(total, precision) for group, total in sums.items()}
    else:
        scores = {group: total["ab"] for group, total in sums.items()}
    index = assign_all(spec, scores)
    objective = [inner_product(spec, a, b), inner_product(spec, a, Permutation(spec, index).apply(b))]
    worth = [torch.zeros_like(objective[0]) + _worth(scores, flatten(spec, some)) for some in (identity, index)]
    sweeps = torch.ones_like(objective[0], dtype=torch.int64)
    return Solution(index, objective[1], sweeps, torch.stack(objective, -1), torch.stack(worth, -1))


def _sums(spec: PermutationSpec, program: torch.export.ExportedProgram, a: Weights, b: Weights, inputs: Inputs) -> Sums:
    """For each group, sums over inputs and places of a batch, (pairs, ...) in float64.

    ``ab`` (units, units) of products of a's and b's values, ``a``, ``b``, ``aa`` and ``bb`` (units, 1) of the values
    and of their squares, ``n`` of ones.
    """
    sites = _sites(spec, program)

    def values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = defaultdict(list)

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            for part, reads in sites.get(node, ()):
                read = args[1 if operator(node) == "addmm" else 0]
                answers = (read if reads else value).movedim(LAYERS[operator(node)][0], 0)
                positions = part.positions.flatten().to(answers.device)
                wide = answers.to(torch.promote_types(answers.dtype, torch.float32))  # sums of half numbers overflow
                seen[part.group].append(wide.index_select(0, positions).reshape(len(part.positions), -1))
            return value

        run(program, weights, inputs, visit)
        return {group: torch.cat(answers, 1) for group, answers in seen.items()}

    def of_pair(a: dict[str, Tensor], b: dict[str, Tensor]) -> Sums:
        values_a, values_b = values(a), values(b)
        sums = {}
        for group, x in values_a.items():
            y = values_b[group]  # (units, inputs and places)
            products = {
                "ab": x @ y.T,
                "a": x.sum(1, True),
                "b": y.sum(1, True),
                "aa": x.square().sum(1, True),
                "bb": y.square().sum(1, True),
                "n": torch.ones_like(x[:1]).sum(1, True),
            }
            sums[group] = over(products, Tensor.double)
        return sums

    # One pair at a time: its activations on a batch are the largest thing in memory.
    return each_model(of_pair)(dict(a), dict(b))


def _sites(
    spec: PermutationSpec, program: torch.export.ExportedProgram
) -> dict[torch.fx.Node, list[tuple[Part, bool]]]:
    """Where in the graph the values of each group are seen: at which nodes, and whether as what they read."""
    keys = weight_keys(program)
    layers: list[tuple[torch.fx.Node, Part, bool]] = []  # a layer, and units that it reads, or gives
    for node in program.graph.nodes:
        if operator(node) in LAYERS and operator(node) not in NORMS:
            weight, gives = layer_weight(node)
            if weight in keys and (operator(node) in AFFINE or weight.meta["val"].ndim == 2):
                parts = spec.parts.get(keys[weight], ())  # constants of the model are no entries
                layers += [(node, part, part.axis != gives) for part in parts if part.axis < 2]
    seen = {part.group for _, part, _ in layers}
    read = {part.group for _, part, reads in layers if reads}
    for group in spec.sizes:
        if group not in seen and not spec.within(group):
            raise ValueError(f"no layer reads or gives the units of {group!r}: match this network by its weights")
    sites: dict[torch.fx.Node, list[tuple[Part, bool]]] = defaultdict(list)
    counted = set()
    for node, part, reads in layers:
        # Several layers may read the same values, which count once.
        values = (part.group, node.args[1 if operator(node) == "addmm" else 0])
        if reads and values not in counted:
            counted.add(values)
            sites[node].append((part, True))
        elif not reads and part.group not in read:
            sites[node].append((part, False))
    return dict(sites)


def _correlation(sums: Mapping[str, Tensor], precision: float) -> Tensor:
    """The correlation of every unit of a with every unit of b, (pairs, units, units); 0 for units that never vary.

    ``precision`` is that of the values: what rounding leaves of a constant unit's variance is no variation.
    """
    n = sums["n"]
    covariance = sums["ab"] - sums["a"] @ sums["b"].transpose(1, 2) / n
    spread_a, spread_b = (sums[2 * name] - sums[name].square() / n for name in "ab")
    varies_a, varies_b = spread_a > 16 * precision * sums["aa"], spread_b > 16 * precision * sums["bb"]
    scale = (spread_a * varies_a) @ (spread_b * varies_b).transpose(1, 2)
    return torch.where(scale > 0, covariance / scale.sqrt(), 0)


def _worth(scores: Mapping[str, Tensor], flat: Mapping[str, Tensor]) -> Tensor:
    """The sum of the scores that these permutations take, (pairs,); 0 of none."""
    total = torch.zeros(())
    for group, matrix in scores.items():
        total = total + torch.take_along_dim(matrix, flat[group].unsqueeze(-1).to(matrix.device), -1).sum((-2, -1))
    return total
