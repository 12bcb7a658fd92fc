"""Merging neural networks modulo permutation symmetry."""

from rebasin.assignment import solve_assignment
from rebasin.matching import match
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.frank_wolfe import frank_wolfe_matching
from rebasin.matching.pairs import Matching
from rebasin.matching.straight_through import straight_through_matching
from rebasin.merging.hierarchy import Stage, merge_hierarchical
from rebasin.merging.many import Merged, merge_many
from rebasin.merging.mean import alignment, average
from rebasin.merging.mending import repair, reset_norms
from rebasin.permutation import Permutation
from rebasin.spec import Part, PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights, interpolate

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
    "trace",
    "weight_matching",
]
