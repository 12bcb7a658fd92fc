"""Where to compute."""

from __future__ import annotations

import psutil
import torch


def pick_device(name: str) -> str:
    """``auto`` is the GPU where there is one. Raises RuntimeError for a GPU that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"device {name!r} was asked for, but torch sees no GPU here: use 'cpu' or 'auto'")
    return name


def check_room(gigabytes: float, device: str) -> None:
    """Raise RuntimeError where a device, or this machine for the CPU, has less memory free than that."""
    if device.startswith("cuda"):
        # What torch holds and does not use is free, too.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + idle
    else:
        free = psutil.virtual_memory().available
    if free < gigabytes * 1e9:
        raise RuntimeError(
            f"networks trained side by side need {gigabytes:.1f} GB at least, and {free / 1e9:.1f} GB are free "
            f"on {device!r}: a smaller 'chunk' takes less"
        )
