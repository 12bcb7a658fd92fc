"""Merging neural networks modulo permutation symmetry.

``trace`` reads a model's permutation groups off its graph, ``match`` brings one model to another, and ``merge`` makes
one of many.
"""

from importlib import metadata as _metadata

from rebasin.assignment import solve_assignment
from rebasin.expanding.slots import Slots
from rebasin.files import load_weights, save_weights
from rebasin.fitting.grams import Grams, collect
from rebasin.fitting.least_squares import least_squares
from rebasin.inner_products import inner_product, mean_inner_product
from rebasin.matching import Matcher, Matching, match
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.frank_wolfe import frank_wolfe_matching
from rebasin.matching.straight_through import straight_through_matching
from rebasin.merging import MendAt, Merge, Method, merge
from rebasin.merging.averaging import merge_mean
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.merging.mending import Mend, mender, repair, reset_norms
from rebasin.merging.pleas import Fitted, fit_slots, pleas
from rebasin.merging.sequential import refit
from rebasin.merging.universe import merge_universe
from rebasin.permutation import Permutation
from rebasin.progress import show_progress
from rebasin.spec import PermutationSpec, SpecError
from rebasin.tracing import trace
from rebasin.weights import Model, Models, Weights, interpolate, mean

try:
    __version__ = _metadata.version("rebasin-book")
except _metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"

__all__ = [
    "Fitted",
    "Grams",
    "Matcher",
    "Matching",
    "Mend",
    "MendAt",
    "Merge",
    "Method",
    "Model",
    "Models",
    "Permutation",
    "PermutationSpec",
    "Slots",
    "SpecError",
    "Weights",
    "activation_matching",
    "collect",
    "fit_slots",
    "frank_wolfe_matching",
    "inner_product",
    "interpolate",
    "least_squares",
    "load_weights",
    "match",
    "mean",
    "mean_inner_product",
    "mender",
    "merge",
    "merge_hierarchical",
    "merge_many",
    "merge_mean",
    "merge_universe",
    "pleas",
    "refit",
    "repair",
    "reset_norms",
    "save_weights",
    "show_progress",
    "solve_assignment",
    "straight_through_matching",
    "trace",
    "weight_matching",
]
