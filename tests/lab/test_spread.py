"""Training spread over processes and over a cluster: the tables of one process, whoever trains and whoever dies."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from lab.bookkeeping import pipeline, results, spread
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.notebook import execute
from lab.bookkeeping.pipeline import main
from lab.training import train

NETWORKS = {"models": 8, "chunk": 1, "width": 16, "epochs": [5, 10]}
LINE = "8 chunks of networks to train, "


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The table of one process that trains one network after another."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(folder / "cache"))
        patch.setenv("REBASIN_RESULTS", str(folder / "results"))
        execute("train", {"run": "mine", "networks": NETWORKS})
    return table(folder)


def table(folder):
    return (folder / "results" / "mine" / "train-models.parquet").read_bytes()


def started(*command, **options):
    """A process of this Python that finds this code."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, *command], env=os.environ | {"PYTHONPATH": path}, text=True, **options)


def pipeline_process(*arguments):
    command = ["-m", "lab.bookkeeping.pipeline", "smoke", "train", "-p", "run", "mine", "-p", "networks", str(NETWORKS)]
    return started(*command, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kept(home):
    return list((home / "cache" / "snapshot").glob("*.pt"))


def wait_until(condition, process, most=150):
    """Wait, so many seconds at most, while the process runs."""
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < most
        time.sleep(0.02)


def address_in(file):
    """The address that a scheduler wrote into its file; None while it has not."""
    try:
        return json.loads(file.read_text())["address"]
    except (FileNotFoundError, ValueError):
        return None


def killed_in_the_middle(home, number, *arguments):
    """End the pipeline by a signal while it trains; gives what it complained of, once its processes have ended."""
    with pipeline_process(*arguments) as process:
        wait_until(lambda: kept(home), process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=200)
    assert process.returncode != 0 and 0 < len(kept(home)) < 16
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert len(gone) >= 2 and not alive
    assert not (home / "results").exists()
    return complaint


def test_processes_that_are_killed_and_started_again_give_the_table_of_one(home, alone):
    killed_in_the_middle(home, signal.SIGKILL, "-j", "2")
    with pipeline_process("-j", "2") as process:
        told, complaint = process.communicate(timeout=200)
    assert process.returncode == 0, complaint
    assert re.match(r"\d chunks of networks to train, 2 at once\n(trained: .*\n)*trained: (\d) of \2 chunks in ", told)
    assert table(home) == alone


def test_who_ends_the_training_ends_all_its_processes(home):
    complaint = killed_in_the_middle(home, signal.SIGTERM, "-j", "2")
    # Python may say after it which semaphores it has taken away.
    assert complaint.splitlines()[0] == "rebasin: interrupted; the same command goes on from here"


@contextmanager
def cluster(folder):
    """The address of a Dask scheduler, and its two workers, of one thread each."""
    with ExitStack() as processes:
        file = folder / "scheduler.json"
        scheduler = ["-m", "dask", "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0"]
        worker = [
            "-m",
            "dask",
            "worker",
            "--scheduler-file",
            str(file),
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        members = [started(*scheduler, **quiet)]
        members += [started(*worker, "--name", str(number), **quiet) for number in (1, 2)]
        for member in members:
            processes.enter_context(member)
            processes.callback(member.kill)
        wait_until(lambda: address_in(file), members[0])
        yield address_in(file), members[1:]


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="dask is not installed")
def test_a_cluster_that_loses_a_worker_gives_the_table_of_one_process(home, alone):
    with cluster(home) as (address, workers), pipeline_process("--cluster", address) as process:
        wait_until(lambda: kept(home), process)
        workers[0].kill()
        assert len(kept(home)) < 16, "it was killed too late"
        told, complaint = process.communicate(timeout=200)
    assert process.returncode == 0, complaint
    assert told.startswith(f"{LINE}on the cluster {address}\n") and "trained: 8 of 8 chunks in " in told
    assert table(home) == alone


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(spread, "PATIENCE", 0.1)
    with pytest.raises(SystemExit, match="^rebasin: no Dask scheduler answers at 'tcp://127.0.0.1:1': "):
        main(["smoke", "train", "-p", "run", "mine", "--cluster", "tcp://127.0.0.1:1"])


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(SystemExit, match=re.escape("rebasin: a cluster needs Dask: pip install 'dask[distributed]'")):
        main(["smoke", "train", "-p", "run", "mine", "--cluster", "tcp://127.0.0.1:1"])


def parameters(notebook, **chosen):
    return results.completed(results.declared_parameters(notebook), chosen)


def test_networks_of_several_notebooks_are_trained_once_to_all_their_epochs(monkeypatch):
    few = {"models": 3, "chunk": 2, "width": 8, "epochs": [1]}
    given = [parameters("train", networks=few), parameters("merge", networks=few | {"epochs": [2]})]
    given.append(parameters("conditions"))  # which lists none as they are trained
    chunks = spread.missing_chunks(given)
    assert [(chunk.numbers, chunk.epochs) for chunk in chunks] == [((0, 1), (1, 2)), ((2,), (1, 2))]
    spread.spread(chunks, threads=1)
    assert spread.missing_chunks(given) == []
    monkeypatch.setattr(train, "train_stack", lambda *_: pytest.fail("a network was trained again"))
    execute("train", {"run": "mine", "networks": few})


def test_files_that_a_worker_keeps_elsewhere_are_named(monkeypatch):
    monkeypatch.setattr(spread, "train_chunk", lambda *_: ["snapshot/elsewhere.pt"])
    with pytest.raises(RuntimeError, match="a worker has kept snapshot/elsewhere.pt, and it is not here: all need one"):
        spread.spread([None], threads=1)


def test_as_many_notebooks_as_processes_train_their_own_networks(monkeypatch):
    spread_over = []
    monkeypatch.setattr(spread, "spread", lambda chunks, threads: spread_over.append(len(chunks)))
    given = {"run": "mine", "networks": NETWORKS}
    for steps, at_once in ((["train"], 1), (["train", "merge"], 2), (["train", "merge"], 3)):
        pipeline.build_networks(given, steps, threads=1, at_once=at_once)
    assert spread_over == [8]
