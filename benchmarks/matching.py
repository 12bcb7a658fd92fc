"""Weight matching (Git Re-Basin, Algorithm 1) of two trained 3x512 MLPs: ours beside published packages and the floor.

Measured is the time from weights in memory to a permutation, on one thread, for the same nine visiting orders; each
implementation runs in a process of its own, and they take turns, so that noise hits all of them. Everything uses this
environment's torch and scipy; the packages are installed without their dependencies into .cache/peers.

- ``ours``: ``weight_matching``, with all its checks of what it is given.
- ``frank-wolfe``: ``frank_wolfe_matching``, which visits nothing in turn: the same nine times.
- ``textbook``: Algorithm 1 as it is printed, written here: every visit computes all scores of its group anew.
- ``rebasin``: the package of the same name by S. Mueller; tracing the model is not counted. It takes each layer's own
  weights twice as often as the next layer's (four times and twice), and the product of two biases as one number instead
  of a matrix: it spends more, and its objective is lower.
- ``sd-meh``: the common PyTorch port, for Stable Diffusion. It visits three groups of fixed names, which ours bear.
- ``sd-mecha``: likewise; its solver is reached below its public functions, which know only Stable Diffusion's networks.
- ``floor``: scipy's ``linear_sum_assignment`` on those score matrices of the textbook version that differ from the
  last one of the same group, and nothing else; ``floor_all_visits`` on all of them.

The packages shuffle the order, or keep to one; here they are told the order that ours takes. Of other packages,
mergekit 0.1.5 and fusion-bench 0.2.33 hold no weight matching; the authors' code, other PyTorch ports, C2M3 and PLeaS
were on no package index, and are missing here: ``sd-meh`` and ``textbook`` stand for the ports.

Then 100 pairs at once, in chunks, on two threads, against one call for each on one thread. ``python
benchmarks/matching.py`` takes about nine minutes, prints a table and keeps it, with the hardware and all versions, in
benchmarks/matching.json. It takes the models of preset cpu, which it trains if the cache does not hold them.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

# What imports our rebasin does so inside of functions: in a peer's process the name means the peer.
SIZES = (3072, 512, 512, 512, 10)
GROUPS = ("layer1", "layer2", "layer3")
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
PEERS = {"rebasin": "0.0.47", "sd-meh": "0.9.5", "sd-mecha": "1.1.8"}
# What the peers import, as far as we do not have it.
NEEDED = (
    "torchview",
    "graphviz",
    "click",
    "safetensors",
    "fuzzywuzzy",
    "python-Levenshtein",
    "Levenshtein",
    "rapidfuzz",
)

Weights = dict[str, Tensor]


def main() -> None:
    from lab.bookkeeping import results

    leaves = _leaves()
    table = {
        "what": "weight matching of two trained 3x512 MLPs on CIFAR-10, one thread, seconds",
        **_side_by_side({key: w[0] for key, w in leaves.items()}, {key: w[1] for key, w in leaves.items()}),
        "batched": _batched(leaves),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
        | PEERS,
        "hardware": results._hardware(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps({key: value for key, value in table.items() if key != "raw"}, indent=1))


def _leaves() -> Weights:
    """The 64 trained models of preset cpu: (64, ...)."""
    from lab.bookkeeping.pipeline import load_preset
    from lab.data import load
    from lab.training.plan import read_networks
    from lab.training.train import train

    networks = read_networks(load_preset("cpu")["networks"])
    data = load(networks.dataset, networks.held_out)
    return train(networks.recipe, data, networks.models, networks.epochs, "cpu", networks.chunk).last


def _model() -> nn.Sequential:
    """What is matched: the chain of linear layers, without the constants before it."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(SIZES), 1):
        layers[f"layer{i}"] = nn.Linear(inputs, outputs)
        layers[f"relu{i}"] = nn.ReLU()
    del layers["relu4"]
    return nn.Sequential(layers)


def _orders(seed: int) -> Iterator[list[int]]:
    """The order in which ``weight_matching`` visits the groups, sweep by sweep."""
    order = np.random.default_rng(seed)
    while True:
        yield order.permutation(len(GROUPS)).tolist()


# ---- one pair, side by side


def _side_by_side(a: Weights, b: Weights) -> dict:
    """All implementations on one pair, in turns, each in a process with one thread."""
    peers = _install_peers()
    with tempfile.TemporaryDirectory() as folder:
        torch.save((a, b), f"{folder}/pair.pt")
        workers = {name: _Worker(name, f"{folder}/pair.pt", peers) for name in MATCHERS}
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
        name: [_objective(a, b, runs[0]["indices"]) for runs in raw[name]] for name in names if name != "floor"
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


def _install_peers() -> Path:
    """The folder of the published packages, filled if it is not there."""
    from lab.bookkeeping.code import ROOT

    folder = ROOT / ".cache" / "peers"
    if not folder.exists():
        pinned = [f"{name}=={version}" for name, version in PEERS.items()]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *pinned, *NEEDED], check=True)
    return folder


def _objective(a: Weights, b: Weights, indices: dict[str, list[int]]) -> float:
    """The inner product of ``a`` and the permuted ``b``, in float64: the one measure for all."""
    from rebasin import Permutation, trace

    spec = trace(_model(), torch.zeros(2, SIZES[0]))
    permuted = Permutation(spec, {group: torch.tensor(index) for group, index in indices.items()}).apply(b)
    return float(sum((a[key].double() * permuted[key].double()).sum() for key in a))


class _Worker:
    """A process that matches one pair by one implementation, each time it is given a seed."""

    def __init__(self, name: str, pair: str, peers: Path) -> None:
        one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        environment = os.environ | one | ({"PYTHONPATH": str(peers)} if name in PEERS else {})
        command = [sys.executable, __file__, name, pair]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.run(0)  # once for nothing: what comes first is slow

    def run(self, seed: int) -> dict:
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} has ended")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def work(name: str, pair: str) -> None:
    """Be the worker ``name``: read seeds, write what was found and the seconds it took."""
    torch.set_num_threads(1)
    run = MATCHERS[name](*torch.load(pair))
    answers, sys.stdout = sys.stdout, sys.stderr  # a peer may print
    for line in sys.stdin:
        print(json.dumps(run(int(line))), file=answers, flush=True)


def _timed(match: Callable[[], dict[str, Tensor]]) -> dict:
    started, processor = time.perf_counter(), time.process_time()
    found = match()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    indices = {group: index.long().tolist() for group, index in found.items()}
    return {"seconds": seconds, "processor_seconds": processor, "indices": indices}


def _ours(a: Weights, b: Weights) -> Callable[[int], dict]:
    from rebasin import trace, weight_matching

    spec = trace(_model(), torch.zeros(2, SIZES[0]))
    return lambda seed: _timed(lambda: weight_matching(spec, a, b, seed=seed).permutation.indices)


def _frank_wolfe(a: Weights, b: Weights) -> Callable[[int], dict]:
    from rebasin import frank_wolfe_matching, trace

    spec = trace(_model(), torch.zeros(2, SIZES[0]))
    return lambda seed: _timed(lambda: frank_wolfe_matching(spec, a, b).permutation.indices)


def _textbook(a: Weights, b: Weights) -> Callable[[int], dict]:
    return lambda seed: _timed(lambda: _algorithm_1(a, b, seed))


def _algorithm_1(a: Weights, b: Weights, seed: int, visits: list | None = None) -> dict[str, Tensor]:
    """Algorithm 1 as it is printed; ``visits``, if given, receives each visit's group and score matrix."""
    found = {group: torch.arange(len(a[f"{group}.bias"])) for group in GROUPS}
    orders, gain = _orders(seed), 1.0
    while gain > 1e-12:
        gain = 0.0
        for group in (GROUPS[position] for position in next(orders)):
            units = torch.arange(len(found[group]))
            score = torch.zeros(len(units), len(units))
            for key, axes in AXES.items():
                if group in axes:
                    axis, moved = axes.index(group), b[key]
                    for other, name in enumerate(axes):
                        if name is not None and other != axis:
                            moved = moved.index_select(other, found[name])
                    mine, theirs = (w.movedim(axis, 0).reshape(len(units), -1) for w in (a[key], moved))
                    score += mine @ theirs.T
            new = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])
            gain += float((score[units, new].double() - score[units, found[group]].double()).sum())
            found[group] = new
            if visits is not None:
                visits.append((group, score.numpy()))
    return found


def _floor(a: Weights, b: Weights) -> Callable[[int], dict]:
    def assign(matrices: list[np.ndarray]) -> float:
        started = time.perf_counter()
        for matrix in matrices:
            linear_sum_assignment(matrix, maximize=True)
        return time.perf_counter() - started

    def run(seed: int) -> dict:
        visits: list[tuple[str, np.ndarray]] = []
        _algorithm_1(a, b, seed, visits)
        last: dict[str, np.ndarray] = {}
        distinct = []
        for group, matrix in visits:
            if group not in last or not np.array_equal(last[group], matrix):
                distinct.append(matrix)
            last[group] = matrix
        counts = {"visits": len(visits), "distinct": len(distinct)}
        return {"seconds": assign(distinct), "seconds_all_visits": assign([matrix for _, matrix in visits]), **counts}

    return run


def _rebasin(a: Weights, b: Weights) -> Callable[[int], dict]:
    from rebasin import PermutationCoordinateDescent

    model_a, model_b = _model(), _model()
    model_a.load_state_dict(a)
    model_b.load_state_dict(b)
    shuffle = torch.randperm

    def run(seed: int) -> dict:
        search = PermutationCoordinateDescent(model_a, model_b, torch.zeros(1, SIZES[0]))
        known = search.pinit.model_graph.permutation_to_info
        of_layer = {info.module.module_b: known for known, infos in known for info in infos if info.axis == 0}
        groups = {group: of_layer[model_b.get_submodule(group)] for group in GROUPS}
        position = [next(i for i, (one, _) in enumerate(known) if one is groups[group]) for group in GROUPS]
        if sorted(position) != list(range(len(known))):
            raise RuntimeError(f"rebasin finds {len(known)} groups, not {len(GROUPS)}")
        orders = _orders(seed)
        torch.randperm = lambda n: torch.tensor([position[i] for i in next(orders)])

        def match() -> dict[str, Tensor]:
            search.calculate_permutations()
            return {group: one.perm_indices for group, one in groups.items()}

        found = _timed(match)
        torch.randperm = shuffle
        return found

    return run


def _sd_meh(a: Weights, b: Weights) -> Callable[[int], dict]:
    from sd_meh import rebasin

    # The three groups that it visits, and no others.
    names = dict(zip(GROUPS, ("P_bg324", "P_bg358", "P_bg337"), strict=True))
    axes = {key: tuple(names.get(group) for group in groups) for key, groups in AXES.items()}
    spec = rebasin.permutation_spec_from_axes_to_perm(axes)

    def run(seed: int) -> dict:
        orders = _orders(seed)

        def shuffle(visited: list[str]) -> None:
            visited[:] = [names[GROUPS[position]] for position in next(orders)]

        def match() -> dict[str, Tensor]:
            found, _ = rebasin.weight_matching(spec, a, b, max_iter=100)
            return {group: found[name] for group, name in names.items()}

        rebasin.shuffle = shuffle
        return _timed(match)

    return run


def _sd_mecha(a: Weights, b: Weights) -> Callable[[int], dict]:
    import dataclasses

    from sd_mecha.extensions.builtin.merge_methods.rebasin import perm_graph, sdxl_sgm

    graph = perm_graph.PermGraph(a)
    for layer in range(1, len(GROUPS) + 1):
        axes = {f"layer{layer}.weight": 0, f"layer{layer}.bias": 0, f"layer{layer + 1}.weight": 1}
        slices = {key: perm_graph.PermSlice(axis) for key, axis in axes.items()}
        graph.add(perm_graph.Permutation(SIZES[layer], slices))
    (closure,) = graph.closures()

    class Visits:
        """A tuple of groups that comes in another order each time; the first time is no sweep."""

        def __init__(self, seed: int) -> None:
            self.orders = itertools.chain([range(len(GROUPS))], _orders(seed))

        def __iter__(self) -> Iterator[int]:
            return iter(next(self.orders))

    def run(seed: int) -> dict:
        ordered = dataclasses.replace(closure, components=(Visits(seed),))
        found = sdxl_sgm._init_pid_perm(ordered, "cpu")

        def match() -> dict[str, Tensor]:
            solve = sdxl_sgm._solve_all_components
            solve(ordered, found, a.__getitem__, b.__getitem__, torch.device("cpu"), torch.float32, 100)
            return {group: found[position] for position, group in enumerate(GROUPS)}

        return _timed(match)

    return run


MATCHERS = {
    "ours": _ours,
    "frank-wolfe": _frank_wolfe,
    "textbook": _textbook,
    "rebasin": _rebasin,
    "sd-meh": _sd_meh,
    "sd-mecha": _sd_mecha,
    "floor": _floor,
}


# ---- many pairs


def _batched(leaves: Weights) -> dict:
    """100 pairs of the leaves: one call for each on one thread, and all in one call on two, for several chunks."""
    from rebasin import trace, weight_matching

    spec = trace(_model(), torch.zeros(2, SIZES[0]))
    count = len(next(iter(leaves.values())))
    first = [pair % count for pair in range(PAIRS)]
    second = [(pair + 1 + pair // count) % count for pair in range(PAIRS)]
    a, b = ({key: w[chosen] for key, w in leaves.items()} for chosen in (first, second))
    pairs = [({key: w[i] for key, w in a.items()}, {key: w[i] for key, w in b.items()}) for i in range(PAIRS)]

    def one(pair: int) -> tuple[float, float]:
        torch.set_num_threads(1)
        started = time.perf_counter()
        found = weight_matching(spec, *pairs[pair])
        return time.perf_counter() - started, float(found.objective)

    def many(chunk: int) -> tuple[float, Tensor]:
        torch.set_num_threads(THREADS)
        started = time.perf_counter()
        found = weight_matching(spec, a, b, chunk=chunk)
        return time.perf_counter() - started, found.objective

    one(0)
    by_chunk = {chunk: many(chunk)[0] for chunk in CHUNKS}
    print("  ".join(f"chunk {chunk}: {seconds:.1f} s" for chunk, seconds in by_chunk.items()), flush=True)
    chunk = min(by_chunk, key=by_chunk.__getitem__)
    singles, together, apart = [], [], 0.0
    for turn in range(BATCHED_ROUNDS):
        alone = [one(pair) for pair in range(PAIRS)]
        seconds, objective = many(chunk)
        singles.append([seconds for seconds, _ in alone])
        together.append(seconds)
        apart = max(apart, float((objective - objective.new_tensor([value for _, value in alone])).abs().max()))
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
    work(*sys.argv[1:]) if sys.argv[1:] else main()
