"""The areas are exact: the pieces tile the square, a dense grid agrees, and what was derived by hand comes out."""

import itertools
import re
from fractions import Fraction

import pandas as pd
import pytest
import torch
from torch.func import functional_call

from lab.bookkeeping.code import ROOT
from lab.measures import counterexample
from lab.measures.counterexample import (
    LAMS,
    PERMUTATIONS,
    SQUARE,
    A,
    B,
    area,
    between,
    error,
    halves,
    misclassified,
    permuted,
    pieces,
)

HALF = Fraction(1, 2)
PATHS = [(orders, lam) for orders in PERMUTATIONS for lam in (LAMS[1], LAMS[7], HALF, LAMS[19])]
BOTH, NEITHER = ("21", "21"), ("12", "12")


@pytest.fixture(scope="module")
def paths():
    return counterexample.paths()


def at(orders, lam):
    return between(A, permuted(B, orders), lam)


def answers(network, points):
    return functional_call(counterexample.model(), counterexample.state(network), (points,)).squeeze(-1).detach()


def grid(side):
    """The middles of side x side cells of the square: none lies on the edge of the quadrant."""
    middles = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
    return torch.cartesian_prod(middles, middles)


@pytest.mark.parametrize("network", [A, B, *(permuted(B, orders) for orders in PERMUTATIONS)])
def test_both_networks_compute_the_function_exactly(network):
    assert error(network) == 0
    points = grid(100)
    assert torch.equal(answers(network, points) >= 0, (points[:, 0] < 0) & (points[:, 1] > 0))


@pytest.mark.parametrize(("orders", "lam"), PATHS)
def test_the_pieces_make_the_whole_square_and_the_network_is_linear_on_each(orders, lam):
    network = at(orders, lam)
    parts = pieces(network)
    assert sum(area(polygon) for polygon, _ in parts) == area(SQUARE) == 4
    for polygon, (of_x1, of_x2, constant) in parts:
        middle = [sum(axis) / len(polygon) for axis in zip(*polygon, strict=True)]
        points = [(float(x1), float(x2)) for x1, x2 in (*polygon, middle)]
        linear = [float(of_x1) * x1 + float(of_x2) * x2 + float(constant) for x1, x2 in points]
        there = answers(network, torch.tensor(points, dtype=torch.float64))
        assert torch.allclose(there, torch.tensor(linear, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("orders", "lam"), PATHS)
def test_a_dense_grid_agrees_with_the_exact_area(orders, lam):
    # Only cells on the edges of the polygons are counted wrongly: a few for each of the 401 rows.
    points = grid(401)
    wrong = (answers(at(orders, lam), points) >= 0) != ((points[:, 0] < 0) & (points[:, 1] > 0))
    assert abs(wrong.double().mean().item() - float(error(at(orders, lam)))) < 4 / 401


def test_at_the_midpoint_the_second_half_plane_is_what_the_formulas_say():
    # By hand: at 1/2, 21/21 says yes where x2 >= x1, which is half the square, the quadrant included.
    wrong = misclassified(at(BOTH, HALF))
    assert sorted(sorted(polygon) for polygon in wrong) == [[(-1, -1), (-1, 0), (0, 0)], [(0, 0), (0, 1), (1, 1)]]
    # Of 21/21 at lam before 1/2, yes is said where x2 is above both x1 (1 - lam) / lam and x1 lam / (1 - lam).
    lam = Fraction(1, 4)
    assert error(at(BOTH, lam)) == 2 * HALF * (lam / (1 - lam)) / 4
    # 12/12 at 1/2 does not see the point at all, and says no.
    assert misclassified(at(NEITHER, HALF)) == [((-1, 0), (0, 0), (0, 1), (-1, 1))]


def test_no_permutation_connects_the_two(paths):
    barriers = counterexample.barriers(paths)
    assert list(zip(barriers["first"], barriers["second"], strict=True)) == list(PERMUTATIONS)
    assert list(barriers["value"]) == [0.25] * 4
    assert set(barriers["metric"]) == {"error_barrier"}


def test_a_path_has_25_points_and_right_ends(paths):
    assert list(paths.groupby("node").size()) == [25] * 4
    assert set(paths["lam"]) == {point / 24 for point in range(25)}
    assert (paths[paths["lam"].isin([0, 1])]["value"] == 0).all()


def test_a_barrier_is_measured_from_the_mean_of_the_ends():
    values = {0.0: 0.1, 0.5: 0.4, 1.0: 0.3}
    rows = [(0, "12", "12", lam, value) for lam, value in values.items()]
    barriers = counterexample.barriers(pd.DataFrame(rows, columns=["node", "first", "second", "lam", "value"]))
    assert barriers["value"].tolist() == pytest.approx([0.2], abs=1e-15)


def test_the_worst_of_several_points_is_the_one_nearest_to_the_middle(paths):
    worst = counterexample.worst(paths)
    assert list(worst["lam"]) == [0.5] * 4
    later = paths[~((paths["node"] == 0) & (paths["lam"].between(0.2, 0.7)))]
    assert counterexample.worst(later)["lam"][0] == pytest.approx(17 / 24)


def test_the_regions_have_the_area_of_the_error(paths):
    regions = counterexample.regions(counterexample.worst(paths))
    for _, region in regions.groupby("node"):
        shares = [
            float(area(tuple(zip(corners["x1"], corners["x2"], strict=True)))) / 4
            for _, corners in region.groupby("polygon")
        ]
        assert sum(shares) == 0.25


@pytest.mark.parametrize("height", [(1, 0, 0), (1, 1, 0), (3, -2, 1), (0, 0, 0), (0, 0, 1), (0, 0, -1), (1, 0, 5)])
def test_halves_of_a_polygon_make_the_whole(height):
    on, off = halves(SQUARE, tuple(map(Fraction, height)))
    assert area(on) + area(off) == 4
    assert all(height[0] * x + height[1] * y + height[2] >= 0 for x, y in on)
    assert all(height[0] * x + height[1] * y + height[2] <= 0 for x, y in off)


def test_a_permutation_keeps_the_function_of_any_network_of_this_shape():
    drawn = torch.Generator().manual_seed(0)
    layers = [torch.randint(-9, 10, (units, 3), generator=drawn).tolist() for units in (2, 2, 1)]
    network, points = counterexample._network(*layers), grid(20)
    for orders in PERMUTATIONS:
        assert torch.equal(answers(permuted(network, orders), points), answers(network, points))
    assert len({permuted(network, orders) for orders in PERMUTATIONS}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_the_library_makes_the_same_networks_and_finds_the_nearest(seed):
    table = counterexample.by_library(seed).set_index(["first", "second"])
    assert table["same"].all()
    assert table["inner_product"].to_dict() == {("12", "12"): -2, ("12", "21"): 1, ("21", "12"): 3, BOTH: 6}
    assert list(table.index[table["matched"]]) == [BOTH]


def test_the_chapter_prints_the_networks_that_are_computed():
    text = (ROOT / "book" / "counterexample.md").read_text()
    printed = re.findall(r"&= \\begin\{pmatrix\} (.*?) \\end\{pmatrix\}", text)
    rows = [[[int(part) for part in row.split("&")] for row in matrix.split(r"\\")] for matrix in printed]
    for network, (w1, b1, w2, b2) in ((A, rows[:4]), (B, rows[4:])):
        first, second, last = (list(map(list, layer)) for layer in network)
        assert first == [w + b for w, b in zip(w1, b1, strict=True)]
        assert second == [w + b for w, b in zip(w2, b2, strict=True)]
        assert last == [[-1, -1, 0]]


def test_every_order_of_the_units_is_tried():
    assert set(PERMUTATIONS) == set(itertools.product(("12", "21"), repeat=2))
