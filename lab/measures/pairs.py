"""Pairs of networks, the second permuted to match the first by any of the matchers; every matching is kept."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.device import pick_device
from lab.images import Split
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.straight_through import straight_through_matching
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, take, to

MATCHERS = ("none", "weights", "activations", "straight-through")  # Git Re-Basin's, and none
OTHERS = ("correlation",)  # by what units answer, whatever their scale
BATCH = 1000  # images whose activations are taken at once


def permutation_between(
    matcher: str,
    spec: PermutationSpec,
    model: nn.Module,
    a: Weights,
    b: Weights,
    images: Split,
    seed: int,
    device: str,
    chunk: int,
    **straight_through: int,
) -> Permutation:
    """What brings the second network of each pair (pairs, ...) to the first; for ``none`` what moves nothing.

    Activations, and their correlation, are those on all ``images``. Straight-through matching takes ``epochs``, how
    often it sees them, and ``batch_size``. ``chunk`` pairs are matched and kept at once. Raises ValueError for a
    matcher that is not known.
    """
    if matcher not in (*MATCHERS, *OTHERS):
        raise ValueError(f"unknown matcher {matcher!r}: there are {', '.join((*MATCHERS, *OTHERS))}")
    place = pick_device(device)
    pairs = len(next(iter(b.values())))
    if matcher == "none":
        return Permutation.identity(spec, (pairs,))
    some = [(take(a, rows), take(b, rows)) for rows in (slice(at, at + chunk) for at in range(0, pairs, chunk))]
    if matcher == "weights":
        found = each(matched_by_weights, [(spec, *of_some, seed, place) for of_some in some], "weight matching")
    else:
        options = straight_through if matcher == "straight-through" else {}
        calls = [(matcher, spec, model, *of_some, images, seed, place, options) for of_some in some]
        found = each(matched_on_images, calls, f"{matcher} matching")
    parts = []
    with track(pairs if pairs > chunk else 0, f"{matcher} matching", "pair") as bar:
        for part in found:
            parts.append(part)
            bar.update(len(next(iter(part.values()))))
    indices = {group: torch.cat([part[group] for part in parts]) for group in spec.sizes}
    return Permutation(spec, indices)


@kept
def matched_by_weights(spec: PermutationSpec, a: Weights, b: Weights, seed: int, device: str) -> dict[str, Tensor]:
    """The permutations (pairs, units) that weight matching finds for pairs (pairs, ...)."""
    a, b = to(a, device), to(b, device)
    matching = weight_matching(spec, a, b, seed=seed)
    return to(matching.permutation.indices, "cpu")


@kept
def matched_on_images(
    matcher: str,
    spec: PermutationSpec,
    model: nn.Module,
    a: Weights,
    b: Weights,
    images: Split,
    seed: int,
    device: str,
    options: dict[str, int],
) -> dict[str, Tensor]:
    """The permutations (pairs, units) that a matcher which looks at images finds for pairs (pairs, ...)."""
    model = copy.deepcopy(model).to(device).eval()
    a, b = to(a, device), to(b, device)
    pixels, labels = images.pixels.to(device), images.labels.to(device)
    if matcher == "activations":
        matching = activation_matching(spec, a, b, model=model, loader=list(pixels.split(BATCH)))
    elif matcher == "correlation":
        matching = activation_matching(
            spec, a, b, model=model, loader=list(pixels.split(BATCH)), similarity="correlation"
        )
    else:
        dataset = TensorDataset(pixels, labels)
        order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
        # Whole batches are picked at once: image by image, picking would take longer than a gradient.
        loader = DataLoader(
            dataset, batch_size=None, sampler=BatchSampler(order, options["batch_size"], drop_last=True)
        )
        matching = straight_through_matching(
            spec,
            a,
            b,
            model=model,
            loader=loader,
            epochs=options["epochs"],
            seed=seed,
            chunk=len(next(iter(a.values()))),
        )
    return to(matching.permutation.indices, "cpu")
