"""Merges of networks that nobody here trained: MLPs of another paper, each trained on its own part of MNIST.

``python benchmarks/outside.py FOLDER`` prints a table and keeps it in benchmarks/outside.json. FOLDER has the networks,
stacked: ``mnist-mlp-noniid-N.npz`` with the keys of ``nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(),
nn.Linear(256, 10))``, from the example base models of AndrewSpano/neuron-interpolation-model-fusion (MIT). The parts
that they were trained on are not alike, so that each knows some digits better than others. Methods see 2000 training
images, without labels. There is one group of 2 networks and one of 8: no interval can be told, and no verdict.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.turns import keep
from lab.contestants import METHODS, Arena
from lab.data import load
from lab.images import Split
from lab.measures.arena import scores, try_method
from lab.networks.normalise import Normalise
from rebasin import trace
from rebasin.weights import take

NUMBERS, IMAGES = (2, 8), 2000
AT_ONE = (
    "distilled", "mean", "weights", "hierarchy", "correlation", "mixed", "cca", "zip", "regmean",
    "regmean_refitted", "pleas", "pleas_refitted", "pleas_tree",
)  # fmt: skip


def main() -> None:
    mnist = load("mnist")
    seen, test = mnist.train.sample(IMAGES), mnist.test
    rows = []
    for number in NUMBERS:
        arena = arena_of(Path(sys.argv[1]) / f"mnist-mlp-noniid-{number}.npz", seen, test)
        accuracies = [accuracy_of(turned(arena, m), "parent", 1.0)["none"] for m in range(number)]
        rows.append({"networks": number, "method": "parents", "lowest": min(accuracies), "highest": max(accuracies)})
        for method in (*AT_ONE, "ensemble"):
            size = float(number) if method == "ensemble" else 1.0
            for mended, accuracy in accuracy_of(arena, method, size).items():
                rows.append({"networks": number, "method": method, "mended": mended, "accuracy": accuracy})
                print(rows[-1], flush=True)
    table = {
        "rows": rows,
        "images": IMAGES,
    }
    keep(__file__, table)


def arena_of(path: Path, seen: Split, test: Split) -> Arena:
    """The networks of a file in an arena of one task. Their pixels have mean 0 and deviation 1, as MNIST's then do."""
    model = nn.Sequential(
        OrderedDict(
            normalise=Normalise((0.1307,), (0.3081,)),
            **{"0": nn.Flatten(), "1": nn.Linear(784, 256), "2": nn.ReLU(), "3": nn.Linear(256, 10)},
        )
    )
    with np.load(path) as file:
        parents = {key: torch.from_numpy(file[key]) for key in model.state_dict()}
    model.load_state_dict(take(parents, 0))
    return Arena(model.eval(), trace(model, seen.pixels[:2]), parents, (seen,), (test,))


def turned(arena: Arena, first: int) -> Arena:
    """The same arena with another network as the first."""
    order = [(first + m) % arena.n for m in range(arena.n)]
    return replace(arena, parents={key: tensor[order] for key, tensor in arena.parents.items()})


def accuracy_of(arena: Arena, method: str, size: float) -> dict[str, float]:
    """The accuracy of a method on test images, as merged and mended."""
    tried = try_method(arena, METHODS[method], size)
    return {mended: scores(reached, arena.test)[0][2] for mended, reached in tried.items()}


if __name__ == "__main__":
    main()
