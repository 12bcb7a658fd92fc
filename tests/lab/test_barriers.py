"""Barriers of pairs are those of a plain loop; the chapter's sentences turn with them."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from planting import BARRIER_RECIPES, barriers_of_all, digits, planted_barriers
from planting import plant as plant_table
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lab.bookkeeping.code import imported_modules, module_source
from lab.bookkeeping.pipeline import load_preset
from lab.measures import barriers
from lab.measures.barriers import pair_barriers
from lab.networks import build
from lab.networks.initial import initial_weights
from lab.report import barriers_chapter, barriers_figures
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


def measured(found, algorithm, mended, metric):
    chosen = found[(found["algorithm"] == algorithm) & (found["mended"] == mended) & (found["metric"] == metric)]
    return chosen.sort_values("node")["value"].to_numpy()


def trained(n, width=16):
    weights = train(Recipe(width=width, batch_size=256, learning_rate=0.01), digits(), n, (2,), "cpu", n).weights
    return build("mlp", digits(), width), {key: tensor[0] for key, tensor in weights.items()}


def test_barriers_are_those_of_a_plain_loop_over_pairs_and_points():
    model, weights = trained(4)
    found = pair_barriers(model, weights, digits(), 5, 100, 50, device="cpu")
    assert set(found["mended"]) == {"none", "repair"}, "there are no batch norms to reset"
    assert not found.duplicated(["algorithm", "mended", "node", "metric"]).any()
    assert set(found.loc[found["mended"] == "none", "points"]) == {5}
    assert set(found.loc[found["mended"] == "repair", "points"]) == {3}
    test = digits().test.sample(100)
    images = test.images.float() / 255
    spec = trace(model, digits().example)
    for node in range(2):
        a, b = ({key: tensor[2 * node + i] for key, tensor in weights.items()} for i in (0, 1))
        for algorithm in ("naive", "weights"):
            end = b if algorithm == "naive" else weight_matching(spec, a, b).permutation.apply(b)
            loss, right = [], []
            for lam in (0, 0.25, 0.5, 0.75, 1):
                point = {key: (1 - lam) * a[key] + lam * end[key] for key in a}
                answers = functional_call(model, point, (images,)).detach()
                loss.append(cross_entropy(answers, test.labels).item())
                right.append((answers.argmax(1) == test.labels).float().mean().item())
            expected = {
                "loss_barrier": max(loss) - (loss[0] + loss[4]) / 2,
                "loss_above_line": max(at - loss[0] - i / 4 * (loss[4] - loss[0]) for i, at in enumerate(loss)),
                "loss_ends": (loss[0] + loss[4]) / 2,
                "loss_midpoint": loss[2],
                "loss_gain": min(loss[0], loss[4]) - loss[2],
                "accuracy_barrier": (right[0] + right[4]) / 2 - min(right),
                "accuracy_above_line": max(right[0] + i / 4 * (right[4] - right[0]) - r for i, r in enumerate(right)),
                "accuracy_ends": (right[0] + right[4]) / 2,
                "accuracy_midpoint": right[2],
                "accuracy_gain": right[2] - max(right[0], right[4]),
            }
            for metric, value in expected.items():
                # Float32 logits, summed in another order.
                assert measured(found, algorithm, "none", metric)[node] == pytest.approx(value, abs=1e-5), metric


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
    assert measured(found, "naive", "none", "loss_barrier") > 0.1
    assert measured(found, "weights", "none", "temperature_midpoint") == pytest.approx(
        measured(found, "weights", "none", "temperature_ends"), rel=1e-3
    )


def test_what_other_code_measured_is_not_read():
    # That each kept function counts the code of all that it rests on is seen in test_cache.py.
    rests_on = imported_modules(module_source("lab.measures.barriers"))
    for module in ("graph", "tracing.groups", "tracing.rules.sums", "merging.mending"):
        assert f"rebasin.{module}" in rests_on


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
    assert measured(found, "naive", "reset", "loss_ends") == pytest.approx([sum(ends) / 2], abs=1e-4)


def test_what_was_measured_before_is_read(monkeypatch):
    model, weights = trained(2)
    first = pair_barriers(model, weights, digits(), 3, 50, 50, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(barriers, "path_metrics", lambda *_: pytest.fail("measured again"))
        pd.testing.assert_frame_equal(pair_barriers(model, weights, digits(), 3, 50, 50, device="cpu"), first)
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            pair_barriers(model, weights, digits(), 3, 60, 50, device="cpu")
    # Paths anew, the matching from the cache.
    monkeypatch.setattr(barriers, "weight_matching", lambda *_: pytest.fail("matched again"))
    pair_barriers(model, weights, digits(), 5, 50, 50, device="cpu")


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


def plant(rows):
    """Let run ``mine`` have these rows of the table ``barriers``."""
    plant_table("mine", {"barriers": pd.DataFrame(rows)}, "barriers")


@pytest.mark.parametrize(
    ("first", "last", "pairs", "opening", "zero"),
    [
        (0.9, 0.01, 8, "falls for digits MLP", "for digits MLP"),
        (0.3, 0.9, 8, "rises for digits MLP", "for none"),
        (0.3, 0.3, 8, "may go either way for digits MLP", "for none"),
        (0.9, 0.01, 2, "was measured on too few pairs for digits MLP", "for none"),
    ],
)
@pytest.mark.parametrize(
    ("axis", "recipe", "what"), [("width", "digits width", "width"), ("epochs", "digits mlp", "training")]
)
def test_the_trend_that_is_told_is_the_one_in_the_table(axis, recipe, what, first, last, pairs, opening, zero):
    low, high = (
        planted_barriers(recipe, pairs, **{axis: at, "loss_barrier": loss, "accuracy_barrier": accuracy})
        for at, loss, accuracy in ((8, first, 0.2), (64, last, 0.4))
    )
    plant(low + high)
    found = barriers_chapter.finding(axis)
    assert found.startswith(
        f"<strong>With {what}, the barrier in loss between matched networks {opening}.</strong> Digits MLP, "
    )
    assert f"which counts as zero, {zero}." in found
    _, early, late = re.split(r"nats(?: of test loss)? and ", found)
    assert early.startswith("20.0") and late.startswith("40.0"), "what it comes to in accuracy is told, too"
    assert f"(n = {pairs} pairs{'; a verdict needs 8' if pairs < 8 else ''})" in found
    assert "nan" not in found


@pytest.mark.parametrize(
    ("low", "high", "pairs", "opening"),
    [
        (0.4, 0.3, 8, "leaves a barrier with SGD at a low rate and Adam at a high rate."),
        (0.4, 0.001, 8, "leaves a barrier with SGD at a low rate; does not with Adam at a high rate."),
        (0.001, 0.002, 8, "leaves none with SGD at a low rate and Adam at a high rate."),
        (0.4, 0.3, 2, "is not decided with SGD at a low rate and Adam at a high rate."),
    ],
)
def test_a_failure_is_told_only_where_there_is_a_barrier(low, high, pairs, opening):
    both = {"digits sgd low": low, "digits adam high": high}
    plant([row for name, value in both.items() for row in planted_barriers(name, pairs, loss_barrier=value)])
    found = barriers_chapter.finding("failures")
    assert found.startswith(f"<strong>Of the failures they name, matching {opening}</strong>")


@pytest.mark.parametrize(
    ("reset", "pairs", "opening"),
    [
        (0.1, 8, "Measuring BatchNorm's statistics anew lowers the barrier, and does not remove it: by −0.400 "),
        (0.001, 8, "Measuring BatchNorm's statistics anew lowers the barrier, and removes it: by −0.499 "),
        (0.9, 8, "Measuring BatchNorm's statistics anew raises the barrier, and does not remove it: by +0.400 "),
        (
            0.1,
            2,
            "On too few pairs for an interval, measuring BatchNorm's statistics anew changes the barrier: by −0.400",
        ),
    ],
)
def test_what_a_reset_of_norms_does_is_told_with_its_sign(reset, pairs, opening):
    rows = planted_barriers("digits batch norm", pairs) + planted_barriers("digits layer norm", pairs, loss_barrier=0.2)
    plant(rows + planted_barriers("digits batch norm", pairs, "reset", loss_barrier=reset))
    found = barriers_chapter.finding("norms")
    assert found.startswith(f"<strong>{opening}")
    assert "LayerNorm, 0.2" in found and "points of accuracy, between networks that have 50." in found
    assert ("a verdict needs 8" in found) == (pairs < 8)
    table = barriers_chapter.norms_table("mine")
    assert list(table["path"]) == ["as it is", "statistics measured anew", "as it is"]


@pytest.mark.parametrize(
    ("gain", "pairs", "opening", "told"),
    [
        (
            0.1,
            8,
            "The midpoint of two networks that were given different data has a lower test loss than both",
            "8 of 8",
        ),
        (-0.1, 8, "The midpoint of two networks that were given different data does not beat the better one", "0 of 8"),
        (0.1, 2, "Whether the midpoint beats two networks that were given different data is left open", "2 of 2"),
    ],
)
def test_a_midpoint_is_said_to_beat_both_ends_only_where_it_does(gain, pairs, opening, told):
    plant(planted_barriers("digits split", pairs, loss_gain=gain) + planted_barriers("digits whole", pairs))
    found = barriers_chapter.finding("split")
    assert found.startswith(f"<strong>{opening}")
    assert f"of data shared out, the midpoint of {told} matched pairs has a lower test loss" in found.lower()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": 3}, "recipe 'narrow' needs an even number of models for pairs, got 3"),
        ({"learning_rate": 0.1, "epochs": [2, 3]}, "recipe 'narrow' is listed twice for width 8 and 2 epochs"),
    ],
)
def test_a_plan_without_pairs_or_with_two_networks_of_one_name_is_refused(changes, message):
    entry = {"recipe": "narrow", "dataset": "digits", "epochs": [1, 2], "models": 2, "width": 8, "batch_size": 64}
    barriers.check_plan(read_plan([entry, entry | {"width": 16}, entry | {"epochs": [3]}]))
    with pytest.raises(ValueError, match=re.escape(message)):
        barriers.check_plan(read_plan([entry, entry | changes]))


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_plan_of_a_preset_measures_every_condition_of_the_claims_once(preset):
    rows = []
    plan = read_plan(load_preset(preset)["barrier_recipes"])
    barriers.check_plan(plan)
    for planned in plan:
        for epochs in planned.epochs:
            told = planned.columns(epochs)
            for mended in ("none", "reset"):
                rows += planted_barriers(
                    planned.name, planned.models // 2, mended, **{k: told[k] for k in told if k != "recipe"}
                )
    plant(rows)
    claims = {claim.id: claim for claim in decide("mine")}
    for name, others in (("G5", 0), ("G6", 1), ("G9", 0), ("G10", 0)):
        assert len(claims[name].missing) == others, "the others are of the notebook on MNIST"
        assert claims[name].conditions


def test_a_pair_with_several_snapshots_counts_once_and_at_its_last():
    rows = []
    for epochs, barrier in ((1, 0.9), (10, 0.001)):
        told = {"dataset": "mnist", "epochs": epochs, "loss_barrier": barrier}
        rows += barriers_of_all("mnist sgd low", optimiser="sgd", **told)
        rows += barriers_of_all("mnist width", width=32, **told) + barriers_of_all("mnist width", width=512, **told)
    plant(rows)
    found = barriers_chapter.finding("failures")
    assert "leaves none with SGD at a low rate" in found and "(n = 8 pairs)" in found
    assert "(n = 8 pairs)" in barriers_chapter.finding("width")
    claims = {claim.id: claim for claim in decide("mine")}
    (failure,) = claims["G9"].conditions
    assert failure.effect.n == 8 and failure.effect.mean == pytest.approx(0.001, abs=0.001)
    assert claims["G5"].conditions[0].effect.n == 8


def test_recipes_that_were_not_run_are_named_with_the_command_that_runs_them():
    plant(planted_barriers("mnist sgd low", dataset="mnist"))
    assert barriers_chapter.finding("norms") == (
        "Not run in run mine: resnet20 batch norm, resnet20 layer norm "
        "(<code>.venv/bin/python -m lab.bookkeeping.pipeline cpu barriers</code>)."
    )
    found = barriers_chapter.finding("failures")
    assert "mnist adam high (<code>.venv/bin/python -m lab.bookkeeping.pipeline cpu barriers</code>)" in found
    assert "mnist vgg (<code>.venv/bin/python -m lab.bookkeeping.pipeline gpu barriers</code>)" in found
    assert "mnist sgd low (" not in found and "mnist sgd low," not in found


def test_a_book_without_any_run_says_so():
    for name in barriers_chapter.SECTIONS:
        assert barriers_chapter.finding(name).startswith("Not run: ")


def test_tables_stand_where_the_rows_are():
    rows = [row for name in BARRIER_RECIPES for row in barriers_of_all(name)]
    rows += barriers_of_all("digits width", width=64) + barriers_of_all("digits mlp", epochs=10, loss_barrier=0.1)
    plant(rows)
    width = barriers_chapter.trend_table("mine", "width")
    assert list(width["width"]) == [8, 64] and set(width["n"]) == {8}
    epochs = barriers_chapter.trend_table("mine", "epochs")
    assert list(epochs["epochs"]) == [1, 10]
    assert [text[:4] for text in epochs["loss, matched (nats)"]] == ["0.50", "0.10"]
    failures = barriers_chapter.failures_table("mine")
    assert list(failures[""]) == ["the usual recipe", "SGD at a low rate"], "the usual recipe of the same width alone"
    assert list(failures["training"]) == ["Adam at 0.001, 10 epochs", "SGD at 0.001, 10 epochs"]
    assert list(barriers_chapter.split_table("mine")["data"].unique()) == ["shared out", "all, for both"]


def test_the_usual_recipe_beside_a_failure_is_of_the_same_networks():
    mnist = {"dataset": "mnist"}
    rows = barriers_of_all("mnist width", **mnist, width=64) + barriers_of_all("mnist width", **mnist, width=512)
    rows += barriers_of_all("mnist adam high", **mnist, width=512, learning_rate=0.01)
    plant(rows + barriers_of_all("mnist vgg", **mnist, width=64, architecture="vgg16_ln"))
    assert list(barriers_chapter.failures_table("mine")["networks"]) == [
        "MNIST MLP, width 512", "MNIST MLP, width 512", "MNIST VGG-16, width 64"
    ]  # fmt: skip


def test_the_figure_shows_every_width_in_nats_and_in_points():
    rows = barriers_of_all("digits width", accuracy_barrier=0.05) + barriers_of_all("digits width", width=64)
    figure = barriers_figures.barriers_over(pd.DataFrame(rows), "width")
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["8", "64"]
    drawn = figure.axes[1].containers[0].lines[0].get_ydata()
    assert drawn == pytest.approx([5, 50], abs=0.1)
    plt.close(figure)


def test_the_table_over_width_goes_from_the_narrow_to_the_wide_whatever_the_plans_order():
    plant([row for width in (64, 8, 32) for row in barriers_of_all("digits width", width=width)])
    assert list(barriers_chapter.trend_table("mine", "width")["width"]) == [8, 32, 64]
