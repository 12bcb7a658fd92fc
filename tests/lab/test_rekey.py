"""A table keeps its key over a change of code only if that changed no number."""

import json
import shutil

import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping import rekey, results, same_code
from lab.bookkeeping.code import PACKAGES, ROOT
from lab.bookkeeping.content import function_fingerprint, module_fingerprint
from lab.tasks import tasks_of

TABLE = pd.DataFrame({"metric": ["sweeps", "seconds"], "node": [0, 0], "value": [3.0, 1.25]})


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


def folder_with(path, **tables):
    path.mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(path / f"{name}.parquet", index=False)
    return path


def test_the_same_tables_differ_in_nothing_but_times(tmp_path):
    later = TABLE.assign(value=[3.0, 2.5])
    before, after = (folder_with(tmp_path / name, one=table) for name, table in (("before", TABLE), ("after", later)))
    assert list(rekey.differences(before, after, ["one"])) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ({"one": TABLE}, {"one": TABLE.assign(value=[4.0, 1.25])}, "one.parquet differs"),
        ({"one": TABLE}, {"one": TABLE.rename(columns={"node": "k"})}, "one.parquet differs"),
        ({"one": TABLE}, {"one": TABLE.iloc[1:]}, "one.parquet differs"),
        ({"one": TABLE, "two": TABLE}, {"one": TABLE}, "two.parquet is missing"),
        ({"one": TABLE}, {"one": TABLE, "two": TABLE}, "two.parquet is new"),
    ],
)
def test_a_difference_is_named(tmp_path, before, after, fault):
    folders = [folder_with(tmp_path / str(number), **tables) for number, tables in enumerate((before, after))]
    assert list(rekey.differences(*folders, ["one", "two"])) == [fault]


def test_what_a_module_kept_before_is_read_once_its_change_is_known_to_have_changed_no_number(tmp_path, monkeypatch):
    before = tmp_path / "before"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, before / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (before / "lab/tasks.py").open("a") as file:
        file.write("\n\nLONGER = True\n")
    older, now = function_fingerprint(tasks_of, before), function_fingerprint(tasks_of)
    assert older != now

    pairs = rekey.same_modules(before)
    assert pairs[module_fingerprint("lab.tasks", ROOT)] == module_fingerprint("lab.tasks", before)
    assert module_fingerprint("lab.images", ROOT) not in pairs  # it did not change
    same_code.notes().parent.mkdir(parents=True)
    same_code.notes().write_text(json.dumps(same_code.with_pairs(pairs)))
    assert function_fingerprint(tasks_of) == older


def test_the_oldest_code_stands_for_all_later_code_that_computes_the_same():
    same_code.notes().parent.mkdir(parents=True)
    for pairs in ({"b": "a"}, {"c": "b"}, {"a": "c"}):  # the last change was taken back
        same_code.notes().write_text(json.dumps(same_code.with_pairs(pairs)))
    assert [same_code.oldest(code) for code in "abcd"] == ["a", "a", "a", "d"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Let run cpu have a stale table of merge; ``checkout(current, after)`` is one whose smoke run gives ``TABLE``."""
    plant("cpu", {"nodes": TABLE}, "merge")
    path = results.results_folder() / "cpu" / "merge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "old"}))
    before = tmp_path / "before"
    before.mkdir()

    def rekeyed(current, after):
        def smoke(tree, folder):
            tables = {
                "merge-nodes": TABLE if tree == before else after,
                "arena-entries": TABLE.assign(node=len(tree.name)),
            }
            folder_with(folder / "smoke", **tables)

        monkeypatch.setattr(rekey, "smoke", smoke)
        monkeypatch.setattr(rekey, "run_in", lambda tree, *arguments: json.dumps({"merge": current}))
        monkeypatch.setattr(rekey, "same_modules", lambda before: {"code": "older code"})
        monkeypatch.setattr(rekey, "git", lambda tree, *arguments: "abc123")
        rekey.main(["cpu", "--before", str(before)])
        return json.loads(path.read_text())

    return rekeyed


def test_a_table_that_was_current_gets_the_new_key_and_its_provenance_says_so(checkout):
    made = checkout(True, TABLE)
    assert made["key"] == results.step_key("merge", results.declared_parameters("merge") | made["parameters"])
    assert [(note["from_key"], note["from_commit"]) for note in made["rekeyed"]] == [("old", "abc123")]
    assert results.is_current("cpu", "merge", made["key"])
    assert same_code.oldest("code") == "older code", "what the cache has is kept with it"


def test_tables_of_other_notebooks_may_differ(tmp_path):
    before, after = (folder_with(tmp_path / str(k), one=TABLE, other=TABLE.assign(node=k)) for k in range(2))
    assert list(rekey.differences(before, after, ["one"])) == []


def test_a_table_that_was_not_current_keeps_its_old_key(checkout, capsys):
    assert checkout(False, TABLE)["key"] == "old"
    assert "merge: was not current" in capsys.readouterr().out


def test_nothing_is_kept_where_a_number_changed(checkout):
    with pytest.raises(SystemExit, match="changed numbers, so that no table is kept\nmerge-nodes.parquet differs"):
        checkout(True, TABLE.assign(value=[4.0, 1.25]))
    assert same_code.oldest("code") == "code"
    assert json.loads((results.results_folder() / "cpu" / "merge.json").read_text())["key"] == "old"
