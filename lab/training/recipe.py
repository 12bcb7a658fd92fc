"""How a network is trained: every hyper-parameter, with its unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OPTIMISERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine")
SUBSETS = ("all", "half", "split")


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
