"""The poster: one page of the front page's words and pictures, made with the book; ``{poster}`links to it` ``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from site_head import plain
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from lab.report.poster import Words, save


class LinkToPoster(SphinxRole):
    """A link to the poster from whatever page."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        up = "../" * self.env.docname.count("/")
        return [nodes.reference("", self.text, refuri=f"{up}poster.pdf", internal=True)], []


def words_of(front: nodes.document, foot: str) -> Words:
    """What the poster says, from the front page. Of a reader's own run, which has no sentences, there is less."""
    rows = [paragraphs(row) for guide in of_class(front, "guide") for row in guide.children]
    captions = [caption(front, name) for name in ("front-plane", "front-models")]
    return Words(
        title=plain(next(iter(front.findall(nodes.title)))),
        lead=plain(next(iter(front.findall(nodes.paragraph)))),
        answers=[(title, " ".join(text)) for title, *text in map(paragraphs, of_class(front, "answer"))],
        captions=(captions[0], captions[1]),
        guide=[(have, call, without_link(expect)) for have, call, expect in (row for row in rows if len(row) == 3)],
        claims={board["verdict"]: items(board) for board in of_class(front, "verdict-group")},
        foot=foot,
    )


def of_class(node: nodes.Node, name: str) -> Iterator[nodes.Element]:
    """The containers with a class, in the order of the page."""
    return (part for part in node.findall(nodes.container) if name in part["classes"])


def paragraphs(node: nodes.Node) -> list[str]:
    return [plain(paragraph) for paragraph in node.findall(nodes.paragraph)]


def items(node: nodes.Node) -> list[str]:
    return [plain(item) for item in node.findall(nodes.list_item)]


def caption(front: nodes.document, name: str) -> str:
    """The first sentence below a figure, or nothing without it."""
    for figure in front.findall(nodes.figure):
        if name in figure["names"]:
            return plain(next(iter(figure.findall(nodes.caption)))).split(". ")[0] + "."
    return ""


def without_link(text: str) -> str:
    """What is expected, without the link to a chapter that ends it."""
    said, colon, _ = text.rpartition(": ")
    return f"{said}." if colon else text


def make(app: Sphinx, error: Exception | None) -> None:
    """Draw the poster and the card once the book is there."""
    if error is not None or app.builder.format != "html":
        return
    foot = " · ".join(filter(None, [app.config.html_title, app.config.html_baseurl]))
    save(words_of(app.env.get_doctree(app.config.root_doc), foot), Path(app.outdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in."""
    app.add_role("poster", LinkToPoster())
    app.connect("build-finished", make)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
