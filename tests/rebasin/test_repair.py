"""After REPAIR every hidden unit of a merge has the mean and the deviation that its parents have on average."""

import copy

import pytest
import torch
from torch import nn

from lab.data import load
from lab.networks.initial import initial_weights
from lab.networks.mlp import mlp
from rebasin.merging.mending import repair

# Sums of 200 float64 products of order 1 to 100, each layer's error carried through three layers.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
HIDDEN = ["0", "2", "4"]


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def parents(random_weights):
    """Two groups of three networks."""
    return random_weights(2, 3)


def mean_of(parents):
    return {key: tensor.mean(1) for key, tensor in parents.items()}


def entry(weights, *position):
    return {key: tensor[position] for key, tensor in weights.items()}


def preactivations(weights, x, layers=HIDDEN):
    """What one network of linear layers and ReLUs has before each hidden ReLU: by layer, (inputs, units)."""
    found = {}
    for name in layers:
        found[name] = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = found[name].clamp(min=0)
    return found


def assert_has_its_parents_statistics(repaired, parents, x, layers=HIDDEN, **tolerance):
    own = preactivations(repaired, x, layers)
    n = len(next(iter(parents.values())))
    theirs = [preactivations(entry(parents, i), x, layers) for i in range(n)]
    for name in layers:
        mean = torch.stack([one[name].mean(0) for one in theirs]).mean(0)
        std = torch.stack([one[name].std(0) for one in theirs]).mean(0)
        torch.testing.assert_close(own[name].mean(0), mean, **tolerance)
        torch.testing.assert_close(own[name].std(0), std, **tolerance)


def test_every_hidden_unit_has_the_mean_and_deviation_of_its_parents_on_average(net, parents, inputs):
    merged = mean_of(parents)
    repaired = repair(net, merged, parents, inputs)
    for group in range(2):
        assert_has_its_parents_statistics(entry(repaired, group), entry(parents, group), inputs, **ROUNDING)
        with pytest.raises(AssertionError):
            assert_has_its_parents_statistics(entry(merged, group), entry(parents, group), inputs, rtol=0.1, atol=0.1)


def test_a_network_with_its_normalisation_is_repaired_on_images():
    data = load("digits")
    model = mlp(data, width=16)
    starts = [initial_weights(model, "lecun_normal", seed) for seed in range(3)]
    parents = {key: torch.stack([start[key] for start in starts]).unsqueeze(0) for key in starts[0]}
    images = data.train.images[:100].float() / 255
    repaired = repair(model.eval(), mean_of(parents), parents, images)
    # Values of order 1 in float32, summed over 100 images and up to 64 inputs.
    layers, tolerance = ["layer1", "layer2", "layer3"], {"rtol": 1e-4, "atol": 1e-5}
    assert_has_its_parents_statistics(entry(repaired, 0), entry(parents, 0), images.flatten(1), layers, **tolerance)


def test_the_output_layer_is_untouched(net, parents, inputs):
    merged = mean_of(parents)
    repaired = repair(net, merged, parents, inputs)
    for key in merged:
        assert torch.equal(repaired[key], merged[key]) == key.startswith("6."), key


def test_a_merge_of_identical_parents_is_not_changed(net, random_weights, inputs):
    parents = {key: tensor.unsqueeze(1).expand(-1, 3, *tensor.shape[1:]) for key, tensor in random_weights(2).items()}
    repaired = repair(net, mean_of(parents), parents, inputs)
    for key, tensor in random_weights(2).items():
        torch.testing.assert_close(repaired[key], tensor, **ROUNDING)


@pytest.mark.parametrize("layer", HIDDEN)
def test_units_that_never_vary_in_the_merge_are_shifted_alone(net, parents, inputs, layer):
    merged = mean_of(parents)
    merged[f"{layer}.weight"][:, 1:3] = 0
    repaired = repair(net, merged, parents, inputs)
    assert all(torch.isfinite(tensor).all() for tensor in repaired.values())
    assert (repaired[f"{layer}.weight"][:, 1:3] == 0).all()
    for group in range(2):
        own = preactivations(entry(repaired, group), inputs)[layer][:, 1:3]
        theirs = [preactivations(entry(parents, group, i), inputs)[layer][:, 1:3].mean(0) for i in range(3)]
        torch.testing.assert_close(own, torch.stack(theirs).mean(0).expand_as(own), **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_layer_that_hears_nothing_is_shifted_alone(net, parents, inputs, dtype):
    merged, parents = ({key: tensor.to(dtype) for key, tensor in w.items()} for w in (mean_of(parents), parents))
    # The parents' first layer is dead, so the merge's is after its repair; the second one's inputs are then all zero.
    parents["0.weight"] = torch.zeros_like(parents["0.weight"])
    parents["0.bias"] = -parents["0.bias"].abs()
    repaired = repair(copy.deepcopy(net).to(dtype), merged, parents, inputs.to(dtype))
    assert all(torch.isfinite(tensor).all() for tensor in repaired.values())
    assert torch.equal(repaired["2.weight"], merged["2.weight"])
    torch.testing.assert_close(repaired["2.bias"], parents["2.bias"].mean(1))


def test_a_unit_that_is_dead_behind_its_relu_comes_back_to_life(net, parents, inputs):
    merged = mean_of(parents)
    merged["2.bias"] -= 1e6
    repaired = repair(net, merged, parents, inputs)
    for group in range(2):
        # A bias of -1e6 leaves ten of the sixteen digits.
        tolerance = {"rtol": 1e-6, "atol": 1e-6}
        assert_has_its_parents_statistics(entry(repaired, group), entry(parents, group), inputs, **tolerance)


def test_neither_merge_nor_parents_are_modified(net, random_weights, parents, inputs):
    merged = mean_of(parents)
    repair(net, merged, parents, inputs)
    assert all(torch.equal(parents[key], tensor) for key, tensor in random_weights(2, 3).items())
    assert all(torch.equal(merged[key], tensor) for key, tensor in mean_of(parents).items())


@pytest.mark.parametrize("m", [0, 1])
def test_fewer_than_two_inputs_are_refused(net, parents, inputs, m):
    with pytest.raises(ValueError, match=f"REPAIR needs two inputs or more, got {m}"):
        repair(net, mean_of(parents), parents, inputs[:m])


def test_a_network_without_hidden_layers_stays_the_average_that_it_is(inputs):
    net = nn.Sequential(nn.Linear(12, 3)).double()
    parents = {key: torch.stack([tensor, -tensor]).unsqueeze(0) for key, tensor in net.state_dict().items()}
    repaired = repair(net, mean_of(parents), parents, inputs)
    assert all(torch.equal(repaired[key], tensor) for key, tensor in mean_of(parents).items())
