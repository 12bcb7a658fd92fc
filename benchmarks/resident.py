"""How much memory some work takes at its peak: in a fork of this process, on Linux, which alone tells it."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE, MEBIBYTE = 1024, 2**20


def peak(work: Callable[[], Any]) -> tuple[int, Any]:
    """The bytes that some work takes at its peak above what there was, and what it gives (JSON values), in a fork.

    A process that has threads must not be forked. Raises RuntimeError if the work fails.
    """
    resident()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = status("RssAnon")
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            given = work()
            growth = status("VmHWM") - status("RssFile") - before
            os.write(writing, json.dumps([growth, given]).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise RuntimeError("the work failed, or was killed for want of memory")
    growth, given = json.loads(answer)
    return growth, given


def resident() -> int:
    """The bytes of memory in use, but for pages of files, after what was freed was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("RssAnon")


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * PAGE for line in lines if line.startswith(field))


def to_mebibytes(number: float) -> float:
    return round(number / MEBIBYTE, 1)
