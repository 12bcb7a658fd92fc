"""Leave out thebe, which would load a kernel from elsewhere: nothing here uses it, and its script comes twice."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def without_thebe(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    for kind in ("script_files", "css_files"):
        context[kind][:] = [file for file in context[kind] if "thebe" not in f"{file} {_body(file)}".lower()]


def _body(file: object) -> str:
    """What a script holds that has no file."""
    return getattr(file, "attributes", {}).get("body") or ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in once all files are known."""
    app.connect("html-page-context", without_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
