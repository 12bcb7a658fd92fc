"""The chapters on robustness say what the results say: their sentences turn with them, and tables tell what fails."""

import numpy as np
import pandas as pd
import pytest
from planting import KIND, REGULAR, ROBUST, plant, plant_attack, plant_perturbations, plant_regularisation

from lab.measures.perturbations import PERTURBATIONS
from lab.report import robustness_chapter as chapter
from lab.report import robustness_figures as figures

EQUALS = ("early_stopped", 8)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)


@pytest.mark.parametrize(
    ("worst", "blocks", "opening"),
    [
        (ROBUST, 8, "Merging makes networks more robust to attacks, also than unmerged ones that are as accurate."),
        (
            ROBUST | {EQUALS: 0.8},
            8,
            "Merging makes networks more robust to attacks, but only by making them less accurate: unmerged networks "
            "that were stopped at the same accuracy are more robust still.",
        ),
        (
            ROBUST | {EQUALS: 0.8, ("unmerged", 1): 0.7},
            8,
            "Merging does not make networks more robust to attacks: unmerged networks that were stopped at the same "
            "accuracy are more robust.",
        ),
        (
            ROBUST | {EQUALS: 0.8, ("unmerged", 1, 2.0): 0.7},
            8,
            "Only at 4/255 are merged networks more robust to attacks than their leaves, and unmerged networks that "
            "were stopped at the same accuracy are more robust still.",
        ),
        (ROBUST, 7, "This run has too few networks to say whether merging makes them more robust to attacks (n = 7)."),
        (
            ROBUST | {("tree", 2): 0.6},
            8,
            "Merging makes networks more robust to attacks only in part of what was measured.",
        ),
        (
            dict.fromkeys(ROBUST, 0.5) | {("unmerged", 1): 0.8},
            8,
            "Merging does not make networks more robust to attacks.",
        ),
        (
            dict.fromkeys(ROBUST, 0.5),
            8,
            "Whether merging makes networks more robust to attacks is not decided.",
        ),
    ],
    ids=[
        "holds",
        "only less accurate",
        "does not",
        "at one epsilon",
        "seven trees",
        "in part",
        "below its leaves",
        "level",
    ],
)
def test_the_finding_on_attacks_turns_with_the_results(worst, blocks, opening):
    plant_attack("mine", worst, blocks)
    found = chapter.robustness_finding("mine", "H4")
    assert found.startswith(f"<strong>{opening}</strong> "), found
    assert found.count("at 2/255") >= 2 and found.count("at 4/255") >= 2
    assert f"(n = {blocks})" in found and "nan" not in found


def test_the_finding_on_perturbations_has_no_epsilon():
    plant_perturbations("mine", ROBUST | {EQUALS: 0.8}, 8)
    found = chapter.robustness_finding("mine", "H5")
    assert found.startswith("<strong>Merging makes networks more robust to perturbations, but only by making them less")
    assert "/255" not in found


def test_a_run_without_the_decisive_nodes_says_so():
    plant_attack("mine", {("unmerged", 1): 0.5}, 8)
    assert chapter.robustness_finding("mine", "H4").startswith("<strong>Run mine did not measure")


@pytest.mark.parametrize(
    ("changed", "opening"),
    [
        ({}, "Norms and Lipschitz bounds fall with merging."),
        (
            {("naive", 8): 2.0},
            "Norms and Lipschitz bounds fall with merging, but only because averaging shrinks whatever does not agree: "
            "a naive average shrinks more.",
        ),
        ({("tree", 8): 20.0}, "Norms and Lipschitz bounds do not fall with merging."),
    ],
)
def test_the_finding_on_norms_turns_with_the_results(changed, opening):
    values = {kind: changed.get(kind[:2], value) for kind, value in REGULAR.items()}
    plant_regularisation("mine", values, 8)
    assert chapter.regularity_finding("mine").startswith(f"<strong>{opening}</strong> ")


@pytest.mark.parametrize(("margin", "word"), [(0.1, "shrinks"), (0.9, "grows")])
def test_what_is_certified_follows_margin_and_bound(margin, word):
    values = {}
    for (algorithm, size), (m, bound) in {("unmerged", 1): (1.0, 2.0), ("tree", 8): (margin, 1.0)}.items():
        values |= {(algorithm, size, name): v for name, v in (("median_margin", m), ("lipschitz", bound))}
        values[algorithm, size, "median_radius"] = m / bound / 2**0.5
    plant_regularisation("mine", values, 4, noise=0.0)
    found = chapter.radius_finding("mine")
    assert found.startswith(f"<strong>What is certified {word} with merging: ")
    assert f"the margin is multiplied by {margin:.2f}, the bound by 0.50" in found


def checks(**changed):
    """The table ``checks`` of a sound attack, for one network and both losses, with some values changed."""
    rows = []
    for loss in ("cross_entropy", "margin"):
        values = {
            ("steps", 1.0): 0.5, ("steps", 5.0): 0.4, ("steps", 10.0): 0.4, ("steps", 20.0): 0.4, ("steps", 50.0): 0.39,
            ("steps", 100.0): 0.39, ("everything", 255.0): 0.0, ("logits / 16", 20.0): 0.4, ("white box", 20.0): 0.4,
            ("transfer", 20.0): 0.6, ("ball", 4.0): 4.0, ("pixels", 0.0): 0.0,
        }  # fmt: skip
        for (check, setting), value in values.items():
            name = f"{check.replace(' / ', '_').replace(' ', '_')}_{setting:g}"
            rows.append(("unmerged", 1, 0.0, 0, check, loss, setting, changed.get(name, value)))
    return pd.DataFrame(rows, columns=[*KIND, "check", "loss", "setting", "value"])


def test_the_checks_of_a_sound_attack_all_hold():
    plant("mine", {"checks": checks()}, "attack")
    assert set(chapter.checks_table("mine")[""]) == {"holds"}


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ({"steps_100": 0.5}, "more steps"),
        ({"steps_1": 0.2}, "many steps"),
        ({"transfer_20": 0.1}, "attacks on the model itself"),
        ({"everything_255": 0.1}, "nothing survives"),
        ({"logits_16_20": 0.6}, "dividing the logits"),
        ({"ball_4": 4.5}, "stays in the ball"),
        ({"pixels_0": 0.01}, "pixels stay"),
    ],
)
def test_a_check_that_fails_is_shown_to_fail(broken, what):
    plant("mine", {"checks": checks(**broken)}, "attack")
    table = chapter.checks_table("mine")
    failed = table[table[""] != "holds"]["what must hold"]
    assert len(failed) and failed.str.contains(what).any()


def test_the_artefact_of_the_logits_is_told_with_both_losses():
    table = checks()
    table.loc[(table["loss"] == "cross_entropy") & (table["check"] == "logits / 16"), "value"] = 0.7
    plant("mine", {"checks": table}, "attack")
    found = chapter.artefact_finding("mine")
    assert found.startswith("<strong>The size of the logits fools the cross-entropy.</strong>")
    assert "from 40.0 to 70.0 %, under PGD on the margin from 40.0 to 40.0 %" in found
    plant("mine", {"checks": checks()}, "attack")
    assert chapter.artefact_finding("mine").startswith("<strong>The size of the logits fools no attack here.</strong>")


def test_near_constant_models_are_named_and_have_no_relative_accuracy():
    worst = {("unmerged", 1, 0.0): 0.9, ("unmerged", 1, 2.0): 0.5, ("naive", 8): 0.1}
    plant_attack("mine", worst, 4, epsilons=(0.0, 2.0))
    images = chapter.results.read("mine", "attack", "images")
    clean = images[images["epsilon"] == 0][KIND].assign(
        split="test", value=lambda t: t["algorithm"].eq("naive") * -0.8 + 0.9
    )
    plant("mine", {"images": images, "clean": clean}, "attack")
    assert chapter.near_constant("mine").endswith("without a relative accuracy: naive average of 8.")
    table = chapter.attack_table("mine").set_index("")
    assert table.loc["naive average of 8", "relative, 2/255"] == "–"
    # (.5 - .1) / (.9 - .1), up to the 200 images that were drawn.
    assert float(table.loc["unmerged", "relative, 2/255"]) == pytest.approx(0.5, abs=0.1)


def test_every_perturbation_has_its_severities_in_the_table():
    table = chapter.severity_table()
    assert list(table["perturbation"]) == [kind.replace("_", " ") for kind in PERTURBATIONS]
    assert not table.isna().any().any() and np.array_equal(table.columns[2:], ["1", "2", "3", "4", "5"])


def test_bands_carry_nodes_and_images():
    plant_attack("mine", {("tree", 8): 0.5}, 8, epsilons=(4.0,))
    images = chapter.results.read("mine", "attack", "images")
    (found,) = figures.by_node_and_image(images)["interval"]
    shares = [np.unpackbits(np.frombuffer(one, np.uint8), count=200).mean() for one in images["correct"]]
    assert found.mean == pytest.approx(100 * np.mean(shares)) and found.n == 8
    # With 200 images of which half are right, images alone make a deviation of 100 sqrt(.25 / 200) = 3.5 points.
    assert found.high - found.low > 2 * 3.5


def test_what_a_node_has_several_values_of_is_averaged_before_the_interval():
    rows = [
        ("tree", 8, 0.0, node, kind, 1, 0.1 * node + shift)
        for node in range(4)
        for kind, shift in (("a", 0), ("b", 0.2))
    ]
    table = pd.DataFrame(rows, columns=[*KIND, "perturbation", "severity", "value"])
    (found,) = figures.by_node(table, "severity")["interval"]
    assert found.n == 4
    assert found.mean == pytest.approx(25)
    # Student's t with three degrees of freedom over 10, 20, 30, 40.
    assert found.high - found.mean == pytest.approx(3.182 * np.std([10, 20, 30, 40], ddof=1) / 2, rel=1e-3)
