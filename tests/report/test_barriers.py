"""Barriers in the book: facts, tables and figures are those of the table that was planted."""

import matplotlib.pyplot as plt
import pytest
from planting import BARRIER_RECIPES, barriers_of_all, plant_barriers, planted_barriers

from lab.bookkeeping.pipeline import load_preset
from lab.networks import ARCHITECTURES
from lab.report import barriers
from lab.report.claims import decide
from lab.report.facts import Facts


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


OVER = [("width", "digits width", barriers.over_width), ("epochs", "digits mlp", barriers.over_epochs)]


@pytest.mark.parametrize(
    ("first", "last", "pairs", "outcome"),
    [(0.9, 0.01, 8, "falls"), (0.3, 0.9, 8, "rises"), (0.3, 0.3, 8, "open"), (0.9, 0.01, 2, "too few")],
)
@pytest.mark.parametrize(("axis", "recipe", "over"), OVER)
def test_the_trend_is_the_one_in_the_table(axis, recipe, over, first, last, pairs, outcome):
    low, high = (
        planted_barriers(recipe, pairs, **{axis: at, "loss_barrier": loss, "accuracy_barrier": accuracy})
        for at, loss, accuracy in ((8, first, 0.2), (64, last, 0.4))
    )
    plant_barriers(high + low)
    facts = over("mine")
    assert facts.outcome == outcome
    values = facts.values
    assert (values["mlp_first"], values["mlp_last"], values["mlp_n"]) == ("8", "64", str(pairs))
    assert values["mlp_loss_first"].startswith(f"{first:.1f}") and values["mlp_accuracy_last"].startswith("40.0")
    assert "nan" not in "".join(values.values())


def test_several_recipes_are_told_one_after_the_other():
    rows = planted_barriers("digits width", loss_barrier=0.9) + planted_barriers("digits width", width=64)
    networks = {"section": "width", "architecture": "resnet20_ln"}
    rows += planted_barriers("resnet", **networks, width=4) + planted_barriers("resnet", **networks, loss_barrier=0.9)
    plant_barriers(rows)
    facts = barriers.over_width("mine")
    assert facts.outcome == "falls, rises"
    assert facts.values["mlp_loss_first"][:3] == "0.9" and facts.values["resnet20_ln_loss_last"][:3] == "0.9"


@pytest.mark.parametrize(
    ("loss", "accuracy", "outcome"),
    [
        (0.01, 0.001, "loss gone, accuracy gone"),
        (0.01, 0.2, "loss gone, accuracy still there"),
        (0.02, 0.005, "loss not decided, accuracy not decided"),
    ],
)
def test_what_is_left_at_the_largest_width(loss, accuracy, outcome):
    rows = planted_barriers("digits width") + planted_barriers(
        "digits width", width=64, loss_barrier=loss, accuracy_barrier=accuracy
    )
    plant_barriers(rows)
    assert barriers.widest("mine").outcome == outcome


@pytest.mark.parametrize(
    ("loss", "accuracy", "outcome"),
    [(0.3, 0.7, "loss falls, accuracy rises"), (0.7, 0.3, "loss rises, accuracy falls")],
)
def test_means_have_a_direction_however_few_the_pairs(loss, accuracy, outcome):
    rows = planted_barriers("digits mlp", 2)
    plant_barriers(rows + planted_barriers("digits mlp", 2, epochs=10, loss_barrier=loss, accuracy_barrier=accuracy))
    assert barriers.means_over_epochs("mine").outcome == outcome


@pytest.mark.parametrize(("tempered", "outcome"), [(0.3, "rises"), (0.1, "falls")])
def test_barriers_at_the_best_temperatures_have_a_direction_of_their_own(tempered, outcome):
    early = {"dataset": "cifar10", "loss_barrier": 0.4, "loss_barrier_tempered": 0.2, "temperature_midpoint": 0.3}
    late = early | {"epochs": 25, "loss_barrier": 0.1, "loss_barrier_tempered": tempered, "temperature_midpoint": 0.7}
    plant_barriers(planted_barriers("digits mlp", **early) + planted_barriers("digits mlp", **late))
    facts = barriers.tempered_over_epochs("mine")
    assert facts.outcome == outcome
    assert (facts.values["midpoint_first"], facts.values["midpoint_last"]) == ("0.30", "0.70")
    assert facts.values["loss_first"].startswith("0.200") and facts.values["loss_last"].startswith(f"{tempered:.3f}")
    plant_barriers(planted_barriers("digits mlp", 2) + planted_barriers("digits mlp", 2, epochs=10))
    assert barriers.tempered_over_epochs("mine").outcome == "not measured"


@pytest.mark.parametrize(("loss", "outcome"), [(0.15, "higher"), (0.01, "lower")])
def test_the_last_barrier_is_held_against_the_papers(loss, outcome):
    rows = planted_barriers("digits mlp", dataset="cifar10")
    plant_barriers(rows + planted_barriers("digits mlp", dataset="cifar10", epochs=25, loss_barrier=loss))
    facts = barriers.beside_the_paper("mine")
    assert facts.outcome == outcome and facts.values["last"].startswith(f"{loss:.3f}")
    assert facts.values["paper_last"] == "0.015" and facts.values["first"].startswith("0.500")


@pytest.mark.parametrize(
    ("sgd", "adam", "pairs", "outcome"),
    [
        (0.4, 0.3, 8, "replicated, replicated"),
        (0.4, 0.001, 8, "replicated, not replicated"),
        (0.001, 0.002, 8, "not replicated, not replicated"),
        (0.4, 0.3, 2, "too few, too few"),
    ],
)
def test_failures_are_those_of_the_claim(sgd, adam, pairs, outcome):
    mnist = {"dataset": "mnist", "width": 512}
    rows = planted_barriers("mnist width", **mnist, section="width", loss_barrier=0.005, accuracy_ends=0.98)
    failure = mnist | {"section": "failures"}
    rows += planted_barriers("mnist sgd low", pairs, **failure, optimiser="sgd", loss_barrier=sgd, accuracy_ends=0.9)
    rows += planted_barriers("mnist adam high", pairs, **failure, learning_rate=0.01, loss_barrier=adam)
    plant_barriers(rows)
    facts = barriers.failures("mine")
    assert facts.outcome == outcome
    assert facts.outcome == ", ".join(condition.verdict for condition in decide("mine", ["G9"])[0].conditions)
    assert facts.values["usual"].startswith("0.005") and facts.values["n"] == str(pairs)
    assert (facts.values["sgd_accuracy"], facts.values["usual_accuracy"]) == ("90", "98")


@pytest.mark.parametrize(
    ("reset", "pairs", "outcome"),
    [
        (0.1, 8, "falls, still there"),
        (0.001, 8, "falls, gone"),
        (0.9, 8, "rises, still there"),
        (0.1, 4, "too few, falls, still there"),
        (0.9, 2, "too few, rises, not decided"),
    ],
)
def test_what_a_reset_of_norms_does_is_as_planted(reset, pairs, outcome):
    rows = planted_barriers("digits batch norm", pairs) + planted_barriers("digits batch norm", pairs, "repair")
    rows += planted_barriers("digits batch norm", pairs, "reset", loss_barrier=reset, accuracy_midpoint=0.3)
    plant_barriers(rows + planted_barriers("digits layer norm", pairs, loss_barrier=0.2))
    facts = barriers.batch_norm("mine")
    assert facts.outcome == outcome
    assert facts.values["loss_none"].startswith("0.500") and facts.values["n"] == str(pairs)
    assert (facts.values["ends"], facts.values["midpoint_reset"]) == ("50", "30")
    layer = barriers.layer_norm("mine")
    assert layer.outcome == ("too few" if pairs < 8 else "still there") and layer.values["loss"].startswith("0.2")
    table = barriers.norms_table("mine")
    paths = ["as merged", "REPAIR at the midpoint", "statistics measured anew", "as merged"]
    assert list(table["path"]) == paths
    assert [name.split(", ")[1] for name in table["networks"]] == ["BatchNorm"] * 3 + ["LayerNorm"]


@pytest.mark.parametrize(
    ("loss", "accuracy", "pairs", "outcome", "better"),
    [
        (0.1, -0.1, 8, "loss above, accuracy below", "8"),
        (-0.1, 0.1, 8, "loss below, accuracy above", "0"),
        (0.0, 0.0, 8, "loss open, accuracy open", None),
        (0.1, 0.1, 2, "loss too few, accuracy too few", "2"),
    ],
)
def test_a_midpoint_beats_both_ends_only_where_it_does(loss, accuracy, pairs, outcome, better):
    rows = planted_barriers("digits split", pairs, loss_gain=loss, accuracy_gain=accuracy)
    plant_barriers(rows + planted_barriers("digits whole", pairs))
    facts = barriers.shared_out("mine")
    assert facts.outcome == outcome
    assert better is None or facts.values["better"] == better
    assert not facts.values["loss_by"].startswith(("+", "−"))
    whole = barriers.all_for_both("mine")
    assert whole.outcome == ("loss too few, accuracy too few" if pairs < 4 else "loss above, accuracy above")


def test_what_a_run_has_not_measured_has_no_facts_and_empty_tables():
    plant_barriers(planted_barriers("other", section="depth"))
    shown = [function for function in vars(barriers).values() if getattr(function, "notebooks", ()) == ("barriers",)]
    assert len(shown) > 15
    for function in shown:
        answer = function("mine")
        if isinstance(answer, Facts):
            assert answer == Facts("not measured", {}), function.__name__
    assert not len(barriers.norms_table("mine")) and not len(barriers.split_table("mine"))
    plt.close("all")


def test_a_pair_with_several_snapshots_counts_once_and_at_its_last():
    rows = []
    for epochs, barrier in ((1, 0.9), (10, 0.001)):
        changes = {"dataset": "mnist", "epochs": epochs, "loss_barrier": barrier}
        rows += barriers_of_all("mnist sgd low", section="failures", optimiser="sgd", width=32, **changes)
        rows += barriers_of_all("mnist adam high", section="failures", learning_rate=0.01, width=32, **changes)
        for width in (32, 512):
            rows += barriers_of_all("mnist width", section="width", width=width, **changes)
    plant_barriers(rows)
    assert barriers.failures("mine").values["sgd"].startswith("0.001") and barriers.failures("mine").values["n"] == "8"
    assert barriers.over_width("mine").values["mlp_loss_first"].startswith("0.001")
    claims = {claim.id: claim for claim in decide("mine")}
    assert claims["G9"].conditions[0].effect.n == 8
    assert claims["G9"].conditions[0].effect.mean == pytest.approx(0.001, abs=0.001)
    assert claims["G5"].conditions[0].effect.n == 8


def test_networks_that_were_not_run_are_named_with_the_preset_that_runs_them():
    plant_barriers(planted_barriers("mnist sgd low", section="failures", dataset="mnist", width=512))
    table = barriers.not_run("mine")
    named = table[table["question"] == "failures"]
    assert list(zip(named["networks"], named["widths"], named["preset"], strict=True)) == [
        ("MNIST MLP", "512", "cpu"), ("MNIST VGG-16, LayerNorm", "64", "gpu")
    ]  # fmt: skip
    assert "CIFAR-10 ResNet20, BatchNorm" in set(table["networks"]), "an architecture goes by its title and norm"
    planned = {
        (entry["recipe"], entry.get("width", ARCHITECTURES["mlp"].width))
        for preset in ("cpu", "gpu")
        for entry in load_preset(preset)["barrier_recipes"]
    }
    assert sum(len(widths.split(", ")) for widths in table["widths"]) == len(planned) - 1
    rows = [row for recipe, width in planned for row in planted_barriers(recipe, 1, section="width", width=width)]
    plant_barriers(rows)
    assert not len(barriers.not_run("mine")) and list(barriers.not_run("mine")) == list(table)


def test_tables_stand_where_the_rows_are():
    rows = [row for name in BARRIER_RECIPES for row in barriers_of_all(name)]
    rows += barriers_of_all("digits width", width=64) + barriers_of_all("digits mlp", epochs=10, loss_barrier=0.1)
    plant_barriers(rows)
    width = barriers.width_table("mine")
    assert list(width["width"]) == ["8", "64"] and set(width["n"]) == {"8"}
    epochs = barriers.epochs_table("mine")
    assert list(epochs["epochs"]) == ["1", "10"]
    assert [text[:4] for text in epochs["loss, matched (nats)"]] == ["0.50", "0.10"]
    failures = barriers.failures_table("mine")
    assert list(failures["recipe"]) == ["usual", "said to fail"], "the usual recipe of the same width alone"
    assert list(failures["training"]) == ["Adam at 0.001, 10 epochs", "SGD at 0.001, 10 epochs"]
    assert list(barriers.split_table("mine")["data"].unique()) == ["shared out", "all, for both"]


def test_the_usual_recipe_beside_a_failure_is_of_the_same_networks():
    mnist = {"dataset": "mnist"}
    rows = [row for width in (64, 512) for row in barriers_of_all("mnist width", section="width", width=width, **mnist)]
    failure = mnist | {"section": "failures"}
    rows += barriers_of_all("mnist adam high", **failure, width=512, learning_rate=0.01)
    plant_barriers(rows + barriers_of_all("mnist vgg", **failure, width=64, architecture="vgg16_ln"))
    assert list(barriers.failures_table("mine")["networks"]) == [
        "MNIST MLP, width 512", "MNIST MLP, width 512", "MNIST VGG-16, LayerNorm, width 64"
    ]  # fmt: skip


def test_the_figure_shows_every_width_in_nats_and_in_points():
    plant_barriers(
        barriers_of_all("digits width", accuracy_barrier=0.05)
        + barriers_of_all("digits width", width=64, loss_barrier=0)
    )
    figure = barriers.barriers_over_width("mine")
    loss, accuracy = figure.axes
    assert [text.get_text() for text in accuracy.get_xticklabels()] == ["8", "64"]
    assert accuracy.containers[0].lines[0].get_ydata() == pytest.approx([5, 50], abs=0.1)
    assert loss.containers[0].lines[0].get_ydata()[1] == 0.001, "what is zero stands at the edge"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["digits MLP", "digits MLP, REPAIR"]
    plt.close(figure)


def test_the_table_over_width_goes_from_the_narrow_to_the_wide_whatever_the_plans_order():
    plant_barriers([row for width in (64, 8, 32) for row in barriers_of_all("digits width", width=width)])
    assert list(barriers.width_table("mine")["width"]) == ["8", "32", "64"]
