"""What was computed is read again for the same call alone; a file in the cache is whole, or named and made anew."""

import errno
import hashlib
import importlib.util
import multiprocessing
import os
import pkgutil
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import DIGEST, KEPT, kept, read, remove_leftovers, write, write_together
from lab.bookkeeping.code import PACKAGES, ROOT, imported_modules, module_path, module_source
from lab.bookkeeping.content import content, function_fingerprint
from lab.bookkeeping.same_code import cache_folder

CALLS = []


@dataclass(frozen=True)
class Result:
    total: Tensor
    count: int
    parts: dict[str, list[Tensor]]


@kept(costs=("chunk",))
def squares(numbers: Tensor, power: float = 2.0, chunk: int = 1) -> Tensor:
    CALLS.append(chunk)
    return numbers**power


@kept
def summed(weights: dict[str, Tensor]) -> Result:
    CALLS.append("summed")
    return Result(sum(weights.values()), len(weights), {"first": [next(iter(weights.values()))]})


@kept
def weighed(model: nn.Module, device: str = "cpu") -> float:
    return float(sum(parameter.sum() for parameter in model.parameters()))


@kept
def applied(function: Callable[[int], int], number: int) -> int:
    return function(number)


@kept
def failing(number: int) -> int:
    return 1 // number


@kept
def of_another_type(number: int) -> object:
    return {"inside": Result(torch.zeros(1), number, {})}


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def files():
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def test_what_was_computed_once_is_read_the_second_time():
    first, second = (squares(torch.arange(3.0)) for _ in range(2))
    assert first.tolist() == second.tolist() == [0, 1, 4]
    assert len(CALLS) == 1
    assert [path.parent.name for path in files()] == ["squares"]
    assert squares(torch.arange(4.0)).tolist() == [0, 1, 4, 9]
    assert len(CALLS) == 2


def test_how_the_arguments_are_written_and_what_they_cost_does_not_count():
    numbers = torch.arange(3.0)
    paths = {squares.path(numbers), squares.path(numbers, 2.0, 1), squares.path(power=2.0, numbers=numbers, chunk=5)}
    assert len(paths) == 1
    assert {squares.path(numbers, 3.0), squares.path(numbers, 2), squares.path(numbers + 1)}.isdisjoint(paths)


def test_an_argument_that_is_named_as_a_cost_must_be_there():
    with pytest.raises(ValueError, match="double has no argument 'chunk'"):
        kept(double, costs=("chunk",))


def test_what_is_computed_is_handed_out_as_what_is_read():
    weights = {"a": torch.ones(2, requires_grad=True), "b": torch.zeros(2)}
    computed, found = summed(weights), summed(weights)
    assert CALLS == ["summed"]
    for result in (computed, found):
        assert isinstance(result, Result) and result.count == 2
        assert result.total.tolist() == [1, 1]
        assert isinstance(result.parts["first"], list)
        assert result.total is not weights["a"]


def test_one_result_can_be_kept_for_a_call_that_was_not_made():
    squares.keep(torch.tensor([7.0]), torch.arange(3.0))
    assert squares(torch.arange(3.0)).tolist() == [7]
    assert CALLS == []


def test_a_computation_that_fails_leaves_nothing():
    with pytest.raises(ZeroDivisionError):
        failing(0)
    assert files() == []
    assert failing(1) == 1


def test_a_result_that_could_not_be_read_is_refused_and_not_kept():
    with pytest.raises(Exception, match="Result"):
        of_another_type(1)
    assert files() == []


def test_a_call_whose_arguments_cannot_be_told_is_refused():
    assert applied(double, 2) == 4
    with pytest.raises(TypeError, match="cannot be told"):
        applied(lambda x: x, 2)


def double(x):
    return 2 * x


def test_a_function_that_holds_values_of_its_own_cannot_be_kept():
    held = 2

    def multiply(x):
        return held * x

    with pytest.raises(TypeError, match="multiply does cannot be told: define a plain function in a module"):
        kept(multiply)
    with pytest.raises(TypeError, match="cannot be told"):
        kept(lambda x: x)


def test_the_device_the_threads_and_the_settings_of_torch_count(monkeypatch):
    model = nn.Linear(2, 2)
    here = weighed.path(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        assert weighed.path(model) != here
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda device: "one GPU")
        one = weighed.path(model, "cuda")
        patch.setattr(torch.cuda, "get_device_name", lambda device: "another")
        assert len({here, one, weighed.path(model, "cuda"), weighed.path(model, "cuda:1")}) == 4
    with pytest.raises(ValueError, match="device 'auto' may be one or another"):
        weighed.path(model, "auto")


EXPERIMENT = """
from dataclasses import dataclass

from lab.bookkeeping.cache import kept

FACTOR = 2


@dataclass
class Setting:
    rate: int

    def rated(self, x: int) -> int:
        return self.rate * x


def scale(x: int) -> int:
    return FACTOR * x


@kept
def measured(x: int) -> int:
    return scale(x) + 1
"""


def loaded(path, text):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def experiment(tmp_path):
    """``experiment(old, new)``: a module that has been loaded from a file, after an edit."""
    before = len(KEPT)
    numbers = iter(range(1000))
    names = []

    def load(old="", new=""):
        assert old == new or old in EXPERIMENT
        names.append(f"experiment{next(numbers)}")
        return loaded(tmp_path / f"{names[-1]}.py", EXPERIMENT.replace(old, new))

    yield load
    del KEPT[before:]
    for name in names:
        del sys.modules[name]


def test_the_code_of_the_function_and_of_its_helpers_counts_and_a_comment_does_not(experiment):
    plain = experiment().measured.path(3)
    assert experiment("def scale", "# A comment.\ndef scale").measured.path(3) == plain
    assert experiment("    return scale", '    """Another docstring."""\n    return scale').measured.path(3) == plain
    edits = [
        ("+ 1", "+ 2"),
        ("FACTOR * x", "x"),
        ("FACTOR = 2", "FACTOR = 3"),
        ("x: int) -> int:\n    return s", "x) -> int:\n    return s"),
    ]
    assert all(experiment(*edit).measured.path(3) != plain for edit in edits)


def test_the_code_of_an_argument_s_class_counts(experiment):
    arguments = [
        experiment().Setting(2),
        experiment("self.rate * x", "self.rate + x").Setting(2),
        experiment("class Setting", "# A comment.\nclass Setting").Setting(2),
        experiment().Setting(3),
    ]
    plain, edited, commented, other = (str(content(argument)) for argument in arguments)
    assert plain == commented
    assert len({plain, edited, other}) == 3


def test_a_file_that_is_edited_during_a_run_does_not_count(experiment, tmp_path):
    module = experiment()
    plain = module.measured.path(3)
    Path(module.__file__).write_text(EXPERIMENT.replace("+ 1", "+ 2").replace("FACTOR = 2", "FACTOR = 3"))
    assert module.measured.path(3) == plain
    assert module.measured(3) == 7


def test_a_constant_that_is_set_during_a_run_counts(experiment, monkeypatch):
    module = experiment()
    assert module.measured(3) == 7
    monkeypatch.setattr(module, "FACTOR", 5)
    assert module.measured(3) == 16
    monkeypatch.setattr(module, "FACTOR", 2)
    assert module.measured(3) == 7


def damaged_files(data):
    half = len(data) // 2
    yield b""
    yield data[:10]
    yield data[:-1]
    yield data + b"\0"
    yield data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
    yield bytes([data[0] ^ 1]) + data[1:]
    yield bytes(len(data))
    # Saved by something else, behind a digest that is right.
    yield hashlib.sha256(b"a text").hexdigest().encode() + b"a text"


@pytest.mark.parametrize("number", range(8))
def test_a_damaged_file_is_named_and_computed_again(number, capsys):
    squares(torch.arange(3.0))
    (path,) = files()
    whole = path.read_bytes()
    path.write_bytes(list(damaged_files(whole))[number])
    assert read(path) is None
    capsys.readouterr()
    assert squares(torch.arange(3.0)).tolist() == [0, 1, 4]
    assert capsys.readouterr().err == f"rebasin: {path} is damaged, and is computed again\n"
    assert len(CALLS) == 2
    assert path.read_bytes() == whole
    assert squares(torch.arange(3.0)).tolist() == [0, 1, 4]
    assert len(CALLS) == 2 and not capsys.readouterr().err


def test_a_folder_in_the_place_of_a_file_is_named_and_gives_way(capsys):
    squares(torch.arange(3.0))
    (path,) = files()
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert squares(torch.arange(3.0)).tolist() == [0, 1, 4]
    assert capsys.readouterr().err == f"rebasin: {path} is damaged, and is computed again\n"
    assert path.is_file() and len(CALLS) == 2


def test_another_call_s_file_under_this_one_s_name_is_not_believed(capsys):
    squares(torch.arange(3.0))
    squares(torch.arange(4.0))
    mine, other = (squares.path(torch.arange(n)) for n in (3.0, 4.0))
    shutil.copy(other, mine)
    assert squares(torch.arange(3.0)).tolist() == [0, 1, 4]
    assert capsys.readouterr().err == f"rebasin: {mine} is damaged, and is computed again\n"


def test_what_was_kept_before_names_were_in_the_digest_is_read(capsys):
    path = squares.path(torch.arange(3.0))
    write(path, torch.tensor([7.0]))
    data = path.read_bytes()[DIGEST:]
    path.write_bytes(hashlib.sha256(data).hexdigest().encode() + data)
    assert squares(torch.arange(3.0)).tolist() == [7]
    assert not CALLS and not capsys.readouterr().err


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    """A power cut after a rename may leave an empty file, unless its content was waited for."""
    events = []
    monkeypatch.setattr(os, "fsync", lambda number: events.append(Path(f"/proc/self/fd/{number}").resolve().name))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append(f"rename {path.name}"), replace(path, to)))
    write_together({tmp_path / "table": lambda partial: partial.write_text("rows")})
    assert len(events) == 2 and events[0].startswith(".table.") and events[1] == f"rename {events[0]}"


def test_what_killed_runs_left_is_taken_away_in_time_and_nothing_else(tmp_path):
    write(tmp_path / "snapshot" / "kept.pt", torch.ones(2))
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path / "a" / "kept.pt",))
    child.start()
    child.join()
    (leftover,) = (tmp_path / "a").iterdir()
    others = [tmp_path / name for name in (".hidden", ".other.txt", "table.0123456789ab", "snapshot/kept.pt")]
    for path in others:
        path.touch()
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert leftover.exists(), "somebody may be writing it now"
    an_age_ago = time.time() - 2 * 24 * 3600
    os.utime(leftover, (an_age_ago, an_age_ago))
    remove_leftovers(tmp_path)
    assert not leftover.exists() and all(path.exists() for path in others)
    remove_leftovers(tmp_path / "nowhere")


def write_half(path):
    path.write_text("ha")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_told_with_the_file(tmp_path):
    def fill(partial):
        partial.symlink_to("/dev/full")
        with partial.open("wb") as file:
            file.write(bytes(100_000))

    with pytest.raises(OSError, match=re.escape(f"[Errno 28] No space left on device: '{tmp_path / 'kept.pt'}'")):
        write_together({tmp_path / "kept.pt": fill})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", ["old", None])
def test_a_write_that_fails_leaves_what_was_there_and_no_partial_file(tmp_path, before):
    path = tmp_path / "table"
    if before:
        path.write_text(before)
    with pytest.raises(OSError, match="No space left on device"):
        write_together({path: write_half})
    assert [path.read_text() for path in tmp_path.iterdir()] == ([before] if before else [])


def test_of_two_files_none_is_renamed_when_the_second_fails(tmp_path):
    paths = tmp_path / "first", tmp_path / "second"
    for path in paths:
        path.write_text("old")
    with pytest.raises(OSError, match="No space left on device"):
        write_together({paths[0]: lambda partial: partial.write_text("new"), paths[1]: write_half})
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_write_that_succeeds_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "folder" / "table"
    for text in ("old", "new"):
        write_together({path: lambda partial, text=text: partial.write_text(text)})
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def die_while_writing(path):
    def half(partial):
        partial.write_bytes(b"half of it")
        os._exit(1)

    write_together({path: half})


def test_a_process_that_dies_while_writing_leaves_nothing_to_read(tmp_path):
    path = tmp_path / "kept.pt"
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 1
    assert not path.exists() and read(path) is None
    write(path, {"whole": torch.ones(2)})
    assert read(path)["whole"].tolist() == [1, 1]


def write_often(path):
    for _ in range(20):
        write(path, torch.arange(10_000))


def test_several_that_write_the_same_file_at_once_do_no_harm(tmp_path, capsys):
    path = tmp_path / "kept.pt"
    errors = []

    def write_in_a_thread():
        try:
            write_often(path)
        except BaseException as error:
            errors.append(error)

    others = [multiprocessing.get_context("fork").Process(target=write_often, args=(path,)) for _ in range(2)]
    others += [threading.Thread(target=write_in_a_thread) for _ in range(2)]
    for other in others:
        other.start()
    while any(other.is_alive() for other in others):
        found = read(path)
        assert found is None or torch.equal(found, torch.arange(10_000))
    for other in others:
        other.join()
    assert not errors and [process.exitcode for process in others[:2]] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]
    assert not capsys.readouterr().err, "nobody ever saw a file that was damaged"


# Below: every function that the project keeps the results of.


@pytest.fixture(scope="module")
def every_kept():
    """The kept functions of the lab: all its modules are imported first."""
    for path in sorted((ROOT / "lab").rglob("*.py")):
        if "report" not in path.parts:
            pkgutil.resolve_name(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    return [keeper.function for keeper in KEPT if keeper.function.__module__.startswith("lab.")]


@pytest.fixture
def copy(tmp_path):
    """A copy of the project's code, to edit."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def closure(function):
    """The function's own module, and all that this imports."""
    return {function.__module__, *imported_modules(module_source(function.__module__))}


def test_each_kept_function_has_a_name_of_its_own_that_says_what_is_kept(every_kept):
    names = [function.__name__ for function in every_kept]
    assert len(names) > 10
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("_")]


def test_each_kept_function_counts_the_code_of_every_module_that_it_rests_on(every_kept, copy):
    before = {function: function_fingerprint(function, copy) for function in every_kept}
    assert before == {function: function_fingerprint(function) for function in every_kept}
    rests_on = {function: closure(function) for function in every_kept}
    for name in set().union(*rests_on.values()):
        path = module_path(name, copy)
        text = path.read_text()
        path.write_text(text + "\n\nADDED = 1\n")
        for function in every_kept:
            changed = function_fingerprint(function, copy) != before[function]
            assert changed == (name in rests_on[function]), f"{function.__name__} after a change of {name}"
        path.write_text(text)


def test_no_kept_function_counts_comments_docstrings_or_what_shows_alone(every_kept, copy):
    before = {function: function_fingerprint(function, copy) for function in every_kept}
    for package in PACKAGES:
        for path in (copy / package).rglob("*.py"):
            path.write_text(path.read_text().replace('"""', '"""In other words: ', 1) + "\n\n# A comment.\n")
    for path in [*(copy / "lab" / "report").glob("*.py"), *(copy / "lab" / "bookkeeping").glob("*.py")]:
        path.write_text(path.read_text() + "\n\nADDED = 1\n")
    assert {function: function_fingerprint(function, copy) for function in every_kept} == before


def on_one_line(text):
    """A module's code with each import of several lines on one."""
    several = re.compile(r"^( *from [\w.]+ import) \([^\n]*\n([^)]*)\)", re.MULTILINE)
    return several.sub(lambda found: found[1] + " " + ", ".join(re.findall(r"\w+", found[2])), text)


def moved_import(line, moved):
    """A line of code as it is after these modules (old name: new name) have moved."""
    statement = re.fullmatch(r"(\s*)from ([\w.]+) import ([\w, ]+)", line.partition("#")[0].rstrip())
    if statement is None:
        return line
    indent, module, names = statement.groups()
    if module in moved:
        return f"{indent}from {moved[module]} import {names}"
    each = []
    for name in names.split(", "):
        package, _, stem = moved.get(f"{module}.{name}", "").rpartition(".")
        each.append(f"{indent}from {package or module} import {f'{stem} as {name}' if stem else name}")
    return "\n".join(each)


def test_no_kept_function_counts_where_its_helpers_lie(every_kept, copy):
    before = {function: function_fingerprint(function, copy) for function in every_kept}
    helpers = set().union(*map(closure, every_kept)) - {function.__module__ for function in every_kept}
    files = {name: module_path(name, copy) for name in helpers if module_path(name).name != "__init__.py"}
    assert len(files) > 20
    moved = {name: f"{name.rpartition('.')[0]}.a_{path.stem}_moved" for name, path in files.items()}
    for name, path in files.items():
        path.rename(path.with_name(f"{moved[name].rpartition('.')[2]}.py"))
    for path in copy.rglob("*.py"):
        path.write_text("\n".join(moved_import(line, moved) for line in on_one_line(path.read_text()).split("\n")))
    for function in every_kept:
        assert function_fingerprint(function, copy) == before[function], function.__name__


def test_another_data_set_changes_no_trained_network(every_kept):
    (snapshot,) = (function for function in every_kept if function.__name__ == "snapshot")
    assert "lab.data" not in closure(snapshot)
    for architecture in ("convnets", "mlp", "vit", "normalise"):
        assert "lab.data" not in imported_modules(module_source(f"lab.networks.{architecture}"))
