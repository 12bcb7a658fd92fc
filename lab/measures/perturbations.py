"""Perturbations of images that no adversary chose: nine kinds, at five severities each."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.images import Split
from lab.outputs import evaluate
from rebasin.weights import Weights

# What severities 1 to 5 mean: as in CIFAR-10-C (Hendrycks and Dietterich 2019; its images are 32 x 32), but for uniform
# noise and rotation, which it lacks, and pixelate. Amounts are in units of the pixel range: 0 is black, 1 is white.
PERTURBATIONS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "uniform_noise": (0.07, 0.10, 0.14, 0.16, 0.17),  # largest change; standard deviation about gaussian_noise's
    "salt_and_pepper": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values that become 0 or 1
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation of the Gaussian, in pixels
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),  # added to a pixel's largest channel
    "contrast": (0.75, 0.50, 0.40, 0.30, 0.15),  # share kept of a pixel's difference to the mean of its image
    "pixelate": (0.90, 0.75, 0.50, 0.40, 0.30),  # share kept of a side; there 0.95 to 0.65, too alike at 8 x 8
    "jpeg": (80, 65, 58, 50, 40),  # JPEG quality, of 100
    "rotation": (5, 10, 15, 20, 30),  # degrees, counterclockwise
}
SETTINGS = tuple((kind, severity) for kind in PERTURBATIONS for severity in range(1, 6))

BATCH = 1000  # images that go through at once, for the memory's sake: it changes no result


def perturbed(split: Split, kind: str, severity: int, seed: int = 0) -> Split:
    """The images perturbed by ``kind`` at ``severity`` (1 to 5), in uint8 again, with the same labels.

    An image's noise depends on ``seed``, the kind, the severity and the image's position alone: every model gets the
    same, and so do the first images of a larger split. Raises ValueError for what cannot be perturbed.
    """
    if kind not in PERTURBATIONS:
        raise ValueError(f"unknown perturbation {kind!r}: there are {', '.join(PERTURBATIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"the severity must be 1, 2, 3, 4 or 5, not {severity}")
    if not len(split.images):
        raise ValueError("no images to perturb")
    if split.images.dtype != torch.uint8 or split.images.ndim != 4 or split.images.shape[1] not in (1, 3):
        found = f"{str(split.images.dtype).removeprefix('torch.')} {tuple(split.images.shape)}"
        raise ValueError(f"images must be uint8 (m, 1 or 3 channels, height, width), not {found}")
    rng = np.random.default_rng((seed, severity, *kind.encode()))
    return perturbed_by(split, kind, PERTURBATIONS[kind][severity - 1], rng)


def perturbed_by(split: Split, kind: str, amount: float, rng: np.random.Generator) -> Split:
    """The images (uint8) perturbed by ``kind`` as much as ``amount`` says, in uint8 again, with the same labels."""
    parts = (_changed(images, kind, amount, rng) for images in split.images.split(BATCH))
    return Split(torch.cat([(x * 255).round().clamp(0, 255).to(torch.uint8) for x in parts]), split.labels)


def _changed(images: Tensor, kind: str, amount: float, rng: np.random.Generator) -> Tensor:
    """The images (m, channels, height, width) in float32, changed; values may lie outside [0, 1]."""
    # Here, as it takes seconds.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import adjust_contrast, gaussian_blur, jpeg, resize, rotate

    x = images.float() / 255
    height, width = x.shape[2:]
    match kind:
        case "gaussian_noise":
            return x + amount * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        case "uniform_noise":
            return x + amount * (2 * torch.from_numpy(rng.random(x.shape, dtype=np.float32)) - 1)
        case "salt_and_pepper":  # in each channel on its own, as in CIFAR-10-C
            drawn = torch.from_numpy(rng.random(x.shape, dtype=np.float32))
            return x.masked_fill(drawn < amount / 2, 0).masked_fill(drawn >= 1 - amount / 2, 1)
        case "blur":  # three standard deviations to each side, but no farther than the image can be mirrored
            radius = min(math.ceil(3 * amount), height - 1, width - 1)
            return gaussian_blur(x, [2 * radius + 1] * 2, [amount] * 2)
        case "brightness":  # multiplying, as torchvision does, would leave black as it is: most of an MNIST image
            value = x.amax(1, keepdim=True)
            brighter = (value + amount).clamp(max=1)
            return torch.where(value > 0, x / value * brighter, brighter)  # hue and saturation stay
        case "contrast":
            return adjust_contrast(x, amount)
        case "pixelate":
            small = [max(1, round(side * amount)) for side in (height, width)]
            return resize(resize(x, small), [height, width], InterpolationMode.NEAREST_EXACT)
        case "jpeg":
            return jpeg(images, int(amount)) / 255
        case "rotation":  # about the centre; what comes in from outside is black
            return rotate(x, amount, InterpolationMode.BILINEAR)


@kept(costs=("versions",))
def under_perturbations(
    model: nn.Module,
    weights: Weights,
    split: Split,
    seed: int,
    device: str,
    chunk: int,
    versions: dict[tuple[int, int], list[Split]],
) -> Tensor:
    """Which images models (n, ...) get right, clean and under each of ``SETTINGS``: (n, 1 + settings, m).

    ``versions`` holds the perturbed images of a split, by its identity and the seed, for the next models.
    """
    same = id(split), seed
    if same not in versions:
        versions[same] = [split, *(perturbed(split, kind, severity, seed) for kind, severity in SETTINGS)]
    tested = [evaluate(model, weights, version, device, chunk) for version in versions[same]]
    return torch.stack([one.correct for one in tested], 1)
