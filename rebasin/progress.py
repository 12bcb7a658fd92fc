"""One kind of progress bar, with the time left."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


def track(total: int, what: str, unit: str) -> tqdm:
    """A bar for ``total`` steps (none is drawn for 0): on a terminal, or in the file or terminal that ``REBASIN_PROGRESS`` names.

    A notebook kernel has no terminal of its own, so that the runner hands it one by this variable; without it
    nothing is drawn there and stored outputs stay clean.
    """
    path = os.environ.get("REBASIN_PROGRESS")
    if total == 0 or not path:
        return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=True if total == 0 else None)
    return tqdm(total=total, desc=what, unit=unit, file=open(path, "a"), mininterval=1, dynamic_ncols=True)  # noqa: SIM115
