"""Notebooks side by side: who waits for whom, how long is left, and what happens when one fails."""

import multiprocessing
import re
import time
from types import SimpleNamespace

import pytest

from lab.bookkeeping import pipeline, workers
from lab.bookkeeping.pipeline import run_steps
from lab.bookkeeping.workers import Job, Running, duration, seconds_left, with_advice

TINY = {
    "run": "tiny", "networks": {"models": 2, "epochs": [1], "width": 8},
    "merges": {"hierarchy": [2], "many": [2], "mean": [2]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of the test's own for results and executed copies."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    return tmp_path


def job(seconds):
    return Job("[1/1] train", "train", {}, frozenset(), seconds)


def test_what_builds_on_another_waits_for_it_and_the_rest_goes_side_by_side(home, capfd):
    run_steps(TINY, ["train", "merge", "counterexample"], at_once=2)
    lines = capfd.readouterr().out.splitlines()
    assert re.fullmatch(r"3 notebooks to run, 2 at once: about \d+ s", lines[0])
    assert lines[1:3] == ["[1/3] train ...", "[3/3] counterexample ..."]
    ended = next(at for at, line in enumerate(lines) if line.startswith("[1/3] train: "))
    assert ended < lines.index("[2/3] merge ...")
    assert re.fullmatch(r"\[./3\] \w+: \d+ s \(\d+ s so far(, about \d+ s left)?\)", lines[-2])
    assert re.fullmatch(r"3 notebooks: \d+ s", lines[-1])


def test_a_failing_notebook_is_told_with_its_error_and_ends_the_others(home):
    with pytest.raises(RuntimeError) as failure:
        run_steps({"run": "failed", "networks": {"models": 0}}, ["conditions", "train"], at_once=2)
    copy = home / "_build" / "runs" / "failed" / "train.ipynb"
    assert str(failure.value).splitlines() == [
        "notebooks/train.ipynb failed: ValueError: 'models' of 'networks' must be 1 at least: got 0",
        f"({copy} has the whole story; ended with it: conditions)",
    ]
    assert not multiprocessing.active_children()
    assert not (home / "results").exists()


@pytest.mark.parametrize(("notebooks", "shown_in"), [(1, "/dev/tty7"), (2, "progress.log")])
def test_one_notebook_shows_its_progress_on_the_terminal_whatever_processes_it_has(
    home, monkeypatch, notebooks, shown_in
):
    places = []
    monkeypatch.delenv("REBASIN_PROGRESS", raising=False)
    monkeypatch.setattr(workers.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(workers.os, "ttyname", lambda _: "/dev/tty7")
    environment = workers._environment
    monkeypatch.setattr(
        workers, "_environment", lambda *given: places.append(environment(*given)["REBASIN_PROGRESS"]) or {}
    )
    monkeypatch.setattr(workers, "_ready", lambda *_: 1 / 0)  # far enough
    with pytest.raises(ZeroDivisionError):
        workers.run_jobs([job(1.0) for _ in range(notebooks)], home, at_once=4, threads=1)
    assert len(places) == 1 and places[0].endswith(shown_in)


def test_what_is_left_is_shared_out_at_the_pace_so_far():
    first, second, third = job(10.0), job(20.0), job(30.0)
    assert seconds_left([first, second, third], {}, {}, at_once=1) == 60
    assert seconds_left([first, second, third], {}, {}, at_once=2) == 30
    assert seconds_left([second, third], {}, {first: 20.0}, at_once=1) == 100, "twice as slow as last time"
    running = {second: Running(None, 1, time.monotonic() - 5, None)}
    assert seconds_left([], running, {}, at_once=2) == pytest.approx(15, abs=1)
    assert seconds_left([], {second: Running(None, 1, time.monotonic() - 50, None)}, {}, at_once=2) == 0
    assert seconds_left([], {}, {first: 1.0}, at_once=2) == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (99.4, "99 s"), (150, "2 min"), (5940, "99 min"), (11100, "3 h 5 min")]
)
def test_a_time_is_told_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("OSError: [Errno 28] No space left on device: '/cache/snapshot/a.pt'", "make room there"),
        ("OSError: [Errno 122] Disk quota exceeded", "make room there"),
        (
            "PermissionError: [Errno 13] Permission denied: '/cache'",
            "name other folders",
        ),
        (
            "OSError: [Errno 30] Read-only file system: '/results'",
            "name other folders",
        ),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "smaller chunks"),
        ("MemoryError: Unable to allocate 8 GiB for an array", "smaller chunks"),
        ("OutOfMemoryError: CUDA out of memory.", "smaller chunks"),
        ("it was killed by signal 9, perhaps for want of memory", "smaller chunks"),
    ],
)
def test_what_can_be_done_about_the_machine_is_said(message, advice):
    assert with_advice(message).startswith(f"{message}: ") and advice in with_advice(message)


def test_of_other_errors_nothing_is_said_besides():
    assert with_advice("ValueError: 'models' must be 1 at least") == "ValueError: 'models' must be 1 at least"


def test_a_notebook_that_cannot_write_says_where_and_what_to_do(home, monkeypatch):
    (home / "file").write_text("no folder")
    monkeypatch.setenv("REBASIN_CACHE", str(home / "file"))
    with pytest.raises(RuntimeError, match=r"notebooks/train.ipynb failed: \w+Error: .* '.*/file"):
        run_steps(TINY, ["train"], at_once=1)
    assert not (home / "results").exists()
