"""How the book is found: what pages say of themselves to search engines, and excerpts for the book's own search."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

LONGEST = 200  # characters of a description
PREVIEW = "_static/preview.png"  # what links to the book are shown with; ``poster`` draws it
EXCERPTS: dict[str, dict[str, str]] = {}  # the words of every page that is written, as a reader sees them, by section


def describe(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Describe a page by its first words, in its head; the page of search results loads its script."""
    if pagename == "search":
        app.add_js_file("excerpts.js")
        app.add_js_file("search.js")
    if doctree is not None:
        EXCERPTS[pagename] = sections(doctree)
        picture = context["pathto"](PREVIEW, 1)
        context["metatags"] = context.get("metatags", "") + tags(app, doctree, picture)


def tags(app: Sphinx, doctree: nodes.document, picture: str) -> str:
    """What the head of a page says of it. The picture's path is taken where the book has no address."""
    address = app.config.html_baseurl
    said = {
        'name="description"': description(doctree),
        'property="og:title"': title_of(doctree),
        'property="og:description"': description(doctree),
        'property="og:site_name"': app.config.html_title,
        'property="og:type"': "article",
        'property="og:image"': f"{address.rstrip('/')}/{PREVIEW}" if address else picture,
        'name="twitter:card"': "summary_large_image",
    }
    return "".join(f'\n    <meta {name} content="{html.escape(text)}" />' for name, text in said.items() if text)


def title_of(doctree: nodes.document) -> str:
    """The title of a page, or nothing without one."""
    return next((plain(title) for title in doctree.findall(nodes.title)), "")


def description(doctree: nodes.document) -> str:
    """The first paragraphs of a page, as many whole words as a description holds."""
    words = ""
    for paragraph in doctree.findall(nodes.paragraph):
        words = f"{words} {plain(paragraph)}".strip()
        if len(words) > LONGEST // 2:
            break
    if len(words) <= LONGEST:
        return words
    return words[: words.rindex(" ", 0, LONGEST)].rstrip(",.;:") + " …"


def plain(node: nodes.Node) -> str:
    """The text of a node on one line, without what is raw HTML."""
    return " ".join("".join(text.astext() for text in node.findall(nodes.Text) if not inside_raw(text)).split())


def inside_raw(text: nodes.Text) -> bool:
    """Whether a text is HTML, and not words."""
    return isinstance(text.parent, nodes.raw)


def sections(doctree: nodes.document) -> dict[str, str]:
    """The words of each section of a page by its name in links, those of its subsections left to them."""
    texts = {}
    for section in doctree.findall(nodes.section):
        own = [plain(node) for node in section.findall(nodes.paragraph) if section_of(node) is section]
        if section["ids"]:
            texts[section["ids"][0]] = " ".join(own)
    return texts


def section_of(node: nodes.Node) -> nodes.Node | None:
    """The innermost section that a node stands in."""
    while node is not None and not isinstance(node, nodes.section):
        node = node.parent
    return node


def write_excerpts(app: Sphinx, error: Exception | None) -> None:
    """Write the words of all pages where the page of search results reads them."""
    if error is not None or app.builder.format != "html":
        return
    words = json.dumps(EXCERPTS, ensure_ascii=False, separators=(",", ":"))
    (Path(app.outdir) / "_static" / "excerpts.js").write_text(f"const EXCERPTS = {words};\n", encoding="utf-8")
    if "/" in app.config.root_doc:
        write_door(app, f"{app.config.root_doc}.html")


def write_door(app: Sphinx, front: str) -> None:
    """Write ``index.html``, where a published book is entered: it says what the front page says, and leads there."""
    doctree = app.env.get_doctree(app.config.root_doc)
    title = html.escape(title_of(doctree))
    head = f'<meta charset="utf-8" />{tags(app, doctree, PREVIEW)}\n    <title>{title}</title>'
    door = f'<meta http-equiv="refresh" content="0; url={front}" />\n    {head}'
    link = f'<a href="{front}">{title}</a>'
    page = f'<!doctype html>\n<html lang="en">\n  <head>\n    {door}\n  </head>\n  <body>{link}</body>\n</html>\n'
    (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def take_address(app: Sphinx, config: Config) -> None:
    """Take from ``REBASIN_URL`` the address that this copy of the book is published at: cards need it."""
    config.html_baseurl = os.environ.get("REBASIN_URL") or config.html_baseurl


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in."""
    app.connect("config-inited", take_address)
    app.connect("html-page-context", describe)
    app.connect("build-finished", write_excerpts)
    app.connect("builder-inited", lambda app: EXCERPTS.clear())
    return {"parallel_read_safe": True, "parallel_write_safe": False}  # what is written is remembered
