"""Every matcher on every kind of network: planted permutations, what the results promise, and bad input."""

import copy
from itertools import permutations, product

import numpy as np
import pytest
import torch
from networks import NETWORKS, Chain, drawn, images
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.func import functional_call

from rebasin import (
    Permutation,
    PermutationSpec,
    activation_matching,
    frank_wolfe_matching,
    inner_product,
    match,
    weight_matching,
)
from rebasin.matching.scores import assign
from rebasin.tracing import trace

# Sums of some hundred float64 products of order 1.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A model in evaluation, and its spec."""
    torch.manual_seed(0)
    model = NETWORKS[request.param]().double().eval()
    return model, trace(model, images(2))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batches(count=4, size=25):
    """Inputs and labels, in so many batches."""
    labels = torch.randint(3, (count * size,), generator=seeded(1))
    return list(zip(images(count * size).split(size), labels.split(size), strict=True))


def options(method, model):
    data = {"model": model, "loader": batches()}
    return data if method in ("activations", "straight-through") else {}


METHODS = ["weights", "frank-wolfe", "activations", "straight-through"]


@pytest.mark.parametrize("method", METHODS)
def test_a_matched_network_computes_the_same_and_the_objective_is_true(network, method):
    model, spec = network
    a, b = drawn(model, 2, seed=1), drawn(model, 2, seed=2)
    found = match(spec, a, b, by=method, **options(method, model))
    permuted = found.permutation.apply(b)
    torch.testing.assert_close(found.objective, inner_product(spec, a, permuted), **ROUNDING)
    assert found.objective.shape == found.sweeps.shape == (2,) and found.seconds > 0
    assert found.objective_by_sweep.shape == found.maximised_by_sweep.shape == (2, 1 + found.sweeps.max())
    torch.testing.assert_close(found.objective_by_sweep[:, 0], inner_product(spec, a, b), **ROUNDING)
    assert torch.equal(found.objective_by_sweep[:, -1], found.objective)
    for i in range(2):
        before, after = (functional_call(model, {k: t[i] for k, t in w.items()}, (images(5),)) for w in (b, permuted))
        torch.testing.assert_close(after, before, **ROUNDING)
    assert any(not torch.equal(permuted[key], b[key]) for key in b)
    assert (found.maximised_by_sweep.diff() >= 0).all(), "what a matcher maximises never falls"


@pytest.mark.parametrize("method", METHODS)
def test_one_pair_without_leading_axes_is_matched_as_in_a_batch(network, method):
    model, spec = network
    a, b = drawn(model, 2, seed=1), drawn(model, 2, seed=2)
    whole = match(spec, a, b, by=method, **options(method, model))
    alone = match(spec, *({k: t[1] for k, t in w.items()} for w in (a, b)), by=method, **options(method, model))
    assert alone.objective.shape == ()
    for group, index in alone.permutation.indices.items():
        assert torch.equal(index, whole.permutation.indices[group][1])


@pytest.mark.parametrize("method", ["frank-wolfe", "inner product", "correlation"])
def test_a_planted_permutation_is_recovered(network, method):
    model, spec = network
    a = drawn(model, seed=20)  # drawn so that no two units are dead, which nothing could tell apart
    planted = Permutation.random(spec, generator=seeded(4))
    if method == "frank-wolfe":
        found = frank_wolfe_matching(spec, a, planted.apply(a))
    else:
        found = activation_matching(spec, a, planted.apply(a), model=model, loader=batches(), similarity=method)
    for group, index in planted.invert().indices.items():
        assert torch.equal(found.permutation.indices[group], index)


def test_weight_matching_ends_where_it_would_not_go_on_from(network):
    model, spec = network
    a, b = drawn(model, 6, seed=5), drawn(model, 6, seed=6)
    found = weight_matching(spec, a, b)
    again = weight_matching(spec, a, b, start=found.permutation)
    torch.testing.assert_close(again.objective_by_sweep[:, 0], found.objective, **ROUNDING)
    torch.testing.assert_close(again.objective, found.objective, **ROUNDING)
    assert (found.objective > found.objective_by_sweep[:, 0]).all()


def test_an_inner_product_of_what_does_not_fit_together_is_refused():
    spec = PermutationSpec.from_axes({"w": torch.zeros(3)}, {"w": ("a",)})
    with pytest.raises(ValueError, match=r"a has leading axes \(2,\), b has \(4,\), which do not broadcast"):
        inner_product(spec, {"w": torch.zeros(2, 3)}, {"w": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match="'w' is torch.float32 in a and torch.complex64 in b"):
        inner_product(spec, {"w": torch.zeros(2, 3)}, {"w": torch.zeros(2, 3, dtype=torch.complex64)})
    assert inner_product(spec, {"w": torch.ones(4, 1, 3)}, {"w": torch.ones(2, 3)}).shape == (4, 2)


def test_blocks_are_assigned_as_well_as_trying_all_would():
    torch.manual_seed(0)
    model = NETWORKS["attention"]()
    spec = trace(model, images(2).float())
    (outer,) = set(spec.inside.values())
    small = trace(nn.TransformerEncoderLayer(6, 3, 4, batch_first=True), torch.randn(2, 3, 6))
    assert {small.sizes[g] for g in small.inside} == {2} and spec.sizes[outer] == 3
    (outer,), (first, second) = set(small.inside.values()), small.inside
    scores = {g: torch.randn(1, 6, 6, generator=seeded(5)) for g in (first, second)}
    scores[outer] = torch.randn(1, 3, 3, generator=seeded(6))
    found = assign(small, outer, scores)

    def worth(blocks, *within):
        total = sum(scores[outer][0, i, j] for i, j in enumerate(blocks))
        for group, inner in zip((first, second), within, strict=True):
            for i, j in enumerate(blocks):
                total += sum(scores[group][0, 2 * i + u, 2 * j + v] for u, v in enumerate(inner[i]))
        return float(total)

    swaps = list(product(permutations(range(2)), repeat=3))
    best = max(
        max(worth(blocks, inner, swaps[0]) for inner in swaps)
        + max(worth(blocks, swaps[0], inner) for inner in swaps)
        - worth(blocks, swaps[0], swaps[0])
        for blocks in permutations(range(3))
    )
    own = worth(found[outer][0].tolist(), found[first][0].tolist(), found[second][0].tolist())
    assert own == pytest.approx(best, abs=1e-5)


def test_frank_wolfe_does_not_fall_below_the_identity(network):
    model, spec = network
    a = drawn(model, 3, seed=7)
    near = {k: t + 0.01 * drawn(model, 3, seed=8)[k] if t.is_floating_point() else t for k, t in a.items()}
    for b in (near, drawn(model, 3, seed=9)):
        found = frank_wolfe_matching(spec, a, b)
        assert (found.objective >= inner_product(spec, a, b)).all()


def test_frank_wolfe_reaches_more_than_coordinate_descent_does_on_average():
    spec = trace(Chain(), images(2))
    a, b = drawn(Chain(), 20, seed=10), drawn(Chain(), 20, seed=11)
    orders = torch.stack([weight_matching(spec, a, b, seed=seed).objective for seed in range(3)])
    found = frank_wolfe_matching(spec, a, b)
    assert found.objective.mean() > orders.mean()
    # Inside the hull it is at least what its rounding is, but for the rare pair that rounding is kind to.
    assert (found.maximised_by_sweep[:, -1] >= found.objective - 1e-6).float().mean() > 0.9


def hidden(weights, x):
    """What each hidden layer of a Chain gives, in numpy: (inputs, units) by layer."""
    found, x = {}, x.flatten(1).numpy()
    for name in ("1", "3", "5"):
        x = np.maximum(x @ weights[f"{name}.weight"].numpy().T + weights[f"{name}.bias"].numpy(), 0)
        found[name] = x
    return found


@pytest.mark.parametrize("similarity", ["inner product", "correlation"])
def test_activation_matching_agrees_with_its_definition(similarity):
    model = Chain().double()
    spec = trace(model, images(2))
    a, b = drawn(model, seed=12), drawn(model, seed=13)
    found = activation_matching(spec, a, b, model=model, loader=batches(), similarity=similarity)
    ours, theirs = (hidden(weights, images(100)) for weights in (a, b))
    worth = 0.0
    for name in ours:
        scores = ours[name].T @ theirs[name]
        if similarity == "correlation":
            with np.errstate(invalid="ignore"):  # units that never vary
                whole = np.corrcoef(ours[name].T, theirs[name].T)
            scores = np.nan_to_num(whole[: len(scores), len(scores) :])
        rows, columns = linear_sum_assignment(scores, maximize=True)
        worth += scores[rows, columns].sum()
    assert found.maximised_by_sweep[-1].item() == pytest.approx(worth, rel=1e-10)


@pytest.mark.parametrize("similarity", ["inner product", "correlation"])
def test_five_batches_are_worth_what_one_of_all_is(network, similarity):
    model, spec = network
    a = drawn(model, 2, seed=39)  # drawn so that no unit is dead: which of two such is matched, rounding would tell
    b = {key: tensor.flip(0) for key, tensor in a.items()}
    x = images(100)
    uneven = [x[:10], x[10:35], x[35:60], x[60:75], x[75:]]
    whole, parts = (
        activation_matching(spec, a, b, model=model, loader=loader, similarity=similarity) for loader in (x, uneven)
    )
    torch.testing.assert_close(whole.maximised_by_sweep, parts.maximised_by_sweep, rtol=1e-9, atol=1e-9)
    for group, index in whole.permutation.indices.items():
        assert torch.equal(index, parts.permutation.indices[group])


def test_correlation_does_not_see_how_large_a_unit_is():
    model = Chain().double()
    spec = trace(model, images(2))
    a = drawn(model, seed=16)
    planted = Permutation.random(spec, generator=seeded(17))
    b = planted.apply(a)
    for name, after in (("1", "3"), ("3", "5"), ("5", "7")):
        scale = torch.logspace(-3, 3, len(b[f"{name}.bias"]), dtype=torch.float64)
        b[f"{name}.weight"], b[f"{name}.bias"] = b[f"{name}.weight"] * scale[:, None], b[f"{name}.bias"] * scale
        b[f"{after}.weight"] = b[f"{after}.weight"] / scale
    found = {
        similarity: activation_matching(spec, a, b, model=model, loader=batches(), similarity=similarity)
        for similarity in ("correlation", "inner product")
    }
    planted = planted.invert().indices
    right = {s: all(torch.equal(m.permutation.indices[g], i) for g, i in planted.items()) for s, m in found.items()}
    assert right == {"correlation": True, "inner product": False}


def test_straight_through_keeps_the_permutation_of_its_best_midpoint():
    model = Chain().double()
    spec = trace(model, images(2))
    a, b = drawn(model, seed=18), drawn(model, seed=19)
    ((x, y),) = batches(1, 100)
    found = match(spec, a, b, by="straight-through", model=model, loader=[(x, y)], epochs=40, learning_rate=0.1)

    def loss(permutation):
        moved = permutation.apply(b)
        middle = {key: (a[key] + moved[key]) / 2 for key in a}
        return nn.functional.cross_entropy(functional_call(model, middle, (x,)), y).item()

    assert loss(found.permutation) == pytest.approx(-found.maximised_by_sweep[-1].item(), rel=1e-12)
    # The first projection is that of a itself, which is weight matching; learning finds a better one.
    by_weights = weight_matching(spec, a, b).permutation
    assert loss(by_weights) == pytest.approx(-found.maximised_by_sweep[1].item(), rel=1e-12)
    assert loss(found.permutation) < loss(by_weights)
    assert found.sweeps == 40


class Tied(nn.Module):
    """One matrix under two names, and a norm under two names."""

    def __init__(self):
        super().__init__()
        self.into, self.a, self.b, self.out = nn.Linear(32, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight
        self.norm = self.again = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.out(self.again(self.b(self.norm(self.a(self.into(x.flatten(1)))).relu())).relu())


@pytest.mark.parametrize("method", METHODS)
def test_shared_weights_and_norms_are_matched_and_the_model_is_left_as_it_was(method):
    model = Tied().double().train()
    spec = trace(model, images(2))
    assert not any("running" in key or "tracked" in key for key in spec.weights)
    a, b = (Permutation.random(spec, generator=seeded(seed)).apply(model.state_dict()) for seed in (23, 24))
    found = match(spec, a, b, by=method, **options(method, model))
    loaded = copy.deepcopy(model).eval()
    loaded.load_state_dict(b)
    before = loaded(images(5))
    loaded.load_state_dict(found.permutation.apply(b))
    torch.testing.assert_close(loaded(images(5)), before, **ROUNDING)
    assert model.training


def test_half_numbers_do_not_overflow_in_activation_matching():
    model = Chain()
    spec = trace(model, images(2))
    a = {key: tensor.half() for key, tensor in drawn(model, seed=25).items()}
    planted = Permutation.random(spec, generator=seeded(26))
    loader = [x.half() * 40 for x, _ in batches()]
    found = activation_matching(spec, a, planted.apply(a), model=copy.deepcopy(model).half(), loader=loader)
    assert found.maximised_by_sweep[-1] > 65504, "more than a half number holds"
    assert torch.isfinite(found.maximised_by_sweep).all()


def test_units_far_from_zero_still_vary():
    model = Chain().double()
    spec = trace(model, images(2))
    a = drawn(model, seed=20)
    a["1.bias"] += 5000
    planted = Permutation.random(spec, generator=seeded(27))
    found = activation_matching(spec, a, planted.apply(a), model=model, loader=batches(), similarity="correlation")
    assert torch.equal(found.permutation.indices["1"], planted.invert().indices["1"])


def test_frank_wolfe_refuses_a_weight_with_three_axes_that_move():
    state = {"w": torch.ones(2, 3, 4)}
    spec = PermutationSpec.from_axes(state, {"w": ("a", "b", "c")})
    with pytest.raises(ValueError, match="takes weights with two axes that move, 'w' has more"):
        frank_wolfe_matching(spec, state, state)
    assert weight_matching(spec, state, state).objective == 24


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_hidden_layers_is_left_as_it_is(method):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    spec = trace(model, images(2))
    a, b = drawn(model, 2, seed=21), drawn(model, 2, seed=22)
    found = match(spec, a, b, by=method, **options(method, model))
    assert found.permutation.indices == {}
    torch.testing.assert_close(found.objective, inner_product(spec, a, b), **ROUNDING)


def test_straight_through_agrees_with_algorithm_2_written_down_plainly():
    model = Chain().double()
    spec = trace(model, images(2))
    a, b = drawn(model, seed=28), drawn(model, seed=29)
    found = match(spec, a, b, by="straight-through", model=model, loader=batches(), epochs=5, learning_rate=0.3)
    free = {key: tensor.clone().requires_grad_() for key, tensor in a.items()}
    descent, basin, losses = torch.optim.SGD(free.values(), 0.3, momentum=0.9), Permutation.identity(spec), []
    for x, y in batches() * 5:
        basin = weight_matching(
            spec, {key: tensor.detach() for key, tensor in free.items()}, b, start=basin
        ).permutation
        # The projection's value, with the free point's gradient.
        projected = {key: moved + free[key] - free[key].detach() for key, moved in basin.apply(b).items()}
        middle = {key: a[key] / 2 + projected[key] / 2 for key in a}
        loss = nn.functional.cross_entropy(functional_call(model, middle, (x,)), y)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(-loss.item())
    assert len({round(loss, 9) for loss in losses[::4]}) > 2, "the permutation moves while it is learned"
    torch.testing.assert_close(
        found.maximised_by_sweep[1:], torch.tensor(losses).double().cummax(0).values, rtol=1e-6, atol=0
    )


class Twice(nn.Module):
    """Two layers that read the same values."""

    def __init__(self):
        super().__init__()
        self.into, self.left, self.right = nn.Linear(32, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.into(x.flatten(1)).relu()
        return self.left(x) + self.right(x)


def test_values_that_two_layers_read_count_once():
    model = Twice().double()
    spec = trace(model, images(2))
    a = drawn(model, seed=30)
    found = activation_matching(spec, a, a, model=model, loader=batches())
    values = (images(100).flatten(1) @ a["into.weight"].T + a["into.bias"]).clamp(min=0)
    torch.testing.assert_close(found.maximised_by_sweep[-1], values.square().sum(), **ROUNDING)


@pytest.mark.parametrize("method", ["activations", "straight-through"])
def test_a_loader_without_batches_is_refused(method):
    model = Chain().double()
    spec, a = trace(model, images(2)), drawn(model)
    with pytest.raises(ValueError, match="the loader gave no batches"):
        match(spec, a, a, by=method, model=model, loader=[])


def test_inputs_that_do_not_fit_the_model_are_refused():
    model = Chain().double()
    spec, a = trace(model, images(2)), drawn(model)
    with pytest.raises(ValueError, match="torch.export refuses this model or input"):
        activation_matching(spec, a, a, model=model, loader=[images(3)[..., :2]])


def test_models_of_different_classes_are_refused(network):
    model, spec = network
    other = nn.Linear(3, 2).double().state_dict()
    for method in METHODS:
        with pytest.raises(ValueError, match="^b: the spec has '.*', the weights have not"):
            match(spec, drawn(model), other, by=method, **options(method, model))


def test_unknown_matchers_and_options_are_refused_with_those_that_there_are():
    spec = trace(Chain(), images(2))
    a = drawn(Chain())
    with pytest.raises(ValueError, match="unknown matcher 'weight': there are weights, activations, straight-through"):
        match(spec, a, a, by="weight")
    with pytest.raises(ValueError, match="'frank-wolfe' has no option 'seed': there are max_sweeps, tolerance, chunk"):
        match(spec, a, a, by="frank-wolfe", seed=1)
    with pytest.raises(ValueError, match="similarity is 'inner product' or 'correlation', not 'cosine'"):
        activation_matching(spec, a, a, model=Chain(), loader=[], similarity="cosine")


class OnlyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return (x.mean([1, 2, 3])[:, None] * self.scale).sum(1)


def test_units_that_no_layer_reads_or_gives_are_named():
    spec = trace(OnlyNorm(), images(2))
    weights = {"scale": torch.ones(4, dtype=torch.float64)}
    with pytest.raises(ValueError, match="no layer reads or gives the units of 'scale': match .* by its weights"):
        activation_matching(spec, weights, weights, model=OnlyNorm(), loader=[images(2)])
