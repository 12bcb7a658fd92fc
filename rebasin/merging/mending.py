"""REPAIR and the reset of norm statistics: give a merged network's units the statistics that they should have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.graph import AFFINE, NORMS, each_model, export, operator, run, weight_keys
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights

UNKNOWN = ("conv_transpose", "rms_norm", "_fused_rms_norm")  # layers that are not in AFFINE
MOVING = ("movedim", "permute", "transpose")  # axes change places, and values stay
BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


@torch.no_grad()
def repair(model: nn.Module, merged: Weights, parents: Weights, inputs: Tensor) -> dict[str, Tensor]:
    """Rescale and shift the units of merged networks (Jordan et al. 2023, section 4), of any architecture.

    ``merged`` is (*batch, ...) and ``parents`` (*batch, n, ...), already in the merge's basin: unit i of each parent is
    unit i of the merge. ``inputs`` (m, ...) go into ``model``. Layer by layer, each unit that comes out of a linear
    layer, a convolution or a norm is given the parents' average mean and average standard deviation over inputs and
    places; the output layers stay. Units that never vary in the merge are shifted alone. Raises ValueError for fewer
    than two inputs, a layer that is used twice, has no bias and no norm after it, or cannot be rescaled, and weights
    that do not fit.
    """
    if len(inputs) < 2:
        raise ValueError(f"REPAIR needs two inputs or more to tell a deviation, got {len(inputs)}")
    program = export(model, (inputs,))
    layers = _layers(program)
    batch = _leading(model, merged, "the merge")
    if len(_leading(model, parents, "the parents")) != len(batch) + 1:
        raise ValueError("the parents need one leading axis more than the merge: the models that it was made of")

    def statistics(one: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            if node in layers:
                found[layers[node][0]] = _moments(value, AFFINE[operator(node)][0])
            return value

        run(program, one, (inputs,), visit)
        return found

    def repaired(one: dict[str, Tensor], goals: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        one = dict(one)

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            if node not in layers:
                return value
            axis, at_weight, at_bias = AFFINE[operator(node)]
            weight, bias = layers[node]
            (mean, std), (goal_mean, goal_std) = _moments(value, axis), goals[weight]
            scale = torch.where(std > 0, goal_std / std, torch.ones_like(std))
            one[weight] = one[weight] * scale.reshape(-1, *[1] * (one[weight].ndim - 1))
            one[bias] = (one[bias] - mean) * scale + goal_mean
            args[at_weight], args[at_bias] = one[weight], one[bias]
            return compute(*args)

        run(program, one, (inputs,), visit)
        return one

    # One model at a time: its activations on all inputs are the largest thing in memory.
    seen = each_model(statistics)({key: tensor.flatten(0, len(batch)) for key, tensor in parents.items()})
    goals = {key: tuple(s.unflatten(0, (batch.numel(), -1)).mean(1) for s in found) for key, found in seen.items()}
    mended = each_model(repaired)(_flat(merged, batch), goals)
    return {key: tensor.reshape(merged[key].shape) for key, tensor in mended.items()}


@torch.no_grad()
def reset_norms(model: nn.Module, weights: Weights, inputs: Tensor) -> dict[str, Tensor]:
    """Measure the running means and variances of batch norms anew, for weights (*batch, ...), over ``inputs``.

    Each norm sees what the norms before it give with their new statistics. Raises ValueError for fewer than two inputs,
    a model without running statistics, and weights that do not fit the model.
    """
    if len(inputs) < 2:
        raise ValueError(f"a variance needs two inputs or more, got {len(inputs)}")
    program = export(model, (inputs,))
    keys = weight_keys(program)
    if not any(operator(node) in BATCH_NORMS and node.args[3] in keys for node in program.graph.nodes):
        raise ValueError("the model has no norm with running statistics")
    batch = _leading(model, weights, "the weights")

    def measured(one: dict[str, Tensor]) -> dict[str, Tensor]:
        one = dict(one)

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            if operator(node) in BATCH_NORMS and node.args[3] in keys:
                mean, std = _moments(args[0], 1)
                args[3], args[4] = mean, std.square()
                one[keys[node.args[3]]], one[keys[node.args[4]]] = args[3], args[4]
            return compute(*args)

        run(program, one, (inputs,), visit)
        return one

    found = each_model(measured)(_flat(weights, batch))
    return {key: tensor.reshape(weights[key].shape) for key, tensor in found.items()}


def _layers(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, tuple[str, str]]:
    """The nodes that REPAIR corrects, in order, and the keys of their weight and bias."""
    keys = weight_keys(program)
    found: dict[torch.fx.Node, tuple[str, str]] = {}
    followed: set[torch.fx.Node] = set()  # nodes with a layer somewhere after them
    for node in reversed(program.graph.nodes):
        followed.update(node.all_input_nodes if node in followed or operator(node) in AFFINE else ())
        if node in followed and operator(node).startswith(UNKNOWN):
            raise ValueError(f"REPAIR cannot rescale what {operator(node)} gives")
        if operator(node) not in AFFINE or node not in followed:
            continue
        _, at_weight, at_bias = AFFINE[operator(node)]
        weight, bias = (node.args[at] if at < len(node.args) else None for at in (at_weight, at_bias))
        if weight is None:  # a norm without weights
            continue
        if weight not in keys:
            raise ValueError(f"REPAIR cannot rescale the computed weight of {operator(node)}")
        if operator(node) in NORMS and weight.meta["val"].ndim > 1:
            raise ValueError(f"REPAIR cannot rescale {keys[weight]!r}, which scales places and units")
        if bias in keys:
            found[node] = (keys[weight], keys[bias])
        elif not all(operator(reader) in NORMS and reader in found for reader in _readers(node)):
            name = keys[weight].removesuffix(".weight")
            raise ValueError(f"REPAIR shifts units by their bias, and {name!r} has none")
    used = [weight for weight, _ in found.values()]
    for weight in used:
        if used.count(weight) > 1:
            raise ValueError(f"REPAIR cannot rescale {weight!r} for each of the {used.count(weight)} times it is used")
    return dict(reversed(found.items()))


def _readers(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """The nodes that read what a node gives, be it with its axes in another order."""
    for user in node.users:
        if operator(user) in MOVING:
            yield from _readers(user)
        else:
            yield user


def _moments(value: Any, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each unit along an axis, over everything else: (units,) each."""
    value = value[0] if isinstance(value, tuple | list) else value
    rows = value.movedim(axis, -1).flatten(0, -2)
    return rows.mean(0), rows.std(0)


def _flat(weights: Weights, batch: torch.Size) -> dict[str, Tensor]:
    """The weights (*batch, ...) with one leading axis."""
    return {key: tensor.reshape(batch.numel(), *tensor.shape[len(batch) :]) for key, tensor in weights.items()}


def _leading(model: nn.Module, weights: Weights, what: str) -> torch.Size:
    """The leading axes of weights of this model. Raises ValueError, naming the first key, if they do not fit."""
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return PermutationSpec({}, {}, shapes).batch_shape(weights, what)
