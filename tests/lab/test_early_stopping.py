"""A model stopped early is what its training had at that step, and no tested step comes nearer to its target."""

import math
from dataclasses import replace

import pytest
import torch

from lab.data import load
from lab.images import Split
from lab.networks import build
from lab.outputs import evaluate
from lab.training import early_stopping
from lab.training.early_stopping import stop_early
from lab.training.recipe import Recipe
from lab.training.stack import start, train_epoch
from lab.training.train import train

RECIPE = Recipe(width=16, batch_size=64, learning_rate=3e-3, initial="lecun_normal")  # 17 batches an epoch
EPOCHS = 3
NUMBERS = [5, 0]
# Reached within the three epochs, and passed.
TARGETS = torch.tensor([[0.35, 0.3], [0.5, 0.45]], dtype=torch.float64)


@pytest.fixture(scope="module")
def digits():
    return load("digits", held_out=200)


@pytest.fixture(scope="module")
def model(digits):
    return build("mlp", digits, RECIPE.width)


@pytest.fixture(scope="module")
def history(digits, model):
    """For each of ``NUMBERS`` in turn: its weights (1, ...) and held-out accuracy after steps 1, 2, 3, ..."""
    found = []
    for number in NUMBERS:
        weights, optimiser = start(model, RECIPE, [number], "cpu")
        steps = []
        for epoch in range(EPOCHS):
            for _ in train_epoch(
                model, RECIPE, weights, optimiser, digits.train.images, digits.train.labels, [number], epoch
            ):
                now = {key: tensor.detach().clone() for key, tensor in weights.items()}
                correct = evaluate(model, now, digits.held_out, "cpu").correct
                steps.append((now, float(correct.double().mean())))
        found.append(steps)
    return found


@pytest.fixture(scope="module")
def stopped(digits):
    return stop_early(RECIPE, digits, NUMBERS, TARGETS, EPOCHS, "cpu")


@pytest.fixture
def epochs_begun(monkeypatch):
    """The epochs that training begins, in order."""
    begun = []

    def counted(*args):
        begun.append(args[-1])
        return train_epoch(*args)

    monkeypatch.setattr(early_stopping, "train_epoch", counted)
    return begun


def steps_tested(last):
    """1, 2, 3, ..., then every 5 % more."""
    steps = [1]
    while (following := max(steps[-1] + 1, math.ceil(steps[-1] * 1.05))) <= last:
        steps.append(following)
    return steps


def test_the_kept_weights_are_bit_for_bit_those_of_training_up_to_that_step(stopped, history):
    for row in range(len(TARGETS)):
        for column in range(len(NUMBERS)):
            weights, accuracy = history[column][int(stopped.steps[row, column]) - 1]
            assert stopped.accuracy[row, column] == accuracy
            assert stopped.weights.keys() == weights.keys()
            assert all(torch.equal(stopped.weights[key][row, column], tensor[0]) for key, tensor in weights.items())


def test_the_steps_are_those_of_training_that_is_not_stopped(digits, history):
    whole = train(RECIPE, digits, 1, (EPOCHS,), "cpu").weights
    last, _ = history[NUMBERS.index(0)][-1]
    assert all(torch.equal(whole[key][0, 0], tensor[0]) for key, tensor in last.items())


def test_the_accuracy_is_what_evaluation_says_of_the_weights(digits, model, stopped):
    for row in range(len(TARGETS)):
        weights = {key: tensor[row] for key, tensor in stopped.weights.items()}
        correct = evaluate(model, weights, digits.held_out, "cpu").correct
        assert torch.equal(stopped.accuracy[row], correct.double().mean(1))


def test_no_tested_step_before_the_highest_target_is_passed_comes_nearer(stopped, history):
    for column, steps in enumerate(history):
        tested = steps_tested(len(steps))
        accuracies = torch.tensor([steps[step - 1][1] for step in tested], dtype=torch.float64)
        passed = int((accuracies > TARGETS[:, column].max()).nonzero()[0])
        assert 0 < passed < len(tested) - 1, "it passes its targets on the way"
        jump = accuracies[: passed + 1].diff().abs().max()
        for row, target in enumerate(TARGETS[:, column]):
            distances = (accuracies[: passed + 1] - target).abs()
            assert stopped.steps[row, column] == tested[int(distances.argmin())]
            assert (stopped.accuracy[row, column] - target).abs() == distances.min() <= jump


def test_training_ends_once_the_targets_are_passed(digits, epochs_begun, stopped):
    found = stop_early(RECIPE, digits, NUMBERS, TARGETS, 50, "cpu", chunk=2)
    assert epochs_begun == list(range(len(epochs_begun)))
    assert len(epochs_begun) <= EPOCHS
    assert (found.steps <= EPOCHS * 17).all() and (found.steps > 0).all()


def test_a_target_out_of_reach_gets_the_best_there_is_after_all_epochs(digits, history, epochs_begun):
    found = stop_early(RECIPE, digits, NUMBERS, torch.ones(1, 2, dtype=torch.float64), EPOCHS, "cpu")
    assert epochs_begun == 2 * list(range(EPOCHS)), "one model after the other"
    for column, steps in enumerate(history):
        best = max(steps[step - 1][1] for step in steps_tested(len(steps)))
        assert found.accuracy[0, column] == best < 1


def test_models_side_by_side_stop_where_each_alone_does(digits):
    # The last target is out of reach, so that no model waits for another.
    targets = torch.cat([TARGETS, torch.ones(1, 2, dtype=torch.float64)])
    alone, together = (stop_early(RECIPE, digits, NUMBERS, targets, EPOCHS, "cpu", chunk) for chunk in (1, 2))
    assert torch.equal(together.accuracy, alone.accuracy)
    assert torch.equal(together.steps, alone.steps)
    # Batched and single float32 products round differently; fifty steps of Adam amplify that a little.
    for key, tensor in alone.weights.items():
        torch.testing.assert_close(together.weights[key], tensor, rtol=0, atol=1e-3)


def test_without_held_out_images_nothing_can_be_stopped(digits):
    none = Split(digits.held_out.images[:0], digits.held_out.labels[:0])
    with pytest.raises(ValueError, match="stopped early by their accuracy on held-out images, and there are none"):
        stop_early(RECIPE, replace(digits, held_out=none), NUMBERS, TARGETS, EPOCHS, "cpu")


@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 1), (0, 2), (1, 2, 1)])
def test_targets_that_are_not_one_for_each_model_are_refused(digits, shape):
    with pytest.raises(ValueError, match=r"targets must be \(targets, 2\), one row or more: got \("):
        stop_early(RECIPE, digits, NUMBERS, torch.zeros(shape), EPOCHS, "cpu")


def test_a_batch_norm_model_stopped_early_is_what_its_training_had_at_that_step(digits):
    recipe = replace(RECIPE, architecture="resnet20_bn", width=2, batch_size=256)
    # The target is out of reach, so that the best of the four steps is kept.
    stopped = stop_early(recipe, digits, [0], torch.ones(1, 1, dtype=torch.float64), 1, "cpu")
    net = build("resnet20_bn", digits, 2)
    weights, optimiser = start(net, recipe, [0], "cpu")
    batches = train_epoch(net, recipe, weights, optimiser, digits.train.images, digits.train.labels, [0], 0)
    assert stopped.steps[0, 0] > 1
    for _ in range(int(stopped.steps[0, 0])):
        next(batches)
    for key, tensor in weights.items():
        assert stopped.weights[key].dtype == tensor.dtype, key
        assert torch.equal(stopped.weights[key][0], tensor.detach()), key
