"""Pairs of transformers brought together in many ways: what stays of the barrier on the line between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.bookkeeping.cache import kept
from lab.images import Split
from lab.measures.pairs import permutation_between
from lab.measures.paths import evaluate_path, path_metrics
from lab.measures.rotations import (
    held,
    largest_change,
    match_by_activations,
    match_by_weights,
    match_straight_through,
    procrustes,
    reordering,
    stream_of,
)
from lab.networks.rewritten import Transformer, without_layer_norm
from lab.training.plan import Planned
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights, over, take

TRANSFORMERS = ("vit", "vit2", "language")  # of lab.networks
PROVED_ON = 4  # inputs
MOST_CHANGE = 1e-9  # of the largest output, in float64: what rounding makes is a thousandth of it


@dataclass(frozen=True)
class Way:
    """How the second network of a pair is brought to the first.

    ``form`` is what both are written with, LayerNorm or RMSNorm; ``matcher`` what units are matched by; ``stream`` what
    is done to the residual stream: it is matched like other units, held, turned, or turned with all inside heads.
    ``permuted`` is the control of turning: the same steps from the same starts, with a permutation for each rotation.
    """

    form: str
    matcher: str
    stream: str


BEST = {"permuted": reordering, "turned": procrustes, "turned with heads": procrustes}

WAYS = (
    Way("LayerNorm", "none", "held"),
    Way("LayerNorm", "activations", "matched"),
    Way("LayerNorm", "activations", "held"),
    Way("LayerNorm", "correlation", "matched"),
    Way("LayerNorm", "correlation", "held"),
    Way("LayerNorm", "weights", "matched"),
    Way("LayerNorm", "weights", "held"),
    Way("LayerNorm", "straight-through", "matched"),
    Way("RMSNorm", "none", "held"),
    Way("RMSNorm", "weights", "matched"),
    Way("RMSNorm", "activations", "permuted"),
    Way("RMSNorm", "weights", "permuted"),
    Way("RMSNorm", "straight-through", "permuted"),
    Way("RMSNorm", "activations", "turned"),
    Way("RMSNorm", "weights", "turned"),
    Way("RMSNorm", "weights", "turned with heads"),
    Way("RMSNorm", "straight-through", "turned"),
    Way("RMSNorm", "straight-through", "turned with heads"),
)


@dataclass(frozen=True)
class Settings:
    """What all ways have alike: the images to match on, and straight-through matching's epochs over them."""

    images: Split
    epochs: int
    batch_size: int
    seed: int
    device: str
    chunk: int


def check_transformers(plan: Sequence[Planned]) -> None:
    """Raise ValueError, before anything is trained, for networks that are no transformers, or that are listed twice."""
    names = [planned.name for planned in plan]
    for planned in plan:
        if planned.recipe.architecture not in TRANSFORMERS:
            known = ", ".join(TRANSFORMERS)
            raise ValueError(
                f"{planned.recipe.architecture!r} of {planned.name!r} is no transformer: there are {known}"
            )
        if names.count(planned.name) > 1 or len(planned.epochs) > 1:
            raise ValueError(f"recipe {planned.name!r} must be listed once, with one number of epochs")


@dataclass(frozen=True)
class Form:
    """Pairs a and b (pairs, ...), in float64, of a ``model`` that is written with one kind of norm, and its spec."""

    model: Transformer
    spec: PermutationSpec
    a: dict[str, Tensor]
    b: dict[str, Tensor]


def lines_and_barriers(
    model: Transformer, weights: Weights, test: Split, points: int, settings: Settings, ways: Sequence[Way] = WAYS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Networks (n, ...) 0 and 1, 2 and 3, ... brought together in every way: what lies between them on the test images.

    Both tables have the columns of a ``Way``, node (the pair), metric and value, and the first lam, the place on the
    line. The second has the metrics of ``path_metrics``, and ``change``, by how much of its largest output the second
    network computes something else in float64 than it did. Raises RuntimeError where that is more than rounding.
    """
    a, b = (take(weights, slice(first, None, 2)) for first in (0, 1))
    forms = {name: in_form(name, model, a, b, settings.images.pixels[:2]) for name in {way.form: None for way in ways}}
    lams = torch.tensor([step / (points - 1) for step in range(points)], dtype=torch.float64)
    lines: list[dict[str, Any]] = []
    barriers: list[dict[str, Any]] = []
    with track(len(ways), f"{len(next(iter(a.values())))} pairs of transformers", "way") as bar:
        for way in ways:
            form = forms[way.form]
            moved = brought(form, way, settings)
            change = largest_change(model, b, form.model, moved, settings.images.pixels[:PROVED_ON])
            if change.max() > MOST_CHANGE:
                raise RuntimeError(f"{way}: outputs change by {change.max():.2g} of the largest: it is no symmetry")
            single = over(form.a, Tensor.float), over(moved, Tensor.float)
            line = along(form.model, *single, lams, test, settings.device, settings.chunk)
            for metric, values in line.items():  # (pairs, points)
                for node, of_pair in enumerate(values.tolist()):
                    kind = asdict(way) | {"node": node, "metric": metric}
                    lines += [kind | {"lam": lam, "value": at} for lam, at in zip(lams.tolist(), of_pair, strict=True)]
            metrics = path_metrics(line["loss"], line["accuracy"], lams) | {"change": change}
            for metric, values in metrics.items():  # (pairs,)
                kind = asdict(way) | {"metric": metric}
                barriers += [kind | {"node": node, "value": value} for node, value in enumerate(values.tolist())]
            bar.update()
    return pd.DataFrame(lines), pd.DataFrame(barriers)


def in_form(name: str, model: Transformer, a: Weights, b: Weights, example: Tensor) -> Form:
    """Pairs (pairs, ...) written with ``LayerNorm``, as they are, or ``RMSNorm``."""
    first, second = over(a, Tensor.double), over(b, Tensor.double)
    if name == "RMSNorm":
        _, first = without_layer_norm(model, first)
        model, second = without_layer_norm(model, second)
    return Form(model, trace(model, example), first, second)


def brought(form: Form, way: Way, settings: Settings) -> dict[str, Tensor]:
    """The second networks (pairs, ...), in float64, as a way brings them to the first."""
    if way.stream in BEST:
        learning = settings.images, settings.epochs, settings.batch_size, settings.seed
        return step_by_step(form.model, form.spec, form.a, form.b, way.matcher, way.stream, *learning)
    spec = held(form.spec, [stream_of(form.spec)]) if way.stream == "held" else form.spec
    single = over(form.a, Tensor.float), over(form.b, Tensor.float)
    return permutation_between(way.matcher, spec, form.model, *single, **vars(settings)).apply(form.b)


@kept
def step_by_step(
    model: Transformer,
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    matcher: str,
    stream: str,
    images: Split,
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, Tensor]:
    """b (pairs, ...), in float64, with its ``stream`` mapped as this kind of ``Way`` says, and all else permuted.

    Each matcher starts where the one before ends: by activations, by weights, straight through.
    """
    best = BEST[stream]
    if matcher == "activations":
        return match_by_activations(spec, best, model, a, b, images.pixels)
    groups = [stream_of(spec), *(spec.inside if stream == "turned with heads" else ())]
    same = images, epochs, batch_size, seed
    if matcher == "weights":
        # From a permutation of the stream, turning would end with a smaller inner product: rotations are caught nearby.
        # By activations nothing is turned inside heads.
        first = "permuted" if stream == "permuted" else "turned"
        start = step_by_step(model, spec, a, b, "activations", first, *same)
        return match_by_weights(spec, groups, best, a, start, seed)
    start = step_by_step(model, spec, a, b, "weights", stream, *same)
    return match_straight_through(spec, groups, best, model, a, start, images, epochs, batch_size, seed)


@kept
def along(
    model: Transformer, a: Weights, b: Weights, lams: Tensor, test: Split, device: str, chunk: int
) -> dict[str, Tensor]:
    """Loss and accuracy along the lines from a to b (pairs, ...): (pairs, points) each."""
    accuracy, loss = evaluate_path(model, a, b, lams, test, device, chunk)
    return {"loss": loss, "accuracy": accuracy}
