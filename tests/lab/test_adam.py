"""PLeaS by steps of Adam goes for the same least squares as the closed form, and comes nearly as far."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from lab.contestants import adam
from lab.contestants.adam import fit_by_adam
from rebasin import Slots, collect, least_squares, trace
from rebasin.expanding.expansion import expand
from rebasin.expanding.layout import places_as_given
from rebasin.fitting.alignment import match_grams


def networks(layers):
    """Two of these networks with weights of their own."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(layers())
    return made


def half_merged(spec, grams):
    """Slots in which every second unit of a group is merged, and the others are apart."""
    permutation = match_grams(grams)
    merged = {group: size // 2 for group, size in spec.sizes.items()}
    order = {group: torch.arange(size, dtype=torch.float64) for group, size in spec.sizes.items()}
    return Slots.partial(permutation, merged, order)


@pytest.fixture(scope="module")
def perceptron():
    """Two MLPs, their Gram matrices and slots, the inputs, and the weights that Adam comes to."""
    models = networks(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    inputs = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    grams = collect(trace(models[0], inputs[:2]), models, inputs)
    slots = half_merged(grams.spec, grams)
    return models, grams, slots, inputs, fit_by_adam(grams, slots, inputs)


def unit_slots(slots, weight):
    """The slot (n, units) of each unit that a layer gives, in the models' own order."""
    return places_as_given(slots, weight, 0)[0]


def left_of_second_layer(models, slots, weights, inputs):
    """The mean square of what the second layer leaves of its targets, from the models' own hidden units."""
    hidden = [model[1](model[0](inputs)) for model in models]
    answers = [model[2](own) for model, own in zip(models, hidden, strict=True)]

    def merged(of_models, index):
        total, units = torch.zeros(len(inputs), int(index.max()) + 1), torch.zeros(int(index.max()) + 1)
        for own, into in zip(of_models, index, strict=True):
            total.index_add_(1, into, own)
            units += torch.bincount(into, minlength=len(units))
        return total / units

    read, targets = merged(hidden, unit_slots(slots, "0.weight")), merged(answers, unit_slots(slots, "2.weight"))
    with torch.no_grad():
        return float((read @ weights["2.weight"].T + weights["2.bias"] - targets).square().mean())


def test_adam_comes_from_the_averages_nearly_to_the_closed_form(perceptron):
    models, grams, slots, inputs, stepped = perceptron
    start = expand(slots, grams.weights, grams.program)
    solved, _ = least_squares(grams, slots)
    averaged, by_adam, closed = (left_of_second_layer(models, slots, w, inputs) for w in (start, stepped, solved))
    # 400 steps of at most 0.0005 move a weight by some 0.1: a good part of the way.
    assert closed < by_adam < averaged


def test_what_has_no_common_owner_stays_zero(perceptron):
    _, grams, slots, _, stepped = perceptron
    dense = expand(slots, grams.weights, grams.program)
    for key in ("0.weight", "2.weight", "4.weight"):
        zero = dense[key] == 0
        assert torch.equal(stepped[key][zero], dense[key][zero])
        assert not torch.equal(stepped[key], dense[key]) or key == "0.weight"


def test_the_same_seed_gives_the_same_weights(perceptron, monkeypatch):
    monkeypatch.setattr(adam, "STEPS", 10)
    _, grams, slots, inputs, _ = perceptron
    first, again, other = (fit_by_adam(grams, slots, inputs, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["2.weight"], other["2.weight"])


def test_convolutions_are_fitted_at_their_places():
    models = networks(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    )
    models = [nn.Sequential(*model, nn.Flatten(), nn.Linear(6 * 9, 2)) for model in models]
    inputs = torch.randn(100, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    grams = collect(trace(models[0], inputs[:2]), models, inputs)
    slots = Slots.of_permutation(match_grams(grams))
    start, stepped = expand(slots, grams.weights, grams.program), fit_by_adam(grams, slots, inputs)
    hidden = [model[1](model[0](inputs)).detach() for model in models]
    aligned = [own[:, index.argsort()] for own, index in zip(hidden, unit_slots(slots, "0.weight"), strict=True)]
    targets = [conv2d(own, m[2].weight, m[2].bias, padding=1).detach() for own, m in zip(hidden, models, strict=True)]
    of_units = unit_slots(slots, "2.weight")
    targets = [own[:, index.argsort()] for own, index in zip(targets, of_units, strict=True)]

    def left(weights):
        answer = conv2d(sum(aligned) / 2, weights["2.weight"], weights["2.bias"], padding=1)
        return float((answer - sum(targets) / 2).square().mean())

    assert left(stepped) < left(start)
