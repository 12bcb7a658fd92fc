"""Norms are those of each network's own vectors, and a merge has the norm that its leaves and their matching imply."""

import math

import pytest
import torch

from lab.measures.norms import layer_norms, parameter_norm, predicted_norm
from rebasin.inner_products import mean_inner_product
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.weights import mean

# Sums of a few hundred products in float64.
ROUNDING = {"rtol": 1e-10, "atol": 0}


def as_one_vector(weights, i, keys):
    return torch.cat([weights[key][i].flatten() for key in keys])


def test_norms_are_those_of_each_matrix_and_of_all_in_one_vector(random_weights):
    weights = random_weights(3)
    found = layer_norms(weights)
    layers = {"0": ["0.weight"], "2": ["2.weight"], "4": ["4.weight"], "6": ["6.weight"]}
    layers["all"] = [key for keys in layers.values() for key in keys]
    assert set(found) == {(layer, metric) for layer in layers for metric in ("l1", "l2")}
    for layer, keys in layers.items():
        vectors = torch.stack([as_one_vector(weights, i, keys) for i in range(3)])
        torch.testing.assert_close(found[layer, "l1"], vectors.abs().sum(1), **ROUNDING)
        torch.testing.assert_close(found[layer, "l2"], vectors.square().sum(1).sqrt(), **ROUNDING)


def test_biases_count_in_the_norm_of_all_parameters_alone(random_weights):
    weights = random_weights(3)
    whole = torch.stack([as_one_vector(weights, i, weights).norm() for i in range(3)])
    torch.testing.assert_close(parameter_norm(weights), whole, **ROUNDING)
    weights["2.bias"] += 1
    torch.testing.assert_close(layer_norms(weights)["all", "l2"], layer_norms(random_weights(3))["all", "l2"])
    assert (parameter_norm(weights) != whole).all()


def test_kernels_are_matrices_and_sums_are_in_float64():
    norms = layer_norms({"conv.weight": torch.full((1, 2, 3, 100, 100), 0.1), "norm.weight": torch.ones(1, 2)})
    assert set(norms) == {("conv", "l1"), ("conv", "l2"), ("all", "l1"), ("all", "l2")}
    tenth = torch.tensor(0.1).double()
    torch.testing.assert_close(norms["conv", "l1"], (60_000 * tenth).reshape(1), **ROUNDING)
    torch.testing.assert_close(norms["conv", "l2"], (math.sqrt(60_000) * tenth).reshape(1), **ROUNDING)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_identity_holds_for_naive_averages_and_mergemany(spec, random_weights, n):
    leaves = random_weights(2, n)
    norms = torch.stack([parameter_norm({key: tensor[i] for key, tensor in leaves.items()}) for i in range(2)])
    naive = mean(leaves, axis=1)
    torch.testing.assert_close(
        predicted_norm(norms, mean_inner_product(spec, leaves)), parameter_norm(naive), **ROUNDING
    )
    merged = merge_many(spec, leaves)
    aligned = mean_inner_product(spec, merged.permutation.apply(leaves))
    torch.testing.assert_close(predicted_norm(norms, aligned), parameter_norm(merged.weights), **ROUNDING)
    # Better matching shrinks less.
    assert (parameter_norm(merged.weights) > parameter_norm(naive)).all()


def test_the_identity_holds_at_each_stage_of_the_hierarchy(spec, random_weights):
    leaves = random_weights(8)
    for number, stage in enumerate(merge_hierarchical(spec, leaves).stages, 1):
        permuted = {key: t.unflatten(0, (-1, 2**number)) for key, t in stage.permutation.apply(leaves).items()}
        norms = parameter_norm(leaves).unflatten(0, (-1, 2**number))
        predicted = predicted_norm(norms, mean_inner_product(spec, permuted))
        torch.testing.assert_close(predicted, parameter_norm(stage.weights), **ROUNDING)


def test_the_identity_of_two_is_the_parallelogram():
    """||(A + B) / 2||^2 = (||A||^2 + ||B||^2) / 4 + <A, B> / 2, for lengths 3 and 4 at a right angle and opposite."""
    found = predicted_norm(torch.tensor([[3.0, 4.0], [2.0, 2.0]]), torch.tensor([0.0, -4.0]))
    assert found.tolist() == pytest.approx([2.5, 0.0])


def test_leaves_that_cancel_leave_nothing(spec, random_weights):
    leaves = {key: torch.cat([tensor, -tensor], 1) for key, tensor in random_weights(20, 1).items()}
    norms = parameter_norm({key: tensor.flatten(0, 1) for key, tensor in leaves.items()}).reshape(20, 2)
    # The square root of a rounding error, which may be negative.
    torch.testing.assert_close(
        predicted_norm(norms, mean_inner_product(spec, leaves)), torch.zeros(20).double(), rtol=0, atol=1e-6
    )


def test_norms_and_alignments_that_do_not_belong_together_are_refused(spec, random_weights):
    leaves = random_weights(2, 3)
    norms, aligned = torch.ones(2, 3), mean_inner_product(spec, leaves)
    for wrong in (norms[:1], norms[0], norms[:, :1]):
        with pytest.raises(ValueError, match="norms of two leaves or more for each alignment"):
            predicted_norm(wrong, aligned)
    for impossible in ([1.1, 0.0], [0.0, -0.6]):
        with pytest.raises(ValueError, match="no leaves of these norms have these alignments"):
            predicted_norm(norms, torch.tensor(impossible))


def test_networks_without_matrices_are_refused():
    with pytest.raises(ValueError, match="no weight matrices"):
        layer_norms({"norm.weight": torch.ones(2, 3)})
