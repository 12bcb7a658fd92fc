"""The 95 % interval covers the truth in 95 % of runs, and says nothing where there are too few nodes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lab.report.statistics import FEWEST_FOR_INTERVAL, holm, interval, p_value, share_interval, share_p_value

# Both sides are the same few sums in float64, taken in another order.
ROUNDING = 1e-10


def width(found):
    return found.high - found.low


@pytest.mark.parametrize(
    ("of_nodes", "of_images", "of_rest"),
    [(1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.02, 1.0, 1.0), (0.1, 0.6, 1.0)],
    ids=["both count", "nodes alone", "images alone", "alike in the mean"],
)
def test_the_interval_covers_the_mean_in_95_percent_of_simulated_runs(of_nodes, of_images, of_rest):
    rng = np.random.default_rng(0)
    n, m, simulations = 8, 300, 2000
    covered = 0
    for _ in range(simulations):
        values = of_nodes * rng.standard_normal((n, 1)) + of_images * rng.standard_normal((1, m))
        found = interval(values + of_rest * rng.standard_normal((n, m)))
        covered += found.low <= 0 <= found.high
    # The share of 2000 covered runs deviates by sqrt(.95 * .05 / 2000) = 0.5 points: three deviations, on either side.
    assert covered / simulations == pytest.approx(0.95, abs=0.015)


def test_an_interval_over_nodes_alone_would_miss_what_the_images_add():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        values = 0.02 * rng.standard_normal((8, 1)) + rng.standard_normal((1, 300)) + rng.standard_normal((8, 300))
        found = interval(values.mean(1))
        covered += found.low <= 0 <= found.high
    # Were this not so, the simulation above could not tell a right interval from a wrong one.
    assert covered / 500 < 0.7


@pytest.mark.parametrize("n", [4, 8, 40])
@pytest.mark.parametrize("columns", [(), (1,)], ids=["no images", "one image"])
def test_without_images_it_is_students_t_interval(n, columns):
    values = np.random.default_rng(n).normal(3, 2, (n, *columns))
    found = interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values.ravel()))
    assert (found.low, found.mean, found.high) == pytest.approx((low, values.mean(), high), rel=ROUNDING)
    assert found.n == n


def test_nodes_and_images_that_merely_add_up_are_known_exactly():
    rng = np.random.default_rng(0)
    nodes, images = rng.normal(0, 1, 8), rng.normal(0, 3, 50)
    found = interval(nodes[:, None] + images[None, :])
    parts = np.array([nodes.var(ddof=1) / 8, images.var(ddof=1) / 50])
    freedom = parts.sum() ** 2 / (parts**2 / [7, 49]).sum()
    assert width(found) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * parts.sum() ** 0.5, rel=ROUNDING)


def test_nodes_are_rows_and_images_are_columns():
    values = np.random.default_rng(0).normal(0, 1, (5, 30))
    assert interval(values).n == 5
    assert interval(values.T).n == 30


def test_images_that_differ_widen_the_interval_and_leave_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (8, 300))
    images = rng.normal(0, 1, 300)
    images -= images.mean()
    widths = [width(interval(values + scale * images)) for scale in (0, 1, 2, 4)]
    assert widths == sorted(set(widths))
    assert interval(values + images).mean == pytest.approx(values.mean(), abs=ROUNDING)


@given(st.integers(0, 2**31), st.floats(0.01, 100), st.floats(-100, 100))
def test_the_interval_follows_the_unit_and_the_origin_of_the_values(seed, unit, origin):
    values = np.random.default_rng(seed).normal(0, 1, (6, 20))
    plain, moved = interval(values), interval(unit * values + origin)
    expected = [unit * end + origin for end in (plain.low, plain.mean, plain.high)]
    # Values of order 100 times the unit: differences of them lose no more than a few digits of sixteen.
    assert [moved.low, moved.mean, moved.high] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("images", [(), (300,)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_below_four_nodes_there_is_a_mean_and_no_interval(n, images):
    values = np.random.default_rng(0).normal(0, 1, (n, *images))
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert np.isnan([found.low, found.high]).all()
    assert found.n == n


def test_four_nodes_are_enough_for_an_interval():
    assert FEWEST_FOR_INTERVAL == 4
    assert np.isfinite(width(interval(np.array([1.0, 2.0, 3.0, 4.0]))))


@pytest.mark.parametrize("shape", [(8,), (8, 300)])
def test_values_that_are_all_alike_have_an_interval_of_no_width(shape):
    found = interval(np.full(shape, 0.5))
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([], r"\(0,\)"),
        (np.empty((0, 5)), r"\(0, 5\)"),
        (np.empty((5, 0)), r"\(5, 0\)"),
        (1.0, r"\(\)"),
        (np.ones((4, 3, 2)), r"\(4, 3, 2\)"),
        ([1.0, 2.0, np.nan, 3.0], r"\(4,\)"),
        ([[1.0, np.inf]] * 4, r"\(4, 2\)"),
    ],
)
def test_values_that_have_no_interval_are_refused(values, shape):
    with pytest.raises(ValueError, match=r"finite values, \(nodes,\) or \(nodes, images\): got shape " + shape):
        interval(values)


@pytest.mark.parametrize(("hits", "n"), [(8, 8), (7, 8), (3, 10), (0, 5), (1, 1)])
def test_the_interval_of_a_share_holds_the_shares_that_make_it_no_rare_event(hits, n):
    found = share_interval(hits, n)
    assert (found.mean, found.n) == (hits / n, n)
    # At an end, as many hits or more (or fewer) have a probability of 2.5 %; the bounds 0 and 1 are ends by themselves.
    low, high = stats.binom.sf(hits - 1, n, found.low), stats.binom.cdf(hits, n, found.high)
    assert low == pytest.approx(0.025, rel=1e-6) if hits else found.low == 0
    assert high == pytest.approx(0.025, rel=1e-6) if hits < n else found.high == 1


def test_eight_of_eight_are_not_all_there_could_be():
    found = share_interval(8, 8)
    assert (found.mean, found.high) == (1, 1) and round(100 * found.low) == 63
    with pytest.raises(ValueError, match="one trial"):
        share_interval(0, 0)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=12), st.floats(-5, 5))
def test_p_is_that_of_students_test_and_below_five_percent_where_the_interval_leaves_the_bound_out(values, bound):
    values = np.array(values)
    if values.std() < 1e-3:
        return  # Student's test divides by it
    p, found = p_value(values, bound), interval(values)
    assert p == pytest.approx(stats.ttest_1samp(values, bound).pvalue, rel=1e-6, abs=1e-12)
    nearest = min(abs(found.low - bound), abs(found.high - bound))
    if nearest > ROUNDING * 10:
        assert (p < 0.05) == (bound < found.low or bound > found.high)


def test_p_of_nodes_and_images_goes_by_the_interval_of_both():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 200)) + rng.normal(size=(8, 200))
    found = interval(values)
    for bound in (found.low, found.high):
        assert p_value(values, bound) == pytest.approx(0.05)


def test_p_of_values_that_are_all_alike_is_certain():
    assert p_value(np.full(8, 2.0), 0.0) == 0.0 and p_value(np.full(8, 2.0), 2.0) == 1.0
    assert np.isnan(p_value(np.ones(3), 0.0))


def test_p_of_a_share_is_exact():
    assert share_p_value(8, 8, 0.5) == pytest.approx(2 / 2**8)


def test_holm_corrects_the_smallest_most_and_keeps_the_order():
    # The example: 0.005 x 4, 0.01 x 3, then max(0.03, 0.03 x 2), max(0.06, 0.04 x 1).
    assert holm([0.01, 0.04, np.nan, 0.03, 0.005]) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
