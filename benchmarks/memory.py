"""How much memory each method of the arena takes: the peak of its process above what networks and images take.

``python benchmarks/memory.py`` prints a table and keeps it in benchmarks/memory.json, kind by kind. Networks have the
architectures and widths of preset cpu's settings "cifar10 halves", each method is tried at the smallest of its sizes
there, and it sees as many images; weights and images are random, since what is stored depends on their shapes alone.
Methods that take 400 steps of training take a few here, after which no more is stored. Each method runs in a process of
its own, a fork that begins with networks, images and the graph. The Gram matrices, which most methods share, are
collected before, and count where a method reads them: then its peak is that of their pass, if that is higher. Pages of
files, as those of libraries, do not count. Linux alone tells the peak of resident memory from some moment on. On one
thread, the median of so many runs as the table says.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.resident import peak, resident, to_mebibytes
from benchmarks.turns import keep
from lab.bookkeeping.pipeline import load_preset
from lab.contestants import METHODS, Arena, adam
from lab.contestants.settings import Setting, read_settings
from lab.images import Dataset, Split
from lab.networks import build
from rebasin import Grams, trace
from rebasin.weights import stack

REPEATS, STEPS, CLASSES, SIDE = 3, 4, 5, 32


class Watched(Arena):
    """An arena that knows whether its Gram matrices were read."""

    @property
    def grams(self) -> Grams:
        vars(self)["reads_grams"] = True
        return super().grams


def main() -> None:
    torch.set_num_threads(1)  # a process that has threads must not be forked
    for trains in (adam, importlib.import_module("lab.contestants.distilled")):
        trains.STEPS = STEPS
    settings = read_settings(load_preset("cpu")["arena_settings"])
    halves = [one for one in settings if one.name.startswith("cifar10 halves") and not one.attacked]
    peaks: dict[tuple[str, str, float], list[int]] = {}
    for _ in range(REPEATS):
        for setting in halves:
            for method, size, most in peaks_of(setting):
                peaks.setdefault((setting.name, method, size), []).append(most)
                print(setting.name, method, to_mebibytes(most), flush=True)
            write(peaks)


def write(peaks: Mapping[tuple[str, str, float], Sequence[int]]) -> None:
    """Write what was measured so far: a row for each method, its median, and how far its runs are apart."""
    rows = []
    for (setting, method, size), runs in peaks.items():
        median, spread = to_mebibytes(statistics.median(runs)), to_mebibytes(max(runs) - min(runs))
        row = {"setting": setting, "method": method, "size": size}
        rows.append({**row, "mebibytes": median, "spread": spread, "runs": len(runs)})
    table = {
        "what": "peak resident memory above networks and images, on one thread",
        "rows": rows,
    }
    keep(__file__, table)


def peaks_of(setting: Setting) -> Iterator[tuple[str, float, int]]:
    """The bytes that the Gram matrices of a setting take at their peak, and each method with them or without."""
    arena = arena_of(setting)
    passing, _ = peak(partial(reads_grams, arena, lambda arena: arena.timed_grams))
    yield "grams", 1.0, passing
    before = resident()
    assert arena.timed_grams is not None  # from here on they are there
    held = resident() - before
    for method, sizes in setting.methods.items():
        size = min(sizes)
        growth, reads = peak(partial(reads_grams, arena, partial(METHODS[method], size=size)))
        yield method, size, max(passing, held + growth) if reads else growth


def reads_grams(arena: Watched, work: Callable[[Arena], object]) -> bool:
    """Whether some work in an arena reads its Gram matrices."""
    work(arena)
    return "reads_grams" in vars(arena)


def arena_of(setting: Setting) -> Watched:
    """Random networks of a setting, and random images, as many as its methods see; graph and images are made."""
    generator = torch.Generator().manual_seed(0)
    tasks = [random_split(setting.images, generator) for _ in range(setting.parents)]
    data = Dataset("", "", tasks[0], tasks[0], tasks[0], (0.5,) * 3, (0.25,) * 3, "")
    networks = []
    for seed in range(setting.parents):
        model = build(setting.networks.recipe.architecture, data, setting.networks.recipe.width)
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        networks.append(model)
    parents = stack([model.state_dict() for model in networks])
    other = random_split(setting.images * len(tasks), generator).pixels
    arena = Watched(networks[0], trace(networks[0], data.example), parents, tuple(tasks), tuple(tasks), other)
    assert len(arena.inputs) == len(other) and arena.program is not None
    return arena


def random_split(m: int, generator: torch.Generator) -> Split:
    """``m`` images of CIFAR-10's format, of five classes."""
    images = torch.randint(256, (m, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels: Tensor = torch.arange(m) % CLASSES
    return Split(images, labels)


if __name__ == "__main__":
    main()
