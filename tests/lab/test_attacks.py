"""Attacks stay within their ball, are those of another library, and find all there is where that can be computed."""

import copy
import math

import foolbox
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from lab.data import Split, load
from lab.measures.attacks import LOSSES, NORMS, Attack, fgsm, perturb, surviving
from lab.outputs import evaluate

N, IMAGES = 3, 100
# Some of the digits survive these, and some do not.
PARTIAL = {"linf": [0.02, 0.05, 0.1], "l2": [0.2, 0.4, 0.6]}
# In float64 no entry of a gradient is so near zero that rounding turns its sign. The direction of one that is itself
# small, where the softmax is nearly 1, loses digits: 1e-16 of rounding in gradients down to 1e-8.
ROUNDING = {"rtol": 0, "atol": 1e-8}


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.images[:IMAGES].double() / 255


@pytest.fixture(scope="module")
def labels(digits):
    return digits.test.labels[:IMAGES]


@pytest.fixture(scope="module")
def model():
    hidden = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10)).double().eval()


@pytest.fixture(scope="module")
def trained(model, digits):
    """Three networks that classify some 95 % of the test digits correctly."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(N, *tensor.shape, generator=generator, dtype=torch.float64).div(8).requires_grad_()
        for key, tensor in model.state_dict().items()
    }
    optimiser = torch.optim.Adam(weights.values(), lr=1e-2)
    x, y = digits.train.images.double() / 255, digits.train.labels.expand(N, -1)
    for _ in range(60):
        cross_entropy(logits_of(model, weights, x.expand(N, *x.shape)).movedim(-1, 1), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    return {key: tensor.detach() for key, tensor in weights.items()}


def logits_of(model, weights, images):
    """Each model's logits on images of its own (n, m, ...)."""
    return vmap(lambda one, x: functional_call(model, one, (x,)))(weights, images)


def correct_on(model, weights, perturbed, labels):
    return logits_of(model, weights, perturbed).argmax(-1) == labels


def entry(weights, i):
    return {key: tensor[i : i + 1] for key, tensor in weights.items()}


def scaled(weights, factor):
    """The same networks with all logits times ``factor``."""
    return {key: tensor * factor if key.startswith("5") else tensor for key, tensor in weights.items()}


def lengths(change, norm):
    return torch.linalg.vector_norm(change.flatten(2), ord=math.inf if norm == "linf" else 2, dim=-1)


# Within the ball


@given(
    loss=st.sampled_from(LOSSES),
    norm=st.sampled_from(NORMS),
    steps=st.integers(1, 4),
    restarts=st.integers(1, 2),
    epsilon=st.floats(0, 3),
    seed=st.integers(0, 9),
)
def test_perturbed_images_are_images_within_the_ball(model, trained, images, labels, epsilon, seed, **attack):
    found = perturb(model, trained, images[:6], labels[:6], epsilon, Attack(**attack), seed, "cpu", chunk=2)
    assert found.shape == (N, 6, 1, 8, 8)
    assert found.dtype == images.dtype
    assert ((found >= 0) & (found <= 1)).all()
    # The rounding of pixels of order 1, and of sums of 64 of them.
    assert (lengths(found - images[:6], attack["norm"]) <= epsilon + 1e-14).all()


@pytest.mark.parametrize("norm", NORMS)
def test_where_no_gradient_leads_away_images_stay_at_starts_that_are_uniform_in_the_ball(model, trained, norm):
    zero = {key: torch.zeros_like(tensor[:2]) for key, tensor in trained.items()}
    middle, y = torch.full((400, 1, 2, 32), 0.5, dtype=torch.float64), torch.zeros(400, dtype=torch.int64)
    starts = perturb(model, zero, middle, y, 0.4, Attack(norm=norm, steps=2), seed=1, device="cpu")
    assert torch.equal(starts[0], starts[1])
    change = (starts[0] - middle).flatten(1) / 0.4
    if norm == "linf":
        values = (change.flatten() + 1) / 2
    else:
        # The share of the ball's volume within a point's radius; signs tell directions apart.
        values = change.norm(dim=1) ** 64
        assert abs(change.sign().mean()) < 4 / math.sqrt(change.numel())
    # Seeded: a wrong distribution has a p of 1e-10 or less with so many points.
    assert kstest(values.numpy(), "uniform").pvalue > 0.001
    others = perturb(model, zero, middle, y, 0.4, Attack(norm=norm, steps=2), seed=2, device="cpu")
    assert not torch.isclose(starts, others).flatten(2).all(-1).any()
    few = perturb(model, zero, middle[:7], y[:7], 0.4, Attack(norm=norm, steps=2), seed=1, device="cpu", batch=3)
    assert torch.equal(few, starts[:, :7])


# The same as elsewhere


def foolbox_attack(norm, steps, length):
    attacks = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    return attacks[norm](abs_stepsize=length, steps=steps, random_start=False)


def in_foolbox(model, weights, i):
    model = copy.deepcopy(model)
    model.load_state_dict({key: tensor[i] for key, tensor in weights.items()})
    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


@pytest.mark.parametrize("epsilon", [0.05, 0.7])
@pytest.mark.parametrize("norm", NORMS)
def test_final_iterates_are_those_of_foolbox(model, trained, images, labels, norm, epsilon):
    one_step = {"linf": foolbox.attacks.FGSM(), "l2": foolbox.attacks.FGM()}[norm]
    pairs = [(fgsm(norm=norm), one_step)]
    for steps in (2, 7):
        own = Attack(norm=norm, steps=steps, random_start=False)
        pairs.append((own, foolbox_attack(norm, steps, 2.5 * epsilon / steps)))
    for own, theirs in pairs:
        found = perturb(model, trained, images, labels, epsilon, own, device="cpu", chunk=2)
        for i in range(N):
            expected, _, _ = theirs(in_foolbox(model, trained, i), images, labels, epsilons=epsilon)
            torch.testing.assert_close(found[i], expected, **ROUNDING)
            assert not torch.equal(found[i], images)


@pytest.mark.parametrize("norm", NORMS)
def test_survivors_are_what_foolbox_breaks_neither_at_this_epsilon_nor_below_after_any_number_of_steps(
    model, trained, images, labels, norm
):
    attack = Attack(norm=norm, steps=4, random_start=False)
    found = surviving(model, trained, images, labels, [0, *PARTIAL[norm]], attack, device="cpu", chunk=2, batch=30)
    for i in range(N):
        there = in_foolbox(model, trained, i)
        alive = there(images).argmax(-1) == labels
        assert torch.equal(found[i, 0], alive)
        for position, epsilon in enumerate(PARTIAL[norm], 1):
            for steps in range(1, 5):
                _, _, broken = foolbox_attack(norm, steps, 2.5 * epsilon / 4)(there, images, labels, epsilons=epsilon)
                alive = alive & ~broken
            assert torch.equal(found[i, position], alive)
        assert 0 < found[i, -1].sum() < found[i, 0].sum()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("chunk", "batch"), [(2, 17), (5, 40)])
def test_a_stack_is_its_models_one_by_one(model, trained, images, labels, loss, norm, chunk, batch):
    attack, epsilons, images, labels = Attack(loss, norm, steps=3, restarts=2), PARTIAL[norm], images[:40], labels[:40]
    among = {"seed": 3, "device": "cpu", "chunk": chunk, "batch": batch}
    moved = perturb(model, trained, images, labels, epsilons[1], attack, **among)
    found = surviving(model, trained, images, labels, epsilons, attack, **among)
    for i in range(N):
        alone = perturb(model, entry(trained, i), images, labels, epsilons[1], attack, 3, "cpu")
        # Matrices of other shapes are multiplied in another order, so the last bits differ.
        torch.testing.assert_close(moved[i], alone[0], **ROUNDING)
        assert torch.equal(found[i], surviving(model, entry(trained, i), images, labels, epsilons, attack, 3, "cpu")[0])


def test_convolutions_with_norms_go_through_as_a_stack(images, labels):
    def network(seed):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)]
        net = nn.Sequential(*layers).double()
        net(images)  # leaves the norms statistics that are not trivial
        return net.eval()

    networks = [network(seed) for seed in range(2)]
    weights = {key: tensor.detach() for part in stack_module_state(networks) for key, tensor in part.items()}
    predicted = torch.stack([net(images).argmax(-1) for net in networks])
    labels = predicted[0].where(predicted[0] == predicted[1], labels)
    attack = Attack("margin", steps=3, random_start=False)
    moved = perturb(networks[0], weights, images, labels, 0.05, attack, device="cpu", chunk=2)
    found = surviving(networks[0], weights, images, labels, [0, 0.02], attack, device="cpu", chunk=2, batch=30)
    for i, net in enumerate(networks):
        alone = perturb(net, entry(weights, i), images, labels, 0.05, attack, device="cpu")
        torch.testing.assert_close(moved[i], alone[0], **ROUNDING)
        assert torch.equal(found[i, 0], predicted[i] == labels)
        assert 0 < found[i, 1].sum() < found[i, 0].sum()


# What there is to find


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_model_is_broken_exactly_at_its_distance_from_the_boundary(loss, steps, norm, dual):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().eval()
    weight = torch.randn(2, 2, 16, generator=generator, dtype=torch.float64)
    weights = {"1.weight": weight, "1.bias": torch.zeros(2, 2, dtype=torch.float64)}
    # In the middle of the pixel range, which no change as small as these distances leaves.
    images = 0.5 + 0.05 * torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64).clamp(-2, 2)
    labels = torch.tensor([0, 1] * 4)
    logits = logits_of(model, weights, images.expand(2, *images.shape)).detach()
    margin = (logits[..., 0] - logits[..., 1]) * (1 - 2 * labels)
    distance = margin / (weight[:, 0] - weight[:, 1]).norm(p=dual, dim=-1, keepdim=True)
    near = distance[(distance > 0) & (distance < 0.4)]
    assert len(near) > 3
    epsilons = torch.cat([near * 0.9999, near * 1.0001]).sort().values.tolist()
    attack = Attack(loss, norm, steps, random_start=False)
    found = surviving(model, weights, images, labels, epsilons, attack, device="cpu", chunk=2)
    expected = torch.tensor(epsilons, dtype=torch.float64).unsqueeze(1) < distance.unsqueeze(1)
    assert torch.equal(found, expected)


def test_at_epsilon_0_the_correctly_classified_survive(model, trained, digits, labels):
    split = Split(digits.test.images[:IMAGES], labels)
    model, weights = copy.deepcopy(model).float(), {key: tensor.float() for key, tensor in trained.items()}
    found = surviving(model, weights, split.images.float() / 255, labels, [0], Attack(), device="cpu", chunk=2)
    assert torch.equal(found[:, 0], evaluate(model, weights, split, "cpu").correct)


@pytest.mark.parametrize("norm", NORMS)
def test_what_ends_misclassified_does_not_survive_and_larger_balls_lose_more(model, trained, images, labels, norm):
    attack, epsilons = Attack(norm=norm, steps=4, restarts=2), PARTIAL[norm]
    found = surviving(model, trained, images, labels, epsilons, attack, 5, "cpu", chunk=3)
    assert (found[:, 1:] <= found[:, :-1]).all()
    for position, epsilon in enumerate(epsilons):
        moved = perturb(model, trained, images, labels, epsilon, attack, 5, "cpu", chunk=3)
        still = correct_on(model, trained, moved, labels)
        assert (found[:, position] <= still).all()
        assert not still.all()


@pytest.mark.parametrize("norm", NORMS)
def test_many_steps_find_more_than_one_and_more_still_no_less(model, trained, images, labels, norm):
    def left(steps):
        attack = fgsm(norm=norm) if steps == 1 else Attack(norm=norm, steps=steps, random_start=False)
        return surviving(model, trained, images, labels, PARTIAL[norm][-1:], attack, device="cpu", chunk=3)[:, 0]

    one, ten, forty = (int(left(steps).sum()) for steps in (1, 10, 40))
    assert ten < one
    # Of 300: a shorter step ends elsewhere, for better or worse.
    assert forty <= ten + 3


def test_restarts_keep_the_highest_loss_and_break_no_less(model, trained, images, labels):
    once, thrice = Attack("margin", "l2", steps=2), Attack("margin", "l2", steps=2, restarts=3)

    def loss(attack):
        moved = perturb(model, trained, images, labels, 1.0, attack, device="cpu", chunk=3)
        logits = logits_of(model, trained, moved)
        true = labels.expand(N, -1).unsqueeze(-1)
        return logits.scatter(-1, true, -math.inf).amax(-1) - logits.gather(-1, true)[..., 0]

    # Rounding, where the first start was the best.
    assert (loss(thrice) >= loss(once) - 1e-10).all()
    assert (loss(thrice) > loss(once) + 1e-10).any()
    few, many = (surviving(model, trained, images, labels, [0.5], a, device="cpu", chunk=3) for a in (once, thrice))
    assert (many <= few).all()


def test_nothing_survives_where_every_image_is_in_the_ball(model, trained, images, labels):
    found = surviving(model, trained, images, labels, [0, 1], Attack("margin"), device="cpu", chunk=3)
    assert found[:, 0].double().mean() > 0.9
    assert not found[:, 1].any()


@pytest.mark.parametrize("attack", [fgsm(), Attack(steps=5)], ids=["fgsm", "pgd"])
def test_an_attack_on_the_model_itself_is_worse_than_one_on_another(model, trained, images, labels, attack):
    moved = perturb(model, trained, images, labels, 0.1, attack, device="cpu", chunk=3)
    own, other, none = (
        correct_on(model, trained, x, labels).double().mean()
        for x in (moved, moved.roll(1, 0), images.expand(N, *images.shape))
    )
    assert own < other - 0.05
    assert other < none - 0.05


# The scale of the logits


@pytest.mark.parametrize("norm", NORMS)
def test_the_margin_attack_does_not_see_the_scale_of_the_logits(model, trained, images, labels, norm):
    # A power of two leaves every digit as it is, so that equal means equal; the square of 2^-600 is 0.
    for factor in (1 / 16, 2.0**-600):
        for attack in (fgsm("margin", norm), Attack("margin", norm, steps=4)):
            own, other = (
                surviving(model, weights, images, labels, PARTIAL[norm], attack, device="cpu", chunk=3)
                for weights in (trained, scaled(trained, factor))
            )
            assert torch.equal(own, other)


@pytest.mark.parametrize("attack", [fgsm, lambda loss: Attack(loss, steps=5, random_start=False)], ids=["fgsm", "pgd"])
def test_large_logits_hide_from_the_cross_entropy_and_not_from_the_margin(model, trained, images, labels, attack):
    # A softmax of exactly 0s and 1s, as it is in float32 for differences above 104 or so, has no gradient.
    model, images = copy.deepcopy(model).float(), images.float()
    large = {key: tensor.float() for key, tensor in scaled(trained, 1024).items()}

    def left(loss):
        return (
            surviving(model, large, images, labels, [0, 0.3], attack(loss), device="cpu", chunk=3).double().mean((0, 2))
        )

    assert left("cross_entropy")[1] > 0.8
    assert left("margin")[1] < 0.01
    assert torch.equal(left("margin")[0], left("cross_entropy")[0])


# Nothing else happens


def test_only_what_survives_goes_through_the_model_again(model, trained, images, labels):
    model, seen = copy.deepcopy(model), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    found = surviving(model, trained, images, labels, [0, 0.1, 0.3, 0.5], Attack(steps=20), device="cpu", chunk=3)
    most = found.sum(2).amax(0).tolist()
    # One image tells the number of classes; then all as they are; then 20 steps and a last look from each start.
    assert seen[:3] == [1, IMAGES, most[0]]
    assert all(later <= earlier for earlier, later in zip(seen[2:], seen[3:], strict=False))
    assert most[1] <= seen[22] < most[0]
    # At 0.5 nothing is left to attack, so that its 21 passes are saved.
    assert most[2:] == [0, 0]
    assert len(seen) < 2 + 2 * 21


def test_neither_model_nor_weights_images_or_random_state_are_changed(model, trained, images, labels):
    before = {key: tensor.clone() for key, tensor in {**model.state_dict(), "images": images}.items()}
    weights = {key: tensor.clone().requires_grad_() for key, tensor in trained.items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        perturb(model, weights, images, labels, 0.1, Attack(steps=2), device="cpu")
    surviving(model, weights, images, labels, [0.1], Attack(steps=2), device="cpu")
    assert all(torch.equal(before[key], tensor) for key, tensor in {**model.state_dict(), "images": images}.items())
    assert all(torch.equal(weights[key], tensor) and weights[key].grad is None for key, tensor in trained.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the bar leaves its file to be closed by itself
def test_progress_counts_chunks_times_batches(model, trained, images, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_PROGRESS", str(tmp_path / "progress"))
    surviving(model, trained, images, labels, [0.1], fgsm(), device="cpu", chunk=2, batch=30)
    shown = (tmp_path / "progress").read_text()
    assert "attack 3 models on 100 images" in shown
    assert "8/8" in shown


# Misuse


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge': there are cross_entropy, margin"),
        ({"norm": "l1"}, "unknown norm 'l1': there are linf, l2"),
        ({"steps": 0}, "an attack needs a step and a start, got steps=0, restarts=1"),
        ({"restarts": 0}, "an attack needs a step and a start, got steps=20, restarts=0"),
        ({"restarts": 2, "random_start": False}, "2 starts from the image itself are all the same: use a random start"),
    ],
)
def test_attacks_that_there_are_not_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Attack(**wrong)


def broken(weights, value):
    return {**weights, "5.bias": weights["5.bias"].index_fill(1, torch.tensor(3), value)}


BAD = [
    ("weights", lambda w: entry(w, N), "nothing to attack: 0 models, 100 images"),
    ("images", lambda x: x[:0], "nothing to attack: 3 models, 0 images"),
    ("images", lambda x: (255 * x).byte(), "images must be floating-point .* got torch.uint8: divide by 255"),
    ("images", lambda x: 255 * x, r"images must lie in \[0, 1\], got pixels from 0.0 to 255.0"),
    ("images", lambda x: x - 0.5, r"images must lie in \[0, 1\], got pixels from -0.5 to 0.5"),
    ("images", lambda x: x * math.nan, r"images must lie in \[0, 1\], got pixels from nan to nan"),
    ("labels", lambda y: y[1:], r"each image needs one label: got 100 images and labels of shape \(99,\)"),
    ("labels", lambda y: y + 1, "the model tells classes 0 to 9 apart, got labels from 1 to 10"),
    ("labels", lambda y: y - 1, "the model tells classes 0 to 9 apart, got labels from -1 to 8"),
    ("weights", lambda w: broken(w, math.nan), "a model's outputs are NaN or infinite"),
    ("weights", lambda w: broken(w, math.inf), "a model's outputs are NaN or infinite"),
    ("model", lambda m: copy.deepcopy(m).train(), r"the model is in training mode.*: call model.eval\(\) first"),
    ("epsilon", lambda _: -0.1, r"an epsilon is a finite number from 0, in pixels from 0 to 1, got \[-0.1\]"),
    ("epsilon", lambda _: math.nan, r"an epsilon is a finite number from 0, .* got \[nan\]"),
    ("epsilon", lambda _: math.inf, r"an epsilon is a finite number from 0, .* got \[inf\]"),
    ("chunk", lambda _: 0, "one model and one image at a time are the least, got chunk=0, batch=500"),
    ("batch", lambda _: -1, "one model and one image at a time are the least, got chunk=1, batch=-1"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_what_cannot_be_attacked_is_refused(model, trained, images, labels, name, spoil, message):
    good = {"model": model, "weights": trained, "images": images, "labels": labels, "epsilon": 0.1}
    good |= {"attack": Attack(steps=2), "device": "cpu", "chunk": 1, "batch": 500}
    bad = {**good, name: spoil(good[name])}
    with pytest.raises(ValueError, match=message):
        perturb(**bad)
    bad["epsilons"] = [bad.pop("epsilon")]
    with pytest.raises(ValueError, match=message):
        surviving(**bad)


@pytest.mark.parametrize("epsilons", [[], [0.2, 0.1], [0.1, 0.1]])
def test_epsilons_that_do_not_ascend_are_refused(model, trained, images, labels, epsilons):
    with pytest.raises(ValueError, match="epsilons must ascend, and there must be one, got"):
        surviving(model, trained, images, labels, epsilons, Attack(), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(model, trained, images, labels):
    with pytest.raises(RuntimeError, match="torch sees no GPU here"):
        perturb(model, trained, images, labels, 0.1, Attack(), device="cuda")
