"""Many models trained at once as one stacked network, each with its own start and its own batch order."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from rebasin.lab.augmentation import augment
from rebasin.lab.cache import cache_folder, code_fingerprint, fingerprint, write_atomically
from rebasin.lab.data import Dataset
from rebasin.lab.device import pick_device
from rebasin.lab.models import build, initial_weights, modules_of
from rebasin.progress import track

OPTIMISERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine")
SUBSETS = ("all", "half", "split")
MOMENTUM = 0.9  # of SGD


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, up to the number of epochs: on cross-entropy plus penalties.

    Raises ValueError for an optimiser, schedule or subset that is not known, and a schedule without epochs to run over.
    """

    architecture: str = "mlp"
    width: int = 512  # units or channels of the first layer
    batch_size: int = 512  # images; an epoch's last, incomplete batch is dropped
    learning_rate: float = 1e-3  # the highest, of a schedule
    weight_decay: float = 0.0  # the optimiser's own: its gradient is added to the loss's, for biases and norms too
    seed: int = 0  # with its own number, all a model's randomness depends on
    initial: str = "torch"  # how the weights begin: torch or lecun_normal
    l1: float = 0.0  # times the sum of |w|, added to the loss; weight matrices only
    l2: float = 0.0  # times the sum of w^2, likewise
    optimiser: str = "adam"  # or sgd
    schedule: str = "constant"  # or cosine: down to 0, batch by batch
    schedule_epochs: int = 0  # how long a cosine takes, warm-up included; training may stop earlier
    warmup_epochs: int = 0  # in which the learning rate rises from 0 in a straight line, before the schedule
    augmented: bool = False  # whether each image is seen in a new random view every time
    subset: str = "all"  # the training images that a model sees: all, half or split, see ``images_seen``

    def __post_init__(self) -> None:
        for what, name, known in (
            ("optimiser", self.optimiser, OPTIMISERS),
            ("schedule", self.schedule, SCHEDULES),
            ("subset", self.subset, SUBSETS),
        ):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}: there are {', '.join(known)}")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs cannot be negative, got {self.warmup_epochs}")
        if self.schedule == "cosine" and self.schedule_epochs <= self.warmup_epochs:
            raise ValueError(
                f"a cosine needs schedule_epochs beyond its {self.warmup_epochs} of warm-up, got {self.schedule_epochs}"
            )


@dataclass(frozen=True)
class Trained:
    """``weights`` (snapshots, n, ...) at each asked-for epoch; ``loss`` (n, epochs), the mean training loss in nats.

    Among the weights are BatchNorm's running statistics. ``seconds`` (n,) is the wall time that each model took when it
    was trained: its share of its chunk's.
    """

    weights: dict[str, Tensor]
    loss: Tensor
    seconds: Tensor


def recipe_key(recipe: Recipe, dataset: Dataset) -> str:
    """What the trained weights depend on, beside a model's number and the number of epochs."""
    views = {augment.__module__} if recipe.augmented else set()
    code = code_fingerprint("rebasin.lab.training", *modules_of(recipe.architecture), *views)
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
    Raises ValueError for no models or epochs, epochs beyond the recipe's cosine, and negative penalties, RuntimeError
    for a GPU that is not there.
    """
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
    # BatchNorm's running statistics are no parameters: the forward pass changes them.
    parameters = [weights[name].requires_grad_() for name, _ in model.named_parameters()]
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimiser == "sgd":
        return weights, torch.optim.SGD(parameters, momentum=MOMENTUM, **common)
    return weights, torch.optim.Adam(parameters, **common)


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
    The learning rate is the optimiser's first one times the recipe's ``share_of_rate``; ``model`` is set to train.
    """
    matrices = [tensor for tensor in weights.values() if tensor.ndim > 2]

    def loss_of_one(one: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, one, (x,)), y)

    loss_of_each = vmap(loss_of_one)
    generators = [torch.Generator().manual_seed(_seed(recipe.seed, number, epoch + 1)) for number in numbers]
    seen = [images_seen(recipe, labels.cpu(), number) for number in numbers]
    # Of a split, odd numbers may have fewer images: then all models have as many batches as these, alone or not.
    m = min(len(images_seen(recipe, labels.cpu(), number)) for number in (0, 1))
    order = torch.stack(
        [one[torch.randperm(len(one), generator=g)[:m]] for one, g in zip(seen, generators, strict=True)]
    )
    order, batches = order.to(images.device), m // recipe.batch_size
    for batch in range(batches):
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share_of_rate(recipe, epoch + batch / batches)
        model.train()  # whoever asked for the last batch may have evaluated the model since
        picked = order[:, batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        inputs = images[picked].float() / 255
        if recipe.augmented:
            inputs = torch.stack([augment(x, g) for x, g in zip(inputs, generators, strict=True)])
        loss = loss_of_each(weights, inputs, labels[picked])
        objective = loss.sum()
        if recipe.l1:
            objective = objective + recipe.l1 * sum(tensor.abs().sum() for tensor in matrices)
        if recipe.l2:
            objective = objective + recipe.l2 * sum(tensor.square().sum() for tensor in matrices)
        objective.backward()
        optimiser.step()
        optimiser.zero_grad()
        yield loss.detach()


def images_seen(recipe: Recipe, labels: Tensor, number: int) -> Tensor:
    """The numbers (m,) of the training images, with these labels (m,), that model ``number`` is trained on.

    With ``half`` they are a random half, each model's own. With ``split`` they are 20 % of the images of the first half
    of the classes and 80 % of those of the other half for an even number; the rest is the next, odd number's. (Git
    Re-Basin, sections 5.4 and 5.5.)
    """
    if recipe.subset == "all":
        return torch.arange(len(labels))
    half = recipe.subset == "half"
    drawn = np.random.default_rng((recipe.seed, number if half else number // 2, 0)).permutation(len(labels))
    if half:
        return torch.from_numpy(np.sort(drawn[: len(labels) // 2]))
    classes = labels[drawn].numpy()
    # How many images of its own class come before each in the draw, as a share of the class.
    share = np.empty(len(drawn))
    for label in np.unique(classes):
        share[classes == label] = np.arange((classes == label).sum()) / (classes == label).sum()
    first = share < np.where(classes < (classes.max() + 1) // 2, 0.2, 0.8)
    return torch.from_numpy(np.sort(drawn[first if number % 2 == 0 else ~first]))


def share_of_rate(recipe: Recipe, epochs: float) -> float:
    """The share of the learning rate that is in force after so many epochs of training (Loshchilov & Hutter 2017)."""
    if epochs < recipe.warmup_epochs:
        return epochs / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return 1.0
    done = (epochs - recipe.warmup_epochs) / (recipe.schedule_epochs - recipe.warmup_epochs)
    return (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _checkpoint(folder: Path, numbers: list[int], snapshots: tuple[int, ...]) -> Path:
    """Where the unfinished training of these models is kept."""
    return folder / f"unfinished-{fingerprint(numbers, snapshots)}.pt"


def _seed(seed: int, number: int, purpose: int) -> int:
    """A seed of its own for each model and purpose (0 the start, e the order of epoch e)."""
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1, np.uint64)[0]) >> 1
