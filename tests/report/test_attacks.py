"""Attacks in the book: facts, tables and figures are those of the tables that were planted."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import KIND, ROBUST, one_node_per_block, plant, plant_attack

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import LOSSES
from lab.measures import attacks as measure
from lab.report import attack_checks, attacks

EQUALS, LEAVES = ("early_stopped", 8), ("unmerged", 1)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


@pytest.mark.parametrize(
    ("worst", "blocks", "equals", "leaves"),
    [
        (ROBUST, 8, "above", "above"),
        (ROBUST | {EQUALS: 0.8}, 8, "below", "above"),
        (ROBUST | {EQUALS: 0.8, LEAVES: 0.8}, 8, "below", "below"),
        (ROBUST | {EQUALS: 0.8, (*LEAVES, 2.0): 0.7}, 8, "below", "below, above"),
        (ROBUST | {EQUALS: 0.6, LEAVES: 0.6}, 8, "open", "open"),
        (ROBUST, 3, "too few", "too few"),
    ],
    ids=["robust", "only less accurate", "not robust", "at one radius", "level", "three blocks"],
)
def test_the_hierarchy_lies_where_it_was_planted(worst, blocks, equals, leaves):
    plant_attack("mine", worst, blocks)
    facts = attacks.against_equals("mine")
    assert facts.outcome == equals and facts.values["n"] == str(blocks)
    assert set(facts.values) == {"gap_2", "gap_4", "size_gap_2", "size_gap_4", "n"} and "nan" not in "".join(
        facts.values.values()
    )
    if equals in ("above", "below"):
        assert facts.values["gap_4"][0] == {"above": "+", "below": "−"}[equals]
    assert attacks.against_leaves("mine").outcome == leaves


def test_merges_stand_beside_their_leaves_farther_out_and_beside_one_another():
    radii = (0.0, 2.0, 4.0, 6.0, 8.0)
    plant_attack("mine", ROBUST | {("many", 8): 0.7}, 8, radii)
    facts = attacks.beside_each_other("mine")
    assert facts.outcome == "above, above, above" and facts.values["n_leaves_6"] == "8"
    plant_attack("mine", ROBUST | {("many", 8): 0.5, ("hierarchy", 8, 8.0): 0.1}, 8, radii)
    assert attacks.beside_each_other("mine").outcome == "above, below, below"
    plant_attack("mine", ROBUST, 8, radii)
    assert attacks.beside_each_other("mine").outcome == "not measured", "MergeMany was not attacked"


def test_more_models_are_compared_with_two():
    plant_attack("mine", ROBUST, 8)
    assert attacks.with_more_models("mine").outcome == "above"
    plant_attack("mine", ROBUST | {("hierarchy", 2): 0.8}, 8)
    assert attacks.with_more_models("mine").outcome == "below"


def test_networks_that_were_not_attacked_are_no_facts():
    plant_attack("mine", {LEAVES: 0.5}, 8)
    for facts in (attacks.against_equals, attacks.against_leaves, attacks.with_more_models):
        assert facts("mine").outcome == "not measured"
    plant_attack("mine", ROBUST, 8, epsilons=(0.0, 2.0))
    assert attacks.against_leaves("mine").outcome == "not measured", "one of two radii alone"


def test_mended_merges_do_not_count_as_merges():
    plant_attack("mine", ROBUST, 8)
    before = attacks.against_equals("mine")
    images = results.read("mine", "attack", "images")
    mended = images[images["algorithm"] == "hierarchy"].assign(mended="repair", correct=bytes(25))
    plant("mine", {"images": pd.concat([images, mended])}, "attack")
    assert attacks.against_equals("mine") == before


# (algorithm, mended, leaves, strength): clean accuracy, and what is left at 2 and at 4/255.
PLANE = {
    ("unmerged", "none", 1, 0.0): (0.9, 0.6, 0.4),
    ("hierarchy", "none", 2, 0.0): (0.8, 0.5, 0.3),
    ("hierarchy", "none", 8, 0.0): (0.7, 0.4, 0.2),
    ("hierarchy", "repair", 8, 0.0): (0.85, 0.55, 0.35),
    ("mean", "none", 8, 0.0): (0.1, 0.1, 0.1),
    ("early_stopped", "none", 2, 0.0): (0.8, 0.7, 0.6),
    ("early_stopped", "none", 8, 0.0): (0.7, 0.65, 0.55),
    ("l2", "none", 1, 0.01): (0.8, 0.7, 0.5),
    ("l2", "none", 1, 0.1): (0.65, 0.6, 0.45),
    ("ensemble", "none", 8, 0.0): (0.95, 0.7, 0.5),
}
MANY, FEW = 240, 100


def plant_plane(plane=PLANE, nodes=4, classes=10):
    """Let a run have all tables of kinds with these accuracies; the leaves and the hierarchy of 8 have more images.

    Only on the images that all have are the accuracies as planted: on the others of a kind all are classified wrong.
    """
    images, curves, clean, transfer = [], [], [], []
    for kind, left in plane.items():
        count = MANY if kind[:3] in (("unmerged", "none", 1), ("hierarchy", "none", 8)) else FEW
        for node, (epsilon, share) in itertools.product(range(nodes), zip((0.0, 2.0, 4.0), left, strict=True)):
            bits = np.zeros(count, bool)
            bits[: round(share * FEW)] = True
            images.append((*kind, node, epsilon, np.packbits(bits).tobytes(), count))
            for (attack, loss), norm in itertools.product(
                (("pgd", "cross_entropy"), ("pgd", "margin"), ("worst", "all")), ("linf", "l2")
            ):
                curves.append((*kind, node, attack, loss, epsilon, count, share, norm))
            if epsilon == 0:
                clean += [(*kind, node, split, share, classes) for split in ("held_out", "test")]
            else:
                transfer += [(*kind, node, "outside", epsilon, share)]
                transfer += [(*kind, node, "own leaf", epsilon, share)] if kind[0] == "hierarchy" else []
    tables = {
        "images": pd.DataFrame(images, columns=[*KIND, "epsilon", "correct", "images"]),
        "curves": pd.DataFrame(curves, columns=[*KIND, "attack", "loss", "epsilon", "images", "value", "norm"]),
        "clean": pd.DataFrame(clean, columns=[*KIND, "split", "value", "classes"]),
        "transfer": pd.DataFrame(transfer, columns=[*KIND, "source", "epsilon", "value"]),
    }
    plant("mine", tables, "attack")


def test_all_kinds_are_compared_on_the_images_that_all_have():
    plant_plane()
    facts = attacks.images("mine")
    assert facts.outcome == "more for the claims" and facts.values == {"shared": "100", "claims": "240"}
    table = attacks.all_table("mine").set_index(["networks", "models"])
    assert table.loc[("hierarchy", "8"), "clean (%)"].startswith("70.0 [")
    assert table.loc[("unmerged", "1"), "left at 4/255 (%)"].startswith("40.0 [")
    assert table.index[0] == ("unmerged", "1"), "the leaves come first"
    plant_plane({kind: left for kind, left in PLANE.items() if kind[0] == "l2"})
    assert attacks.images("mine").outcome == "the same for all"


def test_clean_accuracies_of_two_sets_of_images_stand_under_their_names():
    plant_plane()
    clean = results.read("mine", "attack", "clean")
    whole = clean["split"] == "test"
    plant_again = {name: results.read("mine", "attack", name) for name in ("images", "curves", "transfer")}
    clean.loc[whole, "value"] -= 0.04
    plant("mine", {"clean": clean} | plant_again, "attack")
    table = attacks.all_table("mine").set_index(["networks", "models"])
    row = table.loc[("ensemble of the leaves", "8")]
    assert row["clean (%)"].startswith("95.0 [") and row["clean, whole test set (%)"] == "91.0"
    facts = attacks.easier_images("mine")
    assert facts.outcome == "easier" and facts.values == {"shared": "90.0", "whole": "86.0"}
    clean.loc[whole, "value"] += 0.04
    plant("mine", {"clean": clean} | plant_again, "attack")
    assert attacks.easier_images("mine").outcome == "no easier"
    plant_attack("mine", ROBUST, 8, epsilons=(2.0, 4.0))
    assert attacks.easier_images("mine").outcome == "not measured"


def test_relative_accuracy_is_above_the_chance_of_the_data():
    plant_plane()
    table = attacks.all_table("mine").set_index(["networks", "models"])
    assert table.loc[("hierarchy", "8"), "relative, 2/255"] == "0.50", "(.4 - .1) / (.7 - .1)"
    assert table.loc[("naive average", "8"), "relative, 2/255"] == "–"
    assert table.loc[("hierarchy", "8"), "area"] == "42.5"
    plant_plane(classes=2)
    table = attacks.all_table("mine").set_index(["networks", "models"])
    assert set(table["relative, 2/255"]) == {"–"}, "of two classes, all are below twice chance"


def test_the_median_distance_is_where_half_is_lost():
    plant_plane()
    table = attacks.all_table("mine").set_index(["networks", "models"])["median distance (of 255)"]
    # The leaves go from .9 over .6 at 2 to .4 at 4, so that .45 is three quarters of the way from 2 to 4.
    assert table[("unmerged", "1")] == "3.5" and table[("ensemble of the leaves", "8")] == "> 4"
    assert table[("naive average", "8")] == "–", "what only guesses has none"


def test_a_small_penalty_may_be_ahead_with_and_without_an_attack():
    plant_plane()
    assert attacks.small_penalty("mine").outcome == "not measured"
    plant_plane(PLANE | {("l1", "none", 1, 0.01): (0.95, 0.7, 0.5), ("l1", "none", 1, 0.1): (0.8, 0.7, 0.6)})
    facts = attacks.small_penalty("mine")
    assert facts.outcome == "both", "of the more accurate ones"
    values = {"penalised_clean": "95.0", "penalised_4": "50.0", "plain_clean": "90.0", "plain_4": "40.0"}
    assert facts.values == values | {"n_penalised": "4", "n_plain": "4"}
    plant_plane(PLANE | {("l1", "none", 1, 0.01): (0.95, 0.7, 0.3)})
    assert attacks.small_penalty("mine").outcome == "not both"


def test_near_constant_networks_are_named():
    plant_plane()
    facts = attacks.near_constant("mine")
    assert facts.outcome == "some" and facts.values == {"kinds": "naive average (8)", "bound": "20"}
    plant_plane({kind: left for kind, left in PLANE.items() if kind[0] != "mean"})
    assert attacks.near_constant("mine").outcome == "none"


@pytest.mark.parametrize(
    ("changed", "outcome", "below"),
    [
        ({}, "all", "8"),
        ({("hierarchy", "none", 8, 0.0): (0.7, 0.9, 0.9)}, "some", "4"),
        ({("hierarchy", "none", size, 0.0): (0.7, 0.9, 0.9) for size in (2, 8)}, "none", "0"),
    ],
)
def test_each_stage_is_held_against_its_equals(changed, outcome, below):
    plant_plane(PLANE | changed)
    facts = attacks.at_every_stage("mine")
    assert facts.outcome == outcome and facts.values == {"below": below, "comparisons": "8"}


def test_the_matched_table_has_the_nearest_penalty():
    plant_plane()
    bounds = [("hierarchy", "none", 8, 0.0, node, "lipschitz", 20.0 + 4 * node) for node in (0, 1)]
    bounds.append(("early_stopped", "none", 8, 0.0, 0, "lipschitz", 5.0))
    plant("mine", {"nodes": pd.DataFrame(bounds, columns=[*KIND, "metric", "value"])}, "regularisation")
    table = attacks.matched_table("mine", "mine")
    assert list(table["Lipschitz bound"]) == ["–", "–", "–", "22", "5", "–"], "the mean, where it was measured"
    assert list(table["models"]) == ["2", "as 2 merged", "strength 0.01", "8", "as 8 merged", "strength 0.1"]
    assert list(table["held-out accuracy (%)"])[:3] == ["80.0"] * 3
    assert table["left at 4/255 (%)"].iloc[3].startswith("20.0")


def test_the_figures_draw_what_can_be_compared():
    plant_plane()
    figure = attacks.robust_by_clean("mine")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["hierarchy", "unmerged, stopped early", "trained with L2 penalty", "unmerged"]
    drawn = {bars.get_label(): bars.lines[0] for bars in figure.axes[1].containers}
    assert list(drawn["hierarchy"].get_xdata()) == pytest.approx([80, 70])
    assert list(drawn["hierarchy"].get_ydata()) == pytest.approx([30, 20])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["2", "2", "8", "8"]
    with_the_rest = [text.get_text() for text in attacks.all_robust_by_clean("mine").legends[0].get_texts()]
    assert with_the_rest == [*labels[:3], "hierarchy after REPAIR", "ensemble of the leaves", "unmerged"]
    figure = attacks.accuracy_by_radius("mine")
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["leaves (n = 4)", "2 merged (n = 4)", "8 merged (n = 4)"]
    plt.close("all")


def test_tables_by_loss_say_on_how_many_images_each_row_is():
    plant_plane()
    table = attack_checks.losses_table("mine").set_index(["networks", "models"])
    assert list(table["images"]) == ["240", "240", "100", "100", "100"], "those on the same images stand together"
    assert table.loc[("hierarchy", "2"), "PGD, margin, 4/255"] == "30.0"
    assert ("hierarchy after REPAIR", "8") not in table.index
    in_l2 = attacks.l2_table("mine").set_index(["networks", "models"])
    assert in_l2.loc[("hierarchy", "2"), "left at 4/255 (%)"] == "30.0 [30.0, 30.0]"


def test_attacks_made_elsewhere_stand_by_their_source():
    plant_plane()
    table = attacks.transfer_table("mine").set_index(["networks", "models"])
    assert table.loc[("hierarchy", "8"), "own leaf, 2/255 (%)"] == "40.0 [40.0, 40.0]"
    assert table.loc[("unmerged", "1"), "own leaf, 2/255 (%)"] == ""


def checks(**changed):
    """The table ``checks`` of a sound attack, for one network and both losses, with some values changed."""
    rows = []
    for loss in LOSSES:
        values = {
            ("steps", 1.0): 0.5, ("steps", 5.0): 0.4, ("steps", 10.0): 0.4, ("steps", 20.0): 0.4, ("steps", 50.0): 0.39,
            ("steps", 100.0): 0.39, ("everything", 255.0): 0.0, ("divided logits", 16.0): 0.4, ("white box", 20.0): 0.4,
            ("transfer", 20.0): 0.6, ("ball", 4.0): 4.0, ("pixels", 0.0): 0.0,
        }  # fmt: skip
        for (check, setting), value in values.items():
            name = f"{check.replace(' ', '_')}_{setting:g}"
            rows.append(("unmerged", "none", 1, 0.0, 0, check, loss, setting, changed.get(name, value)))
    return pd.DataFrame(rows, columns=[*KIND, "check", "loss", "setting", "value"])


def test_the_checks_of_a_sound_attack_all_hold():
    plant("mine", {"checks": checks()}, "attack")
    assert set(attack_checks.checks_table("mine")["state"]) == {"holds"}
    facts = attack_checks.checks("mine")
    assert facts.outcome == "all hold" and facts.values["checks"] == "10"


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ({"steps_100": 0.5}, "more steps"),
        ({"steps_1": 0.2}, "many steps"),
        ({"transfer_20": 0.1}, "attacks on the network itself"),
        ({"everything_255": 0.1}, "nothing survives"),
        ({"divided_logits_16": 0.6}, "dividing the logits"),
        ({"ball_4": 4.5}, "stays in the ball"),
        ({"pixels_0": 0.01}, "pixels stay"),
    ],
)
def test_a_check_that_fails_is_shown_to_fail(broken, what):
    plant("mine", {"checks": checks(**broken)}, "attack")
    table = attack_checks.checks_table("mine")
    failed = table[table["state"] == "fails"]["what must hold"]
    assert len(failed) and failed.str.contains(what).any()
    assert attack_checks.checks("mine").outcome == "some fail"


def test_attacks_that_are_equally_strong_are_not_told_apart():
    # One step, a hundred steps and an attack on another network leave the same: no check of strength says anything.
    plant("mine", {"checks": checks(transfer_20=0.4, **{f"steps_{n}": 0.5 for n in (5, 10, 20, 50, 100)})}, "attack")
    table = attack_checks.checks_table("mine")
    assert (table["state"] == "not told apart").sum() == 6, "three of either loss"
    facts = attack_checks.checks("mine")
    assert facts.outcome == "some not told apart" and facts.values["not_told_apart"] == "6"
    plant("mine", {"checks": checks(transfer_20=0.4)}, "attack")
    assert attack_checks.checks("mine").values["not_told_apart"] == "2", "steps differ, the other network does not"


@pytest.mark.parametrize(
    ("cross_entropy", "margin", "outcome"),
    [
        (0.7, 0.4, "fools the cross-entropy"), (0.7, 0.7, "fools both"), (0.4, 0.7, "fools the margin"),
        (0.4, 0.4, "fools neither"),
    ],
)  # fmt: skip
def test_the_size_of_the_logits_fools_which_loss(cross_entropy, margin, outcome):
    table = checks()
    for loss, value in (("cross_entropy", cross_entropy), ("margin", margin)):
        table.loc[(table["loss"] == loss) & (table["check"] == "divided logits"), "value"] = value
    plant("mine", {"checks": table}, "attack")
    facts = attack_checks.logit_size("mine")
    assert facts.outcome == outcome
    assert facts.values["cross_entropy"] == "40.0"
    assert facts.values["cross_entropy_divided"] == f"{100 * cross_entropy:.1f}"


@pytest.mark.parametrize(("further", "outcome", "mean"), [(0.02, "further", "2.0"), (-0.01, "no further", "−1.0")])
def test_the_reference_is_held_against_the_own_attacks(further, outcome, mean):
    rows = []
    for kind, _ in one_node_per_block("hierarchy", 8, 4):
        rows += [(*kind, "clean", 0.8), (*kind, "own", 0.5), (*kind, "autoattack", 0.5 - further)]
    plant("mine", {"nodes": pd.DataFrame(rows, columns=[*KIND, "attack", "value"])}, "autoattack")
    facts = attack_checks.autoattack("mine")
    assert facts.outcome == outcome and facts.values == {"mean": mean, "most": mean, "n": "4", "radius": "4/255"}
    table = attack_checks.autoattack_table("mine")
    assert list(table["models"]) == ["8"] and table["clean (%)"].iloc[0].startswith("80.0")


def test_every_loss_has_a_name():
    assert set(LOSSES) == set(measure.LOSSES)
