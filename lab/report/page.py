"""Which run a chapter shows, and what its tables were measured on."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset, preset_steps
from lab.bookkeeping.vocabulary import DATASETS, INITIALS, OPTIMISERS, SUBSETS
from lab.networks import ARCHITECTURES
from lab.report.tables import table

# The largest first: a chapter takes the first of these that was run.
PREFERRED = (*reversed(results.REFERENCE), "smoke")
PRESETS = ("smoke", *results.REFERENCE)
LONGEST = 80  # letters of a parameter's value that are shown at once


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
    """A parameter of the run of a notebook that a chapter speaks of; ``networks.width`` is an entry of a dict."""
    value = results.provenance(shown_run(notebook), notebook)["parameters"]
    for key in name.split("."):
        value = value[key]
    return value


def measured_on(run: str, notebook: str) -> dict[str, str]:
    """What a run's tables were measured on, by name: data, networks, machine, commit, date and what it cost."""
    made = results.provenance(run, notebook)
    hardware, parameters, data = made["hardware"], made["parameters"], made["dataset"]
    commit = (made["commit"] or "no commit")[:10] + ("" if made["clean"] else " with uncommitted changes")
    if made.get("rekeyed"):
        commit += f", by the code of {made['rekeyed'][-1]['from_commit'][:10]}, which since changed without a number"
    now = results.completed(results.declared_parameters(notebook), parameters)
    if made["key"] != results.step_key(notebook, now):
        commit += ", the code has changed since"
    if made["claims"] != results.claims_digest(notebook):
        commit += ", the rules of the claims have changed since"
    return {
        "run": run,
        "networks": made.get("models") or "; ".join(_networks(given) for given in plans_in(parameters).values()),
        "data": _with_fingerprints(data) if data["name"] else "none",
        "machine": hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores",
        "commit": commit,
        "date": made["date"],
        **_earlier(made),
        "cost": f"{made['wall_seconds'] / 60:.1f} minutes, {made['peak_memory_gb']:.1f} GB",
    }


def _earlier(made: Mapping[str, Any]) -> dict[str, str]:
    """Which rows earlier executions made: their entries, commits and dates; nothing where one made all."""
    words = []
    while "earlier" in made:
        made = made["earlier"]
        words.append(
            f"{', '.join(map(str, made['entries']))}: commit {(made['commit'] or 'none')[:10]}, {made['date']}"
        )
    return {"earlier rows": "; ".join(words)} if words else {}


def data_titles(data: Mapping[str, str]) -> list[str]:
    """What a reader calls each data set of a provenance: ``["MNIST", "CIFAR-10 (JPEG re-encoded)"]``.

    Titles are stored in one comma list, and have commas of their own: what names no data set belongs to the one before.
    """
    parts, count = data["title"].split(", "), len(data["name"].split(", "))
    titles: list[list[str]] = []
    for part in parts:
        if not titles or len(parts) == count or any(name in part for name in DATASETS.values()):
            titles.append([])
        titles[-1].append(part)
    return [name + (f" ({', '.join(qualities)})" if qualities else "") for name, *qualities in titles]


def _with_fingerprints(data: Mapping[str, str]) -> str:
    each = zip(data_titles(data), data["fingerprint"].split(", "), strict=True)
    return ", ".join(f"{title} [{fingerprint}]" for title, fingerprint in each)


def plans_in(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters that say which networks are trained, by name."""
    return {name: value for name, value in parameters.items() if name.endswith("networks") and isinstance(value, dict)}


def _networks(plan: Mapping[str, Any]) -> str:
    """How many networks there are, and how they were trained, as far as the plan says."""
    words = [f"{plan['models']} {ARCHITECTURES[plan['architecture']].title}s"]
    words += [f"width {plan['width']}"] if "width" in plan else []
    epochs = " and ".join(map(str, plan["epochs"]))
    words += [f"{epochs} epoch{'s' * (plan['epochs'] != [1])}", f"batch {plan['batch_size']}"]
    words += [f"{OPTIMISERS[plan.get('optimiser', 'adam')]} at {plan['learning_rate']:g}"]
    words += [f"weight decay {plan['weight_decay']:g}"] if "weight_decay" in plan else []
    words += [f"initial weights of {INITIALS[plan['initial']]}"] if "initial" in plan else []
    words += [f"trained on {SUBSETS[plan['subset']]}"] if "subset" in plan else []
    return ", ".join(words)


def parameters_table(notebook: str) -> str:
    """The parameters of a notebook, as HTML: a column for each preset that has it, and one for a run of no preset."""
    declared = results.declared_parameters(notebook)
    presets = [preset for preset in PRESETS if notebook in preset_steps(preset)]
    columns = {preset: _chosen(declared, load_preset(preset)) for preset in presets}
    if shown_run(notebook) not in columns:
        columns[shown_run(notebook)] = results.provenance(shown_run(notebook), notebook)["parameters"]
    flattened = {column: flat(parameters) for column, parameters in columns.items()}
    names = dict.fromkeys(name for parameters in flattened.values() for name in parameters)
    rows = []
    for name in names:
        values = {column: _code(parameters.get(name)) for column, parameters in flattened.items()}
        rows.append({"parameter": f"<code>{name}</code>", **values})
    return table(pd.DataFrame(rows))


def _chosen(declared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's parameters with what a preset gives of them."""
    return results.completed(declared, {name: value for name, value in given.items() if name in declared})


def flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the entries of dicts by themselves, as ``networks.width``."""
    entries = {}
    for name, value in parameters.items():
        entries |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return entries


def _code(value: Any) -> str:
    """A value as code; a long one behind its beginning."""
    text = "" if value is None else html.escape(repr(value))
    if len(text) <= LONGEST:
        return text and f"<code>{text}</code>"
    return f"<details><summary><code>{text[: LONGEST // 2]}</code> …</summary><code>{text}</code></details>"
