"""The areas are exact: the pieces tile the square, a dense grid agrees, and what was derived by hand comes out."""

import dataclasses
import functools
import itertools
import re
from fractions import Fraction

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch.func import functional_call

from lab.bookkeeping import results
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
from lab.report import counterexample_chapter, counterexample_figures
from lab.report import tabs as report
from lab.report.claims import REPLICATED, decide
from lab.report.draw import themed

HALF = Fraction(1, 2)
PATHS = [(permutation, lam) for permutation in PERMUTATIONS for lam in (LAMS[1], LAMS[7], HALF, LAMS[19])]


@pytest.fixture(scope="module")
def paths():
    return counterexample.paths()


def at(permutation, lam):
    return between(A, permuted(B, permutation), lam)


def answers(network, points):
    return functional_call(counterexample.model(), counterexample.state(network), (points,)).squeeze(-1).detach()


def grid(side):
    """The middles of side x side cells of the square: none lies on the edge of the quadrant."""
    middles = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
    return torch.cartesian_prod(middles, middles)


@pytest.mark.parametrize("network", [A, B, *(permuted(B, permutation) for permutation in PERMUTATIONS)])
def test_both_networks_compute_the_function_exactly(network):
    assert error(network) == 0
    points = grid(100)
    assert torch.equal(answers(network, points) >= 0, (points[:, 0] < 0) & (points[:, 1] > 0))


@pytest.mark.parametrize(("permutation", "lam"), PATHS)
def test_the_pieces_make_the_whole_square_and_the_network_is_linear_on_each(permutation, lam):
    network = at(permutation, lam)
    found = pieces(network)
    assert sum(area(polygon) for polygon, _ in found) == area(SQUARE) == 4
    for polygon, (of_x1, of_x2, constant) in found:
        middle = [sum(parts) / len(polygon) for parts in zip(*polygon, strict=True)]
        points = [(float(x1), float(x2)) for x1, x2 in (*polygon, middle)]
        linear = [float(of_x1) * x1 + float(of_x2) * x2 + float(constant) for x1, x2 in points]
        there = answers(network, torch.tensor(points, dtype=torch.float64))
        assert torch.allclose(there, torch.tensor(linear, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("permutation", "lam"), PATHS)
def test_a_dense_grid_agrees_with_the_exact_area(permutation, lam):
    # Only cells on the edges of the polygons are counted wrongly: a few for each of the 401 rows.
    points = grid(401)
    wrong = (answers(at(permutation, lam), points) >= 0) != ((points[:, 0] < 0) & (points[:, 1] > 0))
    assert abs(wrong.double().mean().item() - float(error(at(permutation, lam)))) < 4 / 401


def test_at_the_midpoint_the_second_half_plane_is_what_the_formulas_say():
    # By hand: at 1/2, 21/21 says yes where x2 >= x1, which is half the square, the quadrant included.
    wrong = misclassified(at("21/21", HALF))
    assert sorted(sorted(polygon) for polygon in wrong) == [[(-1, -1), (-1, 0), (0, 0)], [(0, 0), (0, 1), (1, 1)]]
    # Of 21/21 at lam before 1/2, yes is said where x2 is above both x1 (1 - lam) / lam and x1 lam / (1 - lam).
    lam = Fraction(1, 4)
    assert error(at("21/21", lam)) == 2 * HALF * (lam / (1 - lam)) / 4
    # 12/12 at 1/2 does not see the point at all, and says no.
    assert misclassified(at("12/12", HALF)) == [((-1, 0), (0, 0), (0, 1), (-1, 1))]


def test_no_permutation_connects_the_two(paths):
    found = counterexample.barriers(paths)
    assert list(found["permutation"]) == ["12/12", "12/21", "21/12", "21/21"]
    assert list(found["value"]) == [0.25] * 4
    assert set(found["metric"]) == {"error_barrier"}


def test_a_path_has_25_points_and_right_ends(paths):
    assert list(paths.groupby("node").size()) == [25] * 4
    assert set(paths["lam"]) == {point / 24 for point in range(25)}
    assert (paths[paths["lam"].isin([0, 1])]["value"] == 0).all()


def test_a_barrier_is_measured_from_the_mean_of_the_ends():
    values = {0.0: 0.1, 0.5: 0.4, 1.0: 0.3}
    rows = [(0, "12/12", lam, value) for lam, value in values.items()]
    found = counterexample.barriers(pd.DataFrame(rows, columns=["node", "permutation", "lam", "value"]))
    assert found["value"].tolist() == pytest.approx([0.2], abs=1e-15)


def test_the_worst_of_several_points_is_the_one_nearest_to_the_middle(paths):
    found = counterexample.worst(paths)
    assert list(found["lam"]) == [0.5] * 4
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
    for permutation in PERMUTATIONS:
        assert torch.equal(answers(permuted(network, permutation), points), answers(network, points))
    assert len({permuted(network, permutation) for permutation in PERMUTATIONS}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_the_library_makes_the_same_networks_and_finds_the_nearest(seed):
    found = counterexample.by_library(seed).set_index("permutation")
    assert found["same"].all()
    assert found["inner_product"].to_dict() == {"12/12": -2, "12/21": 1, "21/12": 3, "21/21": 6}
    assert list(found.index[found["matched"]]) == ["21/21"]


@functools.cache
def begun():
    """An execution of the notebook, as from a clean tree; fingerprinting its code is slow, and once is enough."""
    experiment = results.begin("counterexample", {"run": "mine", "seed": 0})
    return dataclasses.replace(experiment, code=experiment.code | {"clean": True})


@pytest.fixture
def plant(monkeypatch, tmp_path, paths):
    """``plant(0.125)`` lets a run have the notebook's tables, with 21/21 at this barrier."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))
    monkeypatch.setenv("REBASIN_RUN", "mine")
    return lambda smallest: plant_tables(paths.copy(), smallest)


def plant_tables(paths, smallest):
    paths.loc[(paths["permutation"] == "21/21") & (paths["value"] > smallest), "value"] = smallest
    barriers = counterexample.barriers(paths).merge(counterexample.by_library(0))
    row = {"node": 0, "metric": "error_barrier", "value": barriers["value"].min()}
    tables = {"paths": paths, "barriers": barriers, "smallest": pd.DataFrame([row])}
    results.finish(begun(), [], tables, models="two 2-2-2-1 networks, written down")


def test_the_claim_is_decided_by_one_exact_value(plant):
    plant(0.125)
    claim = next(claim for claim in decide("mine") if claim.id == "G7")
    assert claim.verdict == REPLICATED
    assert claim.conditions[0].effect.mean == 12.5
    told = counterexample_chapter.finding()
    assert told.startswith("<strong>No permutation connects the two networks</strong>, as the paper says")
    assert "each of the 4 permutations" in told and "at least 12.5 % of the square" in told and "at 25 points" in told
    assert counterexample_chapter.matched_finding() == (
        "Weight matching swaps the units of the first and the second hidden layer (21/21), the permutation nearest to "
        "A by the inner product of the weights; the barrier on its path is 12.5 % of the square."
    )


def test_a_permutation_that_connects_them_would_refute_the_claim(plant):
    plant(0.0)
    told = counterexample_chapter.finding()
    assert told.startswith("<strong>A permutation connects the two networks</strong>, against the paper: 21/21, at all")


def test_the_table_tells_where_each_path_is_worst(plant):
    plant(0.25)
    table = counterexample_chapter.table("mine").set_index("order of the units")
    assert list(table.index) == ["12/12", "12/21", "21/12", "<strong>21/21</strong>"]
    assert list(table["most is misclassified at λ"]) == ["0.04 to 0.96", "0.04 to 0.96", "0.50", "0.50"]
    assert list(table["barrier (% of the square)"]) == ["25"] * 4
    assert list(table["inner product with A"]) == ["−2", "1", "3", "6"]
    assert "two 2-2-2-1 networks, written down · no data set" in report.measured_on("mine", "counterexample")


def test_nothing_is_said_before_it_was_computed(monkeypatch, tmp_path):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))
    assert counterexample_chapter.finding() == "The counterexample was not computed yet."
    assert counterexample_chapter.matched_finding() == ""


def test_the_figures_show_every_permutation(paths):
    regions = counterexample.regions(counterexample.worst(paths))
    lines = counterexample_figures.error_along_paths(paths).axes[0].get_lines()
    assert [line.get_label() for line in lines] == list(PERMUTATIONS)
    squares = counterexample_figures.misclassified_squares(regions)
    assert [axes.get_title().split(",")[0] for axes in squares.axes] == list(PERMUTATIONS)
    plt.close("all")
    for draw in (
        lambda: counterexample_figures.error_along_paths(paths),
        lambda: counterexample_figures.misclassified_squares(regions),
    ):
        assert themed(draw, "alt").data.count("<img ") == 2
    assert plt.get_fignums() == []


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
    assert set(PERMUTATIONS) == {"/".join(both) for both in itertools.product(("12", "21"), repeat=2)}
