"""Which run a chapter shows, and what it says its tables were measured on."""

import json
import re

import numpy as np
import pytest
from planting import TREE_WINS, plant_accuracy

from lab.bookkeeping import results
from lab.report import page, words
from lab.report.statistics import Interval


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)


def provenance_of(run):
    return results.results_folder() / run / "accuracy.json"


def test_the_largest_preset_comes_first_and_other_runs_only_when_asked_for():
    for run in ("smoke", "gpu", "other", "cpu"):
        plant_accuracy(run, TREE_WINS, 1)
    assert page.runs("accuracy") == ["gpu", "cpu", "smoke"]
    assert page.shown_run("accuracy") == "gpu"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", ["cpu", "smoke"]),
        ("mine", ["mine", "cpu", "smoke"]),
        ("smoke", ["smoke", "cpu"]),
        ("never", ["cpu", "smoke"]),
    ],
)
def test_a_run_of_ones_own_comes_first_where_it_is_asked_for(monkeypatch, own, expected):
    for run in ("smoke", "cpu", "mine"):
        plant_accuracy(run, TREE_WINS, 1)
    monkeypatch.setenv("REBASIN_RUN", own)
    assert page.runs("accuracy") == expected
    assert page.shown_run("accuracy") == expected[0]


@pytest.mark.parametrize("run", ["cpu", "gpu"])
def test_a_reference_run_from_uncommitted_code_is_not_shown(run):
    plant_accuracy(run, TREE_WINS, 1)
    assert page.runs("accuracy") == [run]
    provenance_of(run).write_text(provenance_of(run).read_text().replace('"clean": true', '"clean": false'))
    assert page.runs("accuracy") == []


def test_a_chapter_without_any_run_says_how_to_make_one():
    message = "no run holds the tables of notebooks/accuracy.ipynb: `make reproduce`"
    with pytest.raises(FileNotFoundError, match=message):
        page.shown_run("accuracy")


def test_what_a_table_was_measured_on_is_its_provenance():
    plant_accuracy("cpu", TREE_WINS, 1)
    made = results.provenance("cpu", "accuracy")
    measured = page.measured_on("cpu", "accuracy")
    assert measured["run"] == "cpu" and measured["date"] == made["date"]
    assert "8 MLPs, width 64, 20 epochs" in measured["networks"]
    assert measured["data"] == f"scikit-learn's digits [{made['dataset']['fingerprint']}]"
    assert measured["commit"] == (made["commit"] or "no commit")[:10]


def test_data_sets_with_commas_in_their_titles_are_told_apart():
    plant_accuracy("cpu", TREE_WINS, 1)
    titles = "MNIST, CIFAR-10, JPEG re-encoded, CIFAR-10, JPEG re-encoded, classes 0, 1"
    data = {"name": "mnist, cifar10, cifar10", "title": titles, "fingerprint": "aa, bb, cc"}
    provenance_of("cpu").write_text(json.dumps(json.loads(provenance_of("cpu").read_text()) | {"dataset": data}))
    measured = page.measured_on("cpu", "accuracy")
    expected = "MNIST [aa], CIFAR-10 (JPEG re-encoded) [bb], CIFAR-10 (JPEG re-encoded, classes 0, 1) [cc]"
    assert measured["data"] == expected


def test_a_table_of_other_code_or_other_rules_says_so(monkeypatch):
    plant_accuracy("smoke", TREE_WINS, 1)
    with monkeypatch.context() as patch:
        patch.setattr(results, "step_key", lambda name, parameters: "another")
        assert "the code has changed since" in page.measured_on("smoke", "accuracy")["commit"]
    with monkeypatch.context() as patch:
        patch.setattr(results, "claims_digest", lambda name: "another")
        assert "the rules of the claims have changed since" in page.measured_on("smoke", "accuracy")["commit"]


def test_a_table_from_uncommitted_code_says_so():
    plant_accuracy("smoke", TREE_WINS, 1)
    path = provenance_of("smoke")
    for state in ("true", "false"):
        path.write_text(re.sub('"clean": (true|false)', f'"clean": {state}', path.read_text()))
        commit = page.measured_on("smoke", "accuracy")["commit"]
        assert ("with uncommitted changes" in commit) == (state == "false")


def test_a_table_under_a_changed_key_says_by_which_code_it_was_made():
    plant_accuracy("cpu", TREE_WINS, 1)
    note = {"from_key": "old", "from_commit": "0123456789abcdef", "date": "2026-01-01"}
    made = json.loads(provenance_of("cpu").read_text()) | {"rekeyed": [note]}
    provenance_of("cpu").write_text(json.dumps(made))
    assert "by the code of 0123456789" in page.measured_on("cpu", "accuracy")["commit"]


def test_a_parameter_is_that_of_the_run_that_is_shown():
    plant_accuracy("smoke", TREE_WINS, 8)
    made = results.provenance("smoke", "accuracy")
    assert page.parameter("accuracy", "barrier_points") == made["parameters"]["barrier_points"]
    assert page.parameter("accuracy", "networks.width") == made["parameters"]["networks"]["width"]


def parameters():
    """The table of the parameters of notebook accuracy: its columns, and the words of each row by its first."""
    rows = re.findall(r"<tr.*?>(.*?)</tr>", page.parameters_table("accuracy"), re.DOTALL)
    cells = [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row)] for row in rows]
    return cells[0][1:], {name: values for name, *values in cells[1:]}


def test_the_parameters_of_each_preset_stand_side_by_side():
    plant_accuracy("smoke", TREE_WINS, 8)
    columns, rows = parameters()
    assert columns == ["smoke", "cpu", "gpu"]
    assert rows["networks.models"] == ["8", "64", "1600"]
    assert rows["barrier_points"][0] == str(results.declared_parameters("accuracy")["barrier_points"])


def test_the_parameters_of_a_run_of_ones_own_stand_beside_those_of_the_presets(monkeypatch):
    plant_accuracy("mine", TREE_WINS, 8)
    monkeypatch.setenv("REBASIN_RUN", "mine")
    columns, rows = parameters()
    assert columns == ["smoke", "cpu", "gpu", "mine"] and rows["run"][-1] == "&#x27;mine&#x27;"


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (Interval(45.678, 44.91, 46.54, 8), False, "45.7 [44.9, 46.5]"),
        (Interval(1.24, -0.31, 2.79, 8), True, "+1.2 [−0.3, +2.8]"),
        (Interval(-8.55, -9.0, -8.1, 8), False, "−8.6 [−9.0, −8.1]"),
        (Interval(45.678, np.nan, np.nan, 3), False, "45.7"),
        (Interval(-1.24, np.nan, np.nan, 1), True, "−1.2"),
    ],
)
def test_an_interval_is_written_with_a_true_minus_and_alone_where_there_is_none(value, signed, text):
    assert words.points(value, signed) == text


def test_what_has_commas_is_listed_with_semicolons():
    assert words.listed(["a"]) == "a" and words.listed(["a", "b", "a", "c"]) == "a, b and c"
    assert words.listed(["MLP, width 8", "VGG"]) == "MLP, width 8; and VGG"
    assert words.listed(["a", "b, c", "d"]) == "a; b, c; and d"
    assert words.listed(["a", "b", "c"], "or") == "a, b or c" and words.listed(["a, b", "c"], "or") == "a, b; or c"
