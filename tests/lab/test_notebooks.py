"""Every notebook tells its parameters, and stores what it showed when it was last run from top to bottom."""

import ast
import json
import re

import papermill
import pytest

from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import STEPS, load_preset
from lab.bookkeeping.results import declared_parameters

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
# Folders that only exist on somebody's own machine.
PATH = re.compile(r"(?<![\w.])(?:/(?:home|root|work|tmp|Users|usr|opt|mnt|var)/|[A-Z]:\\)")


def notebook(name):
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def code_cells(name):
    """Number and cell of every code cell but the parameters, with its source as one text."""
    for number, cell in enumerate(notebook(name)["cells"]):
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            yield number, cell, "".join(cell["source"])


def shows_something(source):
    """Whether a cell ends in a value: in an expression other than the writing of the tables."""
    last = ast.parse(source).body[-1]
    return isinstance(last, ast.Expr) and not ast.unparse(last).startswith("results.finish(")


def texts(output):
    """All that an output says, as one text."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return "\n".join([output["ename"], output["evalue"], *output["traceback"]])
    return "\n".join("".join(part) if isinstance(part, list) else str(part) for part in output["data"].values())


def test_the_pipeline_runs_all_notebooks_there_are():
    assert set(NAMES) == set(STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_code_cell_is_of_parameters_that_papermill_can_tell(name):
    code = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    tagged = [cell["metadata"].get("tags", []) == ["parameters"] for cell in code]
    assert tagged == [True] + [False] * (len(code) - 1)
    told = papermill.inspect_notebook(ROOT / "notebooks" / f"{name}.ipynb")
    assert list(told) == list(declared_parameters(name)), "a line that papermill cannot read is no parameter"
    assignments = ast.parse("".join(code[0]["source"])).body
    assert len(told) == len(assignments), "nothing but parameters stands there"
    lines = "".join(code[0]["source"]).splitlines()
    for assignment, (key, parameter) in zip(assignments, told.items(), strict=True):
        assert ast.literal_eval(parameter["default"]) == declared_parameters(name)[key]
        assert parameter["help"] == lines[assignment.end_lineno - 1].partition("  # ")[2]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_was_executed_in_order_and_stored_what_it_showed(name):
    missing, counts = [], []
    for number, cell, source in code_cells(name):
        if cell["execution_count"] is None:
            missing.append(f"cell {number} of notebooks/{name}.ipynb was not executed:\n{source}")
        elif shows_something(source) and not cell["outputs"]:
            missing.append(f"cell {number} of notebooks/{name}.ipynb has no stored output:\n{source}")
        else:
            counts.append(cell["execution_count"])
    assert not missing, "\n\n".join(missing)
    assert counts == list(range(counts[0], counts[0] + len(counts))), "cells were executed out of order"


@pytest.mark.parametrize("name", NAMES)
def test_some_cell_of_every_notebook_shows_something(name):
    # Otherwise the stored outputs, and their comparison in `make test`, would say nothing.
    assert any(shows_something(source) for _, _, source in code_cells(name))


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_an_error_or_a_warning_or_names_a_folder_of_somebody(name):
    for number, cell, _ in code_cells(name):
        for output in cell["outputs"]:
            where = f"cell {number} of notebooks/{name}.ipynb: {texts(output)}"
            assert output["output_type"] != "error", where
            assert output.get("name") != "stderr", where
            assert "Traceback" not in texts(output), where
            assert not PATH.search(texts(output)), where


@pytest.mark.parametrize("name", NAMES)
def test_the_file_itself_names_no_folder_of_somebody(name):
    assert not PATH.search((ROOT / "notebooks" / f"{name}.ipynb").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_in_whatever_python_3_there_is(name):
    assert notebook(name)["metadata"]["kernelspec"]["name"] == "python3"


def test_a_parameter_has_the_same_default_in_every_notebook():
    defaults = {}
    for name in NAMES:
        for key, value in declared_parameters(name).items():
            assert defaults.setdefault(key, value) == value, f"{key} of notebooks/{name}.ipynb"


def test_preset_smoke_is_the_notebooks_own_defaults():
    assert load_preset("smoke") == {"run": "smoke"}
    assert {declared_parameters(name)["run"] for name in NAMES} == {"smoke"}
