"""Which run a chapter shows, and what its tables were measured on."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import INITIALS

# The largest first: a chapter takes the first of these that was run.
PREFERRED = (*reversed(results.REFERENCE), "smoke")


def own_run() -> str | None:
    """The run of a reader's own that the book is to show, if any: ``REBASIN_RUN``."""
    return os.environ.get("REBASIN_RUN") or None


def runs(notebook: str) -> list[str]:
    """The runs that hold the tables of a notebook, the one to show first.

    That is a reader's own run, else the largest preset that was run. Other runs are not shown, nor a reference run that
    was made with uncommitted changes.
    """
    own = own_run()
    wanted = ([own] if own else []) + [run for run in PREFERRED if run != own]
    return [run for run in wanted if results.is_shown(run, notebook)]


def shown_run(notebook: str) -> str:
    """The run that a chapter speaks of. Raises FileNotFoundError if the notebook was never run."""
    if not runs(notebook):
        raise FileNotFoundError(f"no run holds the tables of notebooks/{notebook}.ipynb: `make reproduce` makes one")
    return runs(notebook)[0]


def parameter(notebook: str, name: str) -> Any:
    """A parameter of the run of a notebook that a chapter speaks of."""
    return results.provenance(shown_run(notebook), notebook)["parameters"][name]


def measured_on(run: str, notebook: str) -> dict[str, str]:
    """What a run's tables were measured on, by name: data, networks, machine, commit, date and what it cost."""
    made = results.provenance(run, notebook)
    hardware, parameters, data = made["hardware"], made["parameters"], made["dataset"]
    commit = (made["commit"] or "no commit")[:10] + ("" if made["clean"] else " with uncommitted changes")
    if made.get("rekeyed"):
        commit += f", by the code of {made['rekeyed'][-1]['from_commit'][:10]}, which since changed without a number"
    if made["key"] != results.step_key(notebook, results.declared_parameters(notebook) | parameters):
        commit += ", the code has changed since"
    if made["claims"] != results.claims_digest(notebook):
        commit += ", the rules of the claims have changed since"
    return {
        "run": run,
        "networks": made.get("models") or _recipe(parameters),
        "data": f"{data['title']} ({data['fingerprint']})" if data["name"] else "none",
        "machine": hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores",
        "commit": commit,
        "date": made["date"],
        "cost": f"{made['wall_seconds'] / 60:.1f} minutes, {made['peak_memory_gb']:.1f} GB",
    }


def _recipe(parameters: Mapping[str, Any]) -> str:
    """How many models there are, and how they were trained, as far as it is one recipe."""
    n_models = parameters.get("n_models") or parameters["condition_models"]
    words = [f"{n_models} {parameters['architecture'].upper()}s"]
    words += [f"width {parameters['width']}, {parameters['epochs']} epochs"] if "epochs" in parameters else []
    words += [f"batch {parameters['batch_size']}", f"Adam at {parameters['learning_rate']:g}"]
    if "weight_decay" in parameters:
        words += [
            f"weight decay {parameters['weight_decay']:g}",
            f"initial weights of {INITIALS[parameters['initial']]}",
        ]
    return ", ".join(words)


def table(frame: pd.DataFrame) -> str:
    """A table of ready-made texts as HTML, that scrolls inside itself on a phone."""
    body = frame.to_html(index=False, escape=False, border=0, classes="table", justify="left")
    return f'<div class="wide-table">{body}</div>'


def parameters_table(notebook: str) -> str:
    """The parameters of the shown run of a notebook, as HTML, beside the notebook's own defaults."""
    defaults, given = results.declared_parameters(notebook), results.provenance(shown_run(notebook), notebook)
    rows = [
        {
            "parameter": f"<code>{name}</code>",
            "shown run": _code(given["parameters"].get(name)),
            "default": _code(value),
        }
        for name, value in defaults.items()
    ]
    return table(pd.DataFrame(rows))


def _code(value: Any) -> str:
    return "" if value is None else f"<code>{html.escape(repr(value))}</code>"
