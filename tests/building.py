"""One page of a book, built by Sphinx for a test."""

import re
from io import StringIO

from sphinx.testing.util import SphinxTestApp


def build_page(book, text):
    """Build a folder that has a ``conf.py`` with one page of this text: the page's file, and the faults."""
    (book / "index.md").write_text(f"# A page\n\n{text}\n")
    app = SphinxTestApp("html", book, freshenv=True, warning=StringIO())
    try:
        app.build()
    finally:
        app.cleanup()
    return app.outdir / "index.html", re.sub(r"\x1b\[[\d;]*m", "", app.warning.getvalue())
