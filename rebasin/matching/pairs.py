"""What every matcher gives for a pair of models, and the frame that runs one over many pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights


@dataclass(frozen=True)
class Matching:
    """What a matcher found for a batch of pairs.

    ``permutation`` is to be applied to the second models. ``objective`` (*batch,) is the inner product of the first
    model's weights with the permuted second's, whatever the matcher maximised. ``sweeps`` (*batch,) counts the sweeps
    until one gained nothing, ``history`` (*batch, 1 + most sweeps) is what was maximised, before the first and after
    each. ``seconds`` is the wall time of all pairs together.
    """

    permutation: Permutation
    objective: Tensor
    sweeps: Tensor
    history: Tensor
    seconds: float


def inner_product(spec: PermutationSpec, a: Weights, b: Weights) -> Tensor:
    """The inner product of two weight vectors, in float64: (*batch,) for weights with leading axes ``*batch``."""
    return sum(
        (a[key] * b[key]).flatten(a[key].ndim - len(spec.shapes[key])).sum(-1, dtype=torch.float64)
        if spec.shapes[key]
        else (a[key] * b[key]).double()
        for key in spec.weights
    )


def check_pairs(spec: PermutationSpec, a: Weights, b: Weights) -> torch.Size:
    """The leading axes of pairs of models. Raises ValueError if they do not fit the spec or each other."""
    batch = spec.batch_shape(a, "a")
    spec.batch_shape(b, "b")
    for key in spec.shapes:
        if a[key].shape != b[key].shape:
            raise ValueError(f"{key!r}: a has shape {tuple(a[key].shape)}, b has {tuple(b[key].shape)}")
        if a[key].dtype != b[key].dtype:
            raise ValueError(f"{key!r}: a is {a[key].dtype}, b is {b[key].dtype}")
    if batch.numel() < 1:
        raise ValueError("nothing to match: no pairs")
    return batch


def match_pairs(
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    chunk: int | None,
    solve: Callable[[Weights, Weights, dict[str, Tensor]], Found],
    start: Permutation | None = None,
) -> Matching:
    """Match pairs (*batch) by ``solve``, which takes ``chunk`` of them at once and their indices to start from.

    On a CPU several chunks are matched at once, one by each thread.
    """
    begun = time.perf_counter()
    batch = check_pairs(spec, a, b)
    pairs = batch.numel()
    flat_a, flat_b = (
        {key: t.detach().reshape(pairs, *t.shape[len(batch) :]) for key, t in weights.items()} for weights in (a, b)
    )
    device = flat_a[next(iter(spec.shapes))].device
    # On a CPU every thread takes pairs of its own: together they would wait for the slowest.
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    chunk = (1 if device.type == "cpu" else pairs) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"nothing to match: {chunk} pairs at once")
    begin = (Permutation.identity(spec, batch, device) if start is None else start).indices
    begin = {g: i.expand(*batch, *spec.index_shape(g)).reshape(pairs, *spec.index_shape(g)) for g, i in begin.items()}

    def solve_chunk(at: int) -> Found:
        rows = slice(at, at + chunk)
        some = ({key: t[rows] for key, t in weights.items()} for weights in (flat_a, flat_b))
        return solve(*some, {group: i[rows].clone() for group, i in begin.items()})

    starts = range(0, pairs, chunk)
    found = []
    with track(pairs if len(starts) > 1 else 0, f"match {pairs} pairs", "pair") as bar:
        for part in _in_threads(solve_chunk, starts, threads):
            found.append(part)
            bar.update(len(part.sweeps))
    longest = max(part.history.shape[-1] for part in found)
    # Pairs that were done early keep their last objective.
    paths = [torch.cat([p.history, p.history[:, -1:].expand(-1, longest - p.history.shape[1])], 1) for p in found]
    index = {g: torch.cat([p.index[g] for p in found]).reshape(*batch, *spec.index_shape(g)) for g in spec.sizes}
    objective, sweeps = (
        torch.cat([getattr(p, name) for p in found]).reshape(batch) for name in ("objective", "sweeps")
    )
    history = torch.cat(paths).reshape(*batch, longest)
    return Matching(Permutation(spec, index), objective, sweeps, history, time.perf_counter() - begun)


def _in_threads(function: Callable[[int], Found], arguments: Sequence[int], threads: int) -> Iterator[Found]:
    """``function`` of each argument, in order, by so many threads at once, each of which computes with one."""
    if threads == 1 or len(arguments) == 1:
        yield from map(function, arguments)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, arguments)
    finally:
        torch.set_num_threads(threads)  # which a thread sets for those that come after it, too


class Found(NamedTuple):
    """What was found for some pairs: indices, objective, sweeps (pairs,) and history (pairs, 1 + sweeps)."""

    index: dict[str, Tensor]
    objective: Tensor
    sweeps: Tensor
    history: Tensor
