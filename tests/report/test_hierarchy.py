"""The chapter of the hierarchy: every fact has the outcome of the table that was planted, and its values."""

import base64
import inspect
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text
from planting import HIGH_BARRIERS, SWAPPED, TREE_LOSES, TREE_WINS, barriers_on, plant, plant_accuracy, planted_paths

from lab.bookkeeping import results
from lab.report import hierarchy
from lab.report.claims import decide
from lab.report.draw import themed
from lab.report.words import points
from rebasin.merging.many import merge_many

# MergeMany of four networks at most, the others of eight.
NO_MANY_AT_8 = {kind: share for kind, share in TREE_WINS.items() if kind != ("many", 8)}
NO_MANY = {kind: share for kind, share in NO_MANY_AT_8.items() if kind[0] != "many"}
NO_EIGHT = {kind: share for kind, share in TREE_WINS.items() if kind[1] < 8}
EVEN = {kind: (0.8 if kind[0] in SWAPPED else share) for kind, share in TREE_WINS.items()}
ANOTHER = TREE_WINS | {("ensemble", 4): 0.9, ("ensemble", 8): 0.92}
FIGURES = (hierarchy.accuracy_by_leaves, hierarchy.drop_by_leaves, hierarchy.along_the_line)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("accuracy", "trees", "outcome"),
    [
        (TREE_WINS, 8, "above"),
        (TREE_LOSES, 8, "below"),
        (EVEN, 8, "open"),
        (TREE_WINS, 7, "too few"),
        (TREE_LOSES, 1, "too few"),
    ],
    ids=["wins", "loses", "even", "seven trees", "one tree"],
)
def test_the_gap_to_mergemany_turns_with_the_results(accuracy, trees, outcome):
    plant_accuracy("mine", accuracy, trees)
    facts = hierarchy.against_many("mine")
    assert facts.outcome == outcome
    gap = decide("mine", ["H2"])[0].condition("at_8").effect
    assert facts.values["gap"] == points(gap, signed=True) and facts.values["n"] == str(trees)
    assert facts.values["lead"] == f"{abs(gap.mean):.1f}"
    assert facts.values["networks"] == "MLPs of width 64" and facts.values["data"] == "scikit-learn's digits"
    nodes = results.read("mine", "accuracy", "nodes").query("split == 'test' and metric == 'accuracy'")
    for algorithm, size in (("hierarchy", 8), ("many", 8), ("unmerged", 1)):
        kind = (nodes["algorithm"] == algorithm) & (nodes["n_leaves"] == size)
        mean = 100 * nodes[kind]["value"].mean()
        assert facts.values[algorithm] == f"{mean:.1f}"
    assert "nan" not in "".join(facts.values.values())


@pytest.mark.parametrize(
    ("accuracy", "outcome"),
    [(TREE_WINS, "above"), (TREE_WINS | {("hierarchy", 8): 0.2, ("mean", 8): 0.8}, "below")],
)
def test_the_gap_to_the_naive_average_turns_with_the_results(accuracy, outcome):
    plant_accuracy("mine", accuracy, 8)
    assert hierarchy.against_naive("mine").outcome == outcome
    assert {"hierarchy", "mean", "gap"} <= set(hierarchy.against_naive("mine").values)


@pytest.mark.parametrize("fact", [hierarchy.against_many, hierarchy.growth])
def test_without_mergemany_of_eight_the_gap_was_not_measured(fact):
    plant_accuracy("mine", NO_MANY_AT_8, 8)
    assert fact("mine").outcome == "not measured"


@pytest.mark.parametrize("fact", [hierarchy.against_many, hierarchy.against_naive, hierarchy.growth, hierarchy.cost])
def test_without_nodes_of_eight_leaves_no_claim_was_measured(fact):
    plant_accuracy("mine", NO_EIGHT, 2)
    assert fact("mine").outcome == "not measured"


@pytest.mark.parametrize(
    ("accuracy", "outcome", "sign"), [(TREE_WINS, "above", "+"), (TREE_LOSES, "below", "−"), (EVEN, "open", "")]
)
def test_the_gap_grows_as_it_was_planted(accuracy, outcome, sign):
    plant_accuracy("mine", accuracy, 8)
    facts = hierarchy.growth("mine")
    assert facts.outcome == outcome
    assert facts.values["models"] == "8" and facts.values["n"] == "8"
    assert facts.values["gap"] == hierarchy.against_many("mine").values["gap"]
    assert facts.values["growth"].startswith(sign)


@pytest.mark.parametrize(
    ("share", "trees", "outcome"), [(0.8, 8, "above"), (0.94, 8, "open"), (0.96, 8, "below"), (0.8, 4, "too few")]
)
def test_the_cost_is_held_against_the_bound_of_the_claim(share, trees, outcome):
    plant_accuracy("mine", TREE_WINS | {("hierarchy", 8): share}, trees)
    facts = hierarchy.cost("mine")
    assert facts.outcome == outcome and facts.values["bound"] == "1" and facts.values["n"] == str(trees)


@pytest.mark.parametrize(
    ("accuracy", "outcome", "models"),
    [
        (TREE_WINS, "grows", "8"),
        (TREE_WINS | {("hierarchy", 4): 0.7}, "does not grow", "8"),
        (TREE_WINS | {("many", 4): 0.5}, "does not grow", "8"),
        (NO_MANY_AT_8, "grows", "4"),
        (NO_MANY_AT_8 | {("hierarchy", 8): 0.9}, "does not grow", "4"),
        (NO_MANY_AT_8 | {("many", 4): 0.99}, "does not grow", "4"),
    ],
    ids=["grows", "hierarchy", "MergeMany", "MergeMany to 4", "tree gets better", "MergeMany loses nothing"],
)
def test_the_cost_grows_only_where_it_does_and_is_given_where_all_algorithms_have_been(accuracy, outcome, models):
    plant_accuracy("mine", accuracy, trees=4)
    facts = hierarchy.cost_by_size("mine")
    assert facts.outcome == outcome
    assert facts.values["models"] == models and facts.values["n"] == str(32 // int(models))
    table = hierarchy.cost_table("mine").set_index(["method", "models"])["accuracy, test (points)"]
    for algorithm, title in (("hierarchy", "hierarchy"), ("many", "MergeMany"), ("mean", "naive average")):
        assert facts.values[algorithm] == table[title, models]


def test_without_mergemany_nothing_is_said_of_a_growing_cost():
    plant_accuracy("mine", NO_MANY, trees=4)
    assert hierarchy.cost_by_size("mine").outcome == "not measured"


@pytest.mark.parametrize(
    ("accuracy", "loss", "outcome"),
    [
        (0.7, 0.6, "accuracy still there, loss still there"),
        (0.899, 0.6, "accuracy gone, loss still there"),
        (0.7, 0.301, "accuracy still there, loss gone"),
        (0.895, 0.301, "accuracy not decided, loss gone"),
        (0.899, 0.301, "gone"),
        (0.1, 0.6, "not lowered"),
        (0.7, 3.0, "not lowered"),
    ],
)
def test_the_barrier_is_said_to_vanish_only_where_it_does(accuracy, loss, outcome):
    matched = {("weights", "accuracy"): accuracy, ("weights", "loss"): loss}
    plant_accuracy("mine", TREE_WINS, 1, HIGH_BARRIERS | matched)
    facts = hierarchy.barriers("mine")
    assert facts.outcome == f"{outcome} on test images, {outcome} on training images"
    assert facts.values["n_test"] == facts.values["n_train"] == "4"


def test_barriers_on_test_and_training_images_are_told_apart():
    paths = planted_paths(HIGH_BARRIERS)
    middle = (paths["split"] == "test") & (paths["lam"] == 0.5) & (paths["matcher"] == "weights")
    paths.loc[middle & (paths["metric"] == "loss"), "value"] = 0.3
    plant("mine", {"barriers": barriers_on(paths)})
    facts = hierarchy.barriers("mine")
    on_test, on_train = "accuracy still there, loss gone", "accuracy still there, loss still there"
    assert facts.outcome == f"{on_test} on test images, {on_train} on training images"
    # From ends of 0.9 and 0.3 to midpoints of 0.7 to 0.703 and of 0.6 to 0.603.
    expected = {"accuracy_train": 19.85, "loss_train": 0.3015, "loss_test": 0, "loss_unmatched_train": 1.7015}
    mean = {name: float(facts.values[name].split(" [")[0]) for name in expected}
    assert mean == pytest.approx(expected, abs=0.06)


def test_the_lines_on_test_images_stand_beside_those_on_training_images():
    paths = planted_paths(HIGH_BARRIERS)
    middle = (paths["split"] == "test") & (paths["lam"] == 0.5) & (paths["matcher"] == "weights")
    paths.loc[middle & (paths["metric"] == "loss"), "value"] = 0.3
    plant("mine", {"paths": paths})
    figure = hierarchy.along_the_line("mine")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["test images", "training images"]
    on_test, on_train = (
        next(line.get_ydata() for line in axes.lines if line.get_label().startswith("matched"))
        for axes in figure.axes[2:]
    )
    assert max(on_test) == pytest.approx(0.3) and max(on_train) == pytest.approx(0.6015, abs=0.002)
    plt.close("all")


@pytest.mark.parametrize(
    ("rounds", "outcome", "stopped"), [([7, 99], "ended", "none"), ([7, 100], "stopped", "1 of 2 groups of 4")]
)
def test_it_is_told_where_mergemany_used_up_its_rounds(rounds, outcome, stopped):
    many = pd.DataFrame({"value": rounds, "node": [0, 1]}).assign(algorithm="many")
    # The hierarchy's sweeps are another matter, however many there were.
    table = pd.concat([many, many.assign(algorithm="hierarchy", value=100)])
    plant("mine", {"nodes": table.assign(metric="effort", n_leaves=4)}, "merge")
    facts = hierarchy.rounds("mine")
    assert facts.outcome == outcome and facts.values["stopped"] == stopped
    assert facts.values["most"] == str(max(rounds))


def test_the_limit_of_rounds_is_that_of_mergemany():
    assert inspect.signature(merge_many).parameters["max_rounds"].default == hierarchy.MOST_ROUNDS


def test_the_accuracy_table_leaves_cells_of_mergemany_empty_where_it_was_not_run():
    plant_accuracy("mine", TREE_WINS, 8)
    whole = hierarchy.accuracy_table("mine").set_index("models")
    plant_accuracy("mine", NO_MANY_AT_8, 8)
    table = hierarchy.accuracy_table("mine").set_index("models")
    assert list(table.loc["8", ["MergeMany", "gap"]]) == ["", ""]
    whole.loc["8", ["MergeMany", "gap"]] = ""
    assert table.equals(whole)
    plant_accuracy("mine", NO_MANY, 8)
    assert "MergeMany" not in hierarchy.accuracy_table("mine")
    assert set(hierarchy.accuracy_table("mine")["gap"]) == {""}


def test_the_accuracy_table_has_the_planted_accuracies():
    plant_accuracy("mine", TREE_WINS, 8)
    table = hierarchy.accuracy_table("mine").set_index("models")
    nodes = results.read("mine", "accuracy", "nodes").query("split == 'test' and metric == 'accuracy'")
    for column, algorithm in (("hierarchy", "hierarchy"), ("MergeMany", "many"), ("naive average", "mean")):
        mean = 100 * nodes[(nodes["algorithm"] == algorithm) & (nodes["n_leaves"] == 8)]["value"].mean()
        assert table.loc["8", column].startswith(f"{mean:.1f} [")
    assert list(table["n"]) == ["64", "16", "8"]


def test_a_negative_cost_is_a_merge_that_is_better_than_its_leaves():
    nodes = pd.DataFrame(
        [("unmerged", 1, 0, 0.8), ("unmerged", 1, 1, 0.6), ("hierarchy", 2, 0, 0.9)],
        columns=["algorithm", "n_leaves", "node", "value"],
    ).assign(split="test")
    assert hierarchy.drops(nodes.assign(metric="accuracy"), "hierarchy", 2, "test", "accuracy") == pytest.approx([-20])
    assert hierarchy.drops(nodes.assign(metric="loss"), "hierarchy", 2, "test", "loss") == pytest.approx([0.2])


@pytest.mark.parametrize("trees", [1, 8])
def test_every_table_and_figure_can_be_made_of_few_networks_and_of_many(trees):
    plant_accuracy("mine", TREE_WINS, trees)
    for table in (hierarchy.accuracy_table, hierarchy.cost_table, hierarchy.barrier_table):
        assert len(table("mine")) and "nan" not in table("mine").to_string().lower()
    for draw in FIGURES:
        assert len(svgs(themed(lambda draw=draw: draw("mine"), "alt"))) == 4, "light and dark, page and phone"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("accuracy", [NO_MANY_AT_8, NO_MANY], ids=["up to 4 leaves", "never"])
@pytest.mark.parametrize("trees", [1, 4])
def test_figures_show_mergemany_as_far_as_it_was_run(accuracy, trees):
    plant_accuracy("mine", accuracy, trees)
    for draw, first in ((hierarchy.accuracy_by_leaves, 0), (hierarchy.drop_by_leaves, 1)):
        figure = draw("mine")
        assert ("MergeMany" in names_in(figure)) == (accuracy is NO_MANY_AT_8)
        ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
        assert ticks == ["1", "4", "8"][first:], "the others go on"


def test_a_fourth_way_of_merging_takes_its_place_in_tables_and_figures():
    plant_accuracy("mine", ANOTHER, 4)
    assert hierarchy.ways_of(results.read("mine", "accuracy", "nodes")) == ["hierarchy", "many", "mean", "ensemble"]
    assert "ensemble of the leaves" in hierarchy.accuracy_table("mine")
    for draw in (hierarchy.accuracy_by_leaves, hierarchy.drop_by_leaves):
        assert "ensemble of the leaves" in names_in(draw("mine"))


def names_in(figure):
    """The names of what is drawn, in the legend or beside the ends of lines."""
    return [text.get_text() for owner in (figure.axes[0], *figure.legends) for text in owner.findobj(Text)]


def test_points_of_mergemany_stand_at_its_own_numbers_of_leaves():
    plant_accuracy("mine", NO_MANY_AT_8, 4)
    figure = hierarchy.drop_by_leaves("mine")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["test images", "training images"]
    for axes in figure.axes:
        drawn = {bars.get_label(): list(bars.lines[0].get_xdata()) for bars in axes.containers}
        assert drawn == {"hierarchy": [0, 1], "MergeMany": [0], "naive average": [0, 1]}, "above one another"


def test_the_same_figure_is_the_same_file():
    plant_accuracy("mine", TREE_WINS, 1)
    first, second = (themed(lambda: hierarchy.accuracy_by_leaves("mine"), "alt").data for _ in range(2))
    assert first == second
    assert b"<dc:date>" not in svgs(themed(lambda: hierarchy.accuracy_by_leaves("mine"), "alt"))[0]


def svgs(shown):
    return [base64.b64decode(part) for part in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", shown.data)]
