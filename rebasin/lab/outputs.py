"""Run the notebooks at their defaults and store their outputs, which the tests compare: ``make notebooks``."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient

from rebasin.lab.pipeline import STEPS
from rebasin.lab.results import NOTEBOOKS


def main() -> None:
    for step in STEPS:
        path = NOTEBOOKS / f"{step}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        # Times would make every stored notebook differ from the last.
        NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": NOTEBOOKS}}).execute()
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"stored the outputs of {path.name}", flush=True)


if __name__ == "__main__":
    main()
