"""Execute a notebook without a kernel, and keep a copy with what it showed."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import linecache
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lab.bookkeeping import results

KERNEL_COLUMNS = 20  # that pandas shows in a notebook
Output = dict[str, Any]


def execute(name: str, chosen: Mapping[str, Any], copy: Path | None = None) -> None:
    """Execute the code cells of notebook ``name`` in this process, with these parameters in place of its defaults.

    After each cell, ``copy`` is written: the notebook with what its cells showed so far, a failed one's error included.
    Raises ValueError for a parameter that the notebook does not have, and whatever a cell raises.
    """
    results.check_known(name, chosen)
    notebook = json.loads((results.NOTEBOOKS / f"{name}.ipynb").read_text())
    _insert_parameters(notebook["cells"], chosen)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        cell |= {"execution_count": None, "outputs": []}
    namespace: dict[str, Any] = {"__name__": name}
    for number, cell in enumerate(code, 1):
        cell["execution_count"] = number
        try:
            _execute_cell("".join(cell["source"]), f"notebooks/{name}.ipynb, cell {number}", namespace, cell["outputs"])
        except BaseException as error:
            story = traceback.format_exception(error)
            cell["outputs"].append(
                {"output_type": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": story}
            )
            raise
        finally:
            if copy is not None:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(json.dumps(notebook, indent=1) + "\n")


def _insert_parameters(cells: list[dict[str, Any]], chosen: Mapping[str, Any]) -> None:
    """Put a cell with these parameters behind the one with the defaults, as papermill does."""
    source = "\n".join(["# Parameters", *(f"{key} = {value!r}" for key, value in chosen.items())])
    metadata = {"tags": ["injected-parameters"]}
    cell = {"cell_type": "code", "id": "injected", "metadata": metadata, "source": source}
    defaults = next(at for at, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    cells.insert(defaults + 1, cell)


def _execute_cell(source: str, title: str, namespace: dict[str, Any], outputs: list[Output]) -> None:
    """Execute a cell, and append what it prints, displays, and ends in, to ``outputs``."""
    linecache.cache[title] = (len(source), None, source.splitlines(keepends=True), title)  # for tracebacks
    tree = ast.parse(source, title)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None

    def display(*values: Any) -> None:
        outputs.extend({"output_type": "display_data", "data": _forms(value), "metadata": {}} for value in values)

    namespace["display"] = display
    printed = io.StringIO()
    try:
        # Without a kernel, pandas would fit tables to a terminal and leave columns out.
        with contextlib.redirect_stdout(printed), pd.option_context("display.max_columns", KERNEL_COLUMNS):
            exec(compile(tree, title, "exec"), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), title, "eval"), namespace)
                if value is not None:
                    display(value)
    finally:
        if printed.getvalue():
            outputs.insert(0, {"output_type": "stream", "name": "stdout", "text": printed.getvalue()})


def _forms(value: Any) -> dict[str, str]:
    """A value in the forms that a notebook may show it in, by their MIME types."""
    forms = {"text/plain": repr(value)}
    to_html = getattr(type(value), "_repr_html_", None)
    if to_html is not None and (html := to_html(value)) is not None:
        forms["text/html"] = html
    to_png = getattr(type(value), "_repr_png_", None)
    if to_png is not None and (png := to_png(value)) is not None:
        forms["image/png"] = png if isinstance(png, str) else base64.b64encode(png).decode()
    return forms
