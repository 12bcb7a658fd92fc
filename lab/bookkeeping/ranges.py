"""What a notebook's parameter may be, as the comment beside its default says: ``images = 30  # at least 1``."""

from __future__ import annotations

import ast
import io
import math
import operator
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le}
BOUND = re.compile(r"\b(at least|above|at most) (-?\d+(?:\.\d+)?)")
FILLED = "one or more"


def comments(source: str) -> dict[str, str]:
    """The comments of a cell of plain assignments, by the name that each stands behind; "" where there is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): by_line.get(node.end_lineno or 0, "") for node in statements}


def check(name: str, value: Any, comment: str) -> None:
    """Raise ValueError for a value that is not what the comment says of this parameter.

    Bounds hold for every number in it: ``at least 1``, ``above 0``, ``at most 8``. ``one or more`` is said of a list,
    or of every list in a dict. Of any parameter, numbers are finite, lists name nothing twice, and texts have no marks
    of HTML, for they are shown on pages.
    """
    for part in _parts(value):
        if isinstance(part, list | tuple):
            twice = [entry for entry in part if list(part).count(entry) > 1]
            if twice:
                raise ValueError(f"parameter {name!r} has {twice[0]!r} twice: {value!r}")
            if not part and FILLED in comment:
                raise ValueError(f"parameter {name!r} must have {FILLED} entries: got {value!r}")
        elif isinstance(part, str) and set(part) & set("<>&"):
            raise ValueError(f"parameter {name!r} is shown on pages, and may not hold '<', '>' or '&': got {part!r}")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"parameter {name!r} must hold finite numbers: got {part!r}")
        elif isinstance(part, int | float) and not isinstance(part, bool):
            for words, bound in BOUND.findall(comment):
                if not BOUNDS[words](part, float(bound)):
                    raise ValueError(f"parameter {name!r} must be {words} {bound}: got {part!r}")


def _parts(value: Any) -> Iterator[Any]:
    """A value, and all that it is made of."""
    yield value
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _parts(entry)
