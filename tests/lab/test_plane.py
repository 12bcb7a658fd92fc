"""The plane through A, B and π(B): where the three lie, and that a point of the grid is the network that it says."""

import pytest
import torch
from planting import digits

from lab.measures.plane import corners_in_plane, grid_over, measure_plane
from lab.networks import build
from lab.outputs import evaluate
from rebasin.permutation import Permutation
from rebasin.tracing import trace
from rebasin.weights import interpolate, stack


def networks():
    """An MLP of digits, two random sets of its weights, and the second one permuted."""
    data = digits()
    model = build("mlp1", data, 8)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {key: torch.randn(tensor.shape, generator=generator) for key, tensor in model.state_dict().items()}
        for _ in range(2)
    )
    spec = trace(model, data.example)
    index = {group: torch.randperm(size, generator=generator) for group, size in spec.sizes.items()}
    return model, a, b, Permutation(spec, index).apply(b), data.test.sample(60)


def at(table, metric, x, y):
    """The value at the point of the grid that is nearest."""
    rows = table[table["metric"] == metric]
    return rows.loc[((rows["x"] - x) ** 2 + (rows["y"] - y) ** 2).idxmin(), "value"]


def test_the_corners_have_their_distances():
    _, a, b, matched, _ = networks()
    corners = corners_in_plane(a, b, matched)

    def distance(one, other):
        return torch.sqrt(sum((one[key] - other[key]).double().square().sum() for key in one))

    whole = distance(a, b)
    assert corners[0].tolist() == [0, 0] and corners[1].tolist() == [1, 0]
    assert float(corners[2].norm()) == pytest.approx(float(distance(a, matched) / whole), rel=1e-6)
    assert float((corners[2] - corners[1]).norm()) == pytest.approx(float(distance(b, matched) / whole), rel=1e-6)


def test_points_of_the_grid_are_the_networks_that_lie_there():
    model, a, b, matched, images = networks()
    corners = corners_in_plane(a, b, matched)
    # Without a margin, A and B are on the grid if the matched one lies between them.
    table = measure_plane(model, a, b, matched, images, 21, 0.0, "cpu", 4)
    assert len(table) == 2 * 21**2 and 0 < corners[2, 0] < 1
    for network, (x, y) in ((a, (0, 0)), (b, (1, 0)), (interpolate(a, b, 0.5), (0.5, 0))):
        here = evaluate(model, stack([network]), images, "cpu")
        # Float32 weights are put together from three networks.
        assert at(table, "loss", x, y) == pytest.approx(float(here.loss.double().mean()), rel=1e-4)
        assert at(table, "accuracy", x, y) == pytest.approx(float(here.correct.double().mean()), abs=1 / 60)


def test_a_permuted_copy_loses_what_the_network_loses():
    model, a, b, matched, images = networks()
    corners = corners_in_plane(a, b, matched)
    x, y = grid_over(corners, 2, 0.0)
    assert float(y[-1]) == pytest.approx(float(corners[2, 1]))
    whole = measure_plane(model, a, b, matched, images, 2, 0.0, "cpu", 1)
    loss = float(evaluate(model, stack([b]), images, "cpu").loss.double().mean())
    assert at(whole, "loss", 1, 0) == pytest.approx(loss, rel=1e-4)
    assert float(evaluate(model, stack([matched]), images, "cpu").loss.double().mean()) == pytest.approx(loss, rel=1e-5)


def test_a_margin_lies_on_every_side():
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.6]])
    x, y = grid_over(corners, 3, 0.25)
    assert x.tolist() == pytest.approx([-0.25, 0.5, 1.25]) and y.tolist() == pytest.approx([-0.25, 0.3, 0.85])


def test_what_makes_no_plane_is_refused():
    model, a, b, _, images = networks()
    with pytest.raises(ValueError, match="lie on one line"):
        measure_plane(model, a, b, b, images, 3, 0.1, "cpu")
    with pytest.raises(ValueError, match="2 points on a side"):
        grid_over(torch.zeros(3, 2), 1, 0.1)
