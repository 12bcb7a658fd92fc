"""How time and memory grow with the number of networks and with their width, for all that is done with networks.

``python -m benchmarks.scaling`` prints a line for each point and keeps them in benchmarks/scaling.json. MLPs of three
hidden layers, trained for three epochs on scikit-learn's digits: of width 64, from 8 networks to 1600, and then of 64
units to 2048, as far as a point is not expected to take more than ``MOST``. All networks go through at once, on one
thread. Seconds are the processor's, so that other work on the machine hardly counts; memory is the peak above what
networks and images take. An exponent is the slope of the last three points on logarithmic axes. Beside it stands that
of the floor: of the operations that cannot be left out, once networks are many and wide. These are products of
matrices, which take as long as the cube of the width, or its square times the images; assignments, the cube; and the
Gram matrices of all pairs of networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.resident import peak, to_mebibytes
from benchmarks.turns import keep
from lab.data import load
from lab.images import Dataset
from lab.measures.attacks import Attack, perturb
from lab.networks import build
from lab.training.recipe import Recipe
from lab.training.stack import start, train_epoch
from lab.training.train import train
from rebasin import collect, merge_many, merge_universe, pleas, trace, weight_matching
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, take

NETWORKS = (8, 16, 32, 64, 128, 256, 512, 1024, 1600)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
WIDTH, EPOCHS, IMAGES, STEPS = 64, 3, 500, 20
MOST = {"seconds": 60, "mebibytes": 2048}  # that a point may be expected to take
FITTED = 3  # points that an exponent is the slope of


@dataclass(frozen=True)
class Networks:
    """Trained networks (n, ...), what they are, and their images; the spec is known, and tracing is not timed."""

    data: Dataset
    width: int
    model: nn.Module
    spec: PermutationSpec
    weights: Weights

    @property
    def n(self) -> int:
        return len(next(iter(self.weights.values())))


Work = Callable[[Networks], object]


@dataclass(frozen=True)
class Kind:
    """Something done with networks, and how many of them there are where their width grows.

    The floors are the exponents of time and of memory, each in the number of networks and in the width.
    """

    name: str
    work: Work
    networks: int
    time_floor: tuple[int, int]
    memory_floor: tuple[int, int]


def main() -> None:
    torch.set_num_threads(1)  # a process that has threads must not be forked
    data = load("digits")
    rows: list[dict] = []
    exponents: list[dict] = []
    for kind in KINDS:
        for axis, points in series(kind).items():
            measured = list(along(kind, axis, points, data))
            rows += measured
            exponents.append(exponent(kind, axis, measured))
            print(exponents[-1], flush=True)
    table = {
        "what": "MLPs of three hidden layers on scikit-learn's digits, all at once on one thread, processor seconds",
        "rows": rows,
        "exponents": exponents,
        "fitted": FITTED,
        "most": MOST,
    }
    keep(__file__, table)


def series(kind: Kind) -> Mapping[str, Sequence[tuple[int, int]]]:
    """The points (networks, width) along which each of the two grows."""
    return {
        "networks": [(networks, WIDTH) for networks in NETWORKS],
        "width": [(kind.networks, width) for width in WIDTHS],
    }


def along(kind: Kind, axis: str, points: Sequence[tuple[int, int]], data: Dataset) -> Iterator[dict]:
    """A row for each point that is not expected to take too long."""
    measured: list[dict] = []
    for networks, width in points:
        at = {"networks": networks, "width": width}
        if any(expected(measured, axis, at[axis], column) > most for column, most in MOST.items()):
            return
        bytes_taken, seconds = peak(partial(processor_seconds, kind.work, trained(data, networks, width)))
        row = {"what": kind.name, "axis": axis, **at, "seconds": round(seconds, 4)}
        measured.append(row | {"mebibytes": to_mebibytes(bytes_taken)})
        print(measured[-1], flush=True)
        yield measured[-1]


def expected(measured: Sequence[Mapping], axis: str, size: int, column: str) -> float:
    """What the next point will take, if it grows as it did last, and in proportion at first."""
    if not measured:
        return 0.0
    steepness = 1.0 if len(measured) == 1 else max(1.0, slope(measured[-2:], axis, column))
    return measured[-1][column] * (size / measured[-1][axis]) ** steepness


def exponent(kind: Kind, axis: str, measured: Sequence[Mapping]) -> dict:
    """How time and memory grow along an axis, by the last points, and how the floor does."""
    place = ("networks", "width").index(axis)
    last = measured[-FITTED:]
    return {
        "what": kind.name,
        "axis": axis,
        "largest": last[-1][axis],
        "seconds": round(last[-1]["seconds"], 2),
        "mebibytes": last[-1]["mebibytes"],
        "time": round(slope(last, axis, "seconds"), 2),
        "time_floor": kind.time_floor[place],
        "memory": round(slope(last, axis, "mebibytes"), 2),
        "memory_floor": kind.memory_floor[place],
    }


def slope(points: Sequence[Mapping], axis: str, column: str) -> float:
    """The exponent of the power of ``axis`` that a column is nearest to."""
    sizes, values = ([point[name] for point in points] for name in (axis, column))
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-4)), 1)[0])


def trained(data: Dataset, networks: int, width: int) -> Networks:
    """So many trained networks."""
    model = build("mlp", data, width)
    weights = train(Recipe(width=width, batch_size=128), data, networks, (EPOCHS,), "cpu", min(networks, 8)).last
    return Networks(data, width, model, trace(model, data.example), weights)


def processor_seconds(work: Work, networks: Networks) -> float:
    began = time.process_time()
    work(networks)
    return time.process_time() - began


# ---- what is done with networks


def train_all(networks: Networks) -> None:
    """One epoch of training, from the start."""
    recipe, numbers, images = Recipe(width=networks.width, batch_size=128), range(networks.n), networks.data.train
    own, optimiser = start(networks.model, recipe, numbers, "cpu")
    for _ in train_epoch(networks.model, recipe, own, optimiser, images.images, images.labels, numbers, 0):
        pass


def match_pairs(networks: Networks) -> None:
    """Each network of the second half to one of the first."""
    half = networks.n // 2
    weight_matching(networks.spec, take(networks.weights, slice(0, half)), take(networks.weights, slice(half, None)))


def merge_by_many(networks: Networks) -> None:
    merge_many(networks.spec, networks.weights)


def merge_by_universe(networks: Networks) -> None:
    merge_universe(networks.spec, networks.weights)


def fit_all(networks: Networks) -> None:
    """PLeaS of all networks, of the size of one, from so many images."""
    models = [take(networks.weights, number) for number in range(networks.n)]
    batches = list(networks.data.train.sample(IMAGES).pixels.split(250))
    pleas(collect(networks.spec, models, batches, model=networks.model))


def attack_all(networks: Networks) -> None:
    """PGD-20 on a hundred images, one network after another."""
    some = networks.data.test.sample(100)
    attack = Attack("cross_entropy", "linf", STEPS)
    perturb(networks.model, networks.weights, some.pixels, some.labels, 8 / 255, attack, device="cpu")


KINDS = (
    Kind("training", train_all, 8, (1, 2), (1, 2)),
    Kind("matching in pairs", match_pairs, 2, (1, 3), (1, 2)),
    Kind("MergeMany", merge_by_many, 8, (1, 3), (1, 2)),
    Kind("universe", merge_by_universe, 4, (1, 3), (1, 2)),
    Kind("PLeaS", fit_all, 2, (2, 3), (2, 2)),
    Kind("attacks", attack_all, 8, (1, 2), (1, 1)),
)


if __name__ == "__main__":
    main()
