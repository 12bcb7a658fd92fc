"""Pairs of networks matched by each of Git Re-Basin's three matchers, every finished part kept in the cache."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lab.bookkeeping.cache import kept
from lab.device import pick_device
from lab.images import Split
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import weight_matching
from rebasin.matching.pairs import Matching
from rebasin.matching.straight_through import straight_through_matching
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights

ALGORITHMS = ("naive", "activations", "weights", "straight-through")
BATCH = 1000  # images whose activations are taken at once


def permuted(
    algorithm: str,
    model: nn.Module,
    a: Weights,
    b: Weights,
    images: Split,
    seed: int,
    epochs: int,
    batch_size: int,
    device: str,
    chunk: int,
) -> dict[str, Tensor]:
    """The second network of each pair (pairs, ...), permuted to match the first; for ``naive`` as it is.

    Activations are those on all ``images``; straight-through matching sees them ``epochs`` times over, in batches of
    ``batch_size``. ``chunk`` pairs are matched and kept at once. Raises
    ValueError for an algorithm that is not known.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}: there are {', '.join(ALGORITHMS)}")
    if algorithm == "naive":
        return dict(b)
    spec, device = trace(model, images.images[:2].float() / 255), pick_device(device)
    if algorithm != "straight-through":
        epochs, batch_size = 0, 0  # the others' answers do not depend on them
    pairs = len(next(iter(b.values())))
    parts = []
    with track(pairs if pairs > chunk else 0, f"{algorithm} matching", "pair") as bar:
        for first in range(0, pairs, chunk):
            here = slice(first, first + chunk)
            some_a, some_b = ({name: tensor[here] for name, tensor in one.items()} for one in (a, b))
            parts.append(
                matched_pairs(algorithm, spec, some_a, some_b, model, images, seed, epochs, batch_size, device)
            )
            bar.update(min(chunk, pairs - first))
    indices = {group: torch.cat([part[group] for part in parts]) for group in spec.sizes}
    return Permutation(spec, indices).apply(b)


@kept
def matched_pairs(
    algorithm: str,
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    model: nn.Module,
    images: Split,
    seed: int,
    epochs: int,
    batch_size: int,
    device: str,
) -> dict[str, Tensor]:
    """The permutations (pairs, units) that one matcher finds for pairs (pairs, ...) that go through at once."""
    model = copy.deepcopy(model).to(device).eval()
    a, b = ({name: tensor.to(device) for name, tensor in one.items()} for one in (a, b))
    if algorithm == "weights":
        found = weight_matching(spec, a, b, seed)
    else:
        found = _match_on_images(algorithm, spec, a, b, model, images, seed, epochs, batch_size, device)
    return {group: index.cpu() for group, index in found.permutation.indices.items()}


def _match_on_images(
    algorithm: str,
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    model: nn.Module,
    images: Split,
    seed: int,
    epochs: int,
    batch_size: int,
    device: str,
) -> Matching:
    pixels, labels = images.pixels.to(device), images.labels.to(device)
    if algorithm == "activations":
        return activation_matching(spec, a, b, model, pixels.split(BATCH))
    seen = TensorDataset(pixels, labels)
    order = RandomSampler(seen, generator=torch.Generator().manual_seed(seed))
    # Whole batches are picked at once: image by image, picking would take longer than a gradient.
    loader = DataLoader(seen, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=True))
    return straight_through_matching(spec, a, b, model, loader, epochs, seed=seed, chunk=len(next(iter(a.values()))))
