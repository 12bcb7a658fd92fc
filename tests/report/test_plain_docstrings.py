"""The API's pages: docstrings are plain prose, and signatures say what a default is."""

import re

from building import build_page

from lab.bookkeeping.code import ROOT

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "sphinx.ext.autodoc", "plain_docstrings"]
"""


def test_a_default_that_is_made_anew_is_shown_as_what_it_is(tmp_path):
    (tmp_path / "conf.py").write_text(CONF)
    page, faults = build_page(tmp_path, "```{eval-rst}\n.. autoclass:: rebasin.spec.PermutationSpec\n```")
    words = re.sub(r"<[^>]*>", "", page.read_text())
    assert not faults
    assert "factory" not in words
    assert len(re.findall(r"(?:inside|blocks|pinned): Mapping\[str, \w+\] = \{\}", words)) == 3
