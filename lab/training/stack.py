"""A stack of networks trained side by side as one, each with its own start and its own batch order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from lab.bookkeeping.cache import kept, read, write
from lab.images import Split, as_read
from lab.networks.initial import initial_weights
from lab.training.augmentation import augment
from lab.training.recipe import Recipe, images_seen, share_of_rate

MOMENTUM = 0.9  # of SGD
CHECKPOINT_SECONDS = 60  # an unfinished stack is kept about so often


@dataclass(frozen=True)
class Snapshot:
    """A stack of n networks after some epochs: ``weights`` (n, ...), BatchNorm's running statistics among them.

    ``loss`` (n, epochs) is the mean training loss of each epoch in nats; ``seconds`` (n,) the wall time that each
    network took: its share of the stack's.
    """

    weights: dict[str, Tensor]
    loss: Tensor
    seconds: Tensor


@kept
def snapshot(
    model: nn.Module, recipe: Recipe, images: Split, numbers: tuple[int, ...], epochs: int, device: str
) -> Snapshot:
    """The networks with these numbers after so many epochs, trained side by side.

    Which networks are trained together changes the last bits of their weights, and with them the whole of a long
    training: so a stack is trained, kept and trained again as one.
    """
    (last,) = train_stack(model, recipe, images, numbers, (epochs,), device)
    return last


def train_stack(
    model: nn.Module,
    recipe: Recipe,
    images: Split,
    numbers: tuple[int, ...],
    epochs: Sequence[int],
    device: str,
    advance: Callable[[int], Any] = lambda done: None,
) -> Iterator[Snapshot]:
    """Train the networks with these numbers side by side, and yield them after each of ``epochs``, ascending.

    An unfinished stack is kept about once a minute, so that an interrupted run resumes. ``advance(n)`` is told of
    every n epochs of one network that are done.
    """
    model = copy.deepcopy(model).to(device)
    pixels, labels = images.images.to(device), images.labels.to(device)
    weights, optimiser = start(model, recipe, numbers, device)
    losses: list[Tensor] = []
    unfinished = snapshot.path(model.eval(), recipe, images, numbers, 0, device).with_suffix(".unfinished")
    began = saved_at = time.monotonic()
    state = read(unfinished)
    if state is not None and len(state["losses"]) < epochs[0]:
        with torch.no_grad():
            for key, tensor in weights.items():
                tensor.copy_(state["weights"][key])
        optimiser.load_state_dict(state["optimiser"])
        losses, began = state["losses"], began - state["seconds"]
        advance(len(losses) * len(numbers))
    for epoch in range(len(losses), epochs[-1]):
        batch_losses = list(train_epoch(model, recipe, weights, optimiser, pixels, labels, numbers, epoch))
        losses.append(torch.stack(batch_losses).mean(0).cpu())
        advance(len(numbers))
        seconds = time.monotonic() - began
        if epoch + 1 in epochs:
            each = torch.full((len(numbers),), seconds / len(numbers))
            yield Snapshot(_detached(weights), torch.stack(losses, 1), each)
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS and epoch + 1 < epochs[-1]:
            state = {"weights": _detached(weights), "optimiser": optimiser.state_dict()}
            write(unfinished, state | {"losses": losses, "seconds": seconds})
            saved_at = time.monotonic()
    unfinished.unlink(missing_ok=True)


def start(
    model: nn.Module, recipe: Recipe, numbers: Sequence[int], device: torch.device | str
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
    numbers: Sequence[int],
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
    model.train()
    for batch in range(batches):
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share_of_rate(recipe, epoch + batch / batches)
        picked = order[:, batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        inputs = as_read(images[picked])
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


def _detached(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().clone() for key, tensor in weights.items()}


def _seed(seed: int, number: int, purpose: int) -> int:
    """A seed of its own for each model and purpose (0 the start, e the order of epoch e)."""
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1, np.uint64)[0]) >> 1
