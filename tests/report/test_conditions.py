"""The chapter of other recipes: its facts, table and figure are those of the recipes that were planted."""

import matplotlib.pyplot as plt
import pytest
from planting import plant_conditions

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset
from lab.bookkeeping.vocabulary import INITIALS
from lab.networks.initial import INITIAL
from lab.report import conditions
from lab.report.draw import themed

TWO_KINDS = {(32, "lecun_normal", 3, 0.0): (-2, -1), (32, "torch", 3, 0.0): (3, 4), (32, "torch", 9, 0.0): (-1, 2)}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("gaps", "outcome", "ahead"),
    [
        ([(-3, -1), (-0.5, -2)], "none, none", ("0", "0")),
        ([(3, 1), (0.5, 2)], "all, all", ("2", "2")),
        ([(-3, 1), (-0.5, -2), (1, 2)], "some, some", ("1", "2")),
        ([(-3, 1), (-0.5, -2)], "none, some", ("0", "1")),
    ],
)
def test_it_is_counted_under_how_many_recipes_the_hierarchy_is_ahead(gaps, outcome, ahead):
    plant_conditions("mine", gaps)
    facts = conditions.against_many("mine")
    assert facts.outcome == outcome
    assert (facts.values["ahead"], facts.values["ahead_repaired"]) == ahead
    assert facts.values["recipes"] == str(len(gaps)) and facts.values["n"] == "1"
    for suffix, values in zip(("", "_repaired"), zip(*gaps, strict=True), strict=True):
        assert float(facts.values[f"lowest{suffix}"].replace("−", "-")) == pytest.approx(min(values))
        assert float(facts.values[f"highest{suffix}"].replace("−", "-")) == pytest.approx(max(values))


def test_recipes_are_named_by_what_differs_between_them():
    plant_conditions("mine", TWO_KINDS)
    values = conditions.against_many("mine").values
    assert values["ahead_under"] == "PyTorch's default, 3 epochs"
    assert values["ahead_under_repaired"] == "PyTorch's default, 3 epochs; PyTorch's default, 9 epochs"
    plant_conditions("mine", [(1, 1)])
    assert conditions.against_many("mine").values["ahead_under"] == (
        "width 32, PyTorch's default, 3 epochs, weight decay 0"
    )


def test_the_number_of_trees_is_that_of_the_run():
    plant_conditions("mine", [(1, 1)], models=32)
    assert conditions.against_many("mine").values["n"] == "4"


@pytest.mark.parametrize(
    ("gaps", "outcome"),
    [
        ({"torch": (3, -1), "lecun_normal": (-2, -3)}, "torch"),
        ({"torch": (3, -1), "lecun_normal": (4, 5)}, "lecun_normal"),
        ({"torch": (3, -1), "lecun_normal": (0, -3)}, "mixed"),
        ({"torch": (3, -1)}, "one kind"),
    ],
)
def test_initial_weights_are_told_apart_only_where_their_ranges_are(gaps, outcome):
    recipes = {
        (32, initial, epochs, 0.0): (gap, 0)
        for initial, of in gaps.items()
        for epochs, gap in zip((3, 9), of, strict=True)
    }
    plant_conditions("mine", recipes)
    facts = conditions.initial_weights("mine")
    assert facts.outcome == outcome
    if len(gaps) > 1:
        assert facts.values["hierarchy_torch"] == "49.0 to 53.0" and facts.values["unmerged_torch"] == "90.0 to 90.0"


def test_recipes_stand_in_the_order_of_the_vocabulary_in_table_and_figure():
    plant_conditions("mine", TWO_KINDS)
    table = conditions.accuracy_table("mine")
    assert list(table["initial weights"]) == ["PyTorch's default", "PyTorch's default", "LeCun-normal"]
    assert list(table["epochs"]) == ["3", "9", "3"]
    assert list(table["gap"]) == ["+3.0", "−1.0", "−2.0"]
    assert list(table["gap after REPAIR"]) == ["+4.0", "+2.0", "−1.0"]
    axes = conditions.accuracy_by_recipe("mine").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "PyTorch's default\n3 epochs", "PyTorch's default\n9 epochs", "LeCun-normal\n3 epochs",
    ]  # fmt: skip
    # Lines of the plot: for each recipe the leaves, then line, filled and open mark of each algorithm.
    trees = [float(line.get_xdata()[0]) for line in axes.lines[2:21:7]]
    assert trees == pytest.approx([53, 49, 48])


def test_the_figure_is_drawn_for_both_kinds_of_pages():
    plant_conditions("mine", [(-1, 1)], models=64)
    assert themed(lambda: conditions.accuracy_by_recipe("mine"), "alt").data.count("<img") == 2
    assert "nan" not in conditions.accuracy_table("mine").to_string().lower()


def test_every_scheme_of_initial_weights_has_a_name_for_readers():
    assert set(INITIALS) == set(INITIAL)


def test_of_other_data_than_the_plans_nothing_is_missing():
    plant_conditions("mine", [(1, 1)])
    facts = conditions.not_run("mine")
    assert facts.outcome == "other data" and facts.values["data"] == "scikit-learn's digits"


def test_recipes_of_the_plan_that_a_run_did_not_reach_are_counted_and_named(monkeypatch):
    plan = {
        "condition_networks": {"dataset": "digits", "epochs": [3, 30]},
        "varied": {"width": [32, 64], "initial": ["torch"], "weight_decay": [0.0]},
    }
    monkeypatch.setattr(conditions, "load_preset", lambda name: plan)
    plant_conditions("mine", [(1, 1)])
    facts = conditions.not_run("mine")
    assert facts.outcome == "some"
    assert facts.values == {"missing": "3", "planned": "4", "untried": "width 64 or 30 epochs"}
    plant_conditions("mine", [(1, 1)], initial="lecun_normal")
    facts = conditions.not_run("mine")
    assert facts.values["missing"] == "4" and facts.values["untried"].startswith("width 64, PyTorch's default or")
    plant_conditions("mine", {(width, "torch", epochs, 0.0): (1, 1) for width in (32, 64, 128) for epochs in (3, 30)})
    assert conditions.not_run("mine").outcome == "none", "what is beyond the plan does not count"


def test_the_plan_has_every_axis_of_the_notebook():
    for given in (results.declared_parameters("conditions"), load_preset("cpu"), load_preset("gpu")):
        assert set(conditions.AXES) == {*given["varied"], "epochs"}
