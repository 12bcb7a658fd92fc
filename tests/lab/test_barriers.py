"""Barriers of pairs are those of a plain loop, and a plan measures what the claims are about."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from planting import digits, plant_barriers, planted_barriers
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lab.bookkeeping import results
from lab.bookkeeping.notebook import execute
from lab.bookkeeping.pipeline import load_preset
from lab.measures import barriers, pairs
from lab.measures.barriers import pair_barriers
from lab.networks import build
from lab.networks.initial import initial_weights
from lab.report.claims import decide
from lab.training.plan import read_plan
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin import Permutation, weight_matching
from rebasin.merging.mending import reset_norms
from rebasin.tracing import trace


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def measured(found, matcher, mended, metric):
    chosen = found[(found["matcher"] == matcher) & (found["mended"] == mended) & (found["metric"] == metric)]
    return chosen.sort_values("node")["value"].to_numpy()


def trained(n, width=16):
    weights = train(Recipe(width=width, batch_size=256, learning_rate=0.01), digits(), n, (2,), "cpu", n).weights
    return build("mlp", digits(), width), {key: tensor[0] for key, tensor in weights.items()}


def test_barriers_are_those_of_a_plain_loop_over_pairs_and_points():
    model, weights = trained(4)
    found = pair_barriers(model, weights, digits(), 5, 100, 50, device="cpu")
    assert set(found["mended"]) == {"none", "repair"}, "there are no batch norms to reset"
    assert not found.duplicated(["matcher", "mended", "node", "metric"]).any()
    assert set(found.loc[found["mended"] == "none", "points"]) == {5}
    assert set(found.loc[found["mended"] == "repair", "points"]) == {3}
    test = digits().test.sample(100)
    images = test.images.float() / 255
    spec = trace(model, digits().example)
    for node in range(2):
        a, b = ({key: tensor[2 * node + i] for key, tensor in weights.items()} for i in (0, 1))
        for matcher in ("none", "weights"):
            end = b if matcher == "none" else weight_matching(spec, a, b).permutation.apply(b)
            loss, right = [], []
            for lam in (0, 0.25, 0.5, 0.75, 1):
                point = {key: (1 - lam) * a[key] + lam * end[key] for key in a}
                answers = functional_call(model, point, (images,)).detach()
                loss.append(cross_entropy(answers, test.labels).item())
                right.append((answers.argmax(1) == test.labels).float().mean().item())
            expected = {
                "loss_barrier": max(loss) - (loss[0] + loss[4]) / 2,
                "loss_above_line": max(at - loss[0] - i / 4 * (loss[4] - loss[0]) for i, at in enumerate(loss)),
                "loss_barrier_of_three": max(loss[0], loss[2], loss[4]) - (loss[0] + loss[4]) / 2,
                "loss_ends": (loss[0] + loss[4]) / 2,
                "loss_midpoint": loss[2],
                "loss_gain": min(loss[0], loss[4]) - loss[2],
                "accuracy_barrier": (right[0] + right[4]) / 2 - min(right),
                "accuracy_above_line": max(right[0] + i / 4 * (right[4] - right[0]) - r for i, r in enumerate(right)),
                "accuracy_barrier_of_three": (right[0] + right[4]) / 2 - min(right[0], right[2], right[4]),
                "accuracy_ends": (right[0] + right[4]) / 2,
                "accuracy_midpoint": right[2],
                "accuracy_gain": right[2] - max(right[0], right[4]),
            }
            for metric, value in expected.items():
                # Float32 logits, summed in another order.
                assert measured(found, matcher, "none", metric)[node] == pytest.approx(value, abs=1e-5), metric


def test_a_network_and_its_own_permuted_copy_have_no_barrier_once_matched():
    model, weights = trained(2, 32)
    spec = trace(model, digits().example)
    first = {key: tensor[:1] for key, tensor in weights.items()}
    generator = torch.Generator().manual_seed(0)
    index = {group: torch.randperm(size, generator=generator)[None] for group, size in spec.sizes.items()}
    twin = Permutation(spec, index).apply(first)
    pair = {key: torch.cat([first[key], twin[key]]) for key in first}
    found = pair_barriers(model, pair, digits(), 5, 100, 50, device="cpu")
    for metric in ("loss_barrier", "loss_above_line", "accuracy_barrier", "loss_barrier_tempered"):
        for mended in ("none", "repair"):
            assert measured(found, "weights", mended, metric) == pytest.approx([0], abs=1e-5)
    assert measured(found, "none", "none", "loss_barrier") > 0.1
    assert measured(found, "weights", "none", "temperature_midpoint") == pytest.approx(
        measured(found, "weights", "none", "temperature_ends"), rel=1e-3
    )


def test_paths_of_any_odd_number_of_points_have_a_midpoint():
    model, weights = trained(2, 4)
    found = pair_barriers(model, weights, digits(), 151, 10, 20, device="cpu")  # the 76th of them is 1/2 + 1.1e-16
    assert np.isfinite(found["value"]).all()


def test_norms_are_reset_at_every_point_the_ends_included():
    layers = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)
    model = nn.Sequential(*layers).eval()
    fresh = [initial_weights(model, "torch", seed) for seed in (0, 1)]
    weights = {key: torch.stack([one[key] for one in fresh]) for key in fresh[0]}
    found = pair_barriers(model, weights, digits(), 3, 60, 40, device="cpu")
    assert set(found["mended"]) == set(barriers.MENDINGS)
    assert set(found.loc[found["mended"] == "reset", "points"]) == {3}
    inputs = digits().train.sample(40).images.float() / 255
    test = digits().test.sample(60)
    reset = reset_norms(model, weights, inputs)
    ends = [
        cross_entropy(
            functional_call(model, {key: tensor[i] for key, tensor in reset.items()}, (test.images.float() / 255,)),
            test.labels,
        ).item()
        for i in (0, 1)
    ]
    assert measured(found, "none", "reset", "loss_ends") == pytest.approx([sum(ends) / 2], abs=1e-4)


def test_what_was_measured_before_is_read(monkeypatch):
    model, weights = trained(2)
    first = pair_barriers(model, weights, digits(), 3, 50, 50, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(barriers, "outputs", lambda *_: pytest.fail("measured again"))
        pd.testing.assert_frame_equal(pair_barriers(model, weights, digits(), 3, 50, 50, device="cpu"), first)
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            pair_barriers(model, weights, digits(), 3, 60, 50, device="cpu")
    # Paths anew, but for those that have three points in any case, and the matching from the cache.
    monkeypatch.setattr(pairs, "weight_matching", lambda *_: pytest.fail("matched again"))
    measured_now, points_of = [], barriers._points
    monkeypatch.setattr(barriers, "_points", lambda *given: measured_now.append(given[4]) or points_of(*given))
    again = pair_barriers(model, weights, digits(), 5, 50, 50, device="cpu")
    assert measured_now == ["none", "none"], "unmatched and matched"
    repaired = [table[table["mended"] == "repair"].reset_index(drop=True) for table in (first, again)]
    pd.testing.assert_frame_equal(*repaired)


@pytest.mark.parametrize(
    ("n", "points", "message"),
    [
        (3, 5, "pairs need an even number of models, got 3"),
        (2, 4, "a path with its ends and its midpoint has an odd number of points from 3, got 4"),
        (2, 1, "a path with its ends and its midpoint has an odd number of points from 3, got 1"),
    ],
)
def test_paths_that_cannot_be_are_refused(n, points, message):
    model = build("mlp", digits(), 4)
    weights = {key: tensor.detach().expand(n, *tensor.shape) for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        pair_barriers(model, weights, digits(), points, 10, 10, device="cpu")


ENTRY = {
    "recipe": "narrow", "section": "width", "dataset": "digits", "epochs": [1, 2], "models": 2, "width": 8,
    "batch_size": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": 3}, "recipe 'narrow' needs an even number of models for pairs, got 3"),
        ({"learning_rate": 0.1, "epochs": [2, 3]}, "recipe 'narrow' is listed twice for width 8 and 2 epochs"),
        (
            {"section": "depth"},
            "recipe 'narrow' needs a section, got 'depth': there are width, epochs, failures, norms",
        ),
        ({"section": ""}, "recipe 'narrow' needs a section, got ''"),
    ],
)
def test_a_plan_without_pairs_without_a_question_or_with_two_networks_of_one_name_is_refused(changes, message):
    barriers.check_plan(read_plan([ENTRY, ENTRY | {"width": 16}, ENTRY | {"epochs": [3]}]))
    with pytest.raises(ValueError, match=re.escape(message)):
        barriers.check_plan(read_plan([ENTRY, ENTRY | changes]))


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_plan_of_a_preset_measures_every_condition_of_the_claims_once(preset):
    rows = []
    plan = read_plan(load_preset(preset)["barrier_recipes"])
    barriers.check_plan(plan)
    for planned in plan:
        for epochs in planned.epochs:
            columns = {"section": planned.section} | planned.columns(epochs)
            for mended in ("none", "reset"):
                rows += planted_barriers(columns.pop("recipe", planned.name), planned.models // 2, mended, **columns)
    plant_barriers(rows)
    claims = {claim.id: claim for claim in decide("mine")}
    for name, others in (("G5", 0), ("G6", 1), ("G9", 0), ("G10", 0)):
        assert len(claims[name].missing) == others, "the others are of the notebook on MNIST"
        assert claims[name].conditions


@pytest.mark.parametrize("architecture", ["resnet20_bn", "vit"])
def test_the_notebook_takes_architectures_with_norms_and_attention(architecture, shallow_vit):
    small = {"epochs": [1], "architecture": architecture, "width": 4, "batch_size": 1000}
    few = {"barrier_points": 3, "barrier_test_images": 20, "repair_images": 20}
    execute("barriers", {"run": "mine", "barrier_recipes": [ENTRY | small]} | few)
    table = results.read("mine", "barriers", "barriers")
    assert set(table["architecture"]) == {architecture} and set(table["section"]) == {"width"}
    assert set(table["mended"]) == {"none", "repair"} | ({"reset"} if architecture == "resnet20_bn" else set())
    assert np.isfinite(table["value"]).all()
