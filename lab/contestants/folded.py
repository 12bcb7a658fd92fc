"""PLeaS of networks without norms: those whose batch norms are folded into the layers before them."""

from __future__ import annotations

from torch.fx.experimental.optimization import fuse

from lab.contestants.arena import Arena, Entry, of_expanded
from rebasin import collect, pleas, trace
from rebasin.merging.mending import norms_of
from rebasin.weights import like, take


def pleas_folded(arena: Arena, size: float) -> Entry | None:
    """PLeaS of parents whose batch norms are folded into their convolutions; None for parents without any.

    Layers are fitted to what comes *after* the norm, where the scales of two parents are alike, and no statistics are
    left to be measured. The authors fit what comes before it.
    """
    if not norms_of(arena.program):
        return None
    parents = [fuse(like(arena.model, take(arena.parents, m)).eval()) for m in range(arena.n)]
    grams = collect(trace(parents[0], arena.example), parents, arena.batches(arena.inputs), seed=arena.seed)
    return of_expanded(arena, pleas(grams, size=size, heads=arena.heads).model)
