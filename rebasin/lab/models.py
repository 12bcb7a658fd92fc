"""The architectures of the experiments, and how their weights begin.

A model takes pixels in [0, 1]; its normalisation is part of it, so that whatever is measured is measured in pixels.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rebasin.lab.convnets import resnet20, vgg16
from rebasin.lab.data import Dataset
from rebasin.lab.normalise import Normalise
from rebasin.lab.vit import vit


def mlp(dataset: Dataset, width: int = 512, depth: int = 3) -> nn.Sequential:
    """``depth`` hidden layers of ``width`` ReLU units, no norms (Git Re-Basin, appendix A.3)."""
    sizes = [dataset.train.images[0].numel(), *[width] * depth, dataset.classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        normalise=Normalise(dataset.mean, dataset.std), flatten=nn.Flatten()
    )
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), 1):
        layers[f"layer{i}"] = nn.Linear(inputs, outputs)
        if i <= depth:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)


ARCHITECTURES = {
    "mlp": mlp,
    **{f"mlp{depth}": partial(mlp, depth=depth) for depth in (1, 2, 6)},
    "vgg16_ln": partial(vgg16, norm="layer"),
    "vgg16_bn": partial(vgg16, norm="batch"),
    "resnet20_ln": partial(resnet20, norm="layer"),
    "resnet20_bn": partial(resnet20, norm="batch"),
    "vit": vit,
}
INITIAL = ("torch", "lecun_normal")


def build(architecture: str, dataset: Dataset, width: int) -> nn.Module:
    """An architecture by name, for this data set; ``width`` is that of its first layer, with all others in proportion.

    ``mlp`` has three hidden layers, ``mlp1``, ``mlp2`` and ``mlp6`` have as many as they say. The usual width is 512
    for these, 64 for ``vgg16_*``, 16 for ``resnet20_*`` and 128 for ``vit``: a paper's width factor times that. Raises
    ValueError for a name that is not known, and where a width or an image does not divide.
    """
    return _builder(architecture)(dataset, width)


def modules_of(architecture: str) -> set[str]:
    """The modules of this package whose code makes an architecture. Raises ValueError for a name that is not known."""
    builder = _builder(architecture)
    return {__name__, Normalise.__module__, getattr(builder, "func", builder).__module__}


def _builder(architecture: str) -> Callable[[Dataset, int], nn.Module]:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


def initial_weights(model: nn.Module, initial: str, seed: int) -> dict[str, Tensor]:
    """Fresh weights on the CPU, by one of the schemes of ``INITIAL``; depends on nothing but ``seed``.

    ``torch`` is what PyTorch's layers do by themselves: in a linear layer everything is uniform within +- fan_in^-1/2.
    ``lecun_normal`` is what Flax's do: matrices from a truncated normal of deviation fan_in^-1/2, sqrt 3 times that of
    ``torch``, and zero biases. Raises ValueError for another name, and for a module that holds parameters and has no
    ``reset_parameters``, as ``nn.MultiheadAttention`` does: they would stay as the model has them.
    """
    if initial not in INITIAL:
        raise ValueError(f"unknown initial weights {initial!r}: there are {', '.join(INITIAL)}")
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not that of a GPU, which would stay changed
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif list(module.parameters(recurse=False)):
                raise ValueError(f"no fresh weights for {type(module).__name__}: it has no reset_parameters")
            if initial == "lecun_normal" and isinstance(module, nn.Linear | nn.Conv2d):
                # A normal cut at two deviations has .8796 of its deviation left.
                std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return fresh.state_dict()
