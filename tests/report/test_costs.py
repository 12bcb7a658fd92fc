"""What the tables cost: the committed runs' own time and memory, each network's training once."""

import json

import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping import results
from lab.report import costs


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
    assert list(table["training its networks"]) == ["120.0 min", "as train", "60.0 min", "1500.0 min"]
    assert list(table["last execution"]) == ["1.0 min", "30.0 min", "29.0 min", "0.0 min"]


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
