"""A transformer without LayerNorm that computes the same: its residual stream may be turned, as well as permuted.

LayerNorm takes the mean off a token, divides by the deviation, and scales and shifts what is left. The mean can be
taken off by whoever writes into the stream, and the scale and shift folded into whoever reads. What stays divides a
token by the root of its mean square: its length, which no rotation changes (Theus et al. 2025).
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from lab.networks.language import LanguageModel
from lab.networks.vit import ViT
from rebasin.weights import Weights

Transformer = ViT | LanguageModel
# What reads a token as each norm gives it, inside a block.
READERS = {"norm1": ("attention.query", "attention.key", "attention.value"), "norm2": ("layer1",)}


class RMSNorm(nn.Module):
    """Divide each token by the root of its mean square: (..., width) to the same. It has no weights."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()


def without_layer_norm(model: Transformer, weights: Weights) -> tuple[Transformer, dict[str, Tensor]]:
    """The model with RMSNorm in place of LayerNorm, and its weights (*batch, ...) by which it computes the same."""
    lean = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            lean.set_submodule(name, RMSNorm(module.eps))
    moved = dict(weights)
    for norm, readers in _readers(model).items():
        scale, shift = moved.pop(f"{norm}.weight"), moved.pop(f"{norm}.bias")  # (*batch, width)
        for reader in readers:
            matrix = moved[f"{reader}.weight"]  # (*batch, out, width)
            moved[f"{reader}.bias"] = moved[f"{reader}.bias"] + (matrix @ shift.unsqueeze(-1)).squeeze(-1)
            moved[f"{reader}.weight"] = matrix * scale.unsqueeze(-2)
    for key, axis in _writers(model).items():
        moved[key] = moved[key] - moved[key].mean(axis, keepdim=True)
    return lean, moved


def _readers(model: Transformer) -> dict[str, list[str]]:
    """By norm, the layers that read what it gives."""
    readers = {"norm": ["layer"]}
    for number in range(len(model.blocks)):
        for norm, layers in READERS.items():
            readers[f"blocks.{number}.{norm}"] = [f"blocks.{number}.{layer}" for layer in layers]
    return readers


def _writers(model: Transformer) -> dict[str, int]:
    """The weights that write into the residual stream, and along which axis, counted from the last, it lies in them."""
    writers = {"positions.weight": -1}
    if isinstance(model, ViT):
        writers |= {"patches.weight": -4, "patches.bias": -1}
    else:
        writers |= {"characters.weight": -1}
    for number in range(len(model.blocks)):
        for layer in ("attention.out", "layer2"):
            writers |= {f"blocks.{number}.{layer}.weight": -2, f"blocks.{number}.{layer}.bias": -1}
    return writers
