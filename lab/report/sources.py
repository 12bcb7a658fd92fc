"""Where each number of the book comes from: data sets, notebooks with their tables, and the chapters that show them."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import STEPS
from lab.bookkeeping.vocabulary import DATASETS
from lab.report import page
from lab.report.explorers import ink

# What a directive puts into a chapter, as a reader calls it.
KINDS = {
    "finding": "words", "value": "number", "result-table": "table", "result-figure": "figure", "explorer": "figure",
}  # fmt: skip
NO_DATA = "no images"
COLOURS = {
    "MNIST": "#0072B2",
    "CIFAR-10": "#D55E00",
    "digits": "#009E73",
    "torch's docs": "#8C6BB1",
    NO_DATA: "#7A7A7A",
}

# Places in the map: how wide it is, where its three columns of names begin, and from one name to the next.
WIDE, DATA, NOTEBOOKS, CHAPTERS = 760, 0, 230, 574
HEAD, STEP = 44, 38
NAMES_END, TABLES_END = 78, 440  # where the names of data sets and of notebooks end at the latest
LETTERS = 26  # of a chapter's title in one line


@dataclass(frozen=True)
class Shown:
    """Something that a ``chapter`` shows: its ``kind``, the ``function`` that gives it, and the notebooks it reads."""

    chapter: str
    kind: str
    function: str
    notebooks: tuple[str, ...]


def data_of(notebook: str) -> list[str]:
    """The data sets that a notebook's shown run is about, as a reader calls them."""
    names = results.provenance(page.shown_run(notebook), notebook)["dataset"]["name"].split(", ")
    return list(dict.fromkeys(DATASETS.get(name, NO_DATA) for name in names))


def tables_of(notebook: str) -> list[str]:
    """The tables that a notebook's shown run holds."""
    return sorted(results.provenance(page.shown_run(notebook), notebook)["tables"])


def drawn_map(shown: Sequence[Shown], title: Callable[[str], str], link: Callable[[str], str]) -> str:
    """Data sets, notebooks and chapters from left to right, each joined to what it is made of, as SVG.

    ``shown`` is in the order of the book; ``title`` gives a chapter's, and ``link`` the address of a page.
    """
    notebooks = [notebook for notebook in STEPS if page.runs(notebook)]
    chapters = list(dict.fromkeys(each.chapter for each in shown if each.notebooks))
    data = [name for name in COLOURS if any(name in data_of(notebook) for notebook in notebooks)]
    notebooks.sort(key=lambda notebook: _middle(notebook, shown, chapters))
    high = HEAD + STEP * max(len(notebooks), len(chapters))
    at_data, at_notebook, at_chapter = (_spread(names, high) for names in (data, notebooks, chapters))
    heads = ((DATA, "data"), (NOTEBOOKS, "notebook, and its tables"), (CHAPTERS, "chapter"))
    parts = [f'<text class="head" x="{x}" y="16">{words}</text>' for x, words in heads]
    parts += [f'<text x="{DATA}" y="{y + 4:g}">{html.escape(name)}</text>' for name, y in at_data.items()]
    for notebook, y in at_notebook.items():
        lines = [
            _line((NAMES_END, at_data[name]), (NOTEBOOKS - 8, y), ink(COLOURS[name])) for name in data_of(notebook)
        ]
        for chapter in chapters:
            if any(each.chapter == chapter and notebook in each.notebooks for each in shown):
                lines.append(_line((TABLES_END, y), (CHAPTERS - 8, at_chapter[chapter])))
        name = f'<a href="{link(f"notebooks/{notebook}")}"><text x="{NOTEBOOKS}" y="{y - 2:g}">{notebook}</text></a>'
        tables = (
            f'<text class="tables" x="{NOTEBOOKS}" y="{y + 12:g}">{html.escape(", ".join(tables_of(notebook)))}</text>'
        )
        parts.append(f'<g class="step">{"".join(lines)}{name}{tables}</g>')
    parts += [_chapter(title(chapter), link(chapter), y) for chapter, y in at_chapter.items()]
    return f'<svg class="sources-map" viewBox="0 0 {WIDE} {high}" role="group">{"".join(parts)}</svg>'


def _middle(notebook: str, shown: Sequence[Shown], chapters: Sequence[str]) -> float:
    """Where the chapters that show a notebook stand, in the mean; unshown ones come last."""
    places = [chapters.index(each.chapter) for each in shown if notebook in each.notebooks]
    return sum(places) / len(places) if places else len(chapters)


def _spread(names: Sequence[str], high: float) -> dict[str, float]:
    """The height of each name in a column, from top to bottom."""
    step = (high - HEAD) / len(names) if names else 0
    return {name: HEAD + step * (number + 0.5) for number, name in enumerate(names)}


def _line(start: tuple[float, float], end: tuple[float, float], colour: str = "") -> str:
    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    return f'<path{colour} d="M{x0:g} {y0:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"/>'


def _chapter(title: str, address: str, y: float) -> str:
    """The title of a chapter, in two lines at most, as a link."""
    lines = textwrap.wrap(title, LETTERS, max_lines=2, placeholder=" …")
    top = y + 4 - 7 * (len(lines) - 1)
    words = "".join(
        f'<tspan x="{CHAPTERS}" y="{top + 14 * number:g}">{html.escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )
    return f'<a href="{address}"><text>{words}</text></a>'


def listed_sources(shown: Sequence[Shown], title: Callable[[str], str], link: Callable[[str], str]) -> pd.DataFrame:
    """A row for everything that a chapter shows of a notebook's tables, in the order of the book."""
    rows = []
    for each in dict.fromkeys(shown):
        for notebook in each.notebooks:
            there = bool(page.runs(notebook))
            rows.append(
                {
                    "chapter": f'<a href="{link(each.chapter)}">{html.escape(title(each.chapter))}</a>',
                    "what": KINDS[each.kind],
                    "by": f"<code>{each.function}</code>",
                    "notebook": f'<a href="{link(f"notebooks/{notebook}")}">{notebook}</a>',
                    "its tables": ", ".join(tables_of(notebook)) if there else "not run yet",
                    "data": ", ".join(data_of(notebook)) if there else "",
                }
            )
    return pd.DataFrame(rows)
