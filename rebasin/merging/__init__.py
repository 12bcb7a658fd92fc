"""Merging: many models into one. One door to every method; a method is a file here and an entry in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from rebasin.arguments import check_choice
from rebasin.merging.averaging import merge_mean
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.merging.mending import Mend, check_mend, mended_by
from rebasin.merging.record import Merge, merged_like
from rebasin.merging.universe import merge_universe
from rebasin.options import check_options, own_options
from rebasin.spec import PermutationSpec, check_spec
from rebasin.weights import Models, weights_of

Method = Literal["mean", "many", "hierarchy", "universe"]
METHODS: dict[str, Callable[..., Merge]] = {
    "mean": merge_mean,
    "many": merge_many,
    "hierarchy": merge_hierarchical,
    "universe": merge_universe,
}
MendAt = Literal["end", "every stage"]


def merge(
    spec: PermutationSpec,
    models: Models,
    *,
    by: Method = "hierarchy",
    mend: Mend | None = None,
    mend_at: MendAt = "end",
    **options: Any,
) -> Merge:
    """Merge many models into one.

    ``models`` is a list of modules or of dicts of tensors, or a dict of tensors (*batch, n, ...), of which each n are
    merged; nothing is modified. ``by`` names the method, and ``options`` are its own:

    - ``"mean"``, ``merge_mean``: the mean as they are;
    - ``"many"``, ``merge_many``: all at once, each matched to the mean of the others; ``seed=``, ``max_rounds=``;
    - ``"hierarchy"``, ``merge_hierarchical``: pairwise, stage by stage; ``seed=``, ``shuffle=``, ``chunk=``;
    - ``"universe"``, ``merge_universe``: all matched to one universe of units at once; ``max_sweeps=``, ``tolerance=``.

    ``mend(merged, parents)`` gives the merge the statistics that it should have: ``rebasin.mender(model, images)``
    makes one. It is called once at the ``"end"``, with all the permuted models as parents, or at ``"every stage"`` of a
    hierarchy, with the two nodes before.

    Memory, beside the models and what matching takes (``weight_matching``): a mean and a hierarchy of two make the
    merge entry by entry, so that they need room for one model more; each stage of a larger hierarchy copies its nodes.
    ``"many"`` takes n + 4 models, ``"universe"`` two copies of all in single precision, and a mending all of them
    permuted. Where the models are modules, so is the merge, which is one model more.

    Raises ValueError for another method or option, models that do not fit the spec or one another, and what the
    mending raises.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(4)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> merge = rebasin.merge(spec, models, mend=rebasin.mender(models[0], torch.randn(50, 3)))
    >>> merge.model(torch.ones(1, 3)).shape
    torch.Size([1, 2])
    """
    check_spec(spec, "merge(spec, models)")
    check_options(by, options, METHODS, "method")
    check_choice(mend_at, "mend_at", get_args(MendAt))
    check_mend(mend)
    if mend_at == "every stage":
        if "mend" not in own_options(METHODS[by]):
            raise ValueError(f"{by!r} has no stages: mend_at is 'end'")
        return METHODS[by](spec, models, mend=mend, **options)
    merged = METHODS[by](spec, models, **options)
    if mend is None:
        return merged
    weights = mended_by(mend, merged.weights, merged.permutation.apply(weights_of(models)))
    return replace(merged, weights=weights, model=merged_like(models, weights))
