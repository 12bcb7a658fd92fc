"""Work spread over processes, over a cluster, over shares: the tables of one process, whoever computes and who dies."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from lab.bookkeeping import spread
from lab.bookkeeping.cache import kept
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.notebook import execute
from lab.bookkeeping.pipeline import main

# Eight networks and then twelve merges, each by itself.
GIVEN = {
    "run": "mine",
    "networks": {"models": 8, "chunk": 1, "width": 16, "epochs": [5, 10]},
    "merges": {"hierarchy": [2, 4], "many": [2], "mean": [2]},
    "merge_chunk": 1,
}
SNAPSHOTS = 16
COMMAND = ["-m", "lab.bookkeeping.pipeline", "smoke", "merge"]
for name, value in GIVEN.items():
    COMMAND += ["-p", name, str(value)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The table of one process that computes one thing after another."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(folder / "cache"))
        patch.setenv("REBASIN_RESULTS", str(folder / "results"))
        execute("merge", GIVEN)
    return table(folder)


def table(folder):
    return (folder / "results" / "mine" / "merge-nodes.parquet").read_bytes()


def started(*command, **options):
    """A process of this Python that finds this code."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, *command], env=os.environ | {"PYTHONPATH": path}, text=True, **options)


def pipeline_process(*arguments):
    return started(*COMMAND, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def trained(home):
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
        wait_until(lambda: trained(home), process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=200)
    assert process.returncode != 0 and 0 < len(trained(home)) < SNAPSHOTS
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert len(gone) >= 2 and not alive
    assert not (home / "results").exists()
    return complaint


def test_processes_that_are_killed_and_started_again_give_the_table_of_one(home, alone):
    killed_in_the_middle(home, signal.SIGKILL, "-j", "2")
    with pipeline_process("-j", "2") as process:
        _, complaint = process.communicate(timeout=200)
    assert process.returncode == 0 and not complaint
    assert table(home) == alone


def test_who_ends_the_work_ends_all_its_processes(home):
    complaint = killed_in_the_middle(home, signal.SIGTERM, "-j", "2")
    # Python may say after it which semaphores it has taken away.
    assert complaint.splitlines()[0] == "rebasin: interrupted; the same command goes on from here"


def test_four_shares_at_once_give_the_table_of_one_process(home, alone):
    with ExitStack() as processes:
        # Two of them have two processes each.
        own = [("--share", f"{number}/4", "-j", str(1 + number % 2)) for number in (1, 2, 3, 4)]
        shares = [processes.enter_context(pipeline_process(*options)) for options in own]
        told = [process.communicate(timeout=300)[0] for process in shares]
    assert [process.returncode for process in shares] == [0] * 4
    last = [text.splitlines()[-1] for text in told[1:]]
    assert last == [f"share {number}/4 is done: the first one writes the tables" for number in (2, 3, 4)]
    assert table(home) == alone


def test_a_share_waits_for_no_other_one(home, alone):
    for share in ("3/4", "1/4"):
        with pipeline_process("--share", share) as process:
            _, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
        assert (home / "results").exists() == (share == "1/4")
    assert table(home) == alone


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
    with cluster(home) as (address, members), pipeline_process("--cluster", address) as process:
        wait_until(lambda: trained(home), process)
        members[0].kill()
        assert len(trained(home)) < SNAPSHOTS, "it was killed too late"
        _, complaint = process.communicate(timeout=200)
    assert process.returncode == 0, complaint
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


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("0/4", "a share is K/N, the K-th of N, such as 3/32: got '0/4'"),
        ("5/4", "a share is K/N, the K-th of N, such as 3/32: got '5/4'"),
        ("all", "a share is K/N, the K-th of N, such as 3/32: got 'all'"),
    ],
)
def test_what_is_no_share_is_named_and_nothing_is_done(home, monkeypatch, share, message):
    monkeypatch.setenv(spread.SHARE, "1/1")  # as it is set anew
    with pytest.raises(SystemExit, match=re.escape(f"rebasin: {message}")):
        main(["smoke", "train", "--share", share])
    assert not (home / "cache").exists()


@kept
def doubled(numbers, plus):
    return {"doubled": numbers * 2 + plus, "process": os.getpid(), "threads": torch.get_num_threads()}


@kept
def ends(number):
    os.kill(os.getpid(), signal.SIGKILL)


def calls(count):
    numbers = torch.arange(50_000.0)  # large enough to be sent by the cache
    return [(numbers, plus) for plus in range(count)]


def test_several_processes_compute_what_the_cache_lacks_and_it_comes_back_in_order(home):
    doubled(*calls(1)[0])
    with spread.spread_over(2, None):
        made = list(spread.each(doubled, calls(4), "double"))
    assert [float(one["doubled"][1]) for one in made] == [2.0, 3.0, 4.0, 5.0]
    own = os.getpid()
    assert made[0]["process"] == own and all(one["process"] != own for one in made[1:])
    assert {one["threads"] for one in made} == {torch.get_num_threads()}
    assert not list((home / "cache" / "sent").iterdir())


def test_a_single_call_needs_no_other_process():
    with spread.spread_over(2, None):
        (made,) = spread.each(doubled, calls(1), "double")
    assert made["process"] == os.getpid()


def test_a_tensor_is_sent_once_however_many_calls_have_it(home):
    parcels = spread.Parcels()
    sizes = [len(parcels.pack((doubled, call))) for call in calls(3)]
    assert max(sizes) < 1000 and len(list((home / "cache" / "sent").iterdir())) == 1
    parcels.clear()
    assert not list((home / "cache" / "sent").iterdir())


@pytest.mark.parametrize("width", [100, 50_000])
def test_of_a_slice_its_own_numbers_are_sent(home, width):
    parcels = spread.Parcels()
    assert len(parcels.pack(torch.zeros(1000, width)[:1])) < 1000
    (sent,) = (home / "cache" / "sent").iterdir()
    assert sent.stat().st_size < 10_000 + 5 * width


def test_a_model_arrives_as_it_was_and_its_weights_are_sent_once(home):
    model, parcels = nn.Sequential(nn.Linear(300, 300), nn.ReLU()).eval(), spread.Parcels()
    for _ in range(2):
        arrived = spread.unpack(parcels.pack(model))
    assert len(list((home / "cache" / "sent").iterdir())) == 1 and not arrived.training
    for name, parameter in arrived.named_parameters():
        assert isinstance(parameter, nn.Parameter) and torch.equal(parameter, model.get_parameter(name))


def test_a_process_that_is_killed_is_told_of():
    with spread.spread_over(2, None), pytest.raises(RuntimeError, match="^end: a process was killed, perhaps for want"):
        list(spread.each(ends, [(1,), (2,)], "end"))


def test_what_workers_keep_elsewhere_is_named(monkeypatch):
    monkeypatch.setattr(spread, "compute", lambda *_: None)
    monkeypatch.setattr(spread, "PATIENCE", 0)
    with (
        spread.spread_over(2, None),
        pytest.raises(RuntimeError, match="a worker has kept doubled/.*, and it is not here"),
    ):
        list(spread.each(doubled, calls(2), "double"))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_done_ahead_is_begun_at_the_own_part_of_a_share(monkeypatch, processes):
    begun = []
    monkeypatch.setenv(spread.SHARE, "2/2")
    monkeypatch.setattr(spread, "compute", lambda _, calls, what: begun.extend(calls))
    with spread.spread_over(processes, None):
        spread.ahead(lambda call: begun.append((call,)), [("a",), ("b",), ("c",)], "letters")
    assert begun == [("b",), ("c",), ("a",)]


@pytest.mark.parametrize(("share", "order"), [("1/2", "abcd"), ("2/2", "cdab"), ("2/3", "bcda"), ("8/8", "dabc")])
def test_a_share_begins_with_its_own_part_and_goes_round(monkeypatch, share, order):
    monkeypatch.setenv(spread.SHARE, share)
    assert "".join(spread.mine_first("abcd")) == order


def test_what_another_share_has_computed_is_not_computed_again(monkeypatch):
    theirs = [one["process"] for one in spread.each(doubled, calls(2), "double")]
    monkeypatch.setenv(spread.SHARE, "2/2")
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert [one["process"] for one in spread.each(doubled, calls(3), "double")] == [*theirs, 0]


TIMES = {"arena-times.parquet", "planted-times.parquet"}  # which differ from one run to the next


def tables(folder):
    made = (folder / "results" / "mine").glob("*.parquet")
    return {path.name: path.read_bytes() for path in made if path.name not in TIMES}


def whole(folder, *options, times=1, then=lambda folder, process: None):
    """The tables of all of preset smoke, by so many pipelines at once; ``{}`` in an option is a pipeline's number."""
    own = {"REBASIN_CACHE": str(folder / "cache"), "REBASIN_RESULTS": str(folder / "results")}
    command = ["-m", "lab.bookkeeping.pipeline", "smoke", "-p", "run", "mine"]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        numbers = range(1, times + 1)
        processes = [started(*command, *(option.format(number) for option in options)) for number in numbers]
        then(folder, processes[0])
    assert [process.wait() for process in processes] == [0] * times
    print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
    return tables(folder)


def kill_when_trained(member):
    def kill(folder, process):
        wait_until(lambda: len(trained(folder)) > 20, process)
        member.kill()

    return kill


def whole_smoke_in_every_way(folder):
    """Run all of preset smoke by one process, by two, by four shares, and by a cluster that loses a worker."""
    alone = whole(folder / "one process", "-j", "1")
    assert whole(folder / "two processes", "-j", "2") == alone
    assert whole(folder / "four shares", "-j", "1", "--share", "{}/4", times=4) == alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(folder / "cluster" / "cache"))
        (folder / "cluster").mkdir()
        with cluster(folder / "cluster") as (address, members):
            killed = kill_when_trained(members[0])
            assert whole(folder / "cluster", "-j", "1", "--cluster", address, then=killed) == alone
            assert members[0].poll() is not None
    print(f"{len(alone)} tables, the same four times")


if __name__ == "__main__":
    whole_smoke_in_every_way(Path(sys.argv[1]))
