"""Docstrings here are plain prose: a star in ``(*batch, n)`` is a star, not the beginning of an emphasis."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

# What stays: the lines of an example, and a literal; then a star of its own.
STAR = re.compile(r"(^ *(?:>>>|\.\.\. )[^\n]*|``.*?``)|\*", re.DOTALL | re.MULTILINE)


def escape_stars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape each star outside of literals and examples."""
    lines[:] = STAR.sub(lambda match: match[1] or r"\*", "\n".join(lines)).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in where autodoc has read a docstring."""
    app.connect("autodoc-process-docstring", escape_stars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
