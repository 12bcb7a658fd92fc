"""Norms, bounds and radii in the tables are those of each node, in the order that theory puts them in."""

import pandas as pd
import pytest
import torch
from composing import compared
from torch.autograd.functional import jacobian
from torch.func import functional_call

from lab.bookkeeping.vocabulary import KIND
from lab.controls import Group
from lab.measures import regularisation
from lab.measures.attacks import Attack, surviving
from lab.measures.regularisation import RADII, regularity
from lab.networks import build
from lab.outputs import evaluate
from lab.training.plan import Planned
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.inner_products import mean_inner_product
from rebasin.tracing import trace
from rebasin.weights import mean

RECIPE = Recipe(width=16, batch_size=64, learning_rate=3e-3, initial="lecun_normal")
EPOCHS, MODELS = 3, 16
IMAGES, GRADIENT_IMAGES = 61, 20
PLAIN = ("hierarchy", "many", "mean")
METRICS = {
    "lipschitz", "averaged_bound", "spectral_product", "l1_norm", "l2_norm", "parameter_norm", "largest_gradient",
    "median_gradient", "median_radius", "median_margin",
}  # fmt: skip


@pytest.fixture(scope="module")
def all_groups(digits):
    networks = Planned("networks", "digits", RECIPE, (EPOCHS,), MODELS, held_out=200, chunk=MODELS)
    sizes = {"hierarchy": [2, 4], "many": [2], "mean": [2, 4]}
    return compared(digits, networks, sizes, {"l2": [0.001]}, 2)


@pytest.fixture(scope="module")
def groups(all_groups):
    return [group for group in all_groups if group.algorithm != "ensemble"]


@pytest.fixture(scope="module")
def leaves(digits, all_groups):
    trained = train(RECIPE, digits, MODELS, (EPOCHS,), "cpu", MODELS)
    return {key: tensor[-1] for key, tensor in trained.weights.items()}


@pytest.fixture(scope="module")
def split(digits):
    return digits.test.sample(IMAGES)


@pytest.fixture(scope="module")
def tables(groups, leaves, split):
    return regularity(groups, leaves, split, GRADIENT_IMAGES, "cpu", 2)


@pytest.fixture(scope="module")
def metrics(tables):
    """The first table with a row per node and a column per metric."""
    return tables[0].pivot(index=[*KIND, "node"], columns="metric", values="value")


def every_node(groups):
    """Each node's place in the tables, with its weights (1, ...) and its group."""
    for group in groups:
        for position, node in enumerate(group.nodes):
            weights = {key: tensor[position : position + 1] for key, tensor in group.weights.items()}
            yield (*group.kind, node), weights, group


def refuse(*args, **kwargs):
    raise AssertionError("this was measured again")


def test_each_node_has_one_row_for_each_metric_layer_and_radius(groups, tables):
    nodes, layers, radii = (dict(iter(t.groupby([*KIND, "node"]))) for t in tables)
    places = [place for place, _, _ in every_node(groups)]
    assert set(nodes) == set(layers) == set(radii) == set(places) and len(places) == len(set(places))
    own = [(f"layer{i}", metric) for i in range(1, 5) for metric in ("l1", "l2", "spectral")]
    for place in places:
        predicted = {"predicted_norm"} if place[0] in PLAIN and place[1] == "none" else set()
        assert sorted(nodes[place].metric) == sorted(METRICS | predicted)
        assert sorted(zip(layers[place].layer, layers[place].metric, strict=True)) == sorted(own)
        assert radii[place].radius.tolist() == list(RADII)


def test_norms_are_those_one_computes_by_hand(groups, tables, metrics):
    layers = tables[1].set_index([*KIND, "node", "layer", "metric"])["value"]
    for place, weights, _ in every_node(groups):
        matrices = {key.removesuffix(".weight"): w[0].double() for key, w in weights.items() if key.endswith("weight")}
        assert len(matrices) == 4
        everything = torch.cat([tensor.double().flatten() for tensor in weights.values()])
        together = torch.cat([matrix.flatten() for matrix in matrices.values()])
        by_hand = {"parameter_norm": everything.norm(), "l2_norm": together.norm(), "l1_norm": together.abs().sum()}
        for metric, value in by_hand.items():
            assert metrics.loc[place, metric] == pytest.approx(float(value), rel=1e-12)
        for layer, matrix in matrices.items():
            assert layers[*place, layer, "l1"] == pytest.approx(float(matrix.abs().sum()), rel=1e-12)
            assert layers[*place, layer, "l2"] == pytest.approx(float(matrix.norm()), rel=1e-12)
            # The root of an eigenvalue, where the other way is a singular value.
            singular = float(torch.linalg.matrix_norm(matrix, 2))
            assert layers[*place, layer, "spectral"] == pytest.approx(singular, rel=1e-8)


def test_the_norm_of_a_mean_is_the_predicted_one(metrics):
    plain = metrics[metrics.predicted_norm.notna()]
    assert set(plain.index.get_level_values("algorithm")) == set(PLAIN)
    assert set(plain.index.get_level_values("n_leaves")) == {2, 4}
    assert set(plain.index.get_level_values("node")) > {0}
    pd.testing.assert_series_equal(plain.predicted_norm, plain.parameter_norm, rtol=1e-6, check_names=False)


def test_the_gradients_lie_below_the_bounds_and_the_bounds_below_the_product(metrics):
    assert (metrics.median_gradient > 0).all()
    assert (metrics.median_gradient <= metrics.largest_gradient).all()
    for bound in ("lipschitz", "averaged_bound"):
        assert (metrics.largest_gradient <= metrics[bound]).all()
        # Equal to a product of the same norms at most, but for the rounding of either.
        assert (metrics[bound] <= metrics.spectral_product * (1 + 1e-9)).all()


def test_gradients_are_taken_at_the_first_images(groups, split, metrics):
    x = split.images[:GRADIENT_IMAGES].double() / 255
    for place, weights, group in every_node(groups[:2]):
        one = {key: tensor[0].double() for key, tensor in weights.items()}
        slopes = []
        for image in x:
            rows = jacobian(lambda x, one=one, group=group: functional_call(group.model, one, (x[None],))[0], image)
            slopes.append(torch.linalg.matrix_norm(rows.flatten(1), 2))
        slopes = torch.stack(slopes)
        assert metrics.loc[place, "largest_gradient"] == pytest.approx(float(slopes.max()), rel=1e-8)
        assert metrics.loc[place, "median_gradient"] == pytest.approx(float(slopes.median()), rel=1e-8)


def test_certified_accuracy_falls_from_the_accuracy(groups, split, tables):
    curves = tables[2].set_index([*KIND, "node"])
    for place, weights, group in every_node(groups):
        curve = curves.loc[place].set_index("radius")["value"]
        assert curve.is_monotonic_decreasing
        correct = evaluate(group.model, weights, split, "cpu").correct
        assert curve[0.0] == float(correct.double().mean())
    ends = tables[2].pivot_table(index=[*KIND, "node"], columns="radius", values="value")
    assert (ends[RADII[0]] > ends[RADII[-1]]).any()


def test_no_attack_finds_what_is_certified(groups, split, tables):
    at = [radius for radius in RADII if radius >= 1][::4]
    curves = tables[2].set_index([*KIND, "node"])
    pixels, attack = split.images.float() / 255, Attack("margin", "l2", steps=10)
    for place, weights, group in every_node(groups[:2]):
        certified = curves.loc[place].set_index("radius")["value"]
        radii = [radius / 255 for radius in at]
        left = surviving(group.model, weights, pixels, split.labels, radii, attack, 0, "cpu").double().mean(-1)[0]
        assert (certified[at].to_numpy() <= left.numpy()).all()
        assert certified[at].iloc[0] > 0, "some images are certified"


def test_the_median_radius_is_the_median_margin_of_the_correctly_classified_over_its_steepness(groups, split, metrics):
    for place, weights, group in every_node(groups):
        one = {key: tensor[0] for key, tensor in weights.items()}
        logits = functional_call(group.model, one, (split.images.float() / 255,)).detach()
        correct = logits.argmax(-1) == split.labels
        highest = logits[correct].double().topk(2).values
        margin = float((highest[:, 0] - highest[:, 1]).median())
        row = metrics.loc[place]
        # Differences of float32 logits of order 1 to 10, which one network or several at a time round differently.
        assert row.median_margin == pytest.approx(margin, rel=1e-4)
        assert row.median_radius * 2**0.5 * row.lipschitz == pytest.approx(row.median_margin, rel=1e-12)


@pytest.mark.parametrize("architecture", ["resnet20_bn", "vit"])
def test_networks_that_no_bound_is_proved_for_have_all_the_rest(architecture, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path))
    model = build(architecture, digits, 4)
    torch.manual_seed(0)
    leaves = {}
    for key, tensor in model.state_dict().items():
        pair = torch.stack([tensor, tensor])
        # Both have statistics of their own, too, and variances stay positive.
        leaves[key] = pair + 0.1 * torch.rand(pair.shape) if tensor.is_floating_point() else pair
    spec, few = trace(model, digits.example), digits.test.sample(20)
    pair = {key: tensor.unsqueeze(0) for key, tensor in leaves.items()}
    groups = [
        Group("unmerged", 1, 0.0, (0, 1), model, leaves, torch.full((2,), torch.nan)),
        Group("mean", 2, 0.0, (0,), model, mean(pair, axis=1), mean_inner_product(spec, pair)),
    ]
    nodes, layers, radii = regularity(groups, leaves, few, 2, "cpu", 2)
    wide = nodes.pivot(index=[*KIND, "node"], columns="metric", values="value")
    assert set(wide) == {
        "l1_norm", "l2_norm", "parameter_norm", "predicted_norm", "largest_gradient", "median_gradient", "median_margin"
    }  # fmt: skip
    assert set(layers["metric"]) == {"l1", "l2"} and not len(radii)
    merged = wide.loc["mean"].iloc[0]
    # Trained entries alone, without the norms' statistics: so does the alignment count.
    assert merged.parameter_norm == pytest.approx(merged.predicted_norm, rel=1e-6)
    logits = functional_call(model, {key: tensor[0] for key, tensor in leaves.items()}, (few.images.float() / 255,))
    correct = logits.argmax(-1) == few.labels
    if correct.any():
        highest = logits[correct].double().topk(2).values
        # Differences of float32 logits, which one network or several at a time round differently.
        margin = float((highest[:, 0] - highest[:, 1]).median())
        assert wide.loc["unmerged"]["median_margin"].iloc[0] == pytest.approx(margin, rel=1e-3)


def test_how_many_networks_go_through_at_once_changes_nothing(groups, leaves, split, tables):
    again = regularity(groups[:2], leaves, split, GRADIENT_IMAGES, "cpu", 1)
    for found, first in zip(again, tables, strict=True):
        pd.testing.assert_frame_equal(found, first[: len(found)], rtol=1e-4)


def test_what_was_measured_before_is_not_measured_again(groups, leaves, split, digits, tables, cache, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", cache)
    for name in ("layer_norms", "layer_matrices", "gradient_norms", "certified_radius"):
        monkeypatch.setattr(regularisation, name, refuse)
    again = regularity(groups, leaves, split, GRADIENT_IMAGES, "cpu", 2)
    for found, first in zip(again, tables, strict=True):
        pd.testing.assert_frame_equal(found, first)
    for images, gradient_images in ((split, GRADIENT_IMAGES + 1), (digits.test.sample(IMAGES, 1), GRADIENT_IMAGES)):
        with pytest.raises(AssertionError, match="this was measured again"):
            regularity(groups, leaves, images, gradient_images, "cpu", 2)
