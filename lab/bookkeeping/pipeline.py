"""Run the notebooks in order, skipping what is up to date by content: ``python -m lab.bookkeeping.pipeline smoke``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT

STEPS = (
    "train", "merge", "accuracy", "conditions", "attack", "perturbations", "regularisation", "autoattack",
    "planted", "mnist", "many", "barriers", "counterexample", "comparison",
)  # fmt: skip
PRESETS = ROOT / "presets"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.bookkeeping.pipeline", description=__doc__)
    parser.add_argument("preset", help="a file of presets/, without its ending: smoke, cpu, gpu")
    parser.add_argument("steps", nargs="*", help=f"only these of: {', '.join(STEPS)}")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--script", action="store_true", help="execute the code cells without a notebook kernel")
    options = parser.parse_intermixed_args(arguments)
    try:
        changed = {name: _value(text) for name, text in options.p}
        if changed and "run" not in changed and options.preset in results.REFERENCE:
            raise ValueError(
                f"results/{options.preset} is for the preset as it is: name a run of your own, -p run NAME"
            )
        given = load_preset(options.preset) | changed
        run_steps(given, options.steps or STEPS, options.script)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"rebasin: {error}")


def _value(text: str) -> Any:
    """A parameter's value as YAML has it, save that YAML takes ``1e-3`` for a word."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def load_preset(name: str) -> dict[str, Any]:
    """The parameters of a preset. Raises FileNotFoundError, naming those that exist, if there is none so called."""
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"there is no preset {name!r}: there are {known}")
    return yaml.safe_load(path.read_text())


def run_steps(given: dict[str, Any], steps: tuple[str, ...] | list[str], script: bool = False) -> None:
    """Execute these notebooks with these parameters, each as far as it has them, unless its tables are current.

    Raises ValueError for a step or a parameter that no notebook has.
    """
    for step in steps:
        if step not in STEPS:
            raise ValueError(f"unknown step {step!r}: there are {', '.join(STEPS)}")
    declared = {step: results.declared_parameters(step) for step in STEPS}
    known = {name for parameters in declared.values() for name in parameters}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown parameter {name!r}: the notebooks have {', '.join(sorted(known))}")
    for number, step in enumerate(steps, 1):
        chosen = {name: value for name, value in given.items() if name in declared[step]}
        parameters = declared[step] | chosen
        run = parameters["run"]
        if results.is_current(run, step, results.step_key(step, parameters)):
            print(f"[{number}/{len(steps)}] {step}: up to date", flush=True)
            continue
        print(f"[{number}/{len(steps)}] {step} ...", flush=True)
        started = time.monotonic()
        if script:
            execute_script(step, chosen)
        else:
            _execute_notebook(step, chosen, ROOT / "_build" / "runs" / run)
        print(f"[{number}/{len(steps)}] {step}: {time.monotonic() - started:.0f} s", flush=True)


def execute_script(step: str, chosen: dict[str, Any]) -> None:
    """Execute a notebook's code cells in this process, where there is no notebook kernel."""
    results.check_known(step, chosen)
    namespace: dict[str, Any] = {"__name__": step}
    notebook = json.loads((results.NOTEBOOKS / f"{step}.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"notebooks/{step}.ipynb", "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                namespace.update(chosen)


def _execute_notebook(step: str, chosen: dict[str, Any], folder: Path) -> None:
    """Execute a notebook through papermill; the executed copy stays in ``folder``."""
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    # A kernel cannot see this terminal, so it is told where to draw its progress bars.
    terminal = os.ttyname(2) if sys.stderr.isatty() else str(folder / "progress.log")
    os.environ.setdefault("REBASIN_PROGRESS", terminal)
    executed = folder / f"{step}.ipynb"
    try:
        papermill.execute_notebook(
            results.NOTEBOOKS / f"{step}.ipynb", executed, chosen, progress_bar=False, log_output=False
        )
    except papermill.PapermillExecutionError as error:
        sys.exit(
            f"rebasin: notebooks/{step}.ipynb failed ({executed} has the whole story)\n{error.ename}: {error.evalue}"
        )


if __name__ == "__main__":
    main()
