"""The assignments are optimal, also many at once."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebasin.assignment import solve_assignment


@st.composite
def square_scores(draw):
    """Matrices up to 5 x 5: small integers, of which many tie and many are negative, or floats."""
    n = draw(st.integers(1, 5))
    entry = draw(st.sampled_from([st.integers(-2, 2).map(float), st.floats(-1e3, 1e3)]))
    entries = draw(st.lists(entry, min_size=n * n, max_size=n * n))
    return torch.tensor(entries, dtype=torch.float64).reshape(n, n)


@given(square_scores())
def test_no_permutation_scores_higher(scores):
    n = len(scores)
    found = solve_assignment(scores).tolist()
    assert sorted(found) == list(range(n))
    best = max(sum(scores[i, p[i]].item() for i in range(n)) for p in permutations(range(n)))
    # Five summands of at most 1e3 in float64, added in the same order.
    assert sum(scores[i, found[i]].item() for i in range(n)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("batch", [(1,), (7,), (2, 3), (2, 1, 3)])
def test_a_batch_is_solved_as_one_by_one(monkeypatch, batch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    scores = torch.randn(*batch, 6, 6, generator=torch.Generator().manual_seed(0))
    found = solve_assignment(scores)
    assert found.shape == (*batch, 6)
    assert found.dtype == torch.int64
    one_by_one = [solve_assignment(matrix) for matrix in scores.reshape(-1, 6, 6)]
    assert torch.equal(found.reshape(-1, 6), torch.stack(one_by_one))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (3,), ()])
def test_scores_that_are_not_square_are_refused(shape):
    with pytest.raises(ValueError, match="scores must be square matrices, got shape"):
        solve_assignment(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    scores = torch.zeros(2, 3, 3)
    scores[1, 2, 0] = value
    with pytest.raises(ValueError, match="scores hold NaN or infinite values"):
        solve_assignment(scores)
