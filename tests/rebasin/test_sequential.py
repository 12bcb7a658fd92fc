"""Least squares on the merge's own inputs: each layer makes up for the errors of those before it."""

import copy
import re

import pytest
import torch
from networks import NETWORKS, Attention, Branches, Chain, Reused, drawn, images
from torch import nn

from rebasin import Fitted, Permutation, Slots, collect, merge_many, pleas, trace
from rebasin.expanding.expanded import expand_network
from rebasin.merging.sequential import refit
from rebasin.weights import take


def merged_from(network, n, count=600):
    model = network().double().eval()
    return collect(trace(model, images(1)), drawn(model, n), images(count), model=model)


def test_each_layer_is_fitted_to_what_the_merge_reads(monkeypatch):
    grams, x = merged_from(Chain, 2), images(400, seed=1)
    merge = pleas(grams)
    monkeypatch.setattr("rebasin.fitting.least_squares.STRENGTHS", (0.0,))
    weights = refit(merge, grams, x).model.weights
    moved = merge.slots.permutation.apply(grams.weights)
    own, of_models = x.flatten(1), [x.flatten(1)] * 2
    for layer in ("1", "3", "5", "7"):
        matrices, biases = moved[f"{layer}.weight"], moved[f"{layer}.bias"]
        given = [read @ matrices[m].T + biases[m] for m, read in enumerate(of_models)]
        rows = torch.cat([own, torch.ones(400, 1)], 1)
        expected = torch.linalg.lstsq(rows, sum(given) / 2).solution
        # What a dead unit is multiplied with is anybody's choice: what comes out is compared.
        fitted = own @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        torch.testing.assert_close(fitted, rows @ expected, rtol=1e-6, atol=1e-8)
        own, of_models = (rows @ expected).relu(), [values.relu() for values in given]


@pytest.mark.parametrize("size", [1, 1.5])
@pytest.mark.parametrize("network", [Chain, Branches, Attention])
def test_it_errs_less_where_the_layers_before_err(network, size):
    grams, x = merged_from(network, 2), images(600)
    merge = pleas(grams, size=size)
    again = refit(merge, grams, x, places=None)
    assert all(fit.after <= fit.before for fit in again.fits.values())
    assert again.fits["out.weight" if network is not Chain else "7.weight"].after < 0.5
    with torch.no_grad():
        target = torch.stack([functional(grams, m, x) for m in range(2)]).mean(0)
        before, after = ((network(x) - target).square().mean() for network in (merge, again))
    assert after < before


def functional(grams, m, x):
    return torch.func.functional_call(grams.model, take(grams.weights, m), (x,))


@pytest.mark.parametrize("network", [network for network in NETWORKS.values() if network is not Reused])
def test_permuted_copies_stay_the_model(network):
    model = network().double().eval()
    spec, single = trace(model, images(1)), drawn(model, 1)
    models = Permutation.random(spec, (2,), torch.Generator().manual_seed(0)).apply(
        {key: tensor.expand(2, *tensor.shape[1:]) for key, tensor in single.items()}
    )
    x = images(300)
    grams = collect(spec, models, x, model=model)
    merge = pleas(grams)
    again = refit(merge, grams, x)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        torch.testing.assert_close(again(x), merge(x), rtol=1e-6, atol=1e-8)
    for fit in again.fits.values():
        assert fit.after <= fit.before


def test_an_average_is_refitted_from_its_slots_and_models_as_from_gram_matrices():
    grams, x = merged_from(Branches, 3), images(200)
    permutation = merge_many(grams.spec, grams.weights).permutation
    slots = Slots.of_permutation(permutation)
    average = Fitted(expand_network(slots, grams.model, grams.weights, example=x[:2]), slots, {})
    expected = refit(average, grams, x)
    again = refit(slots, grams.weights, x, model=grams.model)
    assert again.fits == expected.fits
    for key, tensor in expected.model.weights.items():
        assert torch.equal(again.model.weights[key], tensor)


class SharedBias(nn.Module):
    """Two layers that add the same bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(*shape)) for shape in ((9, 32), (9, 9)))
        self.bias, self.out = nn.Parameter(torch.randn(9)), nn.Linear(9, 3)

    def forward(self, x):
        x = nn.functional.linear(x.flatten(1), self.first, self.bias).relu()
        return self.out(nn.functional.linear(x, self.second, self.bias).relu())


def test_bad_input_is_named():
    grams = merged_from(Reused, 2, count=200)
    merge = pleas(grams)
    with pytest.raises(ValueError, match="again.weight' is used 2 times"):
        refit(merge, grams, images(10))
    with pytest.raises(ValueError, match="two inputs or more"):
        refit(merge, grams, images(1))
    with pytest.raises(ValueError, match="'bias' is used 2 times"):
        shared = SharedBias().double().eval()
        two = collect(trace(shared, images(1)), drawn(shared, 2), images(200), model=shared)
        refit(pleas(two), two, images(10))


def test_values_that_leave_the_range_of_numbers_are_named():
    models = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]
    spec = trace(models[0], torch.ones(1, 3))
    slots = Slots.of_permutation(Permutation.identity(spec, (2,)))
    with pytest.raises(ValueError, match="what '0.weight' reads or should give is infinite or NaN, or too large"):
        refit(slots, models, 1e25 * torch.randn(20, 3))


def test_models_that_do_not_fit_the_merge_are_refused():
    grams = merged_from(Chain, 2, count=200)
    merge, x, model = pleas(grams), images(10), grams.model
    with pytest.raises(ValueError, match="the merge is of 2 models, and 3 were given"):
        refit(merge, drawn(model, 3), x, model=model)
    groups = {key: torch.stack([tensor, tensor]) for key, tensor in grams.weights.items()}
    with pytest.raises(ValueError, match=re.escape("models of one merge are needed, (n, ...)")):
        refit(merge, groups, x, model=model)
    with pytest.raises(ValueError, match="Gram matrices come with their model"):
        refit(merge, grams, x, model=model)
    with pytest.raises(ValueError, match="pass model="):
        refit(merge, grams.weights, x)


def test_a_list_of_modules_is_refitted_too_with_its_norms():
    grams, x = merged_from(Branches, 2), images(200)
    modules = []
    for m in range(2):
        modules.append(copy.deepcopy(grams.model))
        modules[m].load_state_dict(take(grams.weights, m))
    slots = Slots.apart(grams.spec, 2)
    expected = refit(slots, grams.weights, x, model=grams.model)
    again = refit(slots, modules, x)
    assert all(torch.equal(again.model.weights[key], tensor) for key, tensor in expected.model.weights.items())
