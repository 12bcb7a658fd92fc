"""Weight matching finds planted permutations, tells the truth about its objective, and ends in a local optimum."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lab.data import load
from lab.networks import build
from lab.networks.initial import initial_weights
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.matching.by_weights import weight_matching
from rebasin.permutation import Permutation
from rebasin.tracing import trace

# The objectives here are sums of about 250 float64 products, of order 100: one bit is 1e-14.
ROUNDING = {"rtol": 1e-12, "atol": 1e-11}

LAYERS = ["0", "2", "4", "6"]


def inner_products(a, b):
    """(batch,) from weights (batch, ...), in float64."""
    return sum((a[key].double() * b[key].double()).flatten(1).sum(1) for key in a)


def entry(weights, *position):
    return {key: tensor[position] for key, tensor in weights.items()}


@pytest.fixture(scope="module", params=["fresh", "trained"])
def network(request, tmp_path_factory):
    """The spec and float32 weights of a digits network of 3 x 32 units, freshly initialised and trained."""
    digits = load("digits")
    model = build("mlp", digits, 32)
    spec = trace(model, digits.example)
    if request.param == "fresh":
        return spec, initial_weights(model, "lecun_normal", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        trained = train(Recipe(width=32, batch_size=64), digits, 1, (3,), device="cpu")
    return spec, entry(trained.weights, 0, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_permutation_is_recovered_exactly_within_four_sweeps(network, seed):
    spec, weights = network
    planted = Permutation.random(spec, (20,), torch.Generator().manual_seed(seed))
    a = {key: tensor.expand(20, *tensor.shape) for key, tensor in weights.items()}
    found = weight_matching(spec, a, planted.apply(weights), seed=seed)
    for group, index in planted.invert().indices.items():
        assert torch.equal(found.permutation.indices[group], index)
    assert found.sweeps.max() <= 4


def test_float32_weights_get_an_objective_that_is_true_to_float32(network):
    spec, weights = network
    planted = Permutation.random(spec, (3,), torch.Generator().manual_seed(5))
    a = {key: tensor.expand(3, *tensor.shape) for key, tensor in weights.items()}
    found = weight_matching(spec, a, planted.apply(weights))
    # The weights are recovered, so the products are all squares: no cancellation, and float32 keeps 7 digits.
    torch.testing.assert_close(found.objective, inner_products(a, a), rtol=1e-5, atol=0)


def test_the_objective_is_told_after_each_sweep(spec, random_weights):
    a, b = random_weights(6, seed=1), random_weights(6, seed=2)
    whole = weight_matching(spec, a, b)
    assert whole.sweeps.max() >= 3
    assert whole.objective_by_sweep.shape == (6, 1 + whole.sweeps.max())
    for sweeps in range(whole.objective_by_sweep.shape[1]):
        part = weight_matching(spec, a, b, max_sweeps=sweeps)
        recomputed = inner_products(a, part.permutation.apply(b))
        torch.testing.assert_close(part.objective, recomputed, **ROUNDING)
        torch.testing.assert_close(whole.objective_by_sweep[:, sweeps], recomputed, **ROUNDING)
        assert torch.equal(part.sweeps, whole.sweeps.clamp(max=sweeps))
    assert torch.equal(whole.objective, whole.objective_by_sweep[:, -1])


def test_the_objective_never_falls(spec, random_weights):
    found = weight_matching(spec, random_weights(20, seed=3), random_weights(20, seed=4))
    assert (found.objective_by_sweep.diff() >= 0).all()


def test_the_result_is_never_worse_than_leaving_the_second_network_as_it_is(spec, random_weights):
    a, b = random_weights(20, seed=5), random_weights(20, seed=6)
    matched = inner_products(a, weight_matching(spec, a, b).permutation.apply(b))
    assert (matched > inner_products(a, b)).all()
    same = weight_matching(spec, a, a)
    assert torch.equal(same.objective, same.objective_by_sweep[:, 0])


@pytest.mark.parametrize("chunk", [None, 1, 2, 4])
def test_a_batch_is_matched_as_one_by_one(spec, random_weights, chunk):
    a, b = random_weights(2, 3, seed=7), random_weights(2, 3, seed=8)
    whole = weight_matching(spec, a, b, seed=9, chunk=chunk)
    assert whole.objective_by_sweep.shape[:2] == whole.sweeps.shape == whole.objective.shape == (2, 3)
    assert whole.sweeps.unique().numel() > 1, "pairs that end after different sweeps are the interesting case"
    for i, j in np.ndindex(2, 3):
        alone = weight_matching(spec, entry(a, i, j), entry(b, i, j), seed=9)
        for group, index in alone.permutation.indices.items():
            assert torch.equal(whole.permutation.indices[group][i, j], index)
        assert whole.sweeps[i, j] == alone.sweeps
        torch.testing.assert_close(
            whole.objective_by_sweep[i, j, : alone.sweeps + 1], alone.objective_by_sweep, **ROUNDING
        )
        torch.testing.assert_close(whole.objective[i, j], alone.objective, **ROUNDING)


def test_several_threads_match_as_one_does_and_leave_their_number_as_it_was(spec, random_weights):
    a, b = random_weights(9, seed=32), random_weights(9, seed=33)
    alone = weight_matching(spec, a, b)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = weight_matching(spec, a, b)
        with ThreadPoolExecutor(1) as later:  # a thread that starts afterwards
            assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together.objective_by_sweep, alone.objective_by_sweep)
    for group, index in alone.permutation.indices.items():
        assert torch.equal(together.permutation.indices[group], index)


def scores(a, b, matrices, layer):
    """What Algorithm 1 maximises for a hidden layer, with a bias as one more column: numpy, permutation matrices."""
    here, above = LAYERS[layer], LAYERS[layer + 1]
    below = matrices[layer - 1] if layer else np.eye(a[f"{here}.weight"].shape[1])
    over = matrices[layer + 1] if layer + 1 in matrices else np.eye(len(a[f"{above}.weight"]))
    return (
        a[f"{here}.weight"] @ below @ b[f"{here}.weight"].T
        + np.outer(a[f"{here}.bias"], b[f"{here}.bias"])
        + a[f"{above}.weight"].T @ over @ b[f"{above}.weight"]
    )


def algorithm_1(a, b, seed):
    """Git Re-Basin's Algorithm 1 as it is stated, for one pair of networks of three hidden layers."""
    rng = np.random.default_rng(seed)
    matrices = {layer: np.eye(len(a[f"{LAYERS[layer]}.bias"])) for layer in range(3)}
    while True:
        before = dict(matrices)
        for layer in rng.permutation(3):
            columns = linear_sum_assignment(scores(a, b, matrices, layer), maximize=True)[1]
            matrices[layer] = np.eye(len(columns))[columns]
        if all(np.array_equal(matrices[layer], before[layer]) for layer in range(3)):
            return {LAYERS[layer]: matrix.argmax(1) for layer, matrix in matrices.items()}


@pytest.mark.parametrize("seed", range(10))
def test_it_agrees_with_algorithm_1_written_down_plainly(spec, random_weights, seed):
    a, b = random_weights(seed=2 * seed), random_weights(seed=2 * seed + 1)
    found = weight_matching(spec, a, b, seed=seed)
    stated = algorithm_1({k: t.numpy() for k, t in a.items()}, {k: t.numpy() for k, t in b.items()}, seed)
    for group, index in stated.items():
        assert found.permutation.indices[group].tolist() == index.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_no_single_group_can_be_assigned_better(spec, random_weights, seed):
    a, b = random_weights(seed=20 + 2 * seed), random_weights(seed=21 + 2 * seed)
    found = weight_matching(spec, a, b, seed=seed).permutation.indices
    a, b = ({key: tensor.numpy() for key, tensor in weights.items()} for weights in (a, b))
    matrices = {i: np.eye(len(found[LAYERS[i]]))[found[LAYERS[i]].numpy()] for i in range(3)}
    for layer in range(3):
        gain = scores(a, b, matrices, layer)
        rows, columns = linear_sum_assignment(gain, maximize=True)
        assert (gain * matrices[layer]).sum() == pytest.approx(gain[rows, columns].sum(), rel=1e-12)


def test_the_visiting_order_depends_on_the_seed(spec, random_weights):
    a, b = random_weights(10, seed=30), random_weights(10, seed=31)
    results = [weight_matching(spec, a, b, seed=seed).objective for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])


def test_a_network_without_hidden_layers_is_left_as_it_is():
    spec = trace(torch.nn.Linear(3, 2), torch.randn(2, 3))
    weights = {"weight": torch.ones(4, 2, 3), "bias": torch.ones(4, 2)}
    found = weight_matching(spec, weights, weights)
    assert found.permutation.indices == {}
    assert found.objective.tolist() == [8.0] * 4


def test_networks_of_different_shapes_are_refused(spec, random_weights):
    a = random_weights(2)
    with pytest.raises(ValueError, match=r"'0.weight': a has shape \(2, 8, 12\), b has \(3, 8, 12\)"):
        weight_matching(spec, a, random_weights(3))
    with pytest.raises(ValueError, match=r"^b: '0.weight' has shape \(8, 5\), the spec has \(8, 12\)"):
        weight_matching(spec, a, {**a, "0.weight": a["0.weight"][..., :5]})


@pytest.mark.parametrize("which", ["a", "b"])
def test_nan_is_refused_and_the_network_at_fault_named(spec, random_weights, which):
    pair = {"a": random_weights(2), "b": random_weights(2, seed=1)}
    pair[which]["2.bias"][1, 0] = float("nan")
    with pytest.raises(ValueError, match=f"^{which}: '2.bias' holds NaN or infinite values"):
        weight_matching(spec, pair["a"], pair["b"])
