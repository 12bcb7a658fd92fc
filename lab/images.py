"""Images with their labels, and the data sets that are made of them: pixels stay uint8 until a model sees them.

Texts are kept alike: a row of characters in place of an image, with the characters that follow in place of its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def as_read(images: Tensor) -> Tensor:
    """Images as a network takes them, uint8 made float32 in [0, 1]; anything else, such as characters, as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Split:
    """Images (m, channels, height, width) in uint8 and their labels (m,) in int64; or texts.

    A text's ``images`` are its characters (m, characters) in int64, and its ``labels`` (m, characters) the next ones.
    """

    images: Tensor
    labels: Tensor

    @property
    def pixels(self) -> Tensor:
        """The images as a network takes them: float32 in [0, 1], four times as large; characters as they are."""
        return as_read(self.images)

    def sample(self, m: int, seed: int = 0) -> Split:
        """``m`` of the images, the same ones for the same seed; all where there are no more."""
        chosen = np.random.default_rng(seed).permutation(len(self.labels))[:m]
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """A data set: ``title`` says exactly what it is, ``fingerprint`` covers its files, decoded pixels and splits.

    ``held_out`` are images of its training set that no model is trained on: choices are made on them, not on ``test``.
    ``mean`` and ``std`` (per channel, in units of the pixel range [0, 1]) are what models of it subtract and divide by.
    """

    name: str
    title: str
    train: Split
    held_out: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    numbers: tuple[int, ...] = ()  # of a part of the classes: which of the whole data set's each label is

    @property
    def example(self) -> Tensor:
        """Two training images as a network takes them, (2, channels, height, width) in [0, 1]: what it is traced on."""
        return Split(self.train.images[:2], self.train.labels[:2]).pixels

    @property
    def classes(self) -> int:
        return int(torch.cat([self.train.labels, self.held_out.labels, self.test.labels]).max()) + 1
