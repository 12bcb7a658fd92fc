"""Measure what merging does to weights and to the networks' steepness: norms, Lipschitz bounds, certified radii."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from rebasin.lab.cache import cached, code_fingerprint, content, fingerprint
from rebasin.lab.comparison import Group
from rebasin.lab.data import Split
from rebasin.lab.device import pick_device
from rebasin.lab.lipschitz import (
    averaged_bound,
    certified_radius,
    eclipse_fast,
    gradient_norms,
    layer_matrices,
    spectral_norms,
    spectral_product,
)
from rebasin.lab.norms import layer_norms, parameter_norm, predicted_norm
from rebasin.permutation import Weights
from rebasin.progress import track

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
    leaf_norms = parameter_norm(leaves)
    with track(len(groups), "norms and bounds", "group") as bar:
        for group in groups:
            kind = (group.algorithm, group.n_leaves, group.strength)
            found = _measured(group, split, gradient_images, device, chunk)
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


def _measured(
    group: Group, split: Split, gradient_images: int, device: str, chunk: int
) -> dict[str, dict[str, Tensor] | Tensor]:
    """What is measured of each node of a group, from the cache where it was measured before."""
    pixels = split.images.float() / 255
    code = code_fingerprint("rebasin.lab.lipschitz", "rebasin.lab.norms", "rebasin.lab.regularisation")
    key = fingerprint(content(group.weights), content({"pixels": pixels}), gradient_images, code)

    def measure() -> dict[str, dict[str, Tensor] | Tensor]:
        norms = layer_norms(group.weights)
        # One network at a time: its matrices in float64 are the largest thing in memory.
        bounds: dict[str, list[Tensor]] = {}
        spectral = []
        for position in range(len(group.nodes)):
            one = {
                key: tensor[position : position + 1].to(pick_device(device)) for key, tensor in group.weights.items()
            }
            matrices = layer_matrices(group.model.to(pick_device(device)), one)
            for name, bound in (
                ("lipschitz", eclipse_fast), ("averaged_bound", averaged_bound), ("spectral_product", spectral_product)
            ):  # fmt: skip
                bounds.setdefault(name, []).append(bound(matrices).cpu())
            spectral.append(torch.cat([spectral_norms(matrix).cpu() for matrix in matrices]))
        metrics = {name: torch.cat(each) for name, each in bounds.items()}
        metrics |= {f"{metric}_norm": values for (layer, metric), values in norms.items() if layer == "all"}
        metrics["parameter_norm"] = parameter_norm(group.weights)
        slopes = gradient_norms(group.model, group.weights, pixels[:gradient_images], device, chunk)
        metrics["largest_gradient"], metrics["median_gradient"] = slopes.amax(1), slopes.median(1).values
        logits = _logits(group, pixels, device, chunk)
        radii = certified_radius(logits, split.labels, metrics["lipschitz"])
        right = radii > 0
        # The margin of the correctly classified follows from the radius: radius = margin / (sqrt 2 bound).
        metrics["median_radius"] = torch.where(right, radii, torch.nan).nanmedian(1).values
        metrics["median_margin"] = metrics["median_radius"] * metrics["lipschitz"] * 2**0.5
        names = [layer for layer, metric in norms if metric == "l2" and layer != "all"]
        layers = {f"{layer} {metric}": values for (layer, metric), values in norms.items() if layer != "all"}
        layers |= {f"{layer} spectral": values for layer, values in zip(names, torch.stack(spectral, 1), strict=True)}
        return {"metrics": metrics, "layers": layers, "radii": radii}

    return cached("regularity", key, measure)


@torch.no_grad()
def _logits(group: Group, pixels: Tensor, device: str, chunk: int) -> Tensor:
    """What a group's nodes (n, ...) say of images (m, ...): (n, m, classes), on the CPU."""
    device = pick_device(device)
    model, pixels = group.model.to(device).eval(), pixels.to(device)
    outputs = vmap(lambda one: functional_call(model, one, (pixels,)))
    parts = []
    for start in range(0, len(group.nodes), chunk):
        some = {key: tensor[start : start + chunk].to(device) for key, tensor in group.weights.items()}
        parts.append(outputs(some).cpu())
    return torch.cat(parts)
