"""Pairs of MNIST networks in the book: facts, tables and figures are those of the tables that were planted."""

import matplotlib.pyplot as plt
import pytest
from planting import MNIST_HEIGHTS, plant_mnist

from lab.report import mnist
from lab.report.claims import NOT_REPLICATED, REPLICATED, decide

MATCHERS = mnist.MATCHED


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("changes", "pairs", "outcome"),
    [
        ({}, 8, "gone"),
        (dict.fromkeys(MATCHERS, 0.3), 8, "still there"),
        ({"activations": 0.05}, 8, "weights gone, activations still there, straight-through gone"),
        (dict.fromkeys(MATCHERS, 0.02 - 7e-5), 8, "not decided"),
        ({}, 7, "too few"),
        (dict.fromkeys(MATCHERS, 0.3), 3, "too few"),
    ],
    ids=["all", "none", "some", "open", "seven pairs", "three pairs"],
)
def test_whether_the_barrier_is_gone_is_as_planted(changes, pairs, outcome):
    plant_mnist(MNIST_HEIGHTS | changes, pairs)
    for facts in (mnist.barriers_matched("mine"), mnist.barriers_on_train("mine")):
        assert facts.outcome == outcome
        values = facts.values
        assert values["unmatched"].startswith("0.900") and values["n"] == str(pairs) and values["epochs"] == "100"
        for matcher, height in (MNIST_HEIGHTS | changes).items():
            name = {"none": "unmatched", "straight-through": "straight_through"}.get(matcher, matcher)
            assert float(values[name].split()[0]) == pytest.approx(height, abs=6e-4)
        assert "nan" not in "".join(values.values())


@pytest.mark.parametrize(("height", "outcome"), [(0.004, "gone"), (0.006, "still there")])
def test_a_barrier_in_accuracy_is_in_points_with_a_zero_of_its_own(height, outcome):
    plant_mnist(MNIST_HEIGHTS | dict.fromkeys(MATCHERS, height))
    facts = mnist.accuracy_matched("mine")
    assert facts.outcome == outcome and facts.values["unmatched"].startswith("90.0") and facts.values["zero"] == "0.5"
    assert float(facts.values["weights"].split()[0]) == pytest.approx(100 * height, abs=0.02)


@pytest.mark.parametrize(
    ("gain", "pairs", "outcome", "by"),
    [
        (0.01, 8, "above", "0.010 ["),
        (-0.01, 8, "below", "0.010 ["),
        (-7e-5, 8, "open", "0.000 ["),
        (0.01, 3, "too few", "0.010"),
    ],
)
def test_the_midpoint_is_better_or_worse_as_planted(gain, pairs, outcome, by):
    plant_mnist(pairs=pairs, loss_gain=gain, accuracy_gain=-0.002, loss_ends=0.1, accuracy_midpoint=0.97)
    for facts in (mnist.midpoint_loss("mine"), mnist.midpoint_loss_on_train("mine")):
        assert facts.outcome == outcome and facts.values["by"].startswith(by) and facts.values["ends"][:5] == "0.100"
    facts = mnist.midpoint_accuracy("mine")
    assert facts.outcome == ("too few" if pairs < 8 else "below") and facts.values["midpoint"].startswith("97.0")


@pytest.mark.parametrize(
    ("early", "pairs", "epochs", "outcome"),
    [
        (0.6, 8, (1, 100), "falls"),
        (0.0, 8, (1, 100), "rises"),
        (0.001 + 3e-5, 8, (1, 100), "open"),
        (0.6, 3, (1, 100), "too few"),
        (0.6, 8, (100,), "one epoch"),
    ],
)
def test_what_training_does_to_the_barrier_is_as_planted(early, pairs, epochs, outcome):
    plant_mnist(early=early, pairs=pairs, epochs=epochs)
    facts = mnist.training("mine")
    assert facts.outcome == outcome
    assert (facts.values["first"], facts.values["last"]) == (str(epochs[0]), "100")
    if len(epochs) > 1:
        assert float(facts.values["at_first"].split()[0]) == pytest.approx(early, abs=1e-3)
        assert facts.values["paper"] == "about 0.6"


@pytest.mark.parametrize(("height", "outcome", "same"), [(0.001, "all", "8"), (0.0011, "none", "0")])
def test_straight_through_matching_that_only_repeats_the_weights_is_counted(height, outcome, same):
    plant_mnist(MNIST_HEIGHTS | {"straight-through": height})
    facts = mnist.straight_through("mine")
    assert facts.outcome == outcome and facts.values == {"same": same, "n": "8"}


@pytest.mark.parametrize(("epochs", "outcome"), [(5, "shorter"), (250, "as long")])
def test_how_long_straight_through_matching_was(epochs, outcome):
    plant_mnist(parameters={"straight_through_epochs": epochs, "straight_through_batch_size": 1000})
    facts = mnist.straight_through_length("mine")
    assert facts.outcome == outcome
    assert facts.values == {"epochs": str(epochs), "batch_size": "1000", "paper_epochs": "250"}


def test_claims_are_decided_on_these_tables():
    plant_mnist(MNIST_HEIGHTS | {"activations": 0.1}, loss_gain=0.01)
    claims = {claim.id: claim for claim in decide("mine")}
    assert [c.verdict for c in claims["G1"].conditions] == [REPLICATED, NOT_REPLICATED, REPLICATED]
    assert claims["G8"].verdict == REPLICATED
    assert [c.verdict for c in claims["G6"].conditions] == [REPLICATED]


def test_tables_have_the_papers_numbers_beside_ours():
    plant_mnist(loss_barrier_of_three=0.002)
    table = mnist.barriers_table("mine")
    assert list(table["images"]) == ["test"] * 4 + ["train"] * 4
    assert list(table["pairs"])[:2] == ["not matched", "matched by weights"]
    assert list(table["the paper"])[:4] == ["–", "zero", "zero, a little worse than the others", "zero"]
    assert table["loss"][0].startswith("0.900 [") and table["accuracy"][0].startswith("90.0")
    assert {text[:5] for text in table["over three points"]} == {"0.002"}
    table = mnist.epochs_table("mine")
    assert list(table["epochs"]) == ["1", "100"]
    assert list(table["the paper's"]) == ["about 0.6", "–"]
    assert table["accuracy, matched by weights"][0].startswith("60.")


STRAIGHT = ("matched by weights", "matched straight through")


@pytest.mark.parametrize("pairs", [1, 8])
def test_the_figures_are_drawn_of_few_pairs_and_of_many(pairs):
    plant_mnist(pairs=pairs)
    figure = mnist.along_the_line("mine")
    whole, closer = figure.axes[:2]
    assert whole.get_ylim()[1] > 0.9, "what is not matched is to be seen whole"
    assert closer.get_ylim()[1] < 0.2, "and what is matched from near"
    wide, dashed = (line for line in closer.lines if line.get_label() in STRAIGHT)
    assert wide.get_linewidth() > 2 * dashed.get_linewidth(), "lines that lie on one another are both to be seen"
    assert len(figure.legends[0].get_texts()) == 4
    figure = mnist.barrier_by_epoch("mine")
    matched = next(line for line in figure.axes[0].lines if line.get_label() == "matched by weights")
    assert list(matched.get_xdata()) == [1, 100]
    assert matched.get_ydata() == pytest.approx([0.6, 0.001], abs=1e-3)
    plt.close("all")
