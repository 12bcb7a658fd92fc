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


def plant_plane(halfway, run="mine"):
    """Let a run have a plane for each recipe, with these losses ``halfway``: to B, to π(B); ends have 0.1 nats.

    On the grid the loss is 1 plus x plus y; accuracy is 0.5 less a tenth of the loss.
    """
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
    plant(run, {name: pd.concat(parts) for name, parts in tables.items()}, "plane")


def named(table, recipe, dataset):
    return table.assign(recipe=recipe, dataset=dataset, architecture="mlp", width=8, epochs=1, images=50)


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


def test_tables_have_both_lines_and_the_distance():
    plant_plane([(0.9, 0.2), (1.2, 0.3)])
    table = plane.lines_table("mine")
    assert list(table["loss (nats)"])[:4] == ["0.100", "0.100", "0.900", "0.200"]
    assert list(table["accuracy (%)"])[:4] == ["49.0", "49.0", "41.0", "48.0"]
    assert set(plane.distances_table("mine").iloc[:, 1]) == {"0.89"}  # the root of 0.4² + 0.8²


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
