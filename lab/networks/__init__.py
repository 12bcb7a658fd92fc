"""The architectures of the experiments, and how their weights begin.

A model takes pixels in [0, 1]; its normalisation is part of it, so that whatever is measured is measured in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lab.images import Dataset
from lab.networks.codes import with_codes
from lab.networks.convnets import resnet20, vgg11, vgg16
from lab.networks.language import language_model
from lab.networks.mlp import mlp
from lab.networks.vit import vit


@dataclass(frozen=True)
class Architecture:
    """A kind of networks: how one is built for a data set and a width, and what a reader calls it and its norm.

    ``width`` is the usual one, of the first layer in the paper that it is from.
    """

    build: Callable[[Dataset, int], nn.Module]
    title: str
    norm: str
    width: int
    codes: bool = False  # whether its outputs are class codes, which networks of any classes share
    reads: str = "images"  # or texts


ARCHITECTURES = {
    "mlp": Architecture(mlp, "MLP", "none", 512),
    "mlp1": Architecture(partial(mlp, depth=1), "MLP, 1 hidden layer", "none", 512),
    "mlp2": Architecture(partial(mlp, depth=2), "MLP, 2 hidden layers", "none", 512),
    "mlp6": Architecture(partial(mlp, depth=6), "MLP, 6 hidden layers", "none", 512),
    "vgg11": Architecture(vgg11, "VGG-11", "none", 64),
    "vgg16_ln": Architecture(partial(vgg16, norm="layer"), "VGG-16", "LayerNorm", 64),
    "vgg16_bn": Architecture(partial(vgg16, norm="batch"), "VGG-16", "BatchNorm", 64),
    "resnet20_ln": Architecture(partial(resnet20, norm="layer"), "ResNet20", "LayerNorm", 16),
    "resnet20_bn": Architecture(partial(resnet20, norm="batch"), "ResNet20", "BatchNorm", 16),
    "mlp_codes": Architecture(partial(with_codes, mlp), "MLP with class codes", "none", 512, codes=True),
    "vgg11_codes": Architecture(partial(with_codes, vgg11), "VGG-11 with class codes", "none", 64, codes=True),
    "resnet20_bn_codes": Architecture(
        partial(with_codes, resnet20, norm="batch"), "ResNet20 with class codes", "BatchNorm", 16, codes=True
    ),
    "vit": Architecture(vit, "ViT", "LayerNorm", 128),
    "vit2": Architecture(partial(vit, depth=2, across=4), "ViT, 2 blocks", "LayerNorm", 64),
    "language": Architecture(language_model, "language model", "LayerNorm", 64, reads="texts"),
}


def build(architecture: str, dataset: Dataset, width: int) -> nn.Module:
    """An architecture by name, for this data set; ``width`` is that of its first layer, with all others in proportion.

    A paper's width factor is ``width`` over the architecture's usual one. Raises ValueError for a name that is not
    known, for one that reads images where the data set holds texts or the other way round, and where a width or an
    image does not divide.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: there are {', '.join(ARCHITECTURES)}")
    holds, reads = "texts" if dataset.train.images.ndim == 2 else "images", ARCHITECTURES[architecture].reads
    if reads != holds:
        raise ValueError(f"architecture {architecture!r} reads {reads}, and data set {dataset.name!r} holds {holds}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the same each time: what is kept is kept by the model's content, too
        return ARCHITECTURES[architecture].build(dataset, width).eval()
