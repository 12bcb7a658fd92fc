"""Parents that were not trained from scratch: trained on all classes first, and on those of their task afterwards."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.device import pick_device
from lab.images import Dataset, Split
from lab.networks import build
from lab.training.plan import Planned
from lab.training.recipe import Recipe
from lab.training.stack import start, train_epoch
from lab.training.train import stacks, train
from rebasin.weights import Weights, take


def tuned(
    networks: Planned, tasks: Sequence[Dataset], whole: Dataset, foundation: int, shared: bool, device: str
) -> tuple[list[dict[str, Tensor]], float]:
    """The networks (n, ...) of each task, as many of each as of another, and the seconds that training them took.

    Their foundations are trained on all classes for so many epochs: a shared one for the k-th networks of all tasks, or
    one for each, by seeds of their own. Then each goes on with the classes of its task, for the plan's epochs, and a
    head of its own. As in *The Non-Local Model Merging Problem* (arXiv 2410.12766), whose foundations are larger.
    """
    per_task, trained, seconds = networks.models // len(tasks), [], 0.0
    for number, task in enumerate(tasks):
        own = replace(networks.recipe, seed=networks.recipe.seed + number)
        first = networks.recipe if shared else own
        begun = train(first, whole, per_task, [foundation], device, networks.chunk)
        model = build(own.architecture, task, own.width)
        calls = []
        for numbers in stacks(per_task, networks.chunk):
            some = take(begun.last, slice(numbers[0], numbers[-1] + 1))
            calls.append((model, own, task.train, numbers, some, networks.epochs[-1], pick_device(device)))
        parts = list(each(fine_tuned, calls, "fine-tune"))
        trained.append({key: torch.cat([weights[key] for weights, _ in parts]) for key in parts[0][0]})
        seconds += sum(taken for _, taken in parts)
        if number == 0 or not shared:
            seconds += float(begun.seconds.sum())
    return trained, seconds


@kept
def fine_tuned(
    model: nn.Module,
    recipe: Recipe,
    images: Split,
    numbers: tuple[int, ...],
    foundation: Weights,
    epochs: int,
    device: str,
) -> tuple[dict[str, Tensor], float]:
    """These networks (n, ...) trained on images from a foundation (n, ...) on, side by side, and the seconds it took.

    What has another shape there, which is the head, begins as the recipe says.
    """
    began = time.monotonic()
    model = copy.deepcopy(model).to(device)
    pixels, labels = images.images.to(device), images.labels.to(device)
    weights, optimiser = start(model, recipe, numbers, device)
    with torch.no_grad():
        for key, tensor in weights.items():
            if tensor.shape == foundation[key].shape:
                tensor.copy_(foundation[key])
    for epoch in range(epochs):
        for _ in train_epoch(model, recipe, weights, optimiser, pixels, labels, numbers, epoch):
            pass
    return {key: tensor.detach().cpu() for key, tensor in weights.items()}, time.monotonic() - began
