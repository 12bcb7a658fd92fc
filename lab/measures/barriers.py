"""Barriers between pairs of trained networks: unmatched or matched, and mended at the points of the path."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.device import pick_device
from lab.images import Dataset, Split
from lab.measures.calibration import temper
from lab.measures.pairs import matched_by_weights
from lab.measures.paths import barrier, check_pairs, path_metrics
from lab.outputs import outputs
from lab.training.plan import Planned
from rebasin.merging.mending import repair, reset_norms
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.tracing import trace
from rebasin.weights import Weights, interpolate, stack, take, to

# By what a path's points are mended: REPAIR gives the midpoint its ends' statistics; reset_norms measures those of
# BatchNorm anew at every point, the ends included.
MENDINGS = ("none", "repair", "reset")
SECTIONS = ("width", "epochs", "failures", "norms", "split")  # the questions that recipes are trained for
BATCH = 1000  # images at once


def check_plan(plan: Sequence[Planned]) -> None:
    """Raise ValueError, before anything is trained, for a plan that makes no pairs, or whose rows could be confused.

    That is an odd number of models, networks that are listed twice, and a section that there is not. Tables and claims
    tell networks by their recipe's name, their width and their epochs.
    """
    seen = set()
    for planned in plan:
        if planned.section not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise ValueError(f"recipe {planned.name!r} needs a section, got {planned.section!r}: there are {known}")
        if planned.models % 2:
            raise ValueError(f"recipe {planned.name!r} needs an even number of models for pairs, got {planned.models}")
        for epochs in planned.epochs:
            kind = planned.name, planned.recipe.width, epochs
            if kind in seen:
                raise ValueError(f"recipe {planned.name!r} is listed twice for width {kind[1]} and {epochs} epochs")
            seen.add(kind)


def pair_barriers(
    model: nn.Module,
    weights: Weights,
    data: Dataset,
    points: int,
    test_images: int,
    mending_images: int,
    seed: int = 0,
    device: str = "auto",
    chunk: int = 1,
) -> pd.DataFrame:
    """Barriers on test images between models (n, ...) 0 and 1, 2 and 3, ..., unmatched and matched by their weights.

    Paths have ``points`` points; those that REPAIR mends have three, the ends and the midpoint. ``mending_images`` of
    the training set go into REPAIR and the reset of norms; ``chunk`` models are tested at once. Returns the columns
    matcher, mended, points, node (the pair), metric and value. Each kind of path is kept, so that a run may be stopped.
    Raises ValueError for an odd number of models, and for points without a midpoint.
    """
    n = len(next(iter(weights.values())))
    check_pairs(n, points)
    device, inputs, test = pick_device(device), data.train.sample(mending_images).pixels, data.test.sample(test_images)
    spec, model, inputs = trace(model, inputs[:2]), copy.deepcopy(model).to(device), inputs.to(device)
    a, b = (to(take(weights, slice(first, None, 2)), device) for first in (0, 1))
    indices = matched_by_weights(spec, a, b, seed, device)
    matched = Permutation(spec, to(indices, device)).apply(b)
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    mendings = MENDINGS if has_norms else MENDINGS[:2]
    kinds, calls = [], []
    for matcher, end in (("none", b), ("weights", matched)):
        for mended in mendings:
            lams = torch.linspace(0, 1, 3 if mended == "repair" else points, dtype=torch.float64)
            kinds.append((matcher, mended, len(lams)))
            calls.append((model, a, end, lams, mended, inputs, test, device, chunk))
    rows, what = [], f"paths of {n // 2} pairs, {test_images} images"
    with track(len(kinds), what, "path") as bar:
        for kind, metrics in zip(kinds, each(mended_path_metrics, calls, what), strict=True):
            for metric, values in metrics.items():
                rows += [(*kind, node, metric, value) for node, value in enumerate(values.tolist())]
            bar.update()
    return pd.DataFrame(rows, columns=["matcher", "mended", "points", "node", "metric", "value"])


@kept
def mended_path_metrics(
    model: nn.Module,
    a: Weights,
    b: Weights,
    lams: Tensor,
    mended: str,
    inputs: Tensor,
    test: Split,
    device: str,
    chunk: int,
) -> dict[str, Tensor]:
    """What a table says of the paths between pairs (n, ...), by metric: (n,) each.

    To the metrics of every path come ``loss_barrier_tempered``, the barrier in loss over the ends and the midpoint with
    each at its own best softmax temperature, and those temperatures, of the ends in the mean and of the midpoint.
    """
    accuracy, loss, tempered, temperature = [], [], [], []
    for number, point in enumerate(_points(model, a, b, lams, mended, inputs)):
        answers = outputs(model, point, test.images, device, chunk, BATCH).double()
        accuracy.append((answers.argmax(-1) == test.labels).double().mean(-1))
        loss.append(torch.stack([cross_entropy(of_model, test.labels) for of_model in answers]))
        if number in (0, len(lams) // 2, len(lams) - 1):
            probabilities, best = temper(answers, test.labels)
            tempered.append(torch.stack([nll_loss(of_model, test.labels) for of_model in probabilities]))
            temperature.append(best)
    metrics = path_metrics(torch.stack(loss, 1), torch.stack(accuracy, 1), lams)
    metrics["loss_barrier_tempered"], _ = barrier(torch.stack(tempered, 1), torch.tensor([0, 0.5, 1]))
    start, middle, end = temperature
    return metrics | {"temperature_ends": (start + end) / 2, "temperature_midpoint": middle}


def _points(
    model: nn.Module, a: Weights, b: Weights, lams: Tensor, mended: str, inputs: Tensor
) -> Iterable[dict[str, Tensor]]:
    """The points of the paths, (n, ...) each, mended."""
    points = (interpolate(a, b, lam) for lam in lams.tolist())
    if mended == "reset":
        # All at once: every call exports the model.
        along = list(points)
        reset = reset_norms(model, stack(along), inputs)
        return [take(reset, number) for number in range(len(along))]
    if mended == "repair":
        start, midpoint, end = points
        return start, repair(model, midpoint, stack([a, b], 1), inputs), end
    return points
