"""MergeMany of groups of networks: how well the merge, its inputs and their ensemble answer, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from lab.images import Split
from lab.measures.calibration import calibration_error, reliability, temper
from lab.merges import grouped
from lab.outputs import outputs
from rebasin.merging.mean import average
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights

ALGORITHMS = ("unmerged", "merge_many", "ensemble", "naive")


def check_sizes(models: int, sizes: Sequence[int]) -> None:
    """Raise ValueError, before anything is trained, for groups larger than the models, and for a size listed twice."""
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
    return {name: tensor[: n - n % size] for name, tensor in leaves.items()}


def measure_groups(
    model: nn.Module,
    spec: PermutationSpec,
    leaves: Weights,
    merged: Weights,
    size: int,
    splits: Mapping[str, Split],
    device: str,
    chunk: int,
) -> dict[str, pd.DataFrame]:
    """The tables ``nodes``, ``members`` and ``reliability`` of groups of ``size`` models, and of their merges.

    ``unmerged`` is the mean over a group's members, ``ensemble`` the mean of their probabilities, ``naive`` their
    average as they are. ``reliability`` is of the split ``test``, where the members' images are counted together.
    """
    nodes, members, curves = [], [], []
    naive = average(spec, grouped(leaves, size))
    for split, images in splits.items():
        alone, many, plain = (
            outputs(model, weights, images.images, device, chunk).double().log_softmax(-1)
            for weights in (leaves, merged, naive)
        )
        alone = alone.unflatten(0, (-1, size))  # (groups, size, m, classes)
        each = measure(alone, images.labels, tempered=split == "test")
        told = {"merge_many": many, "ensemble": alone.logsumexp(1).log_softmax(-1), "naive": plain}
        found = {name: measure(one, images.labels, tempered=split == "test") for name, one in told.items()}
        found["unmerged"] = {metric: values.mean(1) for metric, values in each.items()}
        for algorithm in ALGORITHMS:
            for metric, values in found[algorithm].items():
                nodes += [(algorithm, node, split, metric, value) for node, value in enumerate(values.tolist())]
        for metric, values in each.items():
            for node, of_group in enumerate(values.tolist()):
                members += [(node, member, split, metric, value) for member, value in enumerate(of_group)]
        if split == "test":
            told["unmerged"] = alone.flatten(1, 2)
            for algorithm in ALGORITHMS:
                labels = images.labels.repeat(size) if algorithm == "unmerged" else images.labels
                bins = reliability(told[algorithm].exp(), labels)
                for node, of_node in enumerate(zip(*(values.tolist() for values in bins), strict=True)):
                    curves += [(algorithm, node, number, *at) for number, at in enumerate(zip(*of_node, strict=True))]
    return {
        "nodes": pd.DataFrame(nodes, columns=["algorithm", "node", "split", "metric", "value"]).assign(n_leaves=size),
        "members": pd.DataFrame(members, columns=["node", "member", "split", "metric", "value"]),
        "reliability": pd.DataFrame(curves, columns=["algorithm", "node", "bin", "confidence", "accuracy", "share"]),
    }


def measure(answers: Tensor, labels: Tensor, tempered: bool) -> dict[str, Tensor]:
    """Loss in nats, accuracy and calibration error (...) of log-probabilities (..., m, classes) of labels (m,).

    And, if ``tempered``, the calibration error after temperature scaling.
    """
    picked = answers.gather(-1, labels.expand(answers.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    found = {
        "loss": -picked.mean(-1),
        "accuracy": (answers.argmax(-1) == labels).double().mean(-1),
        "calibration_error": calibration_error(answers.exp(), labels),
    }
    if tempered:
        found["calibration_error_tempered"] = calibration_error(temper(answers, labels)[0].exp(), labels)
    return found
