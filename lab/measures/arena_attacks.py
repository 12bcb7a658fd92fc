"""Merges of the arena under attack: of networks of one task, those that have the shape of one network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lab.bookkeeping.cache import kept
from lab.bookkeeping.vocabulary import GREY_LEVELS
from lab.contestants import MENDINGS, Arena, Method
from lab.contestants.arena import Together
from lab.measures.attacks import LOSSES, suite, surviving
from rebasin.expanding.expanded import Expanded
from rebasin.weights import Weights, stack


@kept
def under_attack(
    arena: Arena, method: Method, images: int, epsilons: Sequence[float], steps: int
) -> dict[str, list[float]]:
    """Which share of test images survives every attack, for each of ``epsilons`` (in grey levels), by mending.

    Attacks are FGSM and PGD in so many steps, with cross-entropy and margin. Merges are of size 1, as they are
    (``none``) and after REPAIR. Empty if the method makes none of that size. Raises ValueError where parents have heads
    of their own.
    """
    if arena.heads != "shared":
        raise ValueError("only networks of one task are attacked: what would mislead two heads is not defined")
    entry = method(arena, 1.0)
    if entry is None:
        return {}
    split, radii = arena.test[0].sample(images), [epsilon / GREY_LEVELS for epsilon in epsilons]
    shares = {}
    for mended in ("none", "repair"):
        other = MENDINGS[mended](arena, entry)
        if other is None:
            continue
        weights, worst = stack([_of_one_network(other.network)]), torch.ones(len(epsilons), len(split.labels)).bool()
        for _, attack in suite(LOSSES, steps=steps):
            model = copy.deepcopy(arena.model)
            worst &= surviving(model, weights, split.pixels, split.labels, radii, attack, arena.seed, "cpu", 1)[0]
        shares[mended] = worst.double().mean(-1).tolist()
    return shares


def _of_one_network(network: Callable[[Tensor], Tensor]) -> Weights:
    """The weights of an entry of size 1."""
    if isinstance(network, Expanded):
        return network.weights
    assert isinstance(network, Together) and len(network.weights) == 1
    return network.weights[0]
