"""Barriers between pairs of trained networks: as they are, matched, and mended at every point of the path."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from lab.bookkeeping.cache import kept
from lab.device import pick_device
from lab.images import Dataset, Split
from lab.measures.calibration import temper
from lab.measures.paths import barrier, check_pairs
from lab.outputs import outputs
from lab.training.plan import Planned
from rebasin.matching.by_weights import weight_matching
from rebasin.merging.mending import repair, reset_norms
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights, interpolate

# By what a path's points are mended: REPAIR gives the midpoint its ends' statistics; reset_norms measures those of
# BatchNorm anew at every point, the ends included.
MENDINGS = ("none", "repair", "reset")
BATCH = 1000  # images at once


def check_plan(plan: Sequence[Planned]) -> None:
    """Raise ValueError, before anything is trained, for an odd number of models, and for what is listed twice.

    Tables and claims tell networks by their recipe's name, their width and their epochs.
    """
    seen = set()
    for planned in plan:
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
    """Barriers on test images between models (n, ...) 0 and 1, 2 and 3, ..., naive and matched by their weights.

    Paths have ``points`` points; those that REPAIR mends have three, the ends and the midpoint. ``mending_images`` of
    the training set go into REPAIR and the reset of norms; ``chunk`` models are tested at once. Returns the columns
    algorithm, mended, points, node (the pair), metric and value, from the cache where they were measured before. Raises
    ValueError for an odd number of models, and for points without a midpoint.
    """
    n = len(next(iter(weights.values())))
    check_pairs(n, points)
    inputs = data.train.sample(mending_images).pixels
    test = data.test.sample(test_images)
    rows = barriers_of_pairs(model, weights, inputs, test, points, seed, pick_device(device), chunk)
    return pd.DataFrame(rows, columns=["algorithm", "mended", "points", "node", "metric", "value"])


@kept
def pairs_matched_by_weights(spec: PermutationSpec, a: Weights, b: Weights, seed: int) -> dict[str, Tensor]:
    """The permutations (pairs, units) that weight matching finds."""
    found = weight_matching(spec, a, b, seed)
    return {group: index.cpu() for group, index in found.permutation.indices.items()}


@kept
def barriers_of_pairs(
    model: nn.Module, weights: Weights, inputs: Tensor, test: Split, points: int, seed: int, device: str, chunk: int
) -> list[tuple[str, str, int, int, str, float]]:
    """The rows of ``pair_barriers``."""
    spec, model, inputs = trace(model, inputs[:2]), copy.deepcopy(model).to(device), inputs.to(device)
    a, b = ({key: tensor[first::2].to(device) for key, tensor in weights.items()} for first in (0, 1))
    indices = {group: index.to(device) for group, index in pairs_matched_by_weights(spec, a, b, seed).items()}
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    kinds = [
        (algorithm, end, mended)
        for algorithm, end in (("naive", b), ("weights", Permutation(spec, indices).apply(b)))
        for mended in MENDINGS[: 3 if has_norms else 2]
    ]
    rows = []
    with track(len(kinds), f"paths of {len(next(iter(a.values())))} pairs, {len(test.labels)} images", "path") as bar:
        for algorithm, end, mended in kinds:
            lams = torch.linspace(0, 1, 3 if mended == "repair" else points, dtype=torch.float64)
            found = path_metrics(model, a, end, lams, mended, inputs, test, device, chunk)
            for metric, values in found.items():
                rows += [(algorithm, mended, len(lams), node, metric, v) for node, v in enumerate(values.tolist())]
            bar.update()
    return rows


def path_metrics(
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
    """What is told of the paths between pairs (n, ...), by metric: (n,) each.

    Barriers by both definitions, their ends and midpoint, in loss (nats) and accuracy (a share); ``gain``, by how much
    the midpoint is better than the better end; and the barrier in loss over the ends and the midpoint with each at its
    own best softmax temperature, with those temperatures.
    """
    accuracy, loss, tempered, temperature = [], [], [], []
    for number, at in enumerate(_points(model, a, b, lams, mended, inputs)):
        answers = outputs(model, at, test.images, device, chunk, BATCH).double()
        accuracy.append((answers.argmax(-1) == test.labels).double().mean(-1))
        loss.append(torch.stack([cross_entropy(one, test.labels) for one in answers]))
        if number in (0, len(lams) // 2, len(lams) - 1):
            surer, degrees = temper(answers, test.labels)
            tempered.append(torch.stack([nll_loss(one, test.labels) for one in surer]))
            temperature.append(degrees)
    found = {}
    for metric, values, sign in (("loss", torch.stack(loss, 1), 1), ("accuracy", torch.stack(accuracy, 1), -1)):
        ends, midpoint = values[:, [0, -1]], values[:, len(lams) // 2]
        from_mean, above_line = barrier(sign * values, lams)
        found |= {f"{metric}_barrier": from_mean, f"{metric}_above_line": above_line}
        found |= {f"{metric}_ends": ends.mean(1), f"{metric}_midpoint": midpoint}
        found[f"{metric}_gain"] = (sign * ends).amin(1) - sign * midpoint
    found["loss_barrier_tempered"] = barrier(torch.stack(tempered, 1), torch.tensor([0, 0.5, 1]))[0]
    start, middle, end = temperature
    return found | {"temperature_ends": (start + end) / 2, "temperature_midpoint": middle}


def _points(
    model: nn.Module, a: Weights, b: Weights, lams: Tensor, mended: str, inputs: Tensor
) -> Iterable[dict[str, Tensor]]:
    """The points of the paths, (n, ...) each, mended."""
    points = (interpolate(a, b, lam) for lam in lams.tolist())
    if mended == "reset":
        # All at once: every call exports the model.
        along = list(points)
        reset = reset_norms(model, {key: torch.stack([at[key] for at in along]) for key in a}, inputs)
        return [{key: tensor[i] for key, tensor in reset.items()} for i in range(len(along))]
    if mended == "repair":
        start, midpoint, end = points
        return start, repair(model, midpoint, {key: torch.stack([a[key], b[key]], 1) for key in a}, inputs), end
    return points
