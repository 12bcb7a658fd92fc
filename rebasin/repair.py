"""REPAIR and the reset of norm statistics: give a merged network's units the statistics that they should have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.graph import AFFINE, NORMS, each_model, export, operator, run, weight_keys
from rebasin.permutation import Weights

BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


@torch.no_grad()
def repair(model: nn.Module, merged: Weights, parents: Weights, inputs: Tensor) -> dict[str, Tensor]:
    """Rescale and shift the units of merged networks (Jordan et al. 2023, section 4), of any architecture.

    ``merged`` is (b, ...) and ``parents`` (b, n, ...), already in the merge's basin: unit i of each parent is unit i of
    the merge. ``inputs`` (m, ...) go into ``model``. Layer by layer, each unit that comes out of a linear layer, a
    convolution or a norm is given the parents' average mean and average standard deviation over inputs and places; the
    output layers stay. Units that never vary in the merge are shifted alone. Raises ValueError for fewer than two
    inputs, a layer that is used twice or has no bias and no norm after it, and weights that do not fit the model.
    """
    if len(inputs) < 2:
        raise ValueError(f"REPAIR needs two inputs or more to tell a deviation, got {len(inputs)}")
    program = export(model, (inputs,))
    layers = _layers(program)
    _check(model, merged, 1, "the merge")
    _check(model, parents, 2, "the parents")

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

    n = len(next(iter(parents.values()))[0])
    flat = {key: tensor.flatten(0, 1) for key, tensor in parents.items()}
    # One model at a time: its activations on all inputs are the largest thing in memory.
    seen = each_model(statistics)(flat)
    goals = {key: tuple(s.unflatten(0, (-1, n)).mean(1) for s in found) for key, found in seen.items()}
    return each_model(repaired)(dict(merged), goals)


@torch.no_grad()
def reset_norms(model: nn.Module, weights: Weights, inputs: Tensor) -> dict[str, Tensor]:
    """Measure the running means and variances of batch norms anew, for weights (b, ...), over ``inputs`` (m, ...).

    Each norm sees what the norms before it give with their new statistics. Raises ValueError for fewer than two inputs,
    a model without running statistics, and weights that do not fit the model.
    """
    if len(inputs) < 2:
        raise ValueError(f"a variance needs two inputs or more, got {len(inputs)}")
    program = export(model, (inputs,))
    keys = weight_keys(program)
    if not any(operator(node) in BATCH_NORMS and node.args[3] in keys for node in program.graph.nodes):
        raise ValueError("the model has no norm with running statistics")
    _check(model, weights, 1, "the weights")

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

    return each_model(measured)(dict(weights))


def _layers(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, tuple[str, str]]:
    """The nodes that REPAIR corrects, in order, and the keys of their weight and bias."""
    keys = weight_keys(program)
    found: dict[torch.fx.Node, tuple[str, str]] = {}
    followed: set[torch.fx.Node] = set()  # nodes with a layer somewhere after them
    for node in reversed(program.graph.nodes):
        followed.update(node.all_input_nodes if node in followed or operator(node) in AFFINE else ())
        if operator(node) not in AFFINE or node not in followed:
            continue
        _, at_weight, at_bias = AFFINE[operator(node)]
        weight, bias = (node.args[at] if at < len(node.args) else None for at in (at_weight, at_bias))
        if weight not in keys:
            continue
        if bias in keys:
            found[node] = (keys[weight], keys[bias])
        elif not all(operator(user) in NORMS for user in node.users):
            name = keys[weight].removesuffix(".weight")
            raise ValueError(f"REPAIR shifts units by their bias, and {name!r} has none")
    used = [weight for weight, _ in found.values()]
    for weight in used:
        if used.count(weight) > 1:
            raise ValueError(f"REPAIR cannot rescale {weight!r} for each of the {used.count(weight)} times it is used")
    return dict(reversed(found.items()))


def _moments(value: Any, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each unit along an axis, over everything else: (units,) each."""
    value = value[0] if isinstance(value, tuple | list) else value
    rows = value.movedim(axis, -1).flatten(0, -2)
    return rows.mean(0), rows.std(0)


def _check(model: nn.Module, weights: Weights, leading: int, what: str) -> None:
    """Raise ValueError, naming the first key, unless the weights are the model's with so many leading axes."""
    state = model.state_dict()
    for key in [*state, *weights]:
        if key not in state or key not in weights:
            raise ValueError(f"{what}: {key!r} is in {'the model' if key in state else 'the weights'} only")
        shape = tuple(weights[key].shape)
        if len(shape) != leading + state[key].ndim or shape[leading:] != tuple(state[key].shape):
            told = f"{leading} leading {'axis' if leading == 1 else 'axes'} and {tuple(state[key].shape)}"
            raise ValueError(f"{what}: {key!r} has shape {shape}, not {told}")
        if not torch.isfinite(weights[key]).all():
            raise ValueError(f"{what}: {key!r} holds NaN or infinite values")
