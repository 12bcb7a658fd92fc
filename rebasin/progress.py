"""One kind of progress bar, with the time left."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


def track(total: int, what: str, unit: str) -> tqdm:
    """A bar for ``total`` steps on the terminal, or in the file that ``REBASIN_PROGRESS`` names; none for 0 steps.

    A notebook kernel has no terminal of its own, so the runner hands it one by this variable. Without it nothing is
    drawn there, and stored outputs stay clean.
    """
    path = os.environ.get("REBASIN_PROGRESS")
    if not total or not path:
        return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=None if total else True)
    return tqdm(total=total, desc=what, unit=unit, file=open(path, "a"), mininterval=1, dynamic_ncols=True)  # noqa: SIM115
