"""Where the time of a merge goes that is a fifth larger than one network: into convolutions, or into joining them.

``python benchmarks/running.py`` prints a table and keeps it in benchmarks/running.json. Two ResNet20 of the usual width
with random weights are merged at sizes 1 and 1.2, and run on one thread on a batch of random images. Times are those of
the processor, the least of several runs, so that other work on the machine hardly counts; operators are timed as torch
calls them, in runs of their own.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.turns import keep
from lab.images import Dataset, Split
from lab.networks import build
from rebasin import collect, pleas, trace

WIDTH, IMAGES, BATCH, REPEATS = 16, 200, 50, 7
KINDS = {"convolution": "convolutions", "cat": "joining"}


class Timed(TorchDispatchMode):
    """Processor seconds and calls of each operator while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.process_time()
        value = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.seconds[name] += time.process_time() - began
        self.calls[name] += 1
        return value


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(IMAGES) % 10)
    data = Dataset("", "", split, split, split, (0.5,) * 3, (0.25,) * 3, "")
    networks = [build("resnet20_bn", data, WIDTH) for _ in range(2)]
    torch.manual_seed(1)
    for module in networks[1].modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    grams = collect(trace(networks[0], data.example), networks, list(split.pixels.split(BATCH)))
    merged = {f"merge of size {size:g}": pleas(grams, size=size).model for size in (1.0, 1.2)}
    batch = split.pixels[:BATCH]
    rows = [{"network": name, **run_of(network, batch)} for name, network in {"parent": networks[0], **merged}.items()]
    table = {
        "what": f"two resnet20_bn of width {WIDTH} with random weights, {BATCH} images at once, one thread",
        "rows": rows,
    }
    print(json.dumps(table, indent=1))
    keep(__file__, table)


@torch.no_grad()
def run_of(network: Callable[[Tensor], Tensor], batch: Tensor) -> dict[str, float]:
    """Processor milliseconds of a run, and of two kinds of operators in it, with how often these are called."""
    network(batch)
    runs, timed = [], []
    for _ in range(REPEATS):
        began = time.process_time()
        network(batch)
        runs.append(time.process_time() - began)
        with Timed() as operators:
            network(batch)
        timed.append(operators)
    row = {"milliseconds": round(1e3 * min(runs), 2)}
    for operator, kind in KINDS.items():
        row[kind] = round(1e3 * min(one.seconds[operator] for one in timed), 2)
        row[f"{kind}_calls"] = timed[0].calls[operator]
    return row


if __name__ == "__main__":
    main()
