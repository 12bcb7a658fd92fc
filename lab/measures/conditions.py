"""One comparison of the hierarchy with MergeMany, as it is and after REPAIR."""

from __future__ import annotations

from torch import Tensor, nn

from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.many import merge_many
from rebasin.merging.mending import repair
from rebasin.tracing import trace
from rebasin.weights import Weights, mean

LEAVES = 8


def merge_and_repair(
    model: nn.Module, leaves: Weights, inputs: Tensor, seed: int, device: str, chunk: int
) -> dict[tuple[str, bool], dict[str, Tensor]]:
    """Nodes of eight leaves by (algorithm, repaired): (n / 8, ...) each, and the leaves (n, ...) as they are.

    ``inputs`` (m, channels, height, width) are what REPAIR takes its statistics on. Raises ValueError if
    n is no multiple of eight.
    """
    n = len(next(iter(leaves.values())))
    if n % LEAVES:
        raise ValueError(f"trees of {LEAVES} leaves need a multiple of {LEAVES} models, got {n}")
    model, inputs = model.to(device).eval(), inputs.to(device)
    spec = trace(model, inputs[:2])
    groups = {key: tensor.to(device).unflatten(0, (-1, LEAVES)) for key, tensor in leaves.items()}
    tree = merge_hierarchical(spec, groups, seed=seed, chunk=chunk)
    many = merge_many(spec, groups, seed=seed)
    merges = {
        "tree": (tree.weights, tree.permutation.apply(groups)),
        "merge_many": (many.weights, many.permutation.apply(groups)),
        "naive": (mean(groups, axis=1), groups),
    }
    found = {("unmerged", False): dict(leaves)}
    for algorithm, (merged, parents) in merges.items():
        found[algorithm, False] = merged
        found[algorithm, True] = repair(model, merged, parents, inputs)
    return found
