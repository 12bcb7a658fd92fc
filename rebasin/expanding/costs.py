"""What the layers of a merge cost: the pairs of its units that each multiplies, and the weights that it holds."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rebasin.expanding.expansion import Heads, output_keys
from rebasin.expanding.slots import Slots
from rebasin.graph import AFFINE, export, is_layer, number, operator, weight_keys
from rebasin.inputs import Inputs
from rebasin.spec import PermutationSpec, check_spec

Measure = Literal["structured", "dense", "parameters"]


@dataclass(frozen=True)
class LayerCost:
    """What each pair of a unit that a layer gives and a unit that it reads costs.

    - ``key``: the entry that holds the layer's weights.
    - ``out``, ``reads``: the groups of the units on both sides, ones of ``spec.families``. None stands for all that no
      group moves on that side, as pixels and classes, which every model shares: it counts as one unit. Of a grouped
      convolution, whose units read their own block alone, ``reads`` is None as well.
    - ``multiply_adds``: those of one pair, for one input of the network.
    - ``parameters``: the weights of one pair.
    - ``side_by_side``: whether ``out`` is None for outputs that each model has for itself: n units of one owner each.
    """

    key: str
    out: str | None
    reads: str | None
    multiply_adds: int
    parameters: int
    side_by_side: bool = False


def layer_costs(
    spec: PermutationSpec, model: nn.Module, example: Inputs, *, heads: Heads = "shared"
) -> tuple[LayerCost, ...]:
    """The costs of all layers of a model, in the order in which they run.

    ``example`` is an input of the model with a batch axis, or the tuple of its inputs, of the size to be counted for.
    Multiply-adds are those of linear layers and convolutions, as the field counts them: not those of norms, of
    activations, or of attention's products of queries with keys. Parameters are all weights of ``spec``. A layer that
    reads several groups, as after a concatenation, has an entry for each. ``heads`` are those of ``expand_network``.

    Raises ValueError, naming it, for a layer whose weight is computed or a weight with two groups that no layer reads.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
    >>> x = torch.ones(1, 3)
    >>> for cost in layer_costs(rebasin.trace(model, x), model, x):
    ...     print(cost.key, cost.out, cost.reads, cost.multiply_adds, cost.parameters)
    0.weight 0 None 3 3
    2.weight None 0 2 2
    0.bias 0 None 0 1
    """
    check_spec(spec, "layer_costs(spec, model, example)")
    return graph_costs(spec, export(model, example), heads=heads)


def graph_costs(
    spec: PermutationSpec, program: torch.export.ExportedProgram, *, heads: Heads = "shared"
) -> tuple[LayerCost, ...]:
    """The costs of all layers of an exported graph: see ``layer_costs``."""
    keys = weight_keys(program)
    given = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    batch = number(next(given).meta["val"].shape[0])
    places: Counter[str] = Counter()  # at how many places of one input each weight is used
    grouped = set()
    for node in program.graph.nodes:
        if not is_layer(node):
            continue
        if node.args[1] not in keys:
            raise ValueError(f"the cost of {node.name!r} is not known: its weight is computed")
        key, axis = keys[node.args[1]], AFFINE[operator(node)][0]
        shape = [number(size) for size in node.meta["val"].shape]
        places[key] += math.prod(shape) // (shape[axis] * batch)
        if node.args[0].meta["val"].shape[axis] != spec.shapes[key][1]:
            grouped.add(key)
    own_outputs = output_keys(program) if heads == "side by side" else frozenset()
    costs = []
    for key in [*places, *(key for key in spec.weights if key not in places)]:
        columns: dict[str | None, int] = {None: 1}
        if key in grouped:
            rows, kernel = _units(spec, key, 0), math.prod(spec.shapes[key][1:])
        elif key in places:
            rows, columns, kernel = _units(spec, key, 0), _units(spec, key, 1), math.prod(spec.shapes[key][2:])
        else:
            rows, kernel = _units_of_vector(spec, key), 1
        for (out, own), (reads, read) in itertools.product(rows.items(), columns.items()):
            weights, side_by_side = own * read * kernel, out is None and key in own_outputs
            costs.append(LayerCost(key, out, reads, weights * places[key], weights, side_by_side))
    return tuple(costs)


def _units(spec: PermutationSpec, key: str, axis: int) -> dict[str | None, int]:
    """The groups along an axis of an entry, and how many slices each of their units has; under None, what stays."""
    slices: dict[str | None, int] = defaultdict(int)
    for part in spec.parts[key]:
        if part.axis == axis:
            slices[spec.inside.get(part.group, part.group)] += part.positions.numel()
    stay = spec.view_shape(key)[axis] - sum(slices.values())
    units: dict[str | None, int] = {group: count // spec.sizes[group] for group, count in slices.items() if group}
    return units | ({None: stay} if stay else {})


def _units_of_vector(spec: PermutationSpec, key: str) -> dict[str | None, int]:
    """The groups along the only axis that has any, and how many elements of the entry each of their units has."""
    axes = {part.axis for part in spec.parts[key]}
    if len(axes) > 1:
        raise ValueError(f"the cost of {key!r} is not known: groups lie along two of its axes, and no layer reads it")
    if not axes:
        return {None: math.prod(spec.shapes[key])}
    (axis,) = axes
    elsewhere = math.prod(spec.shapes[key]) // spec.shapes[key][axis]
    return {group: slices * elsewhere for group, slices in _units(spec, key, axis).items()}


def count_cost(costs: Iterable[LayerCost], slots: Slots, *, by: Measure = "structured") -> int:
    """The cost of a merge: what each layer costs for a pair of units, times the pairs of the merge's units.

    ``by="structured"`` counts the multiply-adds of pairs of units that have a model in common, as no other pair needs
    to be multiplied; ``"dense"`` those of all pairs; ``"parameters"`` the weights of pairs with a model in common.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.ones(1, 3)
    >>> spec = rebasin.trace(model, x)
    >>> ensemble = Slots.apart(spec, 2)
    >>> costs = layer_costs(spec, model, x)
    >>> [count_cost(costs, ensemble, by=measure) for measure in ("structured", "dense", "parameters")]
    [208, 336, 242]
    """
    owners: dict[str | None, Tensor] = {None: torch.ones(slots.n, 1, dtype=torch.float64)}
    for group, owns in slots.owners.items():
        owners[group] = owns.double().cpu()
    total = 0
    for cost in costs:
        out = torch.eye(slots.n, dtype=torch.float64) if cost.side_by_side else owners[cost.out]
        common = out.T @ owners[cost.reads]  # (out, in), how many models two units have in common
        pairs = common.numel() if by == "dense" else int((common > 0).sum())
        total += pairs * (cost.parameters if by == "parameters" else cost.multiply_adds)
    return total
