"""MergeMany and a hierarchy made of pairs, by the package of our name on PyPI, beside ours on the same networks.

``python -m benchmarks.published_many`` trains 64 networks of preset ``paper``, those of its seventh and eighth tree, or
finds them in the cache; merges them in groups of four and of eight; and keeps the accuracies on all test images in
benchmarks/published_many.json. ``rebasin 0.0.47`` by S. Mueller runs in a process of its own, for there its name means
itself. Its pairs are brought together by ``PermutationCoordinateDescent`` and averaged; both hierarchies pair the
networks alike.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

# What imports our packages does so inside of functions: in the other program's process ``rebasin`` means that.
TREES, GROUPS = (6, 7), (4, 8)
SEED = 0  # of the visiting orders; in both programs


def main() -> None:
    from benchmarks.turns import keep
    from lab.bookkeeping.pipeline import load_preset
    from lab.data import load
    from lab.networks import build
    from lab.outputs import evaluate
    from lab.training.plan import read_networks
    from lab.training.train import train
    from rebasin import merge_hierarchical, merge_many, show_progress, trace
    from rebasin.weights import stack, take

    show_progress(True)
    networks = read_networks(load_preset("paper")["networks"])
    data = load(networks.dataset, networks.held_out)
    model = build(networks.recipe.architecture, data, networks.recipe.width).eval()
    spec = trace(model, data.example)
    count, first = len(TREES) * networks.models, TREES[0] * networks.models
    leaves = train(networks.recipe, data, count, networks.epochs, "cpu", networks.chunk, first).last
    rows = []

    def measure(program: str, algorithm: str, number: int, merged: dict[str, Tensor]) -> None:
        accuracy = evaluate(model, merged, data.test, "cpu", 8).correct.double().mean(1)
        for group, value in enumerate(accuracy.tolist()):
            rows.append(
                {"program": program, "algorithm": algorithm, "networks": number, "group": group, "accuracy": value}
            )
        print(f"{program}, {algorithm} of {number}: {100 * accuracy.mean():.1f} %", flush=True)

    for number in GROUPS:
        groups = {key: tensor.unflatten(0, (-1, number)) for key, tensor in leaves.items()}
        measure("ours", "hierarchy", number, merge_hierarchical(spec, groups, seed=SEED).weights)
        measure("ours", "many", number, merge_many(spec, groups, seed=SEED).weights)
        theirs = [published(take(groups, group)) for group in range(count // number)]
        for algorithm in ("hierarchy", "many"):
            measure("published", algorithm, number, stack([merged[algorithm] for merged in theirs]))
    keep(__file__, {"rows": rows})


def published(group: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the published package makes of a group of networks (n, ...), by algorithm."""
    from benchmarks.matchers import install_peers

    peers = install_peers()
    if peers is None:
        raise RuntimeError("the published package cannot be installed")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.pt", Path(folder) / "made.pt"
        torch.save(group, given)
        environment = os.environ | {"PYTHONPATH": str(peers), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, __file__, str(given), str(made)], env=environment, check=True)
        return torch.load(made)


def work(given: str, made: str) -> None:
    """In a process where ``rebasin`` means the published package: merge what one file holds, and write the other."""
    from matchers import Pair, chain  # beside this file, which is where a script's own folder is looked through

    from rebasin import MergeMany, PermutationCoordinateDescent

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    group = torch.load(given)
    first_layer = next(iter(group.values()))  # (n, outputs, inputs)
    n, example = len(first_layer), torch.zeros(1, first_layer.shape[2])

    def network(m: int) -> nn.Sequential:
        weights = {key: tensor[m] for key, tensor in group.items()}
        model = chain(Pair(weights, weights, {}))
        model.load_state_dict(weights)
        return model

    nodes = [network(m) for m in range(n)]
    while len(nodes) > 1:
        merged = []
        for first, second in zip(nodes[::2], nodes[1::2], strict=True):
            PermutationCoordinateDescent(first, second, example).rebasin()
            middle = copy.deepcopy(first)
            for mean, other in zip(middle.parameters(), second.parameters(), strict=True):
                mean.data.lerp_(other.data, 0.5)
            merged.append(middle)
        nodes = merged
    many = MergeMany([network(m) for m in range(n)], network(0), example).run()
    torch.save({"hierarchy": nodes[0].state_dict(), "many": many.state_dict()}, made)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(*sys.argv[1:])
    else:
        main()
