"""Notebooks side by side, each in a process of its own, with a line for each and how long is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lab.bookkeeping.notebook import execute
from lab.bookkeeping.spread import NotTheFirstShare, spread_over

# A process begins as a copy of one that has loaded these, which takes seconds. This project's own modules are not among
# them: each notebook runs the code that is there when it begins, and its provenance says so.
PRELOADED = [
    "torch", "torchvision", "torch._functorch.aot_autograd", "pandas", "scipy.optimize", "sklearn.datasets",
    "matplotlib.pyplot",
]  # fmt: skip
PATIENCE = 10  # seconds that an ended notebook has to leave its files whole
LONGEST = 10_000  # letters of an error
# What can be done about an error of the machine's, by what its message holds.
ADVICE = {
    r"No space left|quota exceeded|File too large": "make room there; then the same command goes on from here",
    r"Permission denied|Read-only": "REBASIN_CACHE and REBASIN_RESULTS name other folders, that can be written to",
    r"allocate|[Mm]emory": "fewer notebooks at once (-j 1) and smaller chunks (chunk, merge_chunk, attack_chunk) take "
    "less memory",
}


@dataclass(frozen=True, eq=False)
class Job:
    """A notebook to execute: its parameters, the notebooks that it waits for, and the seconds that it may take."""

    label: str
    notebook: str
    parameters: Mapping[str, Any]
    after: frozenset[str]
    seconds: float


@dataclass(frozen=True)
class Running:
    """The process of a job, how many it may have, when it began, and where it tells what it fails with."""

    process: BaseProcess
    processes: int
    since: float
    error: Connection


def run_jobs(jobs: Sequence[Job], folder: Path, at_once: int, threads: int | None, cluster: str | None = None) -> None:
    """Execute notebooks, ``at_once`` side by side, each on so many threads of torch's (None: as many as torch takes).

    A job waits for those named in its ``after``, and else goes before the jobs behind it. Where fewer can begin than
    there is room for, each has as many processes as that leaves it, or the workers of the Dask scheduler ``cluster``.
    Executed copies are kept in ``folder``. Raises RuntimeError when a notebook fails; then, as after Ctrl-C, the others
    are ended.
    """
    began = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    environment = _environment(folder, min(at_once, len(jobs)))
    waiting = list(jobs)
    running: dict[Job, Running] = {}
    finished: dict[Job, float] = {}
    try:
        while waiting or running:
            room = max(0, at_once - sum(at_work.processes for at_work in running.values()))
            beginning = _ready(waiting, running)[:room]
            for job in beginning:
                told, tell = context.Pipe(duplex=False)
                processes = room // len(beginning)
                arguments = job, _copy(job, folder), threads, (processes, cluster), environment, tell
                process = context.Process(target=_work, args=arguments)
                process.start()
                tell.close()
                running[job] = Running(process, processes, time.monotonic(), told)
                waiting.remove(job)
                print(f"{job.label} ...", flush=True)
            wait([at_work.process.sentinel for at_work in running.values()])
            for job in [job for job, at_work in running.items() if not at_work.process.is_alive()]:
                ended = running.pop(job)
                if ended.process.exitcode:
                    raise RuntimeError(_failure(job, ended, _copy(job, folder), running))
                finished[job] = time.monotonic() - ended.since
                so_far = f" ({duration(time.monotonic() - began)} so far"
                left = seconds_left(waiting, running, finished, at_once)
                so_far += f", about {duration(left)} left)" if left >= 1 else ")"
                print(f"{job.label}: {duration(finished[job])}{so_far}", flush=True)
    finally:
        _end([at_work.process for at_work in running.values()])


def seconds_left(
    waiting: Sequence[Job], running: Mapping[Job, Running], finished: Mapping[Job, float], at_once: int
) -> float:
    """About how long the jobs will still take, if they go on at the pace of those that are finished."""
    pace = sum(finished.values()) / sum(job.seconds for job in finished) if finished else 1.0
    now = time.monotonic()
    rests = [job.seconds * pace for job in waiting]
    rests += [max(0.0, job.seconds * pace - (now - at_work.since)) for job, at_work in running.items()]
    return max(max(rests), sum(rests) / at_once) if rests else 0.0


def duration(seconds: float) -> str:
    """A time in words: 45 s, 12 min, 3 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _ready(waiting: Sequence[Job], running: Mapping[Job, Running]) -> list[Job]:
    """The jobs that need not wait for another one."""
    unfinished = {job.notebook for job in [*waiting, *running]}
    return [job for job in waiting if not job.after & unfinished]


def _copy(job: Job, folder: Path) -> Path:
    return folder / f"{job.notebook}.ipynb"


def _environment(folder: Path, at_once: int) -> dict[str, str]:
    """This process's environment, and where progress bars go: one notebook's to the terminal, several to a file."""
    on_terminal = at_once == 1 and sys.stderr.isatty()
    folder.mkdir(parents=True, exist_ok=True)
    progress = os.ttyname(2) if on_terminal else str(folder / "progress.log")
    # joblib's folders, which its tracker takes away after a process of multiprocessing, are nothing to warn of.
    return {"REBASIN_PROGRESS": progress, "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning", **os.environ}


def _work(
    job: Job,
    copy: Path,
    threads: int | None,
    spread: tuple[int, str | None],
    environment: Mapping[str, str],
    tell: Connection,
) -> None:
    """Execute a job in a process of its own, spread over processes or a cluster, and tell what it fails with."""
    # Ctrl-C reaches every process of the terminal: the first one decides, and ends the others once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, exit_on_signal)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        copy.unlink(missing_ok=True)
        with spread_over(*spread), contextlib.suppress(NotTheFirstShare):
            execute(job.notebook, job.parameters, copy)
    except Exception as error:
        tell.send(f"{type(error).__name__}: {error}"[:LONGEST])
        sys.exit(1)


def exit_on_signal(number: int, _frame: Any) -> None:
    """End by an exception, so that half-written files are taken away."""
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, were it killed so that it could end nothing itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)


def with_advice(message: str) -> str:
    """A message, and what can be done about it where that is known: for a full disk, say, or too little memory."""
    advice = [words for pattern, words in ADVICE.items() if re.search(pattern, message)]
    return f"{message}: {advice[0]}" if advice else message


def _failure(job: Job, failed: Running, copy: Path, others: Mapping[Job, Running]) -> str:
    exitcode = failed.process.exitcode or 0
    if exitcode < 0:
        reason = f"it was killed by signal {-exitcode}, perhaps for want of memory"
    else:
        reason = failed.error.recv() if failed.error.poll() else f"it ended with status {exitcode}"
    ended = ", ".join(other.notebook for other in others)
    message = f"notebooks/{job.notebook}.ipynb failed: {with_advice(reason)}\n({copy} has the whole story"
    return message + (f"; ended with it: {ended})" if ended else ")")


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
