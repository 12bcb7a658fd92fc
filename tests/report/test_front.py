"""The front page: few numbers, code that runs, facts on planted tables, and accuracy by the number of networks."""

import json
import re

import pandas as pd
import pytest
import torch
from planting import plant
from torch import nn

import rebasin
from lab.bookkeeping.code import ROOT
from lab.report import front

MOST_NUMBERS = 30
PAGE = (ROOT / "book" / "index.md").read_text()


def plant_clean(many, unmerged=0.55, nodes=8, ensemble=True):
    """Let a run have test accuracies of eight merged by MergeMany with REPAIR, a little different from node to node."""
    rows = []
    for node in range(nodes):
        noise = 0.001 * (-1) ** node
        rows += [("unmerged", "none", 1, 8 * node, unmerged), ("many", "repair", 8, node, many + noise)]
        rows += [("many", "repair", 2, 4 * node, many + 0.02), ("mean", "none", 8, node, 0.1)]
    rows += [("ensemble", "none", 8, 0, 0.6)] if ensemble else []
    table = pd.DataFrame(rows, columns=["algorithm", "mended", "n_leaves", "node", "value"])
    plant("mine", {"clean": table.assign(split="test", strength=0.0, classes=10, dataset="digits")}, "attack")


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("many", "nodes", "outcome"),
    [(0.5, 8, "below"), (0.6, 8, "above"), (0.55, 8, "open"), (0.5, 2, "too few")],
)
def test_what_merging_many_costs_is_as_planted(many, nodes, outcome):
    plant_clean(many, nodes=nodes)
    facts = front.many_repaired("mine")
    assert facts.outcome == outcome
    assert facts.values["many"].startswith(f"{100 * many:.1f}") and facts.values["unmerged"].startswith("55.0")
    assert facts.values["ensemble"] == "60.0" and facts.values["n"] == str(nodes)


def test_a_run_without_such_merges_says_so():
    plant("mine", {"clean": pd.DataFrame(
        [("unmerged", "none", 1, 0, 0.5)], columns=["algorithm", "mended", "n_leaves", "node", "value"]
    ).assign(split="test")}, "attack")  # fmt: skip
    assert front.many_repaired("mine").outcome == "not measured"


def test_the_slider_says_what_each_way_has_of_each_number():
    plant_clean(0.5)
    html = front.models("mine")
    words = [json.loads(found.replace("&quot;", '"')) for found in re.findall(r'data-words="(.*?)"', html)]
    assert words == [["2", "8"], ["–", "60.0 % (n = 1)"], ["52.0 ± 0.0 %", "50.0 ± 0.1 %"], ["–", "10.0 ± 0.0 %"]]
    titles = re.findall(r"</i>(.*?)</dt>", html)
    assert titles == ["ensemble of the leaves", "MergeMany after REPAIR", "naive average"]


def test_a_reader_meets_few_numbers():
    text = re.sub(r"^```bibtex\n.*?^```$", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?:```|:::+)\{.*$|^:\w+:.*$|^[HGPTN]\d+: ", "", text, flags=re.MULTILINE)  # names, options, ids
    text = re.sub(r"`[^`\n]*`|CIFAR-10", "", text)
    numbers = re.findall(r"\{\w+\}|\d+(?:\.\d+)?", re.sub(r"\{(?:doc|ref|cite|download)\}", "", text))
    assert "{pleas_refitted}" in numbers and "95" in numbers, "both kinds are counted"
    on_the_scoreboard = 2 * 5  # at most: so many verdicts, each counted in the bar and above its list
    assert len(numbers) + on_the_scoreboard < MOST_NUMBERS, numbers


def test_what_a_reader_is_told_to_call_runs():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    names = {"rebasin": rebasin, "a": a, "b": b, "images": torch.randn(200, 3)}
    guide = PAGE[PAGE.index("(which-method)=") : PAGE.index("(scoreboard)=")]
    exec("spec = rebasin.trace(a, images)", names)
    names["grams"] = eval("rebasin.collect(spec, [a, b], images)", names)
    calls = re.findall(r"^`(rebasin\..*)`$", guide, re.M)
    assert len(calls) >= 4 and "`spec = rebasin.trace(a, images)`" in guide
    assert "`rebasin.collect(spec, [a, b], images)`" in guide
    for call in calls:
        answers = eval(call, names).model(names["images"][:4])
        assert answers.shape == (4, 4 if "side by side" in call else 2), call
