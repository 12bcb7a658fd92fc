"""PLeaS whole: the model from permuted copies of it, the ensemble at full size, and better than the average between."""

import pytest
import torch
from networks import NETWORKS, Attention, Branches, Chain, drawn, images
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from rebasin import Permutation, Slots, collect, fit_slots, match, pleas, reset_norms, trace
from rebasin.expanding.costs import count_cost, graph_costs
from rebasin.expanding.expanded import expand_network
from rebasin.fitting.least_squares import least_squares
from rebasin.fitting.norm_statistics import measure_norms
from rebasin.weights import take

# Sums of some hundred float64 products through a few layers.
ROUNDING = {"rtol": 1e-6, "atol": 1e-8}


class Normed(nn.Sequential):
    """Convolutions with batch norms."""

    def __init__(self):
        first, second = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.Conv2d(6, 5, 3, padding=1, bias=False)
        norms = nn.BatchNorm2d(6), nn.BatchNorm2d(5)
        super().__init__(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))


def merged_from(network, n, count=600, seed=0, **options):
    """The Gram matrices of n models of random weights, in float64."""
    model = network().double().eval()
    models = drawn(model, n, seed=seed)
    return collect(trace(model, images(1)), models, images(count), model=model, places=None, **options)


def of_models(grams, x):
    """What each of the models gives: (n, images, outputs)."""
    return torch.stack([functional_call(grams.model, take(grams.weights, m), (x,)) for m in range(grams.n)])


@pytest.mark.parametrize("network", [*NETWORKS.values(), Normed])
def test_permuted_copies_of_a_model_merge_into_the_model(network):
    """Norms measured anew are those of the model on the same images."""
    model, x = network().double().eval(), images(300)
    spec, single = trace(model, images(1)), drawn(model, 1)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        single = {key: tensor.unsqueeze(0) for key, tensor in reset_norms(model, take(single, 0), x).items()}
    models = Permutation.random(spec, (2,), torch.Generator().manual_seed(0)).apply(
        {key: tensor.expand(2, *tensor.shape[1:]) for key, tensor in single.items()}
    )
    merge = pleas(collect(spec, models, x, model=model))
    assert "errors of its layers 0% of" in repr(merge)  # of rounding, the share would say nothing
    torch.testing.assert_close(
        merge(images(5, seed=1)), functional_call(model, take(single, 0), (images(5, seed=1),)), **ROUNDING
    )


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("network", [Chain, Attention])
def test_at_full_size_it_is_the_ensemble(network, n):
    grams, x = merged_from(network, n), images(5, seed=1)
    merge = pleas(grams, size=n)
    torch.testing.assert_close(merge(x), of_models(grams, x).mean(0), **ROUNDING)
    assert merge.model.size == pytest.approx(n)


@pytest.mark.parametrize("network", [Chain, Branches, Attention])
def test_it_costs_what_it_may_and_least_squares_err_less_than_the_average(network):
    grams, x = merged_from(network, 2), images(200, seed=1)
    target = of_models(grams, x).mean(0)
    merge = pleas(grams, size=1.5)
    assert 1 < merge.model.size <= 1.5
    assert merge.budget.size == pytest.approx(merge.model.size)
    average = expand_network(merge.slots, grams.model, grams.weights, example=grams.example)
    average = measure_norms(average, grams.loader) if network is Branches else average
    errors = [(network(x) - target).square().mean() for network in (merge, average)]
    assert errors[0] < errors[1]


def test_heads_side_by_side_are_paid_from_the_size():
    merge = pleas(merged_from(Chain, 2), size=1.3, heads="side by side")
    assert 1 < merge.model.size <= 1.3
    assert merge.budget.size == pytest.approx(merge.model.size)


def test_more_units_err_less():
    grams, x = merged_from(Chain, 2), images(200, seed=1)
    target = of_models(grams, x).mean(0)
    with torch.no_grad():
        errors = [float((pleas(grams, size=size)(x) - target).square().mean()) for size in (1, 1.3, 1.6, 2)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20


def test_the_units_that_differ_are_kept_apart_however_the_second_model_is_permuted():
    """The scores are those of the aligned models: in the coordinates of the original, they would name other units."""
    model = Chain().double().eval()
    spec, single = trace(model, images(1)), drawn(model, 1)
    aligned = {key: tensor.expand(2, *tensor.shape[1:]).clone() for key, tensor in single.items()}
    aligned["3.weight"][1, [2, 7]] = torch.randn(2, 12, generator=torch.Generator().manual_seed(1)).double()
    for seed in range(3):
        permutation = Permutation.random(spec, (2,), torch.Generator().manual_seed(seed))
        models = permutation.apply(aligned)
        merge = pleas(collect(spec, models, images(300), model=model), size=1.2)
        apart = (~merge.slots.owners["3"].all(0)).nonzero().flatten()
        units = [merge.slots.permutation.compose(permutation).flat["3"][m] for m in range(2)]
        kept = [{int(units[m][u]) for u in range(10) if merge.slots.index["3"][m, u] in apart} for m in range(2)]
        assert kept[0] >= {2, 7}
        assert kept[1] >= {2, 7}


def test_running_statistics_are_those_of_the_merge():
    grams = merged_from(Normed, 2)
    merge = pleas(grams, size=1.3)
    again = measure_norms(merge.model, grams.loader)
    for key, tensor in merge.model.named_buffers():
        torch.testing.assert_close(dict(again.named_buffers())[key], tensor)
    assert any("running_mean" in key for key, _ in merge.model.named_buffers())


def test_measured_statistics_of_one_batch_are_those_of_the_reset():
    model, x = Normed().double().eval(), images(50)
    one, reset = measure_norms(model, x), reset_norms(model, model, x)
    two = measure_norms(model, [x[:25], (x[25:], "labels")])
    for key, tensor in reset.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], tensor)
    expected = (model[0](x[:25]).mean((0, 2, 3)) + model[0](x[25:]).mean((0, 2, 3))) / 2
    torch.testing.assert_close(two[1].running_mean, expected)
    assert model[1].running_mean.eq(0).all()  # nothing given is modified


class Turned(nn.Module):
    """Units that are turned by complex numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.turn = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, x):
        return self.b((self.a(x).relu() * self.turn).real)


def test_complex_parameters_are_merged_and_complex_layers_refused():
    models, x = [Turned(), Turned()], torch.randn(60, 3)
    spec = trace(models[0], x[:2])
    grams = collect(spec, models, x)
    average = fit_slots(grams, Slots.of_permutation(Permutation.identity(spec, (2,)))).model
    torch.testing.assert_close(average.get_parameter("network.turn"), (models[0].turn + models[1].turn) / 2)
    apart = fit_slots(grams, Slots.apart(spec, 2))
    torch.testing.assert_close(apart(x), (models[0](x) + models[1](x)) / 2, rtol=1e-5, atol=1e-5)
    layers = []
    for _ in range(2):
        layers.append(nn.Sequential(*(nn.Linear(i, o, dtype=torch.complex64) for i, o in ((3, 4), (4, 2)))))
    with pytest.raises(ValueError, match="'0.weight' is complex, and no layer of complex weights is fitted"):
        collect(trace(layers[0], x[:2].cfloat()), layers, x.cfloat())


def test_a_last_batch_of_one_image_is_refused_where_that_has_no_variance():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), torch.randn(41, 3)
    with pytest.raises(ValueError, match="one image has no variance: pass drop_last=True to the DataLoader"):
        measure_norms(model, DataLoader(x, batch_size=10))
    assert measure_norms(model, DataLoader(x, batch_size=10, drop_last=True))[1].running_var.isfinite().all()
    pixels = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).double().eval()
    assert measure_norms(pixels, list(images(5).split(4)))[1].running_var.isfinite().all()  # one image has many pixels


def test_a_matching_of_weights_may_be_given():
    grams = merged_from(Chain, 2)
    matching = match(grams.spec, take(grams.weights, 0), take(grams.weights, 1))
    merge = pleas(grams, permutation=matching)
    for group, index in matching.permutation.indices.items():
        assert torch.equal(merge.slots.permutation.indices[group][1], index)


def test_regmean_is_the_stacked_objective_of_models_as_they_are(monkeypatch):
    monkeypatch.setattr("rebasin.fitting.least_squares.STRENGTHS", (0.0,))
    grams = merged_from(Chain, 2)
    identity = Permutation.identity(grams.spec, (2,))
    merge = fit_slots(grams, Slots.of_permutation(identity), objective="stacked")
    rows = [take(grams.weights, m) for m in range(2)]
    hidden = [nn.functional.relu(images(600).flatten(1) @ w["1.weight"].T + w["1.bias"]) for w in rows]
    hidden = [torch.cat([h, torch.ones(600, 1)], 1) for h in hidden]
    joint = [torch.cat([w["3.weight"], w["3.bias"].unsqueeze(1)], 1) for w in rows]
    # Equation 2 of Jin et al.: the inverse of the summed Gram matrices times the sum of Gram matrices times weights.
    summed = hidden[0].T @ hidden[0] + hidden[1].T @ hidden[1]
    expected = torch.linalg.solve(summed, sum(h.T @ h @ w.T for h, w in zip(hidden, joint, strict=True)))
    torch.testing.assert_close(merge.model.weights["3.weight"], expected[:-1].T, **ROUNDING)


def test_it_is_saved_and_loaded_by_torch_alone(tmp_path):
    grams, x = merged_from(Branches, 2), images(7, seed=1)
    merge = pleas(grams, size=1.3)
    merge.save(tmp_path / "merge.pt2")
    loaded = torch.export.load(tmp_path / "merge.pt2").module()
    torch.testing.assert_close(loaded(x), merge(x))


def test_parameters_may_be_the_measure():
    grams = merged_from(Chain, 2)
    merge = pleas(grams, size=1.4, by="parameters")
    costs = graph_costs(grams.spec, grams.program)
    one = count_cost(costs, Slots.apart(grams.spec, 1), by="parameters")
    assert 1.2 < count_cost(costs, merge.slots, by="parameters") / one <= 1.4


def test_the_warning_of_little_data_points_at_the_line_that_asked_for_the_merge():
    models, x = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)], torch.randn(6, 3)
    grams = collect(trace(models[0], x), models, x)
    slots = Slots.of_permutation(Permutation.identity(grams.spec, (2,)))
    for call in (lambda: pleas(grams), lambda: fit_slots(grams, slots), lambda: least_squares(grams, slots)):
        with pytest.warns(UserWarning, match="3 rows of data") as told:
            call()
        assert told[0].filename == __file__


def test_bad_input_is_named():
    grams = merged_from(Chain, 2)
    for size in (0.9, 2.1):
        with pytest.raises(ValueError, match=f"2 models has size {size}: it goes from 1 to 2"):
            pleas(grams, size=size)
    linear, x = [nn.Linear(4, 2) for _ in range(2)], torch.randn(20, 4)
    with pytest.raises(ValueError, match="no group of units that can be matched: spec.pinned says why"):
        pleas(collect(trace(linear[0], x), linear, x))
    with pytest.raises(ValueError, match="not of the 2 models"):
        pleas(grams, permutation=Permutation.identity(grams.spec, (3,)))
    with pytest.raises(ValueError, match=r"leading axes \(1,\): give that of one pair, match\(spec, a, b\)"):
        pleas(grams, permutation=match(grams.spec, take(grams.weights, slice(1)), take(grams.weights, slice(1, 2))))
    model = Normed().double().eval()
    once = collect(grams.spec, grams.weights, iter([images(50)]), model=grams.model)
    assert once.images == 50
    spec = trace(model, images(1))
    once = collect(spec, drawn(model, 2), iter([images(50)]), model=model)
    with pytest.raises(ValueError, match="read only once: collect from a list"):
        pleas(once)


def test_models_in_place_of_gram_matrices_are_told_as_such():
    with pytest.raises(TypeError, match=r"what collect gives, and a list was given: pleas\(grams\)"):
        pleas([nn.Linear(2, 2)], size=1.2)
