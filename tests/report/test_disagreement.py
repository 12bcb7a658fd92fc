"""Barriers in loss and in accuracy of all notebooks stand side by side, as the planted tables have them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import barriers_of_all, barriers_on, begun, digits, plant_barriers, plant_mnist

from lab.bookkeeping import results
from lab.report import disagreement
from lab.report.disagreement import recipes

RUNS = ("mine", "mine", "mine")
HIGH = dict.fromkeys(("none", "weights", "activations", "straight-through"), 0.9)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    """Tables of the notebooks mnist and accuracy, with barriers that are not zero, for a run that needs all three."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    plant_mnist(HIGH)
    plant_accuracy()


def plant_accuracy(**changes):
    """Four pairs that lie 2 points and 0.1 nats lower at the midpoint than at the ends."""
    rows = [
        ("weights", 2, node, "test", lam, metric, end + (lam == 0.5) * drop + 0.001 * node)
        for node in range(4)
        for lam in (0.0, 0.5, 1.0)
        for metric, end, drop in (("accuracy", 0.5, -0.02), ("loss", 1.0, 0.1))
    ]
    paths = pd.DataFrame(rows, columns=["matcher", "n_leaves", "node", "split", "lam", "metric", "value"])
    barriers = barriers_on(paths.assign(epochs=20)).assign(**changes)
    results.finish(begun("accuracy", "mine"), digits(), {"barriers": barriers})


def plant_widths(changes):
    """Let the notebook barriers have a recipe of these widths, each with its own changes."""
    plant_barriers([row for width, of in changes.items() for row in barriers_of_all("digits width", width=width, **of)])


def test_every_recipe_of_every_notebook_stands_once_the_lowest_barrier_in_accuracy_first():
    plant_widths({8: {"accuracy_barrier": 0.3}, 16: {"loss_barrier": 0.01, "accuracy_barrier": 0.1}})
    table = disagreement.recipes_table(*RUNS)
    assert [text.split()[0] for text in table["barrier in accuracy (points)"]] == [
        "2.0",
        "10.0",
        "30.0",
        "60.0",
        "90.0",
    ]
    assert [text[:4] for text in table["barrier in loss (nats)"]] == ["0.10", "0.01", "0.50", "0.60", "0.90"]
    assert list(table["n"]) == ["4", "8", "8", "8", "8"]
    assert table["at the best temperature"].iloc[0] == "" and table["at the best temperature"].iloc[1] != ""
    assert table["accuracy of the ends (%)"].iloc[0].startswith("50.")
    assert list(table["networks"].iloc[:2]) == ["digits MLP, width 64", "digits MLP, width 16"]


def test_networks_in_two_notebooks_count_once_with_what_was_measured_the_most():
    known = {"dataset": "digits", "width": 64, "batch_size": 64, "learning_rate": 0.003, "initial": "lecun_normal"}
    plant_barriers(barriers_of_all("digits width", epochs=100, loss_barrier=0.2, **known))
    whole = recipes(*RUNS)
    (same,) = whole[whole["epochs"] == 100].itertuples()
    assert same.loss.mean == pytest.approx(0.2, abs=0.01) and same.tempered is not None
    assert len(whole) == 3, "these, the same after one epoch, and those of the notebook accuracy"


def test_the_same_networks_under_two_names_count_once():
    plant_barriers(barriers_of_all("digits width", width=32) + barriers_of_all("digits whole", width=32))
    assert (recipes(*RUNS)["width"] == 32).sum() == 1


def test_recipes_that_would_be_called_the_same_are_told_apart():
    rows = [
        row
        for name, initial, size in (("a", "torch", 64), ("b", "lecun_normal", 64), ("c", "torch", 500))
        for row in barriers_of_all(name, section="width", width=32, initial=initial, batch_size=size)
    ]
    plant_barriers(rows + barriers_of_all("digits split", width=32, initial="torch", batch_size=64))
    whole = recipes(*RUNS)
    assert set(whole[whole["width"] == 32]["training"]) == {
        "Adam at 0.001, batch size 64, PyTorch's default, 10 epochs",
        "Adam at 0.001, batch size 64, LeCun-normal, 10 epochs",
        "Adam at 0.001, batch size 500, PyTorch's default, 10 epochs",
        "Adam at 0.001, data shared out, 10 epochs",
    }
    assert "Adam at 0.003, 1 epoch" in set(whole["training"])


ZERO, LOST = {"loss_barrier": 0.01, "accuracy_barrier": 0.002}, {"loss_barrier": 0.01, "accuracy_barrier": 0.05}


@pytest.mark.parametrize(
    ("narrow", "wide", "outcome", "zero"),
    [
        ({}, {"loss_barrier": 0.4}, "none", "0"),
        ({}, LOST, "none in accuracy", "1"),
        ({}, ZERO, "all in accuracy", "1"),
        (ZERO, LOST, "some in accuracy", "2"),
        ({}, LOST | {"accuracy_barrier": 0.005}, "not decided", "1"),
    ],
)
def test_whether_zero_in_loss_is_zero_in_accuracy_is_as_planted(narrow, wide, outcome, zero):
    plant_widths({8: narrow, 32: wide})
    facts = disagreement.zero_in_loss(*RUNS)
    assert facts.outcome == outcome
    values = facts.values
    assert (values["recipes"], values["zero"]) == ("4", zero), "each at its last epoch"
    assert ("kept_networks" in values) == (outcome in ("all in accuracy", "some in accuracy"))
    assert ("lost_networks" in values) == (outcome in ("none in accuracy", "some in accuracy"))
    if outcome == "some in accuracy":
        assert values["kept_networks"] == "digits MLP, width 8" and values["kept_accuracy"].startswith("0.2")
        assert values["lost_networks"] == "digits MLP, width 32" and values["lost_accuracy"].startswith("5.0")
    assert "nan" not in "".join(values.values())


def test_a_recipe_counts_once_at_its_last_epoch():
    rows = [row for epochs in (1, 10, 100) for row in barriers_of_all("digits mlp", epochs=epochs, width=8, **ZERO)]
    plant_barriers(rows + barriers_of_all("digits mlp", epochs=10, width=16))
    assert disagreement.zero_in_loss(*RUNS).values["recipes"] == "4"
    assert disagreement.zero_in_loss(*RUNS).values["zero"] == "1"


def test_what_temperature_and_repair_take_away_are_shares_of_the_barriers_of_three_points():
    # The path is highest somewhere else than at its midpoint, where temperatures are taken.
    barrier = {"loss_barrier": 0.8, "loss_barrier_of_three": 0.5}
    plant_widths(
        {
            width: barrier | {"loss_barrier_tempered": tempered, "temperature_ends": ends, "temperature_midpoint": 0.9}
            for width, tempered, ends in ((8, 0.4, 0.5), (16, 0.25, 0.7), (32, 0.55, 1.8))
        }
    )
    facts = disagreement.temperature(*RUNS)
    assert facts.outcome == "stays"
    assert facts.values == {"share": "20", "least": "−10", "most": "50", "recipes": "3", "still": "3"}
    facts = disagreement.raised(*RUNS)
    assert facts.outcome == "some, midpoint unsure" and (facts.values["raised"], facts.values["recipes"]) == ("1", "3")
    assert facts.values["networks"] == "digits MLP, width 32"
    assert facts.values["loss"].startswith("0.500") and facts.values["tempered"].startswith("0.550")
    assert facts.values["temperature_ends"].startswith("1.80")
    assert facts.values["temperature_midpoint"].startswith("0.90")
    assert disagreement.repaired_loss(*RUNS).values["share"] == "0"


def test_barriers_that_go_and_barriers_that_never_were():
    plant_widths({width: {"loss_barrier_tempered": 0.001} for width in (8, 16)})
    assert disagreement.temperature(*RUNS).outcome == "goes"
    assert disagreement.raised(*RUNS).outcome == "none"
    assert disagreement.repaired_accuracy(*RUNS).outcome == "stays"
    plant_widths({8: ZERO | {"loss_barrier_tempered": 0.5}})
    assert disagreement.temperature(*RUNS).outcome == "no barrier"
    assert disagreement.raised(*RUNS).outcome == "some"
    assert disagreement.raised(*RUNS).values["raised"] == "1", "a barrier that is hidden counts, however low it seems"


def test_one_very_high_barrier_counts_as_one_recipe():
    changes = {width: {"loss_barrier": 0.1, "loss_barrier_tempered": 0.02} for width in range(1, 10)}
    plant_widths(changes | {10: {"loss_barrier": 10, "loss_barrier_tempered": 9}})
    assert disagreement.temperature(*RUNS).values == {
        "share": "80", "least": "10", "most": "80", "recipes": "10", "still": "1"
    }  # fmt: skip


def test_the_figure_has_a_mark_for_each_recipe_and_keeps_zeros_on_its_axes():
    plant_widths({8: {"loss_barrier": 0.0, "accuracy_barrier": 0.0}, 16: {}})
    figure = disagreement.loss_against_accuracy(*RUNS)
    (container,) = figure.axes[0].containers
    marks = container.lines[0].get_xydata()
    assert len(marks) == 5
    assert marks.min(0)[0] == disagreement.FLOOR["loss"] and marks.min(0)[1] == disagreement.FLOOR["accuracy"]
    assert np.isfinite(marks).all() and figure.axes[0].get_xlim()[0] > 0
    plt.close(figure)


def test_the_recipes_whose_barriers_agree_least_are_named():
    off = {"loss_barrier": 0.01, "accuracy_barrier": 0.9, "learning_rate": 0.01}
    on = {width: {"loss_barrier": at, "accuracy_barrier": at} for width, at in ((8, 0.05), (16, 0.2), (32, 0.5))}
    plant_widths(on | {64: off})
    named = disagreement.furthest_from_trend(recipes(*RUNS), 1)
    assert list(named["width"]) == [64]
    figure = disagreement.loss_against_accuracy(*RUNS)
    assert "10 epochs" in [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)


def test_what_others_released_is_told_as_drops():
    table = disagreement.released_table()
    assert list(table["drop (points)"]) == ["41.7", "7.0", "3.6", "4.1"]
    assert list(table["drop (points) "]) == ["23.6", "4.2", "1.3", "1.6"]
