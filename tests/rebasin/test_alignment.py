"""What Gram matrices tell of the units: the matching of activations, and what merging a unit costs."""

import pytest
import torch
from networks import NETWORKS, Attention, Branches, Chain, Reused, drawn, images
from torch import nn
from torch.func import functional_call

from rebasin import Permutation, activation_matching, collect, trace
from rebasin.fitting.alignment import correlations, match_grams, mismatch, unit_sums
from rebasin.merging.zipping import zip_slots
from rebasin.weights import take


def planted(network, n, noise=0.0):
    """A network's spec, n models that are permuted copies of one, but for noise, and what brings them back."""
    model = network().double().eval()
    spec, single = trace(model, images(1)), drawn(model, 1)
    permutation = Permutation.random(spec, (n,), torch.Generator().manual_seed(1))
    first = Permutation.identity(spec)
    for group, index in permutation.indices.items():
        index[0] = first.indices[group]
    models = permutation.apply({key: tensor.expand(n, *tensor.shape[1:]) for key, tensor in single.items()})
    generator = torch.Generator().manual_seed(2)
    for key, tensor in models.items():
        if tensor.ndim > 2 and noise:
            models[key] = tensor + noise * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return model, spec, models, permutation.invert()


def alike(model, spec, models, permutation):
    """How alike each unit of the permuted models is, the mean correlation over pairs of models: (units,) by group."""
    moved, (n,), means = permutation.apply(models), permutation.batch, {}
    for group, matrix in correlations(collect(spec, moved, images(200), model=model)).items():
        own = matrix.unflatten(1, (n, -1)).unflatten(0, (n, -1)).diagonal(dim1=1, dim2=3)  # (n, n, units)
        means[group] = (own.sum((0, 1)) - own.diagonal().sum(1)) / (n * (n - 1))
    return means


@pytest.mark.parametrize("similarity", ["inner product", "correlation"])
@pytest.mark.parametrize("network", NETWORKS.values())
def test_a_pair_is_matched_as_by_its_activations(network, similarity):
    model, spec, models, _ = planted(network, 2, noise=0.2)
    x = images(200)
    found = match_grams(collect(spec, models, x, model=model, places=None), similarity=similarity)
    a, b = take(models, 0), take(models, 1)
    expected = activation_matching(spec, a, b, model=model, loader=x, similarity=similarity).permutation
    for group, index in expected.indices.items():
        assert torch.equal(found.indices[group][1], index)
        assert torch.equal(found.indices[group][0], Permutation.identity(spec).indices[group])


@pytest.mark.parametrize("network", NETWORKS.values())
def test_planted_permutations_of_three_models_are_recovered(network):
    model, spec, models, back = planted(network, 3, noise=0.05)
    found = match_grams(collect(spec, models, images(200), model=model))
    as_they_are = Permutation.identity(spec, (3,))
    matched, planted_there, unmatched = (alike(model, spec, models, p) for p in (found, back, as_they_are))
    for group in matched:  # units that are all but dead may be anywhere
        assert matched[group].sum() >= 0.99 * planted_there[group].sum()
        assert unmatched[group].sum() < 0.9 * matched[group].sum()


def test_the_units_that_differ_are_those_of_the_greatest_mismatch_once_aligned():
    """Scores read in the coordinates of the unpermuted models would name others."""
    model, spec, models, back = planted(Chain, 2)
    moved = Permutation.identity(spec, (2,)).invert()
    aligned = back.apply(models)
    aligned["3.weight"][1, 4] = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    models = back.invert().apply(aligned)
    grams = collect(spec, models, images(300), model=model)
    lost = mismatch(grams, back)
    assert lost["3"].argmax() == 4
    assert (lost["3"][torch.arange(10) != 4] < 1e-12).all()
    assert alike(model, spec, models, back)["3"].argmin() == 4
    assert (mismatch(grams, moved)["3"] > 1e-3).sum() > 5


def test_mismatch_is_the_variance_that_the_next_layer_loses():
    model = Chain().double().eval()
    spec, models, x = trace(model, images(1)), drawn(model, 2), images(500)
    lost = mismatch(collect(spec, models, x, model=model), Permutation.identity(spec, (2,)))
    layers = nn.Sequential(*list(model)[:5])
    own = {key: tensor for key, tensor in models.items() if key < "5"}
    hidden = [functional_call(layers, take(own, m), (x,)) for m in range(2)]
    given = [h @ models["5.weight"][m].T for m, h in enumerate(hidden)]
    energy = sum(float(g.var(0, correction=0).sum()) for g in given) / 2
    apart = ((hidden[0] - hidden[1]) / 2).var(0, correction=0)
    squares = models["5.weight"].square().sum(1).mean(0)
    torch.testing.assert_close(lost["3"], apart * squares / energy)


def test_blocks_are_as_alike_as_their_units():
    model, spec, models, back = planted(Attention, 2, noise=0.1)
    grams = collect(spec, models, images(200), model=model)
    (heads,) = set(spec.inside.values())
    assert correlations(grams)[heads].shape == (6, 6)
    assert mismatch(grams, back)[heads].shape == (3,)


def test_zipping_by_correlations_shares_the_units_of_permuted_copies():
    model, spec, models, back = planted(Chain, 2)
    slots = zip_slots(spec, correlations(collect(spec, models, images(300), model=model)), alpha=1.0, beta=0.0)
    for group, index in slots.index.items():
        aligned = [index[m][back.indices[group][m]] for m in range(2)]
        assert torch.equal(*aligned)


def test_correlations_of_blocks_are_the_means_over_their_units():
    model, spec, models, _ = planted(Attention, 2, noise=0.3)
    grams = collect(spec, models, images(200), model=model)
    (heads,) = set(spec.inside.values())
    found = correlations(grams)
    assert {group: len(matrix) for group, matrix in found.items()} == {g: 2 * spec.sizes[g] for g in spec.families}
    of_units = [unit_sums(grams)[inner].correlation for inner in spec.within(heads)]
    # Head 1 of the first model and head 2 of the second: four units each.
    expected = torch.stack([matrix[4:8, 12 + 8 : 12 + 12].diagonal().mean() for matrix in of_units]).mean()
    torch.testing.assert_close(found[heads][1, 3 + 2], expected)


def test_constant_and_dead_units_correlate_with_nothing():
    model = Chain()
    spec, models = trace(model, images(1).float()), drawn(model, 2)
    models = {key: tensor.float() for key, tensor in models.items()}
    models["1.weight"][:, :2], models["1.bias"][:, 0], models["1.bias"][:, 1] = 0, -1.0, 3.0
    grams = collect(spec, models, images(100).float(), model=model)
    correlation = unit_sums(grams)["1"].correlation
    assert not correlation[[0, 1, 12, 13]].any()
    assert correlation[2, 2] == pytest.approx(1)
    found = match_grams(grams).indices["1"][1]
    assert sorted(found.tolist()) == list(range(12))


def test_values_that_several_layers_read_count_once():
    model = Branches().double().eval()
    spec, models = trace(model, images(1)), drawn(model, 1)
    grams = collect(spec, models, images(10), model=model, places=None)
    # The norm's values are read by one layer and its sum with another's by two, at 16 places of ten images each.
    assert unit_sums(grams)["stem"].count == 10 * 16 * 2 * 1 or unit_sums(grams)["stem"].count == 10 * 16 * 3


def test_a_reused_layer_counts_all_its_uses():
    model = Reused().double().eval()
    spec, models = trace(model, images(1)), drawn(model, 1)
    assert unit_sums(collect(spec, models, images(10), model=model))["into"].count == 10 * 3
