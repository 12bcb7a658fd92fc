"""Merges of neighbouring papers find what was planted, and a control learns what it is taught."""

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from lab.contestants import METHODS, Arena
from lab.contestants.cca import canonical_map, map_units
from lab.contestants.mixed import match_by_both
from lab.contestants.steps import drawn_batches
from lab.images import Split
from rebasin import Permutation, collect, trace
from rebasin.fitting.alignment import unit_sums
from rebasin.weights import stack

ROUNDING = {"rtol": 1e-3, "atol": 1e-4}  # of logits of order 1 in float32


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 7), nn.ReLU(),
        nn.Linear(7, 3),
    )  # fmt: skip


def images(count, side=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.arange(count) % 3)


def arena_of(*parents, heads=1):
    split = images(120)
    spec = trace(parents[0], split.pixels[:2])
    weights = stack([dict(parent.state_dict()) for parent in parents])
    return Arena(parents[0].eval(), spec, weights, (split,) * heads, (split,) * heads)


@pytest.fixture(scope="module")
def planted():
    """A network, and the same with its units in another order."""
    torch.manual_seed(0)
    model = convnet()
    permutation = Permutation.random(trace(model, images(2).pixels), generator=torch.Generator().manual_seed(1))
    return model, permutation.apply(model), permutation


@pytest.mark.parametrize("method", ["mixed", "cca"])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_planted_permutation_is_undone(planted, method, heads):
    model, other, _ = planted
    arena = arena_of(model, other, heads=heads)
    entry = METHODS[method](arena, 1.0)
    pixels = arena.inputs[:50]
    with torch.no_grad():
        expected = torch.cat([model(pixels)] * heads, 1)
        torch.testing.assert_close(entry.network(pixels), expected, **ROUNDING)
    assert METHODS[method](arena, 1.5) is None


def test_the_canonical_map_of_a_planted_permutation_is_its_inverse(planted):
    """What the ridge adds is the same in both networks, so that it hides nothing."""
    model, other, permutation = planted
    grams = collect(trace(model, images(2).pixels), [model, other], images(120).pixels)
    for group, sums in unit_sums(grams).items():
        # Of units that never vary nothing is known, and nothing is lost.
        alive = sums.covariance.diagonal()[: len(permutation.flat[group])] > 0
        matrix, undone = canonical_map(sums, 2, 1), torch.eye(len(alive))[permutation.flat[group]].T
        torch.testing.assert_close(matrix.float()[alive], undone[alive], rtol=0, atol=1e-3)


def test_units_that_are_mixed_are_unmixed_by_what_reads_them():
    """Without a bend between the layers, and through a flattening, any regular mixture leaves the function alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 2))
    spec = trace(nn.Sequential(model[0], nn.ReLU(), *model[1:3], nn.ReLU(), model[3]), images(2).pixels)
    names = {"0.weight": "0.weight", "0.bias": "0.bias", "3.weight": "2.weight", "3.bias": "2.bias"}
    names |= {"5.weight": "3.weight", "5.bias": "3.bias"}
    weights = {key: model.state_dict()[own] for key, own in names.items()}
    maps = {group: torch.randn(size, size).double() + 3 * torch.eye(size) for group, size in spec.sizes.items()}
    mixed = map_units(spec, weights, maps)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 2))
    other.load_state_dict({names[key]: tensor for key, tensor in mixed.items()})
    pixels = images(10).pixels
    assert not torch.allclose(other[0](pixels), model[0](pixels), atol=0.1)
    torch.testing.assert_close(other(pixels), model(pixels), rtol=1e-3, atol=1e-4)


def test_networks_with_norms_have_no_canonical_merge():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    assert METHODS["cca"](arena_of(model.eval(), model.eval()), 1.0) is None


def test_weights_decide_where_answers_say_nothing_and_answers_where_weights_do_not(planted):
    model, other, permutation = planted
    spec, a, b = permutation.spec, dict(model.state_dict()), dict(other.state_dict())
    silent = {group: torch.zeros(size, size) for group, size in spec.sizes.items()}
    undone = permutation.invert()
    by_weights = match_by_both(spec, a, b, silent, seed=0)
    noise = {key: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) for key, tensor in b.items()}
    told = {group: torch.eye(size)[undone.flat[group]] for group, size in spec.sizes.items()}
    by_answers = match_by_both(spec, a, noise, told, seed=0)
    for group in spec.sizes:
        assert torch.equal(by_weights.flat[group][1], undone.flat[group])
        assert torch.equal(by_answers.flat[group][1], undone.flat[group])


def test_three_are_not_matched_by_both(planted):
    model, other, _ = planted
    assert METHODS["mixed"](arena_of(model, other, model), 1.0) is None


@pytest.mark.parametrize("heads", [1, 2])
def test_a_distilled_merge_answers_more_as_its_parents_do_than_their_average(heads):
    parents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parents.append(convnet())
        with torch.no_grad():
            parents[-1][-1].weight *= 10  # answers that differ from image to image
    arena = arena_of(*parents, heads=heads)
    pixels = arena.inputs

    def of_heads(logits):
        return logits.unflatten(1, (heads, -1)).log_softmax(-1)

    with torch.no_grad():
        taught = of_heads(METHODS["ensemble"](arena, 2.0).network(pixels)).exp()
    lacking = {}
    for name in ("correlation", "distilled"):
        with torch.no_grad():
            answers = of_heads(METHODS[name](arena, 1.0).network(pixels))
        lacking[name] = float(kl_div(answers, taught, reduction="sum")) / len(pixels)
    assert lacking["distilled"] < lacking["correlation"] / 2
    assert not any(parameter.requires_grad for parameter in METHODS["distilled"](arena, 1.5).network.parameters())


def test_every_image_has_its_turn_before_one_comes_again():
    drawn = torch.cat(list(drawn_batches(10, 4, 5, torch.Generator().manual_seed(0))))
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert [len(batch) for batch in drawn_batches(3, 2, 5, torch.Generator())] == [3, 3]


def with_norms(seed):
    """A network whose batch norms have statistics and weights of their own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 16, 3),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*unknowns for each output")
def test_networks_with_folded_norms_apart_are_the_ensemble():
    """Without statistics measured anew, which would make it another function."""
    arena = arena_of(with_norms(0), with_norms(1), heads=2)
    with torch.no_grad():
        folded, ensemble = (METHODS[name](arena, 2.0).network(arena.inputs) for name in ("pleas_folded", "ensemble"))
    torch.testing.assert_close(folded, ensemble, **ROUNDING)


def test_networks_without_norms_have_none_to_fold(planted):
    assert METHODS["pleas_folded"](arena_of(*planted[:2]), 1.0) is None
