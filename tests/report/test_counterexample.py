"""The counterexample in the book: facts, table and figures are those of the tables that were planted."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import plant

from lab.report import counterexample
from lab.report.claims import REPLICATED, decide

ORDERS = [("12", "12"), ("12", "21"), ("21", "12"), ("21", "21")]
INNER_PRODUCTS = [-2.0, 1.0, 3.0, 6.0]


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


def plant_pair(barriers=(0.25, 0.25, 0.25, 0.25), matched=3):
    """Let a run have paths with these barriers; those of the first layer's order ``12`` are as high at two points."""
    paths, regions = [], []
    for node, (orders, barrier) in enumerate(zip(ORDERS, barriers, strict=True)):
        worst = (0.25, 0.5) if orders[0] == "12" else (0.5,)
        for lam in (0.0, 0.25, 0.5, 1.0):
            paths.append((node, *orders, lam, barrier if lam in worst else 0.0))
        regions += [(node, *orders, 0.5, 0, corner, x, y) for corner, (x, y) in enumerate(((0, 0), (0, 1), (-1, 1)))]
    table = pd.DataFrame({"node": range(4), "value": barriers, "inner_product": INNER_PRODUCTS})
    table = table.assign(matched=[node == matched for node in range(4)], metric="error_barrier")
    table[["first", "second"]] = ORDERS
    tables = {
        "paths": pd.DataFrame(paths, columns=["node", "first", "second", "lam", "value"]).assign(metric="error"),
        "barriers": table,
        "smallest": pd.DataFrame([{"node": 0, "metric": "error_barrier", "value": min(barriers)}]),
        "regions": pd.DataFrame(regions, columns=["node", "first", "second", "lam", "polygon", "corner", "x1", "x2"]),
    }
    plant("mine", tables, "counterexample")


def test_the_claim_is_decided_by_one_exact_value():
    plant_pair((0.25, 0.25, 0.25, 0.125))
    (claim,) = decide("mine", ["G7"])
    assert claim.verdict == REPLICATED
    assert claim.condition("best").effect.mean == 12.5
    facts = counterexample.smallest("mine")
    assert facts.outcome == "none connects"
    assert facts.values == {"share": "12.5", "permutations": "4", "points": "4", "connecting": "none"}


def test_a_permutation_that_connects_them_would_refute_the_claim():
    plant_pair((0.25, 0.25, 0.25, 0.0))
    facts = counterexample.smallest("mine")
    assert facts.outcome == "connected" and facts.values["connecting"] == "21/21"
    (claim,) = decide("mine", ["G7"])
    assert claim.verdict != REPLICATED


@pytest.mark.parametrize(
    ("matched", "outcome", "orders"),
    [
        (3, "both, nearest", "21/21"),
        (2, "first, not nearest", "21/12"),
        (1, "second, not nearest", "12/21"),
        (0, "none, not nearest", "12/12"),
    ],
)
def test_what_weight_matching_finds(matched, outcome, orders):
    plant_pair((0.25, 0.25, 0.25, 0.25), matched)
    facts = counterexample.matched("mine")
    assert facts.outcome == outcome
    assert facts.values == {"orders": orders, "share": "25"}


def test_the_table_says_where_each_path_is_worst():
    plant_pair()
    table = counterexample.table("mine").set_index("order of the units")
    assert list(table.index) == ["12/12", "12/21", "21/12", "21/21"]
    assert list(table["worst at λ"]) == ["0.25 to 0.50", "0.25 to 0.50", "0.50", "0.50"]
    assert list(table["barrier (% of the square)"]) == ["25"] * 4
    assert list(table["inner product with A"]) == ["−2", "1", "3", "6"]
    assert list(table["weight matching"]) == ["", "", "", "finds this one"]


def test_the_figures_show_every_permutation():
    plant_pair()
    lines = counterexample.error_along_paths("mine").axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["12/12", "12/21", "21/12", "21/21"]
    squares = counterexample.misclassified_squares("mine")
    assert [axes.get_title() for axes in squares.axes] == [
        f"{orders}, λ = 0.50" for orders in ("12/12", "12/21", "21/12", "21/21")
    ]
    plt.close("all")
