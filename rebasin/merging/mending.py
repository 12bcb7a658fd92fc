"""REPAIR and the reset of norm statistics: give a merged network's units the statistics that they should have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.graph import (
    AFFINE,
    LAYERS,
    MAKE_PLAIN,
    MOVING,
    NORMS,
    each_model,
    export,
    layer_weight,
    module_of,
    operator,
    run,
    weight_keys,
)
from rebasin.inputs import Inputs, batch_size, check_batch, check_inputs, check_two_or_more
from rebasin.weights import (
    Kind,
    Models,
    Weights,
    check_alike,
    check_device,
    check_finite,
    check_fits,
    check_module,
    flat,
    like,
    unflat,
    weights_of,
)

Mend = Callable[[Weights, Weights], Weights]
UNKNOWN = ("conv_transpose", "rms_norm", "_fused_rms_norm")  # layers that are not in AFFINE
PRODUCTS = ("mm", "bmm", "baddbmm", "matmul", "einsum")  # what multiplies with a weight that is not in AFFINE
REPAIRED = (*AFFINE, "addmm")
BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


def mender(model: nn.Module, inputs: Inputs) -> Mend:
    """What mends a merge: ``mend(merged, parents)`` by REPAIR on these inputs, as ``merge`` and its methods take it.

    ``model`` is one of the models and ``inputs`` (m, ...) go into it, with m >= 2: a tensor, or several in a tuple, or
    a dict by their names. ``merged`` is (*batch, ...) and ``parents`` (*batch, n, ...). Running statistics of batch
    norms are measured anew first. In a merge they are the means of the parents', too wide for units that vary less:
    REPAIR would make up for that by a factor in the norm's weight, and the next stage would average this factor with
    another merge's.

    Raises TypeError unless ``model`` is a module, ValueError for fewer than two inputs; the mending raises what
    ``repair`` does.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(4)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> mend = rebasin.mender(models[0], torch.randn(50, 3))
    >>> rebasin.merge(spec, models, by="hierarchy", mend=mend, mend_at="every stage")
    Merge(4 models -> Sequential; 2 rounds, ... sweeps, 2 stages)
    """
    check_module(model, "mender(model, inputs)")
    check_batch(inputs, "the inputs")
    check_two_or_more(batch_size(inputs), "REPAIR")
    return functools.partial(_mend, model, inputs)


def check_mend(mend: Mend | None) -> None:
    """Raise TypeError unless ``mend`` is a function, or None."""
    if mend is not None and not callable(mend):
        raise TypeError(f"mend must be a function of merged and parents, as mender gives, got {type(mend).__name__}")


def mended_by(mend: Mend, merged: Weights, parents: Weights) -> dict[str, Tensor]:
    """What ``mend`` makes of merges (*batch, ...). Raises TypeError or ValueError for what does not fit the merges."""
    mended = weights_of(mend(merged, parents), "what mend gives")
    check_alike(merged, mended, "the merge", "what mend gives")
    for key, tensor in mended.items():
        if tensor.isnan().any():
            raise ValueError(f"what mend gives: {key!r} holds NaN")
    return mended


def _mend(model: nn.Module, inputs: Inputs, merged: Weights, parents: Weights) -> Weights:
    measured = _with_new_statistics(model, merged, inputs)
    return repair(model, merged if measured is None else measured, parents, inputs)


def check_parents(parents: torch.Size, merged: torch.Size) -> None:
    """Raise ValueError unless the leading axes of parents are those of their merges, and one more for the models."""
    if not parents or parents[:-1] != merged:
        raise ValueError(
            "the parents need one leading axis more than the merge, the last, for the models that it was made of: the "
            f"merge has {tuple(merged)}, the parents {tuple(parents)}"
        )


@torch.no_grad()
def repair(model: nn.Module, merged: Kind, parents: Models, inputs: Inputs) -> Kind:
    """Rescale and shift the units of merged networks (REPAIR: Jordan et al. 2023, section 4), of any architecture.

    ``merged`` is a module, a dict of tensors (*batch, ...) or a list of either, and comes back as what it is.
    ``parents`` has one more axis, (*batch, n, ...), and is in the merge's basin already: unit i of each parent is unit
    i of the merge. ``inputs`` (m, ...) go into ``model``: a tensor, a tuple or a dict of them. Layer by layer, each
    unit that comes out of a linear layer, a convolution or a norm is given the parents' average mean and average
    standard deviation over inputs and places; the output layers stay. Units that never vary in the merge are only
    shifted.

    Raises ValueError for fewer than two inputs, a layer that is used twice, has no bias and no norm after it, or cannot
    be rescaled, and weights that do not fit or lie elsewhere.

    >>> parents = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> middle = rebasin.interpolate(*parents, 0.5)
    >>> x = torch.randn(100, 3)
    >>> repaired = repair(middle, middle, parents, x)
    >>> spread = [model[0](x).std(0) for model in (*parents, repaired)]
    >>> torch.allclose((spread[0] + spread[1]) / 2, spread[2], rtol=1e-3)
    True
    """
    check_module(model, "repair(model, merged, parents, inputs)")
    check_batch(inputs, "the inputs")
    check_two_or_more(batch_size(inputs), "REPAIR")
    weights, parents = weights_of(merged, "the merge"), weights_of(parents, "the parents")
    batch = _leading(model, weights, "the merge", inputs)
    check_parents(_leading(model, parents, "the parents", inputs), batch)
    program = export(model, inputs)
    layers = _layers(program)

    def statistics(weights: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        moments = {}

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            if node in layers:
                moments[layers[node][0]] = _moments(value, LAYERS[operator(node)][0])
            return value

        run(program, weights, inputs, visit)
        return moments

    def repaired(weights: dict[str, Tensor], goals: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        weights = dict(weights)

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            if node not in layers:
                return value
            axis, at_weight, at_bias = LAYERS[operator(node)]
            weight, bias = layers[node]
            columns = layer_weight(node)[1] == 1  # of the matrix that it multiplies with: the units
            turned = node.args[at_weight] is not layer_weight(node)[0]
            (mean, std), (goal_mean, goal_std) = _moments(value, axis), goals[weight]
            scale = torch.where(std > 0, goal_std / std, torch.ones_like(std))
            weights[weight] = weights[weight] * (
                scale if columns else scale.reshape(-1, *[1] * (weights[weight].ndim - 1))
            )
            weights[bias] = (weights[bias] - mean) * scale + goal_mean
            args[at_weight] = weights[weight].mT if turned else weights[weight]
            args[at_bias] = weights[bias]
            return compute(*args)

        run(program, weights, inputs, visit)
        return weights

    # One model at a time: its activations on all inputs are the largest thing in memory.
    of_parents = each_model(statistics)(flat(parents, len(batch) + 1))
    goals = {}
    for key, moments in of_parents.items():
        by_merge = [moment.unflatten(0, (batch.numel(), -1)) for moment in moments]  # (merges, n, units)
        goals[key] = tuple(moment.mean(1) for moment in by_merge)
    return like(merged, unflat(each_model(repaired)(flat(weights, len(batch)), goals), batch))


@torch.no_grad()
def reset_norms(model: nn.Module, weights: Kind, inputs: Inputs) -> Kind:
    """Measure the running means and variances of batch norms anew over ``inputs``.

    ``weights`` is a module, a dict of tensors (*batch, ...) or a list of either, and comes back as what it is;
    ``inputs`` (m, ...) go into ``model``: a tensor, a tuple or a dict of them. Each norm sees what the norms before it
    give with their new statistics.

    Raises ValueError for fewer than two inputs, a model without running statistics, and weights that do not fit the
    model or lie elsewhere.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    >>> x = torch.randn(100, 3)
    >>> torch.allclose(reset_norms(model, model, x)[1].running_mean, model[0](x).mean(0), atol=1e-6)
    True
    """
    check_module(model, "reset_norms(model, weights, inputs)")
    check_batch(inputs, "the inputs")
    check_two_or_more(batch_size(inputs), "a variance")
    measured = _with_new_statistics(model, weights, inputs)
    if measured is None:
        raise ValueError("the model has no norm with running statistics")
    return measured


@torch.no_grad()
def _with_new_statistics(model: nn.Module, weights: Kind, inputs: Inputs) -> Kind | None:
    """What ``reset_norms`` gives, and None for a model that uses no norm with running statistics."""
    given = weights_of(weights, "the weights")
    batch = _leading(model, given, "the weights", inputs)
    program = export(model, inputs)
    norms = norms_of(program)
    if not norms:
        return None

    def measured(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = dict(weights)

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            if node in norms:
                mean, std = _moments(args[0], 1)
                args[3], args[4] = mean, std.square()
                for key, statistic in zip(norms[node], args[3:5], strict=True):
                    weights[key] = statistic
            return compute(*args)

        run(program, weights, inputs, visit)
        return weights

    return like(weights, unflat(each_model(measured)(flat(given, len(batch))), batch))


def norms_of(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, tuple[str, str]]:
    """The batch norms with running statistics, and the keys of their means and variances.

    Raises ValueError for a norm that is used twice, whose statistics are no longer those of either use.
    """
    keys = weight_keys(program)
    norms: dict[torch.fx.Node, tuple[str, str]] = {}
    for node in program.graph.nodes:
        if operator(node) in BATCH_NORMS and node.args[3] in keys:
            norms[node] = keys[node.args[3]], keys[node.args[4]]
    means = [mean for mean, _ in norms.values()]
    for mean in means:
        if means.count(mean) > 1:
            raise ValueError(f"{mean!r} cannot be measured anew for each of the {means.count(mean)} times it is used")
    return norms


def _layers(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, tuple[str, str]]:
    """The nodes that REPAIR corrects, in order, and the keys of their weight and bias."""
    keys = weight_keys(program)
    layers: dict[torch.fx.Node, tuple[str, str]] = {}
    followed: set[torch.fx.Node] = set()  # nodes with a layer somewhere after them
    for node in reversed(program.graph.nodes):
        followed.update(node.all_input_nodes if node in followed or operator(node) in REPAIRED else ())
        if node in followed and operator(node).startswith(UNKNOWN):
            raise ValueError(f"REPAIR cannot rescale what {operator(node)} gives")
        if node in followed and operator(node) in PRODUCTS:
            for factor in map(_unmoved, node.all_input_nodes):
                if factor in keys:
                    raise ValueError(f"REPAIR cannot rescale what {operator(node)} gives with {keys[factor]!r}")
        if operator(node) not in REPAIRED or node not in followed:
            continue
        _, at_weight, at_bias = LAYERS[operator(node)]
        weight: Any
        bias: Any
        weight, bias = (node.args[at] if at < len(node.args) else None for at in (at_weight, at_bias))
        if operator(node) == "addmm":
            weight, _ = layer_weight(node)
        if weight is None:  # a norm without weights
            continue
        if weight not in keys:
            layer = f"{operator(node)} in {module_of(node)}"
            raise ValueError(f"REPAIR cannot rescale the computed weight of {layer}: {MAKE_PLAIN}")
        if operator(node) in NORMS and weight.meta["val"].ndim > 1:
            raise ValueError(f"REPAIR cannot rescale {keys[weight]!r}, which scales places and units")
        if bias in keys:
            layers[node] = (keys[weight], keys[bias])
        elif not all(operator(reader) in NORMS and reader in layers for reader in _readers(node)):
            name = keys[weight].removesuffix(".weight")
            raise ValueError(f"REPAIR shifts units by their bias, and {name!r} has none")
    used = [weight for weight, _ in layers.values()]
    for weight in used:
        if used.count(weight) > 1:
            raise ValueError(f"REPAIR cannot rescale {weight!r} for each of the {used.count(weight)} times it is used")
    return dict(reversed(layers.items()))


def _unmoved(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose axes were moved to give this one."""
    return _unmoved(node.all_input_nodes[0]) if operator(node) in MOVING else node


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


def _plain_buffers(model: nn.Module) -> set[str]:
    """The buffers that are no statistics of a norm, as masks are."""
    keys = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            keys |= {f"{name}.{own}".removeprefix(".") for own, _ in module.named_buffers(recurse=False)}
    return keys


def _leading(model: nn.Module, weights: Weights, what: str, inputs: Inputs) -> torch.Size:
    """The leading axes of weights of this model.

    Raises ValueError, naming the first key, if they do not fit, or if model, weights and inputs lie on different
    devices or are not finite.
    """
    batch = check_fits(model, weights, what)
    masks = _plain_buffers(model)
    for key, tensor in weights.items():
        # Masks may be infinite, and nothing may be NaN.
        check_finite(tensor[~tensor.isinf()] if key in masks else tensor, f"{what}: {key!r}")
    check_device(model, weights)
    check_inputs(inputs, "the inputs", next(iter(weights.values())).device)
    return batch
