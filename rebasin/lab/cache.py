"""A cache keyed by content: what was computed once from the same inputs by the same code is read, not rebuilt."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def cache_folder() -> Path:
    """Where weights and decoded data are kept: ``REBASIN_CACHE``, by default .cache in the project's folder."""
    return Path(os.environ.get("REBASIN_CACHE") or ROOT / ".cache")


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change with any of the parts (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content(weights: Mapping[str, torch.Tensor]) -> str:
    """A fingerprint of what these tensors hold."""
    digest = hashlib.sha256()
    for key, tensor in sorted(weights.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file, then rename it: ``path`` is never half written."""
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Fill a temporary file for each path, in order, and rename them only when all are written.

    A full disk or a failing writer leaves every old file as it was.
    """
    partials = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in writers}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partials[path])
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def cached(kind: str, key: str, build: Callable[[], Any]) -> Any:
    """What ``build`` returns, read from the cache where the same ``key`` was built before."""
    path = cache_folder() / kind / f"{key}.pt"
    if not path.exists():
        built = build()
        write_atomically(path, lambda partial: torch.save(built, partial))
        return built
    return torch.load(path, map_location="cpu", weights_only=True)


def code_fingerprint(*modules: str) -> str:
    """A fingerprint of what these modules do: comments, docstrings and layout do not count."""
    return fingerprint(*(bare_code(_source(name)) for name in sorted(modules)))


def imported_modules(source: str) -> set[str]:
    """The modules of this package that ``source`` imports, directly or through one another."""
    found: set[str] = set()
    waiting = [source]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            # Importing a module runs its packages, which may register more. The library itself only names its parts.
            parents = {name.rpartition(".")[0] for name in names} - {"rebasin"}
            for name in [*names, *parents]:
                if name.split(".")[0] == "rebasin" and name not in found and _is_module(name):
                    found.add(name)
                    waiting.append(_source(name))
    return found


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source(name: str) -> str:
    return Path(importlib.util.find_spec(name).origin).read_text()


def bare_code(source: str) -> str:
    """What the source does: its syntax tree without docstrings, written alike under every Python version."""

    def written(node: Any) -> str:
        if isinstance(node, list):
            return f"[{' '.join(written(part) for part in node)}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = dict(ast.iter_fields(node))
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            fields["body"] = fields["body"][1:]
        # Later versions add fields, which are empty for code that earlier ones can read.
        told = (f"{name}={written(value)}" for name, value in fields.items() if value is not None and value != [])
        return f"{type(node).__name__}({' '.join(told)})"

    return written(ast.parse(source))
