"""A plain multilayer perceptron."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lab.images import Dataset
from lab.networks.normalise import Normalise


def mlp(dataset: Dataset, width: int = 512, depth: int = 3, outputs: int | None = None) -> nn.Sequential:
    """``depth`` hidden layers of ``width`` ReLU units, no norms (Git Re-Basin, appendix A.3); a logit for each class.

    With ``outputs`` the last layer gives so many numbers.
    """
    sizes = [dataset.train.images[0].numel(), *[width] * depth, outputs or dataset.classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        normalise=Normalise(dataset.mean, dataset.std), flatten=nn.Flatten()
    )
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), 1):
        layers[f"layer{i}"] = nn.Linear(inputs, outputs)
        if i <= depth:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)
