"""The layers of a merge by least squares in closed form, each so that it gives what its models' layers gave."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rebasin.arguments import check_choice
from rebasin.expanding.expansion import Heads, expand, output_keys
from rebasin.expanding.layout import blocks_of, whole
from rebasin.expanding.slots import Slots
from rebasin.fitting.grams import Grams, LayerGram, check_grams
from rebasin.fitting.normal_equations import Equations, Layout, Objective, equations_of, layout_of, restricted
from rebasin.weights import Weights

# Ridges to choose from, as shares of each column's sum of squares.
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Of the largest sum of squares, what a column has at least for its ridge: units that are dead stay as they are.
FLOOR = 1e-12
# What a layer leaves of its targets, as a share of their squares, if rounding is all.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Fit:
    """How one layer was fitted.

    - ``strength``: of the ridge; infinite if no ridge was better than the averaged weights on the images held back.
    - ``before``, ``after``: what the averaged and what the fitted weights leave of the targets on the images held
      back, when fitted to the others, as a share of the targets' sum of squares.
    - ``rows``, ``unknowns``: the rows of data that were fitted, and the most unknowns of an output.
    """

    strength: float
    before: float
    after: float
    rows: int
    unknowns: int


@torch.no_grad()
def least_squares(
    grams: Grams, slots: Slots, *, objective: Objective = "averaged", heads: Heads = "shared"
) -> tuple[dict[str, Tensor], dict[str, Fit]]:
    """The dense weights of a merge, its linear layers and convolutions fitted, and how each was fitted.

    A layer of the merge reads the mean of the units that share a slot, and should give the mean of what the models'
    layers gave for them: ``"averaged"``, PLeaS (Nasery et al. 2024, section 3). ``"stacked"`` fits each model's own
    rows instead, one below the other, in the slots that it owns: RegMean (Jin et al. 2023, equation 2), which is what
    it is for the slots of ``Slots.of_permutation(Permutation.identity(...))``. Weights between slots without a common
    owner stay 0. The ridge pulls towards the weights that ``expand`` gives, so that a merge without error stays as it
    is and what the data do not tell is averaged. Its strength is chosen by the images that ``collect`` held back; then
    all images are fitted. All other entries are those of ``expand``.

    Raises ValueError for slots of other models, TypeError for what are no slots or Gram matrices. Warns of layers with
    fewer rows of data than unknowns.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> grams = rebasin.collect(spec, models, torch.randn(100, 3))
    >>> slots = rebasin.Slots.of_permutation(rebasin.Permutation.identity(spec, (2,)))
    >>> weights, fits = least_squares(grams, slots)
    >>> all(fit.after <= fit.before for fit in fits.values())
    True
    """
    check_grams(grams, "least_squares(grams, slots)")
    if not isinstance(slots, Slots):
        raise TypeError(f"slots must be Slots, got {type(slots).__name__}")
    check_choice(objective, "objective", get_args(Objective))
    check_choice(heads, "heads", get_args(Heads))
    if slots.spec != grams.spec or slots.n != grams.n:
        raise ValueError(f"the slots are not of the {grams.n} models that the Gram matrices are of")
    weights = expand(slots, grams.weights, grams.program, heads=heads)
    stacked = output_keys(grams.program) if heads == "side by side" else frozenset()
    fits = {}
    for key, layer in grams.layers.items():
        layout = layout_of(slots, layer, grams.weights, stacked=key in stacked)
        if _is_exact(layer, layout, objective):
            fits[key] = Fit(float("inf"), 0.0, 0.0, int(layer.rows[0]), layout.members.shape[1])
            continue
        start = flat_weight(weights, layer, grams.weights)
        fitted, fits[key] = solve(layout, equations_of(layer, layout, grams.weights, objective), start)
        put_back(fitted, weights, layer, grams.weights)
    _warn_of_little_data(grams, fits)
    return weights, fits


def _is_exact(layer: LayerGram, layout: Layout, objective: Objective) -> bool:
    """Whether the averaged weights solve a layer: all models read the same, and a slot's target is linear in that.

    Where models are stacked, a slot that two units of one model share has the mean over models for its solution, and
    not that over units.
    """
    if not layer.alike or not bool((layout.columns == layout.columns[0]).all()):
        return False
    return objective == "averaged" or all(len(rows.unique()) == len(rows) for rows in layout.rows)


def flat_weight(merged: Weights, layer: LayerGram, models: Weights) -> Tensor:
    """The weight (outputs, columns) of a layer of a merge of ``models`` (n, ...), its bias as the last column."""
    flat = whole(merged[layer.weight], _merged_blocks(merged, layer, models)).flatten(1).to(layer.gram)
    if layer.bias is None:
        return flat
    return torch.cat([flat, merged[layer.bias].to(flat).unsqueeze(-1)], 1)


def put_back(flat: Tensor, merged: dict[str, Tensor], layer: LayerGram, models: Weights) -> None:
    """Set a layer of a merge to a weight (outputs, columns) as ``flat_weight`` gives it."""
    blocks = _merged_blocks(merged, layer, models)
    shape = whole(merged[layer.weight], blocks).shape
    flat = flat.to(merged[layer.weight])
    if layer.bias is not None:
        merged[layer.bias] = flat[:, -1]
        flat = flat[:, :-1]
    merged[layer.weight] = blocks_of(flat.reshape(shape), blocks)


def _merged_blocks(merged: Weights, layer: LayerGram, models: Weights) -> int:
    """How many channel groups a layer of a merge has: as many outputs each as in the models."""
    return merged[layer.weight].shape[0] * layer.blocks // models[layer.weight].shape[1] if layer.blocks > 1 else 1


def solve(layout: Layout, equations: Sequence[Equations], start: Tensor) -> tuple[Tensor, Fit]:
    """The weight (outputs, columns) that least squares make of ``start``, and how it was chosen."""
    pairs = list(zip(layout.allowed, layout.owners, strict=True))
    parts = [restricted(equations, layout, rows, columns, owners) for (rows, columns), owners in pairs]
    starts = [start[rows.unsqueeze(-1), columns] for rows, columns in layout.allowed]
    energy = sum(float(part.energy[1].sum()) for part in parts)
    before = sum(_left(part, weight) for part, weight in zip(parts, starts, strict=True))
    strength, after = float("inf"), before
    systems = [_system(part, [0], weight) for part, weight in zip(parts, starts, strict=True)]
    for ridge in STRENGTHS:
        solutions = [_solution(*system, weight, ridge) for system, weight in zip(systems, starts, strict=True)]
        left = sum(_left(part, weight) for part, weight in zip(parts, solutions, strict=True))
        if left < after:
            strength, after = ridge, left
    fitted = start.clone()
    if strength < float("inf"):
        for (rows, columns), part, weight in zip(layout.allowed, parts, starts, strict=True):
            fitted[rows.unsqueeze(-1), columns] = _solution(*_system(part, [0, 1], weight), weight, strength)
    share = 1 / energy if energy > 0 else 0.0
    rows_of_data = min(int(part.count[0]) for part in parts)
    unknowns = max(part.gram.shape[-1] for part in parts)
    return fitted, Fit(strength, max(0.0, before * share), max(0.0, after * share), rows_of_data, unknowns)


def _system(part: Equations, halves: Sequence[int], start: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of these halves of the images, and what ``start`` leaves of the targets, times what is read."""
    gram, cross = part.gram[halves].sum(0), part.cross[halves].sum(0)
    return gram, cross - start @ gram


def _solution(gram: Tensor, residual: Tensor, start: Tensor, ridge: float) -> Tensor:
    """The weight (outputs, columns) that solves a ``_system``, as close to ``start`` as the ridge asks.

    Where rounding made the matrix indefinite, the ridge grows.
    """
    diagonal = gram.diagonal()
    scale = diagonal.clamp(min=FLOOR * float(diagonal.max()))
    factor, failed = torch.linalg.cholesky_ex(_with_ridge(gram, ridge * scale))
    while failed:
        if not scale.any():
            return start  # nothing was read
        ridge = max(10 * ridge, FLOOR)
        factor, failed = torch.linalg.cholesky_ex(_with_ridge(gram, ridge * scale))
    return start + torch.cholesky_solve(residual.T, factor).T


def _with_ridge(gram: Tensor, ridge: Tensor) -> Tensor:
    """A Gram matrix with these numbers added to its diagonal."""
    matrix = gram.clone()
    matrix.diagonal().add_(ridge)
    return matrix


def _left(part: Equations, weight: Tensor) -> float:
    """What a weight leaves of the targets on the images held back, a sum of squares."""
    return float(part.energy[1].sum() + ((weight @ part.gram[1] - 2 * part.cross[1]) * weight).sum())


def _warn_of_little_data(grams: Grams, fits: dict[str, Fit]) -> None:
    """Warn if a layer that errs has fewer rows of data than unknowns."""
    erring = {key: fit for key, fit in fits.items() if fit.before > ROUNDING}
    short = {key: fit.unknowns / max(1, fit.rows) for key, fit in erring.items() if fit.rows < fit.unknowns}
    if short:
        key = max(short, key=short.__getitem__)
        warnings.warn(
            f"{key!r} has {fits[key].unknowns} unknowns for each output and {fits[key].rows} rows of data: "
            f"collect the Gram matrices of {int(grams.images * short[key]) + 1} images or more",
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """How far above the function that asks is the first one outside of this package, and of torch's decorators."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("rebasin", "torch"):
        level, frame = level + 1, frame.f_back
    return level + 1
