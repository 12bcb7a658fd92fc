"""A run that is killed at any moment ends with the same tables to the byte when it is started again."""

import multiprocessing
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd

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


def forked(home, work, die_at=None, half=False):
    """Work in a process that dies before change number ``die_at`` of a file there, or in the middle of its write.

    Gives the exit status, and what the changes were.
    """
    home.mkdir(exist_ok=True)
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

    def watched():
        os.environ |= {"REBASIN_RESULTS": str(home / "results"), "REBASIN_CACHE": str(home / "cache")}
        sys.addaudithook(watch)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=watched)
    process.start()
    process.join()
    os.close(tell)
    with os.fdopen(told) as lines:
        return process.exitcode, lines.read().split()


def tables(home):
    return {path.name: path.read_bytes() for path in (home / "results" / "killed").glob("*.parquet")}


def kill_everywhere(folder):
    """Kill the work at every change that it makes, start it again, and compare what comes out."""
    stack.CHECKPOINT_SECONDS = -1.0  # an unfinished stack is kept after every epoch
    digits = load("digits")
    experiment = results.begin("merge", results.declared_parameters("merge") | {"run": "killed"})
    work = partial(make, digits, trace(build("mlp", digits, RECIPE.width), digits.example), experiment)
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


def test_killed_at_every_change_of_a_file_it_ends_with_the_same_tables(tmp_path):
    # In a process of its own: one that has trained a network cannot be forked and train another.
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, tmp_path], env=own, capture_output=True, text=True)
    assert done.stdout.endswith("kills, the same tables after each\n"), done.stderr


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]))
