"""Pairs of networks: what is matched is the same function, by every matcher, and a killed run goes on."""

import pytest
import torch
from planting import digits
from torch.func import functional_call

from lab.bookkeeping.notebook import execute
from lab.measures import pairs
from lab.measures.pairs import MATCHERS, OTHERS, permutation_between
from lab.measures.paths import walk
from lab.networks import build
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.inner_products import inner_product
from rebasin.matching.by_weights import weight_matching
from rebasin.permutation import Permutation
from rebasin.tracing import trace


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two trained networks, and two copies of them with their units planted elsewhere: a, b of (2, ...) each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = Recipe("mlp", 16, 64, 3e-3, initial="lecun_normal")
        a = {key: tensor[0] for key, tensor in train(recipe, digits(), 2, (5,)).weights.items()}
    model = build("mlp", digits(), 16)
    spec = trace(model, digits().example)
    return model, spec, a, Permutation.random(spec, (2,), torch.Generator().manual_seed(3)).apply(a)


def matched(matcher, pair, epochs=1, chunk=2):
    model, spec, a, b = pair
    options = {"epochs": epochs, "batch_size": 200}
    return permutation_between(matcher, spec, model, a, b, digits().train, 0, "cpu", chunk, **options).apply(b)


def others(pair):
    """The same first networks, each beside the other one."""
    model, spec, a, _ = pair
    return model, spec, a, {key: tensor.flip(0) for key, tensor in a.items()}


@pytest.mark.parametrize("matcher", (*MATCHERS[1:], *OTHERS))
def test_every_matcher_finds_the_units_that_were_moved(pair, matcher):
    model, _, a, _ = pair
    back = matched(matcher, pair)
    x = digits().train.images[:200].float() / 255
    for node in range(2):
        # Units that never answer cannot be told apart by their activations, and do no harm.
        middle = {key: (a[key][node] + back[key][node]) / 2 for key in a}
        first = {key: a[key][node] for key in a}
        torch.testing.assert_close(
            functional_call(model, middle, (x,)), functional_call(model, first, (x,)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("matcher", (*MATCHERS, *OTHERS))
def test_what_is_matched_computes_what_it_did(pair, matcher):
    model, _, _, b = others(pair)
    permuted_b = matched(matcher, others(pair))
    x = digits().test.images[:20].float() / 255
    for node in range(2):
        before, after = (
            functional_call(model, {key: tensor[node] for key, tensor in weights.items()}, (x,))
            for weights in (b, permuted_b)
        )
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_weights_are_matched_as_the_library_matches_them_and_closer_than_by_activations(pair):
    _, spec, a, b = others(pair)
    alone = weight_matching(spec, a, b).objective
    by_weights, by_activations = (
        inner_product(spec, a, matched(name, others(pair))) for name in ("weights", "activations")
    )
    torch.testing.assert_close(by_weights, alone)
    assert (by_weights > by_activations).all()


def test_a_killed_run_goes_on_after_the_pairs_that_it_has(pair, monkeypatch, tmp_path):
    whole = matched("straight-through", pair, chunk=1)
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path / "killed"))
    calls = []
    real = pairs.straight_through_matching

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(pairs, "straight_through_matching", interrupted)
    with pytest.raises(KeyboardInterrupt):
        matched("straight-through", pair, chunk=1)
    again = matched("straight-through", pair, chunk=1)
    assert len(calls) == 3, "the first pair was kept"
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    matched("straight-through", pair, epochs=2, chunk=1)
    assert len(calls) == 5, "another number of epochs is another matching"


def test_how_long_straight_through_matching_takes_is_nothing_to_the_others(pair, monkeypatch):
    first = matched("activations", pair, epochs=1)
    monkeypatch.setattr(pairs, "activation_matching", lambda *args: pytest.fail("matched again"))
    again = matched("activations", pair, epochs=2)
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


def test_without_a_matcher_nothing_moves(pair):
    _, _, _, b = others(pair)
    for matcher in ("none", "weights"):
        moved = matched(matcher, others(pair))
        assert all(torch.equal(moved[key], tensor) for key, tensor in b.items()) == (matcher == "none")


def test_a_matcher_that_is_not_there_is_named(pair):
    with pytest.raises(ValueError, match="unknown matcher 'weight': there are none, weights, activations"):
        matched("weight", pair)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mnist_networks": {"models": 5}}, "pairs need an even number of models, got 5"),
        ({"barrier_points": 24}, "has an odd number of points from 3, got 24"),
    ],
)
def test_what_makes_no_pairs_or_no_midpoint_is_refused_before_anything_is_trained(changed, message, monkeypatch):
    monkeypatch.setattr("lab.training.train.train", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        execute("mnist", changed)


def test_a_walk_is_made_of_plain_forward_passes(pair):
    model, _, a, b = pair
    test = digits().test.sample(50)
    lams = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    walked = walk(model, a, b, lams, {"test": test}, "cpu", 2)
    assert len(walked) == 2 * 3 * 2
    x = test.images.float() / 255
    for lam, node in ((0.0, 0), (0.5, 1), (1.0, 1)):
        outputs = functional_call(model, {key: (1 - lam) * a[key][node] + lam * b[key][node] for key in a}, (x,))
        loss = torch.nn.functional.cross_entropy(outputs, test.labels).item()
        accuracy = (outputs.argmax(-1) == test.labels).float().mean().item()
        here = walked[(walked["lam"] == lam) & (walked["node"] == node)].set_index("metric")["value"]
        assert here["loss"] == pytest.approx(loss, rel=1e-4)
        assert here["accuracy"] == pytest.approx(accuracy)
