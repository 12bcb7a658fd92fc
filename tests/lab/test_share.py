"""Shares of the training, built by many processes in one cache, give what one process gives."""

import os
import re
import subprocess
import sys

import pytest

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.notebook import execute
from lab.bookkeeping.pipeline import main
from lab.training import train
from lab.training.share import planned_networks, train_share

NETWORKS = {"models": 7, "chunk": 2, "width": 16, "epochs": [1, 2]}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    return tmp_path


def table(home):
    return (home / "results" / "mine" / "train-models.parquet").read_bytes()


def forbid_training(monkeypatch):
    monkeypatch.setattr(train, "train_stack", lambda *_: pytest.fail("a network was trained again"))


def test_four_shares_at_once_give_the_tables_of_one_process(home, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", str(home / "shared"))
    command = [sys.executable, "-m", "lab.bookkeeping.pipeline", "smoke", "train", "-p", "run", "mine"]
    command += ["-p", "networks", str(NETWORKS)]
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    shares = [
        subprocess.Popen([*command, "--share", f"{number}/4"], env=own, stdout=subprocess.PIPE, text=True)
        for number in (1, 2, 3, 4)
    ]
    told = [share.communicate()[0] for share in shares]
    for number, (line, count) in enumerate(zip(told, (2, 2, 2, 1), strict=True), 1):
        assert re.fullmatch(rf"train: share {number}/4, {count} networks trained in \d+ s\n", line)
    assert not (home / "results").exists()
    with monkeypatch.context() as patch:
        forbid_training(patch)
        execute("train", {"run": "mine", "networks": NETWORKS})
    by_shares = table(home)
    monkeypatch.setenv("REBASIN_CACHE", str(home / "alone"))
    execute("train", {"run": "mine", "networks": NETWORKS})
    assert table(home) == by_shares


def test_a_share_is_of_every_network_that_a_list_plans(monkeypatch):
    entries = [
        {"recipe": f"mlp {width}", "dataset": "digits", "epochs": [1], "models": 2, "width": width, "batch_size": 256}
        for width in (8, 16)
    ]
    given = {"run": "mine", "plane_networks": entries, "plane_points": 2, "plane_line_points": 3, "plane_images": 20}
    parameters = results.completed(results.declared_parameters("plane"), given)
    assert [train_share(parameters, number, 2) for number in (1, 2, 1)] == [2, 2, 0]
    forbid_training(monkeypatch)
    execute("plane", given)


def test_every_plan_of_a_notebook_is_shared_out():
    names = {
        step: [planned.name for planned in planned_networks(results.declared_parameters(step))]
        for step in ("train", "many", "barriers")
    }
    assert names["train"] == ["networks"] and names["many"] == ["mnist_networks", "half_networks"]
    assert len(names["barriers"]) == 6
    trees = results.declared_parameters("trees") | {"trees": 3}
    assert [planned.models for planned in planned_networks(trees)] == [3 * trees["networks"]["models"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--share", "0/4"], "a share is K/N, the K-th of N, such as 3/32: got '0/4'"),
        (["train", "--share", "5/4"], "a share is K/N, the K-th of N, such as 3/32: got '5/4'"),
        (["train", "--share", "all"], "a share is K/N, the K-th of N, such as 3/32: got 'all'"),
        (["conditions", "--share", "1/2"], "notebooks/conditions.ipynb: it lists no networks as they are trained"),
        (["arena", "--share", "1/2"], "notebooks/arena.ipynb: it lists no networks as they are trained"),
        (["trian", "--share", "1/2"], "unknown step 'trian'"),
    ],
)
def test_what_is_no_share_is_named_and_nothing_is_trained(home, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(f"rebasin: {message}")):
        main(["smoke", *arguments])
    assert not (home / "cache").exists()
