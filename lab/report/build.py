"""Build the HTML book from results/, strictly: ``python -m lab.report.build``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import STEPS

# What a failed cell leaves on a page even where the build itself does not notice.
FAILURE = "Traceback (most recent call last)"


def main() -> None:
    own = os.environ.get("REBASIN_RUN")
    if own and not (results.results_folder() / own).is_dir():
        there = sorted(path.name for path in results.results_folder().glob("*/"))
        sys.exit(f"rebasin: there is no run {own!r} under results/: there are {', '.join(there) or 'none'}")
    for step in STEPS if own else ():
        if results.provenance(own, step) is None:
            print(f"run {own} has no tables of notebooks/{step}.ipynb: chapters that need them show another run")
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", ".", "--warningiserror", "--nitpick"]
    print("building the book ...", flush=True)
    built = subprocess.run([*command, "--keep-going", "--all"], cwd=ROOT, capture_output=True, text=True)
    log = ROOT / "_build" / "book.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(built.stdout + built.stderr)
    if built.returncode:
        told = [line for line in built.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
        sys.exit("rebasin: the book has faults\n" + "\n".join(told or built.stderr.splitlines()[-20:]) + f"\n({log})")
    html = ROOT / "_build" / "html"
    failed = [page for page in html.rglob("*.html") if FAILURE in page.read_text()]
    if failed:
        sys.exit(f"rebasin: a cell failed on {', '.join(str(page) for page in failed)}")
    print(f"the book is at {html / 'index.html'}", flush=True)


if __name__ == "__main__":
    main()
