"""How a network's weights begin."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

INITIAL = ("torch", "lecun_normal")


def initial_weights(model: nn.Module, initial: str, seed: int) -> dict[str, Tensor]:
    """Fresh weights on the CPU, by one of the schemes of ``INITIAL``; depends on nothing but ``seed``.

    ``torch`` is what PyTorch's layers do by themselves: in a linear layer everything is uniform within +- fan_in^-1/2.
    ``lecun_normal`` is what Flax's do: matrices from a truncated normal of deviation fan_in^-1/2, sqrt 3 times that of
    ``torch``, and zero biases. Raises ValueError for another name, and for a module that holds parameters and has no
    ``reset_parameters``, as ``nn.MultiheadAttention`` does: they would stay as the model has them.
    """
    if initial not in INITIAL:
        raise ValueError(f"unknown initial weights {initial!r}: there are {', '.join(INITIAL)}")
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not that of a GPU, which would stay changed
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif list(module.parameters(recurse=False)):
                raise ValueError(f"no fresh weights for {type(module).__name__}: it has no reset_parameters")
            if initial == "lecun_normal" and isinstance(module, nn.Linear | nn.Conv2d):
                # A normal cut at two deviations has .8796 of its deviation left.
                std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return fresh.state_dict()
