"""MergeMany round by round is the printed algorithm with one thing changed, and so is the hierarchy by any matcher."""

import pytest
import torch

from lab.data import load
from lab.measures.variants import (
    VARIANTS,
    many_by_round,
    matcher,
)
from lab.networks import build
from rebasin.merging.many import merge_many
from rebasin.tracing import trace
from rebasin.weights import grouped, mean


@pytest.fixture(scope="module")
def network():
    """A small MLP on the digits, its spec, twelve of its fresh weights in groups of four, and images."""
    data = load("digits")
    model = build("mlp2", data, 8)
    torch.manual_seed(0)
    leaves = {key: 0.5 * torch.randn(12, *tensor.shape) for key, tensor in model.state_dict().items()}
    return model, trace(model, data.example), grouped(leaves, 4), data.train.sample(100).pixels, data.test.sample(60)


def rounds_of(network, variant, seed=0, most=50):
    """The permuted models after each round, as copies, and the rounds that each group had by then."""
    model, spec, groups, inputs, _ = network
    running = many_by_round(spec, groups, variant, matcher(spec, variant, model, inputs), seed)
    steps = []
    for _ in range(most):
        step = next(running, None)
        if step is None:
            break
        steps.append(({key: tensor.clone() for key, tensor in step[0].items()}, step[1].tolist()))
    return steps


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    for key in expected:
        assert torch.equal(weights[key], expected[key]), key


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_the_printed_options_it_is_merge_many_round_by_round(network, seed):
    _, spec, groups, _, _ = network
    steps = rounds_of(network, VARIANTS["printed"], seed)
    whole = merge_many(spec, groups, seed=seed)
    assert_equal(mean(steps[-1][0], 1), whole.weights)
    assert steps[-1][1] == whole.rounds.tolist() and len(set(steps[-1][1])) > 1, "groups end at different rounds"
    for number in (1, 2):
        assert_equal(mean(steps[number - 1][0], 1), merge_many(spec, groups, seed=seed, max_rounds=number).weights)
