"""The book on one page, and the card beside links to it: pictures from the tables, words from the front page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, DATASETS, title_of
from lab.report import front, page, plane
from lab.report.claims_table import sign
from lab.report.draw import house_style

WIDE, HIGH, MARGIN = 8.27, 11.69, 0.55  # inches: A4
GAP = 0.3  # inches between columns
SAFELY = 0.97  # of a column is filled: letters are set a little wider or narrower by other programs
BLUE, FAINT, MUTED, NIGHT = "#13518A", "#C9CED4", "#5B6573", "#0B2545"
# The verdicts that have a colour.
COLOURS = {"replicated": "#1A7F48", "partly": "#8A6100", "not replicated": "#B3261E"}


@dataclass(frozen=True)
class Words:
    """What the poster says: the ``title``, the ``lead``, and what stands under each heading of the front page.

    ``answers`` are titles with their text; ``guide`` has a row for each case, its head first; ``claims`` are lists of
    claims by verdict; ``captions`` belong to the two pictures.
    """

    title: str
    lead: str
    answers: Sequence[tuple[str, str]]
    captions: tuple[str, str]
    guide: Sequence[tuple[str, str, str]]
    claims: dict[str, Sequence[str]]
    foot: str


def draw_poster(words: Words) -> Figure:
    """The poster, an A4 page."""
    with house_style():
        figure = plt.figure(figsize=(WIDE, HIGH), facecolor="white", layout="none")
        inner = WIDE - 2 * MARGIN
        y = write(figure, MARGIN, MARGIN - 0.1, inner, words.title, 22, weight="bold", color=NIGHT)
        y = write(figure, MARGIN, y + 0.1, inner, words.lead, 9.2)
        y = columns(figure, y + 0.18, words.answers)
        y = pictures(figure, y + 0.18, 2.8, words.captions)
        y = guide(figure, y + 0.18, words.guide)
        y = scoreboard(figure, y + 0.2, words.claims)
        write(figure, MARGIN, y + 0.12, inner, words.foot, 7, color=MUTED)
    return figure


def write(
    figure: Figure, x: float, y: float, width: float, text: str, size: float, spacing: float = 1.32, **style: str
) -> float:
    """Words from ``y`` inches below the top, broken into lines of ``width``: where the next ones may begin."""
    font = FontProperties(size=size, weight=style.get("weight", "normal"), family=style.get("family", "sans-serif"))
    for line in broken(text, font, width):
        y += size * spacing / 72
        figure.text(x / WIDE, 1 - (y - 0.28 * size / 72) / HIGH, line, size=size, va="baseline", **style)
    return y


def broken(text: str, font: FontProperties, width: float) -> list[str]:
    """A text in lines of at most ``width`` inches; a word that is longer is broken after a comma or a bracket."""
    lines: list[str] = []
    for word in text.replace("(", "(\u200b").replace(",", ",\u200b").split():
        for number, part in enumerate(word.split("\u200b")):
            joint = "" if number else " "
            longer = f"{lines[-1]}{joint}{part}" if lines else part
            if lines and length(longer, font) <= SAFELY * width:
                lines[-1] = longer
            elif part:
                lines.append(part)
    return lines


def length(text: str, font: FontProperties) -> float:
    """How long a line is, in inches."""
    wide, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return wide / 72


def rule(figure: Figure, x: float, y: float, width: float, colour: str = FAINT, thickness: float = 0.8) -> None:
    """A level line."""
    ends = [x / WIDE, (x + width) / WIDE], [1 - y / HIGH] * 2
    figure.add_artist(plt.Line2D(*ends, color=colour, linewidth=thickness))


def columns(figure: Figure, y: float, answers: Sequence[tuple[str, str]]) -> float:
    """The answers side by side."""
    width = (WIDE - 2 * MARGIN - (len(answers) - 1) * GAP) / len(answers)
    ends = []
    for number, (title, text) in enumerate(answers):
        x = MARGIN + number * (width + GAP)
        rule(figure, x, y, width, BLUE, 2)
        below = write(figure, x, y + 0.06, width, title, 11, weight="bold")
        ends.append(write(figure, x, below + 0.03, width, text, 8.8))
    return max(ends)


def pictures(figure: Figure, y: float, high: float, captions: tuple[str, str]) -> float:
    """The plane, and accuracy by the number of networks, of the runs that the book shows; each over its caption."""
    half = (WIDE - 2 * MARGIN - GAP) / 2
    ends = [y]
    for number, (draw, notebook) in enumerate(((plane_on, "plane"), (accuracy_on, "attack"))):
        x = MARGIN + number * (half + GAP)
        if page.runs(notebook):
            left, below = (0.42, 0.36) if number else (0, 0)  # inches for the numbers at the axes
            place = (x + left) / WIDE, 1 - (y + high - below) / HIGH, (half - left) / WIDE, (high - below) / HIGH
            draw(figure.add_axes(place), page.shown_run(notebook))
            ends.append(write(figure, x, y + high + 0.06, half, captions[number], 8.8, weight="bold"))
    return max(ends)


def plane_on(axes: plt.Axes, run: str) -> None:
    """The test loss on the plane of the run's first pair of networks, from A to B and to π(B)."""
    shown = plane.planes(run)[0]
    x, y, loss = shown.smooth()
    levels = plane.levels([shown])
    shades = {"cmap": plane.HEIGHTS, "norm": LogNorm(*levels[[0, -1]]), "extend": "max"}
    axes.contourf(x, y, np.maximum(loss, levels[0]), levels=levels, **shades)
    axes.contour(x, y, loss, levels=levels, colors="white", linewidths=0.3, alpha=0.5)
    halo = [withStroke(linewidth=3, foreground=NIGHT)]
    for matcher in plane.ENDS:
        line = np.array([shown.on_line(matcher, lam) for lam in (0, 1)])
        style = "--" if matcher == "none" else "-"
        axes.plot(*line.T, style, color="white", marker="o", path_effects=halo)
    for name, place in shown.corners.items():
        axes.annotate(
            name, place, xytext=(0, 8), textcoords="offset points", ha="center", color="white", weight="bold",
            size=12, path_effects=halo,
        )  # fmt: skip
    thin = [withStroke(linewidth=1.5, foreground=NIGHT)]
    said = {"xycoords": "axes fraction", "size": 7, "color": "white", "path_effects": thin}
    axes.annotate(f"{shown.title}: test loss, dark is low", (0.02, 0.025), **said)
    axes.set_aspect("equal", anchor="NW")
    axes.axis("off")


def accuracy_on(axes: plt.Axes, run: str) -> None:
    """Test accuracy by the number of networks that were merged into one, each way named at the end of its line."""
    of_ways = front.by_number(run)
    alone = of_ways["unmerged", "none"]
    if alone:
        axes.axhline(alone[1].mean, color=MUTED, linestyle=":", linewidth=1.2)
        place = {"xy": (1, alone[1].mean), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate("one of them by itself", xytext=(0, 3), ha="right", size=7, **place)
    sizes: set[int] = set()
    for way in front.WAYS:
        curve = of_ways[way]
        if curve:
            dashed = way[1] == "none" and way[0] != "ensemble"
            drawn, means = ALGORITHMS[way[0]], [value.mean for value in curve.values()]
            axes.plot(
                list(curve), means, "--" if dashed else "-", color=drawn.colour, marker=drawn.marker, markersize=4,
                linewidth=1.5, label=title_of(*way),
            )  # fmt: skip
            sizes |= set(curve)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7.5)
    axes.set_xlabel("networks merged into one", size=7.5, labelpad=1)
    data = DATASETS[results.read(run, "attack", "clean")["dataset"].iloc[0]]
    axes.set_ylabel(f"test accuracy, {data} (%)", size=7.5)
    between = {"loc": "lower right", "bbox_to_anchor": (1, 0.21)}  # the averages as they are, and all others
    axes.legend(fontsize=6.5, ncols=2, handlelength=2.2, columnspacing=1, borderpad=0, **between)


def guide(figure: Figure, y: float, rows: Sequence[tuple[str, str, str]]) -> float:
    """What to call for which networks, and what to expect, a row for each."""
    inner = WIDE - 2 * MARGIN
    widths = [0.21 * inner, 0.35 * inner, 0.44 * inner]
    for number, row in enumerate(rows):
        ends, x = [], MARGIN
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            style = {"color": MUTED} if not number else {"weight": "bold"} if not column else {}
            if number and column == 1 and "(" in text:
                style = {"family": "monospace"}
            size = 6.6 if "family" in style else 7.6
            ends.append(write(figure, x, y, width - 0.15, text, size, **style))
            x += width
        y = max(ends) + 0.05
        rule(figure, MARGIN, y, inner)
        y += 0.03
    return y - 0.03


def scoreboard(figure: Figure, y: float, claims: dict[str, Sequence[str]]) -> float:
    """A bar of the verdicts, and below it the claims with a sign each, in columns."""
    inner, total = WIDE - 2 * MARGIN, sum(map(len, claims.values()))
    x, high = MARGIN, 0.2
    for verdict, names in claims.items():
        wide = inner * len(names) / max(total, 1)
        colour = COLOURS.get(verdict, MUTED)
        place = (x / WIDE, 1 - (y + high) / HIGH), (wide - 0.02) / WIDE, high / HIGH
        figure.add_artist(Rectangle(*place, color=colour, linewidth=0))
        middle = (x + wide / 2) / WIDE, 1 - (y + high - 0.06) / HIGH
        bold, name = FontProperties(size=7.5, weight="bold"), f"{len(names)} {verdict}"
        shown = name if length(name, bold) < SAFELY * wide else str(len(names))
        figure.text(*middle, shown, color="white", weight="bold", size=7.5, ha="center", va="baseline")
        x += wide
    listed = [(verdict, name) for verdict, names in claims.items() for name in names]
    longest, width = -(-len(listed) // 3), (inner - 2 * GAP) / 3
    ends = [y + high]
    for column in range(3):
        at, below = MARGIN + column * (width + GAP), y + high + 0.08
        for verdict, name in listed[column * longest : (column + 1) * longest]:
            style = {"color": COLOURS.get(verdict, MUTED), "weight": "bold"}
            write(figure, at, below, width, sign(verdict), 6.4, **style)
            below = write(figure, at + 0.13, below, width - 0.13, name, 6.4, 1.25)
        ends.append(below)
    return max(ends)


def draw_card(words: Words) -> Figure:
    """What is shown beside a link to the book: its question, and the plane."""
    with house_style(dark=True):
        figure = plt.figure(figsize=(12, 6.3), facecolor=NIGHT, layout="none")
        font = FontProperties(size=44, weight="bold")
        for number, line in enumerate(broken(words.title, font, 5.2)):
            figure.text(0.05, 0.75 - 0.13 * number, line, size=44, weight="bold", color="white")
        for number, line in enumerate(broken(words.foot, FontProperties(size=19), 5.0)):
            figure.text(0.05, 0.17 - 0.06 * number, line, size=19, color=FAINT)
        if page.runs("plane"):
            axes = figure.add_axes((0.5, 0, 0.5, 1))
            plane_on(axes, page.shown_run("plane"))
            # As much of its width as fills the box.
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            half = (top - bottom) * 6 / 6.3 / 2
            axes.set_xlim((left + right) / 2 - half, (left + right) / 2 + half)
    return figure


def save(words: Words, folder: Path) -> None:
    """Write ``poster.pdf``, and ``_static/preview.png``, into the folder of the built book."""
    poster, card = draw_poster(words), draw_card(words)
    poster.savefig(folder / "poster.pdf", metadata={"Title": words.title, "CreationDate": None})
    card.savefig(folder / "_static" / "preview.png", dpi=100, facecolor=NIGHT, metadata={"Software": None})
    plt.close(poster)
    plt.close(card)
