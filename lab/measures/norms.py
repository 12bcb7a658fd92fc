"""Norms of many networks' weights at once, and what the norm of a merge must be."""

from __future__ import annotations

import torch
from torch import Tensor

from rebasin.weights import Weights


def layer_norms(weights: Weights) -> dict[tuple[str, str], Tensor]:
    """L1 and L2 norms of the weight matrices of networks (n, ...), without biases and other vectors.

    Keys are (layer, metric), a layer's name or ``all`` of them together, and ``l1`` or ``l2``; each value is (n,), in
    float64. Raises ValueError where there is no matrix.
    """
    matrices = {key.removesuffix(".weight"): tensor for key, tensor in weights.items() if tensor.ndim > 2}
    if not matrices:
        raise ValueError("no weight matrices: these have a leading axis of networks and two axes or more of their own")
    norms = {}
    for order in (1, 2):
        each = {layer: _norm(tensor, order) for layer, tensor in matrices.items()}
        each["all"] = torch.linalg.vector_norm(torch.stack(list(each.values())), order, 0)
        norms |= {(layer, f"l{order}"): values for layer, values in each.items()}
    return norms


def parameter_norm(weights: Weights) -> Tensor:
    """L2 norm of all parameters of networks (n, ...), biases included, as ``alignment`` counts them: (n,), float64."""
    return torch.linalg.vector_norm(torch.stack([_norm(tensor, 2) for tensor in weights.values()]), 2, 0)


def predicted_norm(leaf_norms: Tensor, alignment: Tensor) -> Tensor:
    """The L2 norms of the plain means of n >= 2 permuted leaves: (nodes,).

    ``leaf_norms`` (nodes, n) are the leaves' ``parameter_norm``, which permutations keep, and ``alignment`` (nodes,) is
    the mean inner product over pairs of permuted leaves (``rebasin.alignment``). Expanding the square of a mean,

        ``|mean|^2 = (mean of |leaf|^2) / n + (1 - 1/n) alignment``:

    the better leaves are matched, the less their mean shrinks. Raises ValueError for other shapes, fewer than two
    leaves, and an alignment that leaves of these norms cannot have.
    """
    if leaf_norms.shape[:-1] != alignment.shape or leaf_norms.shape[-1] < 2:
        raise ValueError(
            f"norms of two leaves or more for each alignment: got norms {tuple(leaf_norms.shape)} and "
            f"alignments {tuple(alignment.shape)}"
        )
    n = leaf_norms.shape[-1]
    squares = leaf_norms.double().square().mean(-1)
    predicted = squares / n + (1 - 1 / n) * alignment
    # A mean is no longer than its longest leaf and no shorter than 0; float32 products leave some rounding.
    slack = 1e-5 * squares
    if (predicted < -slack).any() or (alignment > squares + slack).any():
        raise ValueError("no leaves of these norms have these alignments: do both count the same parameters?")
    return predicted.clamp(min=0).sqrt()


def _norm(tensor: Tensor, order: int) -> Tensor:
    """The norm of each entry along the leading axis of a tensor, all its own axes taken as one vector."""
    return torch.linalg.vector_norm(tensor.flatten(1), order, 1, dtype=torch.float64)
