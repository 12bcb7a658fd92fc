"""Tables as HTML, with the same numbers as CSV."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from urllib.parse import quote

import pandas as pd

from lab.report.words import decimal

# 45.7 [44.9, 46.5], as words.in_words has it, and what may stand behind it, such as a star.
INTERVAL = re.compile(r"([+−]?\d+(?:\.\d+)?) \[([+−]?\d+(?:\.\d+)?), ([+−]?\d+(?:\.\d+)?)\](.*)")
NUMBER = re.compile(r"[+−]?\d+(?:\.\d+)?")
TAG = re.compile(r"<[^>]*>")
NOTHING = ("", "–")  # what stands in a cell where nothing was measured
LONG = 15  # rows; of more the head stays in sight
WIDE = 96  # characters, about as many as a line of text has at the size of a table's


def table(frame: pd.DataFrame, name: str = "") -> str:
    """A table of ready-made texts as HTML; with a ``name``, a link below it gives the table as CSV.

    It scrolls inside itself where it does not fit, and takes the whole width of the page where it is wide. A script
    sorts it: a reader chooses the column by its head.
    """
    columns = [_column(frame.iloc[:, place]) for place in range(frame.shape[1])]
    head = "".join(f'<th scope="col">{title.strip()}</th>' for title in frame.columns)
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in zip(*columns, strict=True))
    kinds = "wide-table" + " is-long" * (len(frame) > LONG) + " full-width" * (width(frame) > WIDE)
    return (
        f'<div class="{kinds}"><table class="table sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{csv_link(frame, name) if name else ''}"
    )


def with_half_width(text: str) -> str:
    """``45.7 [44.9, 46.5]`` as ``45.7 ± 0.8``; as it is where the interval is longer on one side, or there is none.

    Half a width is rounded up: its ends are rounded already.
    """
    found = INTERVAL.fullmatch(text)
    if found is None:
        return text
    places = len(found[1].partition(".")[2])
    mean, low, high = (round(float(end.replace("−", "-")) * 10**places) for end in found.groups()[:3])
    # Rounding alone makes a difference of one in the last place.
    if abs((high - mean) - (mean - low)) > 1:
        return text
    return f"{found[1]} ± {decimal((high - low + 1) // 2 / 10**places, places)}{found[4]}"


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV: no marks, an ASCII minus, and the ends of intervals in columns of their own."""
    columns = {}
    for place, title in enumerate(frame.columns):
        texts = [plain(str(value)) for value in frame.iloc[:, place]]
        parts = [_parts(text) for text in texts]
        name = _unused(plain(title.strip()), columns)
        columns[name] = [mean for mean, _, _ in parts]
        if any(low for _, low, _ in parts):
            columns |= {f"{name}, low": [low for _, low, _ in parts], f"{name}, high": [high for _, _, high in parts]}
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")


def csv_link(frame: pd.DataFrame, name: str) -> str:
    """A link that saves a table: the file is in the link, so that it is there without a server."""
    data = f"data:text/csv;charset=utf-8,{quote(csv(frame))}"
    return f'<p class="table-csv"><a download="{html.escape(name)}.csv" href="{data}">CSV</a></p>'


def plain(text: str) -> str:
    """What a text of HTML says."""
    return html.unescape(TAG.sub("", re.sub(r"<br ?/?>", "; ", text)))


def width(frame: pd.DataFrame) -> int:
    """About how many characters wide a table is: cells with numbers stay on one line, heads and long names do not."""
    total = 0
    for place, title in enumerate(frame.columns):
        cells = [with_half_width(plain(str(value))) for value in frame.iloc[:, place]]
        longest = max(map(len, cells), default=0)
        total += max(longest if _numeric(cells) else min(longest, 28), *map(len, plain(title).split()), 1) + 2
    return total


def _column(values: Iterable[object]) -> list[str]:
    """The cells of a column; numbers stand one below the other, at their ends."""
    texts = [with_half_width(str(value)) for value in values]
    if not _numeric(texts):
        return [f"<td>{text}</td>" for text in texts]
    parts = [NUMBER.match(text) for text in texts]
    most = max(len(part[0]) for part in parts if part)
    cells = []
    for text, part in zip(texts, parts, strict=True):
        number = part[0].rjust(most, "\u2007") if part else text  # a space as wide as a digit
        rest = text[part.end() :] if part else ""
        cells.append(f'<td class="number">{number}{f"<small>{rest}</small>" if rest.strip() else ""}</td>')
    return cells


def _numeric(texts: Iterable[str]) -> bool:
    """Whether a column holds numbers, each with its interval or a mark at most, or nothing."""
    filled = [text for text in texts if text not in NOTHING]
    return bool(filled) and all(re.fullmatch(rf"{NUMBER.pattern}(?: ?[±\[*].*)?", text) for text in filled)


def _parts(text: str) -> tuple[str, str, str]:
    """A cell for machines: its number, and the ends of its interval."""
    if text in NOTHING:
        return "", "", ""
    found = INTERVAL.fullmatch(text)
    if found is not None:
        mean, low, high = (end.replace("−", "-") for end in found.groups()[:3])
        return mean, low, high
    return re.sub(r"−(?=\d)", "-", text), "", ""


def _unused(name: str, used: Iterable[str]) -> str:
    """A name that no column has yet: of a second one with the same name ``name (2)``."""
    taken = sum(re.fullmatch(rf"{re.escape(name)}(?: \(\d+\))?", other) is not None for other in used)
    return f"{name} ({taken + 1})" if taken else name
