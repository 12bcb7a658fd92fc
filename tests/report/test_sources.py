"""The map of sources: who is joined to whom, that names are links, and that a built page has all that pages show."""

import re

import pandas as pd
import pytest
from planting import plant
from sphinx.testing.util import SphinxTestApp

from lab.bookkeeping.code import ROOT
from lab.report import sources
from lab.report.sources import Shown

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "from_results", "sources_map"]
myst_enable_extensions = ["colon_fence"]
"""
SHOWN = [
    Shown("book/mnist", "finding", "mnist.matched", ("mnist",)),
    Shown("book/mnist", "value", "mnist.images", ("mnist",)),
    Shown("book/many", "result-figure", "many.five", ("many", "mnist")),
    Shown("book/theory", "result-figure", "draw.hierarchy_scheme", ()),
]


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)
    frame = pd.DataFrame({"value": [0.0]})
    plant("cpu", {"paths": frame, "barriers": frame}, "mnist")
    plant("cpu", {"nodes": frame}, "many")
    plant("smoke", {"nodes": frame}, "merge")


def drawn():
    return sources.drawn_map(SHOWN, lambda page: f"On {page}", lambda page: f"../{page}.html")


def test_a_notebook_is_joined_to_its_data_and_to_the_chapters_that_show_it():
    steps = dict(re.findall(r'<g class="step">(.*?)<a href="\.\./notebooks/(\w+)\.html">', drawn()))
    lines = {notebook: found.count("<path") for found, notebook in steps.items()}
    assert lines == {"mnist": 1 + 2, "many": 1 + 1, "merge": 1}
    # The heights at which lines end on the right are those of the chapters.
    ends = {notebook: set(re.findall(r" 566 ([\d.]+)\"", found)) for found, notebook in steps.items()}
    assert ends["many"] < ends["mnist"] and not ends["merge"]


def test_names_are_links_and_tables_stand_below_their_notebook():
    html = drawn()
    assert ">barriers, paths</text>" in html and ">digits</text>" in html
    assert re.search(r'<a href="\.\./book/mnist\.html"><text><tspan[^>]*>On book/mnist</tspan>', html)
    assert "On book/theory" not in html, "it reads no table"


def test_the_list_has_a_row_for_each_notebook_that_something_is_from():
    table = sources.listed_sources(SHOWN, lambda page: page, lambda page: page)
    assert list(table["what"]) == ["words", "number", "figure", "figure"]
    assert list(table["its tables"]) == ["barriers, paths", "barriers, paths", "nodes", "barriers, paths"]


def test_a_built_page_maps_what_another_page_shows(tmp_path):
    book = tmp_path / "pages"
    (book / "notebooks").mkdir(parents=True)
    (book / "conf.py").write_text(CONF)
    (book / "notebooks" / "planted.md").write_text("# The notebook\n")
    (book / "map.md").write_text("# The map\n\n```{sources-map}\n```\n")
    (book / "chapter.md").write_text(
        "# The chapter\n\n{value}`planted.recovery n`\n\n```{result-table} planted.recovered_table\n```\n"
    )
    (book / "index.md").write_text("# Contents\n\n```{toctree}\nmap\nchapter\nnotebooks/planted\n```\n")
    app = SphinxTestApp("html", book, freshenv=True)
    try:
        app.build()
    finally:
        app.cleanup()
    html = (app.outdir / "map.html").read_text()
    for function in ("planted.recovery", "planted.recovered_table"):
        assert f"<code>{function}</code>" in html
    assert html.count("not run yet") == 2 and 'href="chapter.html"' in html
