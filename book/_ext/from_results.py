"""Directives that put results into a chapter: a finding's words, a table, a figure, the claims.

The words stand in the chapter, the facts come from ``lab/report``. A finding names the outcome that its sentence was
written for, and so does a caption that says what was found; when the results have another, a warning names page,
sentence and both outcomes: the strict build fails.
"""

from __future__ import annotations

import html
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from lab.report import draw, page
from lab.report.claims_table import claims_table
from lab.report.facts import Facts
from lab.report.tables import table

logger = logging.getLogger(__name__)
SLOT = re.compile(r"\{(\w+)\}(?!`)")  # {gap}, but not the role {doc}`...`
INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)\]")
READ = "notebooks read on this page"
SHOWN = "shown"  # in the metadata of a page: kind, function and notebooks of all that it shows


def shown(name: str) -> Callable[..., Any]:
    """The function ``chapter.function`` of lab/report that a directive names. Raises ValueError if there is none."""
    module_name, _, function_name = name.rpartition(".")
    try:
        function = getattr(importlib.import_module(f"lab.report.{module_name}"), function_name)
        function.notebooks  # noqa: B018  what ``facts.reads`` marks
    except (ImportError, AttributeError) as error:
        raise ValueError(f"lab/report has nothing to show called {name!r}: {error}") from error
    return function


def note(env: BuildEnvironment, kind: str, name: str, function: Callable[..., Any]) -> None:
    """Note down what a page shows: its notebooks for the end of the page, and all of it for the map of sources."""
    read = env.temp_data.setdefault(READ, [])
    read.extend(notebook for notebook in function.notebooks if notebook not in read)
    env.metadata[env.docname].setdefault(SHOWN, []).append((kind, name, function.notebooks))


class WithMarkdown(SphinxDirective):
    """A directive that puts Markdown into the page."""

    has_content = True

    def parsed(self, text: str) -> list[nodes.Node]:
        """Markdown as nodes."""
        container = nodes.container()
        self.state.nested_parse(
            StringList(text.splitlines(), self.get_source_info()[0]), self.content_offset, container
        )
        return container.children


class OfResults(WithMarkdown):
    """What the directives share: which function they show, and of which runs."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        function = self.named(self.arguments[0], self.name)
        missing = [notebook for notebook in function.notebooks if not page.runs(notebook)]
        if missing:
            return [not_run(missing)]
        runs = [page.shown_run(notebook) for notebook in function.notebooks]
        try:
            return self.show(function, runs)
        except KeyError as error:
            tables = ", ".join(f"{run}/{notebook}" for run, notebook in zip(runs, function.notebooks, strict=True))
            raise self.error(
                f"{self.arguments[0]} finds nothing called {error} in the tables of results/{tables}: they are not "
                "what the notebook writes. Run it again"
            ) from error

    def named(self, name: str, kind: str) -> Callable[..., Any]:
        """The function of lab/report with this name; it is noted down that the page shows what it gives."""
        try:
            function = shown(name)
        except ValueError as error:
            raise self.error(str(error)) from error
        note(self.env, kind, name, function)
        return function

    def show(self, function: Callable[..., Any], runs: list[str]) -> list[nodes.Node]:
        raise NotImplementedError

    def filled(self, text: str, name: str, facts: Facts, when: str | None) -> list[nodes.Node]:
        """A text with the values in its slots, with a warning unless it was written for this outcome."""
        if facts.outcome != when:
            logger.warning(
                "%s: the sentence %r was written for the outcome %r, and the results have %r",
                name, shortened(text), when, facts.outcome, location=self.get_location(),
            )  # fmt: skip
        for slot in SLOT.findall(text):
            if slot not in facts.values:
                known = ", ".join(facts.values)
                logger.warning("%s has no value {%s}: there are %s", name, slot, known, location=self.get_location())
        return self.parsed(SLOT.sub(lambda match: facts.values.get(match[1], match[0]), text))


class Finding(OfResults):
    """A sentence for one outcome, with slots for the values: ``{n}``; ``brief`` leaves intervals to a note on each."""

    option_spec = {"when": directives.unchanged_required, "brief": directives.flag}

    def show(self, function: Callable[..., Any], runs: list[str]) -> list[nodes.Node]:
        facts = function(*runs)
        if page.own_run() in runs:
            return [bare_facts(self.arguments[0], facts)]
        if "brief" in self.options:
            facts = Facts(
                facts.outcome, {name: noted(value, facts.values.get("n")) for name, value in facts.values.items()}
            )
        sentence = self.filled("\n".join(self.content), self.arguments[0], facts, self.options.get("when"))
        return [nodes.container("", *sentence, classes=["finding"])]


class ResultTable(OfResults):
    """A table of a run; with ``fold``, behind its title."""

    option_spec = {"fold": directives.unchanged_required}

    def show(self, function: Callable[..., Any], runs: list[str]) -> list[nodes.Node]:
        shown_table = table(function(*runs), self.arguments[0])
        caption = [nodes.container("", *self.parsed("\n".join(self.content)), classes=["table-caption"])]
        title = self.options.get("fold")
        if title is None:
            return [*(caption if self.content else []), raw(shown_table)]
        opening = raw(f'<details class="fold"><summary>{html.escape(title)}</summary>')
        return [opening, *(caption if self.content else []), raw(shown_table), raw("</details>")]


class ResultFigure(OfResults):
    """A figure of a run, for light and dark pages; its body is the caption. Below: its notebook and its code.

    The caption's last paragraph says what is drawn. What was found stands in one before it, with ``finding``, the facts
    that say so, and ``when``, the outcome that it was written for. It is left out of a reader's own run. With ``fold``
    it stands behind a title.
    """

    option_spec = {
        "name": directives.unchanged_required,
        "fold": directives.unchanged_required,
        "alt": directives.unchanged_required,
        "finding": directives.unchanged_required,
        "when": directives.unchanged_required,
    }

    def show(self, function: Callable[..., Any], runs: list[str]) -> list[nodes.Node]:
        if "alt" not in self.options:
            raise self.error("a figure needs :alt:, which says in words what it shows")
        # In a box of its own: the theme hides the caption that follows the image for the other theme.
        image = raw(f"<div>{self.drawing(function, runs)}</div>")
        figure = nodes.figure("", image, nodes.caption("", "", *self.caption()), align="default")
        if "name" in self.options:
            self.add_name(figure)
        shown_nodes = [figure, self.sources(function)]
        if "fold" not in self.options:
            return shown_nodes
        opening = raw(f'<details class="fold"><summary>{html.escape(self.options["fold"])}</summary>')
        return [opening, *shown_nodes, raw("</details>")]

    def drawing(self, function: Callable[..., Any], runs: list[str]) -> str:
        """The figure itself, as HTML."""
        return draw.themed(lambda: function(*runs), self.options["alt"]).data

    def caption(self) -> list[nodes.Node]:
        """The words of the caption: what was found, and what is drawn."""
        found, _, drawn = "\n".join(self.content).rpartition("\n\n")
        paragraphs = [*(self.found(found) if found else []), *self.parsed(drawn)]
        words: list[nodes.Node] = []
        for paragraph in paragraphs:
            words += [nodes.Text(" "), *paragraph.children] if words else paragraph.children
        return words

    def found(self, text: str) -> list[nodes.Node]:
        """The paragraph that says what was found; nothing of runs for which it was not written."""
        name = self.options.get("finding")
        if name is None:
            raise self.error("a caption that says what was found needs :finding:, the facts that say so, and :when:")
        function = self.named(name, "finding")
        if not all(map(page.runs, function.notebooks)):
            return []
        runs = [page.shown_run(notebook) for notebook in function.notebooks]
        return [] if page.own_run() in runs else self.filled(text, name, function(*runs), self.options.get("when"))

    def sources(self, function: Callable[..., Any]) -> nodes.Node:
        """The notebooks whose tables a figure shows, if any, and, folded, the function that draws it."""
        line = nodes.paragraph("", "From ", classes=["from"])
        for position, notebook in enumerate(function.notebooks):
            line += [nodes.Text(", ")] if position else []
            line += to_notebook(notebook)
        notebooks = [line] if function.notebooks else []
        where = f"{function.__module__.replace('.', '/')}.py: {function.__name__}"
        code = nodes.literal_block("", inspect.getsource(inspect.unwrap(function)), language="python")
        opening = raw(f'<details class="code"><summary>Drawn by <code>{where}</code></summary>')
        return nodes.container("", *notebooks, opening, code, raw("</details>"), classes=["sources"])


class Claims(SphinxDirective):
    """The claims with these ids, and their verdicts; all without ids. ``:rules: again`` takes those decided again."""

    optional_arguments = 30
    final_argument_whitespace = False
    option_spec = {"rules": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        return [raw(claims_table(self.arguments or None, self.options.get("rules", "claims")))]


class Value(SphinxRole):
    """One value of some facts inside a sentence: ``{value}`planted.recovery n` ``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, value = self.text.partition(" ")
        try:
            function = shown(name)
        except ValueError as error:
            return [], [self.inliner.reporter.error(str(error), line=self.lineno)]
        note(self.env, "value", name, function)
        if not all(map(page.runs, function.notebooks)):
            return [nodes.Text("(not run yet)")], []
        facts = function(*(page.shown_run(notebook) for notebook in function.notebooks))
        if value not in facts.values:
            logger.warning("%s has no value %r", name, value, location=self.get_location())
        return [nodes.Text(facts.values.get(value, "?"))], []


class Parameter(SphinxRole):
    """A parameter of the shown run of a notebook: ``{parameter}`barriers barrier_test_images` ``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        notebook, _, name = self.text.partition(" ")
        return [nodes.Text(str(page.parameter(notebook, name)) if page.runs(notebook) else "(not run yet)")], []


def bare_facts(name: str, facts: Any) -> nodes.Node:
    """Of a reader's own run, for which no sentence was written: the facts themselves."""
    items = [f"<dt>outcome</dt><dd>{html.escape(facts.outcome)}</dd>"]
    items += [f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.values.items()]
    return raw(f'<p class="bare-facts">{name}</p><dl class="measured">{"".join(items)}</dl>')


def noted(value: str, n: str | None) -> str:
    """A value whose interval, if it has one, is a note on it, with ``n`` where that is known."""
    interval = INTERVAL.fullmatch(value)
    if interval is None:
        return value
    mean, low, high = interval.groups()
    return f"{{abbr}}`{mean} (95 % interval {low} to {high}{f', n = {n}' if n else ''})`"


def not_run(notebooks: list[str]) -> nodes.Node:
    """What stands where a notebook's results would."""
    command = f".venv/bin/python -m lab.bookkeeping.pipeline cpu {' '.join(notebooks)}"
    return nodes.paragraph("", "", nodes.Text("Not run yet. This runs it: "), nodes.literal(text=command))


def to_notebook(notebook: str) -> nodes.Node:
    """A link to a notebook's page."""
    target = addnodes.pending_xref(
        "", refdomain="std", reftype="doc", reftarget=f"/notebooks/{notebook}", refexplicit=True, refwarn=True
    )
    target += nodes.inline(text=f"notebooks/{notebook}.ipynb")
    return target


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def banner(app: Sphinx, doctree: nodes.document) -> None:
    """Say at the top of a page that it shows a reader's own run."""
    own = page.own_run()
    read = app.env.temp_data.get(READ, [])
    if own and any(own == run for notebook in read for run in page.runs(notebook)[:1]):
        section = next(iter(doctree.findall(nodes.section)), None)
        text = f"This page shows the run {own}, and its facts where sentences were written for the reference run."
        if section is not None:
            section.insert(1, nodes.note("", nodes.paragraph(text=text)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Join in."""
    for name, directive in (
        ("finding", Finding), ("result-table", ResultTable), ("result-figure", ResultFigure), ("claims", Claims),
    ):  # fmt: skip
        app.add_directive(name, directive)
    app.add_role("value", Value())
    app.add_role("parameter", Parameter())
    app.connect("doctree-read", banner)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
