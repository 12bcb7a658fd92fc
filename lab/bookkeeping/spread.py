"""Work that can be done in any order, spread over processes, over a cluster, or over machines that share one cache.

Whatever is spread keeps its results in the cache. Who wants them reads them there, so that it does not matter who
computed them, and nothing that was computed is lost.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import torch
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from torch import Tensor

from lab.bookkeeping.cache import Kept, read, write
from lab.bookkeeping.same_code import cache_folder
from rebasin.progress import track

Call = TypeVar("Call")

SHARE = "REBASIN_SHARE"  # in the environment: K/N, which of so many processes that do the same work this one is
LARGE = 100_000  # bytes of a tensor that is sent through the cache, once, and not with every call that has it
WATCH = 1  # seconds between two looks whether the process that started this one is still there
PATIENCE = 60  # seconds that a scheduler has to answer, and what a worker has kept to appear
FEWEST = 2  # workers of a cluster: with fewer, nothing would be faster


def each(function: Kept, calls: Iterable[Sequence[Any]], what: str) -> Iterator[Any]:
    """What a kept function returns for each of these calls, in their order.

    What the cache lacks is computed one by one as it is asked for; by the workers, all of it first, where there are
    several; and in another order in each process that has a share of the work. ``what`` names it in a progress bar.
    Raises as ``compute``, and what the function raises.
    """
    calls = list(calls)
    if workers() > 1:
        missing = [call for call in mine_first(calls) if not function.path(*call).exists()]
        compute(function, missing, what)
        check_here(function.path(*call) for call in missing)
    elif share() != (1, 1):
        for call in mine_first(calls):
            if not function.path(*call).exists():  # nobody else has computed it by now
                function(*call)
    for call in calls:
        yield function(*call)


def ahead(function: Callable[..., Any], calls: Sequence[Sequence[Any]], what: str) -> None:
    """Have a function called that keeps what it computes, by several workers or in the order of this process's share.

    Where there is one process it is not called: what is not kept is computed when it is asked for. Raises as ``each``.
    """
    if workers() > 1:
        compute(function, mine_first(calls), what)
    elif share() != (1, 1):
        for call in mine_first(calls):
            function(*call)


def compute(function: Callable[..., Any], calls: Sequence[Sequence[Any]], what: str) -> None:
    """Have the workers call a function of a module with each of these arguments; what it returns is dropped.

    They compute with as many threads as this process, and large tensors reach them by the cache; a single call is made
    here. If a worker of a
    cluster dies, another one takes its call, a few times over. Raises RuntimeError for a process of this machine that
    was killed, and for a call that ended all workers which took it; and what the function raises.
    """
    if len(calls) < 2:  # others would not be faster
        for call in calls:
            function(*call)
        return
    head, threads, parcels = os.getpid(), torch.get_num_threads(), Parcels()
    at_once = min(workers(), len(calls))
    parallel = joblib.Parallel(at_once, batch_size=1, return_as="generator_unordered")
    packed = (parcels.pack((function, tuple(call))) for call in calls)
    try:
        done = parallel(joblib.delayed(_work)(parcel, threads, head) for parcel in packed)
        # Closing it ends the workers at once where it has not come to its end.
        with contextlib.closing(done), track(len(calls), f"{what}, {at_once} at once", "part") as bar:
            for _ in done:
                bar.update()
    except Exception as error:
        # The second is Dask's, which need not be installed: of a call that ended every worker that took it.
        if isinstance(error, TerminatedWorkerError) or type(error).__name__ == "KilledWorker":
            raise RuntimeError(f"{what}: a process was killed, perhaps for want of memory") from error
        raise
    finally:
        parcels.clear()


def workers() -> int:
    """How many processes or machines ``compute`` has: 1 unless ``joblib.parallel_config`` says otherwise."""
    return joblib.effective_n_jobs(None)


def share() -> tuple[int, int]:
    """Which of how many processes that do the same work this one is: (1, 1) unless ``REBASIN_SHARE`` says otherwise.

    Raises ValueError where that says something else than K/N.
    """
    given = os.environ.get(SHARE, "1/1")
    form = re.fullmatch(r"(\d+)/(\d+)", given)
    if not form or not 1 <= int(form[1]) <= int(form[2]):
        raise ValueError(f"a share is K/N, the K-th of N, such as 3/32: got {given!r}")
    return int(form[1]), int(form[2])


class NotTheFirstShare(Exception):
    """This process has done its share of the work, and another one writes the tables."""


def check_first() -> None:
    """Raise NotTheFirstShare unless this process is the first, or only, one that does this work."""
    number, of = share()
    if number > 1:
        raise NotTheFirstShare(f"share {number}/{of}: the first one writes the tables")


def mine_first(calls: Sequence[Call]) -> list[Call]:
    """The calls in the order for this process's share: its own part, then those behind it, and round to the others'.

    All processes that share the work do all of it, unless another one has: so none waits for one that died.
    """
    number, of = share()
    first = len(calls) * (number - 1) // of
    return [*calls[first:], *calls[:first]]


def check_here(paths: Iterable[Path]) -> None:
    """Raise RuntimeError if the cache lacks one of these files, which a worker has kept, and they do not appear."""
    latest = time.monotonic() + PATIENCE
    for path in paths:
        while not path.exists():  # a folder of another machine may be some seconds behind
            if time.monotonic() < latest:
                time.sleep(WATCH)
                continue
            raise RuntimeError(
                f"a worker has kept {path.relative_to(cache_folder())}, and it is not here: all need one "
                "REBASIN_CACHE, the same code and the same kind of processor"
            )


@contextlib.contextmanager
def spread_over(processes: int, cluster: str | None) -> Iterator[None]:
    """Let ``compute`` have so many processes of this machine, or the workers of the Dask scheduler at an address.

    Raises RuntimeError where Dask is not installed, and where no scheduler answers at the address.
    """
    if cluster is not None:
        with _client(cluster) as client, joblib.parallel_config("dask", client=client):
            yield
    else:
        with joblib.parallel_config("loky", n_jobs=processes, max_nbytes=None):
            yield
        if reusable_executor._executor is not None:  # joblib would keep its processes for later
            reusable_executor._executor.shutdown()


def check_cluster(address: str) -> None:
    """Raise RuntimeError where Dask is not installed, no scheduler answers there, or it has too few workers."""
    latest = time.monotonic() + PATIENCE
    with _client(address) as client:
        while (count := sum(client.ncores().values())) < FEWEST:
            if time.monotonic() > latest:
                raise RuntimeError(
                    f"the cluster at {address!r} has {count} threads of workers: {FEWEST} are the fewest"
                )
            time.sleep(WATCH)


def _client(address: str) -> Any:
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise RuntimeError("a cluster needs Dask: pip install 'dask[distributed]' for this Python") from error
    try:
        return Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no Dask scheduler answers at {address!r}: {error}") from error


class Parcels:
    """Calls as bytes to send, whose large tensors wait in the cache: each once, however many calls have it."""

    def __init__(self) -> None:
        # As names of temporary files end: what a killed process left is taken away with them.
        self.mine = uuid.uuid4().hex[:12]
        # By where they lie in memory, which stays theirs as long as they are held here.
        self.sent: dict[tuple[Any, ...], tuple[Path, Tensor]] = {}

    def pack(self, value: Any) -> bytes:
        """A value as bytes, with names in place of its large tensors."""
        buffer = io.BytesIO()
        _Packer(buffer, self).dump(value)
        return buffer.getvalue()

    def name(self, tensor: Tensor) -> str:
        """The name, within the cache, of the file where a tensor waits."""
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if place in self.sent:
            os.utime(self.sent[place][0])  # so that it is never old enough for what was left by a killed process
        else:
            path = cache_folder() / "sent" / f".{len(self.sent)}.{self.mine}"
            write(path, tensor.detach().clone())  # of a slice, its own numbers alone
            self.sent[place] = path, tensor
        return str(self.sent[place][0].relative_to(cache_folder()))

    def clear(self) -> None:
        """Take the tensors out of the cache."""
        for path, _ in self.sent.values():
            path.unlink(missing_ok=True)


def unpack(parcel: bytes) -> Any:
    """What ``Parcels.pack`` packed. Raises RuntimeError for a tensor that is not in this process's cache."""
    return _Unpacker(io.BytesIO(parcel)).load()


class _Packer(pickle.Pickler):
    """Writes a value, and the name of a parcel's file in place of each large tensor."""

    def __init__(self, buffer: io.BytesIO, parcels: Parcels) -> None:
        super().__init__(buffer)
        self.parcels = parcels

    def persistent_id(self, value: Any) -> str | None:
        # Of a parameter, which is another kind of tensor, the data are sent so: it stays a parameter. A slice would be
        # written with all that it was cut from.
        large = type(value) is Tensor and value.untyped_storage().nbytes() >= LARGE
        return self.parcels.name(value) if large else None


class _Unpacker(pickle.Unpickler):
    """Reads what ``_Packer`` wrote."""

    def persistent_load(self, name: str) -> Tensor:
        path = cache_folder() / name
        tensor = read(path)
        if tensor is None:
            raise RuntimeError(f"{path} was sent, and it is not here: all workers need one REBASIN_CACHE")
        return tensor


def _work(parcel: bytes, threads: int, head: int) -> None:
    """What a worker does with a call. If the process ``head`` started this one, this one ends with it."""
    if os.getppid() == head:
        _end_with(head)
    os.environ.pop("REBASIN_PROGRESS", None)  # the head tells how far it is
    torch.set_num_threads(threads)
    function, call = unpack(parcel)
    with joblib.parallel_config("sequential"):  # what it calls is not spread once more
        function(*call)


@functools.cache
def _end_with(head: int) -> None:
    """End this process when the one that started it has ended, were it killed so that it could end nothing itself."""

    def watch() -> None:
        while os.getppid() == head:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
