"""The layers of a merge by least squares in closed form, each so that it gives what its models' layers gave."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rebasin.merging.expansion import Heads, expand, output_keys
from rebasin.merging.grams import Grams
from rebasin.merging.layout import blocks_of, whole
from rebasin.merging.normal_equations import Equations, Layout, Objective, equations_of, layout_of
from rebasin.merging.slots import Slots

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

    Raises ValueError for slots of other models. Warns of layers with fewer rows of data than unknowns.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> grams = rebasin.collect(spec, models, torch.randn(100, 3))
    >>> slots = rebasin.Slots.of_permutation(rebasin.Permutation.identity(spec, (2,)))
    >>> weights, fits = least_squares(grams, slots)
    >>> all(fit.after <= fit.before for fit in fits.values())
    True
    """
    if objective not in get_args(Objective):
        raise ValueError(f"the objective is 'averaged' or 'stacked', not {objective!r}")
    if slots.spec != grams.spec or slots.n != grams.n:
        raise ValueError(f"the slots are not of the {grams.n} models that the Gram matrices are of")
    weights = expand(slots, grams.weights, grams.program, heads=heads)
    stacked = output_keys(grams.program) if heads == "side by side" else frozenset()
    fits = {}
    for key, layer in grams.layers.items():
        layout = layout_of(slots, layer, grams.weights, stacked=key in stacked)
        # (outputs, columns), the bias as the last column.
        blocks = weights[key].shape[0] * layer.blocks // grams.weights[key].shape[1] if layer.blocks > 1 else 1
        around = whole(weights[key], blocks)
        start = around.flatten(1).to(layer.gram)
        if layer.bias is not None:
            start = torch.cat([start, weights[layer.bias].to(start).unsqueeze(-1)], 1)
        equations = equations_of(layer, layout, grams.weights, start, objective)
        change, fits[key] = solve(layout, equations)
        fitted = (start + change).to(weights[key])
        if layer.bias is not None:
            weights[layer.bias] = fitted[:, -1]
            fitted = fitted[:, :-1]
        weights[key] = blocks_of(fitted.reshape(around.shape), blocks)
    _warn_of_little_data(grams, fits)
    return weights, fits


def solve(layout: Layout, equations: Sequence[Equations]) -> tuple[Tensor, Fit]:
    """The change (outputs, columns) of a layer's weight that least squares make, and how it was chosen."""
    pairs = list(zip(layout.allowed, layout.owners, strict=True))
    parts = [_restricted(equations, rows, columns, owners) for (rows, columns), owners in pairs]
    energy, before = (sum(float(getattr(part, name)[1].sum()) for part in parts) for name in ("energy", "left"))
    strength, after = float("inf"), before
    for ridge in STRENGTHS:
        changes = [_ridge_solution(part.gram[0], part.pull[0], ridge) for part in parts]
        if all(change is not None for change in changes):
            left = sum(_left(part, change) for part, change in zip(parts, changes, strict=True) if change is not None)
            if left < after:
                strength, after = ridge, left
    total = torch.zeros_like(equations[0].pull[0])
    for (rows, columns), part in zip(layout.allowed, parts, strict=True):
        change = _ridge_solution(part.gram.sum(0), part.pull.sum(0), strength)
        if change is not None and strength < float("inf"):
            total[rows.to(total.device).unsqueeze(-1), columns.to(total.device)] = change
    share = 1 / energy if energy > 0 else 0.0
    rows_of_data = min(int(part.count[0]) for part in parts)
    return total, Fit(strength, before * share, after * share, rows_of_data, max(len(part.gram[0]) for part in parts))


def _restricted(equations: Sequence[Equations], rows: Tensor, columns: Tensor, owners: Sequence[int]) -> Equations:
    """The equations of some outputs, which read these columns, from the data of the models that own them."""
    own = [some for some in equations if set(some.models) & set(owners)]
    zero = torch.zeros((), dtype=own[0].gram.dtype, device=own[0].gram.device)
    rows, columns = rows.to(zero.device), columns.to(zero.device)
    return Equations(
        tuple(owners),
        gram=sum((some.gram[:, columns.unsqueeze(-1), columns] for some in own), zero),
        pull=sum((some.pull[:, rows.unsqueeze(-1), columns] for some in own), zero),
        left=sum((some.left[:, rows] for some in own), zero),
        energy=sum((some.energy[:, rows] for some in own), zero),
        count=torch.stack([some.count for some in own]).sum(0),
    )


def _ridge_solution(gram: Tensor, pull: Tensor, ridge: float) -> Tensor | None:
    """The change (outputs, columns) that leaves the least of the targets, plus its own size in the ridge's measure.

    None if rounding made the matrix indefinite, which a stronger ridge mends.
    """
    diagonal = gram.diagonal()
    factor, failed = torch.linalg.cholesky_ex(gram + torch.diag(ridge * diagonal.clamp(min=FLOOR * diagonal.max())))
    return None if failed else torch.cholesky_solve(pull.T, factor).T


def _left(part: Equations, change: Tensor) -> float:
    """What a change leaves of the targets on the images held back, a sum of squares."""
    squares = ((change @ part.gram[1]) * change).sum() - 2 * (change * part.pull[1]).sum()
    return float(part.left[1].sum() + squares)


def _warn_of_little_data(grams: Grams, fits: dict[str, Fit]) -> None:
    """Warn if a layer that errs has fewer rows of data than unknowns."""
    erring = {key: fit for key, fit in fits.items() if fit.before > ROUNDING}
    short = {key: fit.unknowns / max(1, fit.rows) for key, fit in erring.items() if fit.rows < fit.unknowns}
    if short:
        key = max(short, key=short.__getitem__)
        warnings.warn(
            f"{len(short)} layers have more unknowns than rows of data, most of all {key!r} with {fits[key].unknowns} "
            f"and {fits[key].rows}: collect the Gram matrices of {int(grams.images * short[key]) + 1} images or more",
            stacklevel=3,
        )
