"""What it takes to make the book's tables: the code, and time, memory and machine of each notebook."""

from __future__ import annotations

from typing import Any

import pandas as pd
import yaml

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import STEPS
from lab.report import page
from lab.report.facts import Facts, reads
from lab.report.words import listed


@reads()
def repository() -> Facts:
    """Where the code is to be had, as _config.yml says: the outcome is ``published``, at an ``address``, or not yet."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    return Facts("published" if address else "not published", {"address": address})


@reads()
def budget() -> Facts:
    """What the committed runs took. The outcome names them, the largest first: ``cpu``, ``gpu and cpu``, or ``none``.

    ``training`` are the hours of all networks, some of them counted twice that two notebooks share; ``notebooks`` those
    of the notebooks as they were last executed; ``memory`` is the most that one of them held, in GB.
    """
    executed = [(run, provenance) for _, run, provenance in _executed() if run in results.REFERENCE]
    provenances = [provenance for _, provenance in executed]
    runs = [run for run in page.PREFERRED if run in {run for run, _ in executed}]
    training = sum({provenance["training_seconds"] for provenance in provenances})  # equal ones are the same networks
    notebooks = sum(provenance["wall_seconds"] for provenance in provenances)
    memory = max((provenance["peak_memory_gb"] for provenance in provenances), default=0.0)
    values = {"training": f"{training / 3600:.0f}", "notebooks": f"{notebooks / 3600:.1f}", "memory": f"{memory:.1f}"}
    return Facts(listed(runs) if runs else "none", values)


@reads()
def table() -> pd.DataFrame:
    """A row for each notebook that was run: the training of its networks, its last execution, memory and machine."""
    rows, trained_by = [], {}
    for step, run, provenance in _executed():
        seconds = provenance["training_seconds"]
        # Seconds that are equal to the tenth are of the same networks.
        first = trained_by.setdefault((run, seconds), step)
        training = {"training its networks": f"as {first}"} if seconds and first != step else {}
        rows.append(of_notebook(step) | training)
    return pd.DataFrame(rows)


def of_notebook(notebook: str) -> dict[str, str]:
    """What the shown run of a notebook cost: the training of its networks, its last execution, memory and machine."""
    run = page.shown_run(notebook)
    provenance = results.provenance(run, notebook)
    seconds, hardware = provenance["training_seconds"], provenance["hardware"]
    return {
        "notebook": notebook,
        "training its networks": _minutes(seconds) if seconds else "–",
        "last execution": _minutes(provenance["wall_seconds"]),
        "memory": f"{provenance['peak_memory_gb']:.1f}\N{NO-BREAK SPACE}GB",
        "run": run,
        "machine": hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']}\N{NO-BREAK SPACE}cores",
    }


def _executed() -> list[tuple[str, str, dict[str, Any]]]:
    """Each notebook that was run, in the order of the pipeline: its name, the run that is shown, and its provenance."""
    shown = [(step, page.runs(step)[0]) for step in STEPS if page.runs(step)]
    return [(step, run, results.provenance(run, step)) for step, run in shown]


def _minutes(seconds: float) -> str:
    # A number and its unit stay on one line.
    return f"{seconds / 60:.1f}\N{NO-BREAK SPACE}min" if seconds >= 60 else f"{seconds:.0f}\N{NO-BREAK SPACE}s"
