"""One cache: what a function computed once from the same content by the same code is read, not computed again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import os
import sys
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lab.bookkeeping.code import PACKAGES, ROOT, code_fingerprint, fingerprint, module_source, outside_packages

DIGEST = 64  # the bytes, in hexadecimal, that a kept file begins with
KEPT: list[Kept] = []  # every kept function, as it was decorated
_DIGESTS = WeakIdKeyDictionary()  # of tensors that are alive, with the version that each had


def cache_folder() -> Path:
    """Where weights and decoded data are kept: ``REBASIN_CACHE``, by default .cache in the project's folder."""
    return Path(os.environ.get("REBASIN_CACHE") or ROOT / ".cache")


def kept(function: Callable[..., Any] | None = None, *, costs: Collection[str] = ()) -> Any:
    """A decorator: keep what the function returns on disk, and read it when the same call is made again.

    The key is the content of all arguments but those in ``costs``, which change how long it takes and no bit of what
    comes out; the code of the function's module and of all it imports of this project; and the versions of the
    packages from elsewhere that any of these names. So no key is put together by hand, and none can leave out what a
    number depends on.

    The function returns tensors, numbers, texts, or dicts, lists and tuples of them, or a dataclass of such fields;
    tensors come back on the CPU. A file carries the digest of its content: one that is damaged is named on standard
    error, and computed again. A call whose arguments have no content, such as a lambda, raises TypeError.

    >>> @kept(costs=("chunk",))
    ... def squares(numbers: Tensor, chunk: int = 1) -> Tensor:
    ...     return numbers.square()
    """
    if function is None:
        return functools.partial(kept, costs=costs)
    return functools.wraps(function)(Kept(function, costs))


class Kept:
    """A function whose results are kept; ``path`` tells where, ``has`` whether, and ``keep`` puts one there."""

    def __init__(self, function: Callable[..., Any], costs: Collection[str]) -> None:
        self.function, self.costs = function, frozenset(costs)
        self.signature = inspect.signature(function)
        unknown = self.costs - set(self.signature.parameters)
        if unknown:
            raise ValueError(f"{function.__qualname__} has no argument {sorted(unknown)[0]!r}")
        # Now, while the code is loaded that will run: the files may be edited during a long run.
        self.code = function_fingerprint(function)
        KEPT.append(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path = self.path(*args, **kwargs)
        value = read(path)
        if value is None:
            value = self.function(*args, **kwargs)
            write(path, _plain(value))
            # What is computed is handed out as what is read will be.
            value = read(path)
        return self._typed(value)

    def path(self, *args: Any, **kwargs: Any) -> Path:
        """Where the result of this call is kept."""
        call = self.signature.bind(*args, **kwargs)
        call.apply_defaults()
        told = {name: content(value) for name, value in call.arguments.items() if name not in self.costs}
        return cache_folder() / self.function.__name__ / f"{fingerprint(self.code, told)}.pt"

    def has(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the result of this call is kept, whole."""
        return read(self.path(*args, **kwargs)) is not None

    def keep(self, value: Any, *args: Any, **kwargs: Any) -> None:
        """Keep ``value`` as the result of this call, for who computes several of them at once."""
        write(self.path(*args, **kwargs), _plain(value))

    def _typed(self, value: Any) -> Any:
        # Only what is returned: other names may be known to a type checker alone.
        returned = eval(str(self.function.__annotations__.get("return")), self.function.__globals__)
        return returned(**value) if dataclasses.is_dataclass(returned) else value


def function_fingerprint(function: Callable[..., Any], root: Path = ROOT) -> str:
    """What a function does: its name, its module's code with all that it imports, and the versions from elsewhere."""
    source = _source_of(function.__module__, root)
    versions = {name: _version(name) for name in outside_packages(source, root)}
    return fingerprint(function.__qualname__, code_fingerprint(source, root), versions)


def content(value: Any) -> Any:
    """What a value holds, as JSON values. Raises TypeError for one whose content cannot be told, such as a lambda."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Tensor):
        return ["tensor", str(value.dtype), list(value.shape), _digest_of_tensor(value)]
    if isinstance(value, np.ndarray):
        return ["array", content(torch.from_numpy(np.ascontiguousarray(value)))]
    if isinstance(value, Mapping):
        return ["dict", [[content(key), content(one)] for key, one in value.items()]]
    if isinstance(value, set | frozenset):
        return ["set", sorted(map(content, value))]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [content(one) for one in value]]
    if isinstance(value, nn.Module):
        return ["module", _structure(value), content(value.state_dict())]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, fields]
    if isinstance(value, functools.partial):
        return ["partial", content(value.func), content(value.args), content(value.keywords)]
    if isinstance(value, types.FunctionType) and value.__name__ != "<lambda>" and not value.__closure__:
        return ["function", function_fingerprint(value)]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    raise TypeError(f"what {value!r} holds cannot be told, so that nothing can be kept by it")


def write(path: Path, value: Any) -> None:
    """Save a value of tensors, numbers and texts, behind the digest of its bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getbuffer()
    digest = hashlib.sha256(data).hexdigest().encode()

    def fill(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(digest)
            file.write(data)

    write_together({path: fill})


def read(path: Path) -> Any:
    """What ``write`` saved there; None where nothing is, or where the file is damaged, which standard error tells."""
    if not path.exists():
        return None
    data = path.read_bytes()
    if hashlib.sha256(memoryview(data)[DIGEST:]).hexdigest().encode() != data[:DIGEST]:
        print(f"rebasin: {path} is damaged, and is computed again", file=sys.stderr)
        return None
    return torch.load(io.BytesIO(memoryview(data)[DIGEST:]), map_location="cpu", weights_only=True)


def write_together(writers: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Fill a temporary file for each path, in order, and rename them only when all are written.

    A full disk or a failing writer leaves every old file as it was.
    """
    partials = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in writers}
    try:
        for path, write_one in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_one(partials[path])
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """A dataclass as a dict of its fields, for what reads it knows no classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value


def _digest_of_tensor(tensor: Tensor) -> str:
    """The digest of a tensor's bytes; of one and the same tensor, unchanged since, it is computed once."""
    held = _DIGESTS.get(tensor)
    if held is None or held[0] != tensor._version:
        dense = tensor.detach().cpu().contiguous()
        # One value counts as contiguous whatever its stride, and can then not be read as bytes.
        raw = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
        held = _DIGESTS[tensor] = (tensor._version, hashlib.sha256(raw.data).hexdigest())
    return held[1]


def _structure(model: nn.Module) -> list[Any]:
    """What a module is made of: all that it prints, and of parts that are not torch's own their code and attributes.

    Constants that the state dict leaves out are attributes, too.
    """
    parts: list[Any] = [repr(model)]
    for name, part in model.named_modules():
        constants = {key: buffer for key, buffer in part._buffers.items() if key in part._non_persistent_buffers_set}
        own = not type(part).__module__.startswith("torch.")
        attributes = {key: value for key, value in vars(part).items() if own and not key.startswith("_")}
        parts.append([name, part.training, content(constants), content(attributes)])
    code = {type(part).__module__ for part in model.modules()}
    return [*parts, [code_fingerprint(_source_of(module, ROOT)) for module in sorted(code) if module[:6] != "torch."]]


def _source_of(module: str, root: Path) -> str:
    if module.partition(".")[0] in PACKAGES:
        return module_source(module, root)
    return inspect.getsource(importlib.import_module(module))  # a script, a notebook's cell, a test


@functools.cache
def _version(package: str) -> str | None:
    """The version of an installed package by the name that it is imported by; None of the standard library."""
    if package in sys.stdlib_module_names:
        return None
    names = _distributions().get(package, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))) or None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
