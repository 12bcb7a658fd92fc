"""Pairs of MNIST networks: what is matched is the same function, barriers are what was planted, sentences turn."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from planting import clean, digits, plant
from torch.func import functional_call

from lab.bookkeeping import results
from lab.bookkeeping.notebook import execute
from lab.measures import matched
from lab.measures.matched import ALGORITHMS, permuted
from lab.measures.paths import PATH, barriers, walk
from lab.networks import build
from lab.report import mnist_chapter, mnist_figures
from lab.report import page as report
from lab.report.claims import NOT_REPLICATED, REPLICATED, decide
from lab.report.draw import themed
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.pairs import inner_product
from rebasin.permutation import Permutation
from rebasin.tracing import trace

MATCHERS = ALGORITHMS[1:]


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two trained networks, and two copies of them with their units planted elsewhere: a, b of (2, ...) each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = Recipe("mlp", 16, 64, 3e-3, initial="lecun_normal")
        a = {key: tensor[0] for key, tensor in train(recipe, digits(), 2, (5,)).weights.items()}
    model = build("mlp", digits(), 16)
    spec = trace(model, digits().example)
    return model, a, Permutation.random(spec, (2,), torch.Generator().manual_seed(3)).apply(a)


def matched_by(algorithm, pair, key="planted", epochs=1, chunk=2):
    model, a, b = pair
    return permuted(algorithm, model, a, b, digits().train, key, 0, epochs, 200, "cpu", chunk)


@pytest.mark.parametrize("algorithm", MATCHERS)
def test_every_matcher_finds_the_units_that_were_moved(pair, algorithm):
    model, a, _ = pair
    found = matched_by(algorithm, pair)
    x = digits().train.images[:200].float() / 255
    for one in range(2):
        # Units that never answer cannot be told apart by their activations, and do no harm.
        middle = {key: (a[key][one] + found[key][one]) / 2 for key in a}
        first = {key: a[key][one] for key in a}
        torch.testing.assert_close(
            functional_call(model, middle, (x,)), functional_call(model, first, (x,)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_matched_computes_what_it_did(pair, algorithm):
    model, a, _ = pair
    other = {key: tensor.flip(0) for key, tensor in a.items()}
    found = matched_by(algorithm, (model, a, other), key="others")
    x = digits().test.images[:20].float() / 255
    for one in range(2):
        before, after = (functional_call(model, {k: t[one] for k, t in w.items()}, (x,)) for w in (other, found))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_weights_are_matched_as_the_library_matches_them_and_closer_than_by_activations(pair):
    model, a, _ = pair
    other = {key: tensor.flip(0) for key, tensor in a.items()}
    spec = trace(model, digits().example)
    alone = weight_matching(spec, a, other).objective
    by_weights, by_activations = (
        inner_product(spec, a, matched_by(name, (model, a, other), key="others")) for name in ("weights", "activations")
    )
    torch.testing.assert_close(by_weights, alone)
    assert (by_weights > by_activations).all()


def test_a_killed_run_goes_on_after_the_pairs_that_it_has(pair, monkeypatch):
    whole = matched_by("straight-through", pair, chunk=1)
    asked = []
    real = matched.straight_through_matching

    def interrupted(*args, **options):
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(matched, "straight_through_matching", interrupted)
    with pytest.raises(KeyboardInterrupt):
        matched_by("straight-through", pair, key="killed", chunk=1)
    again = matched_by("straight-through", pair, key="killed", chunk=1)
    assert len(asked) == 3, "the first pair was kept"
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    matched_by("straight-through", pair, key="killed", epochs=2, chunk=1)
    assert len(asked) == 5, "another number of epochs is another matching"


def test_an_algorithm_that_is_not_there_is_named(pair):
    with pytest.raises(ValueError, match="unknown algorithm 'weight': there are naive, activations, weights"):
        matched_by("weight", pair)


def path(loss, accuracy, algorithm="weights", epochs=100, node=0, split="test"):
    """A planted path over three points."""
    rows = [
        (algorithm, epochs, node, 2, split, lam, metric, value)
        for metric, values in (("loss", loss), ("accuracy", accuracy))
        for lam, value in zip((0.0, 0.5, 1.0), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*PATH, "lam", "metric", "value"])


def test_barriers_are_those_that_were_planted():
    found = barriers(path((0.1, 0.7, 0.3), (0.9, 0.5, 0.8))).set_index("metric")["value"]
    assert found.to_dict() == pytest.approx(
        {
            "loss_barrier": 0.5, "loss_above_line": 0.5, "loss_gain": -0.6,
            "accuracy_barrier": 0.35, "accuracy_above_line": 0.35,
        }
    )  # fmt: skip


def test_a_path_without_a_barrier_has_half_its_ends_gap_and_nothing_above_the_line():
    found = barriers(path((0.1, 0.05, 0.3), (0.9, 0.95, 0.8))).set_index("metric")["value"]
    assert found.to_dict() == pytest.approx(
        {
            "loss_barrier": 0.1, "loss_above_line": 0.0, "loss_gain": 0.05,
            "accuracy_barrier": 0.05, "accuracy_above_line": 0.0,
        }
    )  # fmt: skip


def test_paths_of_many_pairs_and_matchers_keep_apart():
    table = pd.concat(
        [
            path((0.0, height, 0.0), (1.0, 1 - height, 1.0), algorithm, epochs, node, split)
            for algorithm, epochs, node, split, height in (
                ("weights", 1, 0, "test", 0.1),
                ("weights", 1, 1, "test", 0.2),
                ("naive", 1, 0, "test", 0.3),
                ("weights", 9, 0, "test", 0.4),
                ("weights", 9, 0, "train", 0.5),
            )
        ]
    )
    found = barriers(table.sample(frac=1, random_state=0))
    assert len(found) == 5 * 5
    assert not found.duplicated([*PATH, "metric"]).any()
    loss = found[found["metric"] == "loss_barrier"].set_index(PATH)["value"]
    assert loss["weights", 1, 1, 2, "test"] == pytest.approx(0.2)
    assert loss["weights", 9, 0, 2, "train"] == pytest.approx(0.5)


def test_a_path_that_misses_the_midpoint_is_refused():
    table = path((0.1, 0.7, 0.3), (0.9, 0.5, 0.8)).replace({"lam": {0.5: 0.4}})
    with pytest.raises(ValueError, match="take an odd number"):
        barriers(table)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mnist_models": 5}, "pairs need an even number of models, got 5"),
        ({"barrier_points": 24}, "has an odd number of points from 3, got 24"),
    ],
)
def test_what_makes_no_pairs_or_no_midpoint_is_refused_before_anything_is_trained(changed, message, monkeypatch):
    monkeypatch.setattr("lab.training.train.train", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        execute("mnist", changed)


def test_a_walk_is_made_of_plain_forward_passes(pair):
    model, a, b = pair
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


HEIGHTS = {"naive": 0.9, "activations": 0.002, "weights": 0.001, "straight-through": 0.001}


@functools.cache
def mnist_begun(epochs):
    given = {"run": "mine", "mnist_epochs": [1, epochs]}
    return clean(results.begin("mnist", results.declared_parameters("mnist") | given))


def plant_mnist(heights=HEIGHTS, pairs=8, early=0.6, gain=0.01, epochs=100):
    """Let a run have the tables of notebooks/mnist.ipynb, with barriers a little different from pair to pair."""
    rows = []
    for node in range(pairs):
        small = 1e-5 * node
        for algorithm, height in heights.items():
            for split in ("train", "test"):
                of = {"loss_barrier": height, "loss_above_line": height, "loss_gain": gain}
                of |= {"accuracy_barrier": height, "accuracy_above_line": height}
                rows += [(algorithm, epochs, node, 2, split, metric, value + small) for metric, value in of.items()]
        for algorithm in ("naive", "weights"):
            for metric in ("loss_barrier", "accuracy_barrier"):
                rows.append((algorithm, 1, node, 2, "test", metric, early + 2 * small))
    table = pd.DataFrame(rows, columns=[*PATH, "metric", "value"])
    paths = pd.concat(
        path((0.1, 0.1 + height, 0.1), (0.98, 0.98 - height, 0.98), algorithm, epochs, node, split)
        for algorithm, height in heights.items()
        for split in ("train", "test")
        for node in range(pairs)
    )
    results.finish(mnist_begun(epochs), digits(), {"paths": paths, "barriers": table}, models="planted")


@pytest.mark.parametrize(
    ("changes", "pairs", "opening"),
    [
        ({}, 8, "<strong>All three matchers remove the barrier in loss</strong>, as the paper says: 0.900 ["),
        (
            dict.fromkeys(MATCHERS, 0.3),
            8,
            "<strong>No matcher removes the barrier in loss</strong>, against the paper: 0.900 [",
        ),
        (
            {"activations": 0.05},
            8,
            "<strong>The barrier in loss between two digits networks is gone once they are matched by weights and "
            "straight through; it is still there once they are matched by activations</strong>: ",
        ),
        (
            dict.fromkeys(MATCHERS, 0.02 - 3.5e-5),
            8,
            "<strong>Whether any matcher removes the barrier in loss is not decided</strong>: ",
        ),
        (
            {},
            7,
            "<strong>This run has too few pairs to say whether matching removes the barrier in loss</strong> "
            "(n = 7, 8 are needed): ",
        ),
        (
            dict.fromkeys(MATCHERS, 0.3),
            3,
            "<strong>This run has too few pairs to say whether matching removes the barrier in loss</strong> "
            "(n = 3, 8 are needed): 0.900 nats of test loss between two digits networks as they are, and, once "
            "matched, 0.300 by weights, 0.300 by activations and 0.300 straight through (n = 3 pairs, 100 "
            "epochs; zero means under 0.02).",
        ),
    ],
    ids=["all", "none", "some", "open", "seven pairs", "three pairs"],
)
def test_the_finding_turns_with_the_barriers(changes, pairs, opening):
    plant_mnist(HEIGHTS | changes, pairs)
    assert mnist_chapter.findings()["loss"].startswith(opening)


@pytest.mark.parametrize(
    ("height", "opening"),
    [
        (0.004, "<strong>All three matchers remove the barrier in accuracy</strong>: 90.00 ["),
        (0.006, "<strong>No matcher removes the barrier in accuracy</strong>: 90.00 ["),
    ],
)
def test_a_barrier_in_accuracy_is_told_in_points_and_is_no_claim_of_the_paper(height, opening):
    plant_mnist(HEIGHTS | dict.fromkeys(MATCHERS, height))
    assert mnist_chapter.findings()["accuracy"].startswith(opening)


@pytest.mark.parametrize(
    ("gain", "pairs", "opening"),
    [
        (0.01, 8, "The midpoint of {} has a lower test loss than both, as the paper says"),
        (-0.01, 8, "The midpoint of {} has no lower test loss than both, against the paper"),
        (-3.5e-5, 8, "Whether the midpoint of {} has a lower test loss than both is not decided"),
        (0.01, 3, "So few pairs do not decide whether the midpoint has a lower test loss than both its ends"),
    ],
)
def test_the_midpoint_is_told_whichever_way_it_comes_out(gain, pairs, opening):
    plant_mnist(HEIGHTS | {"weights": 0.01}, gain=gain, pairs=pairs)
    found = mnist_chapter.findings()["midpoint"]
    assert found.startswith(f"<strong>{opening.format('two digits networks matched by weights')}</strong>: ")
    # On the way the networks lose 0.01 of their 0.98.
    assert "midpoint's test accuracy less the better end's is −1.00" in found and "the ends have 98.00" in found


def test_straight_through_matching_that_only_repeats_the_weights_is_said_to():
    plant_mnist()
    kept = "In 8 of 8 pairs it ends with the permutation that matching by weights finds."
    assert mnist_chapter.findings()["straight_through"].endswith(kept)
    plant_mnist(HEIGHTS | {"straight-through": 0.0011})
    assert " In 0 of 8 pairs it ends with" in mnist_chapter.findings()["straight_through"]


@pytest.mark.parametrize(
    ("early", "pairs", "opening"),
    [
        (0.6, 8, "The barrier falls with training, as the paper says"),
        (0.0, 8, "The barrier rises with training, against the paper"),
        (0.001 - 3.5e-5, 8, "Whether the barrier falls with training is not decided"),
        (0.6, 3, "So few pairs do not decide whether the barrier falls with training"),
    ],
)
def test_what_training_does_is_told_whichever_way_it_comes_out(early, pairs, opening):
    plant_mnist(early=early, pairs=pairs)
    assert mnist_chapter.findings()["epochs"].startswith(f"<strong>{opening}</strong>: ")


def test_one_time_of_training_tells_nothing_of_others():
    plant_mnist()
    barriers = results.read("mine", "mnist", "barriers")
    told = mnist_chapter.epochs_finding(barriers[barriers["epochs"] == 100])
    assert told == "Of this run there are networks of 100 epochs alone, which tell nothing of training."


def test_claims_are_decided_on_these_tables():
    plant_mnist(HEIGHTS | {"activations": 0.1})
    verdicts = {claim.id: claim for claim in decide("mine")}
    assert [c.verdict for c in verdicts["G1"].conditions] == [REPLICATED, NOT_REPLICATED, REPLICATED]
    assert verdicts["G8"].verdict == REPLICATED
    assert [c.verdict for c in verdicts["G6"].conditions] == [REPLICATED]


def test_tables_tell_the_papers_numbers_beside_ours():
    plant_mnist()
    table = mnist_chapter.barriers_table("mine")
    assert list(table["images"]) == ["test"] * 4 + ["train"] * 4
    assert table["the paper"].tolist()[:4] == ["–", "zero, a little worse than the others", "zero", "zero"]
    assert table["barrier in loss"][0].startswith("0.900 [") and table["barrier in accuracy"][0].startswith("90.00 [")
    table = mnist_chapter.epochs_table("mine")
    assert table["epochs"].tolist() == [1, 100]
    assert table["the paper's"].tolist() == ["about 0.6", "–"]


def test_how_long_straight_through_matching_was_is_told():
    theirs = {"straight_through_epochs": 250, "straight_through_batch_size": 1000}
    assert mnist_chapter.straight_through_note(theirs).endswith("250 times, in batches of 1000: as often as theirs.")
    short = theirs | {"straight_through_epochs": 5}
    assert mnist_chapter.straight_through_note(short).endswith("5 times, in batches of 1000: 2 % of their epochs.")


def test_the_figures_are_drawn_of_few_pairs_and_of_many():
    for pairs in (1, 8):
        plant_mnist(pairs=pairs)
        tables = {name: results.read("mine", "mnist", name) for name in ("paths", "barriers")}
        shown = themed(lambda t=tables: mnist_figures.along_the_line(t["paths"]), "alt").data
        shown += themed(lambda t=tables: mnist_figures.barrier_by_epoch(t["barriers"]), "alt").data
        assert shown.count("<img") == 4


def test_a_book_without_these_tables_says_so():
    plant("mine", {"nodes": pd.DataFrame({"value": np.zeros(1)})})
    assert mnist_chapter.findings()["loss"] == "Not run yet."
    assert set(mnist_chapter.findings().values()) == {"Not run yet.", ""}
    assert report.tabs("mnist", mnist_chapter.barriers_table).data == "<p>Not run yet.</p>"
