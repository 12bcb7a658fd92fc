"""Pairs of networks matched by each of Git Re-Basin's three matchers, every finished part kept in the cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from rebasin.activations import activation_matching
from rebasin.lab.cache import cached, code_fingerprint, fingerprint, imported_modules
from rebasin.lab.data import Split
from rebasin.lab.device import pick_device
from rebasin.match import METHODS
from rebasin.matching import Matching, weight_matching
from rebasin.permutation import Permutation, PermutationSpec, Weights
from rebasin.progress import track
from rebasin.straight_through import straight_through_matching

ALGORITHMS = ("naive", "activations", "weights", "straight-through")
BATCH = 1000  # images whose activations are taken at once


def permuted(
    algorithm: str,
    model: nn.Module,
    a: Weights,
    b: Weights,
    images: Split,
    key: str,
    seed: int,
    epochs: int,
    batch_size: int,
    device: str,
    chunk: int,
) -> dict[str, Tensor]:
    """The second network of each pair (pairs, ...), permuted to match the first; for ``naive`` as it is.

    Activations are those on all ``images``; straight-through matching sees them ``epochs`` times over, in batches of
    ``batch_size``. ``chunk`` pairs are matched and kept at once; ``key`` tells the content of all pairs. Raises
    ValueError for an algorithm that is not known.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}: there are {', '.join(ALGORITHMS)}")
    if algorithm == "naive":
        return dict(b)
    place = pick_device(device)
    model, spec = model.to(place).eval(), PermutationSpec.feed_forward(model)
    method = METHODS[algorithm].__module__
    own = [epochs, batch_size] if algorithm == "straight-through" else []
    code = code_fingerprint(__name__, *imported_modules(f"import {method}"))
    pairs = len(next(iter(b.values())))

    def build(rows: slice) -> dict[str, Tensor]:
        first, second = ({name: tensor[rows].to(place) for name, tensor in one.items()} for one in (a, b))
        found = _match(algorithm, spec, first, second, model, images, seed, epochs, batch_size, place)
        return {group: index.cpu() for group, index in found.permutation.indices.items()}

    parts = []
    with track(pairs if pairs > chunk else 0, f"{algorithm} matching", "pair") as bar:
        for first in range(0, pairs, chunk):
            rows = slice(first, min(first + chunk, pairs))
            name = fingerprint(key, algorithm, [rows.start, rows.stop], seed, own, code)
            parts.append(cached("matched", name, lambda rows=rows: build(rows)))
            bar.update(rows.stop - rows.start)
    indices = {group: torch.cat([part[group] for part in parts]) for group in spec.sizes}
    return Permutation(spec, indices).apply(b)


def _match(
    algorithm: str,
    spec: PermutationSpec,
    a: Weights,
    b: Weights,
    model: nn.Module,
    images: Split,
    seed: int,
    epochs: int,
    batch_size: int,
    place: torch.device,
) -> Matching:
    """One matcher on pairs (pairs, ...) that go through at once."""
    if algorithm == "weights":
        return weight_matching(spec, a, b, seed)
    pixels, labels = images.images.to(place).float() / 255, images.labels.to(place)
    if algorithm == "activations":
        return activation_matching(spec, a, b, model, pixels.split(BATCH))
    seen = TensorDataset(pixels, labels)
    order = RandomSampler(seen, generator=torch.Generator().manual_seed(seed))
    # Whole batches are picked at once: image by image, picking would take longer than a gradient.
    loader = DataLoader(seen, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=True))
    return straight_through_matching(spec, a, b, model, loader, epochs, seed=seed, chunk=len(next(iter(a.values()))))
