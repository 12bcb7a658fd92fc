"""Random views of images, whole batches at a time: Git Re-Basin's augmentation for CIFAR-10."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

ZOOM = (0.8, 1.2)  # the crop's side, as a share of the image's
ANGLE = math.radians(30)  # at most, to either side


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each image (m, channels, height, width): zoomed, shifted, flipped and turned, the same shape.

    A crop smaller than the image lies anywhere inside it, a larger one anywhere around it; beyond the edge everything
    is 0. The draws depend on ``generator`` alone, which must be the CPU's. Git Re-Basin's code, cifar10_*_train.py.
    """
    m = len(images)
    zoom, x, y, turn, flip = torch.rand(5, m, generator=generator).to(images.device)
    zoom = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * zoom
    turn = (2 * turn - 1) * ANGLE
    across = torch.where(flip < 0.5, -zoom, zoom)
    # Rows of the map from the view's coordinates to the image's, both in [-1, 1].
    rows = [
        [across * turn.cos(), -zoom * turn.sin(), (2 * x - 1) * (1 - zoom)],
        [across * turn.sin(), zoom * turn.cos(), (2 * y - 1) * (1 - zoom)],
    ]
    maps = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return grid_sample(images, affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)
