"""Test many models at once: whether each image is classified correctly, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from lab.data import Split
from lab.device import pick_device
from rebasin.weights import Weights


@dataclass(frozen=True)
class Evaluation:
    """``correct`` (n, m) in bool and ``loss`` (n, m), the cross-entropy in nats, for n models on m images."""

    correct: Tensor
    loss: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module, weights: Weights, split: Split, device: str = "auto", chunk: int = 1, batch: int = 5000
) -> Evaluation:
    """Evaluate models (n, ...) of one architecture on a split, ``chunk`` models and ``batch`` images at once.

    Raises ValueError for no models, no images, or non-finite outputs, RuntimeError for a GPU that is not there.
    """
    n = len(next(iter(weights.values())))
    if not n or not len(split.labels):
        raise ValueError(f"nothing to evaluate: {n} models, {len(split.labels)} images")
    device = pick_device(device)
    model = model.to(device).eval()
    outputs = vmap(lambda one, x: functional_call(model, one, (x,)), in_dims=(0, None))
    correct = torch.empty(n, len(split.labels), dtype=torch.bool)
    loss = torch.empty(n, len(split.labels))
    for first in range(0, len(split.labels), batch):
        images = split.images[first : first + batch].to(device).float() / 255
        labels = split.labels[first : first + batch].to(device)
        for start in range(0, n, chunk):
            some = {key: tensor[start : start + chunk].to(device) for key, tensor in weights.items()}
            logits = outputs(some, images)
            if not torch.isfinite(logits).all():
                raise ValueError("a model's outputs are NaN or infinite")
            window = slice(start, start + chunk), slice(first, first + batch)
            correct[window] = (logits.argmax(-1) == labels).cpu()
            each = labels.expand(len(logits), -1)
            loss[window] = cross_entropy(logits.flatten(0, 1), each.flatten(), reduction="none").view_as(each).cpu()
    return Evaluation(correct, loss)
