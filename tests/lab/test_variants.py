"""MergeMany round by round is the printed algorithm with one thing changed, and so is the hierarchy by any matcher."""

import re

import numpy as np
import pytest
import torch

from lab.data import load
from lab.measures import variants
from lab.measures.variants import (
    VARIANTS,
    Variant,
    accuracies,
    check_variants,
    hierarchy_tested,
    many_by_round,
    many_tested,
    matcher,
    tree,
)
from lab.networks import build
from rebasin import merge
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.merging.mending import mender
from rebasin.tracing import trace
from rebasin.weights import grouped, mean, take

# Sums of a few numbers of order 1, in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


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


@pytest.mark.parametrize("name", VARIANTS)
def test_two_rounds_are_a_plain_loop_over_one_group_with_the_one_thing_changed(network, name):
    model, spec, groups, inputs, _ = network
    models = [take(take(groups, 0), i) for i in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(2):
        as_they_were = list(models)
        for i in rng.permutation(4):
            seed, seen = int(rng.integers(2**31)), as_they_were if name == "at once" else models
            others = seen if name == "own share" else [other for j, other in enumerate(seen) if j != i]
            target = {key: sum(other[key] for other in others) / len(others) for key in groups}
            if name == "activations":
                matching = activation_matching(spec, target, models[i], model=model, loader=inputs)
            else:
                matching = weight_matching(
                    spec, target, models[i], seed=seed, max_sweeps=1 if name == "one sweep" else 100
                )
            models[i] = matching.apply(models[i])
    moved, _ = rounds_of(network, VARIANTS[name], most=2)[-1]
    for i, expected in enumerate(models):
        for key, tensor in expected.items():
            torch.testing.assert_close(moved[key][0, i], tensor, **ROUNDING)


def test_every_variant_changes_something(network):
    merged = {name: mean(rounds_of(network, variant, most=1)[0][0], 1) for name, variant in VARIANTS.items()}
    for name in set(VARIANTS) - {"printed"}:
        assert any(not torch.equal(merged[name][key], merged["printed"][key]) for key in merged[name]), name


def test_a_far_away_model_stays_where_it_is_if_its_own_share_is_in_the_mean(network):
    """Its own weights outweigh all others', so that no permutation brings it closer to the mean with them."""
    groups = {key: tensor.clone() for key, tensor in network[2].items()}
    for tensor in groups.values():
        tensor[:, 0] *= 20
    held = (*network[:2], groups, *network[3:])
    for own_share, stays in ((True, True), (False, False)):
        moved, _ = rounds_of(held, Variant(own_share=own_share), most=1)[0]
        assert torch.equal(moved["layer1.weight"][:, 0], groups["layer1.weight"][:, 0]) == stays


@pytest.mark.parametrize("seed", [0, 1])
def test_the_tree_by_weights_is_the_hierarchy_with_its_pairs_drawn(network, seed):
    model, spec, groups, inputs, _ = network
    by_weights = tree(groups, matcher(spec, VARIANTS["printed"], model, inputs), seed)
    assert_equal(by_weights, merge_hierarchical(spec, groups, seed=seed, shuffle=True).weights)


def test_the_tree_by_activations_is_a_plain_loop(network):
    model, spec, groups, inputs, _ = network
    nodes, rng = [take(take(groups, 0), i) for i in range(4)], np.random.default_rng(5)
    while len(nodes) > 1:
        order = rng.permutation(len(nodes))
        rng.integers(2**31)  # by activations there is no order of visits
        pairs = [(nodes[i], nodes[j]) for i, j in zip(order[::2], order[1::2], strict=True)]
        nodes = []
        for a, b in pairs:
            b = activation_matching(spec, a, b, model=model, loader=inputs).apply(b)
            nodes.append({key: (a[key] + b[key]) / 2 for key in a})
    top = tree(groups, matcher(spec, VARIANTS["activations"], model, inputs), 5)
    for key in top:
        torch.testing.assert_close(top[key][0], nodes[0][key], **ROUNDING)


def test_a_row_tells_how_many_rounds_and_matchings_a_group_had(network):
    model, spec, groups, inputs, tested = network
    rows = many_tested(spec, model, groups, VARIANTS["printed"], [1, 2, 60], 0, inputs, tested, "cpu")
    whole = merge_many(spec, groups, seed=0)
    kinds = [(1, "none"), (2, "none"), (60, "none"), (60, "repair")]
    assert [(row["limit"], row["mended"], row["node"]) for row in rows] == [
        (*kind, node) for kind in kinds for node in range(3)
    ]
    assert [row["rounds"] for row in rows if row["limit"] == 60] == 2 * whole.rounds.tolist()
    assert all(row["matchings"] == 4 * row["rounds"] for row in rows)
    expected = [accuracies(model, merged, tested, "cpu") for merged in (
        *(merge_many(spec, groups, max_rounds=number).weights for number in (1, 2, 60)),
        merge(spec, groups, by="many", mend=mender(model, inputs)).weights,
    )]  # fmt: skip
    assert [row["value"] for row in rows] == pytest.approx(sum(expected, []), abs=1 / 60 + 1e-9)


def test_the_hierarchy_is_tested_as_merged_and_mended_in_two_ways(network):
    model, spec, groups, inputs, tested = network
    rows = hierarchy_tested(spec, model, groups, VARIANTS["printed"], 1, inputs, tested, "cpu")
    mend = mender(model, inputs)
    for mended, options in (
        ("none", {}),
        ("repair", {"mend": mend}),
        ("repair every stage", {"mend": mend, "mend_at": "every stage"}),
    ):
        whole = merge(spec, groups, by="hierarchy", seed=1, shuffle=True, **options)
        shares = [row["value"] for row in rows if row["mended"] == mended]
        assert shares == pytest.approx(accuracies(model, whole.weights, tested, "cpu"), abs=1 / 60 + 1e-9)
    assert {row["matchings"] for row in rows} == {3}
    by_activations = hierarchy_tested(spec, model, groups, VARIANTS["activations"], 1, inputs, tested, "cpu")
    assert {row["mended"] for row in by_activations} == {"none"}


def test_what_was_tested_is_kept(network, monkeypatch):
    model, spec, groups, inputs, tested = network
    arguments = (spec, model, groups, VARIANTS["printed"], [1], 0, inputs, tested, "cpu")
    first = many_tested(*arguments)
    monkeypatch.setattr(variants, "weight_matching", lambda *args, **kwargs: pytest.fail("merged again"))
    assert many_tested(*arguments) == first


GOOD = {"variant": "printed", "sizes": [4, 8], "rounds": [1, 3], "orders": [0]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GOOD | {"variant": "no such"}, "unknown variant 'no such': there are printed, one sweep"),
        ({"variant": "printed", "sizes": [4]}, "an entry has variant, sizes, rounds and orders: got variant, sizes"),
        (GOOD | {"sizes": [6]}, "'printed': 16 networks do not make groups of 6, one of 4, 8, ..."),
        (GOOD | {"sizes": [32]}, "16 networks do not make groups of 32"),
        (GOOD | {"rounds": [2, 1]}, "rounds of 'printed' are ascending numbers from 1: got [2, 1]"),
        (GOOD | {"rounds": []}, "rounds of 'printed' are ascending numbers from 1: got []"),
    ],
)
def test_what_cannot_be_tried_is_refused(entry, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_variants([GOOD, entry], 16)
    check_variants([GOOD], 16)
