"""One kind of progress bar, with the time left: none is drawn unless it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from tqdm import tqdm

_shown = False


def show_progress(on: bool = True) -> None:
    """Draw progress bars on standard error from now on, or stop to do so.

    The environment variable ``REBASIN_PROGRESS`` names a file or terminal, such as ``/dev/tty``, to draw them in
    instead, for a process that has no terminal of its own, such as a notebook's kernel.

    >>> rebasin.show_progress()
    >>> rebasin.show_progress(False)
    """
    global _shown
    _shown = on


@contextmanager
def track(total: int, what: str, unit: str) -> Iterator[tqdm]:
    """A bar for ``total`` steps, drawn if it was asked for; none for 0 steps."""
    path = os.environ.get("REBASIN_PROGRESS")
    drawn = total > 0 and bool(path or _shown)
    with (
        open(path, "a") if drawn and path else nullcontext(sys.stderr) as stream,
        tqdm(total=total, desc=what, unit=unit, file=stream, disable=not drawn, dynamic_ncols=True) as bar,
    ):
        yield bar
