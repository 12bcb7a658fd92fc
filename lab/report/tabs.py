"""What every chapter needs: which runs to show, a tab for each, and under each what it was measured on."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import INITIALS

# The largest first: a chapter takes the first of these that was run.
PREFERRED = ("gpu", "cpu", "smoke")


def runs(name: str) -> list[str]:
    """The runs that hold the tables of notebook ``name``, the one to show first.

    That is the run ``REBASIN_RUN`` names, else the largest preset that was run. Other runs are not shown, nor a
    reference run, cpu or gpu, that was made with uncommitted changes.
    """
    own = os.environ.get("REBASIN_RUN")
    wanted = ([own] if own else []) + [run for run in PREFERRED if run != own]
    return [run for run in wanted if results.is_shown(run, name)]


def shown_run(name: str) -> str:
    """The run that a chapter speaks of. Raises FileNotFoundError if notebook ``name`` was never run."""
    found = runs(name)
    if not found:
        raise FileNotFoundError(f"no run holds the tables of notebooks/{name}.ipynb: `make reproduce` makes one")
    return found[0]


def tabs(name: str, show: Callable[[str], HTML], also: Sequence[str] = ()) -> HTML:
    """``show(run)`` for every run of notebook ``name``, each in a tab, with its provenance below it.

    So stands that of the notebooks ``also``, as far as the run has them, whose tables are shown too.
    """
    if not runs(name):
        return HTML("<p>Not run yet.</p>")
    parts = []
    group = f"{name}-{show.__name__}"
    for position, run in enumerate(runs(name)):
        below = "".join(measured_on(run, made) for made in (name, *also) if run in runs(made))
        item, label = html.escape(f"{group}-{run}"), html.escape(run)
        checked = ' checked="checked"' if position == 0 else ""
        parts.append(
            f'<input{checked} id="{item}" name="{group}" type="radio"><label class="sd-tab-label" for="{item}">{label}'
            f'</label><div class="sd-tab-content docutils">{show(run).data}{below}</div>'
        )
    return HTML(f'<div class="sd-tab-set docutils">{"".join(parts)}</div>')


def parameter(name: str, key: str) -> str:
    """A parameter of the run of notebook ``name`` that a chapter speaks of, as text."""
    return str(results.provenance(runs(name)[0], name)["parameters"][key]) if runs(name) else "no"


def measured_on(run: str, name: str) -> str:
    """One line of HTML: what a run's tables were measured on, with a link to the notebook that made them."""
    made = results.provenance(run, name)
    hardware = made["hardware"]
    machine = hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores"
    parameters = made["parameters"]
    data = made["dataset"]
    commit = (made["commit"] or "no commit")[:10] + ("" if made["clean"] else " with uncommitted changes")
    if made["key"] != results.step_key(name, results.declared_parameters(name) | parameters):
        commit += ", the code has changed since"
    if made["claims"] != results.claims_digest(name):
        commit += ", the rules of the claims have changed since"
    facts = [
        f"run {run}",
        made.get("models") or _recipe(parameters),
        f"{data['title']} ({data['fingerprint']})" if data["name"] else "no data set",
        machine,
        f"commit {commit}",
        made["date"],
    ]
    link = f'<a href="../notebooks/{name}.html">notebooks/{name}.ipynb</a>'
    return f'<p class="measured-on">Measured on: {html.escape(" · ".join(facts))} · {link}</p>'


def _recipe(parameters: Mapping[str, Any]) -> str:
    """How many models there are, and how they were trained, as far as it is one recipe."""
    n_models = parameters.get("n_models") or parameters["condition_models"]
    told = [f"{n_models} {parameters['architecture'].upper()}s"]
    told += [f"width {parameters['width']}, {parameters['epochs']} epochs"] if "epochs" in parameters else []
    told += [f"batch {parameters['batch_size']}", f"Adam at {parameters['learning_rate']:g}"]
    if "weight_decay" in parameters:
        told += [
            f"weight decay {parameters['weight_decay']:g}",
            f"initial weights of {INITIALS[parameters['initial']]}",
        ]
    return ", ".join(told)


def table(frame: pd.DataFrame) -> HTML:
    """A table of ready-made texts, that scrolls inside itself on a phone."""
    body = frame.to_html(index=False, escape=False, border=0, classes="table", justify="left")
    return HTML(f'<div class="wide-table">{body}</div>')
