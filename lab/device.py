"""Where to compute."""

from __future__ import annotations

import torch


def pick_device(name: str) -> str:
    """``auto`` is the GPU where there is one. Raises RuntimeError for a GPU that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"device {name!r} was asked for, but torch sees no GPU here: use 'cpu' or 'auto'")
    return name
