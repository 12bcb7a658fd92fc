"""Merging neural networks modulo permutation symmetry."""

from rebasin.activations import activation_matching
from rebasin.assignment import solve_assignment
from rebasin.frank_wolfe import frank_wolfe_matching
from rebasin.match import match
from rebasin.matching import Matching, weight_matching
from rebasin.merging import Merged, Stage, alignment, average, interpolate, merge_hierarchical, merge_many
from rebasin.permutation import Part, Permutation, PermutationSpec, Weights
from rebasin.repair import repair, reset_norms
from rebasin.straight_through import straight_through_matching

__all__ = [
    "Matching",
    "Merged",
    "Part",
    "Permutation",
    "PermutationSpec",
    "Stage",
    "Weights",
    "activation_matching",
    "alignment",
    "average",
    "frank_wolfe_matching",
    "interpolate",
    "match",
    "merge_hierarchical",
    "merge_many",
    "repair",
    "reset_norms",
    "solve_assignment",
    "straight_through_matching",
    "weight_matching",
]
