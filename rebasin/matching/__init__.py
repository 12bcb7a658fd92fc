"""One door to every matcher."""

from __future__ import annotations

import inspect
from typing import Any

from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.frank_wolfe import frank_wolfe_matching
from rebasin.matching.pairs import Matching
from rebasin.matching.straight_through import straight_through_matching
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights

METHODS = {
    "weights": weight_matching,
    "activations": activation_matching,
    "straight-through": straight_through_matching,
    "frank-wolfe": frank_wolfe_matching,
}


def match(spec: PermutationSpec, a: Weights, b: Weights, method: str = "weights", **options: Any) -> Matching:
    """Match each ``b`` to its ``a`` (*batch, ...) by one of ``METHODS``, with that function's own options.

    Raises ValueError for another method or option, and what the method itself raises.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
    known = list(inspect.signature(METHODS[method]).parameters)[3:]
    for option in options:
        if option not in known:
            raise ValueError(f"{method!r} has no option {option!r}: there are {', '.join(known)}")
    return METHODS[method](spec, a, b, **options)
