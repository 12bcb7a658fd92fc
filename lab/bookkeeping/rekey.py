"""Keep committed tables, and what the cache has, current over a change of code that changed no number.

``python -m lab.bookkeeping.rekey cpu --before FOLDER``: FOLDER is a checkout of the commit in which the tables of run
cpu are current. A table gets the key of the code as it is now if it was current there, whole, and if the smoke run,
made by both, gives the same tables. Its provenance says from which key and commit. Nothing else is a reason to change
a key. Notebooks that the run has no tables of are left out. By the same proof, what a module kept in the cache before
is read by the module as it is now.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.cache import write_together
from lab.bookkeeping.code import PACKAGES, ROOT
from lab.bookkeeping.content import module_fingerprint
from lab.bookkeeping.same_code import notes, with_pairs

# Rows of these metrics are times: they differ from run to run.
TIMES = ("seconds", "tracing_seconds")
# What is asked of the checkout's own code: which of a run's notebooks have current tables.
ASK = """
import json, sys
from lab.bookkeeping import results
from lab.bookkeeping.pipeline import STEPS
current = {}
for step in STEPS:
    made = results.provenance(sys.argv[1], step)
    if made is not None:
        parameters = results.declared_parameters(step) | made["parameters"]
        current[step] = results.is_current(sys.argv[1], step, results.step_key(step, parameters))
print(json.dumps(current))
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.bookkeeping.rekey", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a committed run, such as cpu")
    parser.add_argument("--before", type=Path, required=True, help="a checkout in which its tables are current")
    options = parser.parse_args(arguments)
    before = options.before.resolve()
    with tempfile.TemporaryDirectory() as made:
        folders = {tree: Path(made) / name / "smoke" for tree, name in ((before, "before"), (ROOT, "after"))}
        for tree, folder in folders.items():
            print(f"the smoke run of {tree} ...", flush=True)
            smoke(tree, folder.parent)
        was_current = json.loads(run_in(before, "-c", ASK, options.run))
        faults = list(differences(folders[before], folders[ROOT], was_current))
    if faults:
        sys.exit("rebasin: the change of code changed numbers, so that no table is kept\n" + "\n".join(faults))
    pairs = same_modules(before)
    write_together({notes(): lambda partial: partial.write_text(json.dumps(with_pairs(pairs), indent=1) + "\n")})
    print(f"{len(pairs)} modules read what they kept before")
    commit = git(before, "rev-parse", "HEAD")
    for notebook, current in was_current.items():
        if current:
            print(f"{notebook}: {rekey(options.run, notebook, commit)}")
        else:
            print(f"{notebook}: was not current in {before}: run it again")


def smoke(tree: Path, folder: Path) -> None:
    """Make the smoke run of a checkout, from nothing, its tables in ``folder``."""
    with tempfile.TemporaryDirectory() as cache:
        places = {"REBASIN_RESULTS": str(folder), "REBASIN_CACHE": cache}
        run_in(tree, "-m", "lab.bookkeeping.pipeline", "smoke", **places)


def differences(before: Path, after: Path, notebooks: Collection[str]) -> Iterator[str]:
    """What differs between the tables that two folders have of these notebooks, but for times: a line for each."""
    for path in _tables(before, notebooks):
        if not (after / path.name).exists():
            yield f"{path.name} is missing"
        elif without_times(path) != without_times(after / path.name):
            yield f"{path.name} differs"
    for path in _tables(after, notebooks):
        if not (before / path.name).exists():
            yield f"{path.name} is new"


def _tables(folder: Path, notebooks: Collection[str]) -> list[Path]:
    """The files <notebook>-<table>.parquet of these notebooks."""
    return [path for path in sorted(folder.glob("*.parquet")) if path.stem.partition("-")[0] in notebooks]


def without_times(path: Path) -> bytes:
    """A table's bytes, as it would be written without the times in it."""
    table = pd.read_parquet(path)
    if "metric" in table and table["metric"].isin(TIMES).any():
        return table[~table["metric"].isin(TIMES)].reset_index(drop=True).to_parquet(index=False)
    return path.read_bytes()


def same_modules(before: Path) -> dict[str, str]:
    """The fingerprint of each module that changed, directly or in what it imports, and the one that it had before."""
    pairs = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if not (before / relative).exists():
                continue
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            pairs[module_fingerprint(module, ROOT)] = module_fingerprint(module, before)
    return {code: older for code, older in pairs.items() if code != older}


def rekey(run: str, notebook: str, commit: str) -> str:
    """Give a notebook's tables the key of the code as it is now; ``commit`` is where they were current before."""
    path = results.results_folder() / run / f"{notebook}.json"
    made: dict[str, Any] = json.loads(path.read_text())
    key = results.step_key(notebook, results.completed(results.declared_parameters(notebook), made["parameters"]))
    if key == made["key"]:
        return "is current"
    note = {"from_key": made["key"], "from_commit": commit, "date": datetime.date.today().isoformat()}
    made |= {"key": key, "rekeyed": [*made.get("rekeyed", []), note]}
    write_together({path: lambda partial: partial.write_text(json.dumps(made, indent=1) + "\n")})
    return f"has the key {key} in place of {note['from_key']}"


def run_in(tree: Path, *arguments: str, **environment: str) -> str:
    """What this Python, started in a checkout with the checkout's own code, prints."""
    paths = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", **environment}  # numbers depend on threads
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=os.environ | paths, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"rebasin: in {tree}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
