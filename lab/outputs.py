"""What many networks say of the same images, and whether they are right."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from lab.device import pick_device
from lab.images import Split, as_read
from rebasin.weights import Weights, take, to


@dataclass(frozen=True)
class Evaluation:
    """``correct`` (n, m) in bool and ``loss`` (n, m), the cross-entropy in nats, for n models on m images.

    Of texts both are (n, m, characters).
    """

    correct: Tensor
    loss: Tensor


@torch.no_grad()
def outputs(
    model: nn.Module, weights: Weights, images: Tensor, device: str = "auto", chunk: int = 1, batch: int = 5000
) -> Tensor:
    """The logits (n, m, classes), on the CPU, of models (n, ...) of one architecture for images (m, ...).

    Images are uint8, or pixels from 0 to 1. Of texts, logits are (n, m, classes, characters). ``chunk`` models and
    ``batch`` images go through at once, which changes the last bits. Raises ValueError for no models, no images, and
    outputs that are NaN or infinite, RuntimeError for a GPU that is not there.
    """
    n = len(next(iter(weights.values())))
    if not n or not len(images):
        raise ValueError(f"nothing to evaluate: {n} models, {len(images)} images")
    device = pick_device(device)
    model = copy.deepcopy(model).to(device).eval()
    of_some = vmap(lambda weights, x: functional_call(model, weights, (x,)), in_dims=(0, None))
    parts = []
    for start in range(0, n, chunk):
        some = to(take(weights, slice(start, start + chunk)), device)
        batches = (as_read(part.to(device)) for part in images.split(batch))
        parts.append(torch.cat([of_some(some, x).cpu() for x in batches], 1))
    logits = torch.cat(parts)
    if not torch.isfinite(logits).all():
        raise ValueError("a model's outputs are NaN or infinite")
    return logits


def evaluate(
    model: nn.Module, weights: Weights, split: Split, device: str = "auto", chunk: int = 1, batch: int = 5000
) -> Evaluation:
    """Whether models (n, ...) classify each image of a split correctly, and their loss; errors as of ``outputs``."""
    logits = outputs(model, weights, split.images, device, chunk, batch)
    labels = split.labels.expand(len(logits), *split.labels.shape)
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="none")
    return Evaluation(logits.argmax(2) == labels, loss.view_as(labels))
