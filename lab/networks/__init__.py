"""The architectures of the experiments, and how their weights begin.

A model takes pixels in [0, 1]; its normalisation is part of it, so that whatever is measured is measured in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from lab.images import Dataset
from lab.networks.convnets import resnet20, vgg16
from lab.networks.mlp import mlp
from lab.networks.vit import vit

ARCHITECTURES = {
    "mlp": mlp,
    **{f"mlp{depth}": partial(mlp, depth=depth) for depth in (1, 2, 6)},
    "vgg16_ln": partial(vgg16, norm="layer"),
    "vgg16_bn": partial(vgg16, norm="batch"),
    "resnet20_ln": partial(resnet20, norm="layer"),
    "resnet20_bn": partial(resnet20, norm="batch"),
    "vit": vit,
}


def build(architecture: str, dataset: Dataset, width: int) -> nn.Module:
    """An architecture by name, for this data set; ``width`` is that of its first layer, with all others in proportion.

    ``mlp`` has three hidden layers, ``mlp1``, ``mlp2`` and ``mlp6`` have as many as they say. The usual width is 512
    for these, 64 for ``vgg16_*``, 16 for ``resnet20_*`` and 128 for ``vit``: a paper's width factor times that. Raises
    ValueError for a name that is not known, and where a width or an image does not divide.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the same each time: what is kept is kept by the model's content, too
        return _builder(architecture)(dataset, width).eval()


def _builder(architecture: str) -> Callable[[Dataset, int], nn.Module]:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]
