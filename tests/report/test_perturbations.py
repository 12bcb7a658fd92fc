"""Perturbations in the book: facts, tables and figures are those of the tables that were planted."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import KIND, ROBUST, plant, plant_perturbations

from lab.bookkeeping import vocabulary
from lab.measures.perturbations import PERTURBATIONS
from lab.report import perturbations
from lab.report.kinds import percent_by_node, percent_left

EQUALS, LEAVES = ("early_stopped", 8), ("unmerged", 1)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


@pytest.mark.parametrize(
    ("accuracy", "blocks", "leaves", "equals", "more"),
    [
        (ROBUST, 8, "above", "above", "above"),
        (ROBUST | {EQUALS: 0.8}, 8, "above", "below", "above"),
        (ROBUST | {LEAVES: 0.8, EQUALS: 0.6, ("hierarchy", 2): 0.8}, 8, "below", "open", "below"),
        (ROBUST, 3, "too few", "too few", "too few"),
        ({LEAVES: 0.5}, 8, "not measured", "not measured", "not measured"),
    ],
)
def test_the_hierarchy_lies_where_it_was_planted(accuracy, blocks, leaves, equals, more):
    plant_perturbations("mine", accuracy, blocks)
    all_facts = (perturbations.against_leaves, perturbations.against_equals, perturbations.with_more_models)
    for facts, outcome in zip(all_facts, (leaves, equals, more), strict=True):
        assert facts("mine").outcome == outcome
        if outcome != "not measured":
            assert set(facts("mine").values) == {"gap", "size_gap", "n"} and facts("mine").values["n"] == str(blocks)


# (algorithm, mended, leaves, strength): accuracy on clean images, and on perturbed ones, and how many images.
KINDS = {
    ("unmerged", "none", 1, 0.0): (0.9, 0.8, 240),
    ("hierarchy", "none", 4, 0.0): (0.7, 0.6, 100),
    ("hierarchy", "none", 8, 0.0): (0.6, 0.5, 240),
    ("hierarchy", "repair", 8, 0.0): (0.8, 0.7, 100),
    ("early_stopped", "none", 8, 0.0): (0.6, 0.5, 240),
    ("l1", "none", 1, 0.01): (0.75, 0.7, 100),
}


def plant_kinds(ahead=(), behind=(), nodes=4):
    """Let a run have these accuracies, those of merges of 8 higher or lower under some perturbations.

    Beyond the first 100 images none is classified correctly, in the table that counts image by image.
    """
    curves, images = [], []
    for kind, (clean, harmed, count) in KINDS.items():
        for node in range(nodes):
            curves.append((*kind, node, "clean", 0, np.nan, count, clean))
            for perturbation, severity in itertools.product(PERTURBATIONS, range(1, 6)):
                gap = (perturbation in ahead) - 1.0 * (perturbation in behind)
                value = harmed + 0.001 * node + (0.1 * gap if kind[:3] == ("hierarchy", "none", 8) else 0)
                amount = PERTURBATIONS[perturbation][severity - 1]
                curves.append((*kind, node, perturbation, severity, amount, count, value))
            counts = np.zeros(count, np.uint8)
            counts[: round(100 * harmed)] = 45
            images.append((*kind, node, counts.tobytes(), 45, count))
    columns = [*KIND, "perturbation", "severity", "amount", "images", "value"]
    tables = {
        "curves": pd.DataFrame(curves, columns=columns),
        "images": pd.DataFrame(images, columns=[*KIND, "correct", "out_of", "images"]),
    }
    plant("mine", tables, "perturbations")


@pytest.mark.parametrize(
    ("ahead", "behind", "outcome", "values"),
    [
        ([], [], "none", {"ahead": "none", "behind": "none"}),
        (["jpeg"], [], "some ahead, none behind", {"ahead": "JPEG", "behind": "none"}),
        ([], ["blur", "rotation"], "none ahead, some behind", {"behind": "blur and rotation"}),
        (["jpeg"], ["gaussian_noise"], "some ahead, some behind", {"ahead": "JPEG", "behind": "Gaussian noise"}),
    ],
)
def test_merges_are_ahead_and_behind_where_they_were_planted(ahead, behind, outcome, values):
    plant_kinds(ahead, behind)
    facts = perturbations.ahead_and_behind("mine")
    assert facts.outcome == outcome and values.items() <= facts.values.items()


def test_all_kinds_are_compared_on_the_images_that_all_have():
    plant_kinds()
    facts = perturbations.images("mine")
    assert facts.outcome == "more for the claims"
    assert (facts.values["shared"], facts.values["claims"]) == ("100", "240")
    table = perturbations.means_table("mine").set_index(["networks", "models"])
    assert table.loc[("hierarchy", "8"), "mean accuracy (%)"].startswith("50.0 [")
    assert table.loc[("hierarchy", "4"), "mean accuracy (%)"].startswith("60.0 [")
    assert table.loc[("trained with L1 penalty", "strength 0.01"), "n"] == 4


def test_the_same_images_for_all_are_said_to_be_so():
    plant_perturbations("mine", ROBUST, 4)
    assert perturbations.images("mine").outcome == "the same for all"


def test_tables_say_on_how_many_images_each_row_is():
    plant_kinds(ahead=["jpeg"])
    table = perturbations.perturbations_table("mine").set_index(["networks", "models"])
    stopped = ("unmerged, stopped early", "as 8 merged")
    assert list(table.index) == [("unmerged", "1"), ("hierarchy", "8"), stopped, ("hierarchy", "4")]
    assert list(table["images"]) == ["240", "240", "240", "100"], "those on the same images stand together"
    assert table.loc[("hierarchy", "8"), "JPEG"] == "60.1" and table.loc[("hierarchy", "8"), "clean (%)"] == "60.0"
    severities = perturbations.severities_table("mine").set_index(["networks", "models"])
    assert severities.loc[("hierarchy after REPAIR", "8"), "images"] == "100"
    assert severities.loc[("hierarchy", "4"), "severity 5 (%)"].startswith("60.1 [")


def test_figures_draw_only_what_is_measured_on_the_same_images():
    plant_kinds()
    figure = perturbations.by_severity("mine")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["unmerged", "hierarchy of 8", "unmerged, stopped early"]
    figure = perturbations.by_perturbation("mine")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    assert figure.axes[0].get_yticklabels()[0].get_text() == "Gaussian noise"
    plt.close("all")


def test_every_perturbation_has_a_name_a_unit_and_its_amounts():
    assert list(vocabulary.PERTURBATIONS) == list(PERTURBATIONS)
    plant_kinds()
    table = perturbations.amounts_table("mine").set_index("perturbation")
    assert list(table.loc["contrast"]) == ["share kept of the contrast", "0.75", "0.5", "0.4", "0.3", "0.15"]
    assert list(table.columns[1:]) == ["1", "2", "3", "4", "5"] and len(table) == len(PERTURBATIONS)


def test_intervals_of_images_carry_nodes_and_images():
    rng = np.random.default_rng(0)
    hardness = rng.random(200)
    bits = np.stack([hardness + rng.normal(0, 0.02, 200) < 0.5 for _ in range(8)])
    rows = pd.DataFrame({"correct": [np.packbits(row).tobytes() for row in bits]})
    value = percent_left(rows, 200)
    assert value.mean == pytest.approx(100 * bits.mean()) and value.n == 8
    # With 200 images of which half are right, images alone make a deviation of 100 sqrt(.25 / 200) = 3.5 points.
    assert value.high - value.low > 2 * 3.5
    assert percent_left(rows, 50).mean == pytest.approx(100 * bits[:, :50].mean())


def test_what_a_node_has_several_values_of_is_averaged_before_the_interval():
    rows = [(node, 0.1 * node + shift) for node in range(4) for shift in (0, 0.2)]
    value = percent_by_node(pd.DataFrame(rows, columns=["node", "value"]))
    assert value.n == 4 and value.mean == pytest.approx(25)
    # Student's t with three degrees of freedom over 10, 20, 30, 40.
    assert value.high - value.mean == pytest.approx(3.182 * np.std([10, 20, 30, 40], ddof=1) / 2, rel=1e-3)
