"""White-box attacks on many models at once: which images can be changed a little and are then misclassified.

Everything is measured in pixels from 0 to 1: a model's normalisation is part of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from lab.bookkeeping.cache import kept
from lab.device import pick_device
from rebasin.progress import track
from rebasin.weights import Weights, take, to

LOSSES = ("cross_entropy", "margin")
NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent on a loss (PGD, Madry et al. 2018), within a ball around each image.

    A step has the length 2.5 ``epsilon`` / ``steps``, and ``epsilon`` if it is the only one.
    """

    loss: str = "cross_entropy"  # or margin: the largest other logit minus the true class's; their scale is no matter
    norm: str = "linf"  # of the ball, and of a step: the gradient's sign (linf) or direction (l2)
    steps: int = 20
    restarts: int = 1
    random_start: bool = True  # uniform in the ball, or else the image itself

    def __post_init__(self) -> None:
        for name, value, choices in (("loss", self.loss, LOSSES), ("norm", self.norm, NORMS)):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}: there are {', '.join(choices)}")
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"an attack needs a step and a start, got steps={self.steps}, restarts={self.restarts}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"{self.restarts} starts from the image itself are all the same: use a random start")


def fgsm(loss: str = "cross_entropy", norm: str = "linf") -> Attack:
    """One step from the image itself (Goodfellow et al. 2015)."""
    return Attack(loss, norm, steps=1, random_start=False)


def suite(losses: Sequence[str], norm: str = "linf", steps: int = 20, restarts: int = 1) -> list[tuple[str, Attack]]:
    """The attacks that an image has to survive, by name: FGSM and PGD with each loss."""
    attacks = []
    for loss in losses:
        attacks += [("fgsm", fgsm(loss, norm)), ("pgd", Attack(loss, norm, steps, restarts))]
    return attacks


@torch.no_grad()
def perturb(
    model: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    attack: Attack,
    seed: int = 0,
    device: str = "auto",
    chunk: int = 1,
    batch: int = 500,
) -> Tensor:
    """The images (m, channels, height, width) as attacked for each of the models (n, ...): (n, m, ...) on the CPU.

    Every image goes through all the steps, misclassified or not; of several restarts the one that ends at the highest
    loss is kept. ``chunk`` models and ``batch`` images go through at once. The random starts depend on ``seed``, the
    restart and the image's position alone, so all models get the same.
    Raises ValueError for input that cannot be attacked, RuntimeError for a GPU that is not there.
    """
    device = pick_device(device)
    _refuse_bad_input(model, weights, images, labels, [epsilon], device, chunk, batch)
    starts = _starts(images, attack, seed)
    perturbed = torch.empty(len(next(iter(weights.values()))), *images.shape, dtype=images.dtype)
    for models, window, some, clean, y in _parts(weights, images, labels, device, chunk, batch):
        best, highest = clean, torch.full(y.shape, -math.inf, dtype=clean.dtype, device=device)
        for start in starts[:, window]:
            x = _into_ball(clean + epsilon * start.to(device), clean, epsilon, attack.norm)
            for _ in range(attack.steps):
                _, gradient = _logits_and_gradient(model, some, x, y, attack.loss)
                x = _step(x, gradient, clean, epsilon, attack)
            reached = _losses(_logits(model, some, x), y, attack.loss)
            better = (reached > highest).reshape(*y.shape, *[1] * (x.ndim - 2))
            best, highest = torch.where(better, x, best), torch.maximum(reached, highest)
        perturbed[models, window] = best.cpu()
    return perturbed


@torch.no_grad()
def surviving(
    model: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    attack: Attack,
    seed: int = 0,
    device: str = "auto",
    chunk: int = 1,
    batch: int = 500,
) -> Tensor:
    """Which images (m, channels, height, width) each model (n, ...) gets right at each epsilon, whatever is tried.

    Returns (n, epsilons, m) in bool, on the CPU. ``epsilons`` ascend; at 0 an image survives if it is classified
    correctly as it is. It is lost as soon as one point on the way of an attack is misclassified, and then at
    every larger epsilon too, whose ball holds that point: only what survives is attacked further, which saves most of
    the work. The other arguments and the errors are those of ``perturb``.
    """
    device = pick_device(device)
    _refuse_bad_input(model, weights, images, labels, epsilons, device, chunk, batch)
    starts = _starts(images, attack, seed)
    survivors = torch.empty(len(next(iter(weights.values()))), len(epsilons), len(images), dtype=torch.bool)
    for models, window, some, clean, y in _parts(weights, images, labels, device, chunk, batch):
        alive = _logits(model, some, clean).argmax(-1) == y
        for position, epsilon in enumerate(epsilons):
            if epsilon > 0:
                for start in starts[:, window]:
                    _hunt(model, some, clean, y, alive, start.to(device), epsilon, attack)
            survivors[models, position, window] = alive.cpu()
    return survivors


@kept
def survivors(
    model: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    attack: Attack,
    seed: int,
    device: str,
    chunk: int,
) -> Tensor:
    """``surviving``, kept: what was attacked before is read."""
    return surviving(copy.deepcopy(model), weights, images, labels, epsilons, attack, seed, device, chunk)


def _hunt(
    model: nn.Module,
    weights: Weights,
    clean: Tensor,
    labels: Tensor,
    alive: Tensor,
    start: Tensor,
    epsilon: float,
    attack: Attack,
) -> None:
    """Attack the images (n, m, ...) that are ``alive`` (n, m) from one start; strike out the misclassified."""
    rows = torch.arange(len(alive), device=alive.device).unsqueeze(1)
    x = _into_ball(clean + epsilon * start, clean, epsilon, attack.norm)
    for step in range(attack.steps + 1):
        # Each model's survivors first, as many for all as the largest count: some are lost ones, which changes nothing.
        at = torch.argsort(~alive, stable=True)[:, : int(alive.sum(1).max())]
        if not at.numel():
            return
        here, y = x[rows, at], labels[rows, at]
        if step < attack.steps:
            logits, gradient = _logits_and_gradient(model, weights, here, y, attack.loss)
            x[rows, at] = _step(here, gradient, clean[rows, at], epsilon, attack)
        else:
            logits = _logits(model, weights, here)
        alive[rows, at] &= logits.argmax(-1) == y


def _logits(model: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """What models (n, ...) say of images of their own (n, m, ...): (n, m, classes)."""
    logits = vmap(lambda one, own: functional_call(model, one, (own,)))(weights, x)
    if not torch.isfinite(logits).all():
        raise ValueError("a model's outputs are NaN or infinite")
    return logits


def _logits_and_gradient(
    model: nn.Module, weights: Weights, x: Tensor, labels: Tensor, loss: str
) -> tuple[Tensor, Tensor]:
    """Logits (n, m, classes) at images (n, m, ...), and the gradient there of each image's own loss."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = _logits(model, weights, x)
        (gradient,) = torch.autograd.grad(_losses(logits, labels, loss).sum(), x)
    return logits.detach(), gradient


def _losses(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """The loss of each image (n, m), from logits (n, m, classes)."""
    if loss == "cross_entropy":
        return cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    true = labels.unsqueeze(-1)
    return logits.scatter(-1, true, -math.inf).max(-1).values - logits.gather(-1, true).squeeze(-1)


def _step(x: Tensor, gradient: Tensor, clean: Tensor, epsilon: float, attack: Attack) -> Tensor:
    """The next iterate: a step uphill, then back into the ball and the pixel range."""
    length = epsilon if attack.steps == 1 else 2.5 * epsilon / attack.steps
    if attack.norm == "linf":
        return _into_ball(x + length * gradient.sign(), clean, epsilon, "linf")
    # First by the largest entry, so that squares of tiny gradients do not vanish; a zero gradient stays zero.
    tiny = torch.finfo(x.dtype).tiny
    gradient = gradient / gradient.abs().amax(tuple(range(2, x.ndim)), keepdim=True).clamp(min=tiny)
    return _into_ball(x + length * gradient / _length(gradient).clamp(min=1), clean, epsilon, "l2")


def _into_ball(x: Tensor, clean: Tensor, epsilon: float, norm: str) -> Tensor:
    """Project onto the ball around the clean image, then onto [0, 1], which does not lead out of the ball again."""
    change = x - clean
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)
    else:
        change = change * (epsilon / _length(change).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
    return (clean + change).clamp(0, 1)


def _length(x: Tensor) -> Tensor:
    """The l2 norm of each image: (n, m, ...) to (n, m, 1, ...)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(2, x.ndim)), keepdim=True)


def _starts(images: Tensor, attack: Attack, seed: int) -> Tensor:
    """Where the attacks on each image start, in a ball of radius 1: (restarts, *images.shape), on the CPU."""
    if not attack.random_start:
        return torch.zeros(1, dtype=images.dtype).expand(1, *images.shape)
    m, d = len(images), images[0].numel()
    drawn = []
    for restart in range(attack.restarts):
        generator = np.random.default_rng((seed, restart))
        if attack.norm == "linf":
            points = 2 * generator.random((m, d), np.float32) - 1
        else:
            # A uniform point on the sphere in d + 2 dimensions is uniform in the ball without its last two coordinates.
            points = generator.standard_normal((m, d + 2), np.float32)
            points = (points / np.linalg.norm(points, axis=1, keepdims=True))[:, :d]
        drawn.append(torch.from_numpy(points).reshape(images.shape))
    return torch.stack(drawn).to(images.dtype)


def _parts(
    weights: Weights, images: Tensor, labels: Tensor, device: str, chunk: int, batch: int
) -> Iterator[tuple[slice, slice, Weights, Tensor, Tensor]]:
    """Chunks of models and batches of images: where they are, weights, images (n, m, ...) and labels (n, m)."""
    n, m = len(next(iter(weights.values()))), len(images)
    parts = math.ceil(n / chunk) * math.ceil(m / batch)
    with track(parts if parts > 1 else 0, f"attack {n} models on {m} images", "batch") as bar:
        for start in range(0, n, chunk):
            some = to(take(weights, slice(start, start + chunk)), device)
            size = min(chunk, n - start)
            for first in range(0, m, batch):
                window = slice(first, first + batch)
                clean, y = images[window].to(device), labels[window].to(device)
                each = clean.expand(size, *clean.shape), y.expand(size, *y.shape)
                yield slice(start, start + size), window, some, *each
                bar.update()


def _refuse_bad_input(
    model: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    device: str,
    chunk: int,
    batch: int,
) -> None:
    """Raise ValueError for what would give a wrong answer or none."""
    n, m = len(next(iter(weights.values()))), len(images)
    if not n or not m:
        raise ValueError(f"nothing to attack: {n} models, {m} images")
    if chunk < 1 or batch < 1:
        raise ValueError(f"one model and one image at a time are the least, got chunk={chunk}, batch={batch}")
    if not all(0 <= epsilon < math.inf for epsilon in epsilons):
        raise ValueError(f"an epsilon is a finite number from 0, in pixels from 0 to 1, got {list(epsilons)}")
    if not len(epsilons) or list(epsilons) != sorted(set(epsilons)):
        raise ValueError(f"epsilons must ascend, and there must be one, got {list(epsilons)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating-point numbers from 0 to 1, got {images.dtype}: divide by 255")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError(f"images must lie in [0, 1], got pixels from {float(images.min())} to {float(images.max())}")
    if labels.shape != (m,):
        raise ValueError(f"each image needs one label: got {m} images and labels of shape {tuple(labels.shape)}")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, where its outputs may be random: call model.eval() first")
    first = to(take(weights, slice(1)), device)
    classes = _logits(model.to(device), first, images[:1].unsqueeze(0).to(device)).shape[-1]
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ValueError(f"the model tells classes 0 to {classes - 1} apart, got labels from {lowest} to {highest}")
