"""A small vision transformer (Dosovitskiy et al. 2021) in its plain form (Beyer et al. 2022).

Attention is written out: stacked models go through ``torch.func.vmap``, which on a CPU has no rule for torch's fused
attention, nor for the fused layer that ``nn.TransformerEncoderLayer`` is in evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lab.images import Dataset
from lab.networks.normalise import Normalise

DEPTH = 6
HEADS = 4


class Positions(nn.Module):
    """Add to each token a learned vector of its place: (m, tokens, width) to the same."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Attention(nn.Module):
    """What each token takes from all tokens, by ``HEADS`` heads: (m, tokens, width) to the same.

    If it is ``causal``, a token takes nothing from those that come after it.
    """

    def __init__(self, width: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        # (m, heads, tokens, width / heads)
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = q @ k.mT * q.shape[-1] ** -0.5  # (m, heads, tokens, tokens)
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        attended = scores.softmax(-1) @ v
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a hidden layer of 4 ``width`` units, each after a norm and beside a shortcut."""

    def __init__(self, width: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, causal)
        self.norm2 = nn.LayerNorm(width)
        self.layer1 = nn.Linear(width, 4 * width)
        self.layer2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.layer2(gelu(self.layer1(self.norm2(x))))


class ViT(nn.Module):
    """Patches to tokens, ``depth`` blocks, a norm, the mean over the tokens, a linear layer."""

    def __init__(self, dataset: Dataset, width: int, patch: int, depth: int) -> None:
        super().__init__()
        channels, height, breadth = dataset.train.images.shape[1:]
        self.normalise = Normalise(dataset.mean, dataset.std)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = Positions((height // patch) * (breadth // patch), width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(width, dataset.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.normalise(x)).flatten(2).mT  # (m, tokens, width)
        x = self.norm(self.blocks(self.positions(x)))
        return self.layer(x.mean(1))


def vit(dataset: Dataset, width: int, depth: int = DEPTH, across: int | None = None) -> ViT:
    """A transformer of ``width`` numbers a token, 128 at its usual size, on patches of 4 x 4 pixels.

    Images with a side below 16 have patches of 2 x 2, so that the digits are 16 tokens and not 4. With ``across``, the
    shorter side has so many patches, whatever the image. The classifier sees the mean over the tokens: a class token
    would be one more tensor to match, and is no better (Beyer et al. 2022). Raises ValueError for a width that the
    heads do not divide and for sides that the patches do not.
    """
    sides = tuple(dataset.train.images.shape[2:])
    patch = max(1, min(sides) // across) if across else 4 if min(sides) >= 16 else 2
    if width % HEADS:
        raise ValueError(f"the width of a ViT must be a multiple of its {HEADS} heads, got {width}")
    if any(side % patch for side in sides):
        raise ValueError(f"images of {sides[0]} x {sides[1]} pixels do not divide into patches of {patch} x {patch}")
    return ViT(dataset, width, patch, depth)
