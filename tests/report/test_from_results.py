"""The directives: words for the outcome that the results have, or a fault that names page, sentence and outcomes."""

import hashlib
import json
import re
import sys
import types

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from building import build_page
from planting import begun, digits

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.report.facts import Facts, reads

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "from_results"]
myst_enable_extensions = ["colon_fence"]
"""


@reads("planted")
def gap(run):
    return Facts("above", {"gap": "+1.5", "run": run})


@reads("planted")
def read_from_table(run):
    return pd.DataFrame({"value": results.read(run, "planted", "recovered")["value"]})


@reads()
def figure():
    axes = plt.subplots()[1]
    axes.plot([0, 1])
    return axes.figure


@reads("planted")
def table(run):
    return pd.DataFrame({"network": ["MLP"], "run": [run]})


def plant_run(run):
    """Let a run have a table of notebooks/planted.ipynb."""
    tables = {"recovered": pd.DataFrame({"value": [0.0]})}
    results.finish(begun("planted", run), digits(), tables, models="two networks, planted")


def words(html):
    """What a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


@pytest.fixture
def page(tmp_path, monkeypatch):
    """``page(text)`` builds a page of a book that has a run of ``planted``: its HTML, and the faults."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)
    plant_run("smoke")
    chapter = types.ModuleType("lab.report.made_up")
    chapter.gap, chapter.figure, chapter.table, chapter.read_from_table = gap, figure, table, read_from_table
    monkeypatch.setitem(sys.modules, "lab.report.made_up", chapter)
    (tmp_path / "book" / "notebooks").mkdir(parents=True)
    (tmp_path / "book" / "conf.py").write_text(CONF)
    (tmp_path / "book" / "notebooks" / "planted.md").write_text("# The notebook\n")

    def build(text):
        built, faults = build_page(tmp_path / "book", f"{text}\n\n```{{toctree}}\nnotebooks/planted\n```")
        return built.read_text(), faults

    return build


def test_a_sentence_takes_its_values(page):
    html, faults = page(":::{finding} made_up.gap\n:when: above\nIt is ahead by {gap} points.\n:::")
    assert "It is ahead by +1.5 points." in html
    assert not faults


def test_a_sentence_for_another_outcome_is_a_fault(page):
    _, faults = page(":::{finding} made_up.gap\n:when: below\nIt is behind.\n:::")
    (fault,) = faults.strip().splitlines()
    assert "index.md" in fault and "made_up.gap" in fault
    assert "'It is behind.' was written for the outcome 'below', and the results have 'above'" in fault


def test_a_slot_without_a_value_is_a_fault(page):
    _, faults = page(":::{finding} made_up.gap\n:when: above\nIt is {much}.\n:::")
    assert "made_up.gap has no value {much}: there are gap, run" in faults


@pytest.mark.parametrize("text", [":::{finding} made_up.other\n:when: above\nIt is.\n:::", "{value}`made_up.other n`"])
def test_a_function_that_is_not_there_is_a_fault(page, text):
    _, faults = page(text)
    assert "lab/report has nothing to show called 'made_up.other'" in faults and "index.md" in faults


def test_of_ones_own_run_the_facts_stand_in_place_of_the_sentence(page, monkeypatch):
    plant_run("mine")
    monkeypatch.setenv("REBASIN_RUN", "mine")
    html, faults = page(":::{finding} made_up.gap\n:when: below\nIt is behind.\n:::\n\n{value}`made_up.gap run`")
    assert "It is behind" not in html and "+1.5" in html
    assert "This page shows the run mine" in html and not faults


def test_what_was_not_run_says_how_to_run_it(page, tmp_path):
    (tmp_path / "results" / "smoke" / "planted.json").unlink()
    html, faults = page(":::{finding} made_up.gap\n:when: below\nIt is behind.\n:::")
    assert "Not run yet." in html and "-m lab.bookkeeping.pipeline cpu planted" in words(html) and not faults


def test_a_table_may_be_folded(page):
    html, faults = page("```{result-table} made_up.table\n:fold: All numbers\nOf *one* run.\n```")
    assert "<summary>All numbers</summary>" in html and "<td>smoke</td>" in html and "<em>one</em>" in html
    assert not faults


def test_a_figure_may_be_folded_with_its_caption_and_its_code(page):
    html, faults = page("```{result-figure} made_up.figure\n:alt: A line.\n:fold: More\nIt rises.\n```\n\nBelow.")
    folded = html.partition('<details class="fold"><summary>More</summary>')[2].partition("Below.")[0]
    assert "It rises." in folded and "def figure():" in words(folded) and not faults
    assert folded.count("<details") + 1 == folded.count("</details>"), "what follows is not folded"


def test_a_figure_that_reads_no_notebook_names_none(page):
    html, faults = page("```{result-figure} made_up.figure\n:alt: A line.\nIt rises.\n```")
    assert html.count('alt="A line."') == 2 and "It rises." in html
    assert "def figure():" in words(html), "the code that draws it"
    assert 'class="from"' not in html and not faults


FOUND = """```{{result-figure}} made_up.figure
:alt: A line.
:finding: made_up.gap
:when: {when}
It is ahead by {{gap}}.

A line through two points.
```
"""


def test_what_a_caption_found_takes_its_values(page):
    html, faults = page(FOUND.format(when="above"))
    assert "It is ahead by +1.5. A line through two points." in words(html) and not faults


def test_a_caption_for_another_outcome_is_a_fault(page):
    _, faults = page(FOUND.format(when="below"))
    (fault,) = faults.strip().splitlines()
    assert "index.md" in fault and "made_up.gap" in fault
    assert "'It is ahead by {gap}.' was written for the outcome 'below', and the results have 'above'" in fault


def test_a_caption_without_its_facts_is_a_fault(page):
    _, faults = page("```{result-figure} made_up.figure\n:alt: A line.\nIt rises.\n\nA line.\n```")
    assert "index.md" in faults and "a caption that says what was found needs :finding:" in faults


def test_of_ones_own_run_a_caption_says_what_is_drawn_alone(page, monkeypatch):
    plant_run("mine")
    monkeypatch.setenv("REBASIN_RUN", "mine")
    html, faults = page(FOUND.format(when="below"))
    assert "It is ahead" not in html and "A line through two points." in html and not faults


def test_of_what_was_not_run_a_caption_says_what_is_drawn_alone(page, tmp_path):
    (tmp_path / "results" / "smoke" / "planted.json").unlink()
    html, faults = page(FOUND.format(when="below"))
    assert "It is ahead" not in html and "A line through two points." in html and not faults


def test_a_table_of_other_columns_is_a_fault_that_names_it_though_its_digest_is_right(page, tmp_path):
    folder = tmp_path / "results" / "smoke"
    forged = folder / "planted-recovered.parquet"
    pd.DataFrame({"others": [1.0]}).to_parquet(forged)
    made = json.loads((folder / "planted.json").read_text())
    made["tables"]["recovered"] = hashlib.sha256(forged.read_bytes()).hexdigest()[:16]
    (folder / "planted.json").write_text(json.dumps(made))
    _, faults = page("```{result-table} made_up.read_from_table\n```")
    (fault,) = (line for line in faults.splitlines() if "made_up" in line)
    assert "made_up.read_from_table finds nothing called 'value' in the tables of results/smoke/planted" in fault
    assert "Run it again" in fault and "Traceback" not in faults
