"""Stored outputs of another processor are forgiven their last digits, and nothing else."""

import pytest

from lab.report.stored import settled

STORED = "<tr><th>hierarchy</th>  <td>0.91</td><td>37.27</td><td>8</td></tr>"


@pytest.mark.parametrize("new", [STORED, STORED.replace("0.91", "0.87"), STORED.replace("  <td>0.91", " <td>0.95")])
def test_what_is_near_is_settled(new):
    assert settled(new, STORED) == STORED


@pytest.mark.parametrize(
    ("old", "other"),
    [("0.91", "0.80"), ("0.91", "-0.91"), ("37.27", "40.00"), (">8<", ">9<"), ("hierarchy", "many"), ("0.91", "nan")],
)
def test_what_is_not_stays_as_it_is(old, other):
    new = STORED.replace(old, other)
    assert settled(new, STORED) == new


def test_one_number_in_ten_may_lie_anywhere():
    ten = " ".join(f"0.{digit}1" for digit in range(10))
    assert settled(ten.replace("0.91", "0.11"), ten) == ten
    two = ten.replace("0.91", "0.11").replace("0.81", "0.21")
    assert settled(two, ten) == two


def test_a_row_that_is_missing_or_new_is_seen():
    assert settled(STORED, STORED + STORED) == STORED
    assert settled(STORED + STORED, STORED) == STORED + STORED
