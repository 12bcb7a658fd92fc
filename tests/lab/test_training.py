"""Stacked training is a plain loop's; it resumes, and is not done twice; evaluation counts what a plain loop counts."""

import errno
import math
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lab import device
from lab.bookkeeping import cache
from lab.bookkeeping.same_code import cache_folder
from lab.data import load
from lab.images import Split
from lab.networks import build
from lab.outputs import evaluate
from lab.training import stack
from lab.training import train as training
from lab.training.recipe import Recipe, images_seen, share_of_rate
from lab.training.stack import snapshot, start, train_epoch
from lab.training.train import train

TINY = Recipe(width=16, batch_size=256)  # five batches an epoch
BATCH_NORM = Recipe(
    "resnet20_bn", 2, 256, 0.05, 5e-4, optimiser="sgd", schedule="cosine", schedule_epochs=5, warmup_epochs=1
)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """``fresh_cache()`` forgets what was trained before."""
    numbers = count()
    return lambda: monkeypatch.setenv("REBASIN_CACHE", str(tmp_path / f"cache{next(numbers)}"))


@pytest.fixture
def orders(monkeypatch):
    """The batch orders that training draws: one for each model and epoch, in the order it draws them."""
    drawn = []

    def randperm(*args, **kwargs):
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", randperm)
    return drawn


def one(trained, snapshot, model):
    return {key: tensor[snapshot, model] for key, tensor in trained.weights.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("chunk", [2, 3])
def test_models_trained_side_by_side_are_those_trained_alone(digits, fresh_cache, chunk):
    alone = train(TINY, digits, 3, (2,), "cpu")
    fresh_cache()
    stacked = train(TINY, digits, 3, (2,), "cpu", chunk)
    # Batched and single float32 products round differently; ten steps of Adam amplify that a little.
    torch.testing.assert_close(stacked.loss, alone.loss, rtol=0, atol=1e-4)
    for key, tensor in alone.weights.items():
        torch.testing.assert_close(stacked.weights[key], tensor, rtol=0, atol=1e-3)


def test_a_model_does_not_depend_on_how_many_others_there_are(digits, fresh_cache):
    many = train(TINY, digits, 3, (1,), "cpu")
    fresh_cache()
    few = train(TINY, digits, 1, (1,), "cpu")
    assert same(one(few, 0, 0), one(many, 0, 0))
    assert torch.equal(few.loss[0], many.loss[0])


def test_each_model_has_its_own_start(digits):
    # At a learning rate of zero the trained weights are the initial ones.
    still = train(Recipe(width=16, batch_size=256, learning_rate=0.0), digits, 3, (1,), "cpu")
    starts = still.weights["layer1.weight"][0]
    for i in range(3):
        for j in range(i):
            # Unrelated starts: the correlation of 1024 pairs of numbers has a deviation of 0.03.
            assert torch.corrcoef(torch.stack([starts[i].flatten(), starts[j].flatten()]))[0, 1].abs() < 0.15


def test_each_model_has_its_own_batch_order_in_each_epoch(digits, orders):
    train(TINY, digits, 2, (3,), "cpu")
    assert len({tuple(order.tolist()) for order in orders}) == len(orders) == 6


def test_another_seed_gives_another_model(digits):
    other = Recipe(width=16, batch_size=256, seed=1)
    assert not same(one(train(TINY, digits, 1, (1,), "cpu"), 0, 0), one(train(other, digits, 1, (1,), "cpu"), 0, 0))


def test_no_two_models_epochs_or_seeds_share_their_random_numbers():
    keys = [(seed, number, purpose) for seed in range(4) for number in range(4) for purpose in range(4)]
    assert len({stack._seed(*key) for key in keys}) == len(keys)


def test_the_loss_falls_and_the_trained_models_recognise_digits(digits):
    trained = train(Recipe(width=32, batch_size=128, learning_rate=1e-2), digits, 2, (3,), "cpu", chunk=2)
    assert trained.loss.shape == (2, 3)
    assert (trained.loss.diff() < 0).all()
    evaluation = evaluate(build("mlp", digits, 32), {k: t[0] for k, t in trained.weights.items()}, digits.test)
    # Guessing gets 10 %, these three epochs about 90 %.
    assert (evaluation.correct.float().mean(1) > 0.75).all()


def test_the_recipe_says_how_the_weights_begin(digits):
    still = replace(TINY, learning_rate=0.0)
    torch_s = train(still, digits, 1, (1,), "cpu").weights
    lecun = train(replace(still, initial="lecun_normal"), digits, 1, (1,), "cpu").weights
    assert torch_s["layer1.bias"].any() and not lecun["layer1.bias"].any()
    # The deviations' ratio is sqrt 3; of 1024 weights each it is known to about 3 %.
    ratio = lecun["layer1.weight"].std() / torch_s["layer1.weight"].std()
    assert ratio.item() == pytest.approx(3**0.5, rel=0.15)


def test_models_of_a_data_set_with_images_held_out_see_only_the_others(digits, orders):
    whole = train(TINY, digits, 1, (1,), "cpu")
    orders.clear()
    parted = load("digits", 300)
    # Held-out images that would break every model they reached.
    broken = replace(parted, held_out=Split(parted.held_out.images, parted.held_out.labels + 1000))
    trained = train(TINY, broken, 1, (1,), "cpu")
    assert [len(order) for order in orders] == [1047], "one epoch of the images that are left"
    assert not same(one(trained, 0, 0), one(whole, 0, 0))


def test_sgd_and_batch_norm_stacked_are_those_of_a_plain_loop(digits, orders):
    trained = train(BATCH_NORM, digits, 2, (2,), "cpu", chunk=2)
    model = build("resnet20_bn", digits, 2)
    weights = {key: tensor[0] for key, tensor in trained.weights.items()}
    evaluation = evaluate(model, weights, digits.test, "cpu", chunk=2)
    starts = start(model, BATCH_NORM, [0, 1], "cpu")[0]
    for number in range(2):
        model.load_state_dict({key: tensor[number] for key, tensor in starts.items()})
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=False)
        model.train()
        picks = [picked for order in orders[number::2] for picked in order[:1280].split(256)]
        for step, picked in enumerate(picks):
            # Five steps of warm-up, 20 of a cosine, of which five are taken.
            share = step / 5 if step < 5 else (1 + math.cos(math.pi * (step - 5) / 20)) / 2
            sgd.param_groups[0]["lr"] = 0.05 * share
            sgd.zero_grad()
            cross_entropy(model(digits.train.images[picked].float() / 255), digits.train.labels[picked]).backward()
            sgd.step()
        for key, tensor in model.state_dict().items():
            # Float32 sums of another order, and ten steps that amplify that a little.
            torch.testing.assert_close(weights[key][number], tensor, rtol=0, atol=1e-3)
        assert weights["norm.num_batches_tracked"][number] == 10
        assert not torch.equal(weights["norm.running_mean"][number], torch.zeros(2))
        images, labels = digits.test.images.float() / 255, digits.test.labels
        alone = cross_entropy(model.eval()(images), labels, reduction="none").detach()
        torch.testing.assert_close(evaluation.loss[number], alone, rtol=0, atol=1e-2)
        by_batch = cross_entropy(model.train()(images), labels, reduction="none").detach()
        assert (evaluation.loss[number] - by_batch).abs().max() > 0.1, "these are not the running statistics"


def test_evaluating_between_batches_leaves_the_training_as_it_is(digits):
    trained = train(BATCH_NORM, digits, 1, (1,), "cpu")
    model = build("resnet20_bn", digits, 2)
    weights, optimiser = start(model, BATCH_NORM, [0], "cpu")
    for _ in train_epoch(model, BATCH_NORM, weights, optimiser, digits.train.images, digits.train.labels, [0], 0):
        evaluate(model, weights, digits.test, "cpu")
    assert all(torch.equal(weights[key].detach(), tensor[0]) for key, tensor in trained.weights.items())


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    cosine = replace(BATCH_NORM, schedule_epochs=9, warmup_epochs=1)
    shares = {epochs: share_of_rate(cosine, epochs) for epochs in (0, 0.25, 1, 3, 5, 9, 12)}
    # A quarter of the way down a cosine is (1 + cos 45 degrees) / 2.
    expected = {0: 0, 0.25: 0.25, 1: 1, 3: (1 + 0.5**0.5) / 2, 5: 0.5, 9: 0, 12: 0}
    assert shares == pytest.approx(expected, abs=1e-12)
    warm = replace(TINY, warmup_epochs=2)
    assert [share_of_rate(warm, epochs) for epochs in (0, 1, 2, 100)] == [0, 0.5, 1, 1]
    assert share_of_rate(TINY, 0) == share_of_rate(TINY, 50) == 1


HALF, SPLIT = replace(TINY, subset="half"), replace(TINY, subset="split")
VIEWS = replace(HALF, augmented=True)


def test_all_images_are_seen_unless_a_recipe_says_otherwise(digits):
    labels = digits.train.labels
    assert torch.equal(images_seen(TINY, labels, 3), torch.arange(len(labels)))


def test_a_half_is_a_half_and_each_models_own(digits):
    labels = digits.train.labels
    halves = [images_seen(HALF, labels, number) for number in range(6)]
    for number, half in enumerate(halves):
        assert len(half) == len(set(half.tolist())) == len(labels) // 2
        assert torch.equal(half, half.sort().values)
        for other in halves[:number]:
            # Of two independent halves of 1347 a quarter is shared, give or take 9 images.
            assert 290 < len(set(half.tolist()) & set(other.tolist())) < 384


def test_what_a_model_sees_depends_on_nothing_but_seed_and_number(digits):
    labels = digits.train.labels
    for recipe in (HALF, SPLIT):
        torch.manual_seed(1)
        first = images_seen(recipe, labels, 2)
        torch.manual_seed(2)
        images_seen(recipe, labels, 5)
        other = replace(recipe, architecture="vgg16_ln", width=64, batch_size=10, learning_rate=1.0, augmented=True)
        assert torch.equal(images_seen(other, labels, 2), first)
        assert not torch.equal(images_seen(replace(recipe, seed=1), labels, 2), first)
        assert not torch.equal(images_seen(recipe, labels, 4), first)


@pytest.mark.parametrize("pair", [0, 1, 5])
def test_an_even_and_the_next_odd_model_share_out_all_images_by_class(digits, pair):
    labels = digits.train.labels
    even, odd = (images_seen(SPLIT, labels, 2 * pair + i) for i in (0, 1))
    assert torch.equal(torch.cat([even, odd]).sort().values, torch.arange(len(labels)))
    for label in range(10):
        whole, seen = (int((some == label).sum()) for some in (labels, labels[even]))
        # Of each class, to the image: the next whole number where a fifth of it is none.
        assert seen == math.ceil(whole * (0.2 if label < 5 else 0.8) - 1e-9)


def test_of_an_odd_number_of_classes_the_middle_one_belongs_to_the_second_half():
    labels = torch.arange(5).repeat(10)
    assert torch.bincount(labels[images_seen(SPLIT, labels, 0)]).tolist() == [2, 2, 8, 8, 8]


def test_training_sees_no_other_images_than_those_of_its_subset(digits, orders):
    # A wrong label in what a model must not see would show in its loss.
    seen = images_seen(HALF, digits.train.labels, 0)
    broken = digits.train.labels.clone()
    broken[[i for i in range(len(broken)) if i not in set(seen.tolist())]] = -100_000
    trained = train(HALF, replace(digits, train=Split(digits.train.images, broken)), 1, (1,), "cpu")
    assert torch.isfinite(trained.loss).all()
    assert [len(order) for order in orders] == [len(digits.train.labels) // 2]
    assert same(one(train(HALF, digits, 1, (1,), "cpu"), 0, 0), one(trained, 0, 0))


@pytest.mark.parametrize("recipe", [HALF, SPLIT, VIEWS, replace(SPLIT, augmented=True)])
def test_models_of_a_subset_or_of_views_side_by_side_are_those_trained_alone(digits, fresh_cache, recipe):
    alone = train(recipe, digits, 4, (2,), "cpu")
    fresh_cache()
    stacked = train(recipe, digits, 4, (2,), "cpu", 4)
    torch.testing.assert_close(stacked.loss, alone.loss, rtol=0, atol=1e-4)
    for key, tensor in alone.weights.items():
        torch.testing.assert_close(stacked.weights[key], tensor, rtol=0, atol=1e-3)


def test_the_number_of_batches_does_not_depend_on_the_company(digits, fresh_cache):
    # 677 and 670 images: 16 batches of 42, and 15.
    recipe = replace(SPLIT, batch_size=42)
    alone = train(recipe, digits, 2, (1,), "cpu")
    fresh_cache()
    torch.testing.assert_close(train(recipe, digits, 2, (1,), "cpu", 2).loss, alone.loss, rtol=0, atol=1e-5)


def test_views_are_new_in_every_epoch_and_of_each_model(digits, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        original = stack.augment
        patch.setattr(stack, "augment", lambda images, g: seen.append(original(images, g)) or seen[-1])
        trained = train(replace(TINY, augmented=True), digits, 2, (2,), "cpu", 2)
    assert len(seen) == 2 * 2 * 5, "models, epochs and batches"
    assert len({float(views.sum()) for views in seen}) == len(seen)
    assert not same(one(trained, 0, 0), one(train(TINY, digits, 1, (2,), "cpu"), 0, 0))


@pytest.mark.parametrize("recipe", [VIEWS, replace(SPLIT, augmented=True)])
def test_snapshots_and_resuming_change_nothing_for_subsets_and_views(digits, fresh_cache, orders, monkeypatch, recipe):
    whole = train(recipe, digits, 2, (2, 4), "cpu", 2)
    fresh_cache()
    short = train(recipe, digits, 2, (2,), "cpu", 2)
    assert all(same(one(whole, 0, i), one(short, 0, i)) for i in range(2))
    fresh_cache()
    checkpoint_every_epoch(monkeypatch)
    orders.clear()
    with monkeypatch.context() as patch:
        counted = torch.randperm

        def interrupted(*args, **kwargs):
            if len(orders) == 3 * 2:
                raise KeyboardInterrupt
            return counted(*args, **kwargs)

        patch.setattr(torch, "randperm", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, digits, 2, (2, 4), "cpu", 2)
    assert same(train(recipe, digits, 2, (2, 4), "cpu", 2).weights, whole.weights)


def test_the_key_of_the_cache_tells_subsets_and_views_apart(digits):
    recipes = [TINY, HALF, SPLIT, VIEWS, replace(TINY, augmented=True)]
    model = build("mlp", digits, 16)
    paths = {snapshot.path(model, recipe, digits.train, (0,), 1, "cpu") for recipe in recipes}
    assert len(paths) == len(recipes)


PENALTIES = [{}, {"l1": 0.02}, {"l2": 0.05}, {"l1": 0.02, "l2": 0.05}]


@pytest.mark.parametrize("penalty", [*PENALTIES, {"weight_decay": 0.1}])
def test_training_is_what_a_plain_loop_with_the_penalty_written_out_does(digits, orders, penalty):
    recipe = replace(TINY, learning_rate=3e-3, **penalty)
    trained = train(recipe, digits, 1, (2,), "cpu")
    model = build("mlp", digits, recipe.width)
    model.load_state_dict({key: tensor[0] for key, tensor in start(model, recipe, [0], "cpu")[0].items()})
    adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=False)
    means = []
    for order in orders:
        losses = []
        for picked in order[:1280].split(256):
            loss = cross_entropy(model(digits.train.images[picked].float() / 255), digits.train.labels[picked])
            objective = loss
            for i in range(1, 5):
                w = model.get_submodule(f"layer{i}").weight
                objective = objective + recipe.l1 * w.abs().sum() + recipe.l2 * w.square().sum()
            adam.zero_grad()
            objective.backward()
            adam.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    # Float32 gradients round differently; ten steps of Adam amplify that a little. The penalties move weights by 0.01.
    assert trained.loss[0].tolist() == pytest.approx(means, abs=1e-4)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(trained.weights[key][0, 0], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("penalty", PENALTIES[1:])
def test_a_penalty_adds_its_gradient_to_every_matrix_and_to_no_bias(digits, penalty):
    model = build("mlp", digits, 16)
    images, labels = digits.train.images, digits.train.labels
    recipe, stepped, losses = replace(TINY, **penalty), {}, {}
    for one_recipe in (TINY, recipe):
        weights, _ = start(model, one_recipe, [0, 1, 2], "cpu")
        before = {key: tensor.detach().clone() for key, tensor in weights.items()}
        # A step of plain gradient descent at rate 1 is the gradient itself.
        descent = torch.optim.SGD(weights.values(), lr=1.0)
        losses[one_recipe] = next(train_epoch(model, one_recipe, weights, descent, images, labels, [0, 1, 2], 0))
        stepped[one_recipe] = {key: before[key] - tensor.detach() for key, tensor in weights.items()}
    assert torch.equal(losses[recipe], losses[TINY]), "the loss is recorded without the penalty"
    for key, w in before.items():
        added = stepped[recipe][key] - stepped[TINY][key]
        if key.endswith("bias"):
            assert torch.equal(stepped[recipe][key], stepped[TINY][key]), key
        else:
            # Differences of float32 weights of order 1.
            torch.testing.assert_close(added, recipe.l1 * w.sign() + 2 * recipe.l2 * w, rtol=0, atol=1e-6)


def test_the_recorded_loss_is_the_cross_entropy_without_penalty(digits):
    # One batch an epoch: the first loss is that of the initial weights.
    recipe = replace(TINY, batch_size=1347)
    without = train(recipe, digits, 2, (2,), "cpu").loss
    strong = train(replace(recipe, l1=1.0, l2=1.0), digits, 2, (2,), "cpu").loss
    assert torch.equal(strong[:, 0], without[:, 0])
    assert not torch.equal(strong[:, 1], without[:, 1])


def matrices(trained):
    return torch.cat([w.flatten() for key, w in trained.weights.items() if key.endswith("weight")])


def test_a_strong_l1_penalty_drives_most_weights_to_zero_and_leaves_the_biases(digits):
    recipe = replace(TINY, learning_rate=1e-2)
    without = train(recipe, digits, 1, (20,), "cpu")
    strong = train(replace(recipe, l1=1.0), digits, 1, (20,), "cpu")
    # Near zero is as far as Adam swings about it: some steps of its learning rate.
    assert (matrices(strong).abs() < 0.03).float().mean() > 0.95
    assert (matrices(without).abs() < 0.03).float().mean() < 0.5
    for i in range(1, 4):
        # Uniform within +- 1/8 or 1/4 at the start: without matrices nothing pulls at them.
        assert strong.weights[f"layer{i}.bias"].abs().max() > 0.1


def test_a_strong_l2_penalty_shrinks_the_norm_of_the_matrices(digits):
    recipe = replace(TINY, learning_rate=1e-2)
    norms = [
        matrices(train(replace(recipe, l2=l2), digits, 1, (20,), "cpu")).norm().item() for l2 in (0.0, 1e-3, 1e-2, 1.0)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.1 * norms[0]


def test_an_epoch_yields_one_loss_for_each_batch_and_changes_the_weights_in_place(digits):
    model = build("mlp", digits, 16)
    images, labels = digits.train.images, digits.train.labels
    weights, optimiser = start(model, TINY, [0, 3], "cpu")
    given = dict(weights)
    seen = [{key: tensor.detach().clone() for key, tensor in weights.items()}]
    losses = []
    for loss in train_epoch(model, TINY, weights, optimiser, images, labels, [0, 3], 0):
        losses.append(loss)
        seen.append({key: tensor.detach().clone() for key, tensor in weights.items()})
    assert [loss.shape for loss in losses] == [(2,)] * 5, "1347 images are five batches of 256"
    assert not any(loss.requires_grad for loss in losses)
    assert all(weights[key] is tensor for key, tensor in given.items())
    for before, after in zip(seen, seen[1:], strict=False):
        assert all((before[key] != after[key]).flatten(1).any(1).all() for key in given)


def test_epochs_run_one_by_one_are_the_training(digits):
    trained = train(TINY, digits, 2, (2,), "cpu", chunk=2)
    model = build("mlp", digits, 16)
    weights, optimiser = start(model, TINY, [0, 1], "cpu")
    for epoch in range(2):
        losses = train_epoch(model, TINY, weights, optimiser, digits.train.images, digits.train.labels, [0, 1], epoch)
        assert torch.equal(torch.stack(list(losses)).mean(0), trained.loss[:, epoch])
    assert all(torch.equal(weights[key].detach(), tensor[0]) for key, tensor in trained.weights.items())


def test_snapshots_are_the_weights_of_shorter_trainings(digits):
    long = train(TINY, digits, 2, (1, 3), "cpu")
    assert long.weights["layer1.bias"].shape == (2, 2, 16)
    for position, epochs in enumerate((1, 3)):
        short = train(TINY, digits, 2, (epochs,), "cpu")
        assert all(same(one(long, position, i), one(short, 0, i)) for i in range(2))
        assert torch.equal(long.loss[:, :epochs], short.loss)


def test_what_was_trained_before_is_read_and_not_trained_again(digits, orders):
    first = train(TINY, digits, 2, (2,), "cpu")
    assert len(orders) == 4
    second = train(TINY, digits, 3, (2,), "cpu")
    assert len(orders) == 6, "only the third model is new"
    assert all(same(one(first, 0, i), one(second, 0, i)) for i in range(2))


def test_some_of_the_epochs_kept_before_are_read_and_not_trained_again(digits, fresh_cache, monkeypatch):
    whole = train(TINY, digits, 2, (1, 2, 4), "cpu")
    read = {}
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_stack", lambda *_: pytest.fail("trained again"))
        for n_models, epochs in [(2, (1,)), (2, (4,)), (1, (2, 4)), (2, (1, 2))]:
            read[n_models, epochs] = train(TINY, digits, n_models, epochs, "cpu")
    for (n_models, epochs), some in read.items():
        fresh_cache()
        direct = train(TINY, digits, n_models, epochs, "cpu")
        assert same(some.weights, direct.weights)
        assert torch.equal(some.loss, direct.loss)
        # Fewer epochs took less time.
        assert (some.seconds > 0).all()
        assert ((some.seconds < whole.seconds[:n_models]) == (epochs[-1] < 4)).all()


def test_an_epoch_that_was_not_kept_is_trained(digits, fresh_cache, orders):
    direct = train(TINY, digits, 2, (2, 3), "cpu")
    fresh_cache()
    train(TINY, digits, 1, (1, 2), "cpu")
    orders.clear()
    more = train(TINY, digits, 2, (2, 3), "cpu")
    assert len(orders) == 6
    assert same(more.weights, direct.weights)
    assert torch.equal(more.loss, direct.loss)


def test_only_the_models_without_a_kept_epoch_are_trained_anew(digits, orders):
    whole = train(TINY, digits, 3, (1, 2), "cpu")
    snapshot.path(build("mlp", digits, 16), TINY, digits.train, (1,), 2, "cpu").unlink()
    orders.clear()
    again = train(TINY, digits, 3, (1, 2), "cpu")
    assert len(orders) == 2
    assert same(again.weights, whole.weights)


def checkpoint_every_epoch(monkeypatch):
    monkeypatch.setattr(stack, "time", SimpleNamespace(monotonic=count(0, 61).__next__))


@pytest.fixture(scope="module")
def few(digits):
    """Images for two batches an epoch."""
    return replace(digits, train=digits.train.sample(40))


FEW = replace(TINY, batch_size=20)
FEW_BATCH_NORM = replace(BATCH_NORM, batch_size=20)


@pytest.mark.parametrize(("recipe", "chunk"), [(FEW, 1), (FEW, 2), (FEW_BATCH_NORM, 2)])
def test_an_interrupted_training_resumes_to_the_same_weights(few, fresh_cache, orders, monkeypatch, recipe, chunk):
    whole = train(recipe, few, chunk, (2, 5), "cpu", chunk)
    assert len(orders) == 5 * chunk
    fresh_cache()
    checkpoint_every_epoch(monkeypatch)
    orders.clear()
    with monkeypatch.context() as patch:
        counted = torch.randperm

        def interrupted(*args, **kwargs):
            if len(orders) == 3 * chunk:
                raise KeyboardInterrupt
            return counted(*args, **kwargs)

        patch.setattr(torch, "randperm", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, few, chunk, (2, 5), "cpu", chunk)
    orders.clear()
    resumed = train(recipe, few, chunk, (2, 5), "cpu", chunk)
    assert len(orders) == 2 * chunk, "three of the five epochs were done already"
    assert same(resumed.weights, whole.weights)
    assert torch.equal(resumed.loss, whole.loss)
    assert not list(cache_folder().rglob("*.unfinished"))


@pytest.mark.parametrize("full_at", [3, 4, 5])
def test_a_training_that_met_a_full_disk_resumes_from_the_last_checkpoint(
    digits, fresh_cache, orders, monkeypatch, full_at
):
    whole = train(TINY, digits, 1, (2, 4), "cpu")
    fresh_cache()
    checkpoint_every_epoch(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        # What is written: a checkpoint, the second epoch, two checkpoints, the fourth epoch.
        die_at(patch, full_at, half_written)
        train(TINY, digits, 1, (2, 4), "cpu")
    orders.clear()
    resumed = train(TINY, digits, 1, (2, 4), "cpu")
    assert len(orders) < 4, "it began anew"
    assert same(resumed.weights, whole.weights)


def half_written(write_all, writers):
    def half(path):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_all(dict.fromkeys(writers, half))


def before_writing(write_all, writers):
    raise KeyboardInterrupt


def after_writing(write_all, writers):
    write_all(writers)
    raise KeyboardInterrupt


def die_at(patch, number, way):
    """Let the process die at its n-th write, counted from 1, in one of these ways; gives the list of writes."""
    write_all, writes = cache.write_together, []

    def write_or_die(writers):
        writes.append([path.suffix for path in writers])
        if len(writes) == number:
            way(write_all, writers)
        else:
            write_all(writers)

    patch.setattr(cache, "write_together", write_or_die)
    return writes


@pytest.mark.parametrize("way", [before_writing, half_written, after_writing])
@pytest.mark.parametrize(("recipe", "n_models"), [(FEW, 3), (FEW_BATCH_NORM, 2)], ids=["mlp", "batch norm"])
def test_wherever_a_training_is_killed_it_ends_at_the_same_weights(
    few, fresh_cache, monkeypatch, recipe, n_models, way
):
    # Networks in stacks of two, the last of the three alone; each stack is kept after two epochs and after three.
    checkpoint_every_epoch(monkeypatch)
    wanted = (n_models, (2, 3), "cpu", 2)
    with monkeypatch.context() as patch:
        writes = die_at(patch, None, way)
        undisturbed = train(recipe, few, *wanted)
    assert writes == math.ceil(n_models / 2) * [[".unfinished"], [".pt"], [".unfinished"], [".pt"]]
    for number in range(1, len(writes) + 1):
        fresh_cache()
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
            die_at(patch, number, way)
            train(recipe, few, *wanted)
        resumed = train(recipe, few, *wanted)
        assert same(resumed.weights, undisturbed.weights), f"killed at write {number}"
        assert torch.equal(resumed.loss, undisturbed.loss)


def test_networks_are_kept_by_the_stack_that_they_were_trained_in(digits, orders):
    train(TINY, digits, 2, (1,), "cpu")
    assert len(orders) == 2
    train(TINY, digits, 2, (1,), "cpu", 2)
    assert len(orders) == 4, "side by side the last bits are others"
    train(TINY, digits, 2, (1,), "cpu", 5)
    assert len(orders) == 4, "there are no more than two"


def test_more_networks_train_no_whole_stack_again(digits, orders):
    few = train(TINY, digits, 5, (1,), "cpu", 2)
    assert len(orders) == 5
    more = train(TINY, digits, 7, (1,), "cpu", 2)
    assert len(orders) == 5 + 3, "the fifth with a sixth, and a seventh"
    assert all(same(one(few, 0, number), one(more, 0, number)) for number in range(4))
    train(TINY, digits, 3, (1,), "cpu", 2)
    assert len(orders) == 8 + 1, "the third alone"


def test_networks_are_kept_by_the_device_that_they_were_trained_on(digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    model = build("mlp", digits, 16)
    paths = {snapshot.path(model, TINY, digits.train, (0,), 1, device) for device in ("cpu", "cuda")}
    assert len(paths) == 2


def test_a_damaged_stack_is_trained_again_alone(digits, orders, capsys):
    first = train(TINY, digits, 4, (1,), "cpu", 2)
    path = snapshot.path(build("mlp", digits, 16), TINY, digits.train, (2, 3), 1, "cpu")
    path.write_bytes(path.read_bytes()[:-1])
    orders.clear()
    again = train(TINY, digits, 4, (1,), "cpu", 2)
    assert len(orders) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert same(again.weights, first.weights)


def test_evaluate_counts_what_a_plain_loop_counts(digits):
    trained = train(TINY, digits, 3, (1,), "cpu", chunk=3)
    weights = {key: tensor[0] for key, tensor in trained.weights.items()}
    model, split = build("mlp", digits, 16), digits.test.sample(40)
    evaluation = evaluate(model, weights, split, chunk=2, batch=16)
    assert evaluation.correct.shape == evaluation.loss.shape == (3, 40)
    for i in range(3):
        for j in range(40):
            one_model = {key: tensor[i] for key, tensor in weights.items()}
            logits = functional_call(model, one_model, (split.images[j : j + 1].float() / 255,))[0].tolist()
            label = int(split.labels[j])
            assert bool(evaluation.correct[i, j]) == (logits.index(max(logits)) == label)
            loss = math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
            # float32 logits of order 1.
            assert evaluation.loss[i, j].item() == pytest.approx(loss, abs=1e-5)


def test_evaluate_refuses_nothing_to_evaluate_and_broken_models(digits):
    model = build("mlp", digits, 4)
    weights = {key: tensor.detach().unsqueeze(0) for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="nothing to evaluate: 0 models, 450 images"):
        evaluate(model, {key: tensor[:0] for key, tensor in weights.items()}, digits.test)
    with pytest.raises(ValueError, match="nothing to evaluate: 1 models, 0 images"):
        evaluate(model, weights, Split(digits.test.images[:0], digits.test.labels[:0]))
    broken = {**weights, "layer1.bias": weights["layer1.bias"] * float("nan")}
    with pytest.raises(ValueError, match="a model's outputs are NaN or infinite"):
        evaluate(model, broken, digits.test)


def train_on(device, digits):
    train(TINY, digits, 1, (1,), device)


def evaluate_on(device, digits):
    model = build("mlp", digits, 4)
    evaluate(model, {key: tensor.unsqueeze(0) for key, tensor in model.state_dict().items()}, digits.test, device)


def test_what_cannot_fit_is_refused_before_it_is_trained(digits, monkeypatch):
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000))
    monkeypatch.setattr(training, "train_stack", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(
        RuntimeError, match="need 0.0 GB at least, and 0.0 GB are free on 'cpu': a smaller 'chunk' takes"
    ):
        train(TINY, digits, 2, (1,), "cpu", chunk=2)


def test_what_is_trained_already_needs_no_room(digits, monkeypatch):
    train(TINY, digits, 2, (1,), "cpu", chunk=2)
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    train(TINY, digits, 2, (1,), "cpu", chunk=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("use", [train_on, evaluate_on])
def test_a_gpu_that_is_not_there_is_refused(digits, use):
    with pytest.raises(RuntimeError, match="device 'cuda' was asked for, but torch sees no GPU here"):
        use("cuda", digits)


@pytest.mark.parametrize(
    ("recipe", "n_models", "snapshots", "chunk", "message"),
    [
        (Recipe("resnet", batch_size=256), 1, (1,), 1, "unknown architecture 'resnet': there are mlp"),
        (replace(TINY, initial="zeros"), 1, (1,), 1, "unknown initial weights 'zeros': there are torch, lecun_normal"),
        (TINY, 0, (1,), 1, "at least one model at a time can be trained, got n_models=0"),
        (TINY, 1, (1,), 0, "at least one model at a time can be trained, got n_models=1, chunk=0"),
        (TINY, 1, (), 1, r"snapshots must be ascending epochs from 1, got \(\)"),
        (TINY, 1, (0, 1), 1, r"snapshots must be ascending epochs from 1, got \(0, 1\)"),
        (TINY, 1, (2, 1), 1, r"snapshots must be ascending epochs from 1, got \(2, 1\)"),
        (TINY, 1, (1, 1), 1, r"snapshots must be ascending epochs from 1, got \(1, 1\)"),
        (BATCH_NORM, 1, (1, 6), 1, r"the recipe's cosine ends after 5 epochs, got snapshots=\(1, 6\)"),
        (Recipe(batch_size=1348), 1, (1,), 1, "a batch of 1348 is larger than the 1347 images"),
        (Recipe(batch_size=674, subset="half"), 1, (1,), 1, "a batch of 674 is larger than the 673 images"),
    ],
)
def test_a_training_that_cannot_be_is_refused(digits, recipe, n_models, snapshots, chunk, message):
    with pytest.raises(ValueError, match=message):
        train(recipe, digits, n_models, snapshots, "cpu", chunk)
    assert not cache_folder().exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimiser": "lion"}, "unknown optimiser 'lion': there are adam, sgd"),
        ({"subset": "third"}, "unknown subset 'third': there are all, half, split"),
        ({"schedule": "linear"}, "unknown schedule 'linear': there are constant, cosine"),
        ({"warmup_epochs": -1}, "warmup_epochs cannot be negative, got -1"),
        ({"schedule": "cosine"}, "a cosine needs schedule_epochs beyond its 0 of warm-up, got 0"),
        (
            {"schedule": "cosine", "schedule_epochs": 5, "warmup_epochs": 5},
            "a cosine needs schedule_epochs beyond its 5 of warm-up, got 5",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)
