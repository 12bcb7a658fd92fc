"""Measure what merging does to weights and to the networks' steepness: norms, Lipschitz bounds, certified radii."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.bookkeeping.vocabulary import GREY_LEVELS, KIND
from lab.controls import Group
from lab.device import pick_device
from lab.images import Split
from lab.measures.lipschitz import (
    averaged_bound,
    bounds_hold,
    certified_radius,
    eclipse_fast,
    gradient_norms,
    layer_matrices,
    spectral_norms,
    spectral_product,
)
from lab.measures.norms import layer_norms, parameter_norm, predicted_norm
from lab.outputs import outputs
from rebasin.progress import track
from rebasin.weights import Weights, take, to

# Grey levels in L2 at which certified accuracy is measured.
RADII = (0.0, *(round(10 ** (exponent / 8), 4) for exponent in range(-16, 9)))
BOUNDS = {"lipschitz": eclipse_fast, "averaged_bound": averaged_bound, "spectral_product": spectral_product}


def regularity(
    groups: Sequence[Group], leaves: Weights, split: Split, gradient_images: int, device: str, chunk: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Norms, bounds and certified radii of each group's nodes, on a split's images; the gradients on its first ones.

    ``leaves`` (n, ...) are all that any node is made of. The tables have a row per node and metric, per node, layer and
    metric, and per node and radius (grey levels in L2, with the share of images certified there). Bounds and radii are
    those of multilayer perceptrons; networks of another architecture have the rest.
    """
    nodes, layers, radii = [], [], []
    pixels = split.pixels
    calls = [
        (group.model, group.weights, pixels, split.labels, gradient_images, pick_device(device), chunk)
        for group in groups
    ]
    found = each(norms_and_bounds, calls, "norms and bounds")
    with track(len(groups), "norms and bounds", "group") as bar:
        for group, measured in zip(groups, found, strict=True):
            metrics = measured["metrics"]
            if not group.alignment.isnan().any():
                norms = parameter_norm(parameters(group.model, leaves))
                own = [norms[node * group.n_leaves : (node + 1) * group.n_leaves] for node in group.nodes]
                metrics["predicted_norm"] = predicted_norm(torch.stack(own), group.alignment)
            for position, node in enumerate(group.nodes):
                kind = (*group.kind, node)
                nodes += [(*kind, metric, float(values[position])) for metric, values in metrics.items()]
                layers += [(*kind, *key, float(values[position])) for key, values in measured["layers"].items()]
                if "radii" in measured:
                    certified = measured["radii"][position]
                    radii += [(*kind, at, float((certified > at / GREY_LEVELS).double().mean())) for at in RADII]
            bar.update()
    return (
        pd.DataFrame(nodes, columns=[*KIND, "node", "metric", "value"]),
        pd.DataFrame(layers, columns=[*KIND, "node", "layer", "metric", "value"]),
        pd.DataFrame(radii, columns=[*KIND, "node", "radius", "value"]),
    )


def parameters(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The entries of weights that are trained: not the statistics of norms."""
    return {name: weights[name] for name, _ in model.named_parameters()}


@kept
def norms_and_bounds(
    model: nn.Module, weights: Weights, pixels: Tensor, labels: Tensor, gradient_images: int, device: str, chunk: int
) -> dict[str, dict[str, Tensor] | dict[tuple[str, str], Tensor] | Tensor]:
    """What is measured of each network (n, ...), on images (m, ...) and the first of them.

    ``metrics`` by name and ``layers`` by layer and metric are (n,); ``radii``, where bounds hold, are (n, m).
    """
    model = copy.deepcopy(model).to(device)
    norms = layer_norms(parameters(model, weights))
    metrics, layers = {}, {key: values for key, values in norms.items() if key[0] != "all"}
    if bounds_hold(model):
        metrics, spectral = _bounds(model, weights, device)
        names = [layer for layer, metric in layers if metric == "l2"]
        layers |= {(layer, "spectral"): values for layer, values in zip(names, spectral, strict=True)}
    metrics |= {f"{metric}_norm": values for (layer, metric), values in norms.items() if layer == "all"}
    metrics["parameter_norm"] = parameter_norm(parameters(model, weights))
    slopes = gradient_norms(model, weights, pixels[:gradient_images], device, chunk)
    metrics["largest_gradient"], metrics["median_gradient"] = slopes.amax(1), slopes.median(1).values
    logits = outputs(model, weights, pixels, device, chunk, len(pixels))
    if not bounds_hold(model):
        # Of a bound of 1 / sqrt 2 the radius is the margin: radius = margin / (sqrt 2 bound).
        bound = torch.full_like(metrics["parameter_norm"], 1 / math.sqrt(2))
        metrics["median_margin"] = _median_of_positive(certified_radius(logits, labels, bound))
        return {"metrics": metrics, "layers": layers}
    radii = certified_radius(logits, labels, metrics["lipschitz"])
    metrics["median_radius"] = _median_of_positive(radii)
    metrics["median_margin"] = metrics["median_radius"] * metrics["lipschitz"] * 2**0.5
    return {"metrics": metrics, "layers": layers, "radii": radii}


def _bounds(model: nn.Module, weights: Weights, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Each of ``BOUNDS`` of networks (n, ...), by name, (n,), and their layers' spectral norms, (layers, n)."""
    bounds: dict[str, list[Tensor]] = {name: [] for name in BOUNDS}
    spectral = []
    # One network at a time: its matrices in float64 are the largest thing in memory.
    for position in range(len(next(iter(weights.values())))):
        alone = to(take(weights, slice(position, position + 1)), device)
        matrices = layer_matrices(model, alone)
        for name, bound in BOUNDS.items():
            bounds[name].append(bound(matrices).cpu())
        spectral.append(torch.cat([spectral_norms(matrix).cpu() for matrix in matrices]))
    return {name: torch.cat(values) for name, values in bounds.items()}, torch.stack(spectral, 1)


def _median_of_positive(values: Tensor) -> Tensor:
    """The median of the positive values (n, m) of each network, those of the images that it gets right: (n,)."""
    return torch.where(values > 0, values, torch.nan).nanmedian(1).values
