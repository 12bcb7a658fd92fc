"""What Ctrl-C does while the libraries of the pipeline are loaded: one line, and no traceback.

This module is loaded before them, and loads nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

MESSAGE = "rebasin: interrupted; the same command goes on from here"
STATUS = 130  # what shells take for the end by Ctrl-C


def end_at_once(_number: int, _frame: Any) -> None:
    """End here and now: an exception may be caught, or told in pages, by whatever is being imported."""
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(STATUS)


def raise_from_now_on() -> None:
    """Ctrl-C raises KeyboardInterrupt again, unless the process was started with it ignored."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


started = getattr(sys.modules["__main__"], "__spec__", None)  # by python -m
is_pipeline = started is not None and started.name == "lab.bookkeeping.pipeline"
if is_pipeline and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, end_at_once)
