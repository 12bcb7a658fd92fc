"""Pictures of what networks see, from planted tables: each picture in its place, and the facts that captions name."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping.vocabulary import PERTURBATIONS
from lab.report import pictures

UNITS = 6


def stored(level, shape=(3, 2, 2)):
    return {"shape": list(shape), "pixels": np.full(shape, level, np.uint8).tobytes()}


def plant_pictures(attack=0, noise=2, matched=1.0):
    """Pictures of one grey each; a digit 2 that is taken for others; scores that are ``matched`` where units meet."""
    images = [{"perturbation": "none", "severity": 0, **stored(7)}]
    for number, kind in enumerate(PERTURBATIONS):
        images += [{"perturbation": kind, "severity": step, **stored(10 * number + step)} for step in range(1, 6)]
    attacks = [
        {"kind": kind, "epsilon": epsilon, "label": 2, "answer": answer if epsilon else 2, "confidence": 0.75}
        | stored(0, (1, 2, 2))
        for kind, answer in (("noise", noise), ("pgd", attack))
        for epsilon in (0, 16)
    ]
    # Once matched, unit u meets a unit that is like it; as they are, unit u meets the next one.
    scores = [
        {"matcher": matcher, "unit_a": a, "unit_b": b, "value": (matched + a / 100) * ((b + shift) % UNITS == a)}
        for matcher, shift in (("none", 1), ("weights", 0))
        for a in range(UNITS)
        for b in range(UNITS)
    ]
    plant(
        "mine",
        {"images": pd.DataFrame(images), "attacks": pd.DataFrame(attacks), "scores": pd.DataFrame(scores)},
        "pictures",
    )


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


def grey(source):
    """The grey of a picture in a page."""
    return round(255 * plt.imread(io.BytesIO(base64.b64decode(source)))[0, 0, 0])


def test_a_tile_shows_its_perturbation_at_every_severity_and_one_of_them_without_a_script():
    plant_pictures()
    tiles = pictures.perturbed_photograph("mine").split('class="tile"')[1:]
    assert len(tiles) == 1 + len(PERTURBATIONS)
    first, blurred = tiles[0], tiles[1 + list(PERTURBATIONS).index("blur")]
    assert [grey(found) for found in re.findall(r"base64,(.*?)\"", first)] == [7]
    assert [grey(found) for found in re.findall(r"base64,(.*?)\"", blurred)] == [31, 32, 33, 34, 35]
    assert ">blur<" in blurred and re.findall(r'data-step="(\d)"( hidden)?', blurred) == [
        ("0", " hidden"), ("1", " hidden"), ("2", " hidden"), ("3", " hidden"), ("4", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("attack", "noise", "outcome"),
    [(0, 2, "another, the same"), (2, 2, "the same, the same"), (0, 5, "another, another")],
)
def test_who_changes_the_networks_mind_is_as_planted(attack, noise, outcome):
    plant_pictures(attack, noise)
    facts = pictures.attacked("mine")
    assert facts.outcome == outcome
    assert facts.values == {"answer": str(attack), "noise": str(noise), "label": "2", "epsilon": "16"}


def test_each_digit_has_what_the_network_says_below_it():
    plant_pictures(attack=0)
    said = [axes.get_xlabel() for axes in pictures.under_attack("mine").axes]
    assert said == ["“2”, 75 %", "“2”, 75 %", "“2”, 75 %", "“0”, 75 %"]
    plt.close("all")


@pytest.mark.parametrize(("matched", "outcome"), [(1.0, "light up"), (-1.0, "stay dark")])
def test_whether_the_diagonal_lights_up_is_as_planted(matched, outcome):
    plant_pictures(matched=matched)
    assert pictures.scores("mine").outcome == outcome


def test_matched_the_bright_scores_lie_on_the_diagonal_the_highest_first():
    plant_pictures()
    before, after = [axes.images[0].get_array() for axes in pictures.score_matrix("mine").axes[:2]]
    assert list(after.diagonal()) == pytest.approx([1.05, 1.04, 1.03, 1.02, 1.01, 1.0])
    assert before.sum() == pytest.approx(after.sum()) and before[0].argmax() == UNITS - 2, "B's own order"
    plt.close("all")
