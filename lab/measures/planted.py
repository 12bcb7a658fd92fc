"""Planted permutations, which weight matching is to find again, and how long it takes between independent networks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.models import resnet50

from lab.bookkeeping.cache import kept
from lab.images import Dataset
from lab.networks import build
from lab.networks.initial import initial_weights
from rebasin.matching.by_weights import weight_matching
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights, to

RESNET20 = re.compile(r"resnet20 x(\d+)")
METRICS = ("recovered", "sweeps", "ties")


@dataclass(frozen=True)
class Network:
    """A network to match: its ``spec``, the weights of its k-th instance, and the seconds that tracing took, if any."""

    name: str
    spec: PermutationSpec
    weights: Callable[[int], Weights]
    tracing_seconds: float | None = None


def trained_network(model: nn.Module, weights: Weights, data: Dataset) -> Network:
    """An MLP, called ``mlp`` however deep, with trained weights (n, ...), of which instance k is number k modulo n.

    Raises ValueError for a single one, which would be paired with itself.
    """
    n = len(next(iter(weights.values())))
    if n < 2:
        raise ValueError(f"pairs of independent networks need two trained models at least, got {n}")
    spec = trace(model, data.example)
    return Network("mlp", spec, lambda k: {key: each[k % n] for key, each in weights.items()})


def fresh_network(name: str, data: Dataset, seed: int) -> Network:
    """A network of another paper's size, as ``resnet50`` or ``resnet20 x4``, whose instances are fresh weights.

    ResNet20 has LayerNorms, and is so many times as wide as the original; ResNet50 is torchvision's. Raises ValueError
    for another name.
    """
    factor = RESNET20.fullmatch(name)
    if factor:
        # Groups do not depend on the side of the images, and a small one is traced sooner.
        model = build("resnet20_ln", data, 16 * int(factor[1]))
        example = torch.zeros(1, data.train.images.shape[1], 8, 8)
    elif name == "resnet50":
        model, example = resnet50(weights=None), torch.zeros(1, 3, 64, 64)
    else:
        raise ValueError(f"unknown network {name!r}: there are resnet50 and resnet20 x1, resnet20 x2 and so on")
    begun = time.perf_counter()
    spec = trace(model, example)
    seconds = time.perf_counter() - begun
    return Network(name, spec, lambda k: initial_weights(model, "torch", _seed(seed, k, 0)), seconds)


def _seed(seed: int, number: int, purpose: int) -> int:
    """A seed of its own for each instance and purpose: 0 its fresh weights, 1 its planted permutation."""
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1)[0])


def recover(network: Network, trials: int, seed: int, device: str) -> pd.DataFrame:
    """Permute instances 0 to ``trials`` - 1 at random, and let weight matching find the way back from the identity.

    Three rows each: ``recovered`` is 1 where the weights found are those of the start to the last bit, and 0 otherwise;
    ``sweeps`` counts those of weight matching, the last of which finds nothing to change; ``ties`` counts the units
    that stand in another place all the same, where recovered, since they are equal, as dead units may be. Each trial
    has a visiting order of its own, and is kept in the cache.
    """
    rows = []
    with track(trials, f"recover {network.name}", "permutation") as bar:
        for trial in range(trials):
            found = recovered_trial(network.spec, network.weights(trial), trial, seed, device)
            rows += [(network.name, metric, trial, value) for metric, value in zip(METRICS, found, strict=True)]
            bar.update()
    table = pd.DataFrame(rows, columns=["network", "metric", "node", "value"]).astype({"value": float})
    return table.assign(n_leaves=1, weights=_kind(network))


@kept
def recovered_trial(
    spec: PermutationSpec, weights: Weights, trial: int, seed: int, device: str
) -> tuple[int, int, int]:
    """Whether one planted permutation was recovered, in how many sweeps, and how many units are tied."""
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(_seed(seed, trial, 1)))
    a, b = to(weights, device), to(planted.apply(weights), device)
    found = weight_matching(spec, a, b, seed=seed + trial)
    back = Permutation(spec, to(found.permutation.indices, "cpu"))
    whole = back.compose(planted)
    recovered = same_bits(whole.apply(weights), weights)
    elsewhere = sum(int((index != torch.arange(index.shape[-1])).sum()) for index in whole.flat.values())
    return int(recovered), int(found.sweeps), elsewhere if recovered else 0


def same_bits(one: Weights, other: Weights) -> bool:
    """Whether two networks hold the same numbers under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def run_times(network: Network, repeats: int, seed: int, device: str) -> Iterator[tuple[str, str, int, float]]:
    """Match pairs of independent instances, each in a visiting order of its own: rows (network, metric, node, value).

    ``seconds`` of weight matching, its ``sweeps``, ``parameters`` in millions, and once ``tracing_seconds``. Nothing is
    cached: times belong to the machine, and to what else it does.
    """
    if network.tracing_seconds is not None:
        yield network.name, "tracing_seconds", 0, network.tracing_seconds
    for repeat in range(repeats):
        a, b = (to(network.weights(2 * repeat + i), device) for i in (0, 1))
        found = weight_matching(network.spec, a, b, seed=seed + repeat)
        yield network.name, "seconds", repeat, found.seconds
        yield network.name, "sweeps", repeat, float(found.sweeps)
        yield network.name, "parameters", repeat, sum(a[key].numel() for key in network.spec.weights) / 1e6


def times_table(networks: list[Network], repeats: int, seed: int, device: str) -> pd.DataFrame:
    """``run_times`` of several networks, with the number of threads that the CPU's part had."""
    rows = []
    with track(len(networks), "time weight matching", "network") as bar:
        for network in networks:
            rows += run_times(network, repeats, seed, device)
            bar.update()
    table = pd.DataFrame(rows, columns=["network", "metric", "node", "value"])
    trained = {network.name: _kind(network) for network in networks}
    return table.assign(weights=table["network"].map(trained), threads=torch.get_num_threads(), device=device)


def _kind(network: Network) -> str:
    return "trained" if network.tracing_seconds is None else "fresh"
