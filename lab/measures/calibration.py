"""Whether a network is as sure as it is right, and how sure it would best be."""

from __future__ import annotations

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

BINS = 15  # of equal width; Guo et al. (2017)
TEMPERATURES = (0.01, 100.0)  # between which the best one is looked for


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, accuracy and share of the images (..., BINS) in bins of equal width of the confidence.

    ``probabilities`` (..., m, classes), ``labels`` (m,). The confidence is that of the likeliest class. An empty bin
    has the share 0, and NaN for the others. Guo et al. (2017), equations 1 and 2.
    """
    confidence, answer = probabilities.double().max(-1)
    right = (answer == labels).double()
    # A confidence of 1/2 in two bins belongs to the lower one, as in the paper.
    number = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    member = one_hot(number, BINS).double()
    count = member.sum(-2)
    inside = [(member * of[..., None]).sum(-2) / count for of in (confidence, right)]
    return inside[0], inside[1], count / len(labels)


def calibration_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The expected calibration error (...), between 0 and 1, of probabilities (..., m, classes) of labels (m,).

    The mean distance between a bin's confidence and its accuracy, by the share of the images in it. Guo et al. (2017),
    equation 3.
    """
    confidence, accuracy, share = reliability(probabilities, labels)
    return (share * (confidence - accuracy).abs().nan_to_num()).sum(-1)


def best_temperature(answers: Tensor, labels: Tensor) -> float:
    """The temperature that logits (m, classes) must be divided by for the smallest cross-entropy on labels (m,)."""
    answers = answers.double()

    def loss(logarithm: float) -> float:
        return float(cross_entropy(answers / torch.tensor(logarithm).double().exp(), labels))

    low, high = torch.tensor(TEMPERATURES).log().tolist()
    return float(torch.tensor(minimize_scalar(loss, bounds=(low, high), method="bounded").x).exp())


def temper(answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (..., m, classes) of logits (..., m, classes) at their best temperature, and that (...).

    Every other image is tempered by what is best for the rest, and these by what is best for it; the mean of the two is
    told. So no image's own label decides how sure its answer is. Images seen in training would not do: networks that
    are right on all of them would best be infinitely sure.
    """
    flat = answers.flatten(0, -3)
    half = torch.arange(len(labels)) % 2 == 0
    tempered, temperatures = torch.empty_like(flat), torch.empty(len(flat), 2, dtype=flat.dtype)
    for one, each in enumerate(flat):
        for part, here in enumerate((half, ~half)):
            temperatures[one, part] = best_temperature(each[~here], labels[~here])
            tempered[one, here] = (each[here] / temperatures[one, part]).log_softmax(-1)
    return tempered.view_as(answers), temperatures.mean(1).view(answers.shape[:-2])
