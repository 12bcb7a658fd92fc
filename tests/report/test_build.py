"""The build of the book: what it refuses, and how it says how far it is."""

import re

import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping.code import ROOT
from lab.report import build


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


def test_a_book_of_a_run_that_is_not_there_is_refused(monkeypatch):
    plant("smoke", {"nodes": pd.DataFrame({"value": [0.0]})})
    monkeypatch.setenv("REBASIN_RUN", "mien")
    with pytest.raises(SystemExit, match="rebasin: there is no run 'mien' under results/: there are smoke"):
        build.main()


def test_a_build_says_where_it_is_and_how_long_is_left(monkeypatch, capsys):
    clock = iter([103.0, 110.0, 112.0, 120.0])
    monkeypatch.setattr(build.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(build, "PHASES", {"reading sources": (0.2, 0.6), "writing output": (0.6, 1.0)})
    output = [
        "\x1b[01mreading sources... \x1b[39;49;00m[ 25%] \x1b[35mbook/api\x1b[39;49;00m\n",
        "reading sources... [ 75%] book/many\n",
        "a warning\n",
        "writing output... [ 50%] book/api\n",
    ]
    assert list(build.progress(output, started=100.0)) == [
        "reading sources... [ 25%] book/api", "reading sources... [ 75%] book/many", "a warning",
        "writing output... [ 50%] book/api",
    ]  # fmt: skip
    # After ten seconds half is done, after twenty four fifths; three seconds are too early for a line.
    assert capsys.readouterr().out.splitlines() == [
        "  reading sources: book/many, 10 s, about 10 s left", "  writing output: book/api, 20 s, about 5 s left"
    ]  # fmt: skip


def test_the_time_of_a_build_is_shared_out_in_the_order_of_its_phases():
    ends = [build.share_done(phase, percent) for phase in build.PHASES for percent in (0, 100)]
    assert ends == sorted(ends) and ends[0] > 0 and ends[-1] == 1


@pytest.mark.parametrize("sheet", sorted((ROOT / "book" / "_static").glob("*.css")), ids=lambda path: path.name)
def test_a_stylesheet_closes_every_block_before_the_next_begins(sheet):
    # A brace too few drops all rules after it, and no browser says so.
    depth = 0
    for number, line in enumerate(re.sub(r"/\*.*?\*/", "", sheet.read_text(), flags=re.DOTALL).splitlines(), 1):
        if line[:1].strip() and line[0] != "}":
            assert depth == 0, f"line {number} begins a rule inside another"
        depth += line.count("{") - line.count("}")
    assert depth == 0
