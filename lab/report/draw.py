"""The house style of every figure of the book, and the figures that need no results."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import HTML, Image
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from lab.bookkeeping.vocabulary import ALGORITHMS, Drawn
from lab.report.facts import reads
from lab.report.statistics import Interval

LIGHT_INK, DARK_INK = "#1F2328", "#E6E6E6"
LIGHT_PAPER, DARK_PAPER = "#FFFFFF", "#121212"
ON_PAGE, ON_PHONE = 6.4, 5.2  # inches: how wide a figure is
TYPE = 12  # points: as wide as a phone, a figure for phones has type that is 11 pixels high
# What is kept of a colour where it is lightened for dark pages, as book.css does, and darkened for words on light ones.
KEPT, KEPT_IN_WORDS = 0.62, 0.7
GAP = 1.25  # lines of type from the middle of one name to that of the next


@contextmanager
def house_style(dark: bool = False, phone: bool = False) -> Iterator[None]:
    """Draw in the book's style: transparent, ink for a light or a dark page, as wide as a page or as a phone."""
    ink, faint = (DARK_INK, "#4A4F55") if dark else (LIGHT_INK, "#D0D3D6")
    style = {
        "figure.figsize": (ON_PHONE if phone else ON_PAGE, 3.6),
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.pad_inches": 0.04,
        "axes.facecolor": "none",
        "legend.frameon": False,
        "font.size": TYPE,
        "axes.titlesize": TYPE,
        "axes.titlelocation": "left",
        "legend.fontsize": TYPE,
        "xtick.labelsize": TYPE,
        "ytick.labelsize": TYPE,
        "lines.linewidth": 2,
        "lines.markersize": 7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": faint,
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "svg.hashsalt": "rebasin",  # the same figure is the same file
    }
    with plt.rc_context(style):
        colours = [on_page(drawn.colour) for drawn in ALGORITHMS.values()]
        with plt.rc_context({"axes.prop_cycle": cycler(color=colours)}):
            yield


def width() -> float:
    """How wide a figure may be, in inches, on what it is drawn for."""
    return float(plt.rcParams["figure.figsize"][0])


def on_phone() -> bool:
    return width() < ON_PAGE


def ink() -> str:
    """The colour of words and axes."""
    return str(plt.rcParams["text.color"])


def paper() -> str:
    """The colour of the page, with which an open mark is filled: no line shows through."""
    return DARK_PAPER if ink() == DARK_INK else LIGHT_PAPER


def on_page(colour: str) -> str:
    """A colour as it is drawn: lightened on a dark page."""
    return mixed(colour, "#FFFFFF", KEPT) if ink() == DARK_INK else colour


def word_colour(colour: str) -> str:
    """A colour as words are written in it: lightened on a dark page, darkened on a light one."""
    return on_page(colour) if ink() == DARK_INK else mixed(colour, "#000000", KEPT_IN_WORDS)


def mixed(colour: str, other: str, share: float) -> str:
    """So large a share of a colour, and for the rest another."""
    return to_hex(share * np.array(to_rgb(colour)) + (1 - share) * np.array(to_rgb(other)))


def themed(draw: Callable[[], Figure], alt: str) -> HTML:
    """What ``draw`` draws, for light and dark pages, and phones; ``alt`` says in words what it shows."""
    images = []
    for dark in (False, True):
        page, phone = (as_svg(draw, dark, phone) for phone in (False, True))
        images.append(
            "<picture>"
            + (f'<source media="(max-width: 40rem)" srcset="{phone}">' if phone != page else "")
            + f'<img class="only-{"dark" if dark else "light"}" alt="{html.escape(alt)}" '
            f'style="max-width: 100%; height: auto; background: none; padding: 0" src="{page}"></picture>'
        )
    # The book's theme hides one of the two; this does so where there is no such theme, as in JupyterLab.
    return HTML("<style>html:not([data-theme]) .only-dark { display: none }</style>" + "".join(images))


def as_svg(draw: Callable[[], Figure], dark: bool, phone: bool) -> str:
    """What ``draw`` draws for a page, as the address of an image."""
    with house_style(dark, phone):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@reads()
def hierarchy_scheme() -> Figure:
    """Eight models merged pair by pair in three stages (Hierarchical Re-Basin, Figure 1)."""
    figure = Figure(figsize=(ON_PHONE, 4.8), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-2.6, 7.5), ylim=(-3.9, 0.4))
    axes.axis("off")
    size = 13
    for stage in range(4):
        width = 2**stage
        centres = [node * width + (width - 1) / 2 for node in range(8 // width)]
        nodes = "1 node" if stage == 3 else f"{8 // width} nodes" if stage else "8 models"
        axes.text(-2.5, -stage, f"stage {stage}\n{nodes}", va="center", fontsize=size)
        for node, x in enumerate(centres):
            first, last = node * width + 1, (node + 1) * width
            axes.text(
                x, -stage, f"{first}–{last}" if stage else str(first),
                ha="center", va="center", color=paper() if stage else "black", zorder=3, fontsize=size,
                bbox={
                    "boxstyle": "round,pad=0.45", "edgecolor": "none",
                    "facecolor": on_page(ALGORITHMS["hierarchy" if stage else "unmerged"].colour),
                },
            )  # fmt: skip
            if stage < 3:
                second = node % 2
                parent = x + (0.5 - second) * width
                axes.plot([x, parent], [-stage, -stage - 1], color=ink(), linestyle="--" if second else "-", zorder=1)
    lines = [Line2D([], [], color=ink(), linestyle=style) for style in ("-", "--")]
    axes.legend(
        lines, ["as it is", "permuted into its partner's basin"],
        loc="lower center", ncols=2, handlelength=1.6, columnspacing=1.2, fontsize=size,
    )  # fmt: skip
    return figure


def interval_line(
    axes: plt.Axes,
    x: Sequence[float],
    intervals: Sequence[Interval],
    drawn: Drawn,
    label: str,
    line: str = "-",
    filled: bool = True,
) -> None:
    """Means over ``x``, joined by a line, each with its 95 % interval where there are enough nodes for one."""
    colour = on_page(drawn.colour)
    axes.errorbar(
        x, [value.mean for value in intervals], errors(intervals), linestyle=line, color=colour, label=label,
        marker=drawn.marker, markerfacecolor=colour if filled else paper(), elinewidth=1.2, capsize=2.5,
    )  # fmt: skip


def interval_rows(rows: Mapping[str, Sequence[tuple[Drawn, Interval]]], label: str) -> Figure:
    """A row for each title, below it its marks with their intervals and a line at 0; ``label`` is that of the axis."""
    figure, axes = plt.subplots(figsize=(ON_PHONE, 1.0 + 0.55 * len(rows)))
    for row, (title, marks) in enumerate(rows.items()):
        for offset, (drawn, value) in zip(offsets(len(marks), 0.2), marks, strict=True):
            axes.errorbar(
                value.mean, row + 0.2 + offset, xerr=errors([value]), color=on_page(drawn.colour), marker=drawn.marker,
                elinewidth=1.2, capsize=2, linestyle="none", label=drawn.title,
            )  # fmt: skip
        axes.vlines(0, row - 0.04, row + 0.5, color=ink(), linewidth=1.5, zorder=1)
        # Above its marks, and not beside them: so the axis is as wide as the page.
        axes.text(0, row - 0.24, title, transform=axes.get_yaxis_transform(), va="center")
        axes.axhline(row + 0.5, color=plt.rcParams["grid.color"], linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    legend_below(figure, axes)
    return figure


def errors(intervals: Sequence[Interval]) -> np.ndarray:
    """How far intervals reach (2, n) below and above their means; NaN, and not drawn, where there is none."""
    return np.array([[value.mean - value.low, value.high - value.mean] for value in intervals]).T


def offsets(count: int, span: float) -> np.ndarray:
    """Positions (count,) side by side around zero, ``span`` from the first to the last."""
    return np.linspace(-span / 2, span / 2, count) if count > 1 else np.zeros(count)


def shades(count: int) -> np.ndarray:
    """Colours (count, 4) in an order, told apart with any eyes, and to be seen on the page that is drawn for."""
    palest, strongest = (0.95, 0.5) if ink() == DARK_INK else (0.62, 0.0)
    return plt.get_cmap("plasma")(np.linspace(palest, strongest, count))


def plain_log(axes: plt.Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def name_ends(axes: plt.Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write the names of lines to the right of the axes, as high as they end, but so far apart that they can be read.

    An end is its y, a name, and the colour of that. Call it last: the axis may not change after it.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    least = GAP * TYPE * figure.dpi / 72
    ends = sorted(ends)
    heights = np.array([axes.transData.transform((1, y))[1] for y, _, _ in ends])
    places = heights.copy()
    for _ in range(100):
        closer = np.maximum(least - np.diff(places), 0) / 2
        places[:-1] -= closer
        places[1:] += closer
    for (y, name, colour), place, height in zip(ends, places, heights, strict=True):
        aside = (5, (place - height) * 72 / figure.dpi)
        axes.annotate(
            name, (1, y), xycoords=("axes fraction", "data"), xytext=aside, textcoords="offset points", va="center",
            color=colour, annotation_clip=False,
        )  # fmt: skip


def legend_below(figure: Figure, *panels: plt.Axes) -> None:
    """The legend of these panels below the figure, each label once, in as many columns as there is room for.

    The figure becomes higher by the legend, so that the panels keep their size.
    """
    by_label: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, handle)
    for columns in range(min(len(by_label), 4), 0, -1):
        legend = figure.legend(
            by_label.values(), by_label.keys(), ncols=columns, loc="outside lower center", columnspacing=1.4
        )
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or columns == 1:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        legend.remove()


def picture(draw: Callable[..., Figure], *runs: str) -> Image:
    """A chapter's figure, of these runs, as a picture for a notebook: ``picture(accuracy_by_leaves, "mine")``."""
    with house_style():
        figure = draw(*runs)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=80, bbox_inches="tight", facecolor="white", metadata={"Software": None}
        )
        plt.close(figure)
    return Image(buffer.getvalue())
