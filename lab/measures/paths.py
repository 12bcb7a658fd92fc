"""What lies on the straight line between the two networks of a pair, and how high its barriers are."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from lab.images import Split
from lab.outputs import evaluate
from rebasin.progress import track
from rebasin.weights import Weights, interpolate

PATH = ["matcher", "epochs", "node", "n_leaves", "split"]  # what tells one path of a table from the others


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
        accuracy, loss = evaluate_path(model, a, b, lams, images, device, chunk)
        for metric, values in (("accuracy", accuracy), ("loss", loss)):
            for node, along in enumerate(values.tolist()):
                rows += [(node, 2, split, lam, metric, value) for lam, value in zip(lams.tolist(), along, strict=True)]
    return pd.DataFrame(rows, columns=["node", "n_leaves", "split", "lam", "metric", "value"])


def evaluate_path(
    model: nn.Module, a: Weights, b: Weights, lams: Tensor, split: Split, device: str = "auto", chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """Accuracy and mean loss at the points ``(1 - lam) a + lam b`` for pairs (n, ...): (n, points) each."""
    accuracy, loss = [], []
    with track(len(lams), f"{len(next(iter(a.values())))} paths, {len(split.labels)} images", "point") as bar:
        for lam in lams.tolist():
            at = evaluate(model, interpolate(a, b, lam), split, device, chunk)
            # Of texts, over all their characters.
            accuracy.append(at.correct.flatten(1).double().mean(1))
            loss.append(at.loss.flatten(1).double().mean(1))
            bar.update()
    return torch.stack(accuracy, 1), torch.stack(loss, 1)


def path_barriers(paths: pd.DataFrame) -> pd.DataFrame:
    """The metrics of every path of a table: the columns of ``PATH``, metric and value, as ``path_metrics`` says."""
    tables = {metric: rows.pivot(index=PATH, columns="lam", values="value") for metric, rows in paths.groupby("metric")}
    # One row for each path, one column for each point.
    loss, accuracy = (torch.from_numpy(tables[metric].to_numpy(copy=True)) for metric in ("loss", "accuracy"))
    lams = torch.tensor(tables["loss"].columns.to_numpy(copy=True))
    names = tables["loss"].index.to_frame(index=False)
    metrics = path_metrics(loss, accuracy, lams)
    return pd.concat(
        [names.assign(metric=metric, value=values.numpy()) for metric, values in metrics.items()], ignore_index=True
    )


def path_metrics(loss: Tensor, accuracy: Tensor, lams: Tensor) -> dict[str, Tensor]:
    """What a table says of paths, from their loss in nats and accuracy in shares (n, points): by metric, (n,) each.

    Of both, ``barrier`` is measured from the mean of the two ends, ``above_line`` from the straight line between them,
    and ``barrier_of_three`` is the barrier over the ends and the midpoint alone: all are positive where the path is
    worse than its ends. ``ends`` is the mean of the two ends, ``midpoint`` the value there, ``gain`` by how much the
    midpoint is better than the better end. Raises ValueError unless the ends and the midpoint are among the points.
    """
    middle = len(lams) // 2
    if len(lams) % 2 == 0 or not torch.isclose(lams[middle], torch.tensor(0.5, dtype=lams.dtype)):
        raise ValueError("the midpoint is not among the points of the paths: take an odd number of them")
    three = [0, middle, len(lams) - 1]
    metrics = {}
    for metric, values, sign in (("loss", loss, 1), ("accuracy", accuracy, -1)):
        worse = sign * values  # the higher, the worse
        ends = worse[:, [0, -1]]
        metrics[f"{metric}_barrier"], metrics[f"{metric}_above_line"] = barrier(worse, lams)
        metrics[f"{metric}_barrier_of_three"], _ = barrier(worse[:, three], lams[three])
        metrics[f"{metric}_ends"] = sign * ends.mean(1)
        metrics[f"{metric}_midpoint"] = values[:, middle]
        metrics[f"{metric}_gain"] = ends.amin(1) - worse[:, middle]
    return metrics


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
