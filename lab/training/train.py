"""Any number of networks of one recipe, trained stack by stack or read from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lab.bookkeeping import spread
from lab.bookkeeping.content import unchanged
from lab.device import check_room, pick_device
from lab.images import Dataset, Split
from lab.networks import build
from lab.training.recipe import Recipe, images_seen
from lab.training.stack import snapshot, train_stack
from rebasin.progress import track
from rebasin.weights import take


@dataclass(frozen=True)
class Trained:
    """``weights`` (snapshots, n, ...) at each asked-for epoch; ``loss`` (n, epochs), the mean training loss in nats.

    Among the weights are BatchNorm's running statistics. ``seconds`` (n,) is the wall time that each model took when it
    was trained: its share of its chunk's.
    """

    weights: dict[str, Tensor]
    loss: Tensor
    seconds: Tensor

    @property
    def last(self) -> dict[str, Tensor]:
        """The weights (n, ...) after the last epoch."""
        return take(self.weights, -1)


def train(
    recipe: Recipe,
    dataset: Dataset,
    n_models: int,
    snapshots: Iterable[int],
    device: str = "auto",
    chunk: int = 1,
    first: int = 0,
) -> Trained:
    """Train ``n_models`` of a recipe, those with the numbers from ``first`` on, or read them from the cache.

    ``snapshots`` are the epochs, ascending, whose weights are wanted; ``chunk`` models go through at once, always the
    same ones together. A finished chunk is kept on disk, and an unfinished one about once a minute, so that an
    interrupted run resumes. Raises ValueError for no models or epochs, epochs beyond the recipe's cosine, and negative
    penalties, RuntimeError for a GPU that is not there.
    """
    snapshots = tuple(snapshots)
    train_missing(recipe, dataset, n_models, snapshots, device, chunk, first)
    model, images, device = build(recipe.architecture, dataset, recipe.width), dataset.train, pick_device(device)
    with unchanged(images.images, images.labels):
        by_epoch = [
            [snapshot(model, recipe, images, numbers, epoch, device) for numbers in stacks(n_models, chunk, first)]
            for epoch in snapshots
        ]
    weights = {
        key: torch.stack([torch.cat([stack.weights[key] for stack in at_once]) for at_once in by_epoch])
        for key in by_epoch[0][0].weights
    }
    loss, seconds = (torch.cat([getattr(stack, name) for stack in by_epoch[-1]]) for name in ("loss", "seconds"))
    return Trained(weights, loss, seconds)


def train_missing(
    recipe: Recipe,
    dataset: Dataset,
    n_models: int,
    snapshots: Iterable[int],
    device: str = "auto",
    chunk: int = 1,
    first: int = 0,
) -> None:
    """Train what the cache lacks of what ``train`` would read, and keep it; with workers, chunks of it side by side."""
    snapshots = tuple(snapshots)
    _check(recipe, dataset, n_models, snapshots, chunk)
    device = pick_device(device)
    model, images = build(recipe.architecture, dataset, recipe.width), dataset.train

    with unchanged(images.images, images.labels):
        wanted = [
            numbers
            for numbers in spread.mine_first(stacks(n_models, chunk, first))
            if _missing(model, recipe, images, numbers, snapshots, device)
        ]
        count = sum(map(len, wanted))
        what = f"train {count} {recipe.architecture}, {chunk} side by side"
        if spread.workers() > 1 and len(wanted) > 1:
            same = model, recipe, images
            spread.compute(train_chunk, [(*same, numbers, snapshots, device) for numbers in wanted], what)
            for numbers in wanted:
                spread.check_here(snapshot.path(*same, numbers, epoch, device) for epoch in snapshots)
            return
        with track(count * snapshots[-1], what, "epoch") as bar:
            for numbers in wanted:
                train_chunk(model, recipe, images, numbers, snapshots, device, bar.update)


def _missing(
    model: nn.Module, recipe: Recipe, images: Split, numbers: tuple[int, ...], epochs: tuple[int, ...], device: str
) -> tuple[int, ...]:
    """Those of these epochs at which the cache lacks the networks with these numbers."""
    return tuple(e for e in epochs if not snapshot.path(model, recipe, images, numbers, e, device).exists())


def train_chunk(
    model: nn.Module,
    recipe: Recipe,
    images: Split,
    numbers: tuple[int, ...],
    epochs: tuple[int, ...],
    device: str,
    advance: Callable[[int], Any] = lambda done: None,
) -> None:
    """Train the networks with these numbers side by side, and keep them at each of these epochs, unless they are kept.

    Raises RuntimeError where the device has too little memory for them.
    """
    missing = _missing(model, recipe, images, numbers, epochs, device)
    if not missing:
        return
    check_room(_gigabytes(model, images, len(numbers)), device)
    done = train_stack(model, recipe, images, numbers, missing, device, advance)
    for epoch, weights in zip(missing, done, strict=True):
        snapshot.keep(weights, model, recipe, images, numbers, epoch, device)


def _gigabytes(model: nn.Module, images: Split, count: int) -> float:
    """Weights, gradients, two moments and a temporary of so many networks, in float32, and the data as they are."""
    size = sum(tensor.numel() for tensor in model.state_dict().values())
    return (count * size * 4 * 5 + images.images.numel()) / 1e9


def stacks(n_models: int, chunk: int, first: int = 0) -> list[tuple[int, ...]]:
    """The numbers of the networks that go through together."""
    numbers = range(first, first + n_models)
    return [tuple(numbers[start : start + chunk]) for start in range(0, n_models, chunk)]


def _check(recipe: Recipe, dataset: Dataset, n_models: int, snapshots: tuple[int, ...], chunk: int) -> None:
    if n_models < 1 or chunk < 1:
        raise ValueError(f"at least one model at a time can be trained, got n_models={n_models}, chunk={chunk}")
    if not snapshots or min(snapshots) < 1 or list(snapshots) != sorted(set(snapshots)):
        raise ValueError(f"snapshots must be ascending epochs from 1, got {snapshots}")
    if recipe.schedule == "cosine" and snapshots[-1] > recipe.schedule_epochs:
        raise ValueError(f"the recipe's cosine ends after {recipe.schedule_epochs} epochs, got snapshots={snapshots}")
    if min(recipe.l1, recipe.l2) < 0:
        raise ValueError(f"penalties cannot be negative, got l1={recipe.l1}, l2={recipe.l2}")
    fewest = min(len(images_seen(recipe, dataset.train.labels, number)) for number in range(min(n_models, 2)))
    if recipe.batch_size > fewest:
        raise ValueError(f"a batch of {recipe.batch_size} is larger than the {fewest} images")
