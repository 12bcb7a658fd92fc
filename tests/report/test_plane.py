"""The plane's facts and pictures: what is drawn is what the tables have."""

import json
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import plant

from lab.report import plane

RECIPES = {"mnist mlp": "mnist", "digits mlp": "digits"}
LAMS = (0.0, 0.25, 0.5, 0.75, 1.0)


def plant_plane(*halfway, run="mine"):
    """Let a run have planes after so many epochs: of each recipe the losses ``halfway`` to B, and to π(B).

    Ends have 0.1 nats. On the grid the loss is 1 plus x plus y; accuracy is 0.5 less a tenth of the loss.
    """
    parts = [tables_of(after, epochs) for epochs, after in enumerate(halfway, 1)]
    plant(run, {name: pd.concat([tables[name] for tables in parts]) for name in parts[0]}, "plane")


def tables_of(halfway, epochs):
    """The tables of all recipes after some epochs."""
    tables = {"grid": [], "corners": [], "lines": []}
    for (recipe, dataset), losses in zip(RECIPES.items(), halfway, strict=True):
        sides = (-0.25, 0.25, 0.75, 1.25)
        grid = [(x, y, 1 + x + y) for x in sides for y in sides]
        lines = [
            (matcher, lam, 0.1 + (loss - 0.1) * (1 - 2 * abs(lam - 0.5)))
            for matcher, loss in zip(("none", "weights"), losses, strict=True)
            for lam in LAMS
        ]
        tables["grid"].append(with_accuracy(pd.DataFrame(grid, columns=["x", "y", "value"]), recipe, dataset))
        tables["lines"].append(with_accuracy(pd.DataFrame(lines, columns=["matcher", "lam", "value"]), recipe, dataset))
        corners = pd.DataFrame({"corner": ["A", "B", "π(B)"], "x": [0, 1, 0.4], "y": [0, 0, 0.8]})
        tables["corners"].append(named(corners, recipe, dataset))
    return {name: pd.concat(parts).assign(epochs=epochs) for name, parts in tables.items()}


def named(table, recipe, dataset):
    return table.assign(recipe=recipe, dataset=dataset, architecture="mlp", width=8, images=50)


def with_accuracy(loss, recipe, dataset):
    both = [loss.assign(metric="loss"), loss.assign(metric="accuracy", value=0.5 - loss["value"] / 10)]
    return named(pd.concat(both), recipe, dataset)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("halfway", "outcome"),
    [
        ([(0.9, 0.2), (1.2, 0.3)], "lower"),
        ([(0.9, 0.2), (0.3, 1.2)], "lower for some"),
        ([(0.2, 0.9), (0.3, 1.2)], "no lower"),
    ],
)
def test_whether_the_way_to_the_matched_network_is_lower_is_as_planted(halfway, outcome):
    plant_plane(halfway)
    facts = plane.midpoints("mine")
    assert facts.outcome == outcome
    assert facts.values["mnist_mlp_none"] == f"{halfway[0][0]:.2f}"
    assert facts.values["digits_mlp_weights"] == f"{halfway[1][1]:.2f}"
    assert facts.values["mnist_mlp_ends"] == "0.10" and facts.values["images"] == "50"
    assert facts.values["mnist_mlp_width"] == "8"


@pytest.mark.parametrize(
    ("halfway", "outcome"),
    [
        ([[(0.9, 0.5), (1.2, 0.5)], [(0.9, 0.2), (1.2, 0.4)]], "falls"),
        ([[(0.9, 0.5), (1.2, 0.5)], [(0.9, 0.2), (1.2, 0.8)]], "falls for some"),
        ([[(0.9, 0.5), (1.2, 0.5)], [(0.9, 0.7), (1.2, 0.8)]], "rises"),
        ([[(0.9, 0.5), (1.2, 0.5)]], "one time"),
    ],
)
def test_whether_the_barrier_falls_in_training_is_as_planted(halfway, outcome):
    plant_plane(*halfway)
    facts = plane.in_training("mine")
    assert facts.outcome == outcome
    assert facts.values["mnist_mlp_weights_first"] == "0.40" and facts.values["mnist_mlp_epochs_first"] == "1"
    last = halfway[-1][1][1] - 0.1
    assert facts.values["digits_mlp_weights_last"] == f"{last:.2f}" and facts.values["digits_mlp_none_last"] == "1.10"
    assert facts.values["digits_mlp_epochs_last"] == str(len(halfway))


def test_tables_have_both_lines_and_the_distance_after_all_epochs():
    plant_plane([(0.9, 0.2), (1.2, 0.3)], [(0.7, 0.1), (1.2, 0.3)])
    table = plane.lines_table("mine")
    assert list(table["networks"]) == ["MNIST MLP"] * 2 + ["digits MLP"] * 2 and list(table["epochs"]) == ["1", "2"] * 2
    assert list(table.iloc[0])[2:] == ["0.100", "0.100", "0.900", "0.200", "49.0", "49.0", "41.0", "48.0"]
    assert list(table["loss halfway to B (nats)"]) == ["0.900", "0.700", "1.200", "1.200"]
    assert set(plane.distances_table("mine").iloc[:, 2]) == {"0.89"}  # the root of 0.4² + 0.8²


def test_the_front_page_and_the_figure_have_the_last_epochs():
    plant_plane([(0.9, 0.2), (1.2, 0.3)], [(0.7, 0.1), (1.1, 0.3)])
    assert plane.midpoints("mine").values["mnist_mlp_none"] == "0.70"
    assert "0.70 nats" in plane.along("mine") and "0.90 nats" not in plane.along("mine")


def test_the_last_epochs_are_shown_first_and_all_in_the_same_colours():
    plant_plane([(0.9, 0.2), (1.2, 0.3)], [(0.7, 0.1), (1.1, 0.3)])
    html = plane.while_training("mine")
    shown = re.findall(r'<div class="explorer-snapshot" data-spoken="[^"]*"( hidden)?>', html)
    assert shown == [" hidden", ""] * 2
    assert html.count("Epochs of training: <strong") == 2 and html.count(">2</strong>") == 2
    keys = re.findall(r">loss ([\d.]+)</text>.*?>([\d.]+) nats or more<", html)
    assert len(keys) == 4 and keys[0] == keys[1] and keys[2] == keys[3]


def test_networks_that_were_looked_at_once_have_one_slider():
    plant_plane([(0.9, 0.2), (1.2, 0.3)])
    assert plane.while_training("mine").count('type="range"') == 1


def test_a_panel_is_drawn_for_each_pair():
    plant_plane([(0.9, 0.2), (1.2, 0.3)])
    figure = plane.landscape("mine")
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["MNIST MLP", "digits MLP"]
    plt.close("all")


def test_the_smoothed_map_keeps_the_losses_of_the_grid():
    plant_plane([(0.9, 0.2), (1.2, 0.3)])
    shown = plane.planes("mine")[0]
    x, y, loss = shown.smooth()
    assert loss[0, 0] == pytest.approx(0.5) and loss[-1, -1] == pytest.approx(3.5)
    across, up = abs(x - 0.25).argmin(), abs(y - 0.75).argmin()
    assert loss[up, across] == pytest.approx(2.0, rel=0.02), "a point of the grid, x to the right and y upwards"


def test_the_slider_has_a_place_and_words_for_every_step():
    plant_plane([(0.9, 0.2), (1.2, 0.3)])
    html = plane.along("mine")
    words = [json.loads(found.replace("&quot;", '"')) for found in re.findall(r'data-words="(.*?)"', html)]
    assert words[0] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert words[1][2] == "0.90 nats, 41.0 %" and words[2][2] == "0.20 nats, 48.0 %"
    places = [json.loads(found) for found in re.findall(r'data-places="(.*?)"', html)]
    assert len(places) == 8 and {len(of_steps) for of_steps in places} == {5}
    (start_none, *_, end_none), (start_matched, *_, end_matched) = places[:2]
    assert start_none == start_matched and end_matched[1] < end_none[1], "π(B) lies above B"
    assert "0.90 nats, 41.0 %</span>" in html, "without a script it stands halfway"
