"""What lies on the straight line between the two networks of a pair, and how high its barriers are."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from lab.images import Split
from lab.outputs import evaluate
from rebasin.progress import track
from rebasin.weights import Weights, interpolate

PATH = ["algorithm", "epochs", "node", "n_leaves", "split"]


def check_pairs(n_models: int, points: int) -> None:
    """Raise ValueError for an odd number of models, and for a path that lacks an end or the midpoint."""
    if n_models < 2 or n_models % 2:
        raise ValueError(f"pairs need an even number of models, got {n_models}")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"a path with its ends and its midpoint has an odd number of points from 3, got {points}")


def walk(
    model: nn.Module, a: Weights, b: Weights, lams: Tensor, splits: dict[str, Split], device: str, chunk: int
) -> pd.DataFrame:
    """Loss and accuracy along the lines from ``a`` to ``b`` (pairs, ...): node, split, lam, metric and value."""
    rows = []
    for split, images in splits.items():
        for metric, values in zip(
            ("accuracy", "loss"), evaluate_path(model, a, b, lams, images, device, chunk), strict=True
        ):
            rows += [
                (node, 2, split, lam, metric, value)
                for node, along in enumerate(values.tolist())
                for lam, value in zip(lams.tolist(), along, strict=True)
            ]
    return pd.DataFrame(rows, columns=["node", "n_leaves", "split", "lam", "metric", "value"])


def barriers(paths: pd.DataFrame) -> pd.DataFrame:
    """The barriers of every path: one row for each path and metric.

    ``loss_barrier`` and ``accuracy_barrier`` are measured from the mean of the ends, ``loss_above_line`` and
    ``accuracy_above_line`` from the line between them, all positive where the path is worse; ``loss_gain`` is the
    smaller of the ends' losses minus the midpoint's. Nats, and shares of the images. Raises ValueError where the
    midpoint is not among the points.
    """
    rows = []
    for metric, part in paths.groupby("metric"):
        table = part.pivot(index=PATH, columns="lam", values="value")
        if 0.5 not in table.columns:
            raise ValueError("the midpoint is not among the points of the paths: take an odd number of them")
        values = torch.from_numpy(table.to_numpy(copy=True)) * (-1 if metric == "accuracy" else 1)
        from_mean, above_line = barrier(values, torch.tensor(table.columns.to_numpy(copy=True)))
        found = {f"{metric}_barrier": from_mean, f"{metric}_above_line": above_line}
        if metric == "loss":
            ends = torch.minimum(values[:, 0], values[:, -1])
            found["loss_gain"] = ends - values[:, list(table.columns).index(0.5)]
        for name, each in found.items():
            rows.append(table.index.to_frame(index=False).assign(metric=name, value=each.numpy()))
    return pd.concat(rows, ignore_index=True)


def evaluate_path(
    model: nn.Module, a: Weights, b: Weights, lams: Tensor, split: Split, device: str = "auto", chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """Accuracy and mean loss at the points ``(1 - lam) a + lam b`` for pairs (n, ...): (n, points) each."""
    accuracy, loss = [], []
    with track(len(lams), f"{len(next(iter(a.values())))} paths, {len(split.labels)} images", "point") as bar:
        for lam in lams.tolist():
            at = evaluate(model, interpolate(a, b, lam), split, device, chunk)
            accuracy.append(at.correct.double().mean(1))
            loss.append(at.loss.double().mean(1))
            bar.update()
    return torch.stack(accuracy, 1), torch.stack(loss, 1)


def barrier(values: Tensor, lams: Tensor) -> tuple[Tensor, Tensor]:
    """Two barriers along paths ``values`` (*batch, points), of a quantity that is better when lower.

    First the largest value minus the mean of the two ends (Git Re-Basin, definition 2.2), then the largest height above
    the straight line between the ends: (*batch,) each. Raises ValueError unless the ends are among the points.
    """
    if lams[0] != 0 or lams[-1] != 1:
        raise ValueError("the points of a path must begin at 0 and end at 1")
    start, end = values[..., :1], values[..., -1:]
    line = (1 - lams) * start + lams * end
    return (values - (start + end) / 2).amax(-1), (values - line).amax(-1)
