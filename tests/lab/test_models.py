"""Fresh weights are those that PyTorch's or Flax's layers give themselves, and depend on the seed alone."""

import copy
import math

import pytest
import torch
from scipy.stats import truncnorm
from torch import nn

from lab.data import load
from lab.networks import build
from lab.networks.initial import INITIAL, initial_weights
from lab.networks.mlp import mlp


@pytest.fixture(scope="module")
def layers():
    """Linear and convolutional layers of several thousand weights each, whose fans-in all differ."""
    return nn.ModuleDict(
        {
            "linear": nn.Linear(400, 300),
            "without a bias": nn.Linear(90, 200, bias=False),
            "convolution": nn.Conv2d(20, 64, 3),
            "grouped": nn.Conv2d(32, 64, 3, groups=2),
        }
    )


FAN_IN = {"linear": 400, "without a bias": 90, "convolution": 20 * 9, "grouped": 16 * 9}


def assert_has_deviation(values, deviation, kurtosis):
    """Within five standard errors, of the deviation and of the mean 0."""
    n = values.numel()
    assert values.double().mean().abs() < 5 * deviation * n**-0.5
    assert values.double().std().item() == pytest.approx(deviation, rel=5 * ((kurtosis - 1) / (4 * n)) ** 0.5)


def test_torch_weights_are_exactly_those_of_a_model_built_under_the_seed():
    digits = load("digits")
    for seed in (0, 2**63 - 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            built = mlp(digits, 24).state_dict()
        fresh = initial_weights(build("mlp", digits, 24), "torch", seed)
        assert fresh.keys() == built.keys()
        assert all(torch.equal(fresh[key], built[key]) for key in built)


def test_lecun_normal_weights_are_drawn_layer_by_layer_after_those_of_torch():
    fresh = initial_weights(build("mlp", load("digits"), 24), "lecun_normal", 5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for i, fan_in in enumerate((64, 24, 24, 24), 1):
            layer = nn.Linear(fan_in, 10 if i == 4 else 24)  # draws what is then drawn anew
            std = fan_in**-0.5 / 0.87962566103423978
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            assert torch.equal(fresh[f"layer{i}.weight"], layer.weight)
            assert not fresh[f"layer{i}.bias"].any()


def test_a_module_that_cannot_redraw_its_parameters_is_refused():
    with pytest.raises(ValueError, match="no fresh weights for MultiheadAttention: it has no reset_parameters"):
        initial_weights(nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2)), "torch", 0)


@pytest.mark.parametrize("name", FAN_IN)
def test_torch_weights_and_biases_are_uniform_between_plus_and_minus_one_by_root_fan_in(layers, name):
    fresh = initial_weights(layers[name], "torch", 0)
    assert fresh.keys() == layers[name].state_dict().keys()
    bound = FAN_IN[name] ** -0.5
    for values in fresh.values():
        # A uniform distribution has the kurtosis 9/5; float32 rounds the bound.
        assert_has_deviation(values, (3 * FAN_IN[name]) ** -0.5, 1.8)
        assert values.abs().max() <= bound * (1 + 1e-6)
    # That none of 9000 lies in the outer hundredth has a chance of e^-90.
    assert fresh["weight"].abs().max() > 0.99 * bound


@pytest.mark.parametrize("name", FAN_IN)
def test_lecun_normal_weights_are_a_cut_normal_of_deviation_one_by_root_fan_in(layers, name):
    fresh = initial_weights(layers[name], "lecun_normal", 0)
    assert fresh.keys() == layers[name].state_dict().keys()
    cut = truncnorm(-2, 2)
    uncut = FAN_IN[name] ** -0.5 / cut.std()
    values = fresh["weight"]
    assert_has_deviation(values, FAN_IN[name] ** -0.5, 3 + cut.stats("k"))
    assert values.abs().max() <= 2 * uncut * (1 + 1e-6)
    # Of a uniform distribution as wide, another share lies within one deviation: 1/2 and not 72 %.
    share = cut.cdf(1) - cut.cdf(-1)
    assert (values.abs() < uncut).double().mean().item() == pytest.approx(
        share, abs=5 * math.sqrt(share * (1 - share) / values.numel())
    )


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_lecun_normal_biases_are_zero(layers, name):
    assert not initial_weights(layers[name], "lecun_normal", 0)["bias"].any()


@pytest.mark.parametrize("initial", INITIAL)
def test_normalisation_layers_begin_with_ones_and_zeros_whatever_the_model_had(initial):
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.BatchNorm1d(5))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    fresh = initial_weights(model, initial, 0)
    for key in ("1.weight", "2.weight", "2.running_var"):
        assert torch.equal(fresh[key], torch.ones(5)), key
    for key in ("1.bias", "2.bias", "2.running_mean"):
        assert torch.equal(fresh[key], torch.zeros(5)), key
    assert not (fresh["0.weight"] == 7).any()


@pytest.mark.parametrize("initial", INITIAL)
def test_fresh_weights_depend_on_the_seed_alone(layers, initial):
    before = initial_weights(layers, initial, 3)
    torch.rand(5)
    changed = copy.deepcopy(layers)
    with torch.no_grad():
        for tensor in changed.state_dict().values():
            tensor.add_(1)
    again = initial_weights(changed, initial, 3)
    assert all(torch.equal(again[key], tensor) for key, tensor in before.items())
    another_seed = initial_weights(layers, initial, 4)
    # Two independent draws: the correlation of 120000 pairs of numbers has a deviation of 0.003.
    pair = torch.stack([before["linear.weight"].flatten(), another_seed["linear.weight"].flatten()])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.015


@pytest.mark.parametrize("initial", INITIAL)
def test_drawing_fresh_weights_leaves_the_global_random_state_and_the_model_as_they_were(layers, initial):
    state = torch.get_rng_state()
    kept = {key: tensor.clone() for key, tensor in layers.state_dict().items()}
    for tensor in initial_weights(layers, initial, 0).values():
        assert not tensor.requires_grad
        tensor.fill_(7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in layers.state_dict().items())


@pytest.mark.parametrize("initial", ["he_normal", "", None])
def test_an_unknown_scheme_of_initial_weights_is_refused(layers, initial):
    with pytest.raises(ValueError, match=f"unknown initial weights {initial!r}: there are torch, lecun_normal"):
        initial_weights(layers, initial, 0)
