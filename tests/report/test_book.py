"""The book says what the results say: its sentences turn with them, and no measured number is typed into its prose."""

import base64
import html
import re
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from IPython.display import HTML
from planting import (
    REGULAR,
    ROBUST,
    SWAPPED,
    TREE_LOSES,
    TREE_WINS,
    clean,
    digits,
    plant,
    plant_attack,
    plant_regularisation,
    planted_images,
)

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import PRESETS, load_preset
from lab.networks.initial import INITIAL
from lab.report import accuracy_figures, chapter, words
from lab.report import build as book
from lab.report import page as report
from lab.report.claims import NOT_RUN, stated_claims
from lab.report.draw import hierarchy_scheme, house_style, themed
from lab.report.statistics import Interval

# The confidence level is a constant of the code (rebasin/lab/statistics.py), and nothing that was measured.
ALLOWED = {"95 %"}
# MergeMany of four networks at most, the others of eight.
NO_MANY_AT_8 = {kind: share for kind, share in TREE_WINS.items() if kind != ("merge_many", 8)}
NO_MANY = {kind: share for kind, share in NO_MANY_AT_8.items() if kind[0] != "merge_many"}
EVEN = {kind: (0.8 if kind[0] in SWAPPED else share) for kind, share in TREE_WINS.items()}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)


def prose(page):
    """A chapter's Markdown without its front matter, its code cells, and what is set in code or in formulas."""
    text = (ROOT / "book" / f"{page}.md").read_text()
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^```\{code-cell\}.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\$[^$\n]*\$", "", text)


PAGES = [
    "index",
    "hierarchy",
    "conditions",
    "robustness",
    "perturbations",
    "regularisation",
    "counterexample",
    "mnist",
    "planted",
    "many",
    "where",
    "barriers",
    "disagreement",
]


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed_into_a_chapter(page):
    found = re.findall(r"\d+[.,]\d+(?: ?%)?|\d+ ?(?:%|percent\b|points\b|nats\b)", prose(page).replace("\n", " "))
    assert set(found) <= ALLOWED, found
    assert len(prose(page)) > 200


def test_every_page_of_the_contents_is_there():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]
    for page in pages:
        assert [suffix for suffix in (".md", ".ipynb") if (ROOT / f"{page}{suffix}").is_file()], page
    assert len(pages) == len(set(pages))
    written = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").glob("*.md")}
    assert written <= set(pages), "a page that no reader can reach"


def curves(middle):
    """The table ``paths``: pairs of leaves whose accuracy and loss at the midpoint are ``middle[algorithm]``."""
    rows = []
    for (algorithm, metric), value in middle.items():
        ends = 0.9 if metric == "accuracy" else 0.3
        for node in range(4):
            for lam, at in ((0.0, ends), (0.5, value + 0.001 * node), (1.0, ends)):
                rows += [(algorithm, 2, node, split, lam, metric, at) for split in ("train", "test")]
    return pd.DataFrame(rows, columns=["algorithm", "n_leaves", "node", "split", "lam", "metric", "value"])


LOWERS = "Matching lowers the barrier between two trained networks: in accuracy it is "
HIGH = {
    ("tree", "accuracy"): 0.7, ("tree", "loss"): 0.6, ("naive", "accuracy"): 0.2, ("naive", "loss"): 2.0
}  # fmt: skip


def plant_accuracy(run, accuracy, trees, middle=HIGH):
    """Let a run have all tables of notebooks/accuracy.ipynb; losses are twice the errors."""
    images = planted_images(accuracy, trees)
    rows = []
    for one in images.itertuples():
        share = np.unpackbits(np.frombuffer(one.correct, np.uint8), count=one.images).mean()
        for metric, value in (("accuracy", share), ("loss", 2 * (1 - share))):
            rows += [(one.algorithm, one.n_leaves, one.node, split, metric, value) for split in ("train", "test")]
    nodes = pd.DataFrame(rows, columns=["algorithm", "n_leaves", "node", "split", "metric", "value"])
    plant(run, {"images": images, "nodes": nodes, "paths": curves(middle)})


@pytest.fixture
def own_run(monkeypatch):
    """The book is to speak of the run ``mine``."""
    monkeypatch.setenv("REBASIN_RUN", "mine")


def plant_conditions(run, gaps, models=8, initial="torch"):
    """Let a run have the table of notebooks/conditions.ipynb, with these gaps in points: (as merged, after REPAIR).

    They are those of widths 32, 64 and 128, or by recipe: (width, initial weights, epochs, weight decay).
    """
    if not isinstance(gaps, dict):
        gaps = {(width, initial, 3, 0.0): both for width, both in zip((32, 64, 128), gaps, strict=False)}
    rows = []
    for recipe, both in gaps.items():
        rows.append((*recipe, "unmerged", False, 0, "accuracy", 0.9))
        for repaired, gap in zip((False, True), both, strict=True):
            for algorithm, value in (("tree", 0.5 + gap / 100), ("merge_many", 0.5), ("naive", 0.2)):
                rows.append((*recipe, algorithm, repaired, 0, "accuracy", value))
    columns = ["width", "initial", "epochs", "weight_decay", "algorithm", "repair", "node", "metric", "value"]
    given = results.declared_parameters("conditions") | {"run": run, "condition_models": models}
    table = pd.DataFrame(rows, columns=columns)
    results.finish(clean(results.begin("conditions", given)), digits(), {"conditions": table})


@pytest.mark.parametrize(
    ("accuracy", "trees", "opening"),
    [
        (TREE_WINS, 8, "<strong>The hierarchy beats MergeMany</strong>, as the paper says: "),
        (TREE_LOSES, 8, "<strong>MergeMany beats the hierarchy</strong>, against the paper's main claim: "),
        (EVEN, 8, "<strong>The hierarchy and MergeMany cannot be told apart</strong>: "),
        (
            TREE_WINS,
            7,
            "<strong>This run has too few networks to tell the hierarchy from MergeMany</strong> "
            "(n = 7, 8 are needed): ",
        ),
        (
            TREE_LOSES,
            1,
            "<strong>This run has too few networks to tell the hierarchy from MergeMany</strong> "
            "(n = 1, 8 are needed): ",
        ),
    ],
    ids=["wins", "loses", "even", "seven trees", "one tree"],
)
def test_the_main_finding_turns_with_the_results(accuracy, trees, opening):
    plant_accuracy("mine", accuracy, trees)
    found = chapter.hierarchy_facts("mine")["hierarchy_finding"]
    assert found.startswith(opening)
    gap = chapter.decide("mine")[1].conditions[0].effect
    assert f"a gap of {words.points(gap, signed=True)} points (n = {trees})" in found
    assert "nan" not in found


@pytest.mark.parametrize(
    ("accuracy", "grows"),
    [(TREE_WINS, True), (TREE_WINS | {("tree", 4): 0.7}, False), (TREE_WINS | {("merge_many", 4): 0.5}, False)],
)
def test_the_cost_is_said_to_grow_only_where_it_does(accuracy, grows):
    plant_accuracy("mine", accuracy, trees=4)
    found = chapter.hierarchy_facts("mine")["drop_finding"]
    assert ("The more models, the higher the cost" in found) == grows
    assert "Points of test accuracy lost by nodes of 8 leaves (n = 4): hierarchy " in found
    assert found.count("n = ") == 1


@pytest.mark.parametrize(
    ("accuracy", "grows"),
    [
        (NO_MANY_AT_8, True),
        (NO_MANY_AT_8 | {("tree", 8): 0.9}, False),
        (NO_MANY_AT_8 | {("merge_many", 4): 0.99}, False),
        (NO_MANY, False),
    ],
    ids=["grows", "tree gets better", "MergeMany loses nothing", "no MergeMany"],
)
def test_the_cost_is_told_where_each_algorithm_ends(accuracy, grows):
    plant_accuracy("mine", accuracy, trees=4)
    found = chapter.hierarchy_facts("mine")["drop_finding"]
    assert ("The more models, the higher the cost" in found) == grows
    told = found.split("Points of test accuracy lost ")[1]
    number = r"-?\d+\.\d \[.*?\]".replace("-", "−")
    largest = rf"by nodes of 8 leaves \(n = 4\): hierarchy {number}, naive average {number}"
    smaller = rf"; by nodes of 4 leaves \(n = 8\): hierarchy {number}, MergeMany {number}, naive average {number}"
    assert re.fullmatch(largest + ("" if accuracy is NO_MANY else smaller) + r"\.", told), told


def test_a_run_without_mergemany_of_eight_says_so():
    plant_accuracy("mine", NO_MANY_AT_8, 8)
    finding = chapter.hierarchy_facts("mine")["hierarchy_finding"]
    assert finding == "<strong>Run mine has no MergeMany of eight leaves</strong>, on which the claims are decided."
    verdicts = chapter.verdict_table("mine", ("H1", "H2", "H3")).set_index("")["verdict"]
    assert list(verdicts) == ["<strong>replicated</strong>", NOT_RUN, "<strong>replicated</strong>"]


def test_the_accuracy_table_leaves_cells_of_mergemany_empty_where_it_was_not_run():
    plant_accuracy("mine", TREE_WINS, 8)
    whole = chapter.accuracy_table("mine").set_index("models")
    plant_accuracy("mine", NO_MANY_AT_8, 8)
    table = chapter.accuracy_table("mine").set_index("models")
    assert list(table.loc[8, ["MergeMany", "gap"]]) == ["", ""]
    whole.loc[8, ["MergeMany", "gap"]] = ""
    assert table.equals(whole)
    plant_accuracy("mine", NO_MANY, 8)
    assert set(chapter.accuracy_table("mine")["gap"]) == set(chapter.accuracy_table("mine")["MergeMany"]) == {""}


@pytest.mark.parametrize("accuracy", [NO_MANY_AT_8, NO_MANY], ids=["up to 4 leaves", "never"])
@pytest.mark.parametrize("trees", [1, 4])
def test_figures_show_mergemany_as_far_as_it_was_run(accuracy, trees):
    plant_accuracy("mine", accuracy, trees)
    nodes = results.read("mine", "accuracy", "nodes")
    for draw, count in ((accuracy_figures.accuracy_by_leaves, 1), (accuracy_figures.drop_by_leaves, 2)):
        figure = draw(nodes)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert any(label.startswith("MergeMany") for label in labels) == (accuracy is NO_MANY_AT_8)
        assert len(figure.axes) == count
        ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
        assert ticks == ["1", "4", "8"][count - 1 :], "the others go on"
        plt.close(figure)


def test_points_of_mergemany_stand_at_its_own_numbers_of_leaves():
    plant_accuracy("mine", NO_MANY_AT_8, 4)
    figure = accuracy_figures.drop_by_leaves(results.read("mine", "accuracy", "nodes"))
    drawn = {bars.get_label(): bars.lines[0].get_xdata() for bars in figure.axes[0].containers}
    assert drawn["hierarchy, test"] == pytest.approx([-0.08, 0.92])
    assert drawn["MergeMany, test"] == pytest.approx([0])
    assert drawn["naive average, test"] == pytest.approx([0.08, 1.08])
    plt.close(figure)


@pytest.mark.parametrize(
    ("accuracy", "loss", "opening"),
    [
        (0.7, 0.6, LOWERS + "still there, in loss still there"),
        (0.899, 0.6, LOWERS + "gone, in loss still there"),
        (0.7, 0.301, LOWERS + "still there, in loss gone"),
        (0.899, 0.301, "Matching removes the barrier between two trained networks"),
    ],
)
def test_the_barrier_is_said_to_vanish_only_where_it_does(accuracy, loss, opening):
    plant_accuracy("mine", TREE_WINS, 1, HIGH | {("tree", "accuracy"): accuracy, ("tree", "loss"): loss})
    found = chapter.hierarchy_facts("mine")["path_finding"]
    assert found.startswith(f"<strong>{opening}</strong>: ")
    assert "(n = 4 pairs; zero means under 0.5 points or 0.02 nats)" in found


def test_matching_that_raises_the_barrier_is_not_said_to_lower_it():
    plant_accuracy("mine", TREE_WINS, 1, HIGH | {("tree", "accuracy"): 0.1, ("tree", "loss"): 3.0})
    assert "lowers the barrier" not in chapter.hierarchy_facts("mine")["path_finding"]


@pytest.mark.parametrize(
    ("gaps", "opening"),
    [
        ([(-3, -1), (-0.5, -2)], "under none of 2 recipes; after REPAIR, under none of 2"),
        ([(3, 1), (0.5, 2)], "under all 2 recipes; after REPAIR, under all 2"),
        ([(-3, 1), (-0.5, -2), (1, 2)], "under 1 of 3 recipes; after REPAIR, under 2 of 3"),
    ],
)
def test_the_finding_on_recipes_turns_with_the_results(own_run, gaps, opening):
    plant_conditions("mine", gaps)
    found = chapter.conditions_finding()
    assert found.startswith(f"<strong>As merged, the hierarchy is ahead of MergeMany {opening}.</strong> ")
    plain = sorted(gap for gap, _ in gaps)
    spread = f"from {plain[0]:+.1f} to {plain[-1]:+.1f} points as merged".replace("-", "−")
    assert spread in found
    assert "run mine, scikit-learn's digits; means over 1 tree a recipe, without intervals" in found


def test_recipes_differ_by_their_initial_weights_too(own_run, monkeypatch):
    recipes = {(32, "lecun_normal", 3, 0.0): (-2, -1), (32, "torch", 3, 0.0): (3, 4), (32, "torch", 9, 0.0): (-1, 2)}
    plant_conditions("mine", recipes)
    opening = (
        "As merged, the hierarchy is ahead of MergeMany under 1 of 3 (1 from PyTorch's default, 0 from LeCun-normal) "
        "recipes; after REPAIR, under 2 of 3 (2 from PyTorch's default, 0 from LeCun-normal)"
    )
    found = chapter.conditions_finding()
    assert found.startswith(f"<strong>{opening}.</strong> ")
    assert "from −2.0 to +3.0 points as merged and from −1.0 to +4.0 after REPAIR" in found
    assert chapter.initial_finding() == (
        "Test accuracy over the other settings: of unmerged networks, 90.0 to 90.0 % from PyTorch's default, 90.0 to "
        "90.0 % from LeCun-normal; of the hierarchy of eight, 49.0 to 53.0 % from PyTorch's default, 48.0 to 48.0 % "
        "from LeCun-normal."
    )
    plant_conditions("other", [(1, 1)])
    monkeypatch.setenv("REBASIN_RUN", "other")
    assert chapter.initial_finding() == "", "of one kind of initial weights there is nothing to compare"
    monkeypatch.setenv("REBASIN_RUN", "mine")
    table = chapter.conditions_table("mine")
    assert list(table["initial weights"]) == ["PyTorch's default", "PyTorch's default", "LeCun-normal"]
    assert list(table["epochs"]) == [3, 9, 3]
    assert list(table["gap"]) == ["+3.0", "−1.0", "−2.0"]
    assert list(table["gap after REPAIR"]) == ["+4.0", "+2.0", "−1.0"]
    figure = accuracy_figures.gap_by_condition(results.read("mine", "conditions", "conditions"))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "PyTorch's default, width 32\n3 epochs, weight decay 0",
        "PyTorch's default, width 32\n9 epochs, weight decay 0",
        "LeCun-normal, width 32\n3 epochs, weight decay 0",
    ]
    # Lines of the plot: for each recipe the leaves, then line, filled and open mark of each algorithm.
    trees = [float(line.get_xdata()[0]) for line in figure.axes[0].lines[2:21:7]]
    assert trees == pytest.approx([53, 49, 48])
    plt.close(figure)


def test_every_scheme_of_initial_weights_has_a_name_for_readers():
    assert set(accuracy_figures.INITIALS) == set(INITIAL)


def test_the_finding_on_recipes_tells_how_many_trees_it_is_a_mean_over(own_run):
    plant_conditions("mine", [(1, 1)], models=32)
    assert "means over 4 trees a recipe" in chapter.conditions_finding()


def test_recipes_that_were_never_run_are_not_spoken_of():
    assert chapter.conditions_finding() == "Other recipes were not run yet."
    assert report.tabs("conditions", show).data == "<p>Not run yet.</p>"


def test_recipes_that_were_planned_and_not_run_are_told(own_run):
    plant_conditions("mine", [(1, 1)])
    assert chapter.conditions_missing() == "This run is a small one, on scikit-learn's digits."


def test_recipes_of_the_plan_that_a_run_did_not_reach_are_counted(own_run, monkeypatch):
    plan = load_preset("gpu") | {
        "dataset": "digits",
        "condition_widths": [32, 64],
        "condition_initials": ["torch"],
        "condition_epochs": [3],
        "condition_weight_decays": [0.0],
    }
    monkeypatch.setattr(chapter, "load_preset", lambda name: plan)
    plant_conditions("mine", [(1, 1)])
    assert chapter.conditions_missing() == "Planned and not run here (1 of the plan's 2 recipes): width 64."
    plant_conditions("mine", [(1, 1), (1, 1)])
    assert chapter.conditions_missing() == "Every recipe of the plan was run."
    plant_conditions("mine", [(1, 1)], initial="lecun_normal")
    assert chapter.conditions_missing() == "Planned and not run here (2 of the plan's 2 recipes): all."


AXES = {
    "condition_widths": (512, 2048),
    "condition_initials": ("torch", "lecun_normal"),
    "condition_epochs": (3, 9, 30),
    "condition_weight_decays": (0.0, 0.0005),
}


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (lambda w, i, e, d: w == 512 and e < 30, ["width 512, 30 epochs", "width 2048"]),
        (lambda w, i, e, d: e == 3, ["9 or 30 epochs"]),
        (lambda w, i, e, d: i == "torch" or d == 0, ["initial weights LeCun-normal, weight decay 0.0005"]),
        (
            lambda w, i, e, d: (w, i, e, d) != (2048, "torch", 9, 0.0),
            ["width 2048, initial weights PyTorch's default, 9 epochs, weight decay 0"],
        ),
        (
            lambda w, i, e, d: w == 512 and (i == "torch" or e == 9),
            ["width 512, initial weights LeCun-normal, 3 or 30 epochs", "width 2048"],
        ),
    ],
)
def test_recipes_are_told_in_few_words(run, told):
    assert chapter._in_words({recipe for recipe in product(*AXES.values()) if not run(*recipe)}, AXES) == told


def test_the_plan_has_every_axis_of_the_notebook():
    axes = {name for name in results.declared_parameters("conditions") if name.startswith("condition_")}
    assert set(chapter.PLAN) == axes - {"condition_models"}
    assert all(set(chapter.PLAN) <= set(load_preset(path.stem)) for path in PRESETS.glob("*pu.yaml"))


def test_the_verdicts_of_no_run_are_all_open():
    table = chapter.verdict_table(None)
    assert list(table[""]) == [claim["id"] for claim in stated_claims()]
    assert set(table["verdict"]) == {NOT_RUN}
    assert list(table["effect"]) == [f"<small>{claim['statistic']}</small>" for claim in stated_claims()]


def test_the_verdicts_of_a_run_tell_effect_bound_and_n():
    plant_accuracy("mine", TREE_WINS, 8)
    table = chapter.verdict_table("mine", ("H1", "H3")).set_index("")
    assert list(table.index) == ["H1", "H3"]
    assert set(table["verdict"]) == {"<strong>replicated</strong>"}
    effect = chapter.decide("mine")[2].conditions[0].effect
    points = words.points(effect, signed=True)
    told = f"drop at 8 leaves above 1 point: {points} points, to lie above 1, n = 8: <em>replicated</em>"
    assert table.loc["H3", "effect"] == told


def test_a_parameter_is_that_of_the_run_that_is_spoken_of(monkeypatch):
    monkeypatch.setenv("REBASIN_RUN", "mine")
    assert report.parameter("accuracy", "barrier_points") == "no", "there is no run yet"
    plant_accuracy("mine", TREE_WINS, 8)
    assert report.parameter("accuracy", "barrier_points") == str(
        results.provenance("mine", "accuracy")["parameters"]["barrier_points"]
    )


def test_a_claim_that_holds_in_part_tells_in_how_many_of_its_conditions():
    plant_accuracy("mine", TREE_WINS | {("merge_many", 4): 0.55}, 8)
    verdicts = chapter.verdict_table("mine").set_index("")["verdict"]
    assert verdicts["H2"] == "<strong>partly</strong> <small>(1 of 2 conditions)</small>"


def test_the_verdicts_of_a_run_tell_what_is_decisive_and_what_is_in_percent():
    plant_attack("mine", ROBUST | {("early_stopped", 8): 0.9}, 8)
    plant_regularisation("mine", REGULAR, 8, noise=0)
    table = chapter.verdict_table("mine").set_index("")
    assert table.loc["H4", "verdict"] == "<strong>not replicated</strong>"
    effects = table.loc["H4", "effect"].split("<br>")
    assert ["<small>(decisive)</small>" in effect for effect in effects] == [False, False, True, True, False]
    told = r"above unmerged networks of its accuracy at 2/255 <small>\(decisive\)</small>: −\d+\.\d \[.*\] points, "
    assert re.match(told + "to lie above 0, n = 8: <em>not replicated</em>$", effects[2])
    told = "norm below its leaves': +40.0 [+40.0, +40.0] %, to lie above 0, n = 8: <em>replicated</em>"
    assert table.loc["H6", "effect"].split("<br>")[0] == told
    assert set(table["verdict"].drop(["H4", "H6"])) == {NOT_RUN}


@pytest.mark.parametrize("trees", [1, 8])
def test_every_table_and_figure_can_be_made_of_few_networks_and_of_many(trees):
    plant_accuracy("mine", TREE_WINS, trees)
    plant_conditions("mine", [(-1, 1)], models=8 * trees)
    nodes, paths = (results.read("mine", "accuracy", name) for name in ("nodes", "paths"))
    conditions = results.read("mine", "conditions", "conditions")
    texts = [chapter.accuracy_table("mine"), chapter.barrier_table("mine"), chapter.conditions_table("mine")]
    for table in texts:
        assert len(table)
        assert "nan" not in table.to_string().lower()
    for draw in (
        lambda: accuracy_figures.accuracy_by_leaves(nodes),
        lambda: accuracy_figures.drop_by_leaves(nodes),
        lambda: accuracy_figures.paths(paths, "test"),
        lambda: accuracy_figures.gap_by_condition(conditions),
        hierarchy_scheme,
    ):
        assert len(svgs(themed(draw, "alt"))) == 2
    assert plt.get_fignums() == []


def test_the_accuracy_table_has_the_planted_accuracies():
    plant_accuracy("mine", TREE_WINS, 8)
    table = chapter.accuracy_table("mine").set_index("models")
    nodes = results.read("mine", "accuracy", "nodes").query("split == 'test' and metric == 'accuracy'")
    for column, algorithm in (("hierarchy", "tree"), ("MergeMany", "merge_many"), ("naive average", "naive")):
        mean = 100 * nodes[(nodes["algorithm"] == algorithm) & (nodes["n_leaves"] == 8)]["value"].mean()
        assert table.loc[8, column].startswith(f"{mean:.1f} [")
    assert list(table["n"]) == [64, 16, 8]


def parts(shown):
    """Label and content of each tab, and which of them is open."""
    labels = re.findall(r'<label class="sd-tab-label" for="[^"]*">([^<]*)</label>', shown.data)
    contents = shown.data.split('<div class="sd-tab-content docutils">')[1:]
    checked = ["checked" in tag for tag in re.findall(r"<input[^>]*>", shown.data)]
    return labels, contents, checked


def show(run):
    return HTML(f"<p>shown of {run}</p>")


def test_there_is_a_tab_for_each_run_with_what_it_was_measured_on():
    for run in ("smoke", "gpu", "other", "cpu"):
        plant_accuracy(run, TREE_WINS, 1)
    labels, contents, checked = parts(report.tabs("accuracy", show))
    assert labels == ["gpu", "cpu", "smoke"], "the largest preset first; runs of somebody's own only when asked for"
    assert checked == [True, False, False]
    made = results.provenance("cpu", "accuracy")
    for run, content in zip(labels, contents, strict=True):
        assert f"<p>shown of {run}</p>" in content
        measured = re.search(r'<p class="measured-on">Measured on: (.*)</p>', content)[1]
        for fact in (f"run {run}", "8 MLPs, width 64, 20 epochs", made["date"], (made["commit"] or "no commit")[:10]):
            assert fact in measured
        assert html.escape(f"scikit-learn's digits ({made['dataset']['fingerprint']})") in measured
        assert '<a href="../notebooks/accuracy.html">notebooks/accuracy.ipynb</a>' in measured
    inputs = re.findall(r'id="([^"]*)"', report.tabs("accuracy", show).data)
    assert len(inputs) == len(set(inputs)) == 3


@pytest.mark.parametrize("run", ["cpu", "gpu"])
def test_a_reference_run_from_uncommitted_code_is_not_shown(run):
    plant_accuracy(run, TREE_WINS, 1)
    path = results.results_folder() / run / "accuracy.json"
    assert report.runs("accuracy") == [run]
    path.write_text(path.read_text().replace('"clean": true', '"clean": false'))
    assert report.runs("accuracy") == []


def test_a_table_of_other_code_or_other_rules_says_so(monkeypatch):
    plant_accuracy("smoke", TREE_WINS, 1)
    assert "changed since" not in report.measured_on("smoke", "accuracy")
    with monkeypatch.context() as patch:
        patch.setattr(results, "step_key", lambda name, parameters: "another")
        assert "the code has changed since" in report.measured_on("smoke", "accuracy")
    with monkeypatch.context() as patch:
        patch.setattr(results, "claims_digest", lambda name: "another")
        assert "the rules of the claims have changed since" in report.measured_on("smoke", "accuracy")


def test_a_run_without_nodes_of_eight_leaves_has_no_verdicts_and_says_so():
    small = {key: share for key, share in TREE_WINS.items() if key[1] < 8}
    plant_accuracy("mine", small, 2)
    assert set(chapter.verdict_table("mine")["verdict"]) == {NOT_RUN}
    finding = chapter.hierarchy_facts("mine")["hierarchy_finding"]
    assert finding == "<strong>Run mine has no nodes of eight leaves</strong>, on which the claims are decided."


def test_a_table_from_uncommitted_code_says_so():
    plant_accuracy("smoke", TREE_WINS, 1)
    path = results.results_folder() / "smoke" / "accuracy.json"
    for state in ("true", "false"):
        path.write_text(re.sub('"clean": (true|false)', f'"clean": {state}', path.read_text()))
        assert ("with uncommitted changes" in report.measured_on("smoke", "accuracy")) == (state == "false")


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
    assert report.runs("accuracy") == expected
    assert report.shown_run("accuracy") == expected[0]
    assert parts(report.tabs("accuracy", show))[0] == expected


def test_a_chapter_without_any_run_says_how_to_make_one():
    with pytest.raises(
        FileNotFoundError, match="no run holds the tables of notebooks/accuracy.ipynb: `make reproduce`"
    ):
        report.shown_run("accuracy")


def test_a_book_of_a_run_that_is_not_there_is_refused(monkeypatch):
    plant_accuracy("smoke", TREE_WINS, 1)
    monkeypatch.setenv("REBASIN_RUN", "mien")
    with pytest.raises(SystemExit, match="rebasin: there is no run 'mien' under results/: there are smoke"):
        book.main()


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


def svgs(shown):
    return [base64.b64decode(part) for part in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", shown.data)]


def draw_something():
    figure, axes = plt.subplots()
    axes.plot([0, 1], label="line")
    axes.legend()
    return figure


def test_a_figure_is_drawn_for_light_and_for_dark_pages():
    shown = themed(draw_something, "a line")
    light, dark = svgs(shown)
    assert re.findall(r'<img class="([^"]*)"', shown.data) == ["only-light", "only-dark"]
    assert b"#1f2328" in light and b"#1f2328" not in dark
    assert b"#e6e6e6" in dark and b"#e6e6e6" not in light
    assert plt.get_fignums() == [], "a figure that stays open is kept in memory"


def test_what_a_figure_shows_is_told_in_words_whatever_they_are():
    alt = 'a "line" of <b> & x > 0'
    shown = themed(draw_something, alt).data
    assert shown.count(f'alt="{html.escape(alt)}"') == 2
    assert alt not in shown


def test_the_same_figure_is_the_same_file():
    plant_accuracy("mine", TREE_WINS, 1)
    nodes = results.read("mine", "accuracy", "nodes")
    first, second = (themed(lambda: accuracy_figures.accuracy_by_leaves(nodes), "alt").data for _ in range(2))
    assert first == second
    assert b"<dc:date>" not in svgs(themed(draw_something, "alt"))[0]


def test_the_house_style_ends_with_its_block():
    before = dict(plt.rcParams)
    with house_style(dark=True):
        assert plt.rcParams["text.color"] == "#E6E6E6"
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ([7, 99], "MergeMany always came to a round that shortened no distance."),
        ([7, 100], "MergeMany used up its 100 rounds, and may not have been done, in 1 of 2 groups of 4 models."),
    ],
)
def test_it_is_told_where_mergemany_used_up_its_rounds(rounds, told):
    plant_accuracy("mine", TREE_WINS, 1)
    assert chapter.hierarchy_facts("mine")["rounds_note"] == ""
    table = pd.DataFrame({"value": rounds, "node": [0, 1]})
    # The hierarchy's sweeps are another matter, however many there were.
    table = pd.concat([table.assign(algorithm="merge_many"), table.assign(algorithm="tree", value=100)])
    given = results.declared_parameters("merge") | {"run": "mine"}
    nodes = table.assign(metric="effort", n_leaves=4)
    results.finish(clean(results.begin("merge", given)), digits(), {"nodes": nodes})
    assert chapter.hierarchy_facts("mine")["rounds_note"] == told
