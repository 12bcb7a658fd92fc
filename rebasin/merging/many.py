"""Many models into one: naive averaging, MergeMany, and the hierarchy, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin.matching.by_weights import TOLERANCE, weight_matching
from rebasin.merging.mean import _group_shape, _mean, _unmoved
from rebasin.permutation import Permutation, compose
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights


@dataclass(frozen=True)
class Merged:
    """What MergeMany made of each group of n models.

    ``weights`` (*batch, ...); ``permutation`` (*batch, n) brings each model into the common basin; ``rounds``
    (*batch,) counts the rounds until one shortened no distance.
    """

    weights: dict[str, Tensor]
    permutation: Permutation
    rounds: Tensor


def merge_many(spec: PermutationSpec, models: Weights, seed: int = 0, max_rounds: int = 100) -> Merged:
    """Merge models (*batch, n, ...) all at once (Git Re-Basin, Algorithm 3, MergeMany).

    A round takes the models in random order and weight-matches each to the mean of the others; when a round shortens
    no model's distance to that mean, or after ``max_rounds``, the models are averaged. The order depends on ``seed``
    alone and is shared by the batch. Raises ValueError if the weights do not fit the spec or there are none.
    """
    batch = _group_shape(spec, models)
    n = models[next(iter(spec.shapes))].shape[len(batch)]
    groups = batch.numel()
    flat = {key: t.reshape(groups, n, *t.shape[len(batch) + 1 :]).clone() for key, t in models.items()}
    device = flat[next(iter(spec.shapes))].device
    index = _unmoved(spec, (groups, n), device)
    rounds = torch.zeros(groups, dtype=torch.int64, device=device)
    active = torch.full((groups,), n > 1, device=device)
    rng = np.random.default_rng(seed)
    with track(max_rounds, f"MergeMany, {groups} x {n} models, rounds at most", "round") as bar:
        for _ in range(max_rounds):
            if not active.any():
                break
            rows = active.nonzero().squeeze(-1)
            shortened = torch.zeros(len(rows), dtype=torch.bool, device=device)
            total = {key: tensor[rows].sum(1) for key, tensor in flat.items() if tensor.is_floating_point()}
            for i in rng.permutation(n):
                model = {key: tensor[rows, i] for key, tensor in flat.items()}
                others = {
                    key: (total[key] - tensor) / (n - 1) if key in total else tensor for key, tensor in model.items()
                }
                found = weight_matching(spec, others, model, seed=int(rng.integers(2**31)))
                # A permutation keeps the norm, so that the distance shrinks exactly when the inner product grows.
                shortened |= found.objective - found.history[..., 0] > TOLERANCE
                moved = found.permutation.apply(model)
                for key in total:
                    total[key] += moved[key] - model[key]
                for key, tensor in flat.items():
                    tensor[rows, i] = moved[key]
                before = {group: held[rows, i] for group, held in index.items()}
                for group, composed in compose(spec, found.permutation.indices, before).items():
                    index[group][rows, i] = composed
            rounds[rows] += 1
            active[rows] = shortened
            bar.set_postfix_str(f"{int(active.sum())} groups still moving")
            bar.update()
    return Merged(
        {key: _mean(tensor, 1).reshape((*batch, *tensor.shape[2:])) for key, tensor in flat.items()},
        Permutation(spec, {g: i.reshape(*batch, n, *spec.index_shape(g)) for g, i in index.items()}),
        rounds.reshape(batch),
    )
