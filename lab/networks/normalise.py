"""The first step of every architecture: pixels in [0, 1] to numbers of mean 0 and deviation 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation per channel: (m, channels, height, width) to the same.

    The two are constants of the data set and no weights: they are kept out of the state dict.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
