"""Weight matchers of one pair, each in a process of its own: ours, the textbook's, and published packages.

All use this environment's torch and scipy; the packages are installed without their dependencies into .cache/peers, so
that nothing else sees them. Measured is the time from weights in memory to a permutation, on one thread. The packages
shuffle the order in which they visit the groups, or keep to one; here they are told the order that ours takes.

- ``ours``: ``weight_matching``, with all its checks of what it is given.
- ``frank-wolfe``: ``frank_wolfe_matching``, which visits nothing in turn.
- ``textbook``: Algorithm 1 as it is printed, written here: every visit computes all scores of its group anew.
- ``rebasin``: the package of the same name by S. Mueller, for chains of linear layers; tracing is not counted.
  It takes each layer's own weights twice as often as the next layer's (four times and twice), and the product of two
  biases as one number instead of a matrix: it spends more, and its objective is lower.
- ``sd-meh``: the common PyTorch port, for Stable Diffusion. It visits three groups of fixed names, which ours bear.
- ``sd-mecha``: likewise; its solver is reached below its public functions, which know only Stable Diffusion's networks.
- ``floor``: scipy's ``linear_sum_assignment`` on those score matrices of the textbook version that differ from the last
  one of the same group, and nothing else.

Of other packages, mergekit 0.1.5 and fusion-bench 0.2.33 hold no weight matching; the authors' code, other PyTorch
ports, C2M3 and PLeaS were on no package index.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

# What imports our rebasin does so inside of functions: in a peer's process the name means the peer.
PEERS = {"rebasin": "0.0.47", "sd-meh": "0.9.5", "sd-mecha": "1.1.8"}
# What the peers import, as far as we do not have it.
NEEDED = (
    "torchview", "graphviz", "click", "safetensors", "fuzzywuzzy", "python-Levenshtein", "Levenshtein", "rapidfuzz",
)  # fmt: skip

Weights = dict[str, Tensor]
Matcher = Callable[[int], dict]  # a seed of the visiting order in, seconds and what was found out


@dataclass(frozen=True)
class Pair:
    """Two networks of the same shapes, and the group of each axis of each weight, None for an axis that stays."""

    a: Weights
    b: Weights
    axes: Mapping[str, Sequence[str | None]]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of units of each group, in the order in which ours knows them."""
        sizes: dict[str, int] = {}
        for key, groups in self.axes.items():
            for group, size in zip(groups, self.a[key].shape, strict=True):
                if group is not None:
                    sizes.setdefault(group, size)
        return sizes

    def orders(self, seed: int) -> Iterator[list[str]]:
        """The order in which ``weight_matching`` visits the groups, sweep by sweep."""
        order, groups = np.random.default_rng(seed), list(self.sizes)
        while True:
            yield [groups[position] for position in order.permutation(len(groups))]


def install_peers() -> Path | None:
    """The folder of the published packages, filled if it is not there; None where they cannot be had."""
    from lab.bookkeeping.same_code import cache_folder

    folder = cache_folder() / "peers"
    if not folder.exists():
        pinned = [f"{name}=={version}" for name, version in PEERS.items()]
        partial = folder.with_name("peers.partial")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(partial)]
        if subprocess.run([*pip, *pinned, *NEEDED], capture_output=True).returncode:
            return None
        partial.rename(folder)
    return folder


class Worker:
    """A process that matches one pair by one matcher, on one thread, each time that it is given a seed.

    Raises RuntimeError where the process ends, as for a package that cannot be imported.
    """

    def __init__(self, name: str, pair: Path, peers: Path | None) -> None:
        self.name = name
        single = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        environment = os.environ | single | ({"PYTHONPATH": str(peers)} if name in PEERS else {})
        command = [sys.executable, __file__, name, str(pair)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()  # it is ready

    def run(self, seed: int) -> dict:
        """What the matcher finds in the visiting order of a seed, and its ``seconds``."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} has ended")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(name: str, pair: str) -> None:
    """Be the worker ``name``: read seeds, write what was found and the seconds it took."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # a peer may print
    run = MATCHERS[name](Pair(*torch.load(pair)))
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(int(line))), file=answers, flush=True)


def save(pair: Pair, path: Path) -> Path:
    """Write a pair for workers to read."""
    torch.save((pair.a, pair.b, dict(pair.axes)), path)
    return path


def _timed(match: Callable[[], Mapping[str, Tensor]]) -> dict:
    started, processor = time.perf_counter(), time.process_time()
    found = match()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    indices = {group: index.long().tolist() for group, index in found.items()}
    return {"seconds": seconds, "processor_seconds": processor, "indices": indices}


def _ours(pair: Pair) -> Matcher:
    from rebasin import PermutationSpec, weight_matching

    spec = PermutationSpec.from_axes(pair.a, pair.axes)
    return lambda seed: _timed(lambda: weight_matching(spec, pair.a, pair.b, seed=seed).permutation.indices)


def _frank_wolfe(pair: Pair) -> Matcher:
    from rebasin import PermutationSpec, frank_wolfe_matching

    spec = PermutationSpec.from_axes(pair.a, pair.axes)
    return lambda seed: _timed(lambda: frank_wolfe_matching(spec, pair.a, pair.b).permutation.indices)


def _textbook(pair: Pair) -> Matcher:
    return lambda seed: _timed(lambda: algorithm_1(pair, seed))


def algorithm_1(pair: Pair, seed: int, visits: list | None = None) -> dict[str, Tensor]:
    """Algorithm 1 as it is printed; ``visits``, if given, receives each visit's group and score matrix."""
    index = {group: torch.arange(size) for group, size in pair.sizes.items()}
    orders, gain = pair.orders(seed), 1.0
    while gain > 1e-12:
        gain = 0.0
        for group in next(orders):
            units = torch.arange(len(index[group]))
            score = torch.zeros(len(units), len(units))
            for key, axes in pair.axes.items():
                if group in axes:
                    axis, moved = axes.index(group), pair.b[key]
                    for other, name in enumerate(axes):
                        if name is not None and other != axis:
                            moved = moved.index_select(other, index[name])
                    mine, theirs = (w.movedim(axis, 0).reshape(len(units), -1) for w in (pair.a[key], moved))
                    score += mine @ theirs.T
            new = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])
            gain += float((score[units, new].double() - score[units, index[group]].double()).sum())
            index[group] = new
            if visits is not None:
                visits.append((group, score.numpy()))
    return index


def _floor(pair: Pair) -> Matcher:
    def assign(matrices: list[np.ndarray]) -> float:
        started = time.perf_counter()
        for matrix in matrices:
            linear_sum_assignment(matrix, maximize=True)
        return time.perf_counter() - started

    def run(seed: int) -> dict:
        visits: list[tuple[str, np.ndarray]] = []
        algorithm_1(pair, seed, visits)
        last: dict[str, np.ndarray] = {}
        distinct = []
        for group, matrix in visits:
            if group not in last or not np.array_equal(last[group], matrix):
                distinct.append(matrix)
            last[group] = matrix
        counts = {"visits": len(visits), "distinct": len(distinct)}
        return {"seconds": assign(distinct), "seconds_all_visits": assign([matrix for _, matrix in visits]), **counts}

    return run


def _rebasin(pair: Pair) -> Matcher:
    from rebasin import PermutationCoordinateDescent

    model_a, model_b = chain(pair), chain(pair)
    model_a.load_state_dict(pair.a)
    model_b.load_state_dict(pair.b)
    shuffle = torch.randperm
    inputs = next(iter(pair.a.values())).shape[1]

    def run(seed: int) -> dict:
        search = PermutationCoordinateDescent(model_a, model_b, torch.zeros(1, inputs))
        known = search.pinit.model_graph.permutation_to_info
        of_layer = {info.module.module_b: known for known, infos in known for info in infos if info.axis == 0}
        groups = {group: of_layer[model_b.get_submodule(group)] for group in pair.sizes}
        position = {group: next(i for i, (one, _) in enumerate(known) if one is groups[group]) for group in groups}
        if sorted(position.values()) != list(range(len(known))):
            raise RuntimeError(f"rebasin finds {len(known)} groups, not {len(groups)}")
        orders = pair.orders(seed)
        torch.randperm = lambda n: torch.tensor([position[group] for group in next(orders)])

        def match() -> dict[str, Tensor]:
            search.calculate_permutations()
            return {group: one.perm_indices for group, one in groups.items()}

        answer = _timed(match)
        torch.randperm = shuffle
        return answer

    return run


def chain(pair: Pair) -> nn.Sequential:
    """The chain of linear layers that a pair of MLPs is, by the names of their weights."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    names = [key.removesuffix(".weight") for key in pair.a if key.endswith(".weight")]
    for i, name in enumerate(names):
        outputs, inputs = pair.a[f"{name}.weight"].shape
        layers[name] = nn.Linear(inputs, outputs)
        if i + 1 < len(names):
            layers[f"relu{i + 1}"] = nn.ReLU()
    return nn.Sequential(layers)


def _sd_meh(pair: Pair) -> Matcher:
    from sd_meh import rebasin

    # The three groups that it visits, and no others.
    names = dict(zip(pair.sizes, ("P_bg324", "P_bg358", "P_bg337"), strict=True))
    axes = {key: tuple(names.get(group) for group in groups) for key, groups in pair.axes.items()}
    spec = rebasin.permutation_spec_from_axes_to_perm(axes)

    def run(seed: int) -> dict:
        orders = pair.orders(seed)

        def shuffle(visited: list[str]) -> None:
            visited[:] = [names[group] for group in next(orders)]

        def match() -> dict[str, Tensor]:
            index, _ = rebasin.weight_matching(spec, pair.a, pair.b, max_iter=100)
            return {group: index[name] for group, name in names.items()}

        rebasin.shuffle = shuffle
        return _timed(match)

    return run


def _sd_mecha(pair: Pair) -> Matcher:
    import dataclasses

    from sd_mecha.extensions.builtin.merge_methods.rebasin import perm_graph, sdxl_sgm

    graph, groups = perm_graph.PermGraph(pair.a), list(pair.sizes)
    for group, size in pair.sizes.items():
        axes = {key: names.index(group) for key, names in pair.axes.items() if group in names}
        slices = {key: perm_graph.PermSlice(axis) for key, axis in axes.items()}
        graph.add(perm_graph.Permutation(size, slices))
    (closure,) = graph.closures()

    class Visits:
        """A tuple of groups that comes in another order each time; the first time is no sweep."""

        def __init__(self, seed: int) -> None:
            sweeps = ([groups.index(group) for group in order] for order in pair.orders(seed))
            self.orders = itertools.chain([range(len(groups))], sweeps)

        def __iter__(self) -> Iterator[int]:
            return iter(next(self.orders))

    def run(seed: int) -> dict:
        ordered = dataclasses.replace(closure, components=(Visits(seed),))
        index = sdxl_sgm._init_pid_perm(ordered, "cpu")

        def match() -> dict[str, Tensor]:
            solve = sdxl_sgm._solve_all_components
            solve(ordered, index, pair.a.__getitem__, pair.b.__getitem__, torch.device("cpu"), torch.float32, 100)
            return {group: index[position] for position, group in enumerate(groups)}

        return _timed(match)

    return run


MATCHERS: dict[str, Callable[[Pair], Matcher]] = {
    "ours": _ours,
    "frank-wolfe": _frank_wolfe,
    "textbook": _textbook,
    "rebasin": _rebasin,
    "sd-meh": _sd_meh,
    "sd-mecha": _sd_mecha,
    "floor": _floor,
}


if __name__ == "__main__":
    work(*sys.argv[1:])
