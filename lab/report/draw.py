"""The house style of every figure of the book, and the figures that need no results."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import HTML, Image
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.bookkeeping.vocabulary import ALGORITHMS, Drawn
from lab.report.facts import reads
from lab.report.statistics import Interval

LIGHT_INK, DARK_INK = "#1F2328", "#E6E6E6"


@contextmanager
def house_style(dark: bool = False) -> Iterator[None]:
    """Draw in the book's style: transparent, ink for a light or a dark page, text still readable on a phone."""
    ink, faint = (DARK_INK, "#4A4F55") if dark else (LIGHT_INK, "#D0D3D6")
    style = {
        "figure.figsize": (5.2, 3.4),  # inches: as wide as a phone, text of size 11 is still ten pixels high
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
        "font.size": 11,
        "axes.titlesize": 12,
        "legend.fontsize": 11,
        "lines.linewidth": 2,
        "axes.prop_cycle": cycler(color=[drawn.colour for drawn in ALGORITHMS.values()]),
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
        yield


def themed(draw: Callable[[], Figure], alt: str) -> HTML:
    """What ``draw`` draws, once for light and once for dark pages; ``alt`` says in words what it shows."""
    images = []
    for dark in (False, True):
        with house_style(dark):
            figure = draw()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
        images.append(
            f'<img class="only-{"dark" if dark else "light"}" alt="{html.escape(alt)}" '
            'style="width: 38rem; max-width: 100%; height: auto; background: none; padding: 0" '
            f'src="data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        )
    # The book's theme hides one of the two; this does so where there is no such theme, as in JupyterLab.
    return HTML("<style>html:not([data-theme]) .only-dark { display: none }</style>" + "".join(images))


@reads()
def hierarchy_scheme() -> Figure:
    """Eight models merged pair by pair in three stages (Hierarchical Re-Basin, Figure 1)."""
    figure = Figure(figsize=(5.2, 4.8))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-2.6, 7.5), ylim=(-3.9, 0.4))
    axes.axis("off")
    ink, size = plt.rcParams["text.color"], 13
    for stage in range(4):
        width = 2**stage
        centres = [node * width + (width - 1) / 2 for node in range(8 // width)]
        nodes = "1 node" if stage == 3 else f"{8 // width} nodes" if stage else "8 models"
        axes.text(-2.5, -stage, f"stage {stage}\n{nodes}", va="center", fontsize=size)
        for node, x in enumerate(centres):
            first, last = node * width + 1, (node + 1) * width
            axes.text(
                x, -stage, f"{first}–{last}" if stage else str(first),
                ha="center", va="center", color="white" if stage else "black", zorder=3, fontsize=size,
                bbox={
                    "boxstyle": "round,pad=0.45", "edgecolor": "none",
                    "facecolor": ALGORITHMS["hierarchy" if stage else "unmerged"].colour,
                },
            )  # fmt: skip
            if stage < 3:
                second = node % 2
                parent = x + (0.5 - second) * width
                axes.plot([x, parent], [-stage, -stage - 1], color=ink, linestyle="--" if second else "-", zorder=1)
    lines = [Line2D([], [], color=ink, linestyle=style) for style in ("-", "--")]
    axes.legend(
        lines, ["as it is", "permuted into its partner's basin"],
        loc="lower center", ncols=2, handlelength=1.6, columnspacing=1.2, fontsize=size,
    )  # fmt: skip
    return figure


def interval_line(
    axes: plt.Axes, x: Sequence[float], intervals: Sequence[Interval], drawn: Drawn, label: str, line: str = "-"
) -> None:
    """Means over ``x``, joined by a line, each with its 95 % interval where there are enough nodes for one."""
    means = np.array([value.mean for value in intervals])
    error = np.array([[value.mean - value.low, value.high - value.mean] for value in intervals]).T  # NaN: no bar
    axes.errorbar(
        x, means, error, linestyle=line, color=drawn.colour, marker=drawn.marker, markersize=5, capsize=3, label=label
    )


def offsets(count: int, span: float) -> np.ndarray:
    """Positions (count,) side by side around zero, ``span`` from the first to the last."""
    return np.linspace(-span / 2, span / 2, count) if count > 1 else np.zeros(count)


def shades(count: int) -> np.ndarray:
    """Blues (count, 4) from the palest to the strongest, to be seen on the page that is drawn for."""
    on_dark = plt.rcParams["text.color"] == DARK_INK
    return plt.get_cmap("Blues")(np.linspace(0.75, 0.2, count) if on_dark else np.linspace(0.4, 1.0, count))


def legend_below(figure: Figure, axes: plt.Axes, columns: int = 2, y: float = 0.0) -> None:
    """The legend of ``axes`` below the figure, each label once."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    place = {"loc": "upper center", "bbox_to_anchor": (0.54, y)}
    figure.legend(by_label.values(), by_label.keys(), ncols=columns, **place)


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
