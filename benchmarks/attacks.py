"""PGD-20 on every node of the hierarchy over 64 models: stacked, against a peer model by model, and against the floor.

Two of our own are timed: ``surviving``, which the experiments use and which drops an image as soon as it is
misclassified, and ``perturb``, which takes every image through every step, as the peer and the floor do.

``python benchmarks/attacks.py`` prints a table and keeps it in benchmarks/attacks.json. It takes the models of preset
cpu, which it trains and merges if the cache does not hold them.
"""

from __future__ import annotations

import json
import time

import eagerpy
import foolbox
import torch
from torch.func import functional_call

from benchmarks.turns import keep
from lab.bookkeeping.pipeline import load_preset
from lab.data import load
from lab.measures.attacks import Attack, perturb, surviving
from lab.merges import merge_all
from lab.networks import build
from lab.training.plan import read_networks
from lab.training.train import train
from rebasin.tracing import trace

STEPS, IMAGES, EPSILON, PEERS = 20, 1000, 4 / 255, 6


def main() -> None:
    preset = load_preset("cpu")
    networks = read_networks(preset["networks"])
    data = load(networks.dataset, networks.held_out)
    model = build("mlp", data, networks.recipe.width).eval()
    spec = trace(model, data.example)
    leaves = train(networks.recipe, data, networks.models, networks.epochs, "cpu", networks.chunk).last
    merged = merge_all(spec, leaves, {"hierarchy": preset["merges"]["hierarchy"]})
    stages = [leaves, *(nodes.weights for nodes in merged)]
    nodes = {key: torch.cat([stage[key] for stage in stages]) for key in leaves}
    count = len(next(iter(nodes.values())))
    few = data.test.sample(IMAGES)
    pixels, labels = few.images.float() / 255, few.labels
    attack = Attack("cross_entropy", "linf", STEPS)

    started = time.monotonic()
    ours = surviving(model, nodes, pixels, labels, [EPSILON], attack, device="cpu")[:, 0]
    survivors = time.monotonic() - started

    # The rest takes minutes for all nodes: so many of them stand for all.
    chosen = list(range(0, count, count // PEERS))[:PEERS]
    some = {key: tensor[chosen] for key, tensor in nodes.items()}
    started = time.monotonic()
    perturb(model, some, pixels, labels, EPSILON, attack, device="cpu")
    all_steps = (time.monotonic() - started) / len(chosen) * count
    started = time.monotonic()
    theirs = torch.stack([_foolbox(model, nodes, node, pixels, labels) for node in chosen])
    peer = (time.monotonic() - started) / len(chosen) * count

    floor = _products(nodes, len(pixels)) * STEPS * count
    table = {
        "what": f"PGD-{STEPS}, cross-entropy, L-infinity, {IMAGES} images, all {count} nodes of two trees of 32",
        "survivors_only_seconds": round(survivors, 1),
        "all_steps_seconds": round(all_steps, 1),
        "model_by_model_foolbox_seconds": round(peer, 1),
        "matrix_products_alone_seconds": round(floor, 1),
        "survivors_only_over_foolbox": round(survivors / peer, 2),
        "all_steps_over_foolbox": round(all_steps / peer, 2),
        "all_steps_over_floor": round(all_steps / floor, 2),
        "accuracy_left_stacked": round(float(ours[chosen].double().mean()), 4),
        "accuracy_left_foolbox": round(float(theirs.double().mean()), 4),
        "threads": torch.get_num_threads(),
    }
    keep(__file__, table)
    print(json.dumps(table, indent=1))


def _foolbox(model: torch.nn.Module, nodes: dict, node: int, pixels: torch.Tensor, labels: torch.Tensor):
    """Which images survive foolbox's PGD with the same steps, on one node."""

    class One(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional_call(model, {key: tensor[node] for key, tensor in nodes.items()}, (x,))

    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS)
    bounded = foolbox.PyTorchModel(One().eval(), bounds=(0, 1), device="cpu")
    _, _, broken = attack(bounded, pixels, labels, epsilons=EPSILON)
    return ~(broken.raw if isinstance(broken, eagerpy.Tensor) else broken)


@torch.no_grad()
def _products(nodes: dict, images: int) -> float:
    """Seconds for the matrix products of one forward and one backward pass to the pixels, for one node."""
    matrices = [tensor[0] for tensor in nodes.values() if tensor.ndim > 2]
    inputs = [torch.randn(500, matrix.shape[1]) for matrix in matrices]
    outputs = [torch.randn(500, matrix.shape[0]) for matrix in matrices]
    best = float("inf")
    for _ in range(20):
        started = time.monotonic()
        for matrix, x, g in zip(matrices, inputs, outputs, strict=True):
            x @ matrix.T
            g @ matrix
        best = min(best, time.monotonic() - started)
    return best * images / 500


if __name__ == "__main__":
    main()
