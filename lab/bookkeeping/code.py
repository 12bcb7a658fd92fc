"""What a piece of this project's code does, as a fingerprint that a move or a comment does not change."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rebasin", "lab")
# What is in these folders, and in this module, carries or shows numbers, and cannot change them.
SILENT = ("lab.bookkeeping", "lab.report", "rebasin.progress")


class Imported(NamedTuple):
    """An imported name: its module, its name there (None for the module itself), and the name it is known by."""

    module: str
    name: str | None
    known_as: str


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change with any of the parts (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def code_fingerprint(source: str, root: Path = ROOT) -> str:
    """What ``source`` does, with all that it imports of this project, directly or through one another.

    Comments, docstrings, layout and the names of files do not count, nor what lies in ``SILENT`` or is
    imported for a type checker alone. An imported name counts as what it brings in, so that moving a file changes
    nothing, while importing another function under the same name does. Raises ValueError for imports that cannot be
    followed: relative ones, all names of a module of this project at once, and those of a computed name.
    """
    return _fingerprint(source, root, {})


def imported_modules(source: str, root: Path = ROOT) -> list[str]:
    """The modules of this project that ``source`` imports, directly or through one another, but for silent ones."""
    seen: set[str] = set()
    waiting = [source]
    while waiting:
        for imported in _imports(waiting.pop()):
            home, _ = _home(imported.module, imported.name, root)
            if home is not None and home not in seen and not _is_silent(home):
                seen.add(home)
                waiting.append(module_source(home, root))
    return sorted(seen)


def outside_packages(source: str, root: Path = ROOT) -> list[str]:
    """The packages from elsewhere that ``source``, or a module of this project that it imports, names."""
    packages = set()
    for text in [source, *(module_source(name, root) for name in imported_modules(source, root))]:
        packages |= {imported.module.partition(".")[0] for imported in _imports(text)}
    return sorted(packages - {*PACKAGES, "__future__"})


def module_source(name: str, root: Path = ROOT) -> str:
    """The text of a module of this project. Raises FileNotFoundError if there is none of this name."""
    return module_path(name, root).read_text()


def module_path(name: str, root: Path = ROOT) -> Path:
    """The file of a module of this project. Raises FileNotFoundError if there is none of this name."""
    path = _path(name, root)
    if path is None:
        raise FileNotFoundError(f"there is no module {name!r} in {root}")
    return path


@functools.cache
def bare_code(source: str) -> tuple[str, tuple[tuple[Imported, ...], ...]]:
    """What the source does: its syntax tree without docstrings, alike under every Python version, and its imports.

    Neighbouring imports leave one mark in the tree, and are a tuple of names in the second part, in the same order.
    """
    runs: list[tuple[Imported, ...]] = []
    return _written(ast.parse(source), runs), tuple(runs)


@functools.cache
def constants(source: str) -> dict[str, Any]:
    """The names that a module gives a plain value to, such as ``BATCH = 1000``, and these values.

    Left out is what the module itself assigns to again, and what begins empty, as it is to be filled.
    """
    tree = ast.parse(source)
    assigned = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_stored(node))
    values = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and assigned[target.id] == 1:
                with contextlib.suppress(ValueError, TypeError):  # of what is computed, and not written down
                    values[target.id] = ast.literal_eval(node.value)
    return {name: value for name, value in values.items() if value not in ([], {})}


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _written(node: Any, runs: list[tuple[Imported, ...]]) -> str:
    """A node of the syntax tree as text, with what it imports added to ``runs``."""
    if isinstance(node, list):
        parts = []
        for are_imports, statements in itertools.groupby(_that_run(node), _is_import):
            if are_imports:
                runs.append(tuple(name for statement in statements for name in _names(statement)))
                parts.append("imports")
            else:
                parts += [_written(statement, runs) for statement in statements]
        return f"[{' '.join(parts)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        raise ValueError(f"{ast.unparse(node)!r} imports what nobody can know before: write an import statement")
    fields = dict(ast.iter_fields(node))
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and ast.get_docstring(cast(ast.Module, node), clean=False) is not None:
        fields["body"] = fields["body"][1:]
    # Later versions of Python add fields, which are empty for code that earlier ones can read.
    written = (f"{name}={_written(value, runs)}" for name, value in fields.items() if value is not None and value != [])
    return f"{type(node).__name__}({' '.join(written)})"


def _that_run(nodes: list[Any]) -> Iterator[Any]:
    """The statements of a body without those for a type checker alone."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from node.orelse
        else:
            yield node


def _is_import(node: Any) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _names(statement: ast.Import | ast.ImportFrom) -> Iterator[Imported]:
    """What an import statement imports. Raises ValueError where that cannot be followed."""
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            ours = (statement.module or "").partition(".")[0] in PACKAGES
            if statement.level or (ours and alias.name == "*"):
                raise ValueError(f"{ast.unparse(statement)!r} cannot be followed: import by full names, one by one")
            yield Imported(str(statement.module), alias.name, alias.asname or alias.name)
        elif alias.asname:
            yield Imported(alias.name, None, alias.asname)
        else:
            # ``import a.b`` gives the name a, and by it whatever a holds.
            parts = alias.name.split(".")
            for length in range(1, len(parts) + 1):
                yield Imported(".".join(parts[:length]), None, ".".join(parts[:length]))


@functools.cache
def _imports(source: str) -> list[Imported]:
    _, runs = bare_code(source)
    return [imported for run in runs for imported in run]


def _fingerprint(source: str, root: Path, known: dict[str, str]) -> str:
    """``code_fingerprint``; ``known`` has the fingerprints of modules that were met before."""
    code, runs = bare_code(source)
    return fingerprint(code, [sorted(_meaning(imported, root, known) for imported in run) for run in runs])


def _meaning(imported: Imported, root: Path, known: dict[str, str]) -> list[str]:
    """What an imported name stands for: of this project the content of its module, of others their names."""
    home, defined_as = _home(imported.module, imported.name, root)
    if home is None:
        return [imported.known_as, imported.module, str(imported.name)]
    if _is_silent(home):
        return [imported.known_as]
    if home not in known:
        known[home] = "on the way"  # what it is for a module that imports it in a circle
        known[home] = _fingerprint(module_source(home, root), root, known)
    return [imported.known_as, known[home], str(defined_as)]


def _home(module: str, name: str | None, root: Path) -> tuple[str | None, str | None]:
    """The module of this project where an imported name is defined, and its name there; None for one from elsewhere.

    A package's ``__init__`` may hand on what a module of its own defines: then that module is the home.
    """
    if module.partition(".")[0] not in PACKAGES:
        return None, name
    if name is None:
        return module, None
    path = module_path(module, root)
    if path.name == "__init__.py":
        source = path.read_text()
        handed_on = {known for known in _imports(source) if known.known_as == name and known[:2] != (module, name)}
        if name in _assigned(source) or len(handed_on) > 1:
            return module, name
        for known in handed_on:
            return _home(known.module, known.name, root)
    if _path(f"{module}.{name}", root):
        return f"{module}.{name}", None
    return module, name


@functools.cache
def _assigned(source: str) -> set[str]:
    """Every name that the source defines or assigns to, wherever."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and _is_stored(node):
            names.add(node.id)
    return names


def _is_silent(module: str) -> bool:
    return any(module == silent or module.startswith(f"{silent}.") for silent in SILENT)


def _path(name: str, root: Path) -> Path | None:
    stem = f"{root}/{name.replace('.', '/')}"
    candidates = (f"{stem}/__init__.py", f"{stem}.py")
    return next((Path(path) for path in candidates if os.path.exists(path)), None)
