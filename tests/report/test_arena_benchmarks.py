"""What the book says of the arena's benchmarks is what they measured, whichever way it came out."""

import json

import pytest

from lab.report import arena_benchmarks, library


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """``figures(name, table)`` puts a benchmark's figures where the book reads them."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(library, "ROOT", tmp_path)
    return lambda name, table: (tmp_path / "benchmarks" / f"{name}.json").write_text(json.dumps(table))


def merged(networks, method, accuracy, mended="none"):
    return {"networks": networks, "method": method, "mended": mended, "accuracy": accuracy}


def test_merges_of_other_peoples_networks_are_told_by_their_number(figures):
    parents = {"networks": 2, "method": "parents", "lowest": 0.848, "highest": 0.887}
    rows = [parents, merged(2, "weights", 0.921), merged(2, "weights", 0.95, "repair"), merged(2, "pleas", 0.934)]
    rows += [merged(8, "weights", 0.947), merged(8, "pleas", 0.94), merged(8, "pleas_tree", 0.952)]
    figures("outside", {"rows": rows})
    facts = arena_benchmarks.outside()
    assert facts.outcome == "above at 2, below at 8"
    assert (
        facts.values["pleas_2"] == "93.4" and facts.values["weights_8"] == "94.7" and facts.values["lowest_2"] == "84.8"
    )
    table = arena_benchmarks.outside_table().set_index(["method", "mending"])
    assert table.loc[("one of them", ""), "2 networks (%)"] == "84.8 to 88.7"
    assert table.loc[("weight matching", "after REPAIR"), "2 networks (%)"] == "95.0"
    assert table.loc[("PLeaS in a tree", "")].tolist() == ["–", "95.2"]


@pytest.mark.parametrize(
    ("adam", "runs", "outcome"), [(12.0, 1.1, "met, met, met"), (4.0, 1.31, "met, missed, missed")]
)
def test_each_bar_of_speed_is_told_as_met_or_missed(figures, adam, runs, outcome):
    seconds = {"forward passes": 9.6, "gram matrices": 60.0, "solution": 40.4, "Adam": 500.0}
    left = {"averaged": 0.3, "closed form": 0.1, "Adam": 0.125}
    figures(
        "fitting",
        {"seconds": seconds, "left": left, "adam_over_closed_form": adam, "runs_in_parents_time": {"1.2": runs}},
    )
    facts = arena_benchmarks.fitting()
    assert facts.outcome == outcome
    assert (facts.values["took"], facts.values["left_by_adam"], facts.values["solution"]) == ("100", "12.5", "40.4")


def test_the_peak_of_pleas_is_that_of_the_pass_or_of_the_fit(figures):
    rows = []
    for kind, pleas in (("mlp", 480.2), ("vgg11", 475.6)):
        for method, mebibytes in (("grams", 470.6), ("pleas", pleas), ("pleas_refitted", 600.0)):
            row = {"setting": f"cifar10 halves {kind}", "method": method, "mebibytes": mebibytes, "spread": 6.0}
            rows.append(row)
    figures("memory", {"rows": rows})
    facts = arena_benchmarks.memory()
    assert facts.outcome == "mlp fit, vgg11 pass"
    assert facts.values["pleas_mlp"] == "480" and facts.values["grams_vgg11"] == "471"


@pytest.mark.parametrize(
    ("convolutions", "joining", "outcome"), [(95, 3, "convolutions"), (60, 40, "joining"), (60, 0, "elsewhere")]
)
def test_where_the_time_of_a_merge_goes_is_told_by_shares_of_the_excess(figures, convolutions, joining, outcome):
    parent = {"milliseconds": 70, "convolutions": 60, "joining": 0, "convolutions_calls": 21}
    merge = {"milliseconds": 112, "convolutions": convolutions, "joining": joining, "convolutions_calls": 45}
    figures("running", {"rows": [{"network": "parent", **parent}, {"network": "merge of size 1.2", **merge}]})
    facts = arena_benchmarks.running()
    assert facts.outcome == outcome
    assert facts.values["times"] == "1.60" and facts.values["calls"] == "45"
    assert facts.values["convolutions"] == f"{100 * (convolutions - 60) / 42:.0f}"
