"""A small language model: a transformer that says, after each character of a text, which one comes next.

It is made of the blocks of the vision transformer, with attention to what came before alone (Radford et al. 2019). What
reads the tokens and what answers are two matrices: were they one, the residual stream could not be turned.
"""

from __future__ import annotations

from torch import Tensor, nn

from lab.images import Dataset
from lab.networks.vit import HEADS, Block, Positions


class LanguageModel(nn.Module):
    """Characters (m, characters), as numbers below ``kinds``, to logits (m, kinds, characters) of the next ones."""

    def __init__(self, kinds: int, characters: int, width: int, depth: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(kinds, width)
        self.positions = Positions(characters, width)
        self.blocks = nn.Sequential(*(Block(width, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions(self.characters(x))  # (m, characters, width)
        return self.layer(self.norm(self.blocks(x))).mT


def language_model(dataset: Dataset, width: int, depth: int = 2) -> LanguageModel:
    """A language model of ``width`` numbers a character for the texts of a data set.

    Raises ValueError for a width that the heads do not divide.
    """
    if width % HEADS:
        raise ValueError(f"the width of a language model must be a multiple of its {HEADS} heads, got {width}")
    return LanguageModel(dataset.classes, dataset.train.images.shape[1], width, depth)
