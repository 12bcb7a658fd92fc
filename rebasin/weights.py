"""A model's weights are a dict of tensors as ``state_dict()`` gives it; many models are that with leading axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def interpolate(a: Weights, b: Weights, lam: float) -> dict[str, Tensor]:
    """The point ``(1 - lam) a + lam b``; whole numbers (counters) are those of ``a``.

    Raises ValueError, naming the first key, if keys or shapes differ.
    """
    for key in [*a, *b]:
        if key not in a or key not in b:
            raise ValueError(f"{key!r} is in one of the two models only")
        if a[key].shape != b[key].shape:
            raise ValueError(f"{key!r}: a has shape {tuple(a[key].shape)}, b has {tuple(b[key].shape)}")
    return {key: torch.lerp(a[key], b[key], lam) if a[key].is_floating_point() else a[key].clone() for key in a}
