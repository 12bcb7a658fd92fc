"""Bounds on the Lipschitz constants of many networks at once, from above and from below, and the radii they certify.

Everything is in L2, from pixels in [0, 1] to logits, and in float64. The bounds from above take the matrices
``W_1, ..., W_l`` of ``layer_matrices``: biases and the normalisation's mean shift a layer, which no bound feels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from lab.device import pick_device
from lab.networks.normalise import Normalise
from rebasin.weights import Weights, check_finite, check_fits, take, to

# What may come after what in a network that the bounds hold for. No subclasses: they could do anything.
FOLLOWERS = {
    None: (Normalise, nn.Flatten, nn.Linear),
    Normalise: (nn.Flatten,),
    nn.Flatten: (nn.Linear,),
    nn.Linear: (nn.ReLU,),
    nn.ReLU: (nn.Linear,),
}


def bounds_hold(model: nn.Module) -> bool:
    """Whether the bounds from above are proven for such a model."""
    try:
        _parts(model)
    except ValueError:
        return False
    return True


def layer_matrices(model: nn.Module, weights: Weights) -> list[Tensor]:
    """The linear layers of ReLU networks (n, ...) as they act on pixels, the normalisation folded into the first.

    Each is (n, outputs, inputs), in float64: 13 MB a network for 512 units on 3072 pixels. Raises ValueError, naming
    the module, for a model that is no ``nn.Sequential`` of Normalise and Flatten (or neither) and linear layers with
    ReLUs between: the bounds are proven for nothing else. So it does for weights that do not fit the model.
    """
    parts = _parts(model)
    check_fits(model, weights, "the weights")
    for key, tensor in weights.items():
        check_finite(tensor, f"the weights: {key!r}")
    matrices = [weights[f"{name}.weight"].double() for name, part in parts if isinstance(part, nn.Linear)]
    if isinstance(parts[0][1], Normalise):
        std, inputs = parts[0][1].std.flatten().to(matrices[0]), matrices[0].shape[-1]
        if inputs % len(std):
            raise ValueError(f"{inputs} inputs are no whole number of pixels in each of {len(std)} channels")
        matrices[0] = matrices[0] / std.repeat_interleave(inputs // len(std))
    return matrices


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a model that the bounds hold for, by name, in order. Raises ValueError for another model."""
    only = "the bounds hold for Normalise, Flatten and linear layers with ReLUs between, in one nn.Sequential"
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"{only}: not for a {type(model).__name__}")
    parts = list(model.named_modules(remove_duplicate=False))[1:]
    before = None
    for name, part in parts:
        if type(part) not in FOLLOWERS[before]:
            after = f"after a {before.__name__}" if before else "as the first"
            raise ValueError(f"{only}: not for {name!r}, a {type(part).__name__}, {after}")
        if isinstance(part, nn.Flatten) and (part.start_dim, part.end_dim) != (1, -1):
            raise ValueError(f"{only}: {name!r} does not flatten whole images")
        before = type(part)
    if before is not nn.Linear:
        raise ValueError(f"{only}: the last must be a linear layer")
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            raise ValueError(f"{only}: {name!r} is {first[id(parameter)]!r} too")
    return parts


def spectral_norms(matrices: Tensor) -> Tensor:
    """The largest singular value of each matrix (*batch, rows, columns): (*batch,)."""
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    # A Gram matrix squares the condition number, which harms small singular values alone.
    return torch.linalg.eigvalsh(matrices @ matrices.mT)[..., -1].sqrt()


def spectral_product(matrices: list[Tensor]) -> Tensor:
    """The product of the layers' spectral norms (Szegedy et al. 2014, section 4.3): (n,)."""
    return torch.stack([spectral_norms(matrix) for matrix in matrices]).prod(0)


def eclipse_fast(matrices: list[Tensor]) -> Tensor:
    """ECLipsE-Fast, a closed-form bound that is never above the spectral product (Xu and Sivaranjani 2024): (n,).

    A ReLU's changes z and v of its output and input obey ``z (v - z) >= 0``. By LipSDP (Fazlyab et al. 2019), L is a
    Lipschitz constant if diagonal ``Lambda_i >= 0`` make, for all changes ``z_0`` (the pixels), ``z_1, ..., z_{l-1}``,

        ``|z_0|^2 - |W_l z_{l-1}|^2 / L^2 - sum_i z_i^T Lambda_i (W_i z_{i-1} - z_i) >= 0.``

    Eliminating ``z_0``, then ``z_1``, ... from this block-tridiagonal form leaves, from ``M_0 = I`` on,

        ``M_i = Lambda_i - Lambda_i W_i M_{i-1}^{-1} W_i^T Lambda_i / 4``,

    which must be positive definite, and ``L^2 = |W_l M_{l-1}^{-1} W_l^T|`` at last. The fast variant takes
    ``Lambda_i = lambda_i I`` with ``lambda_i = 2 / g_i``, where ``g_i = |W_i M_{i-1}^{-1} W_i^T|``: that makes the
    smallest eigenvalue of ``M_i`` largest. Here ``N_i = g_i M_i`` is kept instead: its eigenvalues are in [1, 2], and L
    is the product over the layers of ``|W_i N_{i-1}^{-1/2}|``, each at most ``|W_i|``. A layer of zeros makes it 0.
    """
    # C in N = C C^T serves as the root: W C^{-T} has the same Gram matrix as W N^{-1/2}.
    rooted = matrices[0]
    bound = norms = spectral_norms(rooted)
    for matrix in matrices[1:]:
        share = rooted @ rooted.mT / torch.where(norms > 0, norms, 1).square()[..., None, None]
        root = torch.linalg.cholesky(2 * torch.eye(share.shape[-1]).to(share) - share)
        rooted = torch.linalg.solve_triangular(root, matrix.mT, upper=False).mT
        norms = spectral_norms(rooted)
        bound = bound * norms
    return bound


def averaged_bound(matrices: list[Tensor]) -> Tensor:
    """The bound for firmly nonexpansive activations, never above the spectral product: (n,).

    A ReLU is ``(identity + Q) / 2`` with ``Q = |.|``, which is 1-Lipschitz. The identity or Q at each of the l - 1
    ReLUs makes 2^(l-1) terms: around the identity the layers multiply as matrices, around Q as norms. The bound is the
    terms' mean. With ``theta_0 = 1``, their sum is ``theta_i = sum over k < i of theta_k |W_i W_{i-1} ... W_{k+1}|``
    at ``i = l`` (Combettes and Pesquet, SIAM Journal on Mathematics of Data Science, 2020).
    """
    thetas = [torch.ones_like(matrices[0][..., 0, 0])]
    for i, product in enumerate(matrices):
        theta = thetas[i] * spectral_norms(product)
        for k in reversed(range(i)):
            product = product @ matrices[k]
            theta = theta + thetas[k] * spectral_norms(product)
        thetas.append(theta)
    return thetas[-1] / 2 ** (len(matrices) - 1)


@torch.no_grad()
def gradient_norms(
    model: nn.Module, weights: Weights, images: Tensor, device: str = "auto", chunk: int = 1, batch: int = 200
) -> Tensor:
    """The spectral norms of the logits' Jacobians with respect to the pixels of images (m, ...): (n, m).

    Wherever the network has a derivative, each is a bound from below on its Lipschitz constant. ``chunk`` networks
    (n, ...), of any architecture, and ``batch`` images at once: 250 kB for each pair of them with ten classes and 3072
    pixels. Raises ValueError for no models, no images, pixels that are not floats in [0, 1], or non-finite gradients,
    RuntimeError for a GPU that is not there.
    """
    n = len(next(iter(weights.values())))
    if not n or not len(images):
        raise ValueError(f"no gradients to take: {n} models, {len(images)} images")
    if not images.is_floating_point() or images.min() < 0 or images.max() > 1:
        raise ValueError(f"pixels must be floats in [0, 1], got {images.dtype} in [{images.min()}, {images.max()}]")
    device = pick_device(device)
    model = model.to(device).eval()

    def jacobians(one: dict[str, Tensor], x: Tensor) -> Tensor:
        """(classes, images, ...): no image's logits depend on another, so that one pull-back serves all of them."""
        logits, pull = vjp(lambda x: functional_call(model, one, (x,)), x)
        classes = torch.eye(logits.shape[-1]).to(logits)
        return vmap(lambda row: pull(row.expand_as(logits))[0])(classes)

    norms = torch.empty(n, len(images), dtype=torch.float64)
    for first in range(0, len(images), batch):
        x = images[first : first + batch].to(device).double()
        for start in range(0, n, chunk):
            some = to(take(weights, slice(start, start + chunk)), device)
            some = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in some.items()}
            rows = vmap(jacobians, in_dims=(0, None))(some, x).flatten(3)
            if not torch.isfinite(rows).all():
                raise ValueError("a model's gradients are NaN or infinite")
            norms[start : start + chunk, first : first + batch] = spectral_norms(rows.transpose(1, 2)).cpu()
    return norms


def certified_radius(logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
    """How far in L2, in pixels, each image can move with no change of its class: (n, m), 0 where the class is wrong.

    ``logits`` (n, m, classes), ``labels`` (m,), and ``bound`` (n,) from above on the Lipschitz constants of the logits.
    The difference of two logits ``z_y - z_j`` is ``<e_y - e_j, z>``, and ``|e_y - e_j| = sqrt(2)``, so that it has the
    constant ``sqrt(2) bound``: it stays positive until the image has moved by the margin, the least such difference,
    over that (Tsuzuku et al. 2018). Where the bound is 0, a right class is right everywhere: the radius is infinite.
    Raises ValueError for fewer than two classes.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"a margin needs two classes or more, got {logits.shape[-1]}")
    own = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    others = logits.double().scatter(-1, own, -math.inf).amax(-1)
    margin = logits.double().gather(-1, own).squeeze(-1) - others
    return torch.where(margin > 0, margin / (math.sqrt(2) * bound.unsqueeze(-1)), 0.0)
