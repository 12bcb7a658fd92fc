"""Weight matching (Git Re-Basin, Algorithm 1) of two trained 3x512 MLPs: ours beside published packages and the floor.

The same nine visiting orders for every matcher of benchmarks/matchers.py, which says what each one is. Each runs in a
process of its own, and they take turns, so that noise hits all of them. ``floor_all_visits`` are the assignments of all
visits of the textbook version, the needless ones included.

Then 100 pairs at once, in chunks, on two threads, against one call for each on one thread. ``python
benchmarks/matching.py`` takes about nine minutes, prints a table and keeps it, with the hardware and all versions, in
benchmarks/matching.json. It takes the models of preset cpu, which it trains if the cache does not hold them.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.matchers import MATCHERS, PEERS, Pair, Weights, Worker, install_peers, save
from benchmarks.turns import keep
from lab.bookkeeping.pipeline import load_preset
from lab.data import load
from lab.training.plan import read_networks
from lab.training.train import train
from rebasin import Permutation, PermutationSpec, weight_matching

AXES = {
    "layer1.weight": ("layer1", None),
    "layer1.bias": ("layer1",),
    "layer2.weight": ("layer2", "layer1"),
    "layer2.bias": ("layer2",),
    "layer3.weight": ("layer3", "layer2"),
    "layer3.bias": ("layer3",),
    "layer4.weight": (None, "layer3"),
    "layer4.bias": (None,),
}
ORDERS, ROUNDS = 9, 2
PAIRS, THREADS, CHUNKS, BATCHED_ROUNDS = 100, 2, (1, 4, 16), 2


def main() -> None:
    leaves = trained_leaves()
    pair = Pair({key: w[0] for key, w in leaves.items()}, {key: w[1] for key, w in leaves.items()}, AXES)
    table = {
        "what": "weight matching of two trained 3x512 MLPs on CIFAR-10, one thread, seconds",
        **side_by_side(pair),
        "batched": batched(leaves),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
        | PEERS,
    }
    keep(__file__, table)
    print(json.dumps({key: value for key, value in table.items() if key != "raw"}, indent=1))


def trained_leaves() -> Weights:
    """The 64 trained models of preset cpu: (64, ...)."""
    networks = read_networks(load_preset("cpu")["networks"])
    data = load(networks.dataset, networks.held_out)
    return train(networks.recipe, data, networks.models, networks.epochs, "cpu", networks.chunk).last


def side_by_side(pair: Pair) -> dict:
    """All implementations on one pair, in turns, each in a process with one thread."""
    peers = install_peers()
    if peers is None:
        raise RuntimeError(f"the published packages could not be installed: {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = save(pair, Path(folder) / "pair.pt")
        workers = {name: Worker(name, path, peers) for name in MATCHERS}
        for worker in workers.values():
            worker.run(0)  # once for nothing: what comes first is slow
        names = list(workers)
        raw: dict[str, list[list[dict]]] = {name: [[] for _ in range(ORDERS)] for name in names}
        for turn, (_, seed) in enumerate(itertools.product(range(ROUNDS), range(ORDERS))):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                raw[name][seed].append(workers[name].run(seed))
            done = "  ".join(f"{name} {raw[name][seed][-1]['seconds'] * 1e3:.0f}" for name in names)
            print(f"{turn + 1}/{ROUNDS * ORDERS}, order {seed}, ms: {done}", flush=True)
        for worker in workers.values():
            worker.close()
    # What an order gives is the same in every round.
    objectives = {
        name: [objective(pair, runs[0]["indices"]) for runs in raw[name]] for name in names if name != "floor"
    }
    seconds = {name: [[run["seconds"] for run in runs] for runs in raw[name]] for name in names}
    processor = {
        name: [run["processor_seconds"] for runs in raw[name] for run in runs] for name in names if name != "floor"
    }
    seconds["floor_all_visits"] = [[run["seconds_all_visits"] for run in runs] for runs in raw["floor"]]
    median = {name: statistics.median(itertools.chain(*runs)) for name, runs in seconds.items()}
    fastest = min((*PEERS, "textbook"), key=median.__getitem__)
    mean = {name: statistics.mean(values) for name, values in objectives.items()}
    return {
        "orders": ORDERS,
        "runs_per_order": ROUNDS,
        "median_seconds": {name: round(value, 4) for name, value in median.items()},
        "median_processor_seconds": {name: round(statistics.median(each), 4) for name, each in processor.items()},
        "fastest_other": fastest,
        "ours_over_fastest_other": round(median["ours"] / median[fastest], 3),
        "ours_over_floor": round(median["ours"] / median["floor"], 3),
        "ours_over": {name: round(median["ours"] / median[name], 3) for name in (*PEERS, "textbook")},
        "assignments": {key: statistics.mean(runs[0][key] for runs in raw["floor"]) for key in ("visits", "distinct")},
        "mean_objective": {name: round(value, 4) for name, value in mean.items()},
        "ours_minus_other_objective": {
            name: {
                "mean": round(mean["ours"] - mean[name], 5),
                "each_order": [round(x - y, 5) for x, y in zip(objectives["ours"], objectives[name], strict=True)],
            }
            for name in (*PEERS, "textbook")
        },
        "raw": {
            "seconds": {name: [[round(s, 5) for s in runs] for runs in each] for name, each in seconds.items()},
            "objective": objectives,
        },
    }


def objective(pair: Pair, indices: dict[str, list[int]]) -> float:
    """The inner product of ``a`` and the permuted ``b``, in float64: the one measure for all."""
    spec = PermutationSpec.from_axes(pair.a, pair.axes)
    permuted = Permutation(spec, {group: torch.tensor(index) for group, index in indices.items()}).apply(pair.b)
    return float(sum((pair.a[key].double() * permuted[key].double()).sum() for key in pair.a))


def batched(leaves: Weights) -> dict:
    """100 pairs of the leaves: one call for each on one thread, and all in one call on two, for several chunks."""
    spec = PermutationSpec.from_axes({key: w[0] for key, w in leaves.items()}, AXES)
    count = len(next(iter(leaves.values())))
    first = [pair % count for pair in range(PAIRS)]
    second = [(pair + 1 + pair // count) % count for pair in range(PAIRS)]
    a, b = ({key: w[chosen] for key, w in leaves.items()} for chosen in (first, second))
    pairs = [({key: w[i] for key, w in a.items()}, {key: w[i] for key, w in b.items()}) for i in range(PAIRS)]

    def alone(pair: int) -> tuple[float, float]:
        torch.set_num_threads(1)
        started = time.perf_counter()
        matching = weight_matching(spec, *pairs[pair])
        return time.perf_counter() - started, float(matching.objective)

    def many(chunk: int) -> tuple[float, Tensor]:
        torch.set_num_threads(THREADS)
        started = time.perf_counter()
        matching = weight_matching(spec, a, b, chunk=chunk)
        return time.perf_counter() - started, matching.objective

    alone(0)
    by_chunk = {chunk: many(chunk)[0] for chunk in CHUNKS}
    print("  ".join(f"chunk {chunk}: {seconds:.1f} s" for chunk, seconds in by_chunk.items()), flush=True)
    chunk = min(by_chunk, key=by_chunk.__getitem__)
    singles, together, apart = [], [], 0.0
    for turn in range(BATCHED_ROUNDS):
        one_by_one = [alone(pair) for pair in range(PAIRS)]
        seconds, reached = many(chunk)
        singles.append([seconds for seconds, _ in one_by_one])
        together.append(seconds)
        apart = max(apart, float((reached - reached.new_tensor([value for _, value in one_by_one])).abs().max()))
        print(f"{turn + 1}/{BATCHED_ROUNDS}, s: one by one {sum(singles[-1]):.1f}  at once {seconds:.1f}", flush=True)
    median = statistics.median(itertools.chain(*singles))
    return {
        "pairs": PAIRS,
        "threads": THREADS,
        "chunk": chunk,
        "seconds_by_chunk": {str(chunk): round(seconds, 2) for chunk, seconds in by_chunk.items()},
        "at_once_seconds": [round(seconds, 2) for seconds in together],
        "one_by_one_seconds": [round(sum(seconds), 2) for seconds in singles],
        "median_single_pair_seconds": round(median, 4),
        "at_once_over_one_by_one": round(sum(together) / sum(itertools.chain(*singles)), 3),
        "largest_objective_difference": apart,
    }


if __name__ == "__main__":
    main()
