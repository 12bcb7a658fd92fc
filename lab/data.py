"""The data sets of the experiments, each with a fingerprint of its content."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lab.bookkeeping.cache import kept
from lab.bookkeeping.code import fingerprint
from lab.bookkeeping.same_code import cache_folder
from lab.image_files import image_files, pixels
from lab.images import Dataset, Split
from lab.texts import TESTED, as_numbers, documentation, windows
from rebasin.progress import track

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10_IMAGES = {"train": 5000, "test": 1000}  # of each class
MNIST_IMAGES = {"train": 60000, "test": 10000}


def load(name: str, held_out: int = 0) -> Dataset:
    """The data set ``digits``, ``mnist``, ``cifar10`` or ``text``, with ``held_out`` of its training images set aside.

    ``text`` is a text in pieces, and what is said of images goes for them.
    MNIST and CIFAR-10 are looked for in the folder ``REBASIN_DATA``, then downloaded. Raises ValueError for another
    name or if no image is left to train on, FileNotFoundError if ``REBASIN_DATA`` is no folder, RuntimeError if files
    are corrupt, missing, or not what they should be.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}: there are {', '.join(LOADERS)}")
    dataset = LOADERS[name]()
    images, labels = dataset.train.images, dataset.train.labels
    if not 0 <= held_out < len(labels):
        raise ValueError(f"held_out must be from 0 to below the {len(labels)} training images, got {held_out}")
    order = np.random.default_rng(0).permutation(len(labels))
    aside, rest = order[:held_out], np.sort(order[held_out:])
    return replace(
        dataset,
        train=Split(images[rest], labels[rest]),
        held_out=Split(images[aside], labels[aside]),
        fingerprint=fingerprint(dataset.fingerprint, held_out),
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=450, random_state=0, stratify=digits.target)
    splits = Split(pixels[train], labels[train]), Split(pixels[test], labels[test])
    return _dataset("digits", "scikit-learn's digits", *splits, files="scikit-learn", standardise=False)


def _mnist() -> Dataset:
    from torchvision.datasets import MNIST

    given = _data_folder()
    if given and (given / "MNIST" / "raw").is_dir():
        train, test = (_opened(MNIST, given, download=False, train=part) for part in (True, False))
    else:
        folder = cache_folder() / "downloads"
        train, test = (_opened(MNIST, folder, download=True, train=part) for part in (True, False))
    for part, expected in zip((train, test), MNIST_IMAGES.values(), strict=True):
        if (len(part.data), len(part.targets)) != (expected, expected):
            raise RuntimeError(
                f"{part.raw_folder} has {len(part.data)} images and {len(part.targets)} labels where MNIST has "
                f"{expected} of each"
            )
    splits = (Split(part.data.unsqueeze(1), part.targets) for part in (train, test))
    return _dataset("mnist", "MNIST", *splits, files="torchvision", standardise=False)


def _cifar10() -> Dataset:
    given = _data_folder()
    if given and not (given / "cifar-10-batches-py").is_dir():
        archive, folder = given / "cifar10-jpeg.tar.xz", given / "cifar10-jpeg"
        source = archive if archive.is_file() else folder if folder.is_dir() else None
        if source:
            return _cifar10_from_images(source)
    from torchvision.datasets import CIFAR10

    local = given and (given / "cifar-10-batches-py").is_dir()
    folder = given if local else cache_folder() / "downloads"
    train, test = (_opened(CIFAR10, folder, download=not local, train=part) for part in (True, False))
    splits = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return _dataset("cifar10", "CIFAR-10", *splits, files="torchvision", standardise=True)


def _opened(kind: type, folder: Path, download: bool, train: bool):
    try:
        return kind(root=folder, train=train, download=download)
    except (OSError, ValueError, RuntimeError) as error:  # missing, or cut short somewhere
        raise RuntimeError(
            f"{kind.__name__} could not be had from {folder}: {error}. Without a network, let REBASIN_DATA name a "
            "folder that holds it"
        ) from error


def _cifar10_from_images(source: Path) -> Dataset:
    """CIFAR-10 from image files ``train/<class>/*`` and ``test/<class>/*``, in a folder or a tar archive."""
    files = hashlib.sha256()
    if source.is_file():
        files.update(source.read_bytes())
    else:
        for name, content in image_files(source):
            files.update(name.encode() + content)
    digest = files.hexdigest()[:16]

    decoded = decoded_cifar10(source, digest)
    splits = (Split(decoded[s], decoded[f"{s} labels"]) for s in ("train", "test"))
    return _dataset("cifar10", "CIFAR-10, JPEG re-encoded", *splits, files=digest, standardise=True)


@kept(costs=("source",))
def decoded_cifar10(source: Path, digest: str) -> dict[str, Tensor]:
    """The images and labels of each split, from files whose content has this digest."""
    images: dict[str, list] = {"train": [], "test": []}
    labels: dict[str, list] = {"train": [], "test": []}
    with track(60000, "decode CIFAR-10", "image") as bar:
        for name, content in image_files(source):
            split, label = ["", "", *name.split("/")][-3:-1]
            if split not in images or label not in CIFAR10_CLASSES:
                raise RuntimeError(f"{source}: {name!r} is not <train or test>/<class>/<image>")
            try:
                images[split].append(pixels(content, 32))
            except ValueError as error:
                raise RuntimeError(f"{source}: the image {name!r} {error}") from error
            labels[split].append(CIFAR10_CLASSES.index(label))
            bar.update()
    for split, expected in CIFAR10_IMAGES.items():
        counts = Counter(labels[split])
        for number, name in enumerate(CIFAR10_CLASSES):
            if counts[number] != expected:
                raise RuntimeError(
                    f"{source}: {split}/{name}/ has {counts[number]} images where CIFAR-10 has {expected}: expected "
                    f"are {CIFAR10_IMAGES['train']} of each class under train/ and {CIFAR10_IMAGES['test']} under test/"
                )
    return {
        **{s: torch.from_numpy(np.stack(i)).permute(0, 3, 1, 2).contiguous() for s, i in images.items()},
        **{f"{s} labels": torch.tensor(part) for s, part in labels.items()},
    }


def photograph_crops(like: Dataset, count: int, seed: int) -> Tensor:
    """So many crops of two photographs, in pixels from 0 to 1 and the shape of a data set's images: (count, ...).

    The photographs are scikit-learn's, of a temple and of a flower. A crop is a random square, shrunk to size. They
    stand for natural images that have to do with no task.
    """
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(p).permute(2, 0, 1) / 255 for p in load_sample_images().images]
    channels, height, width = like.train.images.shape[1:]
    generator = np.random.default_rng(seed)
    crops = []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        side = int(generator.integers(height, min(whole.shape[1:]) + 1))
        top, left = (int(generator.integers(size - side + 1)) for size in whole.shape[1:])
        crop = whole[None, :, top : top + side, left : left + side]
        crop = torch.nn.functional.interpolate(crop, (height, width), mode="bilinear", antialias=True)
        crops.append(crop.mean(1, keepdim=True) if channels == 1 else crop)
    return torch.cat(crops)


def _data_folder() -> Path | None:
    given = os.environ.get("REBASIN_DATA")
    if given and not Path(given).is_dir():
        raise FileNotFoundError(f"REBASIN_DATA names {given}, which is not a folder")
    return Path(given) if given else None


def _dataset(name: str, title: str, train: Split, test: Split, files: str, standardise: bool) -> Dataset:
    pixels = hashlib.sha256()
    for split in (train, test):
        pixels.update(split.images.numpy().tobytes() + split.labels.numpy().tobytes())
    channels = train.images.shape[1]
    if standardise:
        unit = train.images.transpose(0, 1).flatten(1).double() / 255
        mean, std = (tuple(round(float(v), 4) for v in stat) for stat in (unit.mean(1), unit.std(1)))
    else:
        mean, std = (0.0,) * channels, (1.0,) * channels
    none = Split(train.images[:0], train.labels[:0])
    return Dataset(name, title, train, none, test, mean, std, fingerprint(files, pixels.hexdigest()))


def _text() -> Dataset:
    numbers = as_numbers(documentation())
    end = int(len(numbers) * (1 - TESTED))
    splits = (Split(*windows(part)) for part in (numbers[:end], numbers[end:]))
    return _dataset("text", "torch's docs, of its functions", *splits, files="torch", standardise=False)


LOADERS = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "text": _text}
