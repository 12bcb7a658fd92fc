"""Docstrings here are plain prose: a star in ``(*batch, n)`` is a star. Defaults that are made anew stand as made."""

from __future__ import annotations

import dataclasses
import re

from sphinx.application import Sphinx

# What stays: the lines of an example, and a literal; then a star of its own.
STAR = re.compile(r"(^ *(?:>>>|\.\.\. )[^\n]*|``.*?``)|\*", re.DOTALL | re.MULTILINE)


def escape_stars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape each star outside of literals and examples."""
    lines[:] = STAR.sub(lambda match: match[1] or r"\*", "\n".join(lines)).split("\n")


def show_factories(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """In the signature of a dataclass, write a default that is made anew as what it is at first, such as ``{}``."""
    for field in dataclasses.fields(obj) if what == "class" and dataclasses.is_dataclass(obj) and signature else ():
        if field.default_factory is not dataclasses.MISSING:
            signature = signature.replace("<factory>", repr(field.default_factory()), 1)
    return signature, returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in where autodoc has read a docstring or a signature."""
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("autodoc-process-signature", show_factories)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
