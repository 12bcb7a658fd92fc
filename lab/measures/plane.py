"""Loss and accuracy on the plane through two networks and the second one's permuted copy (Git Re-Basin's landscape)."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.images import Split
from lab.outputs import evaluate
from rebasin.progress import track
from rebasin.weights import Weights, stack

CORNERS = ("A", "B", "π(B)")


def corners_in_plane(a: Weights, b: Weights, matched: Weights) -> Tensor:
    """Where A, B and π(B) lie in their plane: (3, 2), A in the origin, B at (1, 0), in units of their distance.

    ``matched`` is B permuted. Raises ValueError where the three lie on one line, as when nothing was permuted.
    """
    to_b, to_matched = (_flat(end) - _flat(a) for end in (b, matched))
    length = to_b.norm()
    x = to_b @ to_matched / length**2
    y = (to_matched - x * to_b).norm() / length
    if not torch.isfinite(y) or y < 1e-3:
        raise ValueError("A, B and its permuted copy lie on one line: there is no plane through them")
    return torch.stack([torch.zeros(2, dtype=x.dtype), torch.tensor([1, 0], dtype=x.dtype), torch.stack([x, y])])


def _flat(weights: Weights) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in weights.values()])


def grid_over(corners: Tensor, points: int, margin: float) -> tuple[Tensor, Tensor]:
    """So many equally spaced x and y (points,) that the corners (3, 2) lie inside by ``margin`` on every side.

    Raises ValueError for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"a grid has 2 points on a side at least, got {points}")
    low, high = corners.amin(0) - margin, corners.amax(0) + margin
    x, y = (torch.linspace(float(low[i]), float(high[i]), points, dtype=torch.float64) for i in (0, 1))
    return x, y


def measure_plane(
    model: nn.Module,
    a: Weights,
    b: Weights,
    matched: Weights,
    split: Split,
    points: int,
    margin: float,
    device: str = "auto",
    chunk: int = 1,
) -> pd.DataFrame:
    """Loss in nats and accuracy as a share at the points of a grid: x, y, metric and value, a row each.

    The corners are single networks of one architecture; ``chunk`` points go through at once.
    """
    corners = corners_in_plane(a, b, matched)
    x, y = grid_over(corners, points, margin)
    values = values_on_grid(model, stack([a, b, matched]), corners, x, y, split, device, chunk)
    places = [(across, up) for up in y.tolist() for across in x.tolist()]
    rows = [
        (*place, metric, value)
        for metric, of_points in values.items()
        for place, value in zip(places, of_points.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["x", "y", "metric", "value"])


@kept
def values_on_grid(
    model: nn.Module, networks: Weights, corners: Tensor, x: Tensor, y: Tensor, split: Split, device: str, chunk: int
) -> dict[str, Tensor]:
    """``loss`` and ``accuracy`` at the points of a grid, row by row of ``y``, (points,) each; ``networks`` (3, ...)."""
    up, across = (side.flatten() for side in torch.meshgrid(y, x, indexing="ij"))
    # A point is A and so much of the way to B, and so much of the way to π(B).
    to_matched = up / corners[2, 1]
    to_b = across - to_matched * corners[2, 0]
    shares = torch.stack([1 - to_b - to_matched, to_b, to_matched], 1)
    loss, accuracy = [], []
    with track(len(shares), f"a plane, {len(split.labels)} images", "point") as bar:
        for some in shares.split(chunk):
            points = {
                key: torch.einsum("pc,c...->p...", some.to(tensor.dtype), tensor) for key, tensor in networks.items()
            }
            at = evaluate(model, points, split, device, chunk)
            loss.append(at.loss.double().mean(1))
            accuracy.append(at.correct.double().mean(1))
            bar.update(len(some))
    return {"loss": torch.cat(loss), "accuracy": torch.cat(accuracy)}
