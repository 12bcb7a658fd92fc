"""A planted permutation counts as recovered only where the weights are, and the chapter says what was measured."""

import dataclasses
import functools

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn

from lab.bookkeeping import results
from lab.data import load
from lab.measures import planted
from lab.measures.planted import Network, fresh_network, recover, same_bits, times_table, trained_network
from lab.report import planted_chapter, planted_figures
from lab.report.draw import themed
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace


class Vectors:
    """In place of a data set: what the small network takes."""

    example = torch.zeros(2, 12, dtype=torch.float64)


@pytest.fixture(scope="module")
def network(net, random_weights):
    return trained_network(net, random_weights(4), Vectors)


@functools.cache
def small_resnet():
    return fresh_network("resnet20 x1", load("digits"), seed=0)


def values(table, metric):
    return table[table["metric"] == metric].sort_values("node")["value"].tolist()


def test_random_permutations_are_recovered_to_the_last_bit(network):
    found = recover(network, 4, 0, "cpu")
    assert values(found, "recovered") == [1.0] * 4
    assert values(found, "ties") == [0.0] * 4
    assert all(2 <= sweeps <= 6 for sweeps in values(found, "sweeps"))
    assert set(found["network"]) == {"mlp"} and set(found["n_leaves"]) == {1} and set(found["weights"]) == {"trained"}


def test_a_residual_network_is_traced_and_recovered():
    network = small_resnet()
    assert network.tracing_seconds > 0
    found = recover(network, 1, 0, "cpu")
    assert values(found, "recovered") == [1.0]
    assert set(found["weights"]) == {"fresh"}


def test_instances_are_independent_and_depend_on_the_seed_alone():
    network = small_resnet()
    assert same_bits(network.weights(0), network.weights(0))
    assert not same_bits(network.weights(0), network.weights(1))


def test_a_matcher_that_stays_at_the_identity_recovers_nothing(network, monkeypatch):
    def lazy(spec, a, b, seed):
        identity = Permutation.identity(spec)
        return dataclasses.replace(matched(spec, a, b, seed), permutation=identity)

    matched = planted.weight_matching
    monkeypatch.setattr(planted, "weight_matching", lazy)
    found = recover(network, 2, 1, "cpu")
    assert values(found, "recovered") == [0.0, 0.0]
    assert values(found, "ties") == [0.0, 0.0]


def test_what_was_recovered_along_another_spec_is_not_read(network, monkeypatch):
    recover(network, 1, 0, "cpu")
    spec, left_out = network.spec, next(iter(network.spec.sizes))
    sizes = {group: size for group, size in spec.sizes.items() if group != left_out}
    parts = {key: tuple(part for part in some if part.group != left_out) for key, some in spec.parts.items()}
    other = dataclasses.replace(network, spec=PermutationSpec(sizes, parts, spec.shapes))
    monkeypatch.setattr(planted, "weight_matching", lambda *args, **kwargs: pytest.fail("matched again"))
    recover(network, 1, 0, "cpu")
    with pytest.raises(pytest.fail.Exception, match="matched again"):
        recover(other, 1, 0, "cpu")


def test_dead_units_may_change_places():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    drawn = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(1, *each.shape, generator=drawn) for key, each in net.state_dict().items()}
    weights["0.weight"][:, 3:], weights["0.bias"][:, 3:], weights["2.weight"][:, :, 3:] = 0, 0, 0
    network = Network("dead", trace(net, torch.randn(2, 4)), lambda k: {key: w[k] for key, w in weights.items()})
    found = pd.concat([recover(network, 1, seed, "cpu") for seed in range(8)])
    assert set(values(found, "recovered")) == {1.0}
    ties = values(found, "ties")
    assert set(ties) <= {0.0, 2.0, 3.0} and max(ties) > 0, "three units are equal, and some came out elsewhere"


def test_a_finished_trial_is_not_matched_again(network, monkeypatch):
    first = recover(network, 2, 0, "cpu")

    def refuse(*args, **kwargs):
        raise AssertionError("matched again")

    monkeypatch.setattr(planted, "weight_matching", refuse)
    assert recover(network, 2, 0, "cpu").equals(first)
    with pytest.raises(AssertionError, match="matched again"):
        recover(network, 2, 1, "cpu")


def test_times_are_of_independent_pairs(network, monkeypatch):
    pairs = []
    matched = planted.weight_matching

    def watched(spec, a, b, seed):
        pairs.append((a, b, seed))
        return matched(spec, a, b, seed)

    monkeypatch.setattr(planted, "weight_matching", watched)
    table = times_table([network], 2, 5, "cpu")
    assert [seed for _, _, seed in pairs] == [5, 6]
    for number, (a, b, _) in enumerate(pairs):
        assert same_bits(a, network.weights(2 * number)) and same_bits(b, network.weights(2 * number + 1))
    assert all(seconds > 0 for seconds in values(table, "seconds"))
    count = sum(each.numel() for each in network.weights(0).values())
    assert values(table, "parameters") == [count / 1e6] * 2
    assert set(table["metric"]) == {"seconds", "sweeps", "parameters"}
    assert set(table["threads"]) == {1}


def test_tracing_is_told_once():
    table = times_table([small_resnet()], 1, 0, "cpu")
    assert values(table, "tracing_seconds") == [small_resnet().tracing_seconds]
    assert values(table, "parameters") == [pytest.approx(0.27, abs=0.05)]


@pytest.mark.parametrize("name", ["resnet20", "resnet20 x", "resnet18", "mlp"])
def test_an_unknown_network_is_named(name):
    with pytest.raises(ValueError, match=f"unknown network '{name}': there are resnet50 and resnet20 x1"):
        fresh_network(name, load("digits"), 0)


def test_one_trained_network_makes_no_pair(net, random_weights):
    with pytest.raises(ValueError, match="two trained models at least, got 1"):
        trained_network(net, random_weights(1), Vectors)


def test_the_same_bits_are_the_same_names_too():
    one = {"a": torch.ones(2)}
    assert same_bits(one, {"a": torch.ones(2)})
    assert not same_bits(one, {"b": torch.ones(2)})
    assert not same_bits(one, {"a": torch.tensor([1.0, 1.0 + 1e-7])})


@functools.cache
def begun():
    experiment = results.begin("planted", results.declared_parameters("planted") | {"run": "mine"})
    return dataclasses.replace(experiment, code=experiment.code | {"clean": True})


def recovered_rows(network, trials):
    """Rows of the table ``recovered`` from a triple (recovered, sweeps, ties) for each trial."""
    return [
        (network, metric, node, float(value), 1, "trained" if network == "mlp" else "fresh")
        for node, trial in enumerate(trials)
        for metric, value in zip(planted.METRICS, trial, strict=True)
    ]


TIMES = {"mlp": (0.5, 6, 1.8), "resnet50": (34.4, 12, 25.6), "resnet20 x1": (0.25, 4, 0.29)}


def times_of(networks):
    rows = []
    for network, (seconds, sweeps, weights) in networks.items():
        rows += [] if network == "mlp" else [(network, "tracing_seconds", 0, 7.25)]
        for node, factor in enumerate((1.0, 1.2, 0.9)):
            rows += [(network, "seconds", node, seconds * factor), (network, "sweeps", node, sweeps)]
            rows += [(network, "parameters", node, weights)]
    table = pd.DataFrame(rows, columns=["network", "metric", "node", "value"]).astype({"value": float})
    return table.assign(weights=table["network"].map(lambda name: "trained" if name == "mlp" else "fresh"), threads=2)


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """``plant(trials)`` lets a run have these trials of the MLP, as triples (recovered, sweeps, ties)."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))
    monkeypatch.setenv("REBASIN_RUN", "mine")

    def write(trials, networks=TIMES):
        rows = recovered_rows("mlp", trials) + recovered_rows("resnet20 x1", [(1, 3, 0), (1, 4, 0)])
        table = pd.DataFrame(rows, columns=["network", "metric", "node", "value", "n_leaves", "weights"])
        tables = {"recovered": table, "times": times_of(networks).assign(device="cpu")}
        results.finish(begun(), load("digits"), tables, models="some MLPs")

    return write


MIXED = [(1, 3, 0), (1, 4, 0)]
NOT_ALL = [(1, 3, 0)] * 7 + [(0, 3, 0)]


@pytest.mark.parametrize(
    ("trials", "opening", "evidence"),
    [
        (MIXED * 4, "A planted permutation is recovered exactly, in as few sweeps as the paper says",
         "in 8 of 8 MLPs trained on scikit-learn's digits, permuted at random, weight matching finds the way back to "
         "the last bit (exact 95 % interval of the share: 63 to 100 %), after 3 to 4 sweeps, 3.5 ["),
        ([(1, 3, 0)] * 8, "A planted permutation is recovered exactly, in as few sweeps as the paper says",
         "after 3 sweeps, 3.0 [3.0, 3.0] in the mean (n = 8; the paper: 3 to 4)"),
        ([(1, 4, 0), (1, 4, 0), (1, 5, 0)] * 30, "A planted permutation is recovered exactly, in as few sweeps as "
         "the paper says", "after 4 to 5 sweeps, 4.3 ["),
        ([(0, 3, 0)] * 7 + [(1, 3, 0)] * 93, "A planted permutation is not always recovered, against the paper",
         "in 93 of 100 MLPs"),
        ([(1, 7, 0), (1, 8, 0)] * 4, "A planted permutation is recovered exactly, but not in the paper's three to four",
         "after 7 to 8 sweeps"),
        ([(1, 2, 0), (1, 7, 0)] * 4, "A planted permutation is recovered exactly, though it is not decided whether",
         "after 2 to 7 sweeps"),
        ([(0, 3, 0)] * 7 + [(1, 3, 0)], "A planted permutation is not always recovered, against the paper",
         "in 1 of 8 MLPs"),
        (NOT_ALL, "Whether a planted permutation is always recovered is not decided", "in 7 of 8 MLPs"),
        (MIXED, "This run has too few networks to say whether planted permutations are recovered (n = 2, 8 are needed)",
         "(exact 95 % interval of the share: 16 to 100 %), after 3 to 4 sweeps (n = 2; the paper: 3 to 4)"),
    ],
    ids=[
        "replicated", "all alike", "a little more", "seldom not", "slow", "sweeps undecided", "refuted", "undecided",
        "too few",
    ],
)  # fmt: skip
def test_the_finding_turns_with_the_results(plant, trials, opening, evidence):
    plant(trials)
    found = planted_chapter.finding()
    assert found.startswith(f"<strong>{opening}")
    assert evidence in found
    assert "nan" not in found


def test_ties_are_told(plant):
    plant([(1, 3, 2)] * 3 + [(1, 3, 0)] * 5)
    assert "In 3 of them some units stand in other places, since their weights are equal" in planted_chapter.finding()
    assert list(planted_chapter.recovered_table("mine")["with units of equal weights"]) == ["3", "0"]


def test_the_tables_of_a_run(plant):
    plant(NOT_ALL)
    recovered = planted_chapter.recovered_table("mine").set_index("network")
    assert recovered.loc["MLP", "recovered"] == "7 of 8" and recovered.loc["ResNet20 x1", "recovered"] == "2 of 2"
    assert recovered.loc["ResNet20 x1", "sweeps (of how many networks)"] == "3 (1), 4 (1)"
    times = planted_chapter.times_table("mine").set_index("network")
    assert list(times.index) == ["MLP", "ResNet50", "ResNet20 x1", "ResNet20 x32"]
    assert list(times["seconds"]) == ["0.50", "34", "0.25", "not run"]
    assert list(times["paper's seconds"]) == ["3", "33", "", "194"]
    assert list(times["tracing (s)"]) == ["", "7.2", "7.2", ""]
    assert times.loc["ResNet50", "each pair (s)"] == "34, 41, 31"
    assert planted_chapter.threads_note("mine") == "2 threads of the processor"


def test_sizes_that_were_not_run_are_named(plant):
    plant(MIXED, {"mlp": TIMES["mlp"]})
    assert planted_chapter.times_finding() == (
        "Weight matching of one pair of independent networks takes 0.50 s (MLP) (medians, run mine). Not run here: "
        "ResNet50, ResNet20 x32."
    )
    plant(MIXED, TIMES | {"resnet20 x32": (200, 5, 300)})
    assert planted_chapter.times_finding().endswith("0.25 s (ResNet20 x1), 200 s (ResNet20 x32) (medians, run mine).")


def test_nothing_is_said_before_it_was_run(monkeypatch, tmp_path):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))
    assert planted_chapter.finding() == "No permutation was planted yet."
    assert planted_chapter.times_finding() == ""


@pytest.mark.parametrize(("weights", "with_paper"), [(1.8, True), (0.013, False)])
def test_the_papers_mlp_stands_beside_one_of_its_size_only(weights, with_paper):
    times = times_of({"mlp": (0.5, 6, weights), "resnet20 x4": (1.0, 4, 4.6)})
    figure = planted_figures.seconds_by_size(times)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["MLP", *["the paper's, on a V100"] * with_paper, "ResNet20"]
    plt.close("all")
    assert themed(lambda: planted_figures.seconds_by_size(times), "alt").data.count("<img ") == 2
    assert plt.get_fignums() == []


def test_networks_stand_by_size():
    names = ["resnet20 x16", "resnet20 x4", "resnet50", "mlp"]
    assert planted_figures.by_size(names) == ["mlp", "resnet50", "resnet20 x4", "resnet20 x16"]
