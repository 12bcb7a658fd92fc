"""A planted permutation counts as recovered only where the weights are, and the chapter says what was measured."""

import dataclasses
import functools

import pandas as pd
import pytest
import torch
from torch import nn

from lab.data import load
from lab.measures import planted
from lab.measures.planted import Network, fresh_network, recover, same_bits, times_table, trained_network
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace


class Vectors:
    """In place of a data set: what the small network takes."""

    example = torch.zeros(2, 12, dtype=torch.float64)


@pytest.fixture(scope="module")
def network(net, random_weights):
    return trained_network(net, random_weights(4), Vectors)


@functools.cache
def small_resnet():
    return fresh_network("resnet20 x1", load("digits"), seed=0)


def values(table, metric):
    return table[table["metric"] == metric].sort_values("node")["value"].tolist()


def test_random_permutations_are_recovered_to_the_last_bit(network):
    found = recover(network, 4, 0, "cpu")
    assert values(found, "recovered") == [1.0] * 4
    assert values(found, "ties") == [0.0] * 4
    assert all(2 <= sweeps <= 6 for sweeps in values(found, "sweeps"))
    assert set(found["network"]) == {"mlp"} and set(found["n_leaves"]) == {1} and set(found["weights"]) == {"trained"}


def test_a_residual_network_is_traced_and_recovered():
    network = small_resnet()
    assert network.tracing_seconds > 0
    found = recover(network, 1, 0, "cpu")
    assert values(found, "recovered") == [1.0]
    assert set(found["weights"]) == {"fresh"}


def test_instances_are_independent_and_depend_on_the_seed_alone():
    network = small_resnet()
    assert same_bits(network.weights(0), network.weights(0))
    assert not same_bits(network.weights(0), network.weights(1))


def test_a_matcher_that_stays_at_the_identity_recovers_nothing(network, monkeypatch):
    def lazy(spec, a, b, *, seed):
        identity = Permutation.identity(spec)
        return dataclasses.replace(matched(spec, a, b, seed=seed), permutation=identity)

    matched = planted.weight_matching
    monkeypatch.setattr(planted, "weight_matching", lazy)
    found = recover(network, 2, 1, "cpu")
    assert values(found, "recovered") == [0.0, 0.0]
    assert values(found, "ties") == [0.0, 0.0]


def test_what_was_recovered_along_another_spec_is_not_read(network, monkeypatch):
    recover(network, 1, 0, "cpu")
    spec, left_out = network.spec, next(iter(network.spec.sizes))
    sizes = {group: size for group, size in spec.sizes.items() if group != left_out}
    parts = {key: tuple(part for part in some if part.group != left_out) for key, some in spec.parts.items()}
    other = dataclasses.replace(network, spec=PermutationSpec(sizes, parts, spec.shapes))
    monkeypatch.setattr(planted, "weight_matching", lambda *args, **kwargs: pytest.fail("matched again"))
    recover(network, 1, 0, "cpu")
    with pytest.raises(pytest.fail.Exception, match="matched again"):
        recover(other, 1, 0, "cpu")


def test_dead_units_may_change_places():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    drawn = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(1, *each.shape, generator=drawn) for key, each in net.state_dict().items()}
    weights["0.weight"][:, 3:], weights["0.bias"][:, 3:], weights["2.weight"][:, :, 3:] = 0, 0, 0
    network = Network("dead", trace(net, torch.randn(2, 4)), lambda k: {key: w[k] for key, w in weights.items()})
    found = pd.concat([recover(network, 1, seed, "cpu") for seed in range(8)])
    assert set(values(found, "recovered")) == {1.0}
    ties = values(found, "ties")
    assert set(ties) <= {0.0, 2.0, 3.0} and max(ties) > 0, "three units are equal, and some came out elsewhere"


def test_a_finished_trial_is_not_matched_again(network, monkeypatch):
    first = recover(network, 2, 0, "cpu")

    def refuse(*args, **kwargs):
        raise AssertionError("matched again")

    monkeypatch.setattr(planted, "weight_matching", refuse)
    assert recover(network, 2, 0, "cpu").equals(first)
    with pytest.raises(AssertionError, match="matched again"):
        recover(network, 2, 1, "cpu")


def test_times_are_of_independent_pairs(network, monkeypatch):
    pairs = []
    matched = planted.weight_matching

    def watched(spec, a, b, *, seed):
        pairs.append((a, b, seed))
        return matched(spec, a, b, seed=seed)

    monkeypatch.setattr(planted, "weight_matching", watched)
    table = times_table([network], 2, 5, "cpu")
    assert [seed for _, _, seed in pairs] == [5, 6]
    for number, (a, b, _) in enumerate(pairs):
        assert same_bits(a, network.weights(2 * number)) and same_bits(b, network.weights(2 * number + 1))
    assert all(seconds > 0 for seconds in values(table, "seconds"))
    count = sum(each.numel() for each in network.weights(0).values())
    assert values(table, "parameters") == [count / 1e6] * 2
    assert set(table["metric"]) == {"seconds", "sweeps", "parameters"}
    assert set(table["threads"]) == {1}


def test_tracing_is_told_once():
    table = times_table([small_resnet()], 1, 0, "cpu")
    assert values(table, "tracing_seconds") == [small_resnet().tracing_seconds]
    assert values(table, "parameters") == [pytest.approx(0.27, abs=0.05)]


@pytest.mark.parametrize("name", ["resnet20", "resnet20 x", "resnet18", "mlp"])
def test_an_unknown_network_is_named(name):
    with pytest.raises(ValueError, match=f"unknown network '{name}': there are resnet50 and resnet20 x1"):
        fresh_network(name, load("digits"), 0)


def test_one_trained_network_makes_no_pair(net, random_weights):
    with pytest.raises(ValueError, match="two trained models at least, got 1"):
        trained_network(net, random_weights(1), Vectors)


def test_the_same_bits_are_the_same_names_too():
    one = {"a": torch.ones(2)}
    assert same_bits(one, {"a": torch.ones(2)})
    assert not same_bits(one, {"b": torch.ones(2)})
    assert not same_bits(one, {"a": torch.tensor([1.0, 1.0 + 1e-7])})
