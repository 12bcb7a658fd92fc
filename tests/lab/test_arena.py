"""Any merging method is tried alike: what it makes is measured as defined, at the cost that the network really has."""

import inspect
import re
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import lab.contestants
from lab.bookkeeping import vocabulary
from lab.contestants import MENDINGS, METHODS, WITHOUT_GRAMS, Arena, Entry, contestants
from lab.contestants.arena import with_own_heads
from lab.contestants.whole import by_weights, matched_by_weights, repaired_by_task
from lab.images import Split
from lab.measures.arena import Tried, answers, scores, tried, try_method
from lab.measures.arena_attacks import SideBySide, under_attack
from lab.measures.attacks import suite, surviving
from lab.networks import build
from lab.tasks import halves, tasks_of
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin import Permutation, Slots, merge_hierarchical, trace
from rebasin.expanding.expanded import Expanded, expand_network
from rebasin.weights import stack, take

RECIPE = Recipe(architecture="mlp2", width=12, batch_size=64, learning_rate=0.003)
# Logits of order 10 from a few layers in float32, of weights whose sums were taken in another order.
ROUNDING = {"rtol": 1e-3, "atol": 1e-3}
AT_ANY_SIZE = ["zip", "zip_fitted", *(name for name in METHODS if name.startswith("pleas") and "tree" not in name)]
OF_MANY = ["hierarchy", "pleas_tree", "pleas_tree_refitted"]
SIZES = {1: (1.0, 2.0), 2: (1.0, 1.5, 2.0)}  # to try, by the number of heads


def trained(task, seed):
    return train(replace(RECIPE, seed=seed), task, 1, [4], "cpu").last


def arena_of(tasks, weights, splits):
    """An arena of these networks (1, ...) each, on 300 training images of each of the splits' tasks."""
    model = build("mlp2", tasks[0], 12).eval()
    seen = tuple(task.train.sample(300) for task in splits)
    parents = stack([take(one, 0) for one in weights])
    tests = tuple(task.test for task in splits)
    return Arena(model, trace(model, tasks[0].example), parents, seen, tests, other=splits[0].held_out.pixels)


@pytest.fixture(scope="module")
def apart(digits):
    """Two parents of two tasks, with a head each."""
    tasks = halves(digits)
    return arena_of(tasks, [trained(task, seed) for seed, task in enumerate(tasks)], tasks)


@pytest.fixture(scope="module")
def alike(digits):
    """The same parent twice: with one task and a shared head, and as if there were two tasks."""
    task = halves(digits)[0]
    weights = trained(task, 0)
    return {heads: arena_of([task], [weights] * 2, [task] * heads) for heads in (1, 2)}


def logits_of(arena, parent, images):
    with torch.no_grad():
        return functional_call(arena.model, take(arena.parents, parent), (images,))


def test_the_scores_of_the_ensemble_are_those_of_a_plain_computation(apart):
    reached = try_method(apart, METHODS["ensemble"], 2.0)["none"]
    rows = {(task, metric): value for task, metric, value in scores(reached, apart.test)}
    right, losses = [], []
    for task, split in enumerate(apart.test):
        likeliest = []
        for parent in range(2):
            exponentials = np.exp(logits_of(apart, parent, split.pixels).numpy().astype(float))
            likeliest.append(exponentials / exponentials.sum(1, keepdims=True))
        answer = np.concatenate(likeliest, 1).argmax(1)
        right += list(answer == split.labels.numpy() + 5 * task)
        own = likeliest[task]
        losses += list(-np.log(own[np.arange(len(own)), split.labels]))
        assert rows[str(task), "accuracy"] == pytest.approx((own.argmax(1) == split.labels.numpy()).mean())
    assert rows["joint", "accuracy"] == pytest.approx(np.mean(right))
    assert rows["joint", "loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_confidence_is_that_of_the_answer_in_its_head():
    """Of two images, one is answered rightly with a confidence of .9, the other wrongly with .8."""
    odds = [[9, 1, 1, 1], [1, 1, 4, 1]]
    test = tuple(Split(torch.zeros(1, 1, 2, 2), torch.tensor([label])) for label in (0, 1))
    reached = Tried([torch.tensor([row]).float().log() for row in odds], 1.0, 1.0, 1.0, 0.0, False)
    rows = {(task, metric): value for task, metric, value in scores(reached, test)}
    assert rows["joint", "accuracy"] == 0.5
    assert rows["joint", "calibration_error"] == pytest.approx((0.1 + 0.8) / 2)
    # One head of all classes has one softmax.
    rows = {row[:2]: row[2] for row in scores(replace(reached, one_head=True), test)}
    assert rows["joint", "calibration_error"] == pytest.approx(((1 - 9 / 12) + 4 / 7) / 2)
    assert rows["joint", "loss"] == pytest.approx(-(np.log(9 / 12) + np.log(1 / 7)) / 2)


# Those that make no merge, or one that has learned, or none of networks without norms.
NOT_ALIKE = ("parent", "head", "distilled", "pleas_folded")


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*NOT_ALIKE, *OF_MANY)])
def test_two_identical_parents_merge_into_the_parent_by_every_method(alike, heads, method):
    """On images that were seen: of a unit that is silent there, least squares and statistics know nothing."""
    arena = alike[heads]
    images = arena.train[0].pixels
    expected = torch.cat([logits_of(arena, 0, images)] * heads, 1)
    entries = [entry for size in SIZES[heads] if (entry := METHODS[method](arena, size)) is not None]
    own = {1.0, 1.5, 2.0} if method in AT_ANY_SIZE else {2.0} if method == "ensemble" else {1.0}
    if method == "pleas_linear" or (method == "weights_refitted" and heads == 2):
        own -= {1.0}  # nothing to choose, and a method for one head
    assert len(entries) == len(own.intersection(SIZES[heads]))
    for entry in entries:
        for mended, mending in MENDINGS.items():
            other = mending(arena, entry)
            if other is not None:
                with torch.no_grad():
                    assert torch.allclose(other.network(images), expected, **ROUNDING), mended


def test_heads_stand_in_the_order_of_the_parents(apart):
    reached = try_method(apart, METHODS["ensemble"], 2.0)["none"]
    for task, split in enumerate(apart.test):
        for parent in range(2):
            own = reached.logits[task][:, 5 * parent : 5 * parent + 5]
            torch.testing.assert_close(own, logits_of(apart, parent, split.pixels), **ROUNDING)


def test_an_average_with_the_parents_heads_is_the_expanded_network_of_its_permutation(apart):
    entry, permutation = matched_by_weights(apart, 1), by_weights(apart)
    assert not torch.equal(*permutation.flat[next(iter(permutation.flat))])
    slots = Slots.of_permutation(permutation)
    network = expand_network(slots, apart.model, apart.parents, example=apart.example, heads="side by side")
    images = apart.test[1].pixels
    with torch.no_grad():
        torch.testing.assert_close(entry.network(images), network(images), **ROUNDING)
    assert entry.structured == pytest.approx(network.size)


def test_pleas_at_full_size_is_the_ensemble(apart):
    """On images that were seen: units that are silent there may be merged, as that costs nothing."""
    images = apart.inputs
    ensemble, merge = METHODS["ensemble"](apart, 2.0), METHODS["pleas"](apart, 2.0)
    with torch.no_grad():
        torch.testing.assert_close(merge.network(images), ensemble.network(images), **ROUNDING)


@pytest.mark.parametrize("method", ["zip", "zip_fitted", "pleas", "pleas_weights", "pleas_linear"])
def test_a_merge_costs_what_its_blocks_have_and_no_more_than_was_asked(apart, method):
    entry = METHODS[method](apart, 1.4)
    assert isinstance(entry.network, Expanded)
    parent = sum(tensor.numel() for tensor in apart.model.parameters() if tensor.ndim == 2)
    multiplied = sum(tensor.numel() for tensor in entry.network.parameters() if tensor.ndim == 2)
    assert entry.structured == pytest.approx(multiplied / parent)
    assert entry.structured <= 1.4 + 1e-9
    # Another unit apart would cost at most a row of the input, both ends of the next layer, and of its own.
    assert entry.structured > 1.4 - (64 + 2 * 12) / parent or method.startswith("zip")


def test_repair_by_task_gives_each_task_the_means_of_its_own_parent(apart):
    entry = METHODS["mean"](apart, 1)
    mended = repaired_by_task(apart, entry)
    for task, weights in enumerate(mended.network.weights):
        pixels = apart.train[task].pixels.flatten(1)
        own = take(apart.parents, task)
        answers_of = [(pixels @ one["layer1.weight"].T + one["layer1.bias"]).mean(0) for one in (weights, own)]
        torch.testing.assert_close(*answers_of, **ROUNDING)
        torch.testing.assert_close(weights["layer3.weight"], own["layer3.weight"])
    assert mended.structured == 2.0


def test_a_new_head_is_one_of_all_classes_and_better_than_the_parent_that_knows_half(apart):
    floor, head = (try_method(apart, METHODS[name], 1.0)["none"] for name in ("parent", "head"))
    accuracy = [{row[:2]: row[2] for row in scores(one, apart.test)}["joint", "accuracy"] for one in (floor, head)]
    assert accuracy[0] < 0.52 < 0.6 < accuracy[1]
    assert head.one_head and not floor.one_head
    assert not floor.logits[0][:, 5:].any()


def test_batch_norms_are_reset_in_whatever_was_not_fitted():
    """Networks of random weights, whose statistics are none of theirs: after the reset, units have mean 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    parents = [{key: torch.rand_like(t.float()).to(t) for key, t in model.state_dict().items()} for _ in range(2)]
    split = Split(torch.randint(0, 256, (80, 1, 4, 4), dtype=torch.uint8), torch.arange(80) % 3)
    example = split.pixels[:2]
    arena = Arena(model.eval(), trace(model, example), stack(parents), (split, split), (split, split))
    for name, size in (("parent", 1.0), ("ensemble", 2.0), ("mean", 1.0)):
        network = MENDINGS["reset"](arena, METHODS[name](arena, size)).network
        for weights in network.weights:
            given = functional_call(model[:2], {key: t for key, t in weights.items() if key < "2"}, (split.pixels,))
            centre = (given.mean((0, 2, 3)) - weights["1.bias"]).abs().max()
            assert centre < 1e-4, name
    assert list(try_method(arena, METHODS["mean"], 1.0)) == ["none", "reset", "repair", "repair by task"]
    assert list(try_method(arena, METHODS["pleas"], 1.0)) == ["none"]


def test_every_method_and_mending_has_a_name_for_readers():
    assert list(vocabulary.CONTESTANTS) == list(METHODS)
    assert set(MENDINGS) <= set(vocabulary.MENDINGS)


def first_layers_only(arena, size):
    if size != 1:
        return None
    parents = matched_by_weights(arena, 1).parents
    merged = {key: tensor.mean(0) if "layer1" in key else tensor[0] for key, tensor in parents.items()}
    identity = Permutation.identity(arena.spec, (arena.n,))
    network = with_own_heads(arena, (merged,), parents)
    return Entry(network, **arena.sizes(Slots.of_permutation(identity)), weights=merged, parents=parents)


def test_the_readers_own_method_is_the_one_that_the_doc_shows():
    assert textwrap.indent(inspect.getsource(first_layers_only), "    ") in lab.contestants.__doc__


def test_a_method_of_the_readers_own_joins_as_one_function_and_is_mended_too(apart):
    reached = try_method(apart, first_layers_only, 1.0)
    assert list(reached) == ["none", "repair", "repair by task"]  # there are no norms to be reset
    assert try_method(apart, first_layers_only, 1.5) == {}
    assert tried.path(apart, first_layers_only, 1.0).exists()
    # One that stands in a notebook, whose code cannot be told, is tried each time.
    again = try_method(apart, lambda arena, size: first_layers_only(arena, size), 1.0)
    assert torch.equal(again["repair"].logits[1], reached["repair"].logits[1])


def test_what_is_kept_is_what_was_computed(apart):
    first, second = (try_method(apart, METHODS["correlation"], 1.0) for _ in range(2))
    assert first["repair"].seconds == second["repair"].seconds
    entry = METHODS["correlation"](apart, 1.0)
    assert torch.equal(first["none"].logits[0], answers(entry.network, apart.test[0], apart.batch))


def test_networks_and_tasks_that_do_not_fit_are_refused(apart, digits):
    parts = {name: getattr(apart, name) for name in ("model", "spec", "parents", "train", "test")}
    bad = {
        "two parents or more are merged, (n, ...)": {"parents": take(apart.parents, slice(1))},
        "2 parents have one task, or a task each: there are 1 training splits and 2 test splits": {
            "train": apart.train[:1]
        },
        "task 0 has the label 9, the parents 5": {"train": (digits.train,), "test": (digits.test,)},
        "task 1 has 0 test images": {"test": (apart.test[0], digits.test.sample(0))},
    }
    for message, changed in bad.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            Arena(**{**parts, **changed})
    with pytest.raises(ValueError, match="unknown method 'plaes': there are parent, ensemble"):
        contestants(["pleas", "plaes"])
    with pytest.raises(ValueError, match="tasks are halves, whole, coded, tuned, tuned alike, not 'thirds'"):
        tasks_of(digits, "thirds")
    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        answers(lambda x: x.flatten(1) * float("nan"), apart.test[0], 100)


@pytest.fixture(scope="module")
def four(digits):
    """Four parents of one task."""
    weights = train(RECIPE, digits, 4, [4], "cpu").last
    model = build("mlp2", digits, 12).eval()
    return Arena(model, trace(model, digits.example), weights, (digits.train.sample(300),), (digits.test,))


@pytest.mark.parametrize(("of_two", "tree"), [("pleas", "pleas_tree"), ("pleas_refitted", "pleas_tree_refitted")])
def test_a_tree_merges_pairs_and_then_their_merges(four, of_two, tree):
    pairs = [take(four.parents, slice(at, at + 2)) for at in (0, 2)]
    halves_of_four = [replace(four, parents=pair) for pair in pairs]
    merged = stack([METHODS[of_two](half, 1.0).network.weights for half in halves_of_four])
    expected = METHODS[of_two](replace(four, parents=merged), 1.0).network
    network = METHODS[tree](four, 1.0).network
    with torch.no_grad():
        torch.testing.assert_close(network(four.inputs), expected(four.inputs), **ROUNDING)


def test_the_hierarchy_is_that_of_the_library(four):
    entry = METHODS["hierarchy"](four, 1.0)
    expected = merge_hierarchical(four.spec, four.parents).weights
    for key, tensor in expected.items():
        torch.testing.assert_close(entry.weights[key], tensor)


def test_under_attack_survives_what_the_attacks_leave_of_the_merge(four):
    shares = under_attack(four, METHODS["weights"], 1.0, 40, [0, 8], 3)
    assert set(shares) == {"none", "repair"}
    entry, split = METHODS["weights"](four, 1.0), four.test[0].sample(40)
    right = answers(entry.network, split, 40).argmax(1) == split.labels
    assert shares["none"][0] == pytest.approx(right.double().mean().item())
    radii, worst = [0, 8 / 255], torch.ones(2, 40).bool()
    for _, attack in suite(("cross_entropy", "margin"), steps=3):
        worst &= surviving(four.model, stack([entry.weights]), split.pixels, split.labels, radii, attack, 0, "cpu", 1)[
            0
        ]
    assert shares["none"] == worst.double().mean(-1).tolist()
    # What was fitted is attacked by its dense weights; what makes no merge of one network's size is not.
    assert set(under_attack(four, METHODS["pleas"], 1.0, 40, [0], 1)) == {"none"}
    assert under_attack(four, METHODS["pleas"], 1.5, 40, [0], 1) == {}
    assert under_attack(four, METHODS["ensemble"], 4.0, 40, [0], 1) == {}


@pytest.mark.parametrize(
    ("method", "size", "mended"),
    [
        ("weights", 1.0, {"none", "repair", "repair by task"}),
        ("pleas", 1.0, {"none"}),
        ("pleas_refitted", 1.5, {"none"}),
        ("head", 1.0, {"none"}),
        ("ensemble", 2.0, {"none"}),
    ],
)
def test_both_heads_are_attacked_together(apart, method, size, mended):
    shares = under_attack(apart, METHODS[method], size, 60, [0, 8], 5)
    assert set(shares) == mended
    splits = tuple(split.sample(60) for split in apart.test)
    for kind, reached in try_method(replace(apart, test=splits), METHODS[method], size).items():
        if kind in mended:
            task, metric, accuracy = scores(reached, splits)[0]
            assert (task, metric) == ("joint", "accuracy")
            assert shares[kind][0] == pytest.approx(accuracy), "without an attack it is the joint accuracy"
            assert shares[kind][1] < shares[kind][0]


def test_an_attack_goes_through_the_head_of_the_other_task():
    """The right head answers alike whatever it sees; the other one grows surer the brighter the image."""
    own, other = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    for network, weight, bias in ((own, [0.0, 0.0], [2.0, 0.0]), (other, [10.0, 0.0], [-4.0, 0.0])):
        head = {"1.weight": torch.tensor(weight).unsqueeze(1), "1.bias": torch.tensor(bias)}
        network.load_state_dict(head)
    heads = SideBySide([own, other], 2).eval()
    image, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    torch.testing.assert_close(heads(image).exp(), torch.tensor([[[2.0, 0.0], [1.0, 0.0]]]).softmax(-1).flatten(1))
    # The other head is as sure as the right one where 10 x - 4 = 2, at x = 0.6.
    for _, attack in suite(("margin",), steps=5):
        survives = surviving(heads, stack([heads.state_dict()]), image, label, [0, 0.05, 0.15], attack, 0, "cpu", 1)
        assert survives.flatten().tolist() == [True, True, False]


def test_two_are_no_tree(apart):
    for method in OF_MANY:
        assert METHODS[method](apart, 1.0) is None


@pytest.mark.parametrize("method", sorted(WITHOUT_GRAMS))
def test_methods_that_are_said_to_do_without_gram_matrices_do(four, method):
    arena = replace(four)
    for size in (1.0, 4.0):
        entry = METHODS[method](arena, size)
        if entry is not None:
            for mending in MENDINGS.values():
                mending(arena, entry)
    assert "timed_grams" not in vars(arena)
