"""Variants of MergeMany and of the hierarchy, each merge tested: which of them puts the hierarchy ahead?"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.images import Split
from lab.outputs import evaluate
from rebasin.matching.by_activations import activation_matching
from rebasin.matching.by_weights import TOLERANCE, weight_matching
from rebasin.matching.pairs import Matching
from rebasin.merging import MendAt, merge
from rebasin.merging.mending import mender
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, is_whole, mean, over, point_between, take, to

Match = Callable[[Weights, Weights, int], Matching]  # of targets, of models, and the seed of the visiting order


@dataclass(frozen=True)
class Variant:
    """How MergeMany is done; by default as Git Re-Basin's Algorithm 3 is printed."""

    own_share: bool = False  # whether a model has its own share in the mean that it is matched to
    at_once: bool = False  # whether all are matched to the means as they were when the round began
    max_sweeps: int = 100  # of a matching
    activations: bool = False  # whether models are matched by activations, and not by weights


VARIANTS = {
    "printed": Variant(),
    "one sweep": Variant(max_sweeps=1),
    "own share": Variant(own_share=True),
    "at once": Variant(at_once=True),
    "activations": Variant(activations=True),
}
CHUNK, IMAGES = 32, 1000  # models and images that are tested at once: a pixel is made a number once for all of them
# The hierarchy is mended at the end or at every stage, MergeMany only at the end.
MENDED: dict[str, MendAt] = {"repair": "end", "repair every stage": "every stage"}


def check_variants(entries: Sequence[Mapping[str, Any]], models: int) -> None:
    """Raise ValueError, before anything is trained, for what cannot be tried.

    An entry is a ``variant``; ``sizes``, networks in a group, 4, 8, ..., into which all are shared out; ``rounds``,
    ascending, after which MergeMany is tested; and ``orders``, the seeds of visiting orders and pairings.
    """
    for entry in entries:
        if set(entry) != {"variant", "sizes", "rounds", "orders"}:
            raise ValueError(f"an entry has variant, sizes, rounds and orders: got {', '.join(entry)}")
        name, rounds = entry["variant"], entry["rounds"]
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name!r}: there are {', '.join(VARIANTS)}")
        for size in entry["sizes"]:
            if size < 4 or size & (size - 1) or models % size:
                raise ValueError(f"{name!r}: {models} networks do not make groups of {size}, one of 4, 8, ...")
        if not rounds or rounds != sorted(set(rounds)) or rounds[0] < 1:
            raise ValueError(f"rounds of {name!r} are ascending numbers from 1: got {rounds}")


def many_by_round(
    spec: PermutationSpec, groups: Weights, variant: Variant, match: Match, seed: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """MergeMany on groups of models (groups, n, ...), n > 1: after each round the permuted models, and their rounds.

    A group is done after a round in which no matching gained anything, and takes no more of them: rounds are
    (groups,). The models are changed in place when the next round is asked for. By activations, and all at once, no sum
    grows with every matching, so that the rounds need not end by themselves.
    """
    moved = over(groups, Tensor.clone)
    some = moved[next(iter(spec.shapes))]
    count, n = some.shape[:2]
    rounds = torch.zeros(count, dtype=torch.int64, device=some.device)
    active = torch.ones(count, dtype=torch.bool, device=some.device)
    rng = np.random.default_rng(seed)
    while active.any():
        rows = active.nonzero().squeeze(-1)
        gained = torch.zeros_like(active[rows])
        total = {key: tensor[rows].sum(1) for key, tensor in moved.items() if not is_whole(tensor)}
        for i in rng.permutation(n):
            model = {key: tensor[rows, i] for key, tensor in moved.items()}
            target = dict(model)
            for key in total:
                target[key] = total[key] / n if variant.own_share else (total[key] - model[key]) / (n - 1)
            matching = match(target, model, int(rng.integers(2**31)))
            gained |= matching.maximised_by_sweep[:, -1] - matching.maximised_by_sweep[:, 0] > TOLERANCE
            closer = matching.apply(model)
            if not variant.at_once:
                for key in total:
                    total[key] += closer[key] - model[key]
            for key, tensor in moved.items():
                tensor[rows, i] = closer[key]
        rounds[rows] += 1
        active[rows] = gained
        yield moved, rounds


def tree(groups: Weights, match: Match, seed: int) -> dict[str, Tensor]:
    """The hierarchy of each group (groups, n, ...) by any way to match, its pairs drawn at random at every stage.

    By weights it is ``rebasin.merging.hierarchy.merge_hierarchical`` with ``shuffle``.
    """
    nodes, rng = dict(groups), np.random.default_rng(seed)
    while (n := next(iter(nodes.values())).shape[1]) > 1:
        order = torch.as_tensor(rng.permutation(n), device=next(iter(nodes.values())).device)
        a, b = take(nodes, order[::2], 1), take(nodes, order[1::2], 1)
        b = match(a, b, int(rng.integers(2**31))).apply(b)
        nodes = {key: a[key] if is_whole(a[key]) else point_between(a[key], b[key], 0.5) for key in a}
    return take(nodes, 0, 1)


def matcher(spec: PermutationSpec, variant: Variant, model: nn.Module, inputs: Tensor) -> Match:
    """How a variant matches models to targets; ``inputs`` (m, ...) are what activations are taken on."""

    def by_weights(target: Weights, models: Weights, seed: int) -> Matching:
        pairs = spec.leading_axes(models).numel()  # all at once: twice as fast as one by one, where they are small
        return weight_matching(spec, target, models, seed=seed, max_sweeps=variant.max_sweeps, chunk=pairs)

    def by_activations(target: Weights, models: Weights, seed: int) -> Matching:
        return activation_matching(spec, target, models, model=model, loader=inputs)

    return by_activations if variant.activations else by_weights


@kept
def many_tested(
    spec: PermutationSpec,
    model: nn.Module,
    groups: Weights,
    variant: Variant,
    limits: Sequence[int],
    seed: int,
    inputs: Tensor,
    tested: Split,
    device: str,
) -> list[dict[str, Any]]:
    """The test accuracy (a share) of MergeMany stopped after each number of rounds of ``limits``, ascending.

    A row is one group. ``rounds`` is how many it took, which may be fewer, and ``matchings`` how many that makes. After
    the last of the limits it is tested once more after REPAIR, with the permuted models as parents.
    """
    model, inputs, groups = copy.deepcopy(model).to(device), inputs.to(device), to(groups, device)
    n = groups[next(iter(spec.shapes))].shape[1]
    rows: list[dict[str, Any]] = []

    def add(limit: int, mended: str, shares: list[float]) -> None:
        for node, (value, made) in enumerate(zip(shares, rounds.tolist(), strict=True)):
            kind = {"limit": limit, "mended": mended, "node": node, "rounds": made, "matchings": made * n}
            rows.append(kind | {"value": value})

    running = many_by_round(spec, groups, variant, matcher(spec, variant, model, inputs), seed)
    last = 0
    for limit in limits:
        step = None
        for step in itertools.islice(running, limit - last):
            moved, rounds = step
        if step is not None:  # otherwise all groups were done before, and are what they were
            shares = accuracies(model, mean(moved, 1), tested, device)
        add(limit, "none", shares)
        last = limit
    add(last, "repair", accuracies(model, mender(model, inputs)(mean(moved, 1), moved), tested, device))
    return rows


@kept
def hierarchy_tested(
    spec: PermutationSpec,
    model: nn.Module,
    groups: Weights,
    variant: Variant,
    seed: int,
    inputs: Tensor,
    tested: Split,
    device: str,
) -> list[dict[str, Any]]:
    """The test accuracy (a share) of the hierarchy of each group (groups, n, ...), whose pairs are drawn by ``seed``.

    As merged; by weights, also after REPAIR at the end and with REPAIR at every stage.
    """
    model, inputs, groups = copy.deepcopy(model).to(device), inputs.to(device), to(groups, device)
    match = matcher(spec, variant, model, inputs)
    merged = {"none": tree(groups, match, seed)}
    for mended, at in {} if variant.activations else MENDED.items():
        mend = mender(model, inputs)
        merged[mended] = merge(spec, groups, by="hierarchy", seed=seed, shuffle=True, mend=mend, mend_at=at).weights
    n = groups[next(iter(spec.shapes))].shape[1]
    return [
        {"mended": mended, "node": node, "matchings": n - 1, "value": value}
        for mended, weights in merged.items()
        for node, value in enumerate(accuracies(model, weights, tested, device))
    ]


def accuracies(model: nn.Module, weights: Weights, tested: Split, device: str) -> list[float]:
    """The share of the tested images that each model (n, ...) is right on."""
    return evaluate(model, weights, tested, device, CHUNK, IMAGES).correct.double().mean(1).tolist()
