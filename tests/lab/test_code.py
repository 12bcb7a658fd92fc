"""A code fingerprint changes with what the code does, in whatever module, and with nothing else."""

import ast

import pytest

from lab.bookkeeping.code import (
    PACKAGES,
    ROOT,
    bare_code,
    code_fingerprint,
    constants,
    fingerprint,
    imported_modules,
    outside_packages,
)


def test_a_fingerprint_depends_on_every_part_and_not_on_the_order_of_a_dict():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    others = [("x", 1), ("x", 2), ("y", 1), (1, "x"), ("x",), (["x", 1],), ("x", "1"), ("x", 1.0), ("x", True)]
    assert len({fingerprint(*parts) for parts in others}) == len(others)


def test_a_fingerprint_of_what_is_no_json_value_is_refused():
    with pytest.raises(TypeError):
        fingerprint(object())


PLAIN = """\
def area(r):
    if r < 0:
        return "# no circle"
    return 3 * r**2
"""


@pytest.mark.parametrize(
    "source",
    [
        '"""A module."""\n\n' + PLAIN,
        PLAIN.replace("(r):\n", '(r):\n    """The area\n\n    of a circle.\n    """\n'),
        PLAIN.replace("(r):", "(r):  # of a circle"),
        PLAIN.replace("    return 3", "    # roughly\n    return 3"),
        PLAIN.replace("    return 3", "\n\n    return 3"),
        PLAIN.replace("\n", "  \n"),
    ],
)
def test_docstrings_comments_and_blank_lines_do_not_count(source):
    assert source != PLAIN
    assert bare_code(source) == bare_code(PLAIN)


@pytest.mark.parametrize(
    "source",
    [
        PLAIN.replace("3", "4"),
        PLAIN.replace("3", "3.0"),
        PLAIN.replace("area", "volume"),
        PLAIN.replace("# no circle", "# no square"),
        PLAIN.replace('"# no circle"', '""'),
        PLAIN.replace("    return 3", "        return 3"),
        PLAIN.replace("    if r < 0:\n", '    """A circle."""\n    if r <= 0:\n'),
        PLAIN + "area(1)\n",
        "import torch\n" + PLAIN,
    ],
)
def test_code_counts(source):
    assert source != PLAIN
    assert bare_code(source) != bare_code(PLAIN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('class Missing(KeyError): "No key."\n', 'class Missing(ValueError): "No key."\n'),
        ('def f(x): "Double."; return 2 * x\n', 'def f(x): "Double."; return 3 * x\n'),
        ('def f(x):\n    "Double."; return 2 * x\n', 'def f(x):\n    "Double."; return 3 * x\n'),
        ('text = """a\n\nb"""\n', 'text = """a\nb"""\n'),
    ],
)
def test_code_beside_a_docstring_and_blank_lines_inside_a_string_count(one, other):
    assert bare_code(one) != bare_code(other)


TREE = {
    "lab/__init__.py": "",
    "lab/used.py": "from lab.rooms import scale\nfrom lab.rooms.deep import shift\nBATCH = 10\ndef f(x): return x\n",
    "lab/rooms/__init__.py": "from lab.rooms.inner import scale\n",
    "lab/rooms/inner.py": "def scale(x): return 2 * x\n\n\ndef shrink(x): return x / 2\n",
    "lab/rooms/deep.py": "def shift(x): return x + 1\n",
    "lab/rooms/unused.py": "def unused(x): return x\n",
    "lab/bookkeeping/__init__.py": "",
    "lab/bookkeeping/tables.py": "def show(x): print(x)\n",
    "lab/bookkeepers.py": "def count(x): return x\n",
}
SOURCE = "from lab.used import f\nfrom lab.bookkeeping.tables import show\nshow(f(1))\n"


@pytest.fixture
def tree(tmp_path):
    """``tree(source, {file: text})``: the fingerprint of a source over ``TREE``, some of its files being others."""

    def fingerprint_over(source=SOURCE, files=()):
        for name in {*TREE, *files}:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text({**TREE, **dict(files)}[name])
        return code_fingerprint(source, tmp_path)

    return fingerprint_over


def edited(name, old, new):
    assert TREE[name].replace(old, new) != TREE[name]
    return {name: TREE[name].replace(old, new)}


@pytest.mark.parametrize(
    "files",
    [
        edited("lab/used.py", "10", "20"),
        edited("lab/rooms/deep.py", "+ 1", "+ 2"),
        edited("lab/rooms/inner.py", "2 * x", "3 * x"),
        # The same name, another function.
        edited("lab/rooms/__init__.py", "import scale", "import shrink as scale"),
        edited("lab/used.py", "lab.rooms.deep", "lab.rooms.inner"),
    ],
)
def test_the_code_of_every_module_counts_that_is_imported_on_the_way(tree, files):
    plain = tree()
    assert tree(SOURCE, files) != plain


@pytest.mark.parametrize(
    "files",
    [
        edited("lab/rooms/deep.py", "def", "# A comment.\n\n\ndef"),
        edited("lab/rooms/deep.py", "def", '"""Another docstring."""\n\ndef'),
        edited("lab/rooms/unused.py", "return x", "return -x"),
        edited("lab/bookkeeping/tables.py", "print(x)", "print(2 * x)"),
    ],
)
def test_comments_and_what_is_not_used_or_shows_alone_do_not_count(tree, files):
    plain = tree()
    assert tree(SOURCE, files) == plain


def test_a_folder_that_only_begins_like_a_silent_one_counts(tree):
    source = "from lab.bookkeepers import count\n"
    plain = tree(source)
    assert tree(source, edited("lab/bookkeepers.py", "return x", "return -x")) != plain


def test_a_file_that_moves_counts_as_before(tree):
    plain = tree()
    moved = {
        "lab/elsewhere/shifts.py": "# Moved.\n" + TREE["lab/rooms/deep.py"],
        # Imports are sorted, so that the order changes, too.
        "lab/used.py": TREE["lab/used.py"]
        .replace("from lab.rooms.deep import shift\n", "")
        .replace("from lab.rooms", "from lab.elsewhere.shifts import shift\nfrom lab.rooms"),
    }
    assert tree(SOURCE, moved) == plain


def test_the_caller_that_moves_counts_as_before(tree):
    plain = tree()
    other = {"lab/rooms/first.py": TREE["lab/used.py"]}
    assert tree(SOURCE.replace("lab.used", "lab.rooms.first"), other) == plain


CHOICE = """\
if fast:
    from lab.rooms.inner import scale as f
else:
    from lab.rooms.deep import shift as f
"""


def test_it_counts_where_an_import_stands(tree):
    swapped = CHOICE.replace("fast", "not fast")
    other = CHOICE.replace("lab.rooms.inner import scale", "X").replace("lab.rooms.deep import shift", "Y")
    other = other.replace("X", "lab.rooms.deep import shift").replace("Y", "lab.rooms.inner import scale")
    assert len({tree(CHOICE), tree(swapped), tree(other)}) == 3


def test_two_modules_that_differ_by_an_import_alone_are_told_apart(tree):
    twins = {
        "lab/twin.py": "from lab.rooms.inner import scale as g\n\n\ndef f(x): return g(x)\n",
        "lab/other.py": "from lab.rooms.deep import shift as g\n\n\ndef f(x): return g(x)\n",
    }
    one = "from lab.other import f as b\nfrom lab.twin import f as a\n"
    assert tree(one, twins) != tree("from lab.other import f as a\nfrom lab.twin import f as b\n", twins)


@pytest.mark.parametrize(
    "source",
    [
        "import lab.rooms.deep as m\nm.shift(1)\n",
        "from lab.rooms import deep\ndeep.shift(1)\n",
        "import lab.rooms.deep\nlab.rooms.deep.shift(1)\n",
        "def later():\n    from lab.rooms.deep import shift\n    return shift(1)\n",
        "import lab.used as u\nu.shift(1)\n",
    ],
)
def test_every_way_to_import_is_followed(tree, source):
    plain = tree(source)
    assert tree(source, edited("lab/rooms/deep.py", "+ 1", "+ 2")) != plain


@pytest.mark.parametrize(
    "init",
    [
        "from lab.rooms.inner import scale\n\n\ndef twice(f): return lambda x: f(f(x))\n\n\nscale = twice(scale)\n",
        "from lab.rooms.inner import scale\nif True:\n    from lab.rooms.inner import shrink as scale\n",
        "def scale(x): return 5 * x\n",
    ],
)
def test_code_in_the_init_of_a_package_counts_where_it_makes_what_is_imported(tree, init):
    source = "from lab.rooms import scale\n"
    plain = tree(source)
    assert tree(source, {"lab/rooms/__init__.py": init}) != plain


def test_a_module_and_a_function_of_the_same_name_are_not_mixed_up(tree):
    # The package hands on a function by the name of another module.
    init = {"lab/rooms/__init__.py": "from lab.rooms.inner import scale as deep\n"}
    source = "from lab.rooms import deep\n"
    plain = tree(source, init)
    assert tree(source, init | edited("lab/rooms/inner.py", "2 * x", "3 * x")) != plain


def test_modules_in_a_circle_all_count(tree):
    circle = {"lab/rooms/deep.py": "import lab.used as u\n" + TREE["lab/rooms/deep.py"]}
    plain = tree(SOURCE, circle)
    assert tree(SOURCE, circle | edited("lab/used.py", "10", "20")) != plain
    assert tree(SOURCE, {"lab/rooms/deep.py": circle["lab/rooms/deep.py"].replace("+ 1", "+ 2")}) != plain


def test_what_a_type_checker_alone_imports_does_not_count(tree):
    source = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from lab.rooms.deep import shift\n"
    plain = tree(source)
    assert tree(source, edited("lab/rooms/deep.py", "+ 1", "+ 2")) == plain
    other = source + "else:\n    from lab.rooms.deep import shift\n"
    plain = tree(other)
    assert tree(other, edited("lab/rooms/deep.py", "+ 1", "+ 2")) != plain


@pytest.mark.parametrize(
    "source",
    [
        "from .deep import shift\n",
        "from . import deep\n",
        "from lab.rooms import *\n",
        "import importlib\nimportlib.import_module('lab.rooms.deep')\n",
        "from importlib import import_module\nf = import_module(name)\n",
        "__import__('lab.rooms.deep')\n",
    ],
)
def test_imports_that_cannot_be_followed_are_refused(tree, source):
    with pytest.raises(ValueError, match="cannot be followed|nobody can know before"):
        tree(source)


def test_a_module_that_is_not_there_is_named(tree):
    with pytest.raises(FileNotFoundError, match="there is no module 'lab.nowhere'"):
        tree("from lab.nowhere import f\n")


def test_the_packages_from_elsewhere_are_found_through_imports():
    source = "import torch\nfrom os import path\nfrom rebasin.assignment import solve\nimport rebasin_book\n"
    assert set(outside_packages(source)) >= {"torch", "os", "scipy", "rebasin_book"}
    assert not set(outside_packages(source)) & {"rebasin", "lab", "__future__"}
    assert imported_modules("import torch\nimport rebasin_book\nx = 'import rebasin.merging.many'\n") == []


def test_constants_are_plain_values_that_are_given_once():
    source = "A = 1\nB: float = -2.5\nC = (1, 'x')\nD = f(1)\nE = {}\nF = 1\nF = 2\nG = None\ndef f(): H = 1\n"
    assert constants(source) == {"A": 1, "B": -2.5, "C": (1, "x"), "G": None}


def does_something(statement):
    """Whether a statement of a module does more than to define, import and name."""
    if isinstance(statement, ast.Try):
        handled = [part for handler in statement.handlers for part in handler.body]
        return any(map(does_something, [*statement.body, *handled, *statement.orelse, *statement.finalbody]))
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)  # a docstring
    return not isinstance(
        statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    )


def test_packages_do_nothing_when_they_are_imported():
    # Importing a module runs the __init__ of the packages above it, which its fingerprint does not count.
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            for statement in ast.parse(path.read_text()).body:
                assert not does_something(statement), f"{path}: {ast.unparse(statement)}"
