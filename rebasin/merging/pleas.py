"""PLeaS: units that are alike are merged, the others kept apart, and every layer is fitted by least squares."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from rebasin.arguments import check_choice, check_number
from rebasin.expanding.costs import Measure, graph_costs
from rebasin.expanding.expanded import Expanded, expand_network, kept_whole
from rebasin.expanding.expansion import Heads, read_axes
from rebasin.expanding.slots import Slots
from rebasin.fitting.alignment import match_grams, mismatch
from rebasin.fitting.grams import Grams, check_grams
from rebasin.fitting.least_squares import ROUNDING, Fit, least_squares
from rebasin.fitting.norm_statistics import measure_norms
from rebasin.fitting.normal_equations import Objective
from rebasin.matching import Matching
from rebasin.merging.budget import Budget, best_budget
from rebasin.merging.gains import mismatch_gains
from rebasin.merging.mending import norms_of
from rebasin.permutation import Permutation
from rebasin.spec import check_groups


@dataclass(frozen=True, eq=False, repr=False)
class Fitted:
    """A merge whose layers were fitted by least squares.

    - ``model``: the merged network, a module; ``merge(x)`` is ``merge.model(x)``.
    - ``slots``: which unit of it each unit of each model went into.
    - ``fits``: how each layer was fitted, by the key of its weight.
    - ``budget``: how its widths were chosen; None if they were given.
    """

    model: Expanded
    slots: Slots
    fits: Mapping[str, Fit]
    budget: Budget | None = None

    def __call__(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.model(*inputs, **named)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the merged network to a ``.pt2`` file, which runs without this package: see ``Expanded.save``."""
        self.model.save(path)

    def __repr__(self) -> str:
        before = sum(fit.before for fit in self.fits.values())
        after = sum(fit.after for fit in self.fits.values())
        share = f"{after / before:.0%}" if before > ROUNDING else "0%"
        return f"Fitted({self.model.in_words()}; errors of its layers {share} of the average's)"


def pleas(
    grams: Grams,
    *,
    size: float = 1.0,
    by: Measure = "structured",
    permutation: Permutation | Matching | None = None,
    gains: Mapping[str, Tensor] | None = None,
    objective: Objective = "averaged",
    heads: Heads = "shared",
) -> Fitted:
    """Merge n models by partial permutations and least squares (PLeaS: Nasery et al. 2024).

    ``grams`` comes from ``collect``, and serves merges of every size. ``size`` is what the merge may cost, in multiples
    of one model, from 1, all units merged, to the n of the ensemble; it is counted ``by`` structured or dense
    multiply-adds or parameters. The steps:

    1. units are matched by what they answer, ``match_grams``, or as ``permutation`` says: a ``Matching`` of the second
       of two models to the first, or a permutation (n,);
    2. ``best_budget`` chooses how many units of each group to merge, by ``gains[group]`` (units + 1,), what keeping so
       many apart is worth; without, by ``mismatch``. Groups that the network cannot split are merged whole;
    3. of the aligned models, the units that lose least are merged: ``Slots.partial``;
    4. every layer is fitted, and norm statistics are measured: ``fit_slots``, which takes ``objective`` and ``heads``.

    Raises TypeError for anything but Gram matrices, ValueError for a size that no merge has, a permutation of other
    models, and what the steps raise. Warns of layers with fewer rows of data than unknowns.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> grams = rebasin.collect(spec, models, torch.randn(200, 3))
    >>> pleas(grams, size=1.5)
    Fitted(2 models, 2 groups, 16 + 16 -> ... units; size 1.4...; errors of its layers ...% of the average's)
    """
    check_choice(objective, "objective", get_args(Objective))
    check_grams(grams, "pleas(grams)")
    _check_norms(grams)
    read_axes(grams.spec, grams.program)  # raises for a layer that cannot be fitted
    slots, budget = choose_slots(grams, size=size, by=by, permutation=permutation, gains=gains, heads=heads)
    return fit_slots(grams, slots, objective=objective, heads=heads, budget=budget)


def choose_slots(
    grams: Grams,
    *,
    size: float = 1.0,
    by: Measure = "structured",
    permutation: Permutation | Matching | None = None,
    gains: Mapping[str, Tensor] | None = None,
    heads: Heads = "shared",
) -> tuple[Slots, Budget | None]:
    """Which units ``pleas`` merges, and how it chose how many: steps 1 to 3; at size 1 there is nothing to choose."""
    check_grams(grams, "pleas(grams)")
    check_number(size, "size")
    check_choice(heads, "heads", get_args(Heads))
    check_choice(by, "by", get_args(Measure))
    if not isinstance(permutation, Permutation | Matching | None):
        raise TypeError(f"permutation must be a Permutation or a Matching, got {type(permutation).__name__}")
    spec, size = grams.spec, float(size)
    if not 1 <= size <= grams.n:
        raise ValueError(f"no merge of {grams.n} models has size {size:g}: it goes from 1 to {grams.n}")
    check_groups(spec)
    permutation = match_grams(grams) if permutation is None else of_both(permutation)
    if permutation.spec != spec or permutation.batch != (grams.n,):
        raise ValueError(f"the permutation is not of the {grams.n} models that the Gram matrices are of")
    if size == 1:
        return Slots.of_permutation(permutation), None
    lost = mismatch(grams, permutation)
    whole = kept_whole(spec, grams.model, grams.example)
    gains = mismatch_gains(lost) if gains is None else gains
    gains = {group: table for group, table in gains.items() if group not in whole}
    if not gains:
        raise ValueError("no group can be split: " + "; ".join(f"{g!r}, {reason}" for g, reason in whole.items()))
    budget = best_budget(spec, graph_costs(spec, grams.program, heads=heads), gains=gains, size=size, n=grams.n, by=by)
    return Slots.partial(permutation, budget.merged, {group: -values for group, values in lost.items()}), budget


def fit_slots(
    grams: Grams,
    slots: Slots,
    *,
    objective: Objective = "averaged",
    heads: Heads = "shared",
    budget: Budget | None = None,
) -> Fitted:
    """The merge with given slots, its layers fitted by ``least_squares``, and its norm statistics measured.

    So every merge can be mended: RegMean is ``fit_slots(grams, Slots.of_permutation(Permutation.identity(spec, (n,))),
    objective="stacked")``, and slots of ``zip_slots`` are ZipIt! with fitted layers. Running statistics are measured on
    the loader that ``grams`` was collected from.

    Raises ValueError if that can be read only once and there are norms with running statistics, and what
    ``least_squares`` and ``expand_network`` raise.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> grams = rebasin.collect(spec, models, torch.randn(200, 3))
    >>> merge = fit_slots(grams, rebasin.Slots.apart(spec, 2))
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(merge(x), (models[0](x) + models[1](x)) / 2, atol=1e-5)
    True
    """
    check_grams(grams, "fit_slots(grams, slots)")
    _check_norms(grams)
    weights, fits = least_squares(grams, slots, objective=objective, heads=heads)
    network = expand_network(slots, grams.model, grams.weights, example=grams.example, heads=heads)
    network = network.with_weights(weights)
    if norms_of(grams.program):
        network = measure_norms(network, grams.loader)
    return Fitted(network, slots, fits, budget)


def _check_norms(grams: Grams) -> None:
    """Raise ValueError if there are norms whose statistics cannot be measured."""
    if norms_of(grams.program) and isinstance(grams.loader, Iterator):
        raise ValueError(
            "norm statistics have to be measured, and the loader can be read only once: collect from a list"
        )


def of_both(permutation: Permutation | Matching) -> Permutation:
    """The permutation (2,) of both models of a matching, of which the first stays; one (n,) as it is.

    Raises ValueError for a matching of many pairs.
    """
    if isinstance(permutation, Permutation):
        return permutation
    second = permutation.permutation
    if second.batch:
        raise ValueError(
            f"the matching has the leading axes {tuple(second.batch)}: give that of one pair, match(spec, a, b)"
        )
    first = Permutation.identity(second.spec)
    indices = {group: torch.stack([first.indices[group].to(index), index]) for group, index in second.indices.items()}
    return Permutation(second.spec, indices)
