"""ZipIt!: the units that are most alike share a slot, be they of two models or of one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rebasin.arguments import check_tensor
from rebasin.expanding.slots import Slots
from rebasin.spec import PermutationSpec, check_family, check_spec


def zip_slots(
    spec: PermutationSpec,
    correlations: Mapping[str, Tensor],
    *,
    merged: Mapping[str, int] | None = None,
    alpha: float = 0.3,
    beta: float = 0.125,
) -> Slots:
    """Slots by greedy matching within and across n models (ZipIt!: Stoica et al. 2024, Eq. 8 and section 4.3).

    ``correlations[group]`` (n units, n units) says how alike the units of all models are, model after model; of blocks,
    such as the heads of attention, how alike the blocks are. Of a group, the two slots that are most alike are made
    one, whose likeness to any other is ``alpha`` times the smaller one of the two, until as many slots as units are
    left. Each model has ``beta`` times its share of these merges for two of its own units; a slot counts as of the
    model of its first unit. If no other merge is left, as may be with three models, this is exceeded.

    ``merged[group]`` is for a partial zip, as ``shaped_budget(..., shape="prefix")`` gives it: ``n units - (n - 1)
    merged`` slots are left.

    Raises ValueError, naming the group, if correlations are missing, do not fit or are not finite (of a unit that never
    varies, 0 is meant), and for ``alpha`` and ``beta`` out of range.

    >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(2)}, {"w": ("units",)})
    >>> x = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0], [1.0, 0.2]])  # what two models' two units each answer
    >>> zip_slots(spec, {"units": x @ x.T}).index["units"]
    tensor([[0, 1],
            [1, 0]])
    """
    check_spec(spec, "zip_slots(spec, correlations)")
    if not 0 < alpha <= 1 or not 0 <= beta <= 1:
        raise ValueError(f"alpha lies above 0 and up to 1, beta between 0 and 1: got {alpha} and {beta}")
    for group in merged or {}:
        check_family(spec, group)
    index = {}
    for group in spec.families:
        units = spec.sizes[group]
        if group not in correlations:
            raise ValueError(f"no correlations are given for group {group!r}")
        check_tensor(correlations[group], f"group {group!r}: correlations")
        rows = len(correlations[group])
        fits = correlations[group].shape == (rows, rows) and rows and rows % units == 0
        if not fits or not correlations[group].isfinite().all():
            raise ValueError(
                f"group {group!r} has {units} units: correlations are finite numbers, n times {units} on both axes for "
                f"n models, got {tuple(correlations[group].shape)}"
            )
        n, shared = rows // units, units if merged is None else merged.get(group, units)
        if not 0 <= shared <= units:
            raise ValueError(f"group {group!r} has {units} units, of which {shared} cannot be merged")
        likeness = correlations[group].detach().double().cpu().numpy()
        index[group] = torch.from_numpy(_zipped(likeness, n, (n - 1) * shared, alpha, beta))
    return Slots.from_index(spec, index)


def _zipped(likeness: np.ndarray, n: int, merges: int, alpha: float, beta: float) -> np.ndarray:
    """The slot of each unit of n models, (n, units), after so many merges of two slots."""
    slot = np.arange(len(likeness))
    model = slot // (len(slot) // n)  # of the first unit in each slot
    alike = likeness.copy()
    np.fill_diagonal(alike, -np.inf)
    allowed = alike.copy()
    own = np.full(n, int(merges // n * beta + 1e-4))  # how many merges within each model are left
    for of_model in np.flatnonzero(own == 0):
        _forbid(allowed, model == of_model)
    for _ in range(merges):
        best = int(allowed.argmax())
        if allowed.flat[best] == -np.inf:
            best = int(alike.argmax())
        kept, gone = sorted(divmod(best, len(slot)))
        for matrix in (alike, allowed):
            both = alpha * np.minimum(matrix[kept], matrix[gone])
            matrix[kept], matrix[:, kept] = both, both
            matrix[gone], matrix[:, gone] = -np.inf, -np.inf
        slot[slot == gone] = kept
        if model[kept] == model[gone]:
            own[model[kept]] -= 1
            if own[model[kept]] == 0:
                _forbid(allowed, model == model[kept])
    return slot.reshape(n, -1)


def _forbid(allowed: np.ndarray, slots: np.ndarray) -> None:
    """No two of these slots may be merged any more."""
    allowed[np.ix_(slots, slots)] = -np.inf
