"""Rotations of a transformer change nothing, a planted one is found, and every way to bring two together is exact."""

import itertools
import re

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lab.data import load
from lab.images import Split
from lab.measures import transformers
from lab.measures.pairs import permutation_between
from lab.measures.rotations import (
    closest,
    held,
    largest_change,
    match_by_activations,
    match_by_weights,
    match_straight_through,
    procrustes,
    reordering,
    rotate,
    stream_of,
    stream_products,
)
from lab.measures.transformers import WAYS, Settings, Way, check_transformers, in_form, lines_and_barriers
from lab.networks import build
from lab.training.plan import read_plan
from rebasin.inner_products import inner_product
from rebasin.permutation import Permutation
from rebasin.weights import over, take

EXACT = 1e-12  # of the largest output: rounding in float64


def drawn(model, count, seed):
    """Weights (count, ...) that are no start and no end: norms far from one and zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.3 * torch.randn(count, *tensor.shape, generator=generator) + ("norm" in key)
        for key, tensor in model.state_dict().items()
    }


@pytest.fixture(scope="module", params=["vit2", "language"])
def pairs(request):
    """Two pairs of each kind of transformers, without LayerNorm, and what they read."""
    data = load("digits" if request.param == "vit2" else "text")
    model = build(request.param, data, 16)
    return in_form("RMSNorm", model, drawn(model, 2, 0), drawn(model, 2, 1), data.example), data.train.sample(60)


def turned_at_random(form, groups, weights, seed, far=100.0):
    """Weights with these groups turned by random rotations; those that are not ``far`` are near the identity."""
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        blocks = form.spec.sizes[form.spec.inside[group]] if group in form.spec.inside else 1
        n = form.spec.sizes[group]
        noise = torch.randn(2, blocks, n, n, generator=generator, dtype=torch.float64)
        maps = procrustes(torch.eye(n, dtype=torch.float64) + far * noise)
        weights = rotate(form.spec, group, maps, weights)
    return weights


def all_groups(form):
    return [stream_of(form.spec), *form.spec.inside]


def test_the_closest_orthogonal_map_is_orthogonal_and_no_other_is_closer():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    best = procrustes(scores)
    torch.testing.assert_close(best @ best.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
    reached = (best * scores).sum((-2, -1))
    torch.testing.assert_close(reached, torch.linalg.svdvals(scores).sum(-1))
    for _ in range(50):
        other, _ = torch.linalg.qr(torch.randn(3, 5, 5, generator=generator, dtype=torch.float64))
        assert ((other * scores).sum((-2, -1)) <= reached).all()


def test_the_closest_reordering_is_the_best_assignment():
    scores = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = reordering(scores)
    assert best.shape == scores.shape and ((best == 0) | (best == 1)).all()
    assert (best.sum(-1) == 1).all() and (best.sum(-2) == 1).all()
    orders = torch.tensor(list(itertools.permutations(range(5))))  # all 120
    reached = torch.stack([scores[..., torch.arange(5), order].sum(-1) for order in orders])
    torch.testing.assert_close((best * scores).sum((-2, -1)), reached.amax(0))


def test_turning_the_stream_and_the_insides_of_heads_changes_weights_and_no_answer(pairs):
    form, images = pairs
    for group in all_groups(form):
        turned = turned_at_random(form, [group], form.b, 3)
        assert any(not torch.allclose(turned[key], form.b[key]) for key in form.b)
        change = largest_change(form.model, form.b, form.model, turned, images.pixels[:4])
        assert change.shape == (2,) and change.max() < EXACT, group
    # Hidden units have a GELU of their own each, and cannot be turned.
    hidden = next(group for group in form.spec.sizes if group.endswith("layer1"))
    turned = turned_at_random(form, [hidden], form.b, 3)
    assert largest_change(form.model, form.b, form.model, turned, images.pixels[:4]).min() > 1e-3


def test_with_layer_norm_the_stream_cannot_be_turned():
    data = load("digits")
    model = build("vit2", data, 16)
    form = in_form("LayerNorm", model, drawn(model, 2, 0), drawn(model, 2, 1), data.example)
    turned = turned_at_random(form, [stream_of(form.spec)], form.b, 3)
    assert largest_change(model, form.b, model, turned, data.example).min() > 1e-3


def test_a_change_is_seen_in_every_network_by_itself(pairs):
    form, images = pairs
    other = {key: tensor.clone() for key, tensor in form.b.items()}
    other["layer.bias"][1] += 1
    change = largest_change(form.model, form.b, form.model, other, images.pixels[:4])
    assert change[0] == 0 and change[1] > 1e-3


@pytest.mark.parametrize("by", ["weights", "activations", "straight-through"])
def test_a_network_that_was_turned_and_permuted_is_brought_back(pairs, by):
    """b is a itself with its stream turned and its units moved; by weights alone small turns are found."""
    form, images = pairs
    moved = turned_at_random(form, [stream_of(form.spec)], form.a, 5)
    others = held(form.spec, [stream_of(form.spec)])
    moved = Permutation.random(others, (2,), torch.Generator().manual_seed(6)).apply(moved)
    back = match_by_activations(form.spec, procrustes, form.model, form.a, moved, images.pixels)
    if by == "weights":
        moved = turned_at_random(form, all_groups(form), back, 7, far=0.1)
        back = match_by_weights(form.spec, all_groups(form), procrustes, form.a, moved, 0)
    if by == "straight-through":
        stream = [stream_of(form.spec)]
        back = match_straight_through(form.spec, stream, procrustes, form.model, form.a, back, images, 1, 20, 0)
    # Inner products of activations may mistake a unit for a louder one; the stream they bring back.
    for key in ["positions.weight"] if by == "activations" else form.a:
        torch.testing.assert_close(back[key], form.a[key], rtol=0, atol=1e-4, msg=key)  # the map is found in float32


def test_matching_by_weights_never_moves_away_and_comes_to_rest(pairs):
    form, _ = pairs
    groups = all_groups(form)
    reached = [inner_product(form.spec, form.a, form.b)]
    for rounds in (1, 2, 50):
        b = match_by_weights(form.spec, groups, procrustes, form.a, form.b, 0, rounds)
        reached.append(inner_product(form.spec, form.a, b))
    assert all((later >= before - 1e-9).all() for before, later in zip(reached, reached[1:], strict=False))
    again = inner_product(form.spec, form.a, match_by_weights(form.spec, groups, procrustes, form.a, b, 0, 1))
    assert (again - reached[-1] < (reached[1] - reached[0]) / 100).all()


@pytest.mark.parametrize("by", ["activations", "weights", "straight-through"])
def test_with_permutations_for_rotations_a_network_that_was_permuted_is_brought_back(pairs, by):
    form, images = pairs
    stream = [stream_of(form.spec)]
    moved = Permutation.random(form.spec, (2,), torch.Generator().manual_seed(6)).apply(form.a)
    back = match_by_activations(form.spec, reordering, form.model, form.a, moved, images.pixels)
    if by != "activations":
        back = match_by_weights(form.spec, stream, reordering, form.a, back, 0)
    if by == "straight-through":
        back = match_straight_through(form.spec, stream, reordering, form.model, form.a, back, images, 1, 20, 0)
    # Inner products of activations may mistake a unit for a louder one; the stream they bring back.
    for key in ["positions.weight"] if by == "activations" else form.a:
        assert torch.equal(back[key], form.a[key]), key  # moved, and not computed


def test_turning_brings_two_networks_closer_than_permuting(pairs):
    form, images = pairs
    single = over(form.a, Tensor.float), over(form.b, Tensor.float)
    by_permutation = permutation_between("weights", form.spec, form.model, *single, images, 0, "cpu", 2)
    permuted = by_permutation.apply(form.b)
    turned = match_by_weights(form.spec, [stream_of(form.spec)], procrustes, form.a, permuted, 0)
    assert (inner_product(form.spec, form.a, turned) > inner_product(form.spec, form.a, permuted) * 1.05).all()


def test_the_closest_rotation_is_at_least_as_close_as_the_best_permutation(pairs):
    form, _ = pairs
    stream = stream_of(form.spec)
    turned = rotate(form.spec, stream, closest(form.spec, stream, form.a, form.b, procrustes), form.b)
    for seed in range(5):
        indices = {group: torch.arange(size) for group, size in form.spec.sizes.items() if group == stream}
        indices[stream] = torch.randperm(form.spec.sizes[stream], generator=torch.Generator().manual_seed(seed))
        alone = held(form.spec, set(form.spec.sizes) - {stream})
        permuted = Permutation(alone, indices).apply(form.b)
        assert (inner_product(form.spec, form.a, turned) > inner_product(form.spec, form.a, permuted)).all()


def test_products_of_streams_are_those_of_what_the_layers_read(pairs):
    form, images = pairs
    single = over(form.a, Tensor.float), over(form.b, Tensor.float)
    products = stream_products(form.model, *single, images.pixels)
    read = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
        for name, module in form.model.named_modules()
        if name.endswith(("attention.query", "layer1", "norm"))
    ]
    values = []
    for weights in single:
        read.clear()
        functional_call(form.model, take(weights, 1), (images.pixels,))
        last = read.pop() if len(read) == 5 else None  # of the last norm, what it reads
        values.append([value.flatten(0, -2) for value in read] + [normalised(last).flatten(0, -2)])
    for hook in hooks:
        hook.remove()
    expected = sum(x.T @ y for x, y in zip(*values, strict=True))
    torch.testing.assert_close(products[1], expected, rtol=1e-3, atol=1e-2)


def normalised(tokens):
    return tokens / (tokens.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_straight_through_matching_keeps_the_batch_with_the_lowest_loss(pairs):
    form, images = pairs
    start = match_by_activations(form.spec, procrustes, form.model, form.a, form.b, images.pixels)
    stream = [stream_of(form.spec)]
    learned = match_straight_through(form.spec, stream, procrustes, form.model, form.a, start, images, 3, 60, 0)

    def midpoint_loss(b, node):
        middle = {key: ((form.a[key][node] + b[key][node]) / 2).float() for key in b}
        return torch.nn.functional.cross_entropy(functional_call(form.model, middle, (images.pixels,)), images.labels)

    first = match_by_weights(form.spec, stream, procrustes, form.a, start, 0, rounds=1)
    for node in range(2):  # all images are one batch, and the first one is matched to a itself
        assert midpoint_loss(learned, node) <= midpoint_loss(first, node) + 1e-4
    assert largest_change(form.model, form.b, form.model, learned, images.pixels[:4]).max() < 1e-10


@pytest.fixture(scope="module")
def settings():
    return Settings(load("digits").train.sample(40), 1, 20, 0, "cpu", 2)


def test_every_way_gives_lines_between_the_networks_that_there_were(settings):
    data = load("digits")
    model = build("vit2", data, 8)
    weights = drawn(model, 4, 0)
    test = data.test.sample(30)
    lines, barriers = lines_and_barriers(model, weights, test, 3, settings)
    kinds = ["form", "matcher", "stream"]
    assert len(lines) == len(WAYS) * 2 * 2 * 3
    assert [tuple(kind) for kind in barriers[kinds].drop_duplicates().to_numpy()] == [
        (way.form, way.matcher, way.stream) for way in WAYS
    ]
    loss = lines[lines["metric"] == "loss"]
    # However it is written, and wherever its units are, an end of the line is the same network.
    for node, lam, number in ((0, 0.0, 0), (0, 1.0, 1), (1, 0.0, 2), (1, 1.0, 3)):
        ends = loss[(loss["node"] == node) & (loss["lam"] == lam)]["value"]
        answers = functional_call(model, take(weights, number), (test.pixels,))
        expected = torch.nn.functional.cross_entropy(answers, test.labels).item()
        assert len(ends) == len(WAYS) and ends.to_numpy() == pytest.approx(expected, rel=1e-4)
    changes = barriers[barriers["metric"] == "change"]["value"]
    assert changes.max() < 1e-10 and len(changes) == 2 * len(WAYS)
    middles = loss[(loss["lam"] == 0.5) & (loss["node"] == 0)]["value"]
    assert middles.nunique() > len(WAYS) / 2, "the ways differ between the ends"


def test_what_is_no_symmetry_is_refused(settings, monkeypatch):
    data = load("digits")
    model = build("vit2", data, 8)

    def spoiled(form, way, settings):
        return {key: tensor + 0.01 for key, tensor in form.b.items()}

    monkeypatch.setattr(transformers, "brought", spoiled)
    with pytest.raises(RuntimeError, match=r"Way\(form='LayerNorm'.* outputs change by .* it is no symmetry"):
        lines_and_barriers(
            model, drawn(model, 2, 0), data.test.sample(5), 3, settings, [Way("LayerNorm", "none", "held")]
        )


GOOD = {"recipe": "a", "dataset": "digits", "architecture": "vit2", "width": 8, "models": 2, "epochs": [1]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD | {"architecture": "mlp"}], "'mlp' of 'a' is no transformer: there are vit, vit2, language"),
        ([GOOD, GOOD], "recipe 'a' must be listed once, with one number of epochs"),
        ([GOOD | {"epochs": [1, 2]}], "recipe 'a' must be listed once, with one number of epochs"),
    ],
)
def test_what_makes_no_pairs_of_transformers_is_refused(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_transformers(read_plan(entries))
    check_transformers(read_plan([GOOD]))


def test_a_sample_of_texts_keeps_each_piece_beside_what_follows_it():
    split = Split(torch.arange(40).reshape(10, 4), torch.arange(1, 41).reshape(10, 4)).sample(5, seed=1)
    assert torch.equal(split.labels, split.images + 1)
