"""Permutations keep a network's function, obey the laws of a group, and refuse what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import chain_spec
from torch import nn

from rebasin.permutation import Permutation
from rebasin.spec import Part, PermutationSpec, SpecError

# Permuting only reorders sums of at most 12 products of order 1 to 100, in float64.
ROUNDING = {"rtol": 1e-12, "atol": 1e-11}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("networks", "permutations"),
    [((), ()), ((4,), (4,)), ((2, 3), (2, 3)), ((), (5,)), ((5,), ()), ((2, 3), (3,)), ((2, 1), (4,))],
)
def test_a_permuted_network_computes_the_same_function(net, spec, random_weights, outputs, networks, permutations):
    weights = random_weights(*networks)
    permuted = Permutation.random(spec, permutations, seeded(1)).apply(weights)
    x = torch.randn(9, 12, generator=seeded(2), dtype=torch.float64)
    batch = torch.broadcast_shapes(networks, permutations)
    before, after = outputs(weights, x), outputs(permuted, x)
    assert after.shape == (*batch, 9, 3)
    torch.testing.assert_close(after, before.expand_as(after), **ROUNDING)
    assert not torch.equal(permuted["2.weight"], weights["2.weight"].expand(*batch, 7, 8))


def test_models_on_another_device_are_permuted_there(spec, random_weights, monkeypatch):
    """The device meta stands for a GPU: it has no values to check."""
    monkeypatch.setattr(PermutationSpec, "check_finite", lambda *_: None)
    weights = {key: tensor.to("meta") for key, tensor in random_weights().items()}
    permuted = Permutation.random(spec, (2,)).apply(weights)
    assert all(tensor.is_meta and tensor.shape == (2, *weights[key].shape) for key, tensor in permuted.items())


def test_unit_i_of_the_permuted_network_is_unit_index_i_of_the_old(spec, random_weights):
    weights = random_weights()
    permutation = Permutation.random(spec, generator=seeded(0))
    first, second = permutation.indices["0"], permutation.indices["2"]
    permuted = permutation.apply(weights)
    assert torch.equal(permuted["0.weight"], weights["0.weight"][first])
    assert torch.equal(permuted["0.bias"], weights["0.bias"][first])
    assert torch.equal(permuted["2.weight"], weights["2.weight"][second][:, first])
    assert torch.equal(permuted["6.bias"], weights["6.bias"])


def test_random_permutations_are_independent_between_groups_and_entries_of_the_batch():
    spec = chain_spec(nn.Sequential(nn.Linear(2, 50), nn.Linear(50, 50), nn.Linear(50, 2)))
    indices = Permutation.random(spec, (2,), seeded(0)).indices
    drawn = [tuple(index[i].tolist()) for index in indices.values() for i in range(2)]
    assert len(set(drawn)) == 4


@st.composite
def networks_and_permutations(draw):
    """A chain of layers of random widths: its spec, weights with leading axes (2,), and three permutations (2,)."""
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    layers = [nn.Linear(i, o, bias=draw(st.booleans())) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    net = nn.Sequential(*layers)
    generator = seeded(draw(st.integers(0, 2**31)))
    weights = {key: torch.randn(2, *t.shape, generator=generator) for key, t in net.state_dict().items()}
    spec = chain_spec(net)
    return weights, [Permutation.random(spec, (2,), generator) for _ in range(3)]


@given(networks_and_permutations())
def test_composition_is_associative(drawn):
    _, (p, q, r) = drawn
    assert equal(p.compose(q).compose(r).indices, p.compose(q.compose(r)).indices)


@given(networks_and_permutations())
def test_applying_a_composition_is_applying_one_after_the_other(drawn):
    weights, (p, q, _) = drawn
    assert equal(p.compose(q).apply(weights), p.apply(q.apply(weights)))


@given(networks_and_permutations())
def test_the_inverse_undoes_a_permutation_from_both_sides(drawn):
    weights, (p, _, _) = drawn
    identity = Permutation.identity(p.spec, (2,))
    assert equal(p.compose(p.invert()).indices, identity.indices)
    assert equal(p.invert().compose(p).indices, identity.indices)
    assert equal(p.invert().apply(p.apply(weights)), weights)


@given(networks_and_permutations())
def test_the_identity_changes_nothing(drawn):
    weights, (p, _, _) = drawn
    identity = Permutation.identity(p.spec, (2,))
    assert equal(p.compose(identity).indices, p.indices)
    assert equal(identity.compose(p).indices, p.indices)
    assert equal(identity.apply(weights), weights)


@pytest.mark.parametrize(("later", "first"), [((3,), ()), ((), (3,)), ((2, 1), (3,)), ((2, 3), (2, 1))])
def test_leading_axes_are_broadcast_in_a_composition(spec, random_weights, later, first):
    p, q = Permutation.random(spec, later, seeded(1)), Permutation.random(spec, first, seeded(2))
    weights = random_weights()
    assert equal(p.compose(q).apply(weights), p.apply(q.apply(weights)))


def test_statistics_and_whole_numbers_are_no_weights():
    state = {"w": torch.zeros(3, 2), "mean": torch.zeros(3), "count": torch.tensor(3)}
    spec = PermutationSpec.from_axes(state, {"w": ("a", None), "mean": ("a",), "count": ()}, statistics=["mean"])
    assert spec.weights == ["w"]


def without(weights, key):
    return {k: tensor for k, tensor in weights.items() if k != key}


def spoilt(weights, value, *keys):
    """The weights with one entry of each of these parameters set to a value."""
    weights = {key: tensor.clone() for key, tensor in weights.items()}
    for key in keys:
        weights[key].view(-1)[-1] = value
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "2.bias"), "the spec has '2.bias', the weights have not"),
        (lambda w: {**w, "8.weight": w["0.bias"]}, "the weights have '8.weight', the spec has not"),
        (lambda w: {**w, "2.bias": torch.zeros(4, 9)}, r"'2.bias' has shape \(9,\), the spec has \(7,\)"),
        (lambda w: {**w, "2.weight": torch.zeros(4, 7, 9)}, r"'2.weight' has shape \(7, 9\), the spec has \(7, 8\)"),
        (lambda w: {**w, "2.weight": torch.zeros(7)}, r"'2.weight' has shape \(7,\), the spec has \(7, 8\)"),
        (lambda w: {**w, "4.bias": torch.zeros(5, 6)}, r"'4.bias' has leading axes \(5,\), others have \(4,\)"),
        (lambda w: {**w, "4.bias": torch.zeros(6)}, r"'4.bias' has leading axes \(\), others have \(4,\)"),
        (lambda w: spoilt(w, float("nan"), "6.bias", "2.weight"), "'2.weight' holds NaN or infinite values"),
        (lambda w: spoilt(w, float("inf"), "4.weight", "4.bias"), "'4.weight' holds NaN or infinite values"),
        (lambda w: spoilt(w, -float("inf"), "0.bias"), "'0.bias' holds NaN or infinite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_first_key(spec, random_weights, change, message):
    with pytest.raises(ValueError, match=message):
        Permutation.identity(spec).apply(change(random_weights(4)))


@pytest.mark.parametrize("index", [[0, 1, 1], [0, 1, 3], [-1, 0, 1], [0, 1], [0, 1, 2, 3], [[0, 1, 2], [0, 0, 2]]])
def test_an_index_that_is_no_permutation_is_refused(index):
    spec = PermutationSpec.from_axes({"w": torch.zeros(3, 2)}, {"w": ("hidden", None)})
    with pytest.raises(ValueError, match="group 'hidden': not a permutation of 3 units"):
        Permutation(spec, {"hidden": torch.tensor(index)})


@pytest.mark.parametrize("groups", [[], ["b"], ["a", "b"]])
def test_indices_for_other_groups_than_the_specs_are_refused(groups):
    spec = PermutationSpec.from_axes({"w": torch.zeros(3, 2)}, {"w": ("a", None)})
    with pytest.raises(ValueError, match=r"groups .* given, the spec has \['a'\]"):
        Permutation(spec, {group: torch.arange(3) for group in groups})


def positions(*units):
    return torch.tensor(units)


@pytest.mark.parametrize(
    ("sizes", "parts", "message"),
    [
        ({}, [Part("a", 0, positions([0], [1]))], "'w' names the group 'a', which has no size"),
        ({"a": 2, "b": 2}, [Part("a", 0, positions([0], [1]))], "group 'b' has a size, but no parameter carries it"),
        ({"a": 3}, [Part("a", 0, positions([0], [1]))], "'w' holds 2 units of 'a', of 3"),
        ({"a": 2}, [Part("a", 0, positions([0], [4]))], "'w' has no slice 4 along axis 0"),
        ({"a": 3}, [Part("a", 0, positions([-1], [0], [1]))], "'w' has no slice -1 along axis 0"),
        ({"a": 2}, [Part("a", 2, positions([0], [1]))], "'w' has 2 axes, and group 'a' is said to lie on 2"),
        ({"a": 2}, [Part("a", 1, positions([0], [0]))], "'w': slice 0 along axis 1 belongs to two units"),
        (
            {"a": 2, "b": 2},
            [Part("a", 0, positions([0], [1])), Part("b", 0, positions([1], [2]))],
            "'w': slice 1 along axis 0 belongs to two units",
        ),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(sizes, parts, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec(sizes, {"w": tuple(parts)}, {"w": (4, 2)})


@pytest.mark.parametrize(
    ("parts", "inside", "message"),
    [
        ({}, {}, "'w' has no parts, not even an empty tuple"),
        ({"w": (), "x": ()}, {}, "'x' has no shape"),
        (
            {"w": (Part("a", 1, positions([0], [1])),)},
            {"a": "blocks"},
            "group 'a' is inside 'blocks': both need a size",
        ),
    ],
)
def test_a_spec_whose_parts_contradict_one_another_is_refused(parts, inside, message):
    with pytest.raises(SpecError, match=message):
        PermutationSpec({part.group: 2 for own in parts.values() for part in own}, parts, {"w": (4, 2)}, inside)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"w": ("a", None), "x": ("a",)}, "axes are given for 'x', which the state has not"),
        ({"w": ("a",)}, "'w' has 2 axes, groups are given for 1"),
        ({"w": ("a", "a")}, "group 'a' has 4 units, but 2 in 'w'"),
        ({}, "no axes are given for 'w'"),
    ],
)
def test_axes_written_by_hand_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec.from_axes({"w": torch.zeros(4, 2)}, axes)
