"""The contestants of the arena: every merging method by name, and what mends a merge.

A method is a function of the arena and a size. One of a reader's own joins by standing in the dict that is tried::

    def first_layers_only(arena, size):
        if size != 1:
            return None
        parents = matched_by_weights(arena, 1).parents
        merged = {key: tensor.mean(0) if "layer1" in key else tensor[0] for key, tensor in parents.items()}
        identity = Permutation.identity(arena.spec, (arena.n,))
        network = with_own_heads(arena, (merged,), parents)
        return Entry(network, **arena.sizes(Slots.of_permutation(identity)), weights=merged, parents=parents)
"""

from __future__ import annotations

from collections.abc import Sequence

from lab.contestants.adam import pleas_by_adam
from lab.contestants.arena import Arena, Entry, Mending, Method
from lab.contestants.cca import merged_by_canonical_correlations
from lab.contestants.distilled import distilled
from lab.contestants.fitted import (
    by_weights_refitted,
    pleas_averaged,
    pleas_by_weights,
    pleas_on_noise,
    pleas_on_other_images,
    pleas_refitted,
    pleas_stacked,
    pleas_tree,
    pleas_tree_refitted,
    pleas_with_linear_gains,
    regmean,
    regmean_refitted,
    zipped,
    zipped_and_fitted,
)
from lab.contestants.folded import pleas_folded
from lab.contestants.head import new_head
from lab.contestants.mixed import matched_by_both
from lab.contestants.whole import (
    as_merged,
    ensemble,
    first_parent,
    in_a_hierarchy,
    in_a_universe,
    matched_by_activations,
    matched_by_correlation,
    matched_by_weights,
    not_matched,
    repaired,
    repaired_by_task,
    reset,
)

METHODS: dict[str, Method] = {
    "parent": first_parent,
    "ensemble": ensemble,
    "head": new_head,
    "distilled": distilled,
    "mean": not_matched,
    "weights": matched_by_weights,
    "weights_refitted": by_weights_refitted,
    "hierarchy": in_a_hierarchy,
    "universe": in_a_universe,
    "activations": matched_by_activations,
    "correlation": matched_by_correlation,
    "mixed": matched_by_both,
    "cca": merged_by_canonical_correlations,
    "zip": zipped,
    "zip_fitted": zipped_and_fitted,
    "regmean": regmean,
    "regmean_refitted": regmean_refitted,
    "pleas": pleas_averaged,
    "pleas_stacked": pleas_stacked,
    "pleas_refitted": pleas_refitted,
    "pleas_folded": pleas_folded,
    "pleas_adam": pleas_by_adam,
    "pleas_tree": pleas_tree,
    "pleas_tree_refitted": pleas_tree_refitted,
    "pleas_weights": pleas_by_weights,
    "pleas_linear": pleas_with_linear_gains,
    "pleas_noise": pleas_on_noise,
    "pleas_other": pleas_on_other_images,
}
# Methods that never ask for the Gram matrices of all parents, which take too much of many convolutional networks.
WITHOUT_GRAMS = {
    "parent",
    "ensemble",
    "head",
    "mean",
    "weights",
    "weights_refitted",
    "hierarchy",
    "universe",
    "pleas_tree",
    "pleas_tree_refitted",
}
MENDINGS: dict[str, Mending] = {
    "none": as_merged,
    "reset": reset,
    "repair": repaired,
    "repair by task": repaired_by_task,
}


def contestants(names: Sequence[str]) -> dict[str, Method]:
    """The methods of these names. Raises ValueError, naming those that there are, for another."""
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}: there are {', '.join(METHODS)}")
    return {name: METHODS[name] for name in names}


__all__ = ["MENDINGS", "METHODS", "WITHOUT_GRAMS", "Arena", "Entry", "Mending", "Method", "contestants"]
