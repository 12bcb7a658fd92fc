"""A file in the cache is whole or absent, and a code fingerprint changes with the code alone."""

import errno

import pytest
import torch

from lab.bookkeeping.cache import (
    bare_code,
    cached,
    code_fingerprint,
    content,
    fingerprint,
    imported_modules,
    write_atomically,
)


def write_half(path):
    path.write_text("ha")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_that_fails_leaves_the_old_content_and_no_partial_file(tmp_path):
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(tmp_path / "table", write_half)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_succeeds_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "folder" / "table"
    for text in ("old", "new"):
        write_atomically(path, lambda partial, text=text: partial.write_text(text))
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_what_was_built_once_is_read_the_second_time():
    built = []

    def build():
        built.append(torch.arange(3))
        return {"numbers": built[-1]}

    for _ in range(2):
        assert cached("kind", "key", build)["numbers"].tolist() == [0, 1, 2]
    assert len(built) == 1
    cached("kind", "other key", build)
    assert len(built) == 2


def test_a_build_that_fails_leaves_nothing_in_the_cache():
    with pytest.raises(ZeroDivisionError):
        cached("kind", "key", lambda: 1 / 0)
    assert cached("kind", "key", lambda: {"value": 1}) == {"value": 1}


def test_a_fingerprint_depends_on_every_part_and_not_on_the_order_of_a_dict():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    others = [("x", 1), ("x", 2), ("y", 1), (1, "x"), ("x",), (["x", 1],), ("x", "1")]
    assert len({fingerprint(*parts) for parts in others}) == len(others)


WEIGHTS = {"bias": torch.zeros(6), "weight": torch.arange(6.0).reshape(2, 3)}


def one_changed(key, index):
    tensor = WEIGHTS[key].clone()
    tensor.view(-1)[index] += 1e-6
    return WEIGHTS | {key: tensor}


def test_a_fingerprint_of_tensors_depends_on_every_value_shape_key_and_dtype():
    others = [
        WEIGHTS,
        *(one_changed(key, index) for key in WEIGHTS for index in range(6)),
        WEIGHTS | {"weight": WEIGHTS["weight"].reshape(3, 2)},
        WEIGHTS | {"weight": WEIGHTS["weight"].flatten()},
        WEIGHTS | {"weight": WEIGHTS["weight"].T},
        WEIGHTS | {"weight": WEIGHTS["weight"].double()},
        # The same bytes under another type.
        WEIGHTS | {"bias": torch.zeros(6, dtype=torch.int32)},
        {"bias": WEIGHTS["bias"], "weights": WEIGHTS["weight"]},
        {"bias": WEIGHTS["bias"]},
        WEIGHTS | {"more": torch.zeros(0)},
        {},
    ]
    assert len({content(weights) for weights in others}) == len(others)


def test_a_fingerprint_of_tensors_depends_on_nothing_else():
    turned = {key: WEIGHTS[key] for key in reversed(WEIGHTS)}
    strided = WEIGHTS | {"weight": WEIGHTS["weight"].T.contiguous().T}
    assert not strided["weight"].is_contiguous()
    parameters = {key: torch.nn.Parameter(tensor) for key, tensor in WEIGHTS.items()}
    view = {key: torch.stack([tensor, tensor + 1])[0] for key, tensor in WEIGHTS.items()}
    assert {content(weights) for weights in (turned, strided, parameters, view)} == {content(WEIGHTS)}


def test_a_fingerprint_of_tensors_leaves_them_as_they_are():
    before = {key: tensor.clone() for key, tensor in WEIGHTS.items()}
    content(WEIGHTS)
    assert all(torch.equal(WEIGHTS[key], before[key]) for key in before)


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
        PLAIN.replace("area", "volume"),
        PLAIN.replace("# no circle", "# no square"),
        PLAIN.replace('"# no circle"', '""'),
        PLAIN.replace("    return 3", "        return 3"),
        PLAIN.replace("    if r < 0:\n", '    """A circle."""\n    if r <= 0:\n'),
        PLAIN + "area(1)\n",
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
    ],
)
def test_code_on_the_line_of_a_docstring_counts(one, other):
    assert bare_code(one) != bare_code(other)


def test_blank_lines_inside_a_string_count():
    assert bare_code('text = """a\n\nb"""\n') != bare_code('text = """a\nb"""\n')


def test_a_code_fingerprint_does_not_depend_on_the_order_of_the_modules():
    one, other = "rebasin.matching.by_weights", "rebasin.merging.many"
    assert code_fingerprint(one, other) == code_fingerprint(other, one) != code_fingerprint(one)


@pytest.mark.parametrize(
    "source",
    [
        "from rebasin.merging.many import merge_many",
        "from rebasin import merging",
        "import rebasin.merging.many",
        "def later():\n    import rebasin.merging.many as m",
    ],
)
def test_imports_are_followed_through_one_another(source):
    found = imported_modules(f"import torch\nfrom pathlib import Path\n{source}\n")
    # merging imports matching, which imports assignment; none of them knows the lab.
    assert found >= {"rebasin.merging.many", "rebasin.matching.by_weights", "rebasin.assignment", "rebasin.permutation"}
    assert not any(name.startswith("lab") or not name.startswith("rebasin") for name in found)


def test_what_a_package_registers_is_followed_too():
    # rebasin/operators/__init__.py imports the rules that trace looks up in rebasin.tracing.units.
    assert imported_modules("import rebasin.trace") >= {f"rebasin.tracing.rules.{name}" for name in ("sums", "shapes")}
    assert "rebasin.match" not in imported_modules("import rebasin.trace"), "the library's own __init__ is no import"


def test_source_without_imports_of_this_package_has_none():
    assert imported_modules("import torch\nimport rebasin_book\nx = 'import rebasin.merging.many'\n") == set()
