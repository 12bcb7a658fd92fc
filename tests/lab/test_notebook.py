"""A notebook executed without a kernel: the same values, and a copy that tells what happened."""

import json

import pytest

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.notebook import execute


@pytest.fixture
def written(tmp_path, monkeypatch):
    """``written(*sources)``: a notebook "own" of parameters and these code cells, and where its copy goes."""

    def write(*sources):
        cells = [{"cell_type": "markdown", "metadata": {}, "source": "Words"}]
        cells.append({"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["n = 1\n", "size = 2"]})
        cells += [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
        (tmp_path / "own.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5}))
        return tmp_path / "copy" / "own.ipynb"

    monkeypatch.setattr(results, "NOTEBOOKS", tmp_path)
    return write


def outputs(copy):
    """The outputs of every code cell of an executed copy."""
    return [cell["outputs"] for cell in json.loads(copy.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_given_parameters_replace_the_defaults_and_the_copy_tells_them(written):
    copy = written("n + size")
    execute("own", {"n": 5}, copy)
    cells = json.loads(copy.read_text())["cells"]
    assert cells[2]["source"] == "# Parameters\nn = 5" and cells[2]["metadata"]["tags"] == ["injected-parameters"]
    assert outputs(copy)[-1][0]["data"] == {"text/plain": "7"}


def test_a_cell_keeps_what_it_prints_displays_and_ends_in(written):
    copy = written("print('printed')\ndisplay('shown')\nsize", "quiet = size")
    execute("own", {}, copy)
    stream, shown, value = outputs(copy)[2]
    assert stream == {"output_type": "stream", "name": "stdout", "text": "printed\n"}
    assert [shown["data"], value["data"]] == [{"text/plain": "'shown'"}, {"text/plain": "2"}]
    assert outputs(copy)[3] == []


def test_a_table_and_a_figure_are_shown_as_in_a_notebook(written):
    table = "import pandas\npandas.DataFrame([range(12)], columns=['a long name, ' * 3 + str(i) for i in range(12)])"
    copy = written(table, "from lab.report.draw import hierarchy_scheme, picture\npicture(hierarchy_scheme)")
    execute("own", {}, copy)
    (shown,), (figure,) = outputs(copy)[2:]
    assert "<th>a long name, a long name, a long name, 5</th>" in shown["data"]["text/html"]
    assert "Image object" in figure["data"]["text/plain"] and figure["data"]["image/png"].startswith("iVBOR")


def test_a_failing_cell_is_told_with_its_line_and_what_came_before_is_kept(written):
    copy = written("size", "def divide(by):\n    return size / by\n\ndivide(0)", "'never'")
    with pytest.raises(ZeroDivisionError):
        execute("own", {}, copy)
    before, failed, never = outputs(copy)[2:]
    assert before[0]["data"] == {"text/plain": "2"} and never == []
    story = "".join(failed[0]["traceback"])
    assert 'notebooks/own.ipynb, cell 4", line 2, in divide' in story and "return size / by" in story
    assert (failed[0]["ename"], failed[0]["evalue"]) == ("ZeroDivisionError", "division by zero")


def test_a_parameter_that_the_notebook_does_not_have_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(
        ValueError, match="unknown parameter 'network' of notebooks/train.ipynb: did you mean 'networks'"
    ):
        execute("train", {"network": {}}, tmp_path / "copy.ipynb")
    assert not (tmp_path / "copy.ipynb").exists()


def test_a_copy_shows_what_a_kernel_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    execute("counterexample", {}, tmp_path / "copy.ipynb")
    stored = outputs(ROOT / "notebooks" / "counterexample.ipynb")
    told = [[output["data"] for output in cell] for cell in outputs(tmp_path / "copy.ipynb")]
    del told[1]  # the cell with the given parameters
    as_text = [[{kind: "".join(text) for kind, text in output["data"].items()} for output in cell] for cell in stored]
    assert told == as_text and any(told)
