"""What the chapter on transformers says turns with the tables, by network and by way."""

import itertools
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import plant

from lab.measures.transformers import WAYS as MEASURED
from lab.report import transformers
from lab.report.claims import decide
from lab.report.draw import house_style
from lab.report.transformers import WAYS
from lab.training.recipe import Recipe

RECIPES = {
    "mnist vit": {"dataset": "mnist", "architecture": "vit2"},
    "text language": {"dataset": "text", "architecture": "language"},
    "cifar10 vit": {"dataset": "cifar10", "architecture": "vit2"},
}
LAMS = [step / 10 for step in range(11)]
# Barriers in nats by way; all others have 1.5.
HEIGHTS = {"naive": 2.0, "activations": 1.2, "weights": 0.8, "straight_through": 0.7, "turned_activations": 0.5,
           "turned_weights": 0.4, "learned": 0.3, "learned_heads": 0.2}  # fmt: skip


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    yield
    plt.close("all")


def planted(heights=HEIGHTS, pairs=8, recipes=RECIPES, tenth=0.0, change=1e-14):
    """Let a run have lines that rise to these barriers, a little apart from pair to pair, in loss and in accuracy.

    ``tenth`` points of accuracy are added a tenth of the way by correlation with the stream held.
    """
    lines, barriers = [], []
    for (recipe, columns), (name, way) in itertools.product(recipes.items(), WAYS.items()):
        kind = {"recipe": recipe, **asdict(Recipe(width=64)), **columns, "epochs": 2, "split": "test", "n_leaves": 2}
        kind |= {"form": way.form, "matcher": way.matcher, "stream": way.stream}
        for node in range(pairs):
            high = heights.get(name, 1.5) + 0.01 * (node % 2)
            rise = [high * (1 - 2 * abs(lam - 0.5)) for lam in LAMS]
            added = [tenth / 100 if name == "correlation_held" and lam == 0.1 else 0.0 for lam in LAMS]
            values = {
                "loss": [0.1 + up for up in rise],
                "accuracy": [0.95 - up / 10 + more for up, more in zip(rise, added, strict=True)],
            }
            for metric, along in values.items():
                for lam, value in zip(LAMS, along, strict=True):
                    lines.append(kind | {"node": node, "lam": lam, "metric": metric, "value": value})
            metrics = {
                "loss_barrier": high, "loss_above_line": high, "accuracy_barrier": high / 10, "loss_ends": 0.1,
                "accuracy_ends": 0.95, "loss_midpoint": 0.1 + high, "accuracy_midpoint": 0.95 - high / 10,
                "change": change,
            }  # fmt: skip
            barriers += [kind | {"node": node, "metric": metric, "value": value} for metric, value in metrics.items()]
    plant("mine", {"lines": pd.DataFrame(lines), "barriers": pd.DataFrame(barriers)}, "transformers")


def test_the_ways_are_those_that_the_notebook_measures():
    assert [(way.form, way.matcher, way.stream) for way in WAYS.values()] == [
        (way.form, way.matcher, way.stream) for way in MEASURED
    ]


def test_every_network_has_its_barriers_and_the_best_of_each_kind():
    planted()
    facts = transformers.vit("mine")
    assert facts.outcome == "still there, still there"
    assert facts.values["naive"].startswith("2.00 [") and facts.values["permuted_way"] == "straight through"
    assert facts.values["turned"] == facts.values["learned_heads"] and facts.values["turned"].startswith("0.2")
    assert facts.values["paper_weights"] == "0.36" and facts.values["paper_turned"] == "0.00"
    assert (facts.values["n"], facts.values["models"], facts.values["accuracy"]) == ("8", "16", "95.0")
    language = transformers.language("mine")
    assert language.values["title"] == "language model" and language.values["perplexity"] == "1.1"
    # exp(0.1 + 2.005)
    assert language.values["naive_perplexity"] == "8.2"
    assert transformers.cifar10("mine").values["data"] == "CIFAR-10"
    recipe = transformers.recipe("mine")
    assert recipe.outcome == "all" and recipe.values["vit_data"] == "MNIST" and recipe.values["language_epochs"] == "2"


@pytest.mark.parametrize(
    ("heights", "pairs", "outcome"),
    [
        ({"learned_heads": 0.001}, 8, "still there, gone"),
        ({"weights": 0.001, "learned_heads": 0.001}, 8, "gone, gone"),
        ({"learned_heads": 0.015}, 8, "still there, not decided"),
        ({}, 7, "too few, too few"),
    ],
)
def test_a_barrier_is_gone_where_its_interval_lies_below_what_counts_as_zero(heights, pairs, outcome):
    planted(HEIGHTS | heights, pairs)
    assert transformers.vit("mine").outcome == outcome


def test_turning_holding_and_rewriting_are_compared_matcher_by_matcher():
    planted(HEIGHTS | {"turned_weights": 0.8, "learned": 0.9, "weights_held": 0.5, "rewritten": 2.5})
    turning = transformers.turning("mine")
    assert turning.outcome == ", ".join(3 * ["lower", "open", "no lower"])
    assert (
        turning.values["vit_activations"].startswith("+0.70")
        and turning.values["language_straight_through"] == (turning.values["vit_straight_through"])
    )
    holding = transformers.holding("mine")
    assert holding.outcome == ", ".join(3 * ["lower", "open", "no lower"])
    rewriting = transformers.rewriting("mine")
    assert rewriting.outcome.startswith("no lower, no lower") and rewriting.values["vit_naive"].startswith("−0.50")


def test_turning_stands_beside_permuting_from_the_same_start():
    planted(HEIGHTS | {"step_weights": 0.3})
    facts = transformers.in_step("mine")
    # 1.5 is above 0.5 and 0.3, and 0.3 below 0.4.
    assert facts.outcome == ", ".join(3 * ["lower", "no lower", "lower"])
    assert facts.values["cifar10_weights"].startswith("−0.10")
    assert facts.values["size_cifar10_weights"].startswith("0.10")
    assert transformers.starts("mine").outcome == "lower, lower, lower"  # 1.5 and 0.3


def test_matching_by_weights_stands_beside_no_matching():
    planted()
    facts = transformers.by_weights("mine")
    assert facts.outcome == "lower, lower" and facts.values["vit_weights"].startswith("+1.20")
    planted(HEIGHTS | {"weights": HEIGHTS["naive"]})
    assert transformers.by_weights("mine").outcome == "open, open"


def test_the_order_of_matchers_is_that_of_the_paper_or_not():
    planted()
    assert transformers.orders("mine").outcome == "lower, lower, lower, lower"
    planted(HEIGHTS | {"weights": 1.4, "activations": 2.0})
    assert transformers.orders("mine").outcome == "open, lower, open, lower"
    planted(HEIGHTS | {"weights": 1.4})
    assert transformers.orders("mine").outcome == "lower, no lower, lower, no lower"
    assert transformers.orders("mine").values["size_vit_weights"].startswith("0.20")
    planted(pairs=4)
    assert transformers.orders("mine").outcome == "too few, too few, too few, too few"


@pytest.mark.parametrize(("added", "outcome"), [(3.0, "above"), (-3.0, "below"), (0.0, "open")])
def test_a_tenth_of_the_way_is_compared_with_no_matching(added, outcome):
    planted(HEIGHTS | {"correlation_held": HEIGHTS["naive"]}, tenth=added)
    assert transformers.tenth("mine").outcome == f"{outcome}, {outcome}, {outcome}"


def test_the_proof_is_told_as_a_power_of_ten():
    planted(change=3e-14)
    facts = transformers.proof("mine")
    assert (facts.outcome, facts.values["power"], facts.values["pairs"]) == ("rounding", "−13", "24")
    planted(change=1e-10)
    assert transformers.proof("mine").outcome == "more"


def test_a_run_without_language_models_says_so():
    planted(recipes={"mnist vit": RECIPES["mnist vit"]})
    assert transformers.language("mine").outcome == "not measured" and transformers.recipe("mine").outcome == "some"
    assert (
        transformers.turning("mine").outcome == "lower, lower, lower" and "," not in transformers.tenth("mine").outcome
    )
    with house_style():
        assert len(transformers.along_the_line("mine").axes) == 1
        assert len(transformers.barriers_by_way("mine").axes) == 1


def test_the_claims_are_decided_by_their_rules():
    planted(tenth=3.0)
    decided = {claim.id: claim for claim in decide("mine", ["T1", "T2", "T3", "T4", "T5"])}
    assert {name: claim.verdict for name, claim in decided.items()} == {
        "T1": "replicated", "T2": "replicated", "T3": "not replicated", "T4": "replicated", "T5": "replicated",
    }  # fmt: skip
    assert decided["T2"].condition("language_weights").effect.mean == pytest.approx(0.4)
    assert decided["T4"].condition("vit").unit == "points"
    planted(HEIGHTS | {"learned_heads": 0.001})
    (zero,) = decide("mine", ["T3"])
    assert zero.verdict == "replicated" and zero.condition("vit").unit == "nats"
    planted(pairs=7)
    assert {claim.verdict for claim in decide("mine", ["T1", "T2", "T3", "T4"])} == {"too few"}


def test_tables_have_a_row_for_every_network_and_way():
    planted()
    table = transformers.barriers_table("mine")
    assert len(table) == len(transformers.lines_table("mine")) == 3 * len(WAYS)
    row = table[(table["networks"] == "MNIST, ViT, 2 blocks") & (table["brought together"] == "by weights")].iloc[0]
    assert row["loss (nats)"].startswith("0.8") and row["accuracy (points)"].startswith("8.") and row["n"] == "8"
    lines = transformers.lines_table("mine")
    assert lines.iloc[0]["halfway (%)"].startswith("74.9") or lines.iloc[0]["halfway (%)"].startswith("75.0")


def test_half_a_line_is_either_half():
    planted()
    lines = transformers.results.read("mine", "transformers", "lines")
    lines.loc[lines["lam"] == 0.9, "value"] = 7.0
    halves = transformers.half_lines(lines, "mnist vit", "naive")
    assert halves.shape == (16, 6) and (halves[0.1] == 7.0).sum() == 8
    assert np.allclose(halves[0.5], [2.1, 2.11] * 8)


@pytest.mark.parametrize("phone", [False, True])
def test_lines_are_named_where_they_end(phone):
    planted()
    with house_style(phone=phone):
        figure = transformers.along_the_line("mine")
        named = [text.get_text() for text in figure.axes[0].texts]
    drawn = [name for name, way in WAYS.items() if way.curve is not None]
    assert named == [WAYS[name].curve.title for name in sorted(drawn, key=HEIGHTS.get)]
    assert [axes.get_title("left") for axes in figure.axes] == [
        "MNIST, ViT, 2 blocks", "CIFAR-10, ViT, 2 blocks", "torch's docs, language model"
    ]  # fmt: skip


def test_all_ways_stand_in_one_figure():
    planted()
    with house_style():
        axes = transformers.barriers_by_way("mine").axes[0]
        assert [text.get_text() for text in axes.texts] == [way.title for way in WAYS.values()]
