"""How well groups of networks answer, and how surely: each network by itself, their merge, ensemble and average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from lab.images import Split
from lab.measures.calibration import calibration_error, reliability, temper
from lab.outputs import outputs
from rebasin.weights import Weights, take


def check_sizes(models: int, sizes: Sequence[int]) -> None:
    """Raise ValueError, before anything is trained, for no size, one larger than the models, and one listed twice."""
    if not sizes:
        raise ValueError("at least one size of groups is needed")
    for size in sizes:
        if not isinstance(size, int) or not 1 <= size <= models:
            raise ValueError(f"a group of {size} needs as many models, got {models}")
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes of groups must differ: got {list(sizes)}")


def whole_groups(leaves: Weights, size: int) -> dict[str, Tensor]:
    """The first of the models (n, ...), as many as make whole groups of ``size``. Raises ValueError if none do."""
    n = len(next(iter(leaves.values())))
    if size < 1 or n < size:
        raise ValueError(f"a group of {size} needs as many models, got {n}")
    return take(leaves, slice(n - n % size))


def measure_groups(
    model: nn.Module,
    leaves: Weights,
    merged: Mapping[str, Weights],
    size: int,
    splits: Mapping[str, Split],
    device: str,
    chunk: int,
) -> dict[str, pd.DataFrame]:
    """The tables ``nodes``, ``members`` and ``reliability`` of groups of ``size`` models (n, ...), and of their merges.

    ``merged`` is the merges (groups, ...) by method. ``unmerged`` is the mean over a group's members, ``ensemble`` the
    mean of their probabilities. ``reliability`` is of the split ``test``, where the members' images are counted
    together.
    """
    nodes, members, curves = [], [], []
    for split, images in splits.items():
        tempered = split == "test"
        of_leaves = outputs(model, leaves, images.images, device, chunk).double().log_softmax(-1)
        of_leaves = of_leaves.unflatten(0, (-1, size))  # (groups, size, m, classes)
        # The mean of probabilities, from their logarithms; every group has as many members.
        answers = {"ensemble": of_leaves.logsumexp(1).log_softmax(-1)}
        for method, weights in merged.items():
            answers[method] = outputs(model, weights, images.images, device, chunk).double().log_softmax(-1)

        by_member = measure(of_leaves, images.labels, tempered)
        measured = {"unmerged": {metric: values.mean(1) for metric, values in by_member.items()}}
        measured |= {algorithm: measure(given, images.labels, tempered) for algorithm, given in answers.items()}
        for algorithm, by_metric in measured.items():
            for metric, values in by_metric.items():
                nodes += [(algorithm, node, split, metric, value) for node, value in enumerate(values.tolist())]
        for metric, values in by_member.items():
            for node, of_group in enumerate(values.tolist()):
                members += [(node, member, split, metric, value) for member, value in enumerate(of_group)]
        if split == "test":
            curves += _bins("unmerged", of_leaves.flatten(1, 2), images.labels.repeat(size))
            for algorithm, given in answers.items():
                curves += _bins(algorithm, given, images.labels)
    tables = {
        "nodes": pd.DataFrame(nodes, columns=["algorithm", "node", "split", "metric", "value"]),
        "members": pd.DataFrame(members, columns=["node", "member", "split", "metric", "value"]),
        "reliability": pd.DataFrame(curves, columns=["algorithm", "node", "bin", "confidence", "accuracy", "share"]),
    }
    return {name: table.assign(n_leaves=size) for name, table in tables.items()}


def _bins(algorithm: str, answers: Tensor, labels: Tensor) -> list[tuple[str, int, int, float, float, float]]:
    """Rows of the table ``reliability``: one for each node and bin, of log-probabilities (nodes, m, classes)."""
    confidence, accuracy, share = (values.tolist() for values in reliability(answers.exp(), labels))
    return [
        (algorithm, node, number, confidence[node][number], accuracy[node][number], share[node][number])
        for node in range(len(share))
        for number in range(len(share[node]))
    ]


def measure(answers: Tensor, labels: Tensor, tempered: bool) -> dict[str, Tensor]:
    """Loss in nats, accuracy and calibration error (...) of log-probabilities (..., m, classes) of labels (m,).

    And, if ``tempered``, the calibration error after temperature scaling.
    """
    of_label = answers.gather(-1, labels.expand(answers.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    measured = {
        "loss": -of_label.mean(-1),
        "accuracy": (answers.argmax(-1) == labels).double().mean(-1),
        "calibration_error": calibration_error(answers.exp(), labels),
    }
    if tempered:
        measured["calibration_error_tempered"] = calibration_error(temper(answers, labels)[0].exp(), labels)
    return measured
