"""A map of where the book's numbers come from, drawn when all pages are read: ``{sources-map}``."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from from_results import SHOWN, raw
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from lab.report import page
from lab.report.sources import Shown, drawn_map, listed_sources


class SourcesMap(nodes.General, nodes.Element):
    """Where the map is to stand."""


class SourcesMapHere(SphinxDirective):
    """The map, and below it, folded, a list of all that it stands for."""

    def run(self) -> list[nodes.Node]:
        return [SourcesMap()]


def in_order(app: Sphinx) -> list[str]:
    """All pages, as the contents have them."""
    pages, waiting = [], [app.config.root_doc]
    while waiting:
        name = waiting.pop(0)
        pages.append(name)
        waiting = [*app.env.toctree_includes.get(name, []), *waiting]
    return list(dict.fromkeys(pages))


def draw(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Put the map where it is to stand."""

    def title(other: str) -> str:
        return app.env.titles[other].astext()

    def link(other: str) -> str:
        return app.builder.get_relative_uri(name, other)

    for place in list(doctree.findall(SourcesMap)):
        shown = [
            Shown(other, *each) for other in in_order(app) for each in app.env.metadata.get(other, {}).get(SHOWN, [])
        ]
        table = page.table(listed_sources(shown, title, link))
        place.replace_self(
            [
                raw(f'<div class="explorer scrolls">{drawn_map(shown, title, link)}</div>'),
                raw(f'<details class="fold"><summary>One by one</summary>{table}</details>'),
            ]
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Join in."""
    app.add_node(SourcesMap)
    app.add_directive("sources-map", SourcesMapHere)
    app.connect("doctree-resolved", draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
