"""Measure what merging does to weights and to the networks' steepness: norms, Lipschitz bounds, certified radii."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.controls import Group
from lab.device import pick_device
from lab.images import Split
from lab.measures.lipschitz import (
    averaged_bound,
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
from rebasin.weights import Weights

GREY_LEVELS = 255
KINDS = ["algorithm", "n_leaves", "strength"]
# Grey levels in L2 at which certified accuracy is told.
RADII = (0.0, *(round(10 ** (exponent / 8), 4) for exponent in range(-16, 9)))


def regularity(
    groups: Sequence[Group], leaves: Weights, split: Split, gradient_images: int, device: str, chunk: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Norms, bounds and certified radii of each group's nodes, on a split's images; the gradients on its first ones.

    ``leaves`` (n, ...) are all that any node is made of. The tables have a row per node and metric, per node, layer and
    metric, and per node and radius (grey levels in L2, with the share of images certified there).
    """
    nodes, layers, radii = [], [], []
    leaf_norms, pixels = parameter_norm(leaves), split.pixels
    with track(len(groups), "norms and bounds", "group") as bar:
        for group in groups:
            kind = (group.algorithm, group.n_leaves, group.strength)
            found = norms_and_bounds(
                group.model, group.weights, pixels, split.labels, gradient_images, pick_device(device), chunk
            )
            if not group.alignment.isnan().any():
                own = torch.stack([leaf_norms[k * group.n_leaves : (k + 1) * group.n_leaves] for k in group.nodes])
                found["metrics"]["predicted_norm"] = predicted_norm(own, group.alignment)
            for position, node in enumerate(group.nodes):
                nodes += [(*kind, node, metric, float(each[position])) for metric, each in found["metrics"].items()]
                layers += [
                    (*kind, node, *name.split(" "), float(each[position])) for name, each in found["layers"].items()
                ]
                certified = found["radii"][position]
                radii += [(*kind, node, at, float((certified > at / GREY_LEVELS).double().mean())) for at in RADII]
            bar.update()
    return (
        pd.DataFrame(nodes, columns=[*KINDS, "node", "metric", "value"]),
        pd.DataFrame(layers, columns=[*KINDS, "node", "layer", "metric", "value"]),
        pd.DataFrame(radii, columns=[*KINDS, "node", "radius", "value"]),
    )


@kept
def norms_and_bounds(
    model: nn.Module, weights: Weights, pixels: Tensor, labels: Tensor, gradient_images: int, device: str, chunk: int
) -> dict[str, dict[str, Tensor] | Tensor]:
    """What is measured of each network (n, ...), on images (m, ...) and the first of them."""
    model = copy.deepcopy(model).to(device)
    norms = layer_norms(weights)
    # One network at a time: its matrices in float64 are the largest thing in memory.
    bounds: dict[str, list[Tensor]] = {}
    spectral = []
    for position in range(len(next(iter(weights.values())))):
        one = {key: tensor[position : position + 1].to(device) for key, tensor in weights.items()}
        matrices = layer_matrices(model.to(device), one)
        for name, bound in (
            ("lipschitz", eclipse_fast), ("averaged_bound", averaged_bound), ("spectral_product", spectral_product)
        ):  # fmt: skip
            bounds.setdefault(name, []).append(bound(matrices).cpu())
        spectral.append(torch.cat([spectral_norms(matrix).cpu() for matrix in matrices]))
    metrics = {name: torch.cat(each) for name, each in bounds.items()}
    metrics |= {f"{metric}_norm": values for (layer, metric), values in norms.items() if layer == "all"}
    metrics["parameter_norm"] = parameter_norm(weights)
    slopes = gradient_norms(model, weights, pixels[:gradient_images], device, chunk)
    metrics["largest_gradient"], metrics["median_gradient"] = slopes.amax(1), slopes.median(1).values
    logits = outputs(model, weights, pixels, device, chunk, len(pixels))
    radii = certified_radius(logits, labels, metrics["lipschitz"])
    right = radii > 0
    # The margin of the correctly classified follows from the radius: radius = margin / (sqrt 2 bound).
    metrics["median_radius"] = torch.where(right, radii, torch.nan).nanmedian(1).values
    metrics["median_margin"] = metrics["median_radius"] * metrics["lipschitz"] * 2**0.5
    names = [layer for layer, metric in norms if metric == "l2" and layer != "all"]
    layers = {f"{layer} {metric}": values for (layer, metric), values in norms.items() if layer != "all"}
    layers |= {f"{layer} spectral": values for layer, values in zip(names, torch.stack(spectral, 1), strict=True)}
    return {"metrics": metrics, "layers": layers, "radii": radii}
