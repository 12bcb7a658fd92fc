"""What a piece of this project's code does, as a fingerprint that a move or a comment does not change."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rebasin", "lab")
# What is in these folders carries or shows numbers, and cannot change them.
SILENT = ("lab.bookkeeping", "lab.report")


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change with any of the parts (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_fingerprint(source: str, root: Path = ROOT) -> str:
    """What ``source`` does, with all that it imports of this project, directly or through one another.

    Comments, docstrings, layout and the names of files do not count, nor what lies in the folders ``SILENT``. An
    imported name counts as the content that it brings in, so that moving a file changes nothing, while importing
    another function under the same name does.
    """
    pieces = [_bare(source, root), *(_bare(_read(root, name), root) for name in imported_modules(source, root))]
    return fingerprint(*sorted(pieces))


def imported_modules(source: str, root: Path = ROOT) -> list[str]:
    """The modules of this project that ``source`` imports, directly or through one another, but for silent ones."""
    seen: set[str] = set()
    waiting = [source]
    while waiting:
        for name in _direct_imports(waiting.pop(), root):
            if name not in seen:
                seen.add(name)
                waiting.append(_read(root, name))
    return sorted(seen)


def outside_packages(source: str, root: Path = ROOT) -> list[str]:
    """The packages from elsewhere that ``source``, or a module of this project that it imports, names."""
    packages = set()
    for text in [source, *(_read(root, name) for name in imported_modules(source, root))]:
        for module, _, _ in _imports(text):
            packages.add(module.partition(".")[0])
    return sorted(packages - {*PACKAGES, "__future__"})


def module_source(name: str, root: Path = ROOT) -> str:
    """The text of a module of this project. Raises FileNotFoundError if there is none of this name."""
    return _read(root, name)


@functools.cache
def bare_code(source: str) -> str:
    """What the source does: its syntax tree without docstrings and imports, alike under every Python version."""
    return _written(ast.parse(source))


def _written(node: Any) -> str:
    if isinstance(node, list):
        return f"[{' '.join(_written(part) for part in node if not isinstance(part, ast.Import | ast.ImportFrom))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    # Later versions of Python add fields, which are empty for code that earlier ones can read.
    written = (f"{name}={_written(value)}" for name, value in fields.items() if value is not None and value != [])
    return f"{type(node).__name__}({' '.join(written)})"


def _bare(source: str, root: Path) -> str:
    """A module's own code, and for each name that it imports what this name stands for."""
    brought = []
    for module, name, known_as in _imports(source):
        home, defined_as = _home(module, name, root)
        if home is None:
            brought.append((known_as, module, name))
        elif not home.startswith(SILENT):
            brought.append((known_as, fingerprint(bare_code(_read(root, home))), defined_as))
    return fingerprint(bare_code(source), sorted(brought, key=repr))


def _direct_imports(source: str, root: Path) -> Iterator[str]:
    for module, name, _ in _imports(source):
        home, _ = _home(module, name, root)
        if home is not None and not home.startswith(SILENT):
            yield home


@functools.cache
def _imports(source: str) -> list[tuple[str, str | None, str]]:
    """Every imported name: its module, its name there (None for the module itself), and the name it is known by."""
    imported: list[tuple[str, str | None, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [(node.module, alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [(alias.name, None, alias.asname or alias.name) for alias in node.names]
    return imported


def _home(module: str, name: str | None, root: Path) -> tuple[str | None, str | None]:
    """The module of this project where an imported name is defined, and its name there; None for one from elsewhere.

    A package's ``__init__`` may hand on what a module of its own defines: then that module is the home.
    """
    if module.partition(".")[0] not in PACKAGES:
        return None, name
    if name is not None and _path(root, f"{module}.{name}"):
        return f"{module}.{name}", None
    if name is not None and _is_package(root, module):
        for inner, inner_name, known_as in _imports(_read(root, module)):
            if known_as == name:
                return _home(inner, inner_name, root)
    return module, name


def _is_package(root: Path, name: str) -> bool:
    return (root / Path(*name.split(".")) / "__init__.py").exists()


def _path(root: Path, name: str) -> Path | None:
    folder = root / Path(*name.split("."))
    candidates: Iterable[Path] = (folder / "__init__.py", folder.with_suffix(".py"))
    return next((path for path in candidates if path.exists()), None)


def _read(root: Path, name: str) -> str:
    path = _path(root, name)
    if path is None:
        raise FileNotFoundError(f"there is no module {name!r} in {root}")
    return path.read_text()
