"""Class codes: networks that know different classes answer in one space, so that their heads can be merged, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lab.images import Dataset

LENGTH = 64  # numbers in a code


class Codes(nn.Module):
    """Vectors (m, LENGTH) to logits (m, classes): the product of a vector with the code of each class.

    Codes are constants and no weights, and are kept out of the state dict.
    """

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("codes", torch.stack([code(number) for number in numbers]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.codes.T


def code(number: int) -> Tensor:
    """The code (LENGTH,) of the class with this number: a random unit vector, the same in every network.

    ZipIt! takes what a language model says of the class's name (Stoica et al. 2024, appendix D). Random codes say
    nothing of classes that are alike.
    """
    return nn.functional.normalize(torch.randn(LENGTH, generator=torch.Generator().manual_seed(number)), dim=0)


def with_codes(build: Callable[..., nn.Sequential], dataset: Dataset, width: int, **options: Any) -> nn.Sequential:
    """A network whose last layer gives a vector, and whose logits are its products with the codes of the classes.

    ZipIt! divides by the vector's length, too. The likeliest class is the same without, and the logits stay linear in
    the last layer, which merges at other sizes rely on.
    """
    network = build(dataset, width, outputs=LENGTH, **options)
    network.add_module("codes", Codes(dataset.numbers or tuple(range(dataset.classes))))
    return network
