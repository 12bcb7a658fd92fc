"""A run that is killed at any moment ends with the same tables to the byte when it is started again.

``python tests/lab/test_kills.py FOLDER 100`` kills one a hundred times, at random moments.
"""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.data import load
from lab.merges import merge_all
from lab.networks import build
from lab.training import stack
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.tracing import trace

RECIPE = Recipe(width=8, batch_size=256, learning_rate=0.003)
SIZES = {"hierarchy": [2], "mean": [4]}
KILLED = 9


def make(digits, spec, experiment):
    """Train four networks, two at once, merge them, and write a table of both."""
    trained = train(RECIPE, digits, 4, (1, 2), "cpu", chunk=2)
    nodes = merge_all(spec, trained.last, SIZES, device="cpu", chunk=1)
    sums = [float(sum(tensor.double().sum() for tensor in one.weights.values())) for one in nodes]
    tables = {"nodes": pd.DataFrame({"sum": sums}), "models": pd.DataFrame({"loss": trained.loss[:, -1].numpy()})}
    results.finish(experiment, digits, tables)


def is_change(event, arguments):
    return event in ("os.rename", "os.remove") or (event == "open" and arguments[2] & os.O_WRONLY)


def started(home, work, watch=None):
    """Work in a process of its own, with results and cache there."""
    home.mkdir(exist_ok=True)

    def watched():
        os.environ |= {"REBASIN_RESULTS": str(home / "results"), "REBASIN_CACHE": str(home / "cache")}
        if watch is not None:
            sys.addaudithook(watch)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=watched)
    process.start()
    return process


def forked(home, work, die_at=None, half=False):
    """Work in a process that dies before change number ``die_at`` of a file there, or in the middle of its write.

    Gives the exit status, and what the changes were.
    """
    changes = []
    told, tell = os.pipe()

    def watch(event, arguments):
        if not is_change(event, arguments) or not str(arguments[0]).startswith(str(home)):
            return
        changes.append(event)
        os.write(tell, f"{event}\n".encode())
        if len(changes) - 1 == die_at:
            if half:
                os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
            os._exit(KILLED)

    process = started(home, work, watch)
    process.join()
    os.close(tell)
    with os.fdopen(told) as lines:
        return process.exitcode, lines.read().split()


def tables(home):
    return {path.name: path.read_bytes() for path in (home / "results" / "killed").glob("*.parquet")}


def work_on_digits():
    digits = load("digits")
    experiment = results.begin("merge", results.declared_parameters("merge") | {"run": "killed"})
    return partial(make, digits, trace(build("mlp", digits, RECIPE.width), digits.example), experiment)


def kill_everywhere(folder):
    """Kill the work at every change that it makes, start it again, and compare what comes out."""
    stack.CHECKPOINT_SECONDS = -1.0  # an unfinished stack is kept after every epoch
    work = work_on_digits()
    exitcode, changes = forked(folder / "whole", work)
    whole = tables(folder / "whole")
    assert exitcode == 0 and len(whole) == 2
    assert changes.count("os.rename") > 8 and changes.count("open") > 8
    # Before a rename, a kill in the middle of the write before it is tried, too.
    kills = [(at, half) for at, change in enumerate(changes) for half in {False, change == "os.rename"}]
    for at, half in kills:
        home = folder / f"{at}{' half' * half}"
        assert forked(home, work, at, half) == (KILLED, changes[: at + 1])
        assert forked(home, work)[0] == 0
        assert tables(home) == whole, f"killed before change {at}, {changes[at]}{', a half was written' * half}"
    print(f"{len(kills)} kills, the same tables after each")


def kill_at_random(folder, kills):
    """Kill the work so many times at random moments. Each time it goes on where it was, until it gets through."""
    stack.CHECKPOINT_SECONDS = -1.0
    work = work_on_digits()
    began = time.monotonic()
    assert forked(folder / "whole", work)[0] == 0
    seconds, whole = time.monotonic() - began, tables(folder / "whole")
    moments, killed, homes = random.Random(0), 0, 0
    while killed < kills:
        home = folder / str(homes)
        homes += 1
        while True:
            process = started(home, work)
            process.join(moments.uniform(0, seconds))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            killed += 1
        assert process.exitcode == 0
        assert tables(home) == whole, f"in folder {home}"
    print(f"{killed} kills in {homes} runs, the same tables after each")


@pytest.mark.parametrize("arguments", [[], ["6"]], ids=["at every change", "at random moments"])
def test_killed_at_every_change_of_a_file_or_at_random_it_ends_with_the_same_tables(tmp_path, arguments):
    # In a process of its own: one that has trained a network cannot be forked and train another.
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, tmp_path, *arguments], env=own, capture_output=True, text=True)
    assert done.stdout.endswith("the same tables after each\n"), done.stderr


if __name__ == "__main__":
    if len(sys.argv) > 2:
        kill_at_random(Path(sys.argv[1]), kills=int(sys.argv[2]))
    else:
        kill_everywhere(Path(sys.argv[1]))
