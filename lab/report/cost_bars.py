"""What each notebook's tables cost, as bars: hours of training and of the rest, and memory."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import STEPS
from lab.report import page
from lab.report.costs import of_notebook
from lab.report.draw import on_page, width
from lab.report.facts import Facts, reads
from lab.report.words import decimal, listed

TRAINING, REST, MEMORY = "#0072B2", "#E69F00", "#999999"


def costs() -> pd.DataFrame:
    """A row for each notebook that was run, in the order of the pipeline: hours, memory in GB, run and machine.

    Networks that several notebooks share are in the ``training`` of the first.
    """
    rows = []
    for notebook in STEPS:
        if not page.runs(notebook):
            continue
        run = page.shown_run(notebook)
        provenance = results.provenance(run, notebook)
        rows.append(
            {
                "notebook": notebook,
                "run": run,
                "training": provenance["training_seconds"] / 3600,
                "rest": provenance["wall_seconds"] / 3600,
                "memory": provenance["peak_memory_gb"],
                "machine": of_notebook(notebook)["machine"],
            }
        )
    table = pd.DataFrame(rows, columns=["notebook", "run", "training", "rest", "memory", "machine"])
    table.loc[table.duplicated(["run", "training"]), "training"] = 0.0  # equal to the tenth of a second: the same ones
    return table


@reads()
def largest() -> Facts:
    """Where the time of the committed runs goes, the ``share`` of it in percent, and the ``machine`` it was spent on.

    The outcome is what takes the most, ``training`` or the ``rest``; ``none`` without a committed run.
    """
    table = costs()
    table = table[table["run"].isin(results.REFERENCE)]
    if table.empty:
        return Facts("none", {"share": "–", "machine": "–"})
    hours = table[["training", "rest"]].sum()
    share = decimal(100 * hours.max() / hours.sum(), 0)
    return Facts(str(hours.idxmax()), {"share": share, "machine": listed(table["machine"])})


@reads()
def by_notebook() -> Figure:
    """Hours and memory of each notebook that was run: what it was the first to train, and its last execution."""
    table = costs()[::-1]  # the first on top
    places, hours = np.arange(len(table)), table["training"] + table["rest"]
    figure, (times, memories) = plt.subplots(
        1, 2, figsize=(width(), 0.9 + 0.27 * len(table)), sharey=True, width_ratios=(3, 2)
    )
    times.barh(places, table["training"], color=on_page(TRAINING), label="training")
    times.barh(places, table["rest"], left=table["training"], color=on_page(REST), label="the rest")
    memories.barh(places, table["memory"], color=on_page(MEMORY))
    for place, total, most in zip(places, hours, table["memory"], strict=True):
        times.annotate(_in_words(total), (total, place), (4, 0), textcoords="offset points", va="center")
        memories.annotate(decimal(most, 1), (most, place), (4, 0), textcoords="offset points", va="center")
    times.set_yticks(places, table["notebook"])
    times.set_title("hours")
    memories.set_title("memory, GB")
    for axes in (times, memories):
        axes.set_xlim(0, 1.35 * axes.dataLim.xmax)
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
    handles, labels = times.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _in_words(hours: float) -> str:
    if hours >= 1:
        return f"{decimal(hours, 1)} h"
    return f"{decimal(60 * hours, 0)} min" if hours >= 1 / 60 else "under 1 min"
