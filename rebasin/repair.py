"""REPAIR: give each unit of a merged network the mean and deviation that it has in the networks it was made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rebasin.permutation import PermutationSpec, Weights


@torch.no_grad()
def repair(model: nn.Module, merged: Weights, parents: Weights, inputs: Tensor) -> dict[str, Tensor]:
    """Rescale and shift the hidden units of merged plain feed-forward networks (Jordan et al. 2023, section 4).

    ``merged`` is (b, ...) and ``parents`` (b, n, ...), already in the merge's basin: unit i of each parent is unit i of
    the merge. ``inputs`` (m, ...) go into ``model``. Layer by layer, each hidden unit's pre-activation is given the
    parents' average mean and average standard deviation over the inputs; the output layer stays. Units that never
    vary in the merge are shifted alone. Raises ValueError for fewer than two inputs, a hidden layer without a bias,
    and weights that do not fit the model.
    """
    if len(inputs) < 2:
        raise ValueError(f"REPAIR needs two inputs or more to tell a deviation, got {len(inputs)}")
    spec = PermutationSpec.feed_forward(model)
    spec.batch_shape(merged, "the merge")
    spec.batch_shape(parents, "the parents")
    repaired = {key: tensor.clone() for key, tensor in merged.items()}
    hidden = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][:-1]
    for name in hidden:
        if f"{name}.bias" not in repaired:
            raise ValueError(f"REPAIR shifts units by their bias, and {name!r} has none")
        goal_mean, goal_std = (s.mean(1) for s in _statistics(model, name, parents, inputs))
        mean, std = _statistics(model, name, repaired, inputs)
        scale = torch.where(std > 0, goal_std / std, torch.ones_like(std))
        repaired[f"{name}.weight"] *= scale.unsqueeze(-1)
        repaired[f"{name}.bias"] = (repaired[f"{name}.bias"] - mean) * scale + goal_mean
    return repaired


def _statistics(model: nn.Module, name: str, weights: Weights, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the inputs of the layer's pre-activations: (*batch, units) each."""
    layer = model.get_submodule(name)

    def of_one(one: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        seen = []
        with layer.register_forward_hook(lambda module, args, output: seen.append(output)):
            functional_call(model, one, (inputs,))
        return seen[0].mean(0), seen[0].std(0)

    leading = weights[f"{name}.bias"].ndim - 1
    flat = {key: tensor.flatten(0, leading - 1) for key, tensor in weights.items()}
    # One model at a time: its activations on all inputs are the largest thing in memory.
    mean, std = vmap(of_one, chunk_size=1)(flat)
    shape = weights[f"{name}.bias"].shape
    return mean.reshape(shape), std.reshape(shape)
