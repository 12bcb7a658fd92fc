"""Methods whose merge has the parents' shape, what mends it, and the floor and the ceiling of every comparison."""

from __future__ import annotations

from dataclasses import replace

from lab.contestants.arena import Arena, Entry, Together, with_own_heads
from rebasin import (
    Permutation,
    Slots,
    mean,
    mender,
    merge_hierarchical,
    merge_many,
    merge_universe,
    reset_norms,
    weight_matching,
)
from rebasin.fitting.alignment import match_grams
from rebasin.merging.by_task import repair_by_task
from rebasin.merging.mending import norms_of
from rebasin.merging.pleas import of_both
from rebasin.weights import take


def first_parent(arena: Arena, size: float) -> Entry | None:
    """The first parent alone: the floor. Of other tasks than its own it guesses the first class."""
    if size != 1:
        return None
    unknown = arena.classes * (len(arena.test) - 1)
    first = Together(arena.model, (take(arena.parents, 0),), shared=False, unknown=unknown)
    return Entry(first, 1.0, 1.0, 1.0)


def ensemble(arena: Arena, size: float) -> Entry | None:
    """All parents side by side, the mean of their logits if they share a head: the ceiling."""
    if size != arena.n:
        return None
    parents = tuple(take(arena.parents, m) for m in range(arena.n))
    cost = float(arena.n)  # no layer reads what another parent gives
    return Entry(Together(arena.model, parents, arena.heads == "shared"), cost, cost, cost)


def not_matched(arena: Arena, size: float) -> Entry | None:
    """The plain mean of the parents."""
    return averaged(arena, Permutation.identity(arena.spec, (arena.n,))) if size == 1 else None


def matched_by_weights(arena: Arena, size: float) -> Entry | None:
    """Git Re-Basin: weight matching of two parents (Algorithm 1), MergeMany of more (Algorithm 3)."""
    return averaged(arena, by_weights(arena)) if size == 1 else None


def in_a_hierarchy(arena: Arena, size: float) -> Entry | None:
    """Hierarchical Re-Basin: pairs are matched by their weights and averaged, stage by stage. Two are no hierarchy."""
    if size != 1 or arena.n == 2:
        return None
    return averaged(arena, merge_hierarchical(arena.spec, arena.parents, seed=arena.seed).permutation)


def in_a_universe(arena: Arena, size: float) -> Entry | None:
    """C2M3: all parents are matched at once, by their weights, so that every cycle of matchings closes."""
    return averaged(arena, merge_universe(arena.spec, arena.parents).permutation) if size == 1 else None


def matched_by_activations(arena: Arena, size: float) -> Entry | None:
    """Matched by the inner products of what units answer (Git Re-Basin, section 3.1)."""
    return averaged(arena, match_grams(arena.grams, similarity="inner product")) if size == 1 else None


def matched_by_correlation(arena: Arena, size: float) -> Entry | None:
    """Matched by the correlations of what units answer (Li et al. 2016)."""
    return averaged(arena, match_grams(arena.grams)) if size == 1 else None


def by_weights(arena: Arena) -> Permutation:
    """The permutation (n,) that brings the parents to one another by their weights."""
    if arena.n > 2:
        return merge_many(arena.spec, arena.parents, seed=arena.seed).permutation
    first, second = take(arena.parents, 0), take(arena.parents, 1)
    return of_both(weight_matching(arena.spec, first, second, seed=arena.seed))


def averaged(arena: Arena, permutation: Permutation) -> Entry:
    """The mean of the permuted parents, each task with the head of its own."""
    parents = permutation.apply(arena.parents)
    merged = mean(parents)
    sizes = arena.sizes(Slots.of_permutation(permutation))
    return Entry(with_own_heads(arena, (merged,), parents), **sizes, weights=merged, parents=parents)


def as_merged(arena: Arena, entry: Entry) -> Entry:
    """What a method hands in, as it is."""
    return entry


def reset(arena: Arena, entry: Entry) -> Entry | None:
    """Statistics of batch norms measured anew on all tasks' images, where there are any; of parents and ensembles too.

    Networks whose layers were fitted have measured ones already.
    """
    if not isinstance(entry.network, Together) or not norms_of(arena.program):
        return None
    weights = tuple(reset_norms(arena.model, dict(own), arena.inputs) for own in entry.network.weights)
    return replace(entry, network=replace(entry.network, weights=weights))


def repaired(arena: Arena, entry: Entry) -> Entry | None:
    """REPAIR (Jordan et al. 2023): each unit has the parents' average mean and deviation on all tasks' images."""
    if entry.weights is None or entry.parents is None:
        return None
    merged = mender(arena.model, arena.inputs)(entry.weights, entry.parents)
    return replace(entry, network=with_own_heads(arena, (merged,), entry.parents), weights=merged)


def repaired_by_task(arena: Arena, entry: Entry) -> Entry | None:
    """REPAIR for each task (TACT: Sharma et al. 2024), where parents have tasks of their own.

    Nobody says which task a test image is of, so that the merge runs once for each: it costs as much as n, and holds n
    merges, though they differ in the scale and shift of units alone.
    """
    if entry.weights is None or entry.parents is None or arena.heads == "shared":
        return None
    images = [split.pixels for split in arena.train]
    merged = tuple(repair_by_task(arena.model, entry.weights, entry.parents, images))
    network = with_own_heads(arena, merged, entry.parents)
    cost = float(arena.n)
    return Entry(network, cost, cost, cost)
