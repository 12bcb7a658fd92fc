"""Tidy tables with their provenance: what was measured, from what, by which code, on what kind of machine."""

from __future__ import annotations

import ast
import datetime
import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from lab.bookkeeping.cache import write_together
from lab.bookkeeping.checkout import commit, is_clean
from lab.bookkeeping.code import ROOT, code_fingerprint, fingerprint
from lab.bookkeeping.parquet import write_parquet
from lab.bookkeeping.ranges import check, comments
from lab.bookkeeping.spread import check_first
from lab.images import Dataset
from rebasin.progress import show_progress

NOTEBOOKS = ROOT / "notebooks"
PRESETS = ROOT / "presets"
CLAIMS = ROOT / "book" / "claims.yml"
# Runs that are committed with the book; every other run is its maker's own.
REFERENCE = ("cpu", "paper", "gpu")
# Without these a provenance is none.
NEEDED = {"key": str, "clean": bool, "parameters": dict, "tables": dict}
VERSIONS = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn")


@dataclass(frozen=True)
class Experiment:
    """One execution of a notebook: its name, its checked parameters, when it began, and the code as it was then."""

    name: str
    parameters: dict[str, Any]
    started: float
    code: dict[str, Any]


@dataclass(frozen=True)
class KeptRows:
    """Rows that a run's tables have already: of which entries of a listed parameter, and how they were made."""

    tables: dict[str, pd.DataFrame]
    entries: tuple[str, ...] = ()
    made: dict[str, Any] | None = None

    def followed_by(self, table: str, rows: pd.DataFrame) -> pd.DataFrame:
        """A whole table: the rows that were kept, and those that are new."""
        parts = [part for part in (self.tables.get(table), rows) if part is not None and len(part)]
        return pd.concat(parts, ignore_index=True) if parts else rows


def begin(name: str, namespace: dict[str, Any]) -> Experiment:
    """Check the parameters that notebook ``name`` was given, found in its ``globals()``, and complete them there.

    A parameter that is a dict may be given in part, or as a text in YAML (``papermill -p networks "{width: 32}"``): the
    rest is the default's. Raises ValueError for a parameter that the notebook does not have, of another type than its
    default, or outside the range that stands beside it, and for the name of a run that tables may not go to.
    """
    show_progress(sys.stderr.isatty())  # a kernel has no terminal: stored outputs stay clean
    declared = declared_parameters(name)
    for source in namespace.get("In", []):
        # papermill puts what it was told into a cell of its own, which begins so.
        if source.startswith("# Parameters"):
            check_known(name, _assigned(source))
    values = completed(declared, {key: namespace[key] for key in declared})
    check_values(name, values)
    namespace |= values
    # Read now: the files may be edited while a long run goes on.
    code = {
        "key": step_key(name, values),
        "commit": commit(),
        "clean": is_clean(),
        "claims": claims_digest(name),
    }
    return Experiment(name, values, time.monotonic(), code)


def completed(declared: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook: what was chosen over the defaults, of a dict key by key.

    Raises ValueError for a value of another type than its default.
    """
    values = dict(declared)
    for key, value in chosen.items():
        default = declared[key]
        if isinstance(default, dict) and isinstance(value, str):
            value = read_yaml(value)
        accepted = (float, int) if isinstance(default, float) else type(default)
        if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(default, bool):
            kind = type(default).__name__
            raise ValueError(f"parameter {key!r} must be of type {kind}, as {default!r} is: got {value!r}")
        values[key] = {**default, **value} if isinstance(default, dict) and isinstance(value, dict) else value
    return values


def check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value out of its parameter's range in notebook ``name``, and for a run's name.

    That must be a plain folder name, and not that of a committed run, unless its preset is taken as it is.
    """
    run = values["run"]
    if not re.fullmatch(r"\w[\w.-]*", run):
        raise ValueError(f"run must be a plain folder name, of letters, digits, '_', '.' and '-': got {run!r}")
    for key, comment in comments(_parameters_cell(name)).items():
        check(key, values[key], comment)
    if run in REFERENCE and results_folder() == ROOT / "results":
        declared, preset = declared_parameters(name), yaml.safe_load((PRESETS / f"{run}.yaml").read_text())
        if values != completed(declared, {key: preset[key] for key in preset.keys() & declared.keys()}):
            raise ValueError(f"results/{run} is for the preset as it is: name a run of your own, -p run NAME")


def read_yaml(text: str) -> Any:
    """What a text in YAML holds. Raises ValueError for one that is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no YAML: {' '.join(str(error).split())}") from error


def stated() -> dict[str, Any]:
    """What book/claims.yml states: ``claims``, those decided ``again``, and the ``measures`` their rules are about."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
    return yaml.load(CLAIMS.read_text(), Loader=loader)


def claims_digest(name: str) -> str:
    """A fingerprint of the rules that the tables of notebook ``name`` decide."""
    book = stated()  # once: reading YAML is slow
    measures = [measure for measure, of in book["measures"].items() if of["notebook"] == name]
    stated_twice = (*book["claims"], *book.get("again", ()))
    rules = [(claim["id"], rule) for claim in stated_twice for rule in claim["conditions"]]
    # What a rule is called decides nothing.
    deciding = [(claim, {key: rule[key] for key in rule if key not in ("id", "name")}) for claim, rule in rules]
    return fingerprint(*((claim, rule) for claim, rule in deciding if rule["measure"] in measures))


def declared_parameters(name: str) -> dict[str, Any]:
    """The parameters of a notebook and their defaults, from its cell tagged ``parameters``."""
    return _assigned(_parameters_cell(name))


def _parameters_cell(name: str) -> str:
    for cell in _code_cells(name):
        if "parameters" in cell["metadata"].get("tags", []):
            return "".join(cell["source"])
    raise ValueError(f"notebooks/{name}.ipynb has no cell tagged 'parameters'")


def check_known(name: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError, with the nearest name, if notebook ``name`` does not have one of these parameters."""
    declared = declared_parameters(name)
    for key in given:
        if key not in declared:
            near = difflib.get_close_matches(key, declared, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(declared)}"
            raise ValueError(f"unknown parameter {key!r} of notebooks/{name}.ipynb: {hint}")


def step_key(name: str, parameters: Mapping[str, Any]) -> str:
    """What a notebook's tables depend on: its code, its parameters, and the modules it imports.

    Every notebook builds the models it misses, so these cover whatever an earlier notebook would have made.
    """
    cells = [c for c in _code_cells(name) if "parameters" not in c["metadata"].get("tags", [])]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    return fingerprint(code_fingerprint(source), dict(parameters))


def kept_rows(experiment: Experiment, parameter: str, name: str) -> KeptRows:
    """The rows of those entries of a listed parameter that the run's tables have, by this code and from equal entries.

    ``name`` is the key under which an entry has its name, and the column in which all tables of the notebook have it.
    Entries of one name are kept together, or none of them is. A parameter that is a number lists 0, 1, 2, ... up to it.
    So a list may grow without what was measured being measured again, where no cache has it any more. All other
    parameters must be what they were.
    """
    run, listed = experiment.parameters["run"], experiment.parameters[parameter]
    made = provenance(run, experiment.name)
    if made is None or not made["parameters"].keys() <= experiment.parameters.keys():
        return KeptRows({})  # none, or made by a notebook that had other parameters
    before = completed(declared_parameters(experiment.name), made["parameters"])
    others_equal = before | {parameter: listed} == experiment.parameters
    if not others_equal or not is_current(run, experiment.name, step_key(experiment.name, before)):
        return KeptRows({})
    now, then = _entries(listed, name), _entries(before[parameter], name)
    entries = tuple(entry for entry in now if entry in then and now[entry] == then[entry])
    if not entries:
        return KeptRows({})
    tables = {table: read(run, experiment.name, table) for table in made["tables"]}
    for table, rows in tables.items():
        if name not in rows:
            raise ValueError(
                f"results/{run}/{experiment.name}-{table}.parquet has no column {name!r}, and so is not what the "
                "notebook writes: delete it"
            )
    return KeptRows({table: rows[rows[name].isin(entries)] for table, rows in tables.items()}, entries, made)


def _entries(listed: int | Sequence[Mapping[str, Any]], name: str) -> dict[Any, list[Any]]:
    """The entries of a listed parameter by their names; those of a number are 0, 1, 2, ..."""
    if isinstance(listed, int):
        return {number: [number] for number in range(listed)}
    entries: dict[Any, list[Any]] = {}
    for entry in listed:
        entries.setdefault(entry[name], []).append(entry)
    return entries


def results_folder() -> Path:
    """Where tables are kept: ``REBASIN_RESULTS``, by default results/ in the project's folder."""
    return Path(os.environ.get("REBASIN_RESULTS") or ROOT / "results")


def finish(
    experiment: Experiment,
    datasets: Dataset | Sequence[Dataset],
    tables: Mapping[str, pd.DataFrame],
    training_seconds: float = 0.0,
    models: str = "",
    kept: KeptRows | None = None,
) -> None:
    """Write the tables as results/<run>/<notebook>-<table>.parquet, and their provenance beside them.

    ``training_seconds`` is what the models took when they were trained, perhaps by an earlier notebook; ``models`` says
    in words what they are, where the notebook's parameters do not; ``kept`` says which rows of the tables an earlier
    execution made. All files are written before any takes its place, and the provenance names each table's content.
    Raises NotTheFirstShare, and writes nothing, where another process does the same work and is the first.
    """
    check_first()
    folder = results_folder() / experiment.parameters["run"]
    digests: dict[str, str] = {}

    def write_table(table: str, path: Path) -> None:
        write_parquet(tables[table], path)
        digests[table] = _digest(path)

    def write_provenance(path: Path) -> None:
        made = _provenance(experiment, datasets, digests, training_seconds, models)
        if kept is not None and kept.made is not None:
            made = _with_earlier(made, kept.made, kept.entries)
        path.write_text(json.dumps(made, indent=1) + "\n")

    writers = {folder / f"{experiment.name}-{table}.parquet": partial(write_table, table) for table in tables}
    write_together(writers | {folder / f"{experiment.name}.json": write_provenance})


def _provenance(
    experiment: Experiment,
    datasets: Dataset | Sequence[Dataset],
    digests: Mapping[str, str],
    training_seconds: float,
    models: str,
) -> dict[str, Any]:
    datasets = [datasets] if isinstance(datasets, Dataset) else datasets
    return {
        "notebook": f"notebooks/{experiment.name}.ipynb",
        **experiment.code,
        "parameters": experiment.parameters,
        "tables": dict(digests),
        "models": models,
        "dataset": {
            field: ", ".join(getattr(one, field) for one in datasets) for field in ("name", "title", "fingerprint")
        },
        "date": datetime.date.today().isoformat(),
        "hardware": _hardware(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in VERSIONS},
        },
        "training_seconds": round(training_seconds, 1),
        "wall_seconds": round(time.monotonic() - experiment.started, 1),
        "peak_memory_gb": round(_peak_memory() / 1e9, 2),
    }


def _with_earlier(made: dict[str, Any], earlier: dict[str, Any], entries: Sequence[str]) -> dict[str, Any]:
    """A provenance that names the execution which made the rows of these entries; costs are those of both."""
    fields = ("commit", "clean", "claims", "date", "hardware", "versions", "rekeyed", "earlier")
    return made | {
        "clean": made["clean"] and earlier["clean"],
        "earlier": {"entries": list(entries)} | {field: earlier[field] for field in fields if field in earlier},
        "training_seconds": round(made["training_seconds"] + earlier["training_seconds"], 1),
        "wall_seconds": round(made["wall_seconds"] + earlier["wall_seconds"], 1),
        "peak_memory_gb": max(made["peak_memory_gb"], earlier["peak_memory_gb"]),
    }


def read(run: str, name: str, table: str) -> pd.DataFrame:
    """A table of a run. Raises FileNotFoundError if the run has none, ValueError if it is not the one written."""
    path = results_folder() / run / f"{name}-{table}.parquet"
    made = provenance(run, name)
    if made is None or not path.exists():
        raise FileNotFoundError(f"no table {table!r} of notebook {name!r} in run {run!r} ({path.parent})")
    if _digest(path) != made["tables"].get(table):
        raise ValueError(f"{path} is not the table that {name}.json was written with: run the notebook again")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # a library of its own reads it, which raises either
        raise ValueError(f"{path} is no table ({error}): run the notebook again") from error


def provenance(run: str, name: str) -> dict[str, Any] | None:
    """The provenance of a notebook's tables in a run; None if there are none, or if it is damaged, which is told."""
    path = results_folder() / run / f"{name}.json"
    try:
        made = json.loads(path.read_bytes())
        if all(isinstance(made[field], kind) for field, kind in NEEDED.items()):
            return made
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # half a file, or one of another shape
        pass
    print(f"rebasin: {path} is damaged, and counts as none: run the notebook again", file=sys.stderr)
    return None


def is_shown(run: str, name: str) -> bool:
    """Whether the run holds this notebook's tables, and the book may speak of them.

    A reference run, cpu or gpu, that was made with uncommitted changes is only its maker's own, who names it.
    """
    made = provenance(run, name)
    return made is not None and (made["clean"] or run not in REFERENCE or run == os.environ.get("REBASIN_RUN"))


def is_current(run: str, name: str, key: str) -> bool:
    """Whether the run holds this notebook's tables, whole, and made with this key."""
    made = provenance(run, name)
    if made is None or made["key"] != key:
        return False
    files = {results_folder() / run / f"{name}-{table}.parquet": digest for table, digest in made["tables"].items()}
    if not all(path.is_file() for path in files):
        return False
    damaged = [path for path, digest in files.items() if _digest(path) != digest]
    for path in damaged:
        print(f"rebasin: {path} is not the table that {name}.json was written with", file=sys.stderr)
    return not damaged


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _code_cells(name: str) -> list[dict[str, Any]]:
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        raise FileNotFoundError(f"there is no notebook {path}")
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def _assigned(source: str) -> dict[str, Any]:
    """Names and literal values that a cell of plain assignments sets."""
    values = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            target = ast.unparse(node.targets[0])
            try:
                values[target] = ast.literal_eval(node.value)
            except ValueError as error:
                raise ValueError(f"parameter {target!r} is no plain value: {ast.unparse(node.value)}") from error
    return values


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    """The kind of machine, never its name, and how many of its cores torch takes: last bits depend on it."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    processor = models[0].split(":")[1].strip() if models else platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def _peak_memory() -> int:
    """Bytes of resident memory at the peak of this process; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
