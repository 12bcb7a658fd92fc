"""Calibration: planted miscalibration is measured, bins are counted as by a plain loop, temperatures are recovered."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss

from lab.measures.calibration import BINS, best_temperature, calibration_error, reliability, temper


def answers(confidence, right):
    """Probabilities (m, 3) of answers that are sure by ``confidence``, and labels (m,) such that these are right."""
    confidence, right = torch.tensor(confidence, dtype=torch.float64), torch.tensor(right)
    probabilities = torch.stack([confidence, *[(1 - confidence) / 2] * 2], 1)
    return probabilities, torch.where(right, 0, 1)


def random_answers(m=500, classes=4, *batch):
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(*batch, m, classes, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    return found, torch.randint(classes, (m,), generator=generator)


@pytest.mark.parametrize(
    ("confidence", "right", "error"),
    [
        ([0.9] * 10, [True] * 9 + [False], 0.0),
        ([0.9] * 10, [True] * 5 + [False] * 5, 0.4),
        ([0.6] * 10, [True] * 10, 0.4),
        # A third of the answers is off by .5, the rest by nothing.
        ([0.5] * 5 + [1.0] * 10, [False] * 5 + [True] * 10, 0.5 / 3),
        # What is too sure in one bin is not made up for by what is too little so in another.
        ([0.6] * 5 + [0.9] * 5, [True] * 5 + [False] * 5, 0.65),
    ],
)
def test_planted_miscalibration_is_measured(confidence, right, error):
    assert float(calibration_error(*answers(confidence, right))) == pytest.approx(error)


def test_the_error_is_that_of_a_plain_loop():
    probabilities, labels = random_answers()
    total = 0.0
    for number in range(BINS):
        inside = [i for i in range(len(labels)) if number / BINS < float(probabilities[i].max()) <= (number + 1) / BINS]
        if inside:
            sure = np.mean([float(probabilities[i].max()) for i in inside])
            right = np.mean([int(probabilities[i].argmax()) == int(labels[i]) for i in inside])
            total += len(inside) / len(labels) * abs(sure - right)
    assert float(calibration_error(probabilities, labels)) == pytest.approx(total)


def test_bins_are_those_of_scikit_learn():
    probabilities, labels = random_answers()
    confidence, accuracy, share = reliability(probabilities, labels)
    sure, answer = probabilities.max(-1)
    theirs = calibration_curve((answer == labels).numpy(), sure.numpy(), n_bins=BINS)
    np.testing.assert_allclose(accuracy[share > 0].numpy(), theirs[0])
    np.testing.assert_allclose(confidence[share > 0].numpy(), theirs[1])


def test_many_networks_are_measured_as_each_alone():
    probabilities, labels = random_answers(50, 4, 2, 3)
    together = calibration_error(probabilities, labels)
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], calibration_error(probabilities[i, j], labels))


def test_an_empty_bin_has_no_share_and_does_not_spoil_the_error():
    confidence, accuracy, share = reliability(*answers([0.99] * 4, [True, True, True, False]))
    assert share.tolist() == [0.0] * (BINS - 1) + [1.0]
    assert confidence[:-1].isnan().all() and accuracy[:-1].isnan().all()
    assert float(accuracy[-1]) == 0.75
    assert float(calibration_error(*answers([0.99] * 4, [True, True, True, False]))) == pytest.approx(0.24)


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one():
    # 3/5 is the edge between the ninth bin and the tenth of fifteen.
    _, _, share = reliability(*answers([0.6], [True]))
    assert share.argmax() == 8
    assert reliability(*answers([1.0], [True]))[2][-1] == 1


@pytest.mark.parametrize("planted", [0.25, 1.0, 4.0])
def test_a_planted_temperature_is_recovered(planted):
    generator = torch.Generator().manual_seed(1)
    calibrated = torch.randn(20000, 5, generator=generator).mul(2)
    labels = torch.multinomial(calibrated.softmax(-1), 1, generator=generator).squeeze(-1)
    found = best_temperature(planted * calibrated, labels)
    assert found == pytest.approx(planted, rel=0.05)
    before, after = (float(calibration_error((planted * calibrated / t).softmax(-1), labels)) for t in (1.0, found))
    assert after < 0.02
    assert planted == 1.0 or before > 0.1


def test_no_other_temperature_has_a_smaller_loss():
    probabilities, _ = random_answers()
    labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(1)).squeeze(-1)
    raw = 3 * probabilities.log()
    found = best_temperature(raw, labels)
    losses = [float(nn.functional.cross_entropy(raw / (found * factor), labels)) for factor in (1.0, 0.9, 1.1)]
    assert losses[0] == min(losses)


def test_a_network_that_is_too_sure_by_a_known_factor_is_cooled_by_it():
    generator = torch.Generator().manual_seed(0)
    raw = 2 * torch.randn(20000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(raw.softmax(1), 1, generator=generator).squeeze(1)
    tempered, temperature = temper(torch.stack([raw, 3 * raw]), labels)
    # 20 000 labels drawn from these probabilities tell the factor to about 1 %.
    assert temperature.tolist() == pytest.approx([1, 3], rel=0.05)
    assert nll_loss(tempered[1], labels).item() == pytest.approx(cross_entropy(raw, labels).item(), abs=1e-3)
    assert cross_entropy(3 * raw, labels) > cross_entropy(raw, labels) + 0.1
    assert torch.equal(tempered.argmax(-1), raw.argmax(-1).expand(2, -1))


def test_a_temperature_is_chosen_on_the_other_half_of_the_images():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 400, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(raw[0].softmax(-1), 1, generator=generator).squeeze(-1)
    sure = (4 * raw).log_softmax(-1)
    found, _ = temper(sure, labels)
    odd = best_temperature(sure[0, 1::2], labels[1::2])
    torch.testing.assert_close(found[0, ::2], (sure[0, ::2] / odd).log_softmax(-1))
    assert calibration_error(found[0].exp(), labels) < calibration_error(sure[0].exp(), labels) / 2
    # What an image's own label is does not change its answer.
    changed = labels.clone()
    changed[0] = (changed[0] + 1) % 3
    torch.testing.assert_close(temper(sure, changed)[0][:, ::2], found[:, ::2])
