"""Which images each step of a training sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def drawn_batches(images: int, steps: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The numbers of ``batch`` images for each step, drawn without repetition until all have had their turn.

    There are fewer in a batch if there are not so many images.
    """
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < min(batch, images):
            order = torch.randperm(images, generator=generator)
        yield order[:batch]
        order = order[batch:]
