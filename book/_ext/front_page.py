"""What the front page shows beside words: figures with a slider, and a scoreboard of the claims."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from from_results import ResultFigure, WithMarkdown, raw
from sphinx.application import Sphinx
from sphinx.util import logging

from lab.report.claims_table import SIGNS, kind, sign
from lab.report.verdicts import shown_claims

logger = logging.getLogger(__name__)


class Explorer(ResultFigure):
    """A figure with a slider: ``function`` of lab/report gives its HTML. Options and body are those of a figure."""

    def drawing(self, function: Callable[..., Any], runs: list[str]) -> str:
        self.env.metadata[self.env.docname]["explorers"] = True
        return f'<div role="group" aria-label="{html.escape(self.options["alt"])}">{function(*runs)}</div>'


class Scoreboard(WithMarkdown):
    """The claims by their verdicts. A line of the body: the id of one, a colon, and words that link to its chapter.

    Said besides is which are questions of this book, and which have another verdict by better rules.
    """

    def run(self) -> list[nodes.Node]:
        claims = shown_claims()
        verdicts = {claim.id: claim.verdict for claim in claims}
        words = dict(re.split(r":\s+", line, maxsplit=1) for line in self.content if line.strip())
        for name in verdicts.keys() ^ words.keys():
            logger.warning("the scoreboard or claims.yml has no claim %s", name, location=self.get_location())
        besides = {claim.id: " (a question of ours)" for claim in claims if claim.ours}
        for claim in shown_claims(rules="again"):
            if claim.verdict != verdicts[claim.id]:
                besides[claim.id] = f" (by better rules: {claim.verdict})"
        by_verdict = {
            verdict: [name for name in verdicts if verdicts[name] == verdict and name in words]
            for verdict in dict.fromkeys([*SIGNS, *verdicts.values()])
        }
        by_verdict = {verdict: names for verdict, names in by_verdict.items() if names}
        shares = "".join(
            f'<span class="{kind(verdict)}" style="flex: {len(names)}">{sign(verdict)} {len(names)}</span>'
            for verdict, names in by_verdict.items()
        )
        groups = [
            self.group(verdict, [words[name] + besides.get(name, "") for name in names])
            for verdict, names in by_verdict.items()
        ]
        bar = raw(f'<div class="scoreboard-bar" aria-hidden="true">{shares}</div>')
        return [bar, nodes.container("", *groups, classes=["scoreboard"])]

    def group(self, verdict: str, lines: list[str]) -> nodes.Node:
        """The claims with one verdict, below it."""
        title = raw(f'<p class="verdict {kind(verdict)}">{sign(verdict)} {html.escape(verdict)}: {len(lines)}</p>')
        listed = self.parsed("\n".join(f"- {line}" for line in lines))
        return nodes.container("", title, *listed, classes=["verdict-group"], verdict=verdict)


def with_script(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Load the scripts on pages that have something to move."""
    if app.env.metadata.get(pagename, {}).get("explorers"):
        app.add_js_file("explorers.js")
        app.add_js_file("reordering.js")


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in."""
    app.add_directive("explorer", Explorer)
    app.add_directive("scoreboard", Scoreboard)
    app.connect("html-page-context", with_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
