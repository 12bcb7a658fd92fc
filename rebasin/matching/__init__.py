"""Matching: the permutation of the second model's units that brings it to the first. One door to every matcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.frank_wolfe import frank_wolfe_matching
from rebasin.matching.pairs import Matching
from rebasin.matching.straight_through import straight_through_matching
from rebasin.options import check_options
from rebasin.spec import PermutationSpec, check_spec
from rebasin.weights import Models

Matcher = Literal["weights", "activations", "straight-through", "frank-wolfe"]
MATCHERS: dict[str, Callable[..., Matching]] = {
    "weights": weight_matching,
    "activations": activation_matching,
    "straight-through": straight_through_matching,
    "frank-wolfe": frank_wolfe_matching,
}


def match(spec: PermutationSpec, a: Models, b: Models, *, by: Matcher = "weights", **options: Any) -> Matching:
    """Match model ``b`` to model ``a``, or each ``b`` of many to its ``a``.

    Both are modules, dicts of tensors with the same leading axes (*batch), or lists of either; nothing is modified.
    ``by`` names the matcher, and ``options`` are its own:

    - ``"weights"``, ``weight_matching``: needs no data;
    - ``"frank-wolfe"``, ``frank_wolfe_matching``: needs no data and depends on no visiting order;
    - ``"activations"``, ``activation_matching``: ``model=`` and ``loader=`` of inputs;
    - ``"straight-through"``, ``straight_through_matching``: ``model=`` and ``loader=`` of inputs and targets.

    Raises ValueError for another matcher, an option that it does not have or that is missing, models that do not fit
    the spec or each other, and what the matcher itself raises.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> other = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> matching = match(spec, model, other)
    >>> bool(matching.objective >= rebasin.inner_product(spec, model, other))
    True
    >>> type(matching.apply(other)).__name__
    'Sequential'
    """
    check_spec(spec, "match(spec, a, b)")
    check_options(by, options, MATCHERS, "matcher")
    return MATCHERS[by](spec, a, b, **options)
