"""The naive merge: the mean of the models as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from rebasin.merging.record import Merge, merged_like, one_by_one
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, mean, stack


def merge_mean(spec: PermutationSpec, models: Models) -> Merge:
    """The mean of the models as they are, unmatched: what every other method is compared with.

    ``models`` is a list of modules or of dicts of tensors, or a dict of tensors (*batch, n, ...). Of whole numbers,
    such as counters, the first is kept. Raises ValueError if the models do not fit the spec or there are none.

    >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(2)}, {"w": ("units",)})
    >>> merge_mean(spec, [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}]).model
    {'w': tensor([2., 3.])}
    """
    several, batch = one_by_one(spec, models, "merge_mean(spec, models)")
    device = several[0][next(iter(spec.shapes))].device
    merged: dict[str, Tensor] = {}
    for key in several[0]:  # one entry of all models side by side at a time
        merged |= mean(stack([{key: model[key]} for model in several], len(batch)), len(batch))
    nothing = torch.zeros(batch, dtype=torch.int64, device=device)
    identity = Permutation.identity(spec, (*batch, len(several)), device)
    return Merge(merged_like(models, merged), merged, identity, nothing, nothing)
