"""Unmerged models stopped early, at the accuracy that another model has: the control for "it is only less accurate"."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.device import pick_device
from lab.images import Dataset, Split
from lab.networks import build
from lab.outputs import evaluate
from lab.training.recipe import Recipe
from lab.training.stack import start, train_epoch
from rebasin.progress import track

GROWTH = 1.05  # from one tested step to the next


@dataclass(frozen=True)
class Stopped:
    """``weights`` (targets, n, ...), with their held-out ``accuracy`` and ``steps`` of training, (targets, n) each."""

    weights: dict[str, Tensor]
    accuracy: Tensor
    steps: Tensor


def stop_early(
    recipe: Recipe,
    dataset: Dataset,
    numbers: list[int],
    targets: Tensor,
    epochs: int,
    device: str = "auto",
    chunk: int = 1,
) -> Stopped:
    """Train models with these numbers, and keep of each the weights nearest in held-out accuracy to its targets.

    ``targets`` (targets, n) are accuracies in [0, 1]. A model trains exactly as ``train`` would train it; it is tested
    after 1, 2, 3, ... steps, then every 5 % more, until all of its chunk have passed their highest target, or to the
    last of ``epochs``. Raises ValueError without held-out images, or if there is no target for each model.
    """
    if not len(dataset.held_out.labels):
        raise ValueError("models are stopped early by their accuracy on held-out images, and there are none")
    if targets.ndim != 2 or targets.shape[1] != len(numbers) or not targets.numel():
        raise ValueError(f"targets must be (targets, {len(numbers)}), one row or more: got {tuple(targets.shape)}")
    device = pick_device(device)
    model = build(recipe.architecture, dataset, recipe.width)
    images = dataset.train, dataset.held_out
    some = [slice(first, first + chunk) for first in range(0, len(numbers), chunk)]
    calls = [(model, recipe, *images, tuple(numbers[rows]), targets[:, rows], epochs, device) for rows in some]
    what, parts = f"stop {len(numbers)} models early", []
    with track(len(numbers), what, "model") as bar:
        for part in each(stopped_chunk, calls, what):
            parts.append(part)
            bar.update(part.steps.shape[1])
    return Stopped(
        {key: torch.cat([part.weights[key] for part in parts], 1) for key in parts[0].weights},
        torch.cat([part.accuracy for part in parts], 1),
        torch.cat([part.steps for part in parts], 1),
    )


@kept
def stopped_chunk(
    model: torch.nn.Module,
    recipe: Recipe,
    seen: Split,
    held_out: Split,
    numbers: tuple[int, ...],
    targets: Tensor,
    epochs: int,
    device: str,
) -> Stopped:
    """Models with these numbers, trained side by side until all have passed their highest target."""
    model = copy.deepcopy(model).to(device)
    images, labels = seen.images.to(device), seen.labels.to(device)
    weights, optimiser = start(model, recipe, numbers, device)
    nearest = {key: torch.zeros(len(targets), *tensor.shape, dtype=tensor.dtype) for key, tensor in weights.items()}
    accuracy = torch.full(targets.shape, torch.inf, dtype=torch.float64)
    steps = torch.zeros(targets.shape, dtype=torch.int64)
    step = tested = 0
    best = torch.zeros(len(numbers), dtype=torch.float64)
    for epoch in range(epochs):
        for _ in train_epoch(model, recipe, weights, optimiser, images, labels, numbers, epoch):
            step += 1
            if step < math.ceil(tested * GROWTH):
                continue
            tested = step
            now = {key: tensor.detach() for key, tensor in weights.items()}
            reached = evaluate(model, now, held_out, device, len(numbers)).correct.double().mean(1)
            going = best <= targets.amax(0)  # a model that is done waits for the others of its chunk
            nearer = going & ((reached - targets).abs() < (accuracy - targets).abs())
            for key, tensor in now.items():
                mask = nearer.reshape(*nearer.shape, *[1] * (tensor.ndim - 1))
                nearest[key] = torch.where(mask, tensor.cpu(), nearest[key])
            accuracy = torch.where(nearer, reached, accuracy)
            steps[nearer] = step
            best = torch.maximum(best, reached)
            if (best > targets.amax(0)).all():
                return Stopped(nearest, accuracy, steps)
    return Stopped(nearest, accuracy, steps)
