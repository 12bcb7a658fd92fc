"""Training spread over processes or machines: each trains chunks of networks and keeps them in the one cache."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lab.bookkeeping.content import unchanged
from lab.bookkeeping.same_code import cache_folder
from lab.bookkeeping.workers import duration
from lab.data import load
from lab.device import pick_device
from lab.images import Dataset
from lab.networks import build
from lab.training.plan import Planned
from lab.training.recipe import Recipe
from lab.training.share import planned_networks
from lab.training.stack import snapshot
from lab.training.train import stacks, train_missing

TELL = 10  # seconds between two lines about how far it is
WATCH = 1  # seconds between two looks whether the process that started this one is still there
PATIENCE = 30  # seconds that a scheduler has to answer


@dataclass(frozen=True)
class Chunk:
    """Networks that are trained side by side: of which images and recipe, their numbers, and to which epochs."""

    dataset: str
    held_out: int
    recipe: Recipe
    numbers: tuple[int, ...]
    device: str
    epochs: tuple[int, ...]


def spread(chunks: Sequence[Chunk], threads: int | None) -> None:
    """Train chunks of networks, each on so many ``threads`` (None: as torch takes), and keep them in the cache.

    They go to the workers that ``joblib.parallel_config`` names: processes of this machine, or a cluster's, which must
    see this cache. A worker gives back the names of the files that it kept, and nothing else. If one of a cluster dies,
    another one takes its chunk, a few times over. Raises RuntimeError for a process of this machine that was killed,
    for a chunk that ended all workers which took it, and for workers that keep other files than are read here; and what
    training raises.
    """
    began = told = time.monotonic()
    parallel = joblib.Parallel(batch_size=1, return_as="generator_unordered")
    kept = parallel(joblib.delayed(train_chunk)(chunk, threads, os.getpid()) for chunk in chunks)
    try:
        for number, names in enumerate(kept, 1):
            _check_here(names)
            now = time.monotonic()
            if now - told > TELL or number == len(chunks):
                left = duration((now - began) / number * (len(chunks) - number))
                print(f"trained: {number} of {len(chunks)} chunks in {duration(now - began)}, {left} left", flush=True)
                told = now
    except Exception as error:
        # The second is Dask's, which need not be installed: of a chunk that ended every worker that took it.
        if isinstance(error, TerminatedWorkerError) or type(error).__name__ == "KilledWorker":
            raise RuntimeError("a process that trained networks was killed, perhaps for want of memory") from error
        raise


@contextlib.contextmanager
def workers(at_once: int, cluster: str | None) -> Iterator[None]:
    """So many processes of this machine, or the workers of the Dask scheduler at the address ``cluster``.

    Raises RuntimeError where Dask is not installed, and where no scheduler answers at the address.
    """
    if cluster is None:
        try:
            with joblib.parallel_config("loky", n_jobs=at_once):
                yield
        finally:
            get_reusable_executor().shutdown(wait=True, kill_workers=True)
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise RuntimeError("a cluster needs Dask: pip install 'dask[distributed]' for this Python") from error
    try:
        client = Client(cluster, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no Dask scheduler answers at {cluster!r}: {error}") from error
    with client, joblib.parallel_config("dask", client=client):
        yield


def missing_chunks(parameters: Iterable[Mapping[str, Any]]) -> list[Chunk]:
    """The chunks that the cache lacks of all networks that notebooks with these parameters list, each once."""
    epochs: dict[Chunk, set[int]] = {}
    for given in parameters:
        try:
            plan = planned_networks(given)
        except ValueError:  # there are none, or the notebook says better what is wrong with them
            continue
        for planned in plan:
            for chunk in _chunks(planned, pick_device(given["device"])):
                epochs.setdefault(replace(chunk, epochs=()), set()).update(chunk.epochs)
    wanted = [replace(chunk, epochs=tuple(sorted(those))) for chunk, those in epochs.items()]
    sources = {(chunk.dataset, chunk.held_out) for chunk in wanted}
    images = [_loaded(*source).train for source in sorted(sources)]
    with unchanged(*(tensor for split in images for tensor in (split.images, split.labels))):
        return [chunk for chunk in wanted if not all(path.exists() for path in _files(chunk))]


def _chunks(planned: Planned, device: str) -> Iterator[Chunk]:
    for together in stacks(planned.models, planned.chunk):
        yield Chunk(planned.dataset, planned.held_out, planned.recipe, together, device, planned.epochs)


def train_chunk(chunk: Chunk, threads: int | None, head: int) -> list[str]:
    """Train what the cache lacks of a chunk, and keep it; gives the names of its files in the cache.

    If the process ``head`` started this one, this one ends with it.
    """
    if os.getppid() == head:
        _end_with(head)
    if threads is not None:
        torch.set_num_threads(threads)
    data, n = _loaded(chunk.dataset, chunk.held_out), len(chunk.numbers)
    train_missing(chunk.recipe, data, n, chunk.epochs, chunk.device, n, chunk.numbers[0])
    return [str(path.relative_to(cache_folder())) for path in _files(chunk)]


def _files(chunk: Chunk) -> list[Path]:
    """Where the cache keeps the networks of a chunk, at each of its epochs."""
    data = _loaded(chunk.dataset, chunk.held_out)
    model = build(chunk.recipe.architecture, data, chunk.recipe.width)
    of_chunk = model, chunk.recipe, data.train, chunk.numbers
    return [snapshot.path(*of_chunk, epoch, chunk.device) for epoch in chunk.epochs]


def _check_here(names: Iterable[str]) -> None:
    """Raise RuntimeError if the cache lacks one of these files, which a worker has kept."""
    for name in names:
        if not (cache_folder() / name).exists():
            raise RuntimeError(
                f"a worker has kept {name}, and it is not here: all need one REBASIN_CACHE, the same code and the "
                "same kind of processor"
            )


@functools.cache
def _loaded(dataset: str, held_out: int) -> Dataset:
    return load(dataset, held_out)


@functools.cache
def _end_with(head: int) -> None:
    """End this process when the one that started it has ended, were it killed so that it could end nothing itself."""

    def watch() -> None:
        while os.getppid() == head:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
