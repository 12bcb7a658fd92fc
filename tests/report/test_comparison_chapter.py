"""What the chapter says of the hierarchy and MergeMany turns with the table: ahead, behind, growing, or untold."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import clean, digits, planted_comparison

from lab.bookkeeping import results
from lab.networks import ARCHITECTURES
from lab.report import comparison
from lab.report.draw import house_style
from lab.training.plan import Planned
from lab.training.recipe import Recipe

# Gaps in points at two, four and eight leaves.
GROWING, STEADY, BEHIND, SHRINKING = (1, 2, 4), (2, 2, 2), (-1, -2, -4), (4, 2, 1)
UNSURE = (0.01, 0.01, 0.01)  # far less than the nodes differ by
TINY = {"recipe": "tiny", "dataset": "digits", "models": 8, "epochs": [3], "width": 16}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    yield
    plt.close("all")


def table_of(merged, repaired=STEADY, every_stage=STEADY, models=32):
    """The table ``nodes``, with gaps as merged by width; those after REPAIR are alike for all widths."""
    recipes = [Planned("tiny", "digits", Recipe(width=width), (3,), models).columns(3) for width in merged]
    return planted_comparison(recipes, merged.values(), repaired, every_stage, models)


def plant(*args, **kwargs):
    write(table_of(*args, **kwargs))


def write(table, plan=(TINY,)):
    given = results.declared_parameters("comparison") | {"run": "mine", "comparison_recipes": list(plan)}
    results.finish(clean(results.begin("comparison", given)), digits(), {"nodes": table}, models="some")


@pytest.mark.parametrize(
    ("merged", "repaired", "outcome", "ahead", "behind"),
    [
        ({8: GROWING, 16: STEADY}, GROWING, "hierarchy", "12", "0"),
        ({8: BEHIND, 16: BEHIND}, BEHIND, "both", "4", "8"),
        ({8: GROWING, 16: BEHIND}, UNSURE, "both", "6", "2"),
        ({8: UNSURE, 16: (-0.01, 0, -1)}, BEHIND, "both", "4", "5"),
    ],
    ids=["everywhere", "as merged and repaired at the end", "in some", "only in the mean"],
)
def test_it_is_counted_where_either_is_clearly_ahead(merged, repaired, outcome, ahead, behind):
    plant(merged, repaired)
    facts = comparison.against_many("mine")
    assert facts.outcome == outcome
    assert (facts.values["ahead"], facts.values["behind"]) == (ahead, behind)
    # Two conditions at four and at eight models, as merged, repaired, and repaired at every stage.
    assert facts.values["comparisons"] == "12" and facts.values["conditions"] == "2"
    assert facts.values["by_chance"] == "0.6"


MENDED = ("as merged", "after REPAIR", "REPAIR at every stage")
EVERY_WAY = "{}; {}; and {}".format(*(f"digits, 3 epochs, MLP, width 8, {mended}" for mended in MENDED))


@pytest.mark.parametrize(
    ("gaps", "outcome", "named"),
    [
        (BEHIND, "MergeMany", ("none", EVERY_WAY)),
        (UNSURE, "neither", ("none", "none")),
        (GROWING, "hierarchy", (EVERY_WAY, "none")),
    ],
)
def test_who_is_ahead_is_named_with_the_conditions(gaps, outcome, named):
    plant({8: gaps}, repaired=gaps, every_stage=gaps)
    facts = comparison.against_many("mine")
    assert facts.outcome == outcome
    assert (facts.values["ahead_in"], facts.values["behind_in"]) == named


def test_what_has_too_few_groups_for_an_interval_is_no_comparison():
    plant({8: GROWING}, models=16)
    assert comparison.against_many("mine").values["comparisons"] == "3", "at four models, by three mendings"
    table = comparison.counts_table("mine").set_index(["mending", "models"])
    assert list(table.loc[("as merged", "4")]) == ["1 of 1", "1 of 1", "0 of 1"]
    assert list(table.loc[("as merged", "8")]) == ["1 of 1", "–", "–"]


def test_too_few_networks_everywhere_are_said_to_be_too_few():
    plant({8: GROWING}, models=8)
    facts = comparison.against_many("mine")
    assert facts.outcome == "too few" and facts.values == {"fewest": "4", "most": "2"}
    pairs = table_of({8: GROWING}, models=8)
    write(pairs[pairs["n_leaves"] <= 2])
    assert comparison.against_many("mine").values["most"] == "0"


@pytest.mark.parametrize(
    ("merged", "outcome", "behind"),
    [
        ({8: GROWING, 16: STEADY}, "not most", "0"),
        ({8: BEHIND, 16: BEHIND}, "most", "2"),
        ({8: GROWING, 16: BEHIND}, "not most", "1"),
        ({8: (1, 1, -0.01), 16: (-1, -1, -0.01)}, "most", "2"),
    ],
)
def test_at_the_largest_size_it_is_counted_in_the_mean_who_is_behind(merged, outcome, behind):
    plant(merged, repaired=BEHIND, every_stage=BEHIND)
    facts = comparison.largest("mine")
    assert facts.outcome == outcome
    assert facts.values == {
        "none": behind, "repair": "2", "repair_every_stage": "2", "conditions": "2", "groups": "4",
        "none_of": "2", "repair_of": "2", "repair_every_stage_of": "2",
    }  # fmt: skip


def test_conditions_in_which_both_only_guess_do_not_count():
    table = table_of({8: GROWING, 16: BEHIND}, repaired=BEHIND, every_stage=BEHIND)
    guessing = (table["width"] == 8) & (table["mended"] == "none") & (table["algorithm"] != "unmerged")
    table.loc[guessing, "value"] -= 0.4  # from 50 % to 10 %
    write(table)
    values = comparison.largest("mine").values
    assert (values["none"], values["none_of"], values["repair"], values["repair_of"]) == ("1", "1", "2", "2")
    assert comparison.largest("mine").outcome == "most"
    noisy = table_of({8: (0.01, 0.02, 0.03)})
    noisy.loc[(noisy["mended"] == "none") & (noisy["algorithm"] != "unmerged"), "value"] -= 0.4
    write(noisy)
    assert comparison.growth("mine").outcome == "guessing" and comparison.growth("mine").values["growing"] == "1"


def test_the_fewest_and_the_most_groups_of_the_largest_sizes_are_told():
    write(pd.concat([table_of({8: GROWING}, models=32), table_of({16: GROWING}, models=8)]))
    assert comparison.largest("mine").values["groups"] == "1 to 4"
    assert comparison.against_many("mine").values["conditions"] == "1"


def test_a_tie_that_rounding_hides_is_no_lead():
    table = table_of({8: (0, 0, 0)}, repaired=(0, 0, 0), every_stage=(0, 0, 0), models=32)
    shares = {"hierarchy": 0.1 + 0.2, "many": 0.3}  # differ by the last bit
    for algorithm, share in shares.items():
        table.loc[table["algorithm"] == algorithm, "value"] = share
    write(table)
    assert comparison.against_many("mine").outcome == "neither"
    assert set(comparison.counts_table("mine")["ahead in the mean"]) == {"0 of 1"}
    assert comparison.growth("mine").outcome == "nowhere"
    assert comparison.largest("mine").values["none"] == "0"
    assert not comparison.gaps_table("mine")["gap, as merged"].str.contains("*", regex=False).any()


@pytest.mark.parametrize(
    ("merged", "outcome", "grows"),
    [
        (GROWING, "for certain", True),
        (STEADY, "nowhere", False),
        (SHRINKING, "nowhere", False),
        (BEHIND, "nowhere", False),
        ((-4, -2, -1), "nowhere", False),
        ((1, 4, 2), "for certain", False),
        ((0.01, 0.02, 0.03), "in the mean", True),
    ],
    ids=["grows", "does not", "shrinks", "falls behind", "catches up", "grows once", "grows by chance"],
)
def test_the_gap_is_said_to_grow_only_where_the_hierarchy_is_ahead_and_more_so_each_time(merged, outcome, grows):
    plant({8: merged})
    facts = comparison.growth("mine")
    assert facts.outcome == outcome
    named = f"digits, 3 epochs, MLP, width 8 (as merged, {50 + merged[-1]:.1f} against 50.0 % at 8 models)"
    assert facts.values["growing_in"] == (named if grows else "none")
    assert facts.values["growing"] == str(int(grows)) and facts.values["conditions"] == "1"


def test_growth_compares_a_group_with_its_own_two_halves():
    plant({8: GROWING})
    (condition,) = comparison.conditions("mine").values()
    assert comparison.gap(condition, "none", 4) == pytest.approx([2.1, 1.9] * 4)
    # The halves of each group are an even and an odd node: their noise is gone.
    assert comparison.gap_growth(condition, "none", 4) == pytest.approx([1.1, 0.9] * 4)


def test_each_mending_of_the_hierarchy_is_held_against_mergemany_mended_alike():
    plant({8: GROWING}, repaired=BEHIND, every_stage=SHRINKING)
    (condition,) = comparison.conditions("mine").values()
    means = {mended: comparison.gap(condition, mended, 8).mean() for mended in comparison.BESIDE}
    assert means == pytest.approx({"none": 4, "repair": -4, "repair every stage": 1})


@pytest.mark.parametrize(
    ("repaired", "every_stage", "outcome", "better"),
    [(STEADY, BEHIND, "end", "0"), (BEHIND, STEADY, "every stage", "2"), ((0, 0, -30), STEADY, "nothing", "2")],
)
def test_what_repair_gives_back_is_told_of_the_largest_size(repaired, every_stage, outcome, better):
    plant({8: GROWING, 16: BEHIND}, repaired, every_stage)
    facts = comparison.given_back("mine")
    assert facts.outcome == outcome
    assert facts.values["better"] == better and facts.values["conditions"] == "2"
    # From 50 to 60 for MergeMany, from 10 to 20 for the naive average.
    assert facts.values["many"] == facts.values["mean"] == "+10.0"
    assert facts.values["many_range"] == "+10.0 to +10.0"


def test_what_repair_gives_back_is_told_of_each_condition():
    plant({8: GROWING, 16: BEHIND}, STEADY, BEHIND)
    # From 54 and 46 to 62, and to 56 where every stage is mended.
    values = comparison.given_back("mine").values
    assert values["hierarchy"] == "+12.0" and values["hierarchy_range"] == "+8.0 to +16.0" and values["more"] == "1"
    assert values["every_stage"] == "+6.0" and values["every_stage_range"] == "+2.0 to +10.0"
    table = comparison.repair_table("mine")
    assert list(table["models"]) == ["8", "8"] and list(table["hierarchy: lost"]) == ["36.0", "44.0"]
    assert list(table["hierarchy: back at the end"]) == ["8.0", "16.0"]


def test_the_table_has_a_row_for_every_condition_and_size_and_a_star_where_certain():
    plant({8: GROWING, 16: (0, 0, 0)})
    table = comparison.gaps_table("mine")
    assert list(table["models"]) == ["2", "4", "8"] * 2 and list(table["n"]) == ["16", "8", "4"] * 2
    assert table["gap, as merged"].str.endswith(" *").tolist() == [True] * 3 + [False] * 3
    accuracies = ["unmerged", "hierarchy, as merged", "MergeMany, as merged"]
    assert table.iloc[2][accuracies].tolist() == ["90.0", "54.0", "50.0"]
    assert "nan" not in table.to_string().lower()


def test_recipes_that_differ_in_what_no_label_tells_are_conditions_of_their_own():
    same = table_of({8: GROWING})
    write(pd.concat([same, table_of({8: BEHIND}).assign(learning_rate=0.01)]))
    assert [second for _, second in comparison.conditions("mine")] == [
        "MLP, width 8, learning_rate 0.001", "MLP, width 8, learning_rate 0.01",
    ]  # fmt: skip
    write(pd.concat([same, same.assign(recipe="other", learning_rate=0.1), table_of({16: BEHIND})]))
    assert [second for _, second in comparison.conditions("mine")] == [
        "MLP, width 8, recipe tiny, learning_rate 0.001", "MLP, width 8, recipe other, learning_rate 0.1",
        "MLP, width 16",
    ]  # fmt: skip


def test_the_figure_has_a_row_for_each_condition_on_light_and_dark_pages():
    plant({8: GROWING, 16: BEHIND, 32: STEADY}, models=16)
    for dark in (False, True):
        with house_style(dark):
            axes = comparison.gap_by_condition("mine").axes[0]
        names = [text.get_text() for text in axes.texts][:3]
        assert names == [f"digits, 3 epochs, MLP, width {width}; of 8" for width in (16, 32, 8)]
        merged = [float(bars.lines[0].get_xdata()[0]) for bars in axes.containers[::3]]
        assert merged == pytest.approx([-4, 2, 4]), "the furthest behind comes first"
        legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
        assert legend == ["as merged", "after REPAIR", "REPAIR at every stage"]


def test_every_architecture_has_a_name_for_readers():
    names = {
        comparison.condition_name(pd.Series({"dataset": "mnist", "epochs": 1, "width": 8, "architecture": name}))
        for name in ARCHITECTURES
    }
    assert len(names) == len(ARCHITECTURES)
    assert ("MNIST, 1 epoch", "ResNet20, BatchNorm, width 8") in names


def test_conditions_of_the_plan_that_were_not_run_are_named(monkeypatch):
    plan = [TINY | {"models": 64, "chunk": 64, "epochs": [3, 9]}, TINY | {"width": 32, "architecture": "vit"}]
    monkeypatch.setattr(comparison, "load_preset", lambda preset: {"comparison_recipes": plan})
    plant({16: STEADY})
    assert comparison.not_run("mine").outcome == "some" and comparison.not_run("mine").values == {"missing": "2"}
    table = comparison.not_run_table("mine")
    assert list(table["data and training"]) == ["digits, 9 epochs", "digits, 3 epochs"]
    assert list(table["network"]) == ["MLP, width 16", "ViT, LayerNorm, width 32"]
    write(table_of({16: STEADY}), [TINY | {"epochs": [3, 9], "architecture": "mlp"}, plan[1]])
    assert comparison.not_run("mine").outcome == "none", "an entry that names the usual architecture is the same"
    assert len(comparison.not_run_table("mine")) == 0


def test_an_entry_of_a_plan_that_names_no_architecture_has_the_usual_one():
    assert Recipe().architecture == comparison.DEFAULT_ARCHITECTURE
