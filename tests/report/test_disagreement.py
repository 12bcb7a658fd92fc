"""Barriers in loss and in accuracy of all notebooks stand side by side, and the sentences turn with them."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import barriers_of_all, begun, digits, plant

from lab.bookkeeping import results
from lab.report import barriers_figures
from lab.report import disagreement_chapter as chapter


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def plant_barriers(run="mine", **told):
    """Let a run have two recipes of widths 8 and 64, the wide one with these values."""
    rows = barriers_of_all("digits width", accuracy_barrier=0.3) + barriers_of_all("digits width", width=64, **told)
    plant(run, {"barriers": pd.DataFrame(rows)}, "barriers")


def plant_accuracy(run="mine"):
    """Pairs of CIFAR networks, so to say: 2 points and 0.1 nats lower at the midpoint than at the ends."""
    rows = [
        ("tree", 2, node, "test", lam, metric, end + (lam == 0.5) * drop + 0.001 * node)
        for node in range(4)
        for lam in (0.0, 0.5, 1.0)
        for metric, end, drop in (("accuracy", 0.5, -0.02), ("loss", 1.0, 0.1))
    ]
    columns = ["algorithm", "n_leaves", "node", "split", "lam", "metric", "value"]
    plant(run, {"paths": pd.DataFrame(rows, columns=columns)}, "accuracy")


@pytest.mark.parametrize(
    ("loss", "accuracy", "opening"),
    [
        (0.4, 0.1, "No recipe of this run is shown to reach a zero barrier in loss"),
        (0.01, 0.05, "A zero barrier in loss is reached, and is no zero barrier in accuracy"),
        (0.01, 0.002, "A zero barrier in loss is reached, and comes with one in accuracy"),
        (0.01, 0.005, "A zero barrier in loss is reached; whether one in accuracy comes with it is not decided"),
    ],
)
def test_whether_zero_in_loss_is_zero_in_accuracy_is_told_as_the_table_has_it(loss, accuracy, opening):
    plant_barriers(loss_barrier=loss, accuracy_barrier=accuracy)
    found = chapter.zero_finding()
    have = "1 has" if loss < 0.02 else "none have"
    assert found.startswith(
        f"<strong>{opening}</strong>: of 2 recipes, each at its last epoch, {have} a barrier in test"
    )
    assert ("(digits MLP, width 64, " in found) == (loss < 0.02), "what is zero is named, with both its barriers"
    assert f"nats, {100 * accuracy:.1f} [" in found and "n = 8 pairs" in found
    assert "run mine" in found and "nan" not in found


def test_a_recipe_that_loses_accuracy_at_a_zero_barrier_in_loss_is_named_among_those_that_do_not():
    rows = barriers_of_all("digits width", loss_barrier=0.01, accuracy_barrier=0.002)
    rows += barriers_of_all("digits width", width=64, loss_barrier=0.01, accuracy_barrier=0.05)
    plant("mine", {"barriers": pd.DataFrame(rows)}, "barriers")
    found = chapter.zero_finding()
    opening = "A zero barrier in loss is reached, and one in accuracy does not always come with it"
    assert found.startswith(
        f"<strong>{opening}</strong>: of 2 recipes, each at its last epoch, 2 have a barrier in test"
    )
    narrow, wide = found.partition("nats (")[2].partition("); in accuracy")[0].split("; ")
    assert "width 8, " in narrow and "nats, 0.2 [" in narrow and "width 64, " in wide and "nats, 5.0 [" in wide


def test_a_recipe_counts_once_at_its_last_epoch():
    told = {"loss_barrier": 0.01, "accuracy_barrier": 0.002}
    rows = [row for epochs in (1, 10, 100) for row in barriers_of_all("digits mlp", epochs=epochs, **told)]
    rows += barriers_of_all("digits width", epochs=30, width=8, loss_barrier=0.4)
    rows += barriers_of_all("digits width", epochs=30, width=16, loss_barrier=0.9)
    plant("mine", {"barriers": pd.DataFrame(rows)}, "barriers")
    found = chapter.zero_finding()
    assert "of 3 recipes, each at its last epoch, 1 has a barrier" in found and "epoch 100: 0.010" in found
    assert "epoch 1:" not in found and "epoch 10:" not in found
    _, _, others = found.partition("Not shown to be zero: from ")
    assert others.index("width 8, ") < others.index(" to ") < others.index("width 16, ")


def test_what_temperature_and_repair_take_away_is_told_as_shares_of_the_barriers_of_three_points():
    # The path is highest somewhere else than at its midpoint, where temperatures are taken.
    barrier = {"loss_barrier": 0.8, "loss_midpoint": 1.0, "loss_ends": 0.5, "loss_gain": -0.5}
    rows = []
    for width, tempered, ends in ((8, 0.4, 0.5), (16, 0.25, 0.7), (32, 0.55, 1.8)):
        told = {"loss_barrier_tempered": tempered, "temperature_ends": ends, "temperature_midpoint": ends / 2}
        rows += barriers_of_all("digits width", width=width, **told, **barrier)
    plant("mine", {"barriers": pd.DataFrame(rows)}, "barriers")
    found = chapter.parts_finding()
    assert found.startswith(
        "<strong>The best softmax temperature takes away 20 % (−10 to 50, 3 recipes) of the barrier in"
    )
    assert "nothing that could be measured of that in accuracy" in found
    assert "In 1 of 3 recipes with an interval the best temperatures raise the barrier" in found
    _, _, hidden = found.partition("the most for ")
    assert hidden.startswith("digits MLP, width 32, ") and "from 0.500 [" in hidden and " to 0.550 [" in hidden
    assert "temperature of 1.80 [" in hidden and "its midpoint at 0.90 [" in hidden


def test_one_very_high_barrier_counts_as_one_recipe_and_what_is_no_barrier_not_at_all():
    low = {"loss_midpoint": 0.6, "loss_ends": 0.5, "loss_gain": -0.1, "loss_barrier_tempered": 0.02}
    high = {"loss_midpoint": 10.5, "loss_ends": 0.5, "loss_gain": -10, "loss_barrier_tempered": 9}
    none = {"loss_midpoint": 0.505, "loss_ends": 0.5, "loss_gain": -0.005, "loss_barrier_tempered": 0.5}
    rows = [row for width in range(1, 10) for row in barriers_of_all("digits width", width=width, **low)]
    rows += barriers_of_all("digits batch norm", **high)
    plant("mine", {"barriers": pd.DataFrame(rows + barriers_of_all("digits mlp", **none))}, "barriers")
    found = chapter.parts_finding()
    assert "takes away 80 % (10 to 80, 10 recipes) of the barrier in loss" in found
    assert "In 1 of 11 recipes" in found, "a barrier that is hidden counts, however low it seems"
    assert "the most for digits MLP, width 64, Adam at 0.001, epoch 1" in found
    plant("mine", {"barriers": pd.DataFrame(barriers_of_all("digits mlp", **none))}, "barriers")
    assert "No recipe whose temperatures were measured has a barrier in loss" in chapter.parts_finding()


def test_barriers_of_three_points_are_those_of_the_ends_and_the_midpoint():
    for ends, midpoint in (((0.2, 0.6), 0.9), ((0.2, 0.6), 0.5), ((0.6, 0.2), 0.1)):
        for metric, scale, better in (("loss", 1, min), ("accuracy", 100, max)):
            sign = 1 if metric == "loss" else -1
            gain = sign * (better(ends) - midpoint)
            told = {f"{metric}_ends": sum(ends) / 2, f"{metric}_midpoint": midpoint, f"{metric}_gain": gain}
            part = pd.DataFrame(barriers_of_all("digits width", **told))
            expected = scale * (max(sign * at for at in (*ends, midpoint)) - sign * sum(ends) / 2)
            assert chapter._of_three(part, metric).mean == pytest.approx(expected, abs=0.002 * scale)


def test_networks_of_two_notebooks_count_once_and_recipes_of_one_name_are_told_apart():
    told = {"dataset": "mnist", "width": 512, "epochs": 10}
    whole = {"batch_size": 500, "seed": 0, "initial": "lecun_normal", "weight_decay": 0.0, "l1": 0.0, "l2": 0.0}
    whole |= {"schedule": "constant", "schedule_epochs": 0, "warmup_epochs": 0, "augmented": False}
    rows = barriers_of_all("mnist width", **told, **whole) + barriers_of_all(
        "mnist whole", **told, **whole | {"batch_size": 64}
    )
    plant("mine", {"barriers": pd.DataFrame(rows)}, "barriers")
    given = {"mnist_dataset": "mnist", "mnist_width": 512, "mnist_learning_rate": 0.001, "mnist_batch_size": 500}
    pairs = [("weights", 10, node, 2, "test", f"{of}_barrier", 0.5) for node in range(4) for of in ("loss", "accuracy")]
    columns = ["algorithm", "epochs", "node", "n_leaves", "split", "metric", "value"]
    paths = pd.DataFrame(columns=[*columns, "lam"])
    run = begun("mnist", "mine")
    tables = {"barriers": pd.DataFrame(pairs, columns=columns), "paths": paths}
    results.finish(dataclasses.replace(run, parameters=run.parameters | given), digits(), tables)
    found = chapter.recipes("mine")
    assert sorted(one.name for one in found) == [
        f"MNIST MLP, width 512, Adam at 0.001, batch_size {size}, epoch 10" for size in (500, 64)
    ]
    assert all(one.tempered is not None for one in found), "of networks in two notebooks, what was measured the most"


def test_recipes_of_all_notebooks_stand_in_one_table_the_lowest_barrier_in_accuracy_first():
    plant_barriers(loss_barrier=0.01, accuracy_barrier=0.1)
    plant_accuracy()
    table = chapter.table("mine")
    assert [text[:4] for text in table["barrier in accuracy (points)"]] == ["2.0 ", "10.0", "30.0"]
    assert [text[:4] for text in table["barrier in loss (nats)"]] == ["0.10", "0.01", "0.50"]
    assert list(table["n"]) == [4, 8, 8]
    assert table["at the best temperature"][0] == "" and table["at the best temperature"][1] != ""
    assert table["accuracy of the ends (%)"][0].startswith("50.")


def test_pairs_of_the_mnist_notebook_are_read_at_each_of_their_epochs():
    rows, paths = [], []
    for epochs, loss in ((1, 0.6), (20, 0.01)):
        for algorithm in ("naive", "weights"):
            for node in range(4):
                for metric, value in (("loss_barrier", loss), ("accuracy_barrier", loss / 10)):
                    value = value if algorithm == "weights" else 1.0
                    rows.append((algorithm, epochs, node, 2, "test", metric, value + 0.0001 * node))
                for lam in (0.0, 1.0):
                    paths.append((algorithm, 20, node, "test", lam, "accuracy", 0.9))
    tables = {
        "barriers": pd.DataFrame(rows, columns=["algorithm", "epochs", "node", "n_leaves", "split", "metric", "value"]),
        "paths": pd.DataFrame(paths, columns=["algorithm", "epochs", "node", "split", "lam", "metric", "value"]),
    }
    given = {
        "mnist_dataset": "mnist",
        "mnist_width": 512,
        "mnist_learning_rate": 0.001,
        "mnist_batch_size": 500,
        "seed": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter.results, "read", lambda run, name, table: tables[table])
        patch.setattr(chapter.results, "provenance", lambda run, name: {"parameters": given})
        first, last = chapter._of_mnist("mine")
    assert (first.epochs, last.epochs) == (1, 20)
    assert first.loss.mean == pytest.approx(0.6, abs=0.001) and last.accuracy.mean == pytest.approx(0.1, abs=0.05)
    assert first.ends is None and last.ends.mean == pytest.approx(90)
    assert last.name == "MNIST MLP, width 512, Adam at 0.001, epoch 20"


def test_the_same_networks_under_two_names_count_once():
    rows = barriers_of_all("digits width", width=64) + barriers_of_all("digits whole", width=64)
    plant("mine", {"barriers": pd.DataFrame(rows)}, "barriers")
    assert len(chapter.recipes("mine")) == 1


def test_the_largest_run_is_shown_whichever_notebook_it_is_of(monkeypatch):
    monkeypatch.delenv("REBASIN_RUN")
    assert chapter.zero_finding() == "Not run yet."
    assert chapter.parts_finding() == "Temperatures and REPAIR were not measured yet."
    plant_barriers("smoke")
    assert (chapter.shown_run(), chapter.sources()[0]) == ("smoke", "barriers")
    plant_accuracy("cpu")
    assert (chapter.shown_run(), chapter.sources()[0]) == ("cpu", "accuracy")
    assert "of 1 recipe at its last epoch, none have" in chapter.zero_finding()
    plant_barriers("cpu")
    assert (chapter.shown_run(), chapter.sources()[0]) == ("cpu", "barriers")


def test_the_figure_has_a_mark_for_each_recipe_and_keeps_zeros_on_its_axes():
    plant_barriers(loss_barrier=0.0, accuracy_barrier=0.0)
    figure = barriers_figures.loss_against_accuracy(chapter.marks("mine"))
    marks = [container.lines[0].get_xydata()[0] for container in figure.axes[0].containers]
    assert len(marks) == 2
    low = np.array(marks).min(0)
    assert low[0] >= barriers_figures.FLOOR["loss"] and low[1] >= barriers_figures.FLOOR["accuracy"]
    assert figure.axes[0].get_xlim()[0] > 0
    plt.close(figure)


def test_what_others_released_is_told_as_drops():
    table = chapter.released_table()
    assert list(table["drop (points)"]) == ["41.7", "7.0", "3.6", "4.1"]
