"""What the chapter says of variants turns with the table, by the rule that stands on the page."""

import itertools
import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import clean, digits, planted_comparison, planted_images

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.report import published, unequal, variants
from lab.report.draw import house_style
from lab.report.variants import AHEAD, CHANGES, FIGURE, NOT
from lab.training.plan import Planned
from lab.training.recipe import Recipe

LAST = {"printed": 100, "one sweep": 3, "own share": 100, "at once": 5, "activations": 3}
LIMITS = (1, 2, 3, 5, 10, 100)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    yield
    plt.close("all")


def kinds():
    """The columns of every kind of merge that the notebook tests, at two, four and eight networks."""
    for variant, last in LAST.items():
        for limit in (limit for limit in LIMITS if limit <= last):
            for mended in ("none", "repair") if limit == last else ("none",):
                yield {"algorithm": "many", "variant": variant, "limit": limit, "mended": mended}
    for mended in ("none", "repair", "repair every stage"):
        yield {"algorithm": "hierarchy", "variant": "printed", "limit": 0, "mended": mended}
    yield {"algorithm": "hierarchy", "variant": "activations", "limit": 0, "mended": "none"}
    yield {"algorithm": "mean", "variant": "printed", "limit": 0, "mended": "none"}


def matches(kind, where):
    return all(kind[column] == value for column, value in where.items())


def planted(*changes, networks=64):
    """A table of 50 % everywhere, in two orders that lie 2 points apart, and nodes that differ by 0.2 points.

    A change is what a kind's columns have, and points by number of networks that are added there.
    """
    rows = []
    for kind, size, order in itertools.product(kinds(), (2, 4, 8), (0, 1)):
        for node in reversed(range(networks // size)):
            noise = 0.1 * (-1) ** node if kind["algorithm"] == "hierarchy" else 0
            added = sum(points.get(size, 0) for where, points in changes if matches(kind, where))
            value = (50 + noise + (1 if order else -1) + added) / 100
            own = {"n_leaves": size, "order": order, "node": node, "matchings": kind["limit"] * size, "value": value}
            rows.append(kind | own | {"rounds": kind["limit"]})
    return pd.DataFrame(rows).assign(metric="accuracy", split="test")


def plant(*changes, networks=64):
    write(planted(*changes, networks=networks))


def write(table):
    given = results.declared_parameters("variants") | {"run": "mine"}
    results.finish(clean(results.begin("variants", given)), digits(), {"nodes": table})


ONE_ROUND = {"algorithm": "many", "variant": "printed", "limit": 1, "mended": "none"}


@pytest.mark.parametrize(
    ("lost", "outcome"),
    [
        ({4: -2, 8: -4}, FIGURE),
        ({4: -4, 8: -2}, AHEAD),
        ({4: -3, 8: -3}, AHEAD),
        ({4: 0, 8: -3}, NOT),
        ({4: -3, 8: 0}, NOT),
        ({4: 2, 8: 4}, NOT),
        ({4: -0.01, 8: -4}, NOT),
        ({4: -2, 8: -2.01}, AHEAD),
    ],
    ids=["grows", "shrinks", "stays", "not at 4", "not at 8", "behind", "unsure at 4", "grows by chance"],
)
def test_a_change_gives_the_papers_figure_by_three_intervals(lost, outcome):
    plant((ONE_ROUND, lost))
    nodes, changes = variants.measured("mine")
    assert variants.gives(*variants.gaps_of(nodes, changes["one_round"])) == outcome
    assert variants.gives(*variants.gaps_of(nodes, changes["printed"])) == NOT
    facts = variants.rounds("mine")
    assert facts.outcome == f"{outcome}, {NOT}, {NOT}"
    assert facts.values["one_round_many_8"] == f"{50 + lost[8]:.1f}" and facts.values["n_8"] == "8"
    size = facts.values["size_one_round_8"]
    assert "+" not in size and size.startswith(facts.values["one_round_8"].split()[0].lstrip("+−"))


def test_orders_are_averaged_within_a_group_before_the_interval():
    plant((ONE_ROUND, {4: -2, 8: -4}))
    nodes, changes = variants.measured("mine")
    # Two points from order to order, 0.2 from node to node.
    assert variants.gap(nodes, changes["one_round"], 4) == pytest.approx([2.1, 1.9] * 8)
    assert variants.growth(*variants.gaps_of(nodes, changes["one_round"])) == pytest.approx([2.1, 1.9] * 4)


def test_too_few_groups_decide_nothing():
    plant((ONE_ROUND, {4: -2, 8: -4}), networks=16)
    assert variants.figure("mine").outcome == "too few"
    assert variants.rounds("mine").outcome == ", ".join(["too few"] * 3)


def test_every_change_is_held_against_what_it_says():
    """What is planted in one kind of merge moves the changes that have it, and no other."""
    moved = {
        ("many", "printed", 1, "none"): {"one_round"},
        ("many", "printed", 2, "none"): {"two_rounds"},
        ("many", "printed", 3, "none"): {"three_rounds"},
        ("many", "printed", 100, "none"): {"printed", "activations_tree", "repair_hierarchy", "repair_stages", "pairs"},
        ("many", "printed", 100, "repair"): {"repair"},
        ("many", "one sweep", 1, "none"): {"one_sweep_once"},
        ("many", "one sweep", 2, "none"): {"one_sweep_twice"},
        ("many", "one sweep", 3, "none"): {"one_sweep"},
        ("many", "own share", 100, "none"): {"own_share"},
        ("many", "at once", 1, "none"): {"at_once_once"},
        ("many", "at once", 5, "none"): {"at_once"},
        ("many", "activations", 1, "none"): {"activations_once"},
        ("many", "activations", 3, "none"): {"activations"},
        ("hierarchy", "activations", 0, "none"): {"activations", "activations_once", "activations_tree"},
        ("hierarchy", "printed", 0, "repair"): {"repair", "repair_hierarchy"},
        ("hierarchy", "printed", 0, "repair every stage"): {"repair_stages"},
    }
    for (algorithm, variant, limit, mended), expected in moved.items():
        where = {"algorithm": algorithm, "variant": variant, "limit": limit, "mended": mended}
        nodes = planted((where, {4: 10, 8: 10}))
        gaps = {name: variants.gap(nodes, change, 8).mean() for name, change in CHANGES.items()}
        assert {name for name, value in gaps.items() if abs(value) > 5} == expected, where
    assert set.union(*moved.values()) == set(CHANGES)


def test_a_hierarchy_of_two_is_the_mean_of_the_pairs_in_a_group():
    nodes = planted(
        ({"algorithm": "hierarchy", "variant": "printed", "mended": "none"}, {2: 3}),
        ({"algorithm": "many"}, {4: -1, 8: -5}),
    )
    assert variants.gap(nodes, CHANGES["pairs"], 4) == pytest.approx([4] * 16)
    assert variants.gap(nodes, CHANGES["pairs"], 8) == pytest.approx([8] * 8)


def test_of_too_few_networks_for_one_size_nothing_is_told():
    table = planted(networks=4)
    assert len(variants.gap(table, CHANGES["pairs"], 4)) == 1 and not len(variants.gap(table, CHANGES["pairs"], 8))
    write(table)
    assert variants.measured("mine")[1] == {} and variants.rounds("mine").outcome == "not measured"
    assert variants.gaps_by_variant("mine").axes


def test_the_answer_counts_and_names_the_changes():
    plant((ONE_ROUND, {4: -2, 8: -4}), (ONE_ROUND | {"limit": 2}, {4: -4, 8: -2}))
    facts = variants.figure("mine")
    assert facts.outcome == "one_round" and facts.values["leading"] == "2"
    assert facts.values["of"] == str(len(CHANGES) - 1) and facts.values["ahead"] == "1"
    assert facts.values["names"] == "one round" and facts.values["ahead_names"] == "two rounds"
    assert "three rounds" in facts.values["not_names"]
    plant()
    assert variants.figure("mine").outcome == "none" and variants.figure("mine").values["names"] == "none"


def test_what_was_not_run_is_left_out_and_said_to_be():
    table = planted()
    write(table[table["variant"] != "activations"])
    assert set(variants.measured("mine")[1]) == {name for name in CHANGES if "activations" not in name}
    assert variants.activations("mine").outcome == "not measured"
    assert variants.figure("mine").values["of"] == str(len(CHANGES) - 4)


@pytest.mark.parametrize(("gap", "where"), [(2, "above"), (-2, "below"), (0, "open")])
def test_both_as_printed_are_the_control(gap, where):
    plant(({"algorithm": "hierarchy", "variant": "printed", "mended": "none"}, {4: gap, 8: gap}))
    facts = variants.control("mine")
    assert facts.outcome == where and facts.values["printed_hierarchy_8"] == f"{50 + gap:.1f}"


def test_tables_have_a_row_for_every_change_and_for_every_number_of_rounds():
    plant((ONE_ROUND, {4: -2, 8: -4}))
    table = variants.gaps_table("mine").set_index("changed")
    assert len(table) == len(CHANGES) and table.loc["one round", "gives"] == FIGURE
    assert table.loc["one round", ["hierarchy of 8", "MergeMany of 8"]].tolist() == ["50.0", "46.0"]
    rounds = variants.rounds_table("mine").set_index(["algorithm", "variant", "rounds"])
    assert list(rounds.loc[("MergeMany", "as printed", "1")]) == ["48.0", "4", "46.0", "8"]
    assert rounds.loc[("hierarchy", "as printed", ""), "of 8"] == "50.0"
    assert "nan" not in (table.to_string() + rounds.to_string()).lower()


def test_the_figures_have_a_row_for_each_change_and_a_point_for_each_number_of_rounds():
    plant((ONE_ROUND, {4: -2, 8: -4}))
    for dark in (False, True):
        with house_style(dark):
            axes = variants.gaps_by_variant("mine").axes[0]
            panels = variants.accuracy_by_round("mine").axes
        assert [text.get_text() for text in axes.texts] == [change.title for change in CHANGES.values()]
        eights = [float(bars.lines[0].get_xdata()[0]) for bars in axes.containers[1::2]]
        assert eights[list(CHANGES).index("one_round")] == pytest.approx(4) and eights[0] == pytest.approx(0, abs=1e-9)
        assert len(panels) == 2
        printed = panels[1].lines[0].get_ydata()
        assert list(printed) == pytest.approx([50, 46, 50, 50, 50, 50, 50]), "no round first: the naive average"


def test_mending_the_hierarchy_alone_is_counted_over_conditions():
    recipes = [Planned("tiny", "digits", Recipe(width=width), (3,), 32).columns(3) for width in (8, 16)]
    # MergeMany has 50 % as merged and 60 % after REPAIR, the hierarchy 60 and these points.
    for every_stage, outcome, growing in (
        ((-9, -5, 1), "all", "2"),
        ((-9, -15, 1), "few", "0"),
        ((0, 5, 4), "all", "0"),
    ):
        table = planted_comparison(recipes, [(0, 0, 0)] * 2, (0, 0, 0), every_stage, 32)
        given = results.declared_parameters("comparison") | {"run": "mine"}
        results.finish(clean(results.begin("comparison", given)), digits(), {"nodes": table}, models="some")
        facts = unequal.mending("mine")
        assert facts.outcome == outcome and facts.values["growing"] == growing and facts.values["conditions"] == "2"
        at_four = unequal.gaps_table("mine").query("models == '4'").iloc[0]
        assert at_four["REPAIR at the hierarchy's stages alone"] == f"{10 + every_stage[1]:+.1f}".replace("-", "−")
        assert at_four["after REPAIR"] == "0.0" and at_four["n"] == "8"
    table.loc[table["width"] == 8, "value"] -= 0.45  # both only guess
    results.finish(clean(results.begin("comparison", given)), digits(), {"nodes": table}, models="some")
    assert unequal.mending("mine").values["conditions"] == "1"


def test_a_hierarchy_of_two_beside_mergemany_of_more_is_told_of_the_wide_networks():
    accuracy = {("hierarchy", 2): 0.9, ("many", 2): 0.9, ("many", 4): 0.8, ("many", 8): 0.6}
    begun = clean(results.begin("accuracy", results.declared_parameters("accuracy") | {"run": "mine"}))
    results.finish(begun, digits(), {"images": planted_images(accuracy, 8)})
    facts = unequal.wide_pairs("mine")
    assert facts.outcome == "grows" and (facts.values["fewest"], facts.values["models"]) == ("4", "8")
    results.finish(begun, digits(), {"images": planted_images(accuracy | {("many", 8): 0.95}, 8)})
    assert unequal.wide_pairs("mine").outcome == "does not grow"


def test_the_rule_of_the_code_is_that_of_the_page():
    page = " ".join((ROOT / "book" / "arise.md").read_text().split())
    assert "ahead of MergeMany at four networks and at eight, and if the gap at eight is larger than at four" in page
    assert variants.SIZES == (4, 8)


@pytest.mark.parametrize(("lead", "outcome"), [(-0.02, "not"), (0.02, "the paper's figure")])
def test_another_program_is_told_by_the_same_rule(tmp_path, monkeypatch, lead, outcome):
    rows = []
    for number, groups in ((4, 16), (8, 8)):
        for group in range(groups):
            small = 0.001 * (group % 2)
            many = {"ours": 0.5, "published": 0.4}
            for program, accuracy in many.items():
                gap = lead * number / 4 + small
                rows += [
                    {"program": program, "networks": number, "group": group, "algorithm": "many", "accuracy": accuracy},
                    {"program": program, "networks": number, "group": group, "algorithm": "hierarchy",
                     "accuracy": accuracy + gap},
                ]  # fmt: skip
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "published_many.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr("lab.report.library.ROOT", tmp_path)
    facts = published.both_programs()
    assert facts.outcome == f"{outcome}, {outcome}"
    assert facts.values["published_gap_8"].startswith("+4.1" if lead > 0 else "−3.9")
    assert facts.values["published_many_8"] == "40.0" and facts.values["ours_many_8"] == "50.0"
    assert (facts.values["n_4"], facts.values["n_8"]) == ("16", "8")
    assert facts.values["many_ahead_8"].startswith("−10.0")
    assert len(published.table()) == 4
