"""What stands beside the findings of a chapter: verdicts, what was measured on what, how to run it, terms."""

import re
import sys
import types

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
extensions = ["myst_parser", "from_results", "front_page", "chapter_parts"]
myst_enable_extensions = ["colon_fence"]
"""
PAGES = {
    "notebooks/planted.md": "# The notebook\n",
    "book/claims.md": "# The claims\n",
    "glossary.md": "# Glossary\n\n```{glossary}\nleaf\nleaves\n  A network that goes into a merge.\n```\n",
}
CONTENTS = "\n\n```{toctree}\nnotebooks/planted\nbook/claims\nglossary\n```"


@reads("planted")
def gap(run):
    return Facts("above", {"gap": "+1.5"})


@reads("planted")
def table(run):
    return pd.DataFrame({"run": [run]})


@pytest.fixture
def page(tmp_path, monkeypatch):
    """``page(text)`` builds a page of a book that has a run of ``planted``: its HTML, and the faults."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)
    tables = {"recovered": pd.DataFrame({"value": [0.0]})}
    results.finish(begun("planted", "smoke"), digits(), tables, models="two networks, planted")
    chapter = types.ModuleType("lab.report.made_up")
    chapter.gap, chapter.table = gap, table
    monkeypatch.setitem(sys.modules, "lab.report.made_up", chapter)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "conf.py").write_text(CONF)
    for name, text in PAGES.items():
        (tmp_path / "site" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "site" / name).write_text(text)

    def build(text):
        built, faults = build_page(tmp_path / "site", text + CONTENTS)
        return built.read_text(), faults

    return build


def words(html):
    """What a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


READ = "```{result-table} made_up.table\n```\n\n"


def test_what_a_page_read_is_said_once_at_its_end(page):
    html, faults = page(READ + READ + "```{measured-on}\n```")
    assert html.count("<summary>Measured on</summary>") == 1 and html.count("two networks, planted") == 1
    assert 'href="notebooks/planted.html"' in html and not faults


def test_a_value_inside_a_sentence_counts_as_read(page):
    html, _ = page("By {value}`made_up.gap gap`.\n\n```{measured-on}\n```")
    assert "two networks, planted" in html


def test_a_page_says_how_to_run_it_and_with_what(page):
    html, faults = page(READ + "```{run-yourself}\n```")
    assert "papermill notebooks/planted.ipynb out.ipynb -p run mine" in words(html)
    assert "-m lab.bookkeeping.pipeline cpu planted" in words(html)
    assert "<code>planted_trials</code>" in html and "last execution" in html and not faults


def test_of_what_was_not_run_a_page_says_how_to_run_it(page, tmp_path):
    (tmp_path / "results" / "smoke" / "planted.json").unlink()
    html, faults = page(READ + "```{run-yourself}\n```\n\n```{measured-on}\n```")
    assert "-m lab.bookkeeping.pipeline cpu planted" in words(html) and "Measured on" not in html and not faults


def test_a_verdict_leads_to_its_claim(page):
    html, faults = page("No. {verdict}`H2 H1`")
    assert "H1: not run yet" in words(html) and "H2: not run yet" in words(html)
    assert len(re.findall(r'<a class="[^"]*" href="book/claims.html">', html)) >= 2 and not faults


def test_a_verdict_on_a_claim_that_is_not_stated_is_a_fault(page):
    _, faults = page("No. {verdict}`X9`")
    assert "claims.yml has no claim X9" in faults


def test_a_term_shows_its_definition_on_hovering(page):
    html, faults = page("Of eight {term}`leaves`, one {term}`leaf`.")
    assert html.count('title="A network that goes into a merge."') == 2 and not faults
