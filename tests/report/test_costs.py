"""What the tables cost: the committed runs' own time and memory, each network's training once."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping import results
from lab.report import cost_bars, costs


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))
    monkeypatch.delenv("REBASIN_RUN", raising=False)


def plant_cost(run, notebook, training, wall, memory):
    """Let a run have tables of a notebook that cost so many seconds of training, and in all, and so many GB."""
    plant(run, {"nodes": pd.DataFrame({"value": [0.0]})}, notebook)
    path = results.results_folder() / run / f"{notebook}.json"
    cost = {"training_seconds": training, "wall_seconds": wall, "peak_memory_gb": memory}
    path.write_text(json.dumps(json.loads(path.read_text()) | cost))


def test_networks_that_several_notebooks_share_count_once():
    plant_cost("cpu", "train", 7200.0, 60.0, 1.0)
    plant_cost("cpu", "merge", 7200.0, 1800.0, 4.26)
    plant_cost("cpu", "mnist", 3600.0, 1740.0, 2.0)
    plant_cost("smoke", "many", 90000.0, 1.0, 9.0)
    facts = costs.budget()
    assert facts.outcome == "cpu", "the smoke run is not the book's"
    assert facts.values == {"training": "3", "notebooks": "1.0", "memory": "4.3"}
    table = costs.table().set_index("notebook")
    assert list(table.index) == ["train", "merge", "mnist", "many"]
    assert list(table["training its networks"]) == ["120.0\xa0min", "as train", "60.0\xa0min", "1500.0\xa0min"]
    assert list(table["last execution"]) == ["1.0\xa0min", "30.0\xa0min", "29.0\xa0min", "1\xa0s"]


def test_a_bar_has_the_hours_of_networks_once_and_of_the_notebook():
    plant_cost("cpu", "train", 7200.0, 60.0, 1.0)
    plant_cost("cpu", "merge", 7200.0, 1800.0, 4.26)
    plant_cost("smoke", "mnist", 0.0, 20.0, 2.0)
    facts = cost_bars.largest()
    assert facts.outcome == "training" and facts.values["share"] == "79"  # 7200 of 9060 seconds
    assert facts.values["machine"] == costs.table()["machine"][0]
    figure = cost_bars.by_notebook()
    hours, memory = figure.axes
    assert [label.get_text() for label in hours.get_yticklabels()] == ["mnist", "merge", "train"]
    assert [text.get_text() for text in hours.texts] == ["under 1 min", "30 min", "2.0 h"]
    assert [bar.get_width() for bar in hours.patches] == pytest.approx([0, 0, 2, 1 / 180, 0.5, 1 / 60])
    assert [text.get_text() for text in memory.texts] == ["2.0", "4.3", "1.0"]
    plt.close("all")


@pytest.mark.parametrize(("training", "outcome"), [(1.0, "rest"), (100.0, "training")])
def test_what_takes_the_most_is_as_planted(training, outcome):
    assert cost_bars.largest().outcome == "none"
    plant_cost("cpu", "train", training, 50.0, 1.0)
    plant_cost("smoke", "merge", 1e6, 1e7, 1.0)
    assert cost_bars.largest().outcome == outcome, "the smoke run is not the book's"


def test_the_runs_that_were_made_are_named():
    assert costs.budget().outcome == "none"
    assert costs.table().empty
    plant_cost("cpu", "train", 0.0, 1.0, 1.0)
    plant_cost("gpu", "merge", 0.0, 1.0, 1.0)
    assert costs.budget().outcome == "gpu and cpu"
    assert set(costs.table()["training its networks"]) == {"–"}


def test_a_run_of_ones_own_is_in_the_table_and_not_in_the_budget(monkeypatch):
    plant_cost("cpu", "train", 3600.0, 1.0, 1.0)
    plant_cost("mine", "merge", 0.0, 1.0, 1.0)
    monkeypatch.setenv("REBASIN_RUN", "mine")
    assert costs.budget().outcome == "cpu"
    assert list(costs.table()["run"]) == ["cpu", "mine"]


@pytest.mark.parametrize(("address", "outcome"), [("https://example.org/code", "published"), ("", "not published")])
def test_the_page_can_say_where_the_code_is_once_it_has_an_address(tmp_path, monkeypatch, address, outcome):
    (tmp_path / "_config.yml").write_text(f'repository: {{url: "{address}"}}')
    monkeypatch.setattr(costs, "ROOT", tmp_path)
    facts = costs.repository()
    assert facts.outcome == outcome and facts.values == {"address": address}
