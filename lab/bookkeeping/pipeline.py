"""Run the notebooks, skipping what is up to date by content: ``python -m lab.bookkeeping.pipeline smoke``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lab.bookkeeping import interruption, results
from lab.bookkeeping.cache import remove_leftovers
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.same_code import cache_folder
from lab.bookkeeping.spread import SHARE, check_cluster, share
from lab.bookkeeping.workers import Job, duration, run_jobs, seconds_left, with_advice

PRESETS = results.PRESETS
# The entries of a preset that are no notebook's parameters: how many threads each notebook gets, and which notebooks
# it is for, if not for all.
THREADS, ONLY = "threads", "notebooks"
# Which notebook's networks a notebook builds on. It would build them by itself, but not twice if it waits.
BUILDS_ON = {
    "merge": "train", "accuracy": "merge", "attack": "merge", "planted": "train", "many": "mnist",
    "perturbations": "attack", "regularisation": "attack", "autoattack": "attack", "plane": "comparison",
}  # fmt: skip
# Seconds of a notebook that was never run here, by its defaults on a core of a laptop; of most of them, three.
FIRST_TIME = {
    "conditions": 15.0, "arena": 15.0, "trees": 15.0, "attack": 7.0, "comparison": 6.0, "variants": 6.0,
    "transformers": 15.0,
}  # fmt: skip


def notebooks_of_the_book() -> tuple[str, ...]:
    """The names of the notebooks in _toc.yml, in their order there."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return tuple(page.removeprefix("notebooks/") for page in pages if page.startswith("notebooks/"))


STEPS = notebooks_of_the_book()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.bookkeeping.pipeline", description=__doc__)
    parser.add_argument("preset", help="a file of presets/, without its ending: smoke, cpu, gpu")
    parser.add_argument("steps", nargs="*", help=f"only these of: {', '.join(STEPS)}")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument(
        "--share", metavar="K/N", help="be the K-th of N that do this work together, each beginning at another place"
    )
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="compute on the workers of a Dask scheduler, such as tcp://host:8786"
    )
    parser.add_argument("-j", type=int, metavar="N", help="processes at once; by default as the cores allow")
    options = parser.parse_intermixed_args(arguments)
    if options.share and options.cluster:
        parser.error("--share and --cluster are two ways to share out the work: choose one")
    try:
        interruption.raise_from_now_on()
        changed = {name: text if name == "run" else _value(text) for name, text in options.p}
        given = load_preset(options.preset) | changed
        if changed and given["run"] in results.REFERENCE:
            raise ValueError(f"results/{given['run']} is for the preset as it is: name a run of your own, -p run NAME")
        steps, threads = options.steps or preset_steps(options.preset), preset_threads(options.preset)
        if options.share is not None:
            os.environ[SHARE] = options.share
        run_steps(given, steps, threads, options.j, options.cluster)
    except KeyboardInterrupt:
        print(interruption.MESSAGE, file=sys.stderr)
        sys.exit(interruption.STATUS)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"rebasin: {error}")
    except OSError as error:
        sys.exit(f"rebasin: {with_advice(str(error))}")


def _value(text: str) -> Any:
    """A parameter's value as YAML has it, save that YAML takes ``1e-3`` for a word."""
    value = results.read_yaml(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def load_preset(name: str) -> dict[str, Any]:
    """The parameters of a preset. Raises FileNotFoundError, naming those that exist, if there is none so called."""
    return {key: value for key, value in _preset(name).items() if key not in (THREADS, ONLY)}


def preset_threads(name: str) -> int | None:
    """How many threads a preset gives to each notebook; None for as many as torch takes, one notebook at a time."""
    return _preset(name).get(THREADS)


def preset_steps(name: str) -> Sequence[str]:
    """The notebooks that a preset is for: those under its ``notebooks``, or all."""
    return _preset(name).get(ONLY, STEPS)


def _preset(name: str) -> dict[str, Any]:
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"there is no preset {name!r}: there are {known}")
    preset = results.read_yaml(path.read_text())
    if not isinstance(preset, dict) or not isinstance(preset.get("run"), str):
        raise ValueError(f"{path} is no preset: it has no parameter 'run'")
    return preset


def run_steps(
    given: Mapping[str, Any],
    steps: Sequence[str] = STEPS,
    threads: int | None = 1,
    at_once: int | None = None,
    cluster: str | None = None,
) -> None:
    """Execute these notebooks with these parameters, each as far as it has them, unless its tables are current.

    ``at_once`` of them side by side, by default as many as there are cores for, with so many ``threads`` each: numbers
    depend on threads in their last digits, and never on how many notebooks there are at once. Fewer notebooks have
    processes of their own for what can be done in any order, or the workers of a ``cluster``. Raises ValueError for a
    step or a parameter that no notebook has, or out of its range, and for a share that is none; RuntimeError when a
    notebook fails, and if no cluster answers.
    """
    chosen, (mine, shares) = parameters_of(given, steps), share()
    remove_leftovers(cache_folder())
    remove_leftovers(results.results_folder())
    jobs = []
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}] {step}"
        parameters = results.completed(results.declared_parameters(step), chosen[step])
        if is_up_to_date(step, parameters):
            print(f"{label}: up to date", flush=True)
        else:
            after = frozenset({BUILDS_ON[step]} if step in BUILDS_ON else ())
            jobs.append(Job(label, step, chosen[step], after, expected_seconds(step, parameters["run"])))
    if not jobs:
        return
    if cluster is not None:
        check_cluster(cluster)
    at_once = at_once or notebooks_at_once(threads)
    left = duration(seconds_left(jobs, {}, {}, at_once))
    print(f"{len(jobs)} notebooks to run, {at_once} at once: about {left}", flush=True)
    began = time.monotonic()
    folder = ROOT / "_build" / "runs" / str(given["run"])
    run_jobs(jobs, folder if mine == 1 else folder / f"share {mine}", at_once, threads, cluster)
    print(f"{len(jobs)} notebooks: {duration(time.monotonic() - began)}", flush=True)
    if mine > 1:
        print(f"share {mine}/{shares} is done: the first one writes the tables", flush=True)


def is_up_to_date(step: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the tables of a notebook are there, made by this code from these parameters."""
    return results.is_current(parameters["run"], step, results.step_key(step, parameters))


def parameters_of(given: Mapping[str, Any], steps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Those of the given parameters that each step has. Raises ValueError for what no notebook has, or out of range."""
    for step in steps:
        if step not in STEPS:
            raise ValueError(f"unknown step {step!r}: there are {', '.join(STEPS)}")
    declared = {step: results.declared_parameters(step) for step in STEPS}
    known = {name for parameters in declared.values() for name in parameters}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown parameter {name!r}: the notebooks have {', '.join(sorted(known))}")
    chosen = {step: {name: value for name, value in given.items() if name in declared[step]} for step in steps}
    for step in steps:
        results.check_values(step, results.completed(declared[step], chosen[step]))
    return chosen


def expected_seconds(step: str, run: str) -> float:
    """How long a notebook took when it last ran; if never, what the smallest preset takes."""
    last_time = results.provenance(run, step)
    first_time = FIRST_TIME.get(step, 3.0)
    return last_time.get("wall_seconds", first_time) if last_time else first_time


def notebooks_at_once(threads: int | None) -> int:
    """How many notebooks of so many threads the cores that this process may use have room for."""
    if threads is None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)


def interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Whoever ends this process ends its notebooks with it, as Ctrl-C does.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    main()
