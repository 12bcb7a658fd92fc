"""Test many models at once: whether each image is classified correctly, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from rebasin.lab.data import Split
from rebasin.lab.device import pick_device
from rebasin.merging import interpolate
from rebasin.permutation import Weights
from rebasin.progress import track


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


def evaluate_path(
    model: nn.Module, a: Weights, b: Weights, lams: Tensor, split: Split, device: str = "auto", chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """Accuracy and mean loss at the points ``(1 - lam) a + lam b`` for pairs (n, ...): (n, points) each."""
    accuracy, loss = [], []
    with track(len(lams), f"{len(next(iter(a.values())))} paths, {len(split.labels)} images", "point") as bar:
        for lam in lams.tolist():
            at = evaluate(model, interpolate(a, b, lam), split, device, chunk)
            accuracy.append(at.correct.double().mean(1))
            loss.append(at.loss.double().mean(1))
            bar.update()
    return torch.stack(accuracy, 1), torch.stack(loss, 1)


def barrier(values: Tensor, lams: Tensor) -> tuple[Tensor, Tensor]:
    """Two barriers along paths ``values`` (*batch, points), of a quantity that is better when lower.

    First the largest value minus the mean of the two ends (Git Re-Basin, definition 2.2), then the largest height above
    the straight line between the ends: (*batch,) each. Raises ValueError unless the ends are among the points.
    """
    if lams[0] != 0 or lams[-1] != 1:
        raise ValueError("the points of a path must begin at 0 and end at 1")
    start, end = values[..., :1], values[..., -1:]
    line = (1 - lams) * start + lams * end
    return (values - (start + end) / 2).amax(-1), (values - line).amax(-1)
