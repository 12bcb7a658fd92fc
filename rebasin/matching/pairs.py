"""What every matcher gives for pairs of models, and the frame that runs one over many pairs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin.arguments import check_count
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec, check_spec, counted
from rebasin.weights import Kind, Models, Weights, check_alike, flat, over, take, weights_of

ALL_AT_ONCE = sys.maxsize  # a chunk for matchers that go through their data once, whatever the number of pairs


@dataclass(frozen=True, eq=False, repr=False)
class Matching:
    """What a matcher found for a pair of models, or for many, with leading axes *batch.

    - ``permutation`` (*batch): to be applied to the second models; ``matching.apply(b)`` does it.
    - ``objective`` (*batch,): the inner product of the first model's weights with the permuted second's, whatever the
      matcher maximised.
    - ``sweeps`` (*batch,): how many sweeps were made. A sweep assigns every group once; straight-through matching,
      which assigns them on every batch of data, counts the batches.
    - ``objective_by_sweep`` (*batch, 1 + most sweeps): the objective before the first sweep and after each; pairs that
      were done early keep their last. Frank-Wolfe is inside the hull of permutations until its last sweep.
    - ``maximised_by_sweep`` (*batch, 1 + most sweeps): what this matcher maximises, likewise: the objective, a sum of
      scores, or minus a loss.
    - ``seconds``: the wall time of all pairs together.

    Matchings are compared by identity.
    """

    permutation: Permutation
    objective: Tensor
    sweeps: Tensor
    objective_by_sweep: Tensor
    maximised_by_sweep: Tensor
    seconds: float

    def apply(self, models: Kind) -> Kind:
        """The second models, permuted to match the first, as what they are given as."""
        return self.permutation.apply(models)

    def __repr__(self) -> str:
        pairs = f"batch {tuple(self.objective.shape)}, on average " if self.objective.ndim else ""
        before, after = (float(self.objective_by_sweep[..., at].mean()) for at in (0, -1))
        sweeps = counted(int(self.sweeps.max()), "sweep")
        return (
            f"Matching({pairs}inner product {before:.6g} -> {after:.6g}; "
            f"{sweeps}{' at most' * bool(pairs)}, {self.seconds:.3g} s)"
        )


@dataclass(frozen=True, eq=False)
class Solution:
    """What a matcher found for some pairs: ``index`` (pairs, *index_shape) by group, and the fields of ``Matching``."""

    index: dict[str, Tensor]
    objective: Tensor
    sweeps: Tensor
    objective_by_sweep: Tensor
    maximised_by_sweep: Tensor


def check_pairs(spec: PermutationSpec, a: Weights, b: Weights) -> torch.Size:
    """The leading axes of pairs of models. Raises ValueError if they do not fit the spec or each other."""
    batch = spec.leading_axes(a, "a")
    spec.leading_axes(b, "b")
    check_alike(a, b, "a", "b")
    spec.check_finite(a, "a")
    spec.check_finite(b, "b")
    if batch.numel() < 1:
        raise ValueError("nothing to match: no pairs")
    return batch


def match_pairs(
    spec: PermutationSpec,
    a: Models,
    b: Models,
    solve: Callable[[Weights, Weights, dict[str, Tensor]], Solution],
    chunk: int | None,
    start: Permutation | None = None,
) -> Matching:
    """Match pairs (*batch) by ``solve``, which takes ``chunk`` of them at once and their indices to start from.

    On a CPU several chunks are matched at once, one by each thread.
    """
    begun = time.perf_counter()
    check_spec(spec, "matchers take (spec, a, b)")
    a, b = weights_of(a, "a"), weights_of(b, "b")
    batch = check_pairs(spec, a, b)
    pairs = batch.numel()
    flat_a, flat_b = (over(flat(weights, len(batch)), Tensor.detach) for weights in (a, b))
    device = flat_a[next(iter(spec.shapes))].device
    # On a CPU every thread takes pairs of its own: together they would wait for the slowest.
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if chunk is not None:
        check_count(chunk, "chunk")
    chunk = (1 if device.type == "cpu" else pairs) if chunk is None else chunk
    if start is not None:
        _check_start(spec, start, batch)
    first = (Permutation.identity(spec, batch, device) if start is None else start).indices
    first = {
        group: index.to(device).expand(*batch, *spec.index_shape(group)).reshape(pairs, *spec.index_shape(group))
        for group, index in first.items()
    }

    def solve_chunk(at: int) -> Solution:
        rows = slice(at, at + chunk)
        return solve(take(flat_a, rows), take(flat_b, rows), over(take(first, rows), Tensor.clone))

    starts = range(0, pairs, chunk)
    solutions = []
    with track(pairs if len(starts) > 1 else 0, f"match {pairs} pairs", "pair") as bar:
        for solution in _in_threads(solve_chunk, starts, threads):
            solutions.append(solution)
            bar.update(len(solution.sweeps))
    indices = {}
    for group in spec.sizes:
        index = torch.cat([solution.index[group] for solution in solutions])
        indices[group] = index.reshape(*batch, *spec.index_shape(group))
    return Matching(
        Permutation(spec, indices),
        torch.cat([solution.objective for solution in solutions]).reshape(batch),
        torch.cat([solution.sweeps for solution in solutions]).reshape(batch),
        _joined([solution.objective_by_sweep for solution in solutions]).reshape(*batch, -1),
        _joined([solution.maximised_by_sweep for solution in solutions]).reshape(*batch, -1),
        time.perf_counter() - begun,
    )


def _check_start(spec: PermutationSpec, start: Permutation, batch: torch.Size) -> None:
    """Raise TypeError or ValueError unless a matching of pairs (*batch) can start from this permutation."""
    if not isinstance(start, Permutation):
        raise TypeError(f"start must be a Permutation, got {type(start).__name__}")
    if start.spec != spec:
        raise ValueError("start is a permutation of another spec")
    if start.batch not in ((), batch):
        raise ValueError(f"start has the leading axes {tuple(start.batch)}, the pairs have {tuple(batch)}")


def _joined(paths: Sequence[Tensor]) -> Tensor:
    """Paths (pairs, sweeps) one below the other; pairs that were done early keep their last value."""
    longest = max(path.shape[1] for path in paths)
    return torch.cat([torch.cat([path, path[:, -1:].expand(-1, longest - path.shape[1])], 1) for path in paths])


def _in_threads(function: Callable[[int], Solution], arguments: Sequence[int], threads: int) -> Iterator[Solution]:
    """``function`` of each argument, in order, by so many threads at once, each of which computes with one."""
    if threads == 1 or len(arguments) == 1:
        yield from map(function, arguments)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, arguments)
    finally:
        torch.set_num_threads(threads)  # which a thread sets for those that come after it, too
