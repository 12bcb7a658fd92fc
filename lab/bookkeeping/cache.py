"""One cache: what a function computed once from the same content by the same code is read, not computed again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from lab.bookkeeping.code import fingerprint
from lab.bookkeeping.content import content, function_fingerprint, reassigned, surroundings
from lab.bookkeeping.same_code import cache_folder

DIGEST = 64  # the bytes, in hexadecimal, that a kept file begins with
DAY = 24 * 3600  # seconds; no file takes so long to write
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}")  # what ``write_together`` calls a file that is not whole yet
KEPT: list[Kept] = []  # every kept function, as it was decorated


def kept(function: Callable[..., Any] | None = None, *, costs: Collection[str] = ()) -> Any:
    """A decorator: keep what the function returns on disk, and read it when the same call is made again.

    The key is the content of all arguments but those in ``costs``, which change how long it takes and no bit of what
    comes out; the code of the function's module and of all it imports of this project, as it was loaded; the versions
    of the packages from elsewhere that any of these names; and the processor, threads and settings that the last bits
    depend on. So no key is put together by hand, and none can leave out what a number depends on. What it cannot see
    is a module loaded anew during a run, and chance that no argument decides.

    The function stands by itself in a module, and returns tensors, numbers, texts, or dicts, lists and tuples of them,
    or a dataclass of such fields; tensors come back on the CPU. A file carries the digest of its name and content: one
    that is damaged, or another one's, is named on standard error, and computed again. A call whose arguments have no
    content that can be told, such as a lambda, raises TypeError. ::

        @kept(costs=("chunk",))
        def squares(numbers: Tensor, chunk: int = 1) -> Tensor:
            return numbers.square()
    """
    if function is None:
        return functools.partial(kept, costs=costs)
    return functools.wraps(function)(Kept(function, costs))


class Kept:
    """A function whose results are kept; ``path`` tells where, and ``keep`` puts one there."""

    def __init__(self, function: Callable[..., Any], costs: Collection[str]) -> None:
        self.function, self.costs = function, frozenset(costs)
        self.signature = inspect.signature(function)
        unknown = self.costs - set(self.signature.parameters)
        if unknown:
            raise ValueError(f"{function.__qualname__} has no argument {sorted(unknown)[0]!r}")
        # Now, while the code is loaded that will run: the files may be edited during a long run.
        self.code = function_fingerprint(function)
        reassigned(function.__module__)
        KEPT.append(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path = self.path(*args, **kwargs)
        value = read(path)
        if value is None:
            value = write(path, _plain(self.function(*args, **kwargs)))
        return self._typed(value)

    def path(self, *args: Any, **kwargs: Any) -> Path:
        """Where the result of this call is kept."""
        call = self.signature.bind(*args, **kwargs)
        call.apply_defaults()
        around = surroundings(str(call.arguments.get("device", "cpu")))
        holds = {name: content(value) for name, value in call.arguments.items() if name not in self.costs}
        key = fingerprint(self.code, reassigned(self.function.__module__), around, holds)
        return cache_folder() / self.function.__name__ / f"{key}.pt"

    def __reduce__(self) -> str:
        return self.function.__qualname__  # another process finds it in its module, by this name

    def keep(self, value: Any, *args: Any, **kwargs: Any) -> None:
        """Keep ``value`` as the result of this call, for who computes several of them at once."""
        write(self.path(*args, **kwargs), _plain(value))

    def _typed(self, value: Any) -> Any:
        # Only what is returned: other names may be known to a type checker alone.
        returned = self.function.__annotations__.get("return")
        if isinstance(returned, str):
            returned = eval(returned, self.function.__globals__)
        if isinstance(returned, type) and dataclasses.is_dataclass(returned):
            return returned(**value)
        return value


def write(path: Path, value: Any) -> Any:
    """Save a value of tensors, numbers and texts behind the digest of its name and bytes; return what will be read.

    Raises an error, and saves nothing, for a value of another type.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getbuffer()
    will_be_read = _loaded(data)
    digest, _ = _digests(path, data)

    def fill(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(digest)
            file.write(data)

    if path.is_dir():
        shutil.rmtree(path)  # of this name, it holds nothing that anybody could read
    write_together({path: fill})
    return will_be_read


def read(path: Path) -> Any:
    """What ``write`` saved there; None where nothing is, or where the file is damaged, which standard error tells.

    Files from before the name was in the digest are read, too: of those, one in another's place cannot be told.
    """
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        data = memoryview(b"")
    if data[:DIGEST] in _digests(path, data[DIGEST:]):
        with contextlib.suppress(Exception):  # of something else that was put there, torch raises errors of any kind
            return _loaded(data[DIGEST:])
    print(f"rebasin: {path} is damaged, and is computed again", file=sys.stderr)
    return None


def remove_leftovers(folder: Path, older_than: float = DAY) -> None:
    """Take away the temporary files that runs left which were killed while they wrote, so many seconds ago or more."""
    for path in folder.rglob(".*"):
        with contextlib.suppress(FileNotFoundError):  # somebody else takes it away, or it has its name by now
            if LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > older_than:
                path.unlink()


def write_together(writers: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Fill a temporary file for each path, in order, and rename them only when all are written.

    A full disk or a failing writer leaves every old file as it was, and a power cut no empty one: what is renamed is on
    the disk. Whoever writes the same path at the same time, in another process, thread or machine, has temporary files
    of its own: the last one stays.
    """
    mine = uuid.uuid4().hex[:12]
    partials = {path: path.with_name(f".{path.name}.{mine}") for path in writers}
    try:
        for path, write_one in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_one(partials[path])
                _settle(partials[path])
            except OSError as error:
                if error.errno is None or error.filename is not None:
                    raise
                raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _digests(path: Path, data: memoryview) -> tuple[bytes, bytes]:
    """The digest of a kept file's content and name, and that of its content alone, which files had before."""
    digest = hashlib.sha256(data)
    content_alone = digest.hexdigest().encode()
    digest.update(f"{path.parent.name}/{path.name}".encode())
    return digest.hexdigest().encode(), content_alone


def _loaded(data: memoryview) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _plain(value: Any) -> Any:
    """A dataclass as a dict of its fields, for what reads it knows no classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value
