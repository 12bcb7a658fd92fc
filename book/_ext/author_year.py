"""The labels of the bibliography are what the text cites: ``Franke et al., 2025`` in place of a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


class AuthorYear(BaseLabelStyle):
    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        for entry in sorted_entries:
            first, *others = (person.rich_last_names[0].render_as("text") for person in entry.persons["author"])
            more = " et al." if len(others) > 1 else f" and {others[0]}" if others else ""
            yield f"{first}{more}, {entry.fields['year']}"


class AuthorYearStyle(Style):
    default_label_style = AuthorYear


def setup(app: Sphinx) -> dict[str, bool]:
    """Give the style a name that _config.yml can use."""
    register_plugin("pybtex.style.formatting", "author_year_labels", AuthorYearStyle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
