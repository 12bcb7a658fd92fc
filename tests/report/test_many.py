"""MergeMany in the book: facts, tables and figure are those of the tables that were planted."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping import results
from lab.report import many
from lab.report.claims import NOT_REPLICATED, REPLICATED, decide

ALGORITHMS = ("unmerged", "many", "ensemble", "mean")


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


def plant_many(groups=8, loss=0.6, price=0.003, errors=(0.02, 0.008, 0.005), tempered=0.004, spread=1e-5):
    """Let a run have the tables of notebooks/many.ipynb.

    The merges' loss is ``loss`` times their inputs', their accuracy ``price`` lower; ``errors`` are the calibration
    errors of inputs, merges and ensembles, ``tempered`` that of the merges with a temperature, where all others have
    0.004.
    """
    rows, members, bins = [], [], []
    error_of = dict(zip(("unmerged", "many", "ensemble", "mean"), (*errors, 0.3), strict=True))
    for kind in (("all", 5), ("half", 4), ("half", 8)):
        for node in range(groups):
            small = 1 + spread * (node - (groups - 1) / 2)
            for algorithm in ALGORITHMS:
                merged = algorithm == "many"
                metrics = {
                    "loss": 0.1 * (loss * small if merged else 1),
                    "accuracy": 0.98 - (price * small if merged else 0),
                    "calibration_error": error_of[algorithm] * (small if merged else 1),
                    "calibration_error_tempered": tempered * small if merged else 0.004,
                }
                for split in ("train", "test"):
                    rows += [(*kind, algorithm, node, split, metric, value) for metric, value in metrics.items()]
                bins += [(*kind, algorithm, node, 13, 0.9, 0.8, 0.2), (*kind, algorithm, node, 14, 0.99, 0.98, 0.8)]
            for member in range(kind[1]):
                for split in ("train", "test"):
                    metrics = {"loss": 0.1 + 0.01 * member, "accuracy": 0.98, "calibration_error": 0.02}
                    members += [(*kind, node, member, split, metric, value) for metric, value in metrics.items()]
    columns = ["subset", "n_leaves", "algorithm", "node"]
    tables = {
        "nodes": pd.DataFrame(rows, columns=[*columns, "split", "metric", "value"]),
        "members": pd.DataFrame(members, columns=["subset", "n_leaves", "node", "member", "split", "metric", "value"]),
        "reliability": pd.DataFrame(bins, columns=[*columns, "bin", "confidence", "accuracy", "share"]),
    }
    plant("mine", tables, "many")


@pytest.mark.parametrize(
    ("planted", "outcome"),
    [
        ({}, "lower"),
        ({"loss": 1.5}, "higher"),
        ({"loss": 1.0}, "open"),
        ({"groups": 7}, "too few, lower"),
        ({"groups": 1, "loss": 1.5}, "too few, higher"),
    ],
)
def test_the_loss_of_merges_of_five(planted, outcome):
    plant_many(**planted)
    assert many.five("mine").outcome == outcome


def test_change_and_price_stand_beside_the_papers():
    plant_many(groups=1, loss=0.5, price=0.01)
    assert many.five("mine").values == {
        "fall": "50.0", "paper_fall": "43.8", "price": "1.00", "paper_price": "0.29", "n": "1", "needed": "8"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("planted", "outcome"),
    [
        ({}, "better, near"),
        ({"errors": (0.02, 0.05, 0.005)}, "worse, far"),
        ({"errors": (0.02, 0.02, 0.01), "spread": 1e-3}, "open, open"),
        ({"groups": 2}, "too few, better, near"),
        ({"groups": 2, "errors": (0.02, 0.05, 0.005)}, "too few, worse, far"),
    ],
    ids=["better", "worse", "open", "two", "two worse"],
)
def test_calibration_beside_inputs_and_ensemble(planted, outcome):
    plant_many(**planted)
    small, large = many.small_groups("mine"), many.large_groups("mine")
    assert small.outcome == large.outcome == outcome
    assert (small.values["size"], large.values["size"]) == ("4", "8")
    five = many.five_calibrated("mine")
    assert five.outcome == outcome and five.values["size"] == "5"


def test_the_errors_are_in_points():
    plant_many(groups=2)
    values = {"inputs": "2.00", "merged": "0.80", "ensemble": "0.50", "size": "4", "n": "2"}
    assert many.small_groups("mine").values == values


@pytest.mark.parametrize(
    ("planted", "outcome"),
    [
        ({}, "lower"),
        ({"price": -0.003}, "higher"),
        ({"price": 0.0}, "open"),
        ({"groups": 2}, "too few, lower"),
        ({"groups": 2, "price": -0.01}, "too few, higher"),
    ],
)
def test_the_accuracy_of_merges_of_networks_on_halves(planted, outcome):
    plant_many(**planted)
    assert many.accuracy("mine").outcome == outcome


@pytest.mark.parametrize(
    ("tempered", "groups", "outcome"),
    [
        (0.006, 8, "more"), (0.002, 8, "less"), (0.004, 8, "open"), (0.006, 7, "too few, more"),
        (0.002, 7, "too few, less"),
    ],
)  # fmt: skip
def test_what_temperatures_leave(tempered, groups, outcome):
    plant_many(groups=groups, tempered=tempered, spread=1e-3)
    facts = many.tempered("mine")
    assert facts.outcome == outcome
    assert facts.values["merged"].startswith(f"{100 * tempered:.2f}") and facts.values["inputs"].startswith("0.40")


@pytest.mark.parametrize(
    ("accuracy", "outcome"),
    [
        ({"many": 1.0}, "surer, less sure"),
        ({}, "surer, surer"),
        ({"unmerged": 1.0}, "less sure, surer"),
        ({"unmerged": 1.0, "many": 1.0}, "less sure, less sure"),
    ],
)
def test_how_sure_networks_are_beside_how_right(accuracy, outcome):
    plant_many(groups=2)
    bins = results.read("mine", "many", "reliability")
    for algorithm, value in accuracy.items():
        bins.loc[bins["algorithm"] == algorithm, "accuracy"] = value
    others = {name: results.read("mine", "many", name) for name in ("nodes", "members")}
    plant("mine", others | {"reliability": bins}, "many")
    facts = many.sureness("mine")
    assert facts.outcome == outcome
    # Confidences of 0.9 and 0.99 on a fifth and four fifths of the images; right are 0.8 and 0.98 of them, or all.
    assert facts.values == {"inputs": "2.8", "merged": "2.8"}


def test_how_long_the_networks_were_trained():
    plant_many()
    facts = many.recipe("mine")
    assert facts.outcome == "shorter"
    assert facts.values == {"five_epochs": "20", "half_epochs": "10", "half_models": "8", "paper_epochs": "100"}


def test_networks_that_were_trained_as_long_as_the_papers(monkeypatch):
    plant_many()
    monkeypatch.setattr(many, "PAPER_EPOCHS", 10)
    assert many.recipe("mine").outcome == "as long"


def test_claims_are_decided_on_these_tables():
    plant_many(errors=(0.02, 0.03, 0.005))
    loss, calibration = decide("mine", ["G3", "G4"])
    assert loss.verdict == REPLICATED
    assert loss.condition("loss").effect.mean == pytest.approx(40, abs=0.1)
    assert loss.condition("accuracy").effect.mean == pytest.approx(0.3, abs=0.01)
    assert {condition.id: condition.verdict for condition in calibration.conditions} == {
        "inputs_4": NOT_REPLICATED, "ensemble_4": NOT_REPLICATED
    }  # fmt: skip


def test_the_papers_five_stand_beside_ours():
    plant_many(groups=3)
    table = many.five_table("mine").set_index("network")
    assert list(table.index) == ["each network", "inputs, their mean", "MergeMany", "ensemble", "naive average"]
    assert list(table["the paper's loss"]) == ["0.111 to 0.153", "0.129", "0.073", "–", "–"]
    assert list(table["the paper's accuracy"]) == ["98.54 to 98.71", "98.60", "98.31", "–", "–"]
    assert list(table["test loss (nats)"]) == ["0.100 to 0.140", "0.100", "0.060", "0.100", "0.100"]
    assert table.loc["MergeMany", "train accuracy (%)"] == "97.70"


def test_the_table_of_calibration_has_n_and_an_interval_where_there_is_one():
    for groups in (3, 4):
        plant_many(groups=groups)
        table = many.calibration_table("mine")
        assert table["n"].tolist() == [groups] * 12
        groups_of = dict.fromkeys(zip(table["models"], table["trained on"], strict=True))
        assert list(groups_of) == [("5", "all images"), ("4", "halves"), ("8", "halves")]
        merged = table[(table["models"] == "4") & (table["network"] == "MergeMany")].iloc[0]
        assert merged["calibration error (points)"].startswith("0.80")
        assert ("[" in merged["calibration error (points)"]) == (groups == 4)


def test_bins_are_pooled_by_how_many_answers_they_hold_and_rare_ones_left_out():
    bins = pd.DataFrame(
        [(0, 7, 0.5, 0.2, 0.3), (1, 7, 0.52, 0.6, 0.1), (0, 9, 0.7, 1.0, 0.004), (1, 3, math.nan, math.nan, 0.0)],
        columns=["node", "bin", "confidence", "accuracy", "share"],
    )
    pooled = many.pooled(bins)
    assert pooled.index.tolist() == [7]
    assert pooled.loc[7, "accuracy"] == pytest.approx(0.3)
    assert pooled.loc[7, "confidence"] == pytest.approx(0.505)


def test_the_figure_has_a_panel_for_each_size_of_group():
    plant_many(groups=2)
    figure = many.reliability_diagram("mine")
    assert [axes.get_title() for axes in figure.axes] == ["groups of 4", "groups of 8"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["inputs", "MergeMany", "ensemble"]
    confidence = figure.axes[0].lines[1].get_xdata()
    np.testing.assert_allclose(confidence, [90, 99])
    plt.close(figure)
