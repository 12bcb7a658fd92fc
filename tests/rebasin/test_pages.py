"""The code on the pages of the package runs as it stands, and prints what they show."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from rebasin.matching import MATCHERS
from rebasin.merging import METHODS
from rebasin.tracing.units import RULES

PAGES = Path(__file__).resolve().parents[2] / "book" / "package"


@pytest.fixture
def registries():
    """What a page registers is forgotten after it."""
    before = [(registry, dict(registry)) for registry in (MATCHERS, METHODS, RULES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("page", ["trace", "match", "merge", "sizes", "rules", "method"])
def test_a_page_prints_what_it_shows(page, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a page may save files
    blocks = re.findall(r"```(python|text)\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
    names: dict = {}
    printed = ""
    for kind, block in blocks:
        if kind == "text":
            assert printed == block
            printed = ""
            continue
        assert printed == "", "what is printed is shown"
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(block, names)
        printed = stream.getvalue()
    assert printed == ""
