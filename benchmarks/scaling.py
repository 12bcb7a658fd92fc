"""How time and memory grow with the number of networks and with their width, for all that is done with networks.

``python -m benchmarks.scaling`` prints a line for each point and keeps them in benchmarks/scaling.json. MLPs of three
hidden layers, trained for three epochs on scikit-learn's digits: of width 64, from 8 networks to 1600, and then of 64
units to 2048, as far as a point is expected to take a minute and 4 GiB at most. All networks go through at once, on one
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
from rebasin.weights import Weights, take

NETWORKS = (8, 16, 32, 64, 128, 256, 512, 1024, 1600)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
WIDTH, EPOCHS, IMAGES, STEPS = 64, 3, 500, 20
MOST = {"seconds": 60, "mebibytes": 4096}  # that a point may be expected to take
FITTED = 3  # points that an exponent is the slope of

Work = Callable[[Dataset, int, Weights], object]  # the images, the width, and networks (n, ...)


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
        weights = trained(data, networks, width)
        bytes_taken, seconds = peak(partial(processor_seconds, kind.work, data, width, weights))
        row = {"what": kind.name, "axis": axis, **at, "seconds": round(seconds, 4)}
        measured.append(row | {"mebibytes": to_mebibytes(bytes_taken)})
        print(measured[-1], flush=True)
        yield measured[-1]


def expected(measured: Sequence[Mapping], axis: str, size: int, column: str) -> float:
    """What the next point will take, if it grows as it did last, and at first as the square."""
    if not measured:
        return 0.0
    steepness = 2.0 if len(measured) == 1 else max(1.0, slope(measured[-2:], axis, column))
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


def trained(data: Dataset, networks: int, width: int) -> Weights:
    """So many trained networks (n, ...)."""
    return train(Recipe(width=width, batch_size=128), data, networks, (EPOCHS,), "cpu", chunk=2).last


def processor_seconds(work: Work, data: Dataset, width: int, weights: Weights) -> float:
    began = time.process_time()
    work(data, width, weights)
    return time.process_time() - began


# ---- what is done with networks


def train_all(data: Dataset, width: int, weights: Weights) -> None:
    """One epoch of training, from the start."""
    recipe = Recipe(width=width, batch_size=128)
    model, numbers = build("mlp", data, width), range(len(next(iter(weights.values()))))
    own, optimiser = start(model, recipe, numbers, "cpu")
    images = data.train
    for _ in train_epoch(model, recipe, own, optimiser, images.images, images.labels, numbers, 0):
        pass


def match_pairs(data: Dataset, width: int, weights: Weights) -> None:
    """Each network of the second half to one of the first."""
    half = len(next(iter(weights.values()))) // 2
    spec = trace(build("mlp", data, width), data.example)
    weight_matching(spec, take(weights, slice(0, half)), take(weights, slice(half, None)))


def merge_all_by(method: Callable[..., object]) -> Work:
    """One merge of all networks."""

    def work(data: Dataset, width: int, weights: Weights) -> None:
        method(trace(build("mlp", data, width), data.example), weights)

    return work


def fit_all(data: Dataset, width: int, weights: Weights) -> None:
    """PLeaS of all networks, of the size of one, from so many images."""
    model = build("mlp", data, width)
    n = len(next(iter(weights.values())))
    models = [take(weights, number) for number in range(n)]
    batches = list(data.train.sample(IMAGES).pixels.split(250))
    pleas(collect(trace(model, data.example), models, batches, model=model))


def attack_all(data: Dataset, width: int, weights: Weights) -> None:
    """PGD-20 on so many images, one network after another."""
    some = data.test.sample(100)
    attack = Attack("cross_entropy", "linf", STEPS)
    perturb(build("mlp", data, width), weights, some.pixels, some.labels, 8 / 255, attack, device="cpu")


KINDS = (
    Kind("training", train_all, 8, (1, 2), (1, 2)),
    Kind("matching in pairs", match_pairs, 2, (1, 3), (1, 2)),
    Kind("MergeMany", merge_all_by(merge_many), 8, (1, 3), (1, 2)),
    Kind("universe", merge_all_by(merge_universe), 4, (1, 3), (1, 2)),
    Kind("PLeaS", fit_all, 2, (2, 3), (2, 2)),
    Kind("attacks", attack_all, 8, (1, 2), (1, 1)),
)


if __name__ == "__main__":
    main()
