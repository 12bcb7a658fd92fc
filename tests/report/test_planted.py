"""Planted permutations in the book: facts, tables and figure are those of the table that was planted."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import plant

from lab.report import planted
from lab.report.claims import decide


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


TIMES = {"mlp": (0.5, 6, 1.8), "resnet50": (34.4, 12, 25.6), "resnet20 x1": (0.25, 4, 0.29)}


def times_of(networks):
    """The table ``times``: three pairs of each network, of (seconds, sweeps, millions of weights)."""
    rows = []
    for network, (seconds, sweeps, weights) in networks.items():
        rows += [] if network == "mlp" else [(network, "tracing_seconds", 0, 7.25)]
        for node, factor in enumerate((1.0, 1.2, 0.9)):
            rows += [(network, "seconds", node, seconds * factor), (network, "sweeps", node, sweeps)]
            rows += [(network, "parameters", node, weights)]
    table = pd.DataFrame(rows, columns=["network", "metric", "node", "value"]).astype({"value": float})
    kinds = table["network"].map(lambda name: "trained" if name == "mlp" else "fresh")
    return table.assign(weights=kinds, threads=2, device="cpu")


def recovered_of(trials):
    """The table ``recovered`` from a triple (recovered, sweeps, ties) for each trial of each network."""
    rows = []
    for network, triples in trials.items():
        for node, triple in enumerate(triples):
            for metric, value in zip(("recovered", "sweeps", "ties"), triple, strict=True):
                rows.append((network, metric, node, float(value), 1, "trained" if network == "mlp" else "fresh"))
    return pd.DataFrame(rows, columns=["network", "metric", "node", "value", "n_leaves", "weights"])


def plant_trials(trials, times=TIMES):
    """Let a run have these trials of the MLP, and two of a fresh ResNet20."""
    recovered = recovered_of({"mlp": trials, "resnet20 x1": [(1, 3, 0), (1, 4, 0)]})
    plant("mine", {"recovered": recovered, "times": times_of(times)}, "planted")


MIXED = [(1, 3, 0), (1, 4, 0)]
NOT_ALL = [(1, 3, 0)] * 7 + [(0, 3, 0)]


@pytest.mark.parametrize(
    ("trials", "outcome", "values"),
    [
        (MIXED * 4, "too few, replicated", {"recovered": "8", "n": "8", "share": "63 to 100 %", "sweeps": "3 to 4"}),
        ([(1, 3, 0)] * 8, "too few, replicated", {"sweeps": "3", "mean_sweeps": "3.0 [3.0, 3.0]", "needed": "368"}),
        (MIXED * 184, "replicated, replicated", {"recovered": "368", "n": "368", "share": "99 to 100 %"}),
        (MIXED * 183, "too few, replicated", {"recovered": "366", "n": "366", "share": "99 to 100 %"}),
        ([(0, 3, 0)] * 7 + [(1, 3, 0)] * 93, "not replicated, replicated", {"recovered": "93", "n": "100"}),
        ([(1, 7, 0), (1, 8, 0)] * 4, "too few, not replicated", {"sweeps": "7 to 8"}),
        ([(1, 2, 0), (1, 7, 0)] * 4, "too few, inconclusive", {"sweeps": "2 to 7"}),
        (NOT_ALL, "too few, replicated", {"recovered": "7", "n": "8"}),
        (NOT_ALL * 50, "not replicated, replicated", {"recovered": "350", "n": "400"}),
        ([(0, 3, 0)] + MIXED * 184, "inconclusive, replicated", {"recovered": "368", "n": "369"}),
        (MIXED, "too few, too few", {"n": "2", "share": "16 to 100 %"}),
    ],
    ids=[
        "all of eight", "all alike", "all of enough", "all of nearly enough", "seldom not", "slow", "sweeps undecided",
        "not all", "too seldom", "not all of enough", "too few",
    ],
)  # fmt: skip
def test_the_outcome_is_the_verdict_and_the_values_are_those_planted(trials, outcome, values):
    plant_trials(trials)
    facts = planted.recovery("mine")
    assert facts.outcome == outcome
    assert values.items() <= facts.values.items()
    assert "nan" not in "".join(facts.values.values())
    (claim,) = decide("mine", ["G2"])
    assert outcome == ", ".join(condition.verdict for condition in claim.conditions)


def test_ties_are_counted():
    plant_trials([(1, 3, 2)] * 3 + [(1, 3, 0)] * 5)
    assert planted.ties("mine").outcome == "some" and planted.ties("mine").values["tied"] == "3"
    assert list(planted.recovered_table("mine")["with units of equal weights"]) == ["3", "0"]
    plant_trials(MIXED)
    assert planted.ties("mine").outcome == "none"


def test_the_tables_of_a_run():
    plant_trials(NOT_ALL)
    recovered = planted.recovered_table("mine").set_index("network")
    assert recovered.loc["MLP", "recovered"] == "7 of 8" and recovered.loc["ResNet20 x1", "recovered"] == "2 of 2"
    assert recovered.loc["ResNet20 x1", "sweeps (in how many trials)"] == "3 (1), 4 (1)"
    times = planted.times_table("mine").set_index("network")
    assert list(times.index) == ["MLP", "ResNet50", "ResNet20 x1", "ResNet20 x32"]
    assert list(times["seconds"]) == ["0.50", "34", "0.25", "not run"]
    assert list(times["paper's seconds"]) == ["3", "33", "", "194"]
    assert list(times["tracing (s)"]) == ["", "7.2", "7.2", ""]
    assert times.loc["ResNet50", "each pair (s)"] == "34, 41, 31"


def test_sizes_that_were_not_run_are_named():
    plant_trials(MIXED, {"mlp": TIMES["mlp"]})
    facts = planted.times("mine")
    assert facts.outcome == "sizes missing" and facts.values["missing"] == "ResNet50 and ResNet20 x32"
    assert facts.values["mlp"] == "0.50" and facts.values["threads"] == "2"
    plant_trials(MIXED, TIMES | {"resnet20 x32": (200, 5, 300)})
    assert planted.times("mine").outcome == "all of the paper's sizes"
    assert planted.times("mine").values["resnet20_x32"] == "200"


@pytest.mark.parametrize(("weights", "with_paper"), [(1.8, True), (0.013, False)])
def test_the_papers_mlp_stands_beside_one_of_its_size_only(weights, with_paper):
    plant_trials(MIXED, {"mlp": (0.5, 6, weights), "resnet20 x4": (1.0, 4, 4.6)})
    figure = planted.seconds_by_size("mine")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MLP", "ResNet20"]
    assert ("the paper's,\non a V100" in [text.get_text() for text in figure.axes[0].texts]) == with_paper
    plt.close("all")


def test_networks_stand_by_size():
    names = ["resnet20 x16", "resnet20 x4", "resnet50", "mlp"]
    assert planted.by_size(names) == ["mlp", "resnet50", "resnet20 x4", "resnet20 x16"]
