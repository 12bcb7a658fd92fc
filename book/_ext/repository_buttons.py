"""Buttons that lead to the repository, switched on by its address in _config.yml alone."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def switch(app: Sphinx, config: Config) -> None:
    """Repository, issue and edit buttons with an address; without one no launch button either."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options |= dict.fromkeys(("use_repository_button", "use_issues_button", "use_edit_page_button"), True)
    else:
        options.pop("launch_buttons", None)
        options.pop("repository_url", None)


def launch_notebooks_only(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Take the launch button off Markdown chapters, which Colab cannot open."""
    if not app.env.doc2path(pagename).endswith(".ipynb"):
        buttons = context["header_buttons"]
        buttons[:] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in before the theme reads its options, and after it made its buttons."""
    app.connect("config-inited", switch, priority=100)
    app.connect("html-page-context", launch_notebooks_only, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
