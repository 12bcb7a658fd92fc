"""Logits, accuracies, losses and barriers are those of plain code, however many models go through at once."""

import copy

import pytest
import torch
from torch import nn

from lab.images import Split
from lab.measures.paths import barrier, evaluate_path
from lab.outputs import evaluate, outputs

# Three models see seven images of 2 x 2 pixels: chunks and batches of other sizes leave a rest.
IMAGES, CLASSES = 7, 3


@pytest.fixture(scope="module")
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES))


@pytest.fixture(scope="module")
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(CLASSES, (IMAGES,), generator=generator))


def weights_of(model, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(n, *tensor.shape, generator=generator) for key, tensor in model.state_dict().items()}


def test_correctness_and_loss_are_those_of_each_model_alone(model, split):
    weights = weights_of(model, 3)
    found = evaluate(model, weights, split, "cpu")
    assert found.correct.shape == found.loss.shape == (3, IMAGES)
    for i in range(3):
        logits = torch.func.functional_call(model, {k: t[i] for k, t in weights.items()}, (split.images / 255,))
        assert found.correct[i].tolist() == [
            int(row.argmax()) == int(y) for row, y in zip(logits, split.labels, strict=True)
        ]
        nats = [-row.log_softmax(0)[y] for row, y in zip(logits, split.labels, strict=True)]
        # Losses of order 1, in float32.
        torch.testing.assert_close(found.loss[i], torch.stack(nats).detach(), rtol=1e-5, atol=1e-6)
    assert 0 < found.correct.sum() < 3 * IMAGES


def test_logits_are_those_of_each_model_alone_for_images_and_for_pixels(model, split):
    weights = weights_of(model, 3)
    logits = outputs(model, weights, split.images, "cpu", chunk=2, batch=3)
    assert logits.shape == (3, IMAGES, CLASSES) and not logits.requires_grad
    for i in range(3):
        alone = torch.func.functional_call(model, {k: t[i] for k, t in weights.items()}, (split.images / 255,))
        torch.testing.assert_close(logits[i], alone.detach(), rtol=1e-5, atol=1e-6)
    assert split.pixels.dtype == torch.float32 and split.pixels.max() <= 1
    assert torch.equal(outputs(model, weights, split.pixels, "cpu", chunk=2, batch=3), logits)


def test_a_model_in_training_is_asked_as_in_evaluation_and_stays_as_it_is(split):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, CLASSES)).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = {key: tensor.unsqueeze(0) for key, tensor in before.items()}
    logits = outputs(model, weights, split.images, "cpu")
    assert model.training
    torch.testing.assert_close(logits[0], copy.deepcopy(model).eval()(split.pixels).detach())
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(("chunk", "batch"), [(2, 7), (3, 3), (5, 1)])
def test_the_result_does_not_depend_on_how_many_go_through_at_once(model, split, chunk, batch):
    weights = weights_of(model, 3)
    whole, parts = evaluate(model, weights, split, "cpu"), evaluate(model, weights, split, "cpu", chunk, batch)
    assert torch.equal(parts.correct, whole.correct)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-6)


def test_nothing_to_evaluate_is_refused(model, split):
    with pytest.raises(ValueError, match="nothing to evaluate: 0 models, 7 images"):
        evaluate(model, weights_of(model, 0), split, "cpu")
    with pytest.raises(ValueError, match="nothing to evaluate: 3 models, 0 images"):
        evaluate(model, weights_of(model, 3), Split(split.images[:0], split.labels[:0]), "cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_refused(model, split, bad):
    weights = weights_of(model, 3)
    weights["3.bias"][1, 0] = bad
    with pytest.raises(ValueError, match="a model's outputs are NaN or infinite"):
        evaluate(model, weights, split, "cpu")


def test_a_path_ends_at_its_two_models(model, split):
    a, b = weights_of(model, 3, seed=1), weights_of(model, 3, seed=2)
    accuracy, loss = evaluate_path(model, a, b, torch.linspace(0, 1, 5), split, "cpu")
    assert accuracy.shape == loss.shape == (3, 5)
    for weights, point in ((a, 0), (b, -1)):
        alone = evaluate(model, weights, split, "cpu")
        assert torch.equal(accuracy[:, point], alone.correct.double().mean(1))
        assert torch.equal(loss[:, point], alone.loss.double().mean(1))


def test_a_path_passes_through_the_midpoint(model, split):
    a, b = weights_of(model, 3, seed=1), weights_of(model, 3, seed=2)
    _, loss = evaluate_path(model, a, b, torch.linspace(0, 1, 5), split, "cpu")
    middle = evaluate(model, {key: (a[key] + b[key]) / 2 for key in a}, split, "cpu")
    # Losses of order 1, in float32.
    torch.testing.assert_close(loss[:, 2], middle.loss.double().mean(1), rtol=1e-5, atol=1e-6)


LAMS = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "from_mean", "above_line"),
    [
        ([1.0, 2.0, 4.0, 2.0, 1.0], 3.0, 3.0),
        ([0.0, 0.0, 1.0, 3.5, 4.0], 2.0, 0.5),
        ([4.0, 6.0, 3.0, 1.0, 0.0], 4.0, 3.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 2.0, 0.0),
        ([2.0, 1.0, 0.5, 1.0, 2.0], 0.0, 0.0),
    ],
    ids=["equal ends", "rising", "falling", "straight", "valley"],
)
def test_both_barriers_of_a_known_curve(values, from_mean, above_line):
    # All values and points are sums of few powers of two: there is no rounding.
    found = barrier(torch.tensor(values, dtype=torch.float64), LAMS)
    assert [float(height) for height in found] == [from_mean, above_line]


def test_barriers_of_many_curves_are_those_of_each():
    values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = barrier(values, LAMS)
    for i in range(2):
        for j in range(3):
            alone = barrier(values[i, j], LAMS)
            assert [height[i, j] for height in together] == list(alone)


@pytest.mark.parametrize("lams", [[0.1, 0.5, 1.0], [0.0, 0.5, 0.9], [1.0, 0.5, 0.0]])
def test_a_path_without_its_ends_has_no_barrier(lams):
    with pytest.raises(ValueError, match="the points of a path must begin at 0 and end at 1"):
        barrier(torch.zeros(3), torch.tensor(lams))
