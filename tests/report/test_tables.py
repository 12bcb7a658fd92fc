"""Tables as a reader sees them, and as CSV."""

import re
from io import StringIO
from urllib.parse import unquote

import pandas as pd
import pytest

from lab.report.statistics import Interval
from lab.report.tables import csv, table, with_half_width
from lab.report.words import nats, points

FRAME = pd.DataFrame(
    {
        "networks": ["MLP", "VGG-11, <em>wide</em>"],
        "models": ["8", "16"],
        "accuracy (%)": ["8.5 [8.0, 9.0]", "51.6 [50.9, 52.3]"],
        "gap": ["−1.2 [−1.4, −1.0] *", "+0.3"],
        "the paper's": ["–", "about 0.6"],
    }
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (points(Interval(45.7, 44.9, 46.5, 8)), "45.7 ± 0.8"),
        (nats(Interval(-0.0123, -0.0140, -0.0106, 8), signed=True), "−0.012 ± 0.002"),
        # Rounding alone: 51.56 from 51.07 to 52.05 is 51.6 [51.1, 52.0], of a half width between 0.4 and 0.5.
        (points(Interval(51.56, 51.07, 52.04, 8)), "51.6 ± 0.5"),
        # Of eight trials that all came out alike, the exact interval is on one side.
        (points(Interval(100, 63.1, 100, 8), signed=True), "+100.0 [+63.1, +100.0]"),
        ("−3.8 [−4.3, −3.3] *", "−3.8 ± 0.5 *"),
        ("45.7", "45.7"),
        ("0.101 to 0.173", "0.101 to 0.173"),
    ],
)
def test_an_interval_is_its_half_width_where_it_has_one(written, expected):
    assert with_half_width(written) == expected


def test_a_table_has_its_marks_and_numbers_one_below_the_other():
    shown = table(FRAME)
    heads = re.findall(r'<th scope="col">(.*?)</th>', shown)
    assert heads == list(FRAME)
    assert "<td>VGG-11, <em>wide</em></td>" in shown
    assert '<td class="number">\u20078.5<small> ± 0.5</small></td>' in shown, "as wide as 51.6"
    assert '<td class="number">\u20078</td>' in shown and '<td class="number">16</td>' in shown
    assert "<td>about 0.6</td>" in shown, "words, and no number"


@pytest.mark.parametrize(("rows", "columns", "expected"), [(2, 2, ""), (20, 2, " is-long"), (2, 12, " full-width")])
def test_long_tables_keep_their_head_and_wide_ones_take_the_page(rows, columns, expected):
    frame = pd.DataFrame([[points(Interval(45.7, 44.9, 46.5, 8))] * columns] * rows)
    frame.columns = [f"column {place}" for place in range(columns)]
    assert f'<div class="wide-table{expected}">' in table(frame)


def test_a_table_is_there_as_csv_with_the_ends_of_its_intervals():
    read = pd.read_csv(StringIO(csv(FRAME)))
    assert list(read) == [
        "networks", "models", "accuracy (%)", "accuracy (%), low", "accuracy (%), high", "gap", "gap, low", "gap, high",
        "the paper's",
    ]  # fmt: skip
    assert read.loc[0].tolist()[:8] == ["MLP", 8, 8.5, 8.0, 9.0, -1.2, -1.4, -1.0]
    assert read.loc[1, "networks"] == "VGG-11, wide" and read.loc[1, "gap"] == 0.3
    assert read.isna().loc[0, "the paper's"] and read.isna().loc[1, "gap, low"]


def test_columns_of_one_name_stay_two_in_the_csv():
    frame = pd.DataFrame([["1", "2"]], columns=["after REPAIR", "after REPAIR "])
    assert csv(frame).splitlines()[0] == "after REPAIR,after REPAIR (2)"


def test_the_link_below_a_table_is_its_csv():
    ((name, data),) = re.findall(r'<a download="(.*?)" href="data:text/csv;charset=utf-8,(.*?)">', table(FRAME, "x.y"))
    assert name == "x.y.csv" and unquote(data) == csv(FRAME)
    assert "download" not in table(FRAME)
