"""Which method should I use: what the page tells people to call runs, and its facts are those of planted tables."""

import re

import pandas as pd
import pytest
import torch
from planting import plant
from torch import nn

import rebasin
from lab.bookkeeping.code import ROOT
from lab.report import which

PAGE = (ROOT / "book" / "which.md").read_text()
CASES = re.findall(r"\{container\} guide-row\n(.*?)\n::::::\n", PAGE, re.DOTALL)


def plant_sizes(sizes, pairs=8):
    """Let a run have refitted PLeaS with these accuracies by size, and parents of 0.3 and ensembles of 0.6, of MLPs."""
    kind = {
        "setting": "cifar10 halves mlp", "tasks": "halves", "task": "joint", "dataset": "cifar10", "mended": "none",
        "architecture": "mlp", "width": 512, "metric": "accuracy",
    }  # fmt: skip
    reached = {("pleas_refitted", size): value for size, value in sizes.items()} | {("ensemble", 2.0): 0.6}
    reached[("parent", 1.0)] = 0.3
    rows = [
        {**kind, "node": node, "method": method, "size": size, "value": value + 0.001 * (-1) ** (node + (size > 1))}
        for (method, size), value in reached.items()
        for node in range(pairs)
    ]
    plant("mine", {"entries": pd.DataFrame(rows)}, "arena")


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("more", "pairs", "outcome"),
    [(0.5, 8, "mlp above"), (0.3, 8, "mlp below"), (0.4, 8, "mlp open"), (0.5, 3, "mlp too few")],
)
def test_what_a_fifth_more_gains_is_as_planted(own_results, more, pairs, outcome):
    plant_sizes({1.0: 0.4, 1.2: more}, pairs)
    facts = which.a_fifth_more("mine")
    assert facts.outcome == outcome and facts.values["n"] == str(pairs)
    assert facts.values["one_mlp"].startswith("40.0") and facts.values["more_mlp"].startswith(f"{100 * more:.1f}")
    assert facts.values["ensemble_mlp"].startswith("60.0")


def test_without_merges_of_that_size_nothing_is_said(own_results):
    plant_sizes({1.0: 0.4})
    assert which.a_fifth_more("mine").outcome == "not measured"


@pytest.mark.parametrize(("merged", "outcome"), [(0.8, "above"), (0.95, "below"), (0.9, "open")])
def test_what_two_lose_is_as_planted(own_results, merged, outcome):
    rows = [("unmerged", 1, node, 0.9) for node in range(8)]
    rows += [("hierarchy", 2, node, merged + 0.01 * (-1) ** node) for node in range(4)]
    nodes = pd.DataFrame(rows, columns=["algorithm", "n_leaves", "node", "value"]).assign(
        split="test", metric="accuracy"
    )
    plant("mine", {"nodes": nodes})
    facts = which.lost_by_two("mine")
    assert facts.outcome == outcome and facts.values["n"] == "4"
    assert facts.values["lost"].startswith(f"{90 - 100 * merged:.1f}".replace("-", "−"))


def test_each_case_says_what_to_call_what_to_expect_and_where_the_details_are():
    assert len(CASES) == PAGE.count("guide-row") >= 12
    for case in CASES:
        have, call, expect, *_ = case.strip().split("\n\n")
        assert re.fullmatch(r"`.+`|nothing.*", call), case
        assert expect.startswith(":::::{container} expect"), case
        measured = "{doc}`Details <" in case and re.search(r"\bn = \{(\w+_)?n\}|\{n\} pairs", case)
        assert measured or "Not measured here" in case, have


def test_what_a_reader_is_told_to_call_runs():
    torch.manual_seed(0)
    a, b = networks = [
        nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)) for _ in range(2)
    ]
    names = {"torch": torch, "a": a, "b": b, "networks": networks, "images": torch.randn(200, 3)}
    (beginning,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(beginning, names)
    assert names["rebasin"] is rebasin
    calls = [call for case in CASES for call in re.findall(r"^`(\w.*)`$", case, re.MULTILINE)]
    assert len(set(calls)) >= 8
    for call in calls:
        made = eval(call, names)
        answers = made if isinstance(made, torch.Tensor) else made.model(names["images"])
        both_heads = "side by side" in call or "torch.cat" in call
        assert answers.shape == (200, 4 if both_heads else 2), call
