"""Merging neural networks modulo permutation symmetry."""

from rebasin.assignment import solve_assignment
from rebasin.matching import Matching, weight_matching
from rebasin.merging import Merged, Stage, alignment, average, interpolate, merge_hierarchical, merge_many
from rebasin.permutation import Permutation, PermutationSpec, Weights
from rebasin.repair import repair

__all__ = [
    "Matching",
    "Merged",
    "Permutation",
    "PermutationSpec",
    "Stage",
    "Weights",
    "alignment",
    "average",
    "interpolate",
    "merge_hierarchical",
    "merge_many",
    "repair",
    "solve_assignment",
    "weight_matching",
]
