"""Build the HTML book from results/, strictly: ``python -m lab.report.build``."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import STEPS
from lab.report import page

# What Sphinx prints for each page, and from which share of its time to which such lines come: measured once.
PHASES = {"reading sources": (0.30, 0.74), "writing output": (0.79, 0.93), "highlighting module code": (0.93, 1.0)}
STEP = re.compile(rf"({'|'.join(PHASES)})\.\.\. \[ *(\d+)%\] *(\S*)")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
EVERY = 5  # seconds between two lines about progress


def main() -> None:
    own = page.own_run()
    if own and not (results.results_folder() / own).is_dir():
        there = sorted(path.name for path in results.results_folder().glob("*/"))
        sys.exit(f"rebasin: there is no run {own!r} under results/: there are {', '.join(there) or 'none'}")
    for step in STEPS if own else ():
        if results.provenance(own, step) is None:
            print(f"run {own} has no tables of notebooks/{step}.ipynb: chapters that need them show another run")
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", ".", "--warningiserror", "--nitpick"]
    log = ROOT / "_build" / "book.log"
    log.parent.mkdir(exist_ok=True)
    print("building the book ...", flush=True)
    started = time.monotonic()
    with subprocess.Popen(
        [*command, "--keep-going", "--all"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as building:
        lines = []
        for line in progress(building.stdout, started):
            lines.append(line)
    log.write_text("\n".join(lines) + "\n")
    if building.returncode:
        faults = [line for line in lines if "WARNING" in line or "ERROR" in line]
        sys.exit("rebasin: the book has faults\n" + "\n".join(faults or lines[-20:]) + f"\n({log})")
    print(f"the book is at {ROOT / '_build' / 'html' / 'index.html'} ({time.monotonic() - started:.0f} s)", flush=True)


def progress(output: Iterable[str], started: float) -> Iterator[str]:
    """The lines of a build without colours; now and then one is printed: how far it is, and about how long is left."""
    said = started
    for coloured in output:
        line = COLOUR.sub("", coloured).rstrip()
        yield line
        step, now = STEP.match(line), time.monotonic()
        if step and now - said >= EVERY:
            said, elapsed, share = now, now - started, share_done(step[1], int(step[2]))
            left = elapsed * (1 - share) / share
            print(f"  {step[1]}: {step[3]}, {elapsed:.0f} s, about {left:.0f} s left", flush=True)


def share_done(phase: str, percent: int) -> float:
    """The share of a build's time that has passed when ``percent`` of the pages have gone through a phase."""
    first, last = PHASES[phase]
    return first + (last - first) * percent / 100


if __name__ == "__main__":
    main()
