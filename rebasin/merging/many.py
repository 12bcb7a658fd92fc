"""MergeMany: every model is matched to the mean of the others, round after round."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rebasin.arguments import check_count, check_seed
from rebasin.matching.by_weights import TOLERANCE, weight_matching
from rebasin.merging.record import Merge, merged_like, side_by_side, unmoved
from rebasin.permutation import Permutation, compose, permuted_entry
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, flat, is_whole, mean, over, unflat


def merge_many(spec: PermutationSpec, models: Models, *, seed: int = 0, max_rounds: int = 100) -> Merge:
    """Merge n models all at once (Git Re-Basin, Algorithm 3, MergeMany).

    ``models`` is a list of modules or of dicts of tensors, or a dict of tensors (*batch, n, ...). A round takes the
    models in random order and weight-matches each to the mean of the others. When a round shortens no model's distance
    to that mean, or after ``max_rounds``, the models are averaged. The order depends on ``seed`` alone and is shared by
    the batch. Raises ValueError if the models do not fit the spec or there are none.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(3)]
    >>> spec = rebasin.trace(models[0], torch.ones(1, 3))
    >>> merge = merge_many(spec, models)
    >>> type(merge.model).__name__, merge.permutation
    ('Sequential', Permutation(1 group, 8 units, batch (3,)))
    """
    weights, batch = side_by_side(spec, models, "merge_many(spec, models)")
    check_seed(seed)
    check_count(max_rounds, "max_rounds", 0)
    axes = len(batch)
    n, groups = weights[next(iter(spec.shapes))].shape[axes], batch.numel()
    moved = flat(weights, axes)  # (groups, n, ...), permuted as the rounds go on
    if not isinstance(models, list | tuple):  # those of a list are copies already
        moved = over(moved, Tensor.clone)
    device = moved[next(iter(spec.shapes))].device
    index = unmoved(spec, (groups, n), device)
    rounds, sweeps = (torch.zeros(groups, dtype=torch.int64, device=device) for _ in range(2))
    active = torch.full((groups,), n > 1, device=device)
    rng = np.random.default_rng(seed)
    with track(max_rounds, f"MergeMany, {groups} x {n} models, rounds at most", "round") as bar:
        for _ in range(max_rounds):
            if not active.any():
                break
            rows = active.nonzero().squeeze(-1)
            shortened = torch.zeros(len(rows), dtype=torch.bool, device=device)
            total = {key: tensor[rows].sum(1) for key, tensor in moved.items() if not is_whole(tensor)}
            for i in rng.permutation(n):
                model = {key: tensor[rows, i] for key, tensor in moved.items()}
                others = dict(model)
                for key in total:
                    others[key] = (total[key] - model[key]) / (n - 1)
                matching = weight_matching(spec, others, model, seed=int(rng.integers(2**31)))
                # A permutation keeps the norm, so that the distance shrinks exactly when the inner product grows.
                shortened |= matching.objective - matching.objective_by_sweep[..., 0] > TOLERANCE
                order = matching.permutation.flat
                for key, tensor in moved.items():
                    closer = permuted_entry(spec, key, model[key], order)
                    tensor[rows, i] = closer
                    if key in total:
                        total[key] += closer - model[key]
                before = {group: held[rows, i] for group, held in index.items()}
                for group, composed in compose(spec, matching.permutation.indices, before).items():
                    index[group][rows, i] = composed
                sweeps[rows] += matching.sweeps
            rounds[rows] += 1
            active[rows] = shortened
            bar.set_postfix_str(f"{int(active.sum())} groups still moving")
            bar.update()
    merged = unflat(mean(moved, 1), batch)
    permutation = Permutation(spec, {group: held.reshape(*batch, *held.shape[1:]) for group, held in index.items()})
    return Merge(merged_like(models, merged), merged, permutation, rounds.reshape(batch), sweeps.reshape(batch))
