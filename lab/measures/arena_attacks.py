"""Merges of the arena under attack: of networks of one task the shape of one network, of two tasks both heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.bookkeeping.vocabulary import GREY_LEVELS
from lab.contestants import MENDINGS, WITHOUT_GRAMS, Arena, Method, contestants
from lab.contestants.arena import Entry, Together
from lab.measures.arena import gram_seconds, try_method
from lab.measures.attacks import LOSSES, suite, surviving
from rebasin.expanding.expanded import Expanded
from rebasin.weights import Weights, stack


@kept
def under_attack(
    arena: Arena, method: Method, size: float, images: int, epsilons: Sequence[float], steps: int
) -> dict[str, list[float]]:
    """Which share of test images survives every attack, for each of ``epsilons`` (in grey levels), by mending.

    Attacks are FGSM and PGD in so many steps, with cross-entropy and margin. Merges are attacked as they are (``none``)
    and after REPAIR. Of networks of one task they have the shape of one network: empty for others. Heads side by side
    are attacked together: so many ``images`` of each task, whose task nobody tells, and an attack follows the gradient
    of the answer over all classes, through both heads. Empty if the method makes none of that size.
    """
    entry = method(arena, size)
    if entry is None or (arena.heads == "shared" and _of_one_network(arena, entry) is None):
        return {}
    splits, radii = [split.sample(images) for split in arena.test], [epsilon / GREY_LEVELS for epsilon in epsilons]
    pixels = torch.cat([split.pixels for split in splits])
    labels = torch.cat([split.labels + task * arena.classes for task, split in enumerate(splits)])
    shares = {}
    for mended in ("none", "repair", "repair by task"):
        other = MENDINGS[mended](arena, entry)
        if other is None:
            continue
        network, weights = _attacked(arena, other)
        worst = torch.ones(len(epsilons), len(labels)).bool()
        for _, attack in suite(LOSSES, steps=steps):
            model = copy.deepcopy(network)
            worst &= surviving(model, weights, pixels, labels, radii, attack, arena.seed, "cpu", 1)[0]
        shares[mended] = worst.double().mean(-1).tolist()
    return shares


def try_all(
    arena: Arena, sizes: Mapping[str, Sequence[float]], images: int, epsilons: Sequence[float], steps: int
) -> None:
    """Try all these methods at their sizes in one arena, and attack so many ``images`` of each task, if any.

    Nothing is returned: all is kept, for who asks ``try_method``, ``gram_seconds`` and ``under_attack`` for it.
    """
    arena = replace(arena)  # what it computes for itself, such as the Gram matrices, is gone when this is done
    methods = contestants(list(sizes))
    if set(methods) - WITHOUT_GRAMS:
        gram_seconds(arena)
    for name, method in methods.items():
        for size in sizes[name]:
            try_method(arena, method, size)
            if images:
                under_attack(arena, method, size, images, epsilons, steps)


class SideBySide(nn.Module):
    """Networks with a head each, or one with all heads: the logarithms of probabilities over all classes (m, classes).

    Each head's softmax goes over its own classes, as where accuracy is measured: so the likeliest class of all heads is
    the answer, and an attack may lower the right head or raise the other one.
    """

    def __init__(self, networks: Sequence[nn.Module], heads: int) -> None:
        super().__init__()
        self.networks, self.heads = nn.ModuleList(networks), heads

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.cat([network(x) for network in self.networks], 1)
        return logits.unflatten(1, (self.heads, -1)).log_softmax(-1).flatten(1)


def _attacked(arena: Arena, entry: Entry) -> tuple[nn.Module, Weights]:
    """A module that answers as an entry, and its weights (1, ...)."""
    own = _of_one_network(arena, entry) if arena.heads == "shared" else None
    if own is not None:
        return arena.model, stack([own])
    if isinstance(entry.network, Together):
        networks = [copy.deepcopy(arena.model) for _ in entry.network.weights]
        for network, weights in zip(networks, entry.network.weights, strict=True):
            network.load_state_dict(dict(weights))
    else:
        assert isinstance(entry.network, nn.Module)
        networks = [entry.network]
    module = SideBySide(networks, 1 if entry.one_head else len(arena.test)).eval()
    return module, stack([module.state_dict()])


def _of_one_network(arena: Arena, entry: Entry) -> Weights | None:
    """The weights of an entry that has the shape of a parent; None for another."""
    network = entry.network
    if isinstance(network, Expanded):
        weights = network.weights
        alike = all(weights[key].shape == tensor.shape for key, tensor in arena.model.state_dict().items())
        return weights if alike else None
    assert isinstance(network, Together)
    return network.weights[0] if len(network.weights) == 1 else None
