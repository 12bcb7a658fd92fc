"""Many models trained at once as one stacked network, each with its own start and its own batch order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from rebasin.lab.cache import cache_folder, code_fingerprint, fingerprint, write_atomically
from rebasin.lab.data import Dataset
from rebasin.lab.device import pick_device
from rebasin.lab.models import build, initial_weights
from rebasin.progress import track


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, up to the number of epochs: Adam at a constant rate, on cross-entropy plus penalties."""

    architecture: str = "mlp"
    width: int = 512  # units of a hidden layer
    batch_size: int = 512  # images; an epoch's last, incomplete batch is dropped
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # Adam's own: its gradient is added to the loss's, for biases too
    seed: int = 0  # with its own number, all a model's randomness depends on
    initial: str = "torch"  # how the weights begin: torch or lecun_normal
    l1: float = 0.0  # times the sum of |w|, added to the loss; weight matrices only
    l2: float = 0.0  # times the sum of w^2, likewise


@dataclass(frozen=True)
class Trained:
    """``weights`` (snapshots, n, ...) at each asked-for epoch; ``loss`` (n, epochs), the mean training loss in nats.

    ``seconds`` (n,) is the wall time that each model took when it was trained: its share of its chunk's.
    """

    weights: dict[str, Tensor]
    loss: Tensor
    seconds: Tensor


def recipe_key(recipe: Recipe, dataset: Dataset) -> str:
    """What the trained weights depend on, beside a model's number and the number of epochs."""
    code = code_fingerprint("rebasin.lab.models", "rebasin.lab.training")
    return fingerprint(asdict(recipe), dataset.fingerprint, code)


def train(
    recipe: Recipe,
    dataset: Dataset,
    n_models: int,
    snapshots: tuple[int, ...],
    device: str = "auto",
    chunk: int = 1,
) -> Trained:
    """Train models 0 to ``n_models`` - 1 of a recipe, or read them from the cache.

    ``snapshots`` are the epochs, ascending, whose weights are wanted; ``chunk`` models go through at once. A finished
    model is kept on disk, and an unfinished chunk about once a minute, so that an interrupted run resumes.
    Raises ValueError for no models or epochs and negative penalties, RuntimeError for a GPU that is not there.
    """
    if n_models < 1 or chunk < 1:
        raise ValueError(f"at least one model at a time can be trained, got n_models={n_models}, chunk={chunk}")
    if not snapshots or min(snapshots) < 1 or list(snapshots) != sorted(set(snapshots)):
        raise ValueError(f"snapshots must be ascending epochs from 1, got {snapshots}")
    if min(recipe.l1, recipe.l2) < 0:
        raise ValueError(f"penalties cannot be negative, got l1={recipe.l1}, l2={recipe.l2}")
    if recipe.batch_size > len(dataset.train.labels):
        raise ValueError(f"a batch of {recipe.batch_size} is larger than the {len(dataset.train.labels)} images")
    device = pick_device(device)
    folder = cache_folder() / "models" / recipe_key(recipe, dataset)
    files = [[folder / f"{number:05d}-{epoch}.pt" for epoch in snapshots] for number in range(n_models)]
    missing = [number for number, paths in enumerate(files) if not all(path.exists() for path in paths)]
    if missing:
        model = build(recipe.architecture, dataset, recipe.width).to(device)
        images, labels = dataset.train.images.to(device), dataset.train.labels.to(device)
        size = sum(tensor.numel() for tensor in model.state_dict().values())
        # Weights, gradients, two moments and a temporary, in float32, and the data as they are.
        memory = (chunk * size * 4 * 5 + images.numel()) / 1e9
        what = f"train {len(missing)} {recipe.architecture}, {chunk} at once, about {memory:.1f} GB"
        with track(len(missing) * snapshots[-1], what, "epoch") as bar:
            for first in range(0, len(missing), chunk):
                numbers = missing[first : first + chunk]
                done = _train_chunk(model, recipe, images, labels, numbers, snapshots, folder, bar)
                for position, number in enumerate(numbers):
                    for snapshot, path in enumerate(files[number]):
                        epochs = snapshots[snapshot]
                        kept = {
                            "weights": {key: w[snapshot, position].clone() for key, w in done.weights.items()},
                            "loss": done.loss[position, :epochs].clone(),
                            "seconds": done.seconds[position] * epochs / snapshots[-1],
                        }
                        write_atomically(path, lambda partial, kept=kept: torch.save(kept, partial))
                _checkpoint(folder, numbers, snapshots).unlink(missing_ok=True)
    read = [[torch.load(path, map_location="cpu", weights_only=True) for path in paths] for paths in files]
    weights = {
        key: torch.stack([torch.stack([kept["weights"][key] for kept in model]) for model in read], 1)
        for key in read[0][0]["weights"]
    }
    loss, seconds = (torch.stack([model[-1][key] for model in read]) for key in ("loss", "seconds"))
    return Trained(weights, loss, seconds)


def _train_chunk(
    model: nn.Module,
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    numbers: list[int],
    snapshots: tuple[int, ...],
    folder: Path,
    bar,
) -> Trained:
    """Train the models with these numbers side by side; weights and losses come back on the CPU."""
    weights, optimiser = start(model, recipe, numbers, images.device)
    kept: list[dict[str, Tensor]] = []
    losses: list[Tensor] = []
    started = time.monotonic()
    checkpoint = _checkpoint(folder, numbers, snapshots)
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for key, tensor in weights.items():
                tensor.copy_(saved["weights"][key])
        optimiser.load_state_dict(saved["optimiser"])
        kept, losses = saved["kept"], saved["losses"]
        started -= saved["seconds"]
        bar.update(len(losses) * len(numbers))
    written = time.monotonic()
    for epoch in range(len(losses), snapshots[-1]):
        batch_losses = list(train_epoch(model, recipe, weights, optimiser, images, labels, numbers, epoch))
        losses.append(torch.stack(batch_losses).mean(0).cpu())
        if epoch + 1 in snapshots:
            kept.append({key: tensor.detach().cpu().clone() for key, tensor in weights.items()})
        bar.update(len(numbers))
        if time.monotonic() - written > 60 and epoch + 1 < snapshots[-1]:
            state = {
                "weights": {key: tensor.detach() for key, tensor in weights.items()},
                "optimiser": optimiser.state_dict(),
                "kept": kept,
                "losses": losses,
                "seconds": time.monotonic() - started,
            }
            write_atomically(checkpoint, lambda partial: torch.save(state, partial))  # noqa: B023
            written = time.monotonic()
    seconds = torch.full((len(numbers),), (time.monotonic() - started) / len(numbers))
    return Trained({key: torch.stack([s[key] for s in kept]) for key in kept[0]}, torch.stack(losses, 1), seconds)


def start(
    model: nn.Module, recipe: Recipe, numbers: list[int], device: torch.device | str
) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
    """The initial weights (n, ...) of the models with these numbers, and the optimiser that will change them."""
    starts = [initial_weights(model, recipe.initial, _seed(recipe.seed, number, 0)) for number in numbers]
    weights = {k: torch.stack([one[k] for one in starts]).to(device) for k in starts[0]}
    for tensor in weights.values():
        tensor.requires_grad_()
    optimiser = torch.optim.Adam(
        weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    return weights, optimiser


def train_epoch(
    model: nn.Module,
    recipe: Recipe,
    weights: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    numbers: list[int],
    epoch: int,
) -> Iterator[Tensor]:
    """Epoch ``epoch``, from 0, batch by batch: ``weights`` (n, ...) change in place before each yield.

    Yields the batch's cross-entropy (n,) in nats, before the change. Each model sees the images in an order of its own.
    """
    matrices = [tensor for tensor in weights.values() if tensor.ndim > 2]

    def loss_of_one(one: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, one, (x,)), y)

    loss_of_each = vmap(loss_of_one)
    generators = [torch.Generator().manual_seed(_seed(recipe.seed, number, epoch + 1)) for number in numbers]
    order = torch.stack([torch.randperm(len(labels), generator=g) for g in generators]).to(images.device)
    for first in range(0, len(labels) - recipe.batch_size + 1, recipe.batch_size):
        picked = order[:, first : first + recipe.batch_size]
        loss = loss_of_each(weights, images[picked].float() / 255, labels[picked])
        objective = loss.sum()
        if recipe.l1:
            objective = objective + recipe.l1 * sum(tensor.abs().sum() for tensor in matrices)
        if recipe.l2:
            objective = objective + recipe.l2 * sum(tensor.square().sum() for tensor in matrices)
        objective.backward()
        optimiser.step()
        optimiser.zero_grad()
        yield loss.detach()


def _checkpoint(folder: Path, numbers: list[int], snapshots: tuple[int, ...]) -> Path:
    """Where the unfinished training of these models is kept."""
    return folder / f"unfinished-{fingerprint(numbers, snapshots)}.pt"


def _seed(seed: int, number: int, purpose: int) -> int:
    """A seed of its own for each model and purpose (0 the start, e the order of epoch e)."""
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1, np.uint64)[0]) >> 1
