"""The options of a method that is called by its name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def check_options(name: str, options: Mapping[str, Any], methods: Mapping[str, Callable[..., Any]], kind: str) -> None:
    """Raise ValueError unless there is a method of this name, with these options, and none that it needs is missing."""
    if not isinstance(name, str):
        raise TypeError(f"a {kind} is called by its name, got {name!r}: there are {', '.join(methods)}")
    if name not in methods:
        near = difflib.get_close_matches(name, methods, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}: there are {', '.join(methods)}{hint}")
    known = own_options(methods[name])
    for option in options:
        if option not in known:
            raise ValueError(f"{name!r} has no option {option!r}: there are {', '.join(known) or 'none'}")
    missing = [f"{option}=" for option, needed in known.items() if needed and option not in options]
    if missing:
        raise ValueError(f"{name!r} needs {' and '.join(missing)}")


def own_options(method: Callable[..., Any]) -> dict[str, bool]:
    """The keyword-only arguments of a method, and whether each is needed."""
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
