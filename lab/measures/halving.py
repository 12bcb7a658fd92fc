"""Perturbations exactly as strong as it takes to halve what unmerged networks get right, and how much others keep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.images import Split
from lab.measures.perturbations import PERTURBATIONS, perturbed_by
from lab.outputs import evaluate
from rebasin.weights import Weights

# Of each perturbation, the amount that changes nothing and the strongest that is tried, in its own unit.
RANGES: dict[str, tuple[float, float]] = {
    "gaussian_noise": (0.0, 1.0),
    "uniform_noise": (0.0, 2.0),
    "salt_and_pepper": (0.0, 1.0),
    "blur": (0.0, 8.0),
    "brightness": (0.0, 1.0),
    "contrast": (1.0, 0.0),
    "pixelate": (1.0, 0.0),  # at the end one pixel is left
    "jpeg": (100.0, 1.0),
    "rotation": (0.0, 90.0),
}
BISECTIONS = 8


@kept
def halving_amounts(
    model: nn.Module, weights: Weights, split: Split, seed: int, device: str, chunk: int
) -> dict[str, float]:
    """How much of each perturbation halves the mean accuracy of networks (n, ...) on a split, by bisection.

    A perturbation whose strongest amount leaves more than half is left out.
    """

    def accuracy(images: Split) -> float:
        return float(evaluate(model, weights, images, device, chunk).correct.double().mean())

    half = accuracy(split) / 2
    amounts = {}
    for kind in PERTURBATIONS:
        weakest, strongest = RANGES[kind]
        if accuracy(_perturbed(split, kind, strongest, seed)) > half:
            continue
        low, high = 0.0, 1.0  # shares of the way from the weakest to the strongest
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            left = accuracy(_perturbed(split, kind, weakest + middle * (strongest - weakest), seed))
            low, high = (middle, high) if left > half else (low, middle)
        amounts[kind] = weakest + high * (strongest - weakest)
    return amounts


def perturbed_versions(split: Split, amounts: Mapping[str, float], seed: int) -> dict[str, Split]:
    """The images of a split under so much of each perturbation; the noise is the same for every network."""
    return {kind: _perturbed(split, kind, amount, seed) for kind, amount in amounts.items()}


def accuracies(
    model: nn.Module, weights: Weights, split: Split, versions: Mapping[str, Split], device: str, chunk: int
) -> dict[str, Tensor]:
    """Accuracy of each network (n, ...) on the images as they are, ``clean``, and under each perturbation: (n,)."""
    return {
        kind: evaluate(model, weights, images, device, chunk).correct.double().mean(1)
        for kind, images in {"clean": split, **versions}.items()
    }


def retained_share(measured: Mapping[str, Tensor], chance: float) -> Tensor:
    """What networks keep of their accuracy above chance, mean over perturbations: (n,).

    ``measured`` is what ``accuracies`` gives.
    """
    kept_of_each = [
        (values - chance) / (measured["clean"] - chance) for kind, values in measured.items() if kind != "clean"
    ]
    return torch.stack(kept_of_each).mean(0)


def _perturbed(split: Split, kind: str, amount: float, seed: int) -> Split:
    return perturbed_by(split, kind, amount, np.random.default_rng((seed, *kind.encode())))
