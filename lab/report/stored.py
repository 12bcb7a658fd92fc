"""What the repository stores and tests compare: the notebooks' outputs at their defaults, and the README's picture."""

from __future__ import annotations

import math
import re

import nbformat
from nbclient import NotebookClient

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import STEPS
from lab.report.draw import house_style
from lab.report.hierarchy import accuracy_by_leaves
from lab.report.page import shown_run

PICTURE = ROOT / "book" / "_static" / "accuracy_by_leaves.svg"
NUMBER = re.compile(r"-?\d+\.\d+")
# Training on another processor ends at somewhat other networks. Smoke runs test them on 50 to some hundred images: a
# share of 50 has a deviation of 0.07. And a merge that hardly holds may break: the table of variants has such.
NEAR = {"abs_tol": 0.1, "rel_tol": 0.05}
FAR = 0.1  # of the numbers


def settled(new: str, stored: str) -> str:
    """The stored text if the new one is nearly that, else the new one.

    Words and whole numbers are equal, however they are spaced; of the decimals, no more than a tenth are not near.
    """
    words, kept_words = (" ".join(NUMBER.sub("a number", text).split()) for text in (new, stored))
    if words != kept_words:
        return new
    numbers, kept = (map(float, NUMBER.findall(text)) for text in (new, stored))
    near = [math.isclose(number, before, **NEAR) for number, before in zip(numbers, kept, strict=True)]
    return stored if near.count(False) <= FAR * len(near) else new


def store_notebook(step: str) -> None:
    """Run a notebook as it is and keep its outputs."""
    path = results.NOTEBOOKS / f"{step}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    # Times would make every stored notebook differ from the last.
    NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": results.NOTEBOOKS}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def store_picture() -> None:
    """Draw the README's picture from the largest run."""
    with house_style():
        figure = accuracy_by_leaves(shown_run("accuracy"))
        figure.savefig(PICTURE, bbox_inches="tight", facecolor="white", metadata={"Date": None})


def main() -> None:
    for step in STEPS:
        store_notebook(step)
        print(f"stored the outputs of notebooks/{step}.ipynb", flush=True)
    store_picture()
    print(f"stored {PICTURE.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
