"""Perturbations are exactly as strong as halves what some networks get right, and the same for everybody."""

import pytest
import torch

from lab.measures import halving
from lab.measures.halving import RANGES, accuracies, halving_amounts, perturbed_versions, retained_share
from lab.measures.perturbations import PERTURBATIONS
from lab.networks import build
from lab.training.recipe import Recipe
from lab.training.train import train

RECIPE = Recipe(width=16, batch_size=64, learning_rate=3e-3)


@pytest.fixture(scope="module")
def networks(digits):
    return train(RECIPE, digits, 4, (5,), "cpu", 4).last


@pytest.fixture(scope="module")
def model(digits):
    return build("mlp", digits, RECIPE.width).eval()


@pytest.fixture(scope="module")
def amounts(model, networks, digits):
    return halving_amounts(model, networks, digits.held_out, 0, "cpu", 4)


def mean_accuracy(model, networks, split, amounts):
    measured = accuracies(model, networks, split, perturbed_versions(split, amounts, 0), "cpu", 4)
    return {kind: float(values.mean()) for kind, values in measured.items()}


def test_ranges_are_of_all_perturbations_and_begin_at_nothing():
    assert set(RANGES) == set(PERTURBATIONS)
    assert {weakest for weakest, _ in RANGES.values()} == {0.0, 1.0, 100.0}


def test_each_amount_halves_and_a_little_less_does_not(model, networks, digits, amounts):
    assert len(amounts) >= 5
    at_amounts = mean_accuracy(model, networks, digits.held_out, amounts)
    half = at_amounts["clean"] / 2
    smaller = {}
    for kind, amount in amounts.items():
        weakest, strongest = RANGES[kind]
        smaller[kind] = amount - (strongest - weakest) * 0.5**halving.BISECTIONS
    for kind in amounts:
        assert at_amounts[kind] <= half
        # At the weakest end there is no image to look at: no perturbation that strong was tried.
        if smaller[kind] != RANGES[kind][0]:
            assert mean_accuracy(model, networks, digits.held_out, {kind: smaller[kind]})[kind] > half


def test_what_cannot_halve_is_left_out(model, networks, digits, monkeypatch):
    monkeypatch.setitem(RANGES, "rotation", (0.0, 1.0))
    assert "rotation" not in halving_amounts.__wrapped__(model, networks, digits.held_out, 0, "cpu", 4)


def test_who_keeps_all_retains_one_and_who_guesses_nothing():
    measured = {"clean": torch.tensor([0.5, 0.5, 0.5]), "blur": torch.tensor([0.5, 0.1, 0.3])}
    assert retained_share(measured, 0.1).tolist() == pytest.approx([1.0, 0.0, 0.5])
