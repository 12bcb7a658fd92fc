"""Bounds from above hold for every network, bounds from below are reached, and no attack changes a certified class."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn
from torch.func import functional_call

from lab.data import load
from lab.measures.lipschitz import (
    averaged_bound,
    certified_radius,
    eclipse_fast,
    gradient_norms,
    layer_matrices,
    spectral_norms,
    spectral_product,
)
from lab.networks.mlp import mlp
from lab.networks.normalise import Normalise
from rebasin.permutation import Permutation

BOUNDS = [spectral_product, eclipse_fast, averaged_bound]
# A few hundred float64 operations between two ways to the same number.
ROUNDING = {"rtol": 1e-10, "atol": 0}
ABOVE = 1 + 1e-10
CHANNELS, SIDE, HIDDEN, CLASSES = 3, 2, 5, 4


@pytest.fixture(scope="module")
def model():
    """Two hidden layers on images of three channels, each with its own normalisation."""
    return nn.Sequential(
        Normalise((0.5, 0.4, 0.1), (0.5, 0.2, 0.05)),
        nn.Flatten(),
        nn.Linear(CHANNELS * SIDE**2, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weights_of(model, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(n, *tensor.shape, generator=generator, dtype=torch.float64)
        for key, tensor in model.state_dict().items()
    }


def random_matrices(sizes, n=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return [torch.randn(n, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def one(weights, i):
    return {key: tensor[i] for key, tensor in weights.items()}


def logits_of(model, weights, x):
    """(n, m, classes), one network at a time."""
    n = len(next(iter(weights.values())))
    return torch.stack([functional_call(model, one(weights, i), (x,)) for i in range(n)]).detach()


def forward(matrices, biases, x):
    for matrix, bias in zip(matrices[:-1], biases[:-1], strict=True):
        x = (x @ matrix.T + bias).clamp(min=0)
    return x @ matrices[-1].T + biases[-1]


def exact_constant(matrices, biases):
    """The Lipschitz constant of one ReLU network: the largest norm among its linear regions, each found by an LP."""
    widths = [len(bias) for bias in biases[:-1]]
    largest, regions = 0.0, 0
    for signs in itertools.product([1.0, -1.0], repeat=sum(widths)):
        slope, shift = torch.eye(matrices[0].shape[1]).double(), torch.zeros(matrices[0].shape[1]).double()
        rows, offsets = [], []
        for matrix, bias, pattern in zip(matrices, biases, torch.tensor(signs).double().split(widths), strict=False):
            slope, shift = matrix @ slope, matrix @ shift + bias
            rows.append(pattern[:, None] * slope)
            offsets.append(pattern * shift)
            slope, shift = slope * (pattern > 0)[:, None], shift * (pattern > 0)
        # Is there a point where each unit is on its side of 0, by a slack t as large as can be up to 1?
        rows, offsets = torch.cat(rows), torch.cat(offsets)
        left = torch.cat([-rows, torch.ones(len(rows), 1)], 1).numpy()
        free = [(None, None)] * rows.shape[1]
        found = linprog([0.0] * rows.shape[1] + [-1.0], left, offsets.numpy(), bounds=[*free, (None, 1)])
        if found.x[-1] > 1e-9:
            regions += 1
            largest = max(largest, float(torch.linalg.matrix_norm(matrices[-1] @ slope, 2)))
    assert regions > 1
    return largest


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [(2, 3, 3, 2), (2, 4, 1)])
def test_no_bound_is_below_the_exact_constant_of_a_small_network(sizes, seed):
    matrices = random_matrices(sizes, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    biases = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes[1:]]
    exact = exact_constant([matrix[0] for matrix in matrices], biases)
    for bound in BOUNDS:
        assert exact <= bound(matrices).item() * ABOVE, bound


def test_the_bounds_of_a_diagonal_network_are_those_computed_by_hand():
    matrices = [[[[2.0, 0.0], [0.0, 1.0]]], [[[1.0, math.sqrt(7) / 2]]]]
    matrices = [torch.tensor(matrix, dtype=torch.float64) for matrix in matrices]
    product = 2 * math.sqrt(1 + 7 / 4)
    assert spectral_product(matrices).item() == pytest.approx(product, rel=1e-12)
    # g = 4 and N = 2 I - diag(4, 1) / 4 = diag(1, 7/4), so that L^2 = 4 (1 + (7/4) / (7/4)).
    assert eclipse_fast(matrices).item() == pytest.approx(math.sqrt(8), rel=1e-12)
    # W_2 W_1 = (2, sqrt(7) / 2); with both units on, the network reaches that norm.
    exact = math.sqrt(4 + 7 / 4)
    assert averaged_bound(matrices).item() == pytest.approx((exact + product) / 2, rel=1e-12)
    biases = [torch.zeros(2).double(), torch.zeros(1).double()]
    assert exact_constant([matrix[0] for matrix in matrices], biases) == pytest.approx(exact, rel=1e-12)


def test_every_bound_is_exact_for_orthogonal_layers():
    matrices = [3 * torch.linalg.qr(matrix).Q for matrix in random_matrices((6, 6, 6, 6), n=2)]
    for bound in BOUNDS:
        torch.testing.assert_close(bound(matrices), torch.full((2,), 27.0).double(), **ROUNDING)


@pytest.mark.parametrize("sizes", [(3, 2), (2, 4, 1), (12, 8, 7, 6, 3), (3, 9, 2, 9, 4)])
def test_eclipse_fast_is_the_least_bound_that_its_multipliers_certify(sizes):
    """LipSDP's matrix, built block by block with the published multipliers, is positive semidefinite, and just so."""
    matrices = [matrix[0] for matrix in random_matrices(sizes, seed=1)]
    bound = eclipse_fast([matrix.unsqueeze(0) for matrix in matrices]).item()
    messenger, multipliers = torch.eye(sizes[0]).double(), []
    for matrix in matrices[:-1]:
        inner = matrix @ messenger.inverse() @ matrix.T
        multipliers.append(2 / torch.linalg.matrix_norm(inner, 2))
        messenger = multipliers[-1] * torch.eye(len(matrix)) - multipliers[-1] ** 2 / 4 * inner

    def smallest_eigenvalue(constant):
        diagonal = [torch.eye(sizes[0]).double()]
        diagonal += [factor * torch.eye(size) for factor, size in zip(multipliers, sizes[1:-1], strict=True)]
        whole = torch.block_diag(*diagonal)
        starts = [0, *itertools.accumulate(sizes[:-1])]
        for i, (factor, matrix) in enumerate(zip(multipliers, matrices[:-1], strict=True)):
            columns, rows = slice(starts[i], starts[i + 1]), slice(starts[i + 1], starts[i + 2])
            whole[rows, columns] = -factor * matrix / 2
            whole[columns, rows] = whole[rows, columns].T
        last = slice(starts[-2], starts[-1])
        whole[last, last] -= matrices[-1].T @ matrices[-1] / constant**2
        return torch.linalg.eigvalsh(whole)[0].item()

    assert smallest_eigenvalue(bound) >= -1e-9
    assert smallest_eigenvalue(bound * 0.999) < -1e-9


@pytest.mark.parametrize("sizes", [(3, 2), (2, 4, 1), (12, 8, 7, 6, 3)])
def test_the_averaged_bound_is_its_sum_over_all_choices_of_cuts(sizes):
    matrices = [matrix[0] for matrix in random_matrices(sizes, seed=2)]
    total = 0.0
    for cuts in itertools.product([False, True], repeat=len(matrices) - 1):
        term, product = 1.0, matrices[0]
        for cut, matrix in zip(cuts, matrices[1:], strict=True):
            term, product = (term * torch.linalg.matrix_norm(product, 2), matrix) if cut else (term, matrix @ product)
        total += term * torch.linalg.matrix_norm(product, 2)
    expected = (total / 2 ** (len(matrices) - 1)).reshape(1)
    torch.testing.assert_close(averaged_bound([matrix.unsqueeze(0) for matrix in matrices]), expected, **ROUNDING)


@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    distance=st.floats(1e-3, 1e3),
)
def test_outputs_move_no_further_than_each_bound_allows(seed, sizes, distance):
    matrices = random_matrices(sizes, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    biases = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes[1:]]
    x, step = torch.randn(2, 50, sizes[0], generator=generator, dtype=torch.float64)
    step = step * distance
    single = [matrix[0] for matrix in matrices]
    moved = (forward(single, biases, x + step) - forward(single, biases, x)).norm(dim=1)
    product = spectral_product(matrices).item()
    for bound in BOUNDS:
        # Differences of outputs near each other lose digits.
        assert (moved <= bound(matrices).item() * step.norm(dim=1) * (1 + 1e-6) + 1e-9).all(), bound
        assert bound(matrices).item() <= product * ABOVE, bound


@pytest.mark.parametrize("bound", BOUNDS)
def test_many_networks_at_once_have_the_bounds_that_each_has_alone(bound):
    matrices = random_matrices((4, 3, 5, 2), n=3)
    alone = torch.cat([bound([matrix[i : i + 1] for matrix in matrices]) for i in range(3)])
    torch.testing.assert_close(bound(matrices), alone, **ROUNDING)
    assert len(alone.unique()) == 3


@pytest.mark.parametrize("bound", BOUNDS)
def test_permuting_hidden_units_changes_no_bound(bound, net, spec, random_weights):
    weights = random_weights(3)
    permuted = Permutation.random(spec, (3,), torch.Generator().manual_seed(0)).apply(weights)
    expected = bound(layer_matrices(net, weights))
    torch.testing.assert_close(bound(layer_matrices(net, permuted)), expected, **ROUNDING)


@pytest.mark.parametrize("factor", [-1.0, 1e-30, 7.0])
@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("bound", BOUNDS)
def test_scaling_a_layer_scales_every_bound(bound, layer, factor):
    matrices = random_matrices((4, 3, 5, 2), n=2)
    scaled = [matrix * factor if i == layer else matrix for i, matrix in enumerate(matrices)]
    torch.testing.assert_close(bound(scaled), bound(matrices) * abs(factor), **ROUNDING)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_layer_of_zeros_makes_the_bound_zero_and_harms_no_other_network(bound, layer):
    matrices = random_matrices((4, 3, 5, 2), n=2)
    expected = bound(matrices)
    matrices[layer][0] = 0
    expected[0] = 0
    torch.testing.assert_close(bound(matrices), expected, **ROUNDING)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (1, 5), (4, 4)])
def test_spectral_norms_are_the_largest_singular_values(shape):
    matrices = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(spectral_norms(matrices), torch.linalg.svdvals(matrices)[..., 0], **ROUNDING)


def test_the_matrices_multiply_to_the_gradient_in_pixels(model, images):
    weights = weights_of(model, 2)
    matrices = layer_matrices(model, weights)
    assert [tuple(matrix.shape) for matrix in matrices] == [(2, 5, 12), (2, 5, 5), (2, 4, 5)]
    for i, image in itertools.product(range(2), images):
        x = model[:2](image.unsqueeze(0)).squeeze(0)
        product = matrices[0][i]
        for layer, matrix in zip([2, 4], matrices[1:], strict=True):
            x = weights[f"{layer}.weight"][i] @ x + weights[f"{layer}.bias"][i]
            product = matrix[i] @ ((x > 0).unsqueeze(1) * product)
            x = x.clamp(min=0)
        # The normalisation is kept in float32, and converts to float64 as it is.
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: logits_of_one(model, weights, i, x), image)
        torch.testing.assert_close(product, jacobian.flatten(1), rtol=1e-10, atol=1e-10)


def logits_of_one(model, weights, i, image):
    return functional_call(model, one(weights, i), (image.unsqueeze(0),)).squeeze(0)


def test_gradient_norms_are_those_of_each_network_at_each_image(model, images):
    weights = weights_of(model, 3)
    found = gradient_norms(model, weights, images, "cpu")
    assert found.shape == (3, 7)
    assert found.dtype == torch.float64
    for i, j in itertools.product(range(3), range(7)):
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: logits_of_one(model, weights, i, x), images[j])
        torch.testing.assert_close(found[i, j], torch.linalg.matrix_norm(jacobian.flatten(1), 2), **ROUNDING)


@pytest.mark.parametrize(("chunk", "batch"), [(2, 7), (3, 3), (5, 1)])
def test_gradient_norms_do_not_depend_on_how_many_go_through_at_once(model, images, chunk, batch):
    weights = weights_of(model, 3)
    parts = gradient_norms(model, weights, images, "cpu", chunk, batch)
    torch.testing.assert_close(parts, gradient_norms(model, weights, images, "cpu"), **ROUNDING)


def test_gradient_norms_take_any_architecture(images):
    layers = [nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).train()
    # BatchNorm counts its batches in an integer, and its statistics are those of training.
    state = {
        key: torch.rand(2, *t.shape) if t.is_floating_point() else t.repeat(2) for key, t in model.state_dict().items()
    }
    found = gradient_norms(model, state, images.float(), "cpu")
    exact = {key: tensor.double() for key, tensor in one(state, 1).items()}
    jacobian = torch.autograd.functional.jacobian(
        lambda x: functional_call(model, exact, (x[None],))[0], images[0].float().double()
    )
    torch.testing.assert_close(found[1, 0], torch.linalg.matrix_norm(jacobian.flatten(1), 2), **ROUNDING)


def test_gradients_of_real_images_are_below_every_bound():
    data = load("digits")
    model = mlp(data, width=16)
    weights = {key: tensor.float() for key, tensor in weights_of(model, 3).items()}
    norms = gradient_norms(model, weights, data.test.images[:100].float() / 255, "cpu")
    assert (norms > 0).all()
    for bound in BOUNDS:
        assert (norms.amax(1) <= bound(layer_matrices(model, weights)) * ABOVE).all(), bound


def attack(model, weights, images, labels, radius, steps=40):
    """Images moved by at most ``radius`` (m,) towards the class next in line, by normalised gradient steps."""
    delta = torch.zeros_like(images)
    for step in range(steps):
        x = (images + delta).requires_grad_()
        logits = functional_call(model, weights, (x,))
        own = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - own).sum(), x)
        size = (2 * radius / (step + 1))[:, None, None, None]
        delta = delta + size * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
        length = delta.flatten(1).norm(dim=1)
        delta = delta * (radius / length.clamp(min=1e-12)).clamp(max=1)[:, None, None, None]
    return images + delta


@pytest.mark.parametrize("bound", BOUNDS)
def test_no_attack_inside_the_certified_radius_changes_the_class(model, images, bound):
    shallow = nn.Sequential(*model[:4], nn.Linear(HIDDEN, CLASSES))
    won = 0
    for network, seed in itertools.product([model, shallow], range(3)):
        weights = weights_of(network, 1, seed)
        logits = logits_of(network, weights, images)
        labels = logits[0].argmax(1)
        (radius,) = certified_radius(logits, labels, bound(layer_matrices(network, weights)))
        assert (radius > 0).all()
        inside = attack(network, one(weights, 0), images, labels, 0.999 * radius)
        assert torch.equal(logits_of(network, weights, inside)[0].argmax(1), labels)
        outside = attack(network, one(weights, 0), images, labels, 3 * radius)
        won += int((logits_of(network, weights, outside)[0].argmax(1) != labels).sum())
    # The attack is no straw man: where the bound is good, it wins a little further out.
    assert won >= len(images)


def test_the_radius_of_two_opposite_linear_classes_is_their_distance_from_the_boundary(images):
    """For logits w x and -w x the bound is sqrt(2) |w|, the margin 2 |w x|, the radius their distance |w x| / |w|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, 2))
    row = weights_of(model, 1)["1.weight"][:, :1]
    weights = {"1.weight": torch.cat([row, -row], 1), "1.bias": torch.zeros(1, 2).double()}
    logits = logits_of(model, weights, images)
    labels = logits[0].argmax(1)
    radius = certified_radius(logits, labels, eclipse_fast(layer_matrices(model, weights)))
    distance = (images.flatten(1) @ row[0, 0]).abs() / row.norm()
    torch.testing.assert_close(radius, distance.unsqueeze(0), **ROUNDING)
    for factor, changed in [(0.999, False), (1.001, True)]:
        moved = attack(model, one(weights, 0), images, labels, factor * radius[0])
        assert ((logits_of(model, weights, moved)[0].argmax(1) != labels) == changed).all()


def test_radii_of_planted_logits():
    logits = torch.tensor([[[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [2.0, 2.0, 0.0]]]).expand(2, -1, -1)
    labels = torch.tensor([0, 2, 0])
    radius = certified_radius(logits, labels, torch.tensor([0.5, 0.0], dtype=torch.float64))
    # Right by 1, wrong, and a tie, which nothing certifies; where nothing can move, right is right for ever.
    expected = torch.tensor([[math.sqrt(2), 0.0, 0.0], [math.inf, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(radius, expected, **ROUNDING)


def test_scaling_the_logits_scales_no_radius(model, images):
    """Smaller logits alone certify nothing: margin and bound shrink alike."""
    weights = weights_of(model, 2)
    labels = logits_of(model, weights, images)[0].argmax(1)
    smaller = {key: tensor / 16 if key.startswith("6.") else tensor for key, tensor in weights.items()}
    radii = [
        certified_radius(logits_of(model, w, images), labels, eclipse_fast(layer_matrices(model, w)))
        for w in (weights, smaller)
    ]
    torch.testing.assert_close(radii[1], radii[0], **ROUNDING)


class Square(nn.ReLU):
    """A ReLU by descent alone: its slope has no bound."""

    def forward(self, x):
        return x**2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)], "not for '1', a Tanh, after a Linear"),
        ([nn.Linear(4, 3), Square(), nn.Linear(3, 2)], "not for '1', a Square, after a Linear"),
        ([nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)], "not for '1', a BatchNorm1d"),
        ([nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(3, 2)], "not for '0', a Conv2d, as the first"),
        ([nn.Sequential(nn.Linear(4, 3))], "not for '0', a Sequential, as the first"),
        ([Normalise((0.5,), (0.5,)), nn.Linear(4, 3)], "not for '1', a Linear, after a Normalise"),
        ([nn.Linear(4, 3), nn.ReLU()], "the last must be a linear layer"),
        ([], "the last must be a linear layer"),
        ([nn.Flatten(2), nn.Linear(4, 3)], "'0' does not flatten whole images"),
        ([Normalise((0.5,) * 3, (0.5,) * 3), nn.Flatten(), nn.Linear(4, 3)], "4 inputs are no whole number of pixels"),
    ],
)
def test_networks_that_the_bounds_do_not_hold_for_are_refused(layers, message):
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=message):
        layer_matrices(model, weights_of(model, 2))


def test_what_is_no_chain_is_refused_and_a_layer_is_not_used_twice():
    with pytest.raises(ValueError, match="not for a Linear"):
        layer_matrices(nn.Linear(4, 3), weights_of(nn.Linear(4, 3), 2))
    shared, relu = nn.Linear(3, 3), nn.ReLU()
    reused = nn.Sequential(shared, relu, shared, relu, nn.Linear(3, 2))
    with pytest.raises(ValueError, match="'2.weight' is '0.weight' too"):
        layer_matrices(reused, weights_of(reused, 2))
    # One ReLU may serve every layer.
    plain = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2))
    assert len(layer_matrices(plain, weights_of(plain, 2))) == 3


def test_weights_that_do_not_fit_are_refused(model):
    weights = weights_of(model, 2)
    with pytest.raises(ValueError, match="the model has '2.bias', the weights have not"):
        layer_matrices(model, {key: tensor for key, tensor in weights.items() if key != "2.bias"})
    weights["4.weight"][1, 0, 0] = math.nan
    with pytest.raises(ValueError, match="'4.weight' holds NaN or infinite values"):
        layer_matrices(model, weights)


def test_gradients_that_cannot_be_taken_are_refused(model, images):
    weights = weights_of(model, 2)
    with pytest.raises(ValueError, match="no gradients to take: 0 models, 7 images"):
        gradient_norms(model, weights_of(model, 0), images, "cpu")
    with pytest.raises(ValueError, match="no gradients to take: 2 models, 0 images"):
        gradient_norms(model, weights, images[:0], "cpu")
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got torch.uint8 in \[0, 255\]"):
        gradient_norms(model, weights, torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1), "cpu")
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        gradient_norms(model, weights, images * 255, "cpu")
    weights["6.weight"][1] = math.inf
    with pytest.raises(ValueError, match="a model's gradients are NaN or infinite"):
        gradient_norms(model, weights, images, "cpu")


def test_a_margin_needs_two_classes():
    with pytest.raises(ValueError, match="a margin needs two classes or more, got 1"):
        certified_radius(torch.zeros(2, 3, 1), torch.zeros(3, dtype=torch.int64), torch.ones(2))
