"""Activation matching: units that answer alike to the same inputs are matched."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rebasin.graph import AFFINE, NORMS, each_model, export, operator, run, weight_keys
from rebasin.matching.pairs import Matching, check_pairs, inner_product
from rebasin.matching.scores import assign_all
from rebasin.permutation import Permutation, flatten
from rebasin.progress import track
from rebasin.spec import Part, PermutationSpec
from rebasin.weights import Weights

Sums = dict[str, dict[str, Tensor]]


@torch.no_grad()
def activation_matching(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    model: nn.Module,
    loader: Iterable[Any],
    similarity: Literal["inner product", "correlation"] = "inner product",
) -> Matching:
    """Match each ``b`` to its ``a`` by what their units answer (Git Re-Basin, section 3.1).

    The scores of two units are the inner product, or the correlation, of their values over all inputs and places: the
    values that the layers after them read, or where no layer reads a group, as inside attention, those that the layer
    before gives. ``a`` and ``b`` are weights of ``model`` with the same leading axes (*batch). ``loader`` gives inputs,
    or tuples that begin with them, and is read once; memory is bounded by widths and by one batch. ``history`` is the
    scores' sum under the identity and at the end. Raises ValueError if the weights do not fit, if the loader gives
    nothing, or for a group whose values no layer reads or gives.
    """
    begun = time.perf_counter()
    batch = check_pairs(spec, a, b)
    if similarity not in ("inner product", "correlation"):
        raise ValueError(f"similarity is 'inner product' or 'correlation', not {similarity!r}")
    flat_a, flat_b = ({key: t.flatten(0, len(batch) - 1) if batch else t[None] for key, t in w.items()} for w in (a, b))
    sums: Sums = {}
    programs: dict[tuple[int, ...], torch.export.ExportedProgram] = {}  # a graph is of one shape of inputs
    total = len(loader) if isinstance(loader, Sized) else 0
    with track(total, "activations", "batch") as bar:
        for each in loader:
            inputs = each[0] if isinstance(each, tuple | list) else each
            if inputs.shape not in programs:
                programs[inputs.shape] = export(model, (inputs,))
            for group, found in _sums(spec, programs[inputs.shape], flat_a, flat_b, inputs).items():
                held = sums.setdefault(group, {})
                held |= {name: held.get(name, 0) + value for name, value in found.items()}
            bar.update()
    if not programs:
        raise ValueError("the loader gave no batches")
    precision = max(torch.finfo(flat_a[key].dtype).eps for key in spec.weights)
    scores = {
        g: _correlation(found, precision) if similarity == "correlation" else found["ab"] for g, found in sums.items()
    }
    index = assign_all(spec, scores)
    unmoved = Permutation.identity(spec, (batch.numel(),)).flat
    nothing = torch.zeros(batch.numel(), dtype=torch.float64, device=next(iter(flat_a.values())).device)
    history = [nothing + _worth(scores, flat) for flat in (unmoved, flatten(spec, index))]
    permutation = Permutation(spec, {g: i.reshape(*batch, *spec.index_shape(g)) for g, i in index.items()})
    return Matching(
        permutation,
        inner_product(spec, a, permutation.apply(b)),
        torch.ones(batch, dtype=torch.int64),
        torch.stack(history, -1).reshape(*batch, 2),
        time.perf_counter() - begun,
    )


def _sums(spec: PermutationSpec, program: torch.export.ExportedProgram, a: Weights, b: Weights, inputs: Tensor) -> Sums:
    """For each group, sums over inputs and places of a batch, (pairs, ...) in float64.

    ``ab`` (units, units) of products of a's and b's values, ``a``, ``b``, ``aa`` and ``bb`` (units, 1) of the values
    and of their squares, ``n`` of ones.
    """
    sites = _sites(spec, program)

    def values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = defaultdict(list)

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            for part, reads in sites.get(node, ()):
                seen = (args[0] if reads else value).movedim(AFFINE[operator(node)][0], 0)
                positions = part.positions.flatten().to(seen.device)
                wide = seen.to(torch.promote_types(seen.dtype, torch.float32))  # sums of half numbers overflow
                found[part.group].append(wide.index_select(0, positions).reshape(len(part.positions), -1))
            return value

        run(program, weights, (inputs,), visit)
        return {group: torch.cat(seen, 1) for group, seen in found.items()}

    def of_pair(a: dict[str, Tensor], b: dict[str, Tensor]) -> Sums:
        values_a, values_b = values(a), values(b)
        sums = {}
        for group, x in values_a.items():
            y = values_b[group]
            found = {"ab": x @ y.T, "a": x.sum(1, True), "b": y.sum(1, True), "n": torch.ones_like(x[:1]).sum(1, True)}
            found |= {"aa": x.square().sum(1, True), "bb": y.square().sum(1, True)}
            sums[group] = {name: value.double() for name, value in found.items()}
        return sums

    # One pair at a time: its activations on a batch are the largest thing in memory.
    return each_model(of_pair)(dict(a), dict(b))


def _sites(
    spec: PermutationSpec, program: torch.export.ExportedProgram
) -> dict[torch.fx.Node, list[tuple[Part, bool]]]:
    """Where in the graph the values of each group are seen: at which nodes, and whether as what they read."""
    keys = weight_keys(program)
    layers = [
        (node, part)
        for node in program.graph.nodes
        if operator(node) in AFFINE and operator(node) not in NORMS and node.args[1] in keys
        for part in spec.parts[keys[node.args[1]]]
    ]
    seen = {part.group for _, part in layers}
    read = {part.group for _, part in layers if part.axis == 1}
    for group in spec.sizes:
        if group not in seen and not spec.within(group):
            raise ValueError(f"no layer reads or gives the units of {group!r}: match this network by its weights")
    sites: dict[torch.fx.Node, list[tuple[Part, bool]]] = defaultdict(list)
    counted = set()
    for node, part in layers:
        # Several layers may read the same values, which count once.
        values = (part.group, node.args[0])
        if part.axis == 1 and values not in counted:
            counted.add(values)
            sites[node].append((part, True))
        elif part.axis == 0 and part.group not in read:
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
    return sum(
        torch.take_along_dim(matrix, flat[group].unsqueeze(-1).to(matrix.device), -1).sum((-2, -1))
        for group, matrix in scores.items()
    )
