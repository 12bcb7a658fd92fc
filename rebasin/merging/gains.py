"""What it is worth to keep units apart in a merge, as tables that a budget is spent by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rebasin.arguments import check_tensor
from rebasin.spec import PermutationSpec, check_family


def mismatch_gains(mismatch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mismatch that is gone once the worst units are kept apart: (units + 1,) for each group, concave.

    ``mismatch[group]`` (units,) says how much is lost by merging each unit of the *aligned* models, such as one minus
    the correlation of what is merged, times its variance. Entry k of a table is the sum of the k greatest. Raises
    ValueError, naming the group, for values that are negative or not finite.

    >>> mismatch_gains({"units": torch.tensor([0.1, 0.5, 0.2])})
    {'units': tensor([0.0000, 0.5000, 0.7000, 0.8000], dtype=torch.float64)}
    """
    gains = {}
    for group, lost in mismatch.items():
        check_tensor(lost, f"group {group!r}: the mismatch")
        if lost.ndim != 1 or not torch.isfinite(lost).all() or (lost < 0).any():
            raise ValueError(f"group {group!r}: the mismatch is a finite number of 0 or more for each unit")
        worst = lost.double().cpu().sort(descending=True).values
        gains[group] = torch.cat([worst.new_zeros(1), worst.cumsum(0)])
    return gains


def linear_gains(spec: PermutationSpec, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Gains in proportion to the share of a group that is kept apart: (units + 1,) for each group.

    ``weights[group]`` is what keeping the whole group apart is worth, such as the accuracy that a merge wins by it.
    Source: PLeaS (Nasery et al. 2024). With such gains the best merge keeps nearly every group whole or
    apart, two or three excepted; it is the concave gains of ``mismatch_gains`` that split groups.

    >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(2)}, {"w": ("units",)})
    >>> linear_gains(spec, {"units": 3.0})
    {'units': tensor([0.0000, 1.5000, 3.0000], dtype=torch.float64)}
    """
    gains = {}
    for group, weight in weights.items():
        check_family(spec, group)
        gains[group] = torch.linspace(0, weight, spec.sizes[group] + 1, dtype=torch.float64)
    return gains
