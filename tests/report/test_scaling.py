"""What it costs: exponents and points are those that were measured, and the arithmetic of a cluster is right."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from planting import plant

from lab.bookkeeping import results
from lab.images import Dataset, Split
from lab.networks import build
from lab.report import beside_peers, library, scaling


def exponent(what, axis, time, floor):
    grown = {"time": time, "time_floor": floor, "memory": 1.04, "memory_floor": 2}
    return {"what": what, "axis": axis, "largest": 512, "seconds": 4.0, "mebibytes": 80.0, **grown}


def point(what, axis, networks, width, seconds):
    return {"what": what, "axis": axis, "networks": networks, "width": width, "seconds": seconds, "mebibytes": 7.4}


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """``benchmark(exponents)`` puts these where the page reads them, with two points of training."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(library, "ROOT", tmp_path)

    def write(exponents):
        rows = [point("training", "networks", 8, 64, 0.09), point("training", "networks", 16, 64, 0.2)]
        rows.append(point("training", "width", 8, 128, 0.5))
        table = {"rows": rows, "exponents": exponents, "hardware": {"processor": "Some CPU"}}
        (tmp_path / "benchmarks" / "scaling.json").write_text(json.dumps(table))

    return write


@pytest.mark.parametrize(
    ("time", "outcome", "above"),
    [(1.2, "none above", "none"), (1.3, "some above", "MergeMany"), (2.1, "some above", "MergeMany")],
)
def test_what_grows_faster_than_its_floor_is_named(benchmark, time, outcome, above):
    benchmark([exponent("training", "networks", 0.9, 1), exponent("MergeMany", "networks", time, 1)])
    facts = scaling.networks()
    assert facts.outcome == outcome and facts.values["above"] == above
    assert facts.values["steepest"] == "MergeMany" and facts.values["exponent"] == f"{time:.1f}"
    assert facts.values["machine"] == "Some CPU"


def test_each_axis_has_its_own_exponents(benchmark):
    benchmark([exponent("training", "networks", 1.5, 1), exponent("training", "width", 1.9, 2)])
    assert scaling.networks().outcome == "some above" and scaling.widths().outcome == "none above"
    (row,) = scaling.exponents_table().to_dict("records")
    assert row[""] == "training" and row["networks, to"] == "512" and row["memory by width"] == "1.0"
    assert (row["time by networks"], row["its floor by networks"]) == ("1.5", "1")
    assert (row["time by width"], row["its floor by width"]) == ("1.9", "2")


def test_every_point_stands_in_table_and_figure(benchmark):
    benchmark([])
    assert scaling.points_table()["processor seconds"].tolist() == ["0.09", "0.20", "0.50"]
    figure = scaling.growing()
    lines = [[line for line in panel.lines if line.get_label() == "training"][0] for panel in figure.axes]
    assert list(lines[0].get_xdata()) == [8, 16] and list(lines[1].get_xdata()) == [128]
    plt.close(figure)


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


def plant_cost(notebook, parameters, training, wall=0.0):
    plant("cpu", {"nodes": pd.DataFrame({"value": [0.0]})}, notebook)
    path = results.results_folder() / "cpu" / f"{notebook}.json"
    made = json.loads(path.read_text())
    made |= {"parameters": parameters, "training_seconds": training, "wall_seconds": wall}
    path.write_text(json.dumps(made))


@pytest.mark.parametrize(("training", "outcome"), [(6400.0, "training"), (64.0, "moving")])
def test_a_cluster_trains_its_share_and_one_machine_reads_it_all(own_results, training, outcome):
    plant_cost("train", {"networks": {"models": 64, "width": 512}}, training)
    facts = scaling.cluster("cpu")
    assert facts.outcome == outcome
    if outcome == "training":  # 100 seconds each, 50 of them for each machine
        assert (facts.values["alone"], facts.values["together"]) == ("44", "83")
    # 2.1 million numbers of 4 bytes, 1600 times, at 125 million bytes a second
    assert (facts.values["size"], facts.values["moving"]) == ("13", "1.8")


def test_the_parameters_of_an_mlp_are_those_of_the_network():
    split = Split(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    model = build("mlp", Dataset("", "", split, split, split, (0.5,) * 3, (0.5,) * 3, ""), 16)
    assert scaling.parameters_of_mlp(16) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("trees", "outcome", "missing"), [(5, "some", 45), (50, "all", 0)])
def test_the_trees_that_are_missing_take_what_those_took(own_results, trees, outcome, missing):
    plant_cost("trees", {"trees": trees, "networks": {"models": 32}}, 600.0 * trees, 3000.0)
    facts = scaling.tree("cpu")
    assert facts.outcome == outcome
    assert facts.values["missing"] == str(missing) and facts.values["trees"] == str(trees)
    assert facts.values["minutes"] == "10" and facts.values["rest"] == f"{missing * 600 / 3600:.0f}"


def test_ours_is_told_beside_the_fastest_other(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(library, "ROOT", tmp_path)
    contests = [("a pair", 0.5, 1.0), ("a small pair", 3.0, 1.0), ("even", 1.05, 1.0), ("alone", 9.0, None)]
    rows = [
        {
            "what": what,
            **{"ours_seconds": seconds, "ours_over_floor": 2 * seconds, "floor": "products", "floor_seconds": 0.5},
            **{"peer": "other" if other else "–", "peer_seconds": other, "ours_over_peer": seconds if other else None},
            "threads": 1,
        }
        for what, seconds, other in contests
    ]
    table = {"rows": rows, "hardware": {"processor": "Some CPU"}}
    (tmp_path / "benchmarks" / "bench.json").write_text(json.dumps(table))
    facts = beside_peers.ratios()
    assert facts.outcome == "some behind"
    named = ("contests", "ahead", "behind", "worst", "times")
    assert [facts.values[name] for name in named] == ["3", "1", "a small pair", "a small pair", "3.0"]
    shown = beside_peers.table()
    assert shown["fastest other"].tolist() == ["other, 1 s"] * 3 + ["–"]
    assert shown["ours over it"].tolist()[:2] == ["0.50", "3.00"]
