"""Docstrings here are plain prose: a star in ``(*batch, n)`` is a star, not the beginning of an emphasis."""

from __future__ import annotations

import re

from sphinx.application import Sphinx


def escape_stars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape each star outside a literal."""
    lines[:] = re.sub(r"(``.*?``)|\*", lambda m: m[1] or r"\*", "\n".join(lines), flags=re.DOTALL).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in where autodoc has read a docstring."""
    app.connect("autodoc-process-docstring", escape_stars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
