"""What the chapter says of the hierarchy and MergeMany turns with the table: ahead, behind, growing, or untold."""

from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import clean, digits

from lab.bookkeeping import results
from lab.networks import ARCHITECTURES
from lab.report import tabs as report
from lab.report import where_chapter as chapter
from lab.report.draw import house_style
from lab.report.where_figures import GAPS, NETWORKS, conditions, gap, gap_by_leaves, growth
from lab.training.plan import Planned
from lab.training.recipe import Recipe

SIZES = (2, 4, 8)
# Gaps in points at two, four and eight leaves.
GROWING, STEADY, BEHIND, SHRINKING = (1, 2, 4), (2, 2, 2), (-1, -2, -4), (4, 2, 1)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def planted(merged, end=STEADY, every=STEADY, models=32):
    """The table ``nodes``: for each width of ``merged`` its gaps as merged; those after REPAIR are alike for all.

    MergeMany has 50 % as merged and 60 % after REPAIR, and the naive average 10 and 20; gaps of nodes differ by
    0.2 points. Nodes come in no order.
    """
    rows = []
    for width, gaps in merged.items():
        told = Planned("tiny", "digits", Recipe(width=width), (3,), models).columns(3)
        rows += [
            told | {"algorithm": "unmerged", "mended": "none", "n_leaves": 1, "node": k, "value": 0.9}
            for k in range(models)
        ]
        for at, size in enumerate(SIZES):
            values = {
                ("merge_many", "none"): 50, ("merge_many", "end"): 60, ("naive", "none"): 10, ("naive", "end"): 20,
                ("tree", "none"): 50 + gaps[at], ("tree", "end"): 60 + end[at], ("tree", "every stage"): 60 + every[at],
            }  # fmt: skip
            for (algorithm, mended), node in product(values, reversed(range(models // size))):
                noise = 0.1 * (-1) ** node if algorithm == "tree" else 0
                value = (values[algorithm, mended] + noise) / 100
                told_here = {"algorithm": algorithm, "mended": mended, "n_leaves": size, "node": node, "value": value}
                rows.append(told | told_here)
    return pd.DataFrame(rows).assign(metric="accuracy", split="test")


def plant(*args, **kwargs):
    write(planted(*args, **kwargs))


def write(table):
    given = results.declared_parameters("where") | {"run": "mine"}
    results.finish(clean(results.begin("where", given)), digits(), {"nodes": table}, models="some")


@pytest.mark.parametrize(
    ("merged", "end", "ahead", "behind", "outdone"),
    [
        ({8: GROWING, 16: STEADY}, GROWING, ("4", "4"), ("none", "none"), ("none", "none")),
        ({8: BEHIND, 16: BEHIND}, BEHIND, ("none", "none"), ("4", "4"), ("2", "2")),
        ({8: GROWING, 16: BEHIND}, STEADY, ("2", "4"), ("2", "none"), ("1", "none")),
        ({8: (0.01, 0.01, 0.01), 16: (-0.01, 0, -1)}, BEHIND, ("none", "none"), ("1", "4"), ("1", "2")),
        ({8: (-1, -1, 0.01), 16: (1, 1, -0.01)}, STEADY, ("1", "4"), ("1", "none"), ("1", "none")),
    ],
    ids=["everywhere", "nowhere", "in some", "only in the mean", "otherwise at the largest size"],
)
def test_the_finding_counts_where_the_hierarchy_is_ahead_and_behind(merged, end, ahead, behind, outdone):
    plant(merged, end)
    assert chapter.where_finding() == (
        "<strong>From 4 models on, the hierarchy is ahead of MergeMany with a 95 % interval above zero in "
        f"{ahead[0]} of 4 comparisons as merged</strong>, in {ahead[1]} after REPAIR at the end, in 4 with REPAIR at "
        f"every stage; MergeMany in {behind[0]}, {behind[1]} and none. A comparison is one condition at one number of "
        "models, with 4 groups of networks or more; at two models, where both merge one pair, there is nothing to "
        "tell. At the largest number of models of each of 2 conditions (4 groups) the hierarchy is behind in the "
        f"mean in {outdone[0]}, {outdone[1]} and none of them (run mine)."
    )


def test_recipes_that_differ_in_what_no_label_tells_are_conditions_of_their_own():
    ahead, behind = planted({8: GROWING}), planted({8: BEHIND}).assign(learning_rate=0.01)
    write(pd.concat([ahead, behind]))
    assert list(conditions(results.read("mine", "where", "nodes"))) == [
        ("digits, 3 epochs", "MLP, 3 hidden layers, width 8, tiny, learning_rate 0.001"),
        ("digits, 3 epochs", "MLP, 3 hidden layers, width 8, tiny, learning_rate 0.01"),
    ]
    assert "above zero in 2 of 4 comparisons as merged" in chapter.where_finding()


def test_the_fewest_and_the_most_groups_of_the_largest_sizes_are_told():
    write(pd.concat([planted({8: GROWING}, models=32), planted({16: GROWING}, models=8)]))
    assert "of each of 2 conditions (1 to 4 groups) the hierarchy" in chapter.where_finding()
    assert "in 2 of 2 comparisons as merged" in chapter.where_finding()


def test_a_tie_that_rounding_hides_is_no_lead():
    table = planted({8: (0, 0, 0)}, models=8)
    shares = {0: 0.1 + 0.2, 1: 0.3}  # differ by the last bit
    tree = (table["algorithm"] == "tree") & (table["mended"] == "none")
    table.loc[tree, "value"] = shares[0]
    table.loc[(table["algorithm"] == "merge_many") & (table["mended"] == "none"), "value"] = shares[1]
    write(table)
    assert list(chapter.counts_table("mine")["ahead in the mean"][:3]) == ["0 of 1"] * 3
    assert "in none as merged" in chapter.growth_finding()
    assert not chapter.gaps_table("mine")["gap, as merged"].str.contains("strong").any()


def test_what_has_too_few_groups_for_an_interval_is_no_comparison():
    plant({8: GROWING}, models=16)
    assert "above zero in 1 of 1 comparisons as merged" in chapter.where_finding()
    table = chapter.counts_table("mine").set_index(["", "models"])
    assert list(table.loc[("as merged", 4)]) == ["1 of 1", "1 of 1", "0 of 1"]
    assert list(table.loc[("as merged", 8)]) == ["1 of 1", "–", "–"]


def test_too_few_networks_everywhere_are_said_to_be_too_few():
    plant({8: GROWING}, models=8)
    assert chapter.where_finding() == (
        "<strong>Run mine has too few networks to tell the hierarchy from MergeMany</strong>: 2 groups of 4 or more at "
        "most of one recipe, 4 are needed."
    )
    pairs = planted({8: GROWING}, models=8)
    write(pairs[pairs["n_leaves"] <= 2])
    assert ": 0 groups of 4 or more at most of one recipe" in chapter.where_finding()


@pytest.mark.parametrize(
    ("merged", "grows", "certain"),
    [
        (GROWING, True, "1"),
        (STEADY, False, "none"),
        (SHRINKING, False, "none"),
        (BEHIND, False, "none"),
        ((-4, -2, -1), False, "none"),
        ((1, 4, 2), False, "1"),
        ((0.01, 0.02, 0.03), True, "none"),
    ],
    ids=["grows", "does not", "shrinks", "falls behind", "catches up", "grows once", "grows by chance"],
)
def test_the_gap_is_said_to_grow_only_where_the_hierarchy_is_ahead_and_more_so_each_time(merged, grows, certain):
    plant({8: merged})
    named = "digits, 3 epochs, MLP, 3 hidden layers, width 8"
    listed = f"1 ({named}: {50 + merged[-1]:.1f} against 50.0 % at 8 models, n = 4)" if grows else "none"
    assert chapter.growth_finding() == (
        "<strong>Of the 1 conditions, the hierarchy is ahead, and by more with every doubling of the models, in "
        f"{listed} as merged</strong>, in none after REPAIR at the end, in none with REPAIR at every stage; of ten "
        f"classes, chance is 10 %. At one doubling or more the intervals of both lie above zero in {certain}, none "
        "and none."
    )


def test_growth_compares_a_group_with_its_own_two_halves():
    (condition,) = conditions(planted({8: GROWING})).values()
    assert gap(condition, "as merged", 4) == pytest.approx([2.1, 1.9] * 4)
    # The halves of each group are an even and an odd node: their noise is gone.
    assert growth(condition, "as merged", 4) == pytest.approx([1.1, 0.9] * 4)


def test_each_mending_of_the_hierarchy_is_held_against_mergemany_mended_alike():
    (condition,) = conditions(planted({8: GROWING}, end=BEHIND, every=SHRINKING)).values()
    means = {kind: gap(condition, kind, 8).mean() for kind in GAPS}
    assert means == pytest.approx({"as merged": 4, "REPAIR at the end": -4, "REPAIR at every stage": 1})


def test_what_repair_gives_back_is_told_of_the_largest_size():
    plant({8: GROWING, 16: BEHIND}, end=STEADY, every=BEHIND)
    found = chapter.repair_finding()
    # From 54 and 46 to 62 and 56 for the hierarchy, from 50 to 60 for MergeMany, from 10 to 20 for the naive average.
    assert found.startswith(
        "<strong>REPAIR at the end gives more back to the hierarchy than to MergeMany in 1 of 2 conditions</strong>"
    )
    assert "+12.0 points (+8.0 to +16.0) to the hierarchy, +10.0 points (+10.0 to +10.0) to MergeMany" in found
    assert found.endswith(
        "At every stage it gives the hierarchy +6.0 points (+2.0 to +10.0), more than at the end in none of 2."
    )
    table = chapter.repair_table("mine")
    assert list(table["models"]) == [8, 8] and list(table["hierarchy: lost"]) == ["36.0", "44.0"]


def test_the_table_has_a_row_for_every_condition_and_size_and_is_bold_where_certain():
    plant({8: GROWING, 16: (0, 0, 0)})
    table = chapter.gaps_table("mine")
    assert list(table["models"]) == [2, 4, 8] * 2 and list(table["n"]) == [16, 8, 4] * 2
    assert table["gap, as merged"].str.startswith("<strong>+").tolist() == [True] * 3 + [False] * 3
    assert table.iloc[2][["unmerged", "hierarchy, as merged", "MergeMany, as merged"]].tolist() == [
        "90.0",
        "54.0",
        "50.0",
    ]


def test_recipes_that_differ_in_what_no_label_tells_go_by_their_names():
    same = planted({8: STEADY})
    other = same.assign(recipe="other", learning_rate=0.1)
    labels = list(conditions(pd.concat([same, other])))
    assert [second for _, second in labels] == [f"MLP, 3 hidden layers, width 8, {name}" for name in ("tiny", "other")]


def test_the_figure_has_a_panel_for_each_condition_on_light_and_dark_pages():
    table = planted({8: GROWING, 16: BEHIND, 32: STEADY}, models=16)
    for dark in (False, True):
        with house_style(dark):
            figure = gap_by_leaves(table)
        shown = [axes for axes in figure.axes if axes.axison]
        assert [axes.get_title(loc="left").split("\n")[1] for axes in shown] == [
            f"MLP, 3 hidden layers, width {width}" for width in (8, 16, 32)
        ]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(GAPS)
        assert all(low < 0 < high for low, high in (axes.get_ylim() for axes in shown)), "zero is to be seen"
        plt.close(figure)


def test_every_architecture_has_a_name_for_readers():
    assert set(NETWORKS) == set(ARCHITECTURES)


def test_without_a_run_the_chapter_says_so():
    assert chapter.where_finding() == "Not run yet."
    assert chapter.growth_finding() == chapter.repair_finding() == ""
    assert report.tabs("where", chapter.counts_table).data == "<p>Not run yet.</p>"


def test_conditions_of_the_plans_that_were_not_run_are_named_with_the_command_that_runs_them(monkeypatch):
    tiny = {"recipe": "tiny", "dataset": "digits", "models": 8, "epochs": [3, 9], "width": 16}
    plans = {"cpu": [tiny], "gpu": [tiny, tiny | {"width": 32, "epochs": [3]}]}
    monkeypatch.setattr(chapter, "load_preset", lambda preset: {"where_recipes": plans[preset]})
    plant({16: STEADY})
    assert chapter.missing("mine") == (
        "Not run in run mine: digits, 9 epochs, MLP, 3 hidden layers, width 16 "
        "(<code>.venv/bin/python -m lab.bookkeeping.pipeline cpu where</code>); "
        "digits, 3 epochs, MLP, 3 hidden layers, width 32 "
        "(<code>.venv/bin/python -m lab.bookkeeping.pipeline gpu where</code>)."
    )
    monkeypatch.setattr(chapter, "load_preset", lambda preset: {"where_recipes": [tiny | {"epochs": [3]}]})
    assert chapter.missing("mine") == ""
