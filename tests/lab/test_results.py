"""A table is served whole and with its provenance, or refused; a key changes with what a table depends on."""

import dataclasses
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from lab.bookkeeping import checkout, code, results
from lab.bookkeeping.code import ROOT
from lab.bookkeeping.pipeline import STEPS, load_preset
from lab.bookkeeping.results import (
    begin,
    check_known,
    completed,
    declared_parameters,
    finish,
    is_current,
    kept_rows,
    provenance,
    read,
    step_key,
)
from lab.data import load
from lab.report import page


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of run "mine", among results of the test's own."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results" / "mine"


def given(name, **changed):
    return declared_parameters(name) | {"run": "mine"} | changed


def frame(value):
    return pd.DataFrame({"node": [0, 1], "value": [value, 0.1], "correct": [b"\x00\xff", b"\x01"], "split": "test"})


def write(value=0.5, name="train", **changed):
    """Let run "mine" have the tables first and second of a notebook; gives the key they were made with."""
    parameters = given(name, **changed)
    tables = {"first": frame(value), "second": frame(-value)}
    finish(begin(name, parameters), load("digits"), tables, training_seconds=12.34)
    return step_key(name, parameters)


@pytest.mark.parametrize("name", STEPS)
def test_a_notebook_begins_with_its_own_defaults(name):
    experiment = begin(name, declared_parameters(name) | {"In": ["", "import this"], "other": object()})
    assert experiment.name == name
    assert experiment.parameters == declared_parameters(name)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("network = {}", "unknown parameter 'network' of notebooks/train.ipynb: did you mean 'networks'?"),
        ('run = "mine"\nqqq = "x"', "unknown parameter 'qqq' of notebooks/train.ipynb: it has run, networks, device"),
    ],
)
def test_an_injected_parameter_that_the_notebook_does_not_have_is_refused(told, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        begin("train", given("train") | {"In": ["", 'run = "smoke"', f"# Parameters\n{told}\n"]})


def test_injected_parameters_that_the_notebook_has_are_accepted():
    injected = "# Parameters\nsteps = 3\nauto_epsilon = 1\n"
    experiment = begin("autoattack", given("autoattack", steps=3, auto_epsilon=1) | {"In": ["", injected]})
    assert (experiment.parameters["steps"], experiment.parameters["auto_epsilon"]) == (3, 1)


@pytest.mark.parametrize("chosen", [{"epochs": [3], "width": 8}, "{epochs: [3], width: 8}"], ids=["dict", "text"])
def test_a_dict_may_be_given_in_part_and_is_completed_where_the_notebook_reads_it(chosen):
    # `papermill -p` hands on a text.
    namespace = given("train", networks=chosen)
    experiment = begin("train", namespace)
    whole = declared_parameters("train")["networks"] | {"epochs": [3], "width": 8}
    assert experiment.parameters["networks"] == namespace["networks"] == whole


@pytest.mark.parametrize(
    ("key", "value", "kind", "default"),
    [
        ("steps", "5", "int", "5"),
        ("steps", 5.0, "int", "5"),
        ("steps", True, "int", "5"),
        ("steps", None, "int", "5"),
        ("auto_epsilon", "1e-3", "float", "4.0"),
        ("auto_epsilon", False, "float", "4.0"),
        ("run", 3, "str", "'smoke'"),
        ("losses", "margin", "list", "['cross_entropy', 'margin']"),
        ("networks", "mlp", "dict", "{'dataset': 'digits', "),
    ],
)
def test_a_parameter_of_another_type_is_refused(key, value, kind, default):
    message = re.escape(f"parameter {key!r} must be of type {kind}, as {default}") + ".*" + re.escape(f"got {value!r}")
    with pytest.raises(ValueError, match=message):
        begin("autoattack", given("autoattack", **{key: value}))


def test_a_notebook_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match=r"there is no notebook .*notebooks/trian\.ipynb"):
        check_known("trian", {})


def test_a_notebook_without_parameters_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "NOTEBOOKS", tmp_path)
    cell = {"cell_type": "code", "metadata": {}, "source": ["a = 1"]}
    (tmp_path / "bare.ipynb").write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ValueError, match="notebooks/bare.ipynb has no cell tagged 'parameters'"):
        declared_parameters("bare")


def test_what_was_written_is_read(folder):
    write(0.5)
    pd.testing.assert_frame_equal(read("mine", "train", "first"), frame(0.5))
    pd.testing.assert_frame_equal(read("mine", "train", "second"), frame(-0.5))
    assert sorted(path.name for path in folder.iterdir()) == [
        "train-first.parquet", "train-second.parquet", "train.json"
    ]  # fmt: skip


def test_a_later_result_takes_the_place_of_the_earlier_one(folder):
    write(0.5)
    write(0.7)
    pd.testing.assert_frame_equal(read("mine", "train", "first"), frame(0.7))


@pytest.mark.parametrize(("run", "name", "table"), [("yours", "train", "first"), ("mine", "merge", "first")])
def test_a_table_that_was_not_made_is_refused(folder, run, name, table):
    write()
    message = f"no table {table!r} of notebook {name!r} in run {run!r}"
    with pytest.raises(FileNotFoundError, match=message):
        read(run, name, table)


def test_a_table_of_another_name_is_refused(folder):
    write()
    with pytest.raises(FileNotFoundError, match="no table 'third' of notebook 'train' in run 'mine'"):
        read("mine", "train", "third")


def test_the_provenance_tells_what_was_measured_on_what_by_which_code(folder):
    key = write(device="auto")
    made = provenance("mine", "train")
    data = load("digits")
    assert made["notebook"] == "notebooks/train.ipynb"
    assert made["key"] == key
    assert made["parameters"] == given("train", device="auto")
    assert set(made["tables"]) == {"first", "second"}
    assert made["dataset"] == {"name": data.name, "title": data.title, "fingerprint": data.fingerprint}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert set(made["hardware"]) == {"processor", "cores", "threads", "gpu"}
    assert made["hardware"]["threads"] == 1
    assert made["hardware"]["processor"] and made["hardware"]["cores"] >= 1
    assert made["versions"]["python"] == platform.python_version()
    assert {"torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn"} <= set(made["versions"])
    assert made["training_seconds"] == 12.3
    assert 0 <= made["wall_seconds"] < 600
    # This process holds torch, which takes more than 50 MB; a wrong unit would be off by a thousand.
    assert 0.05 < made["peak_memory_gb"] < 100


def git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip() or None


def test_the_provenance_names_the_commit_and_whether_all_was_committed(folder):
    write()
    made = provenance("mine", "train")
    assert made["commit"] == git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "-uno", "--", ".", ":!results")
    added = git("status", "--porcelain", "-uall", "--", "lab", "rebasin", "notebooks")
    assert made["clean"] == (made["commit"] is not None and changed is None and added is None)


def committed(folder):
    """A repository of one commit in a folder, with a file of code."""
    own = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    (folder / "lab").mkdir(parents=True)
    (folder / "lab" / "code.py").write_text("x = 1\n")
    for arguments in (["init", "-q"], ["add", "-A"], [*own, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)


def test_code_that_was_added_is_not_as_committed(tmp_path, monkeypatch):
    committed(tmp_path)
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert checkout.commit() and checkout.is_clean()
    (tmp_path / "notes.txt").write_text("not code")
    assert checkout.is_clean()
    (tmp_path / "lab" / "more.py").write_text("x = 2\n")
    assert not checkout.is_clean()


def test_another_repository_around_an_unpacked_archive_is_not_its_commit(tmp_path, monkeypatch):
    committed(tmp_path)
    unpacked = tmp_path / "unpacked"
    (unpacked / "lab").mkdir(parents=True)
    monkeypatch.setattr(checkout, "ROOT", unpacked)
    assert checkout.commit() is None and not checkout.is_clean()


def test_a_repository_that_a_hook_of_git_names_is_not_believed(tmp_path, monkeypatch):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        committed(tmp_path / name)
    monkeypatch.setattr(checkout, "ROOT", tmp_path / "mine")
    before = checkout.commit()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert checkout.commit() == before is not None


def test_the_provenance_has_the_rules_that_its_tables_decide_as_they_were(folder, monkeypatch, tmp_path):
    write()
    before = {name: results.claims_digest(name) for name in ("accuracy", "attack")}
    assert provenance("mine", "train")["claims"] == results.claims_digest("train")
    changed = tmp_path / "claims.yml"
    changed.write_text(results.CLAIMS.read_text().replace("above: 1.0", "above: 0.5"))
    monkeypatch.setattr(results, "CLAIMS", changed)
    assert results.claims_digest("accuracy") != before["accuracy"], "H3's bound is another"
    assert results.claims_digest("attack") == before["attack"], "and H4's are not"


def strings(value):
    if isinstance(value, dict):
        return [found for part in [*value.values(), *value] for found in strings(part)]
    if isinstance(value, list):
        return [found for part in value for found in strings(part)]
    return [value] if isinstance(value, str) else []


def test_the_provenance_names_no_host_and_no_path(folder, monkeypatch):
    write()
    told = strings(provenance("mine", "train"))
    assert told
    for text in told:
        assert not Path(text).is_absolute()
        assert not any(str(path) in text for path in (ROOT, Path.home(), folder.parent))
        assert text != platform.node()


def fail_at(monkeypatch, ending):
    """Let the disk be full when half of the file of this ending is written."""
    written = results.write_together

    def half(path):
        path.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    def failing(writers):
        written({path: half if path.name.endswith(ending) else write for path, write in writers.items()})

    monkeypatch.setattr(results, "write_together", failing)


@pytest.mark.parametrize("ending", ["-first.parquet", "-second.parquet", ".json"])
def test_a_write_that_was_cut_short_leaves_the_old_result_as_it_was(folder, monkeypatch, ending):
    write(0.5)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        fail_at(patch, ending)
        write(0.7)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    pd.testing.assert_frame_equal(read("mine", "train", "first"), frame(0.5))
    write(0.7)
    pd.testing.assert_frame_equal(read("mine", "train", "first"), frame(0.7))


@pytest.mark.parametrize("ending", ["-first.parquet", "-second.parquet", ".json"])
def test_a_first_write_that_was_cut_short_serves_nothing(folder, monkeypatch, ending):
    fail_at(monkeypatch, ending)
    with pytest.raises(OSError, match="No space left on device"):
        write()
    with pytest.raises(FileNotFoundError, match="no table 'first' of notebook 'train' in run 'mine'"):
        read("mine", "train", "first")
    assert not is_current("mine", "train", step_key("train", given("train")))


def test_a_run_is_current_for_the_key_it_was_made_with_and_no_other(folder):
    key = write()
    assert is_current("mine", "train", key)
    assert not is_current("mine", "train", step_key("train", given("train", device="auto")))
    assert not is_current("mine", "merge", key)
    assert not is_current("yours", "train", key)


@pytest.mark.parametrize("spoil", [lambda text: text[: len(text) // 2], lambda _: "", lambda _: "[]", lambda _: "{}"])
def test_a_damaged_provenance_counts_as_none_and_is_named(folder, capsys, spoil):
    key = write()
    path = folder / "train.json"
    path.write_text(spoil(path.read_text()))
    assert not is_current("mine", "train", key)
    assert capsys.readouterr().err == f"rebasin: {path} is damaged, and counts as none: run the notebook again\n"
    with pytest.raises(FileNotFoundError, match="no table 'first' of notebook 'train' in run 'mine'"):
        read("mine", "train", "first")
    write()
    assert is_current("mine", "train", key)


def test_a_table_with_a_flipped_bit_is_named_and_not_current(folder, capsys):
    key = write()
    path = folder / "train-first.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_current("mine", "train", key)
    assert capsys.readouterr().err == f"rebasin: {path} is not the table that train.json was written with\n"


@pytest.mark.parametrize("run", ["cpu", "gpu"])
def test_the_committed_results_are_written_by_their_preset_alone(run, monkeypatch):
    monkeypatch.delenv("REBASIN_RESULTS", raising=False)
    with pytest.raises(ValueError, match=f"results/{run} is for the preset as it is: name a run of your own"):
        begin("mnist", declared_parameters("mnist") | {"run": run})
    declared, preset = declared_parameters("mnist"), load_preset(run)
    begin("mnist", completed(declared, {name: preset[name] for name in preset if name in declared}))


def test_a_run_that_lost_a_table_is_not_current(folder):
    key = write()
    (folder / "train-second.parquet").unlink()
    assert not is_current("mine", "train", key)


def test_a_table_of_another_content_is_refused_and_not_current(folder):
    key = write(0.5)
    (folder / "train-first.parquet").write_bytes((folder / "train-second.parquet").read_bytes())
    with pytest.raises(ValueError, match="is not the table that train.json was written with: run the notebook again"):
        read("mine", "train", "first")
    # Were it current, the message's advice would do nothing.
    assert not is_current("mine", "train", key)


def measure(*names, steps=5):
    """Let run "mine" have rows of arena for settings of these names; gives which it had already, and all its rows."""
    listed = [{"setting": name, "methods": {"mean": [1.0]}} for name in names]
    experiment = begin("arena", given("arena", arena_settings=listed, arena_steps=steps))
    kept = kept_rows(experiment, "arena_settings", "setting")
    rows = [{"setting": name, "value": float(len(name) + steps)} for name in names if name not in kept.entries]
    entries = kept.followed_by("entries", pd.DataFrame(rows, columns=["setting", "value"]))
    finish(experiment, load("digits"), {"entries": entries}, training_seconds=10.0, kept=kept)
    return kept.entries, list(entries.itertuples(index=False, name=None))


def test_of_a_list_that_has_grown_only_what_is_new_is_measured(folder):
    assert measure("mlp", "vgg") == ((), [("mlp", 8.0), ("vgg", 8.0)])
    assert measure("vgg", "vit3") == (("vgg",), [("vgg", 8.0), ("vit3", 9.0)])
    made = provenance("mine", "arena")
    assert made["earlier"]["entries"] == ["vgg"] and made["earlier"]["date"] == made["date"]
    assert made["earlier"]["claims"] == made["claims"], "by which rules they were read is known of those rows, too"
    shown = page.measured_on("mine", "arena")["earlier rows"]
    assert shown == f"vgg: commit {made['earlier']['commit'][:10]}, {made['date']}"
    assert made["training_seconds"] == 20.0, "of both executions"
    measure("vgg", "vit3", "gpt")
    assert provenance("mine", "arena")["earlier"]["earlier"]["entries"] == ["vgg"]


def test_rows_are_kept_only_of_the_same_code_and_parameters(folder, monkeypatch):
    measure("mlp")
    assert measure("mlp", "vgg", steps=6)[0] == (), "another parameter"
    path = folder / "arena.json"
    path.write_text(path.read_text().replace(provenance("mine", "arena")["key"], "of older code"))
    assert measure("mlp", "vgg", "vit", steps=6)[0] == ()


def test_a_list_that_has_nothing_of_the_one_before_costs_only_its_own(folder):
    measure("mlp")
    measure("vgg")
    made = provenance("mine", "arena")
    assert "earlier" not in made and made["training_seconds"] == 10.0
    assert "earlier rows" not in page.measured_on("mine", "arena")


def grow(trees, **changed):
    """Let run "mine" have a row of each of so many trees; gives which it had already, and how many there are."""
    experiment = begin("trees", given("trees", trees=trees, **changed))
    kept = kept_rows(experiment, "trees", "tree")
    rows = pd.DataFrame({"tree": [number for number in range(trees) if number not in kept.entries]})
    finish(experiment, load("digits"), {"nodes": kept.followed_by("nodes", rows)}, kept=kept)
    return kept.entries, read("mine", "trees", "nodes")["tree"].tolist()


def test_a_number_lists_what_is_below_it(folder):
    assert grow(2) == ((), [0, 1])
    assert grow(3) == ((0, 1), [0, 1, 2])
    assert page.measured_on("mine", "trees")["earlier rows"].startswith("0, 1: commit ")
    assert grow(1) == ((0,), [0])
    assert grow(2, attack_steps=7) == ((), [0, 1])


def test_entries_of_one_name_are_kept_together_or_not_at_all(folder):
    def widths(*of_mlp):
        """Let run "mine" have rows of "mlp" in these widths and of "vgg"; gives which names it had already."""
        listed = [{"recipe": "mlp", "width": width} for width in of_mlp] + [{"recipe": "vgg", "width": 1}]
        experiment = begin("barriers", given("barriers", barrier_recipes=listed))
        kept = kept_rows(experiment, "barrier_recipes", "recipe")
        rows = [entry for entry in listed if entry["recipe"] not in kept.entries]
        table = kept.followed_by("barriers", pd.DataFrame(rows))
        finish(experiment, load("digits"), {"barriers": table}, kept=kept)
        return sorted(kept.entries), sorted(table["width"])

    assert widths(4, 8) == ([], [1, 4, 8])
    assert widths(4, 8) == (["mlp", "vgg"], [1, 4, 8])
    assert widths(4, 8, 16) == (["vgg"], [1, 4, 8, 16])


def test_rows_of_a_notebook_that_had_other_parameters_are_not_kept(folder):
    grow(2)
    path = folder / "trees.json"
    path.write_text(path.read_text().replace('"attack_steps"', '"steps_of_attack"'))
    assert grow(2)[0] == ()


def test_what_is_no_table_though_its_digest_is_right_is_named(folder):
    write()
    forged = folder / "train-first.parquet"
    forged.write_bytes(b"PAR1 and nothing else PAR1")
    made = json.loads((folder / "train.json").read_text())
    made["tables"]["first"] = results._digest(forged)
    (folder / "train.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="train-first.parquet is no table.*: run the notebook again"):
        read("mine", "train", "first")


def test_rows_of_a_damaged_table_are_not_kept(folder):
    measure("mlp")
    (folder / "arena-entries.parquet").write_bytes(b"PAR1")
    assert measure("mlp", "vgg")[0] == ()


def test_a_key_changes_with_every_parameter(monkeypatch):
    monkeypatch.setattr(results, "code_fingerprint", lambda source: "code")  # it is the tests' below
    defaults = declared_parameters("accuracy")
    keys = [step_key("accuracy", defaults)]
    keys += [step_key("accuracy", defaults | {name: "changed"}) for name in defaults]
    assert len(set(keys)) == 1 + len(defaults)
    assert step_key("accuracy", dict(reversed(defaults.items()))) == keys[0]


@pytest.fixture
def edited_key(tmp_path, monkeypatch):
    """``edited_key(old, new)``: the key of notebook merge after an edit of its cells."""

    def key(old, new):
        source = (ROOT / "notebooks" / "merge.ipynb").read_text()
        notebook = json.loads(source)
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"]).replace(old, new)
        assert old == new or [cell["source"] for cell in notebook["cells"]] != [
            "".join(cell["source"]) for cell in json.loads(source)["cells"]
        ], "the edit changed nothing"
        (tmp_path / "merge.ipynb").write_text(json.dumps(notebook))
        monkeypatch.setattr(results, "NOTEBOOKS", tmp_path)
        return step_key("merge", {"run": "mine"})

    return key


def test_a_key_changes_with_the_code_of_the_notebook(edited_key):
    plain = edited_key("", "")
    assert edited_key(".round(1)", ".round(2)") != plain
    assert edited_key("import pandas as pd\n", "import pandas as pd\nimport rebasin.merging.mending\n") != plain


def test_a_key_does_not_change_with_what_a_notebook_says_or_shows(edited_key):
    plain = edited_key("", "")
    assert edited_key("import pandas as pd\n", "# Tables.\nimport pandas as pd\n\n") == plain
    assert edited_key("# Tables: merging", "# Tables: merging all") == plain
    assert edited_key('"models": 8', '"models": 16') == plain, "the parameters count as they are given"


@pytest.fixture
def key_with_edited(monkeypatch, tmp_path):
    """``key_with_edited(module, edit)``: the key of notebook merge while a module's source is another one."""
    for package in code.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(results, "code_fingerprint", lambda source: code.code_fingerprint(source, tmp_path))

    def key(module, edit, notebook="merge"):
        path = code.module_path(module, tmp_path)
        path.write_text(edit(code.module_source(module)))
        return step_key(notebook, {"run": "mine"})

    return key


def added(source):
    return source + "\n\nADDED = 1\n"


def only_told(source):
    assert source.startswith('"""')
    return (
        source.replace('"""', '"""Told in other words. ', 1).replace("\n\n", "\n\n# A comment.\n", 1) + "\n# Another.\n"
    )


# The last is imported by a module that is imported by a module that the notebook imports.
@pytest.mark.parametrize("module", ["lab.merges", "rebasin.merging.many", "rebasin.assignment"])
def test_a_key_changes_with_the_code_of_the_modules_it_rests_on_and_not_with_their_comments(key_with_edited, module):
    plain = key_with_edited(module, str)
    assert key_with_edited(module, added) != plain
    assert key_with_edited(module, only_told) == plain


def test_a_key_does_not_change_with_modules_that_the_notebook_does_not_use(key_with_edited):
    unused = ("rebasin.matching.straight_through", "lab.report.verdicts", "lab.bookkeeping.results", "rebasin.progress")
    for module in unused:
        assert key_with_edited(module, added) == key_with_edited(module, str), module
    plain = key_with_edited("rebasin.merging.mending", str, "conditions")
    assert key_with_edited("rebasin.merging.mending", added, "conditions") != plain


@pytest.mark.parametrize("run", ["first", "cpu", "gpu"])
def test_a_committed_run_is_whole_and_was_made_from_a_clean_tree(run, monkeypatch):
    monkeypatch.delenv("REBASIN_RESULTS", raising=False)
    made = sorted((ROOT / "results" / run).glob("*.json"))
    if not made:
        pytest.skip(f"there is no run {run!r} under results/ yet")
    for path in made:
        name, told = path.stem, json.loads(path.read_text())
        assert told["clean"] is True, f"{path} was made with uncommitted changes"
        for table in told["tables"]:
            assert len(read(run, name, table)), f"table {table!r} of {path} is empty"


def test_tables_of_several_data_sets_or_none_say_so(folder):
    experiment = results.begin("train", results.declared_parameters("train") | {"run": "mine"})
    one = load("digits")
    results.finish(experiment, [one, dataclasses.replace(one, title="Others")], {}, models="two networks")
    assert provenance("mine", "train")["dataset"]["title"] == "scikit-learn's digits, Others"
    measured = f"scikit-learn's digits [{one.fingerprint}], Others [{one.fingerprint}]"
    assert page.measured_on("mine", "train")["data"] == measured
    results.finish(experiment, [], {}, models="two networks")
    assert page.measured_on("mine", "train")["data"] == "none"
