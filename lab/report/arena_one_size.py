"""The arena at the size of one network: a figure of all methods."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lab.bookkeeping.vocabulary import CONTESTANTS, Drawn
from lab.report.arena import accuracy, halves, name_of
from lab.report.draw import errors, on_page, on_phone, paper, width
from lab.report.facts import reads
from lab.report.statistics import Interval


@reads("arena")
def at_one_size(run: str) -> Figure:
    """Accuracy over all classes of every method at the size of one network: a panel for each kind of networks."""
    settings = halves(run)
    methods = [name for name in CONTESTANTS if any(accuracy(rows, name) is not None for rows in settings.values())]
    row, letters = (0.42, 20) if on_phone() else (0.3, 40)
    size = (width(), 0.9 + row * len(methods))
    figure, panels = plt.subplots(1, len(settings), figsize=size, sharey=True, squeeze=False)
    for (title, rows), axes in zip(settings.items(), panels[0], strict=True):
        for position, method in enumerate(methods):
            for mended, filled in ((None, True), ("repair", False)):
                reached = accuracy(rows, method, mended=mended)
                if reached is not None:
                    _dot(axes, reached, position, CONTESTANTS[method], filled)
        ensemble = accuracy(rows, "ensemble", 2.0)
        if ensemble is not None:
            axes.axvline(ensemble.mean, color=on_page(CONTESTANTS["ensemble"].colour), linestyle="--", zorder=1)
        axes.set_title(fill(title, 9) if on_phone() else title)
    panels[0, 0].set_yticks(range(len(methods)), [fill(name_of(method), letters) for method in methods])
    panels[0, 0].invert_yaxis()
    figure.supxlabel("accuracy (%)", fontsize="medium")
    return figure


def _dot(axes: plt.Axes, value: Interval, position: float, drawn: Drawn, filled: bool) -> None:
    colour = on_page(drawn.colour)
    axes.errorbar(
        [value.mean], [position], xerr=errors([value]), color=colour, marker=drawn.marker, elinewidth=1.2, capsize=3,
        markerfacecolor=colour if filled else paper(),
    )  # fmt: skip
