"""What every chapter has beside its findings: verdicts, what was measured on what, how to run it, terms explained.

``{verdict}`H2` `` is a claim's verdict beside the sentence that answers it. ``{measured-on}`` and ``{run-yourself}``
stand at the end of a page and are about the notebooks that were read on it. A term of the glossary shows its definition
on hovering, wherever it is linked.
"""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
from docutils import nodes
from from_results import READ, not_run, raw, to_notebook
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from lab.report import costs, page
from lab.report.claims_table import kind, sign
from lab.report.verdicts import shown_claims

TERMS = "terms"  # of the page with the glossary, in the metadata of the book: each term's anchor, and its definition


class Verdict(SphinxRole):
    """The verdicts of claims, each with a link to its rule: ``{verdict}`H2 H3` ``, or ``again H2 H3``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        ids = self.text.split()
        rules = ids.pop(0) if ids[0] == "again" else "claims"
        decided = shown_claims(ids, rules)
        missing = set(ids) - {claim.id for claim in decided}
        if missing:
            message = f"claims.yml has no claim {', '.join(sorted(missing))}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        chips: list[nodes.Node] = []
        for claim in decided:
            link = addnodes.pending_xref(
                "", refdomain="std", reftype="doc", reftarget="/book/claims", refexplicit=True, refwarn=True
            )
            link += nodes.inline(text=f"{sign(claim.verdict)} {claim.id}: {claim.verdict}")
            chips += [nodes.Text(" ")] if chips else []
            chips += [nodes.inline("", "", link, classes=["verdict-chip", kind(claim.verdict)])]
        return chips, []


class MeasuredOn(SphinxDirective):
    """Folded: what the results of this page were measured on, notebook by notebook."""

    def run(self) -> list[nodes.Node]:
        read = [notebook for notebook in self.env.temp_data.get(READ, []) if page.runs(notebook)]
        if not read:
            return []
        shown: list[nodes.Node] = [raw('<details class="fold"><summary>Measured on</summary>')]
        for notebook in read:
            facts = page.measured_on(page.shown_run(notebook), notebook)
            rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
            shown += [nodes.paragraph("", "", to_notebook(notebook)), raw(f'<dl class="measured">{rows}</dl>')]
        return [nodes.container("", *shown, raw("</details>"), classes=["measured-on"])]


class RunYourself(SphinxDirective):
    """The commands that make this page's numbers, what they cost, and, folded, the parameters of each preset."""

    def run(self) -> list[nodes.Node]:
        notebooks = self.env.temp_data.get(READ, [])
        read = [notebook for notebook in notebooks if page.runs(notebook)]
        missing = [not_run([notebook]) for notebook in notebooks if notebook not in read]
        if not read:
            return missing
        small = "\n".join(f"papermill notebooks/{notebook}.ipynb out.ipynb -p run mine" for notebook in read)
        whole = f".venv/bin/python -m lab.bookkeeping.pipeline cpu {' '.join(read)}"
        cost = pd.DataFrame([costs.of_notebook(notebook) for notebook in read])
        parameters: list[nodes.Node] = []
        for notebook in read:
            opening = raw(f'<details class="fold"><summary>Parameters of {notebook}.ipynb, preset by preset</summary>')
            parameters += [opening, nodes.paragraph("", "", to_notebook(notebook))]
            parameters += [raw(f"{page.parameters_table(notebook)}</details>")]
        return [
            labelled("At the smallest size, in seconds or a minute each:", small),
            labelled("These numbers:", whole),
            raw(page.table(cost)),
            *missing,
            *parameters,
        ]


def labelled(label: str, command: str) -> nodes.Node:
    """A command of a shell, to copy, below what it does."""
    return nodes.container("", nodes.paragraph(text=label), nodes.literal_block(text=command, language="console"))


def note_terms(app: Sphinx, doctree: nodes.document) -> None:
    """Note down the terms of a glossary by their anchors, each with its definition."""
    for glossary in doctree.findall(addnodes.glossary):
        terms = app.env.metadata[app.env.docname].setdefault(TERMS, {})
        for entry in glossary.findall(nodes.definition_list_item):
            definition = next(entry.findall(nodes.definition)).astext()
            terms |= {anchor: definition for term in entry.findall(nodes.term) for anchor in term["ids"]}


def explain_terms(app: Sphinx, doctree: nodes.document, page_name: str) -> None:
    """Let each link to a term of the glossary show the definition on hovering."""
    definitions: dict[str, str] = {}
    for metadata in app.env.metadata.values():
        definitions |= metadata.get(TERMS, {})
    for link in doctree.findall(nodes.reference):
        anchor = link.get("refid") or link.get("refuri", "").rpartition("#")[2]
        if anchor in definitions:
            link["reftitle"] = definitions[anchor]
            link["classes"].append("term")


def setup(app: Sphinx) -> dict[str, Any]:
    """Join in."""
    app.add_role("verdict", Verdict())
    app.add_directive("measured-on", MeasuredOn)
    app.add_directive("run-yourself", RunYourself)
    app.connect("doctree-read", note_terms)
    app.connect("doctree-resolved", explain_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
