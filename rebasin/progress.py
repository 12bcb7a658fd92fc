"""One kind of progress bar, with the time left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from tqdm import tqdm


@contextmanager
def track(total: int, what: str, unit: str) -> Iterator[tqdm]:
    """A bar for ``total`` steps on the terminal, or in the file that ``REBASIN_PROGRESS`` names; none for 0 steps.

    A notebook kernel has no terminal of its own, so the runner hands it one by this variable. Without it nothing is
    drawn there, and stored outputs stay clean.
    """
    path = os.environ.get("REBASIN_PROGRESS")
    opened = open(path, "a") if total and path else nullcontext(sys.stderr)  # noqa: SIM115
    with opened as stream:
        # Without a terminal, tqdm draws only if it is told to.
        silent = not total or (None if stream is sys.stderr else False)
        with tqdm(total=total, desc=what, unit=unit, file=stream, disable=silent, dynamic_ncols=True) as bar:
            yield bar
