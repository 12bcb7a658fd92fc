"""The models that robustness is compared on: merges of every kind, and unmerged models that are as accurate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.bookkeeping.vocabulary import KIND
from lab.device import pick_device
from lab.images import Dataset
from lab.merges import Nodes
from lab.outputs import evaluate
from lab.training.early_stopping import stop_early
from lab.training.plan import Planned
from lab.training.train import train
from rebasin.merging.mending import repair
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, grouped, take, to

# One node of each kind is measured in every block of so many leaves, so that kinds are compared block by block.
BLOCK = 8
PENALTIES = ("l1", "l2")
MOST_NOISE = 8.0  # deviations of a weight matrix: more than enough to leave nothing of what it knew
BISECTIONS = 12  # between no noise and the most
ENSEMBLES = 2  # blocks whose ensemble is measured: each costs as much as all its members


@dataclass(frozen=True)
class Group:
    """Models of one kind: ``weights`` (n, ...) for ``model``, and the number of each in ``nodes``.

    Node k of ``n_leaves`` = s owns the leaves k s to (k + 1) s - 1; a model that was stopped early is numbered as the
    node of the hierarchy whose accuracy it has. ``strength`` is that of the penalty a model was trained with, else 0.
    ``alignment`` (n,) is that of a plain mean's permuted leaves, NaN for other models. ``mended`` says what was done to
    a merge's statistics.
    """

    algorithm: str
    n_leaves: int
    strength: float
    nodes: tuple[int, ...]
    model: nn.Module
    weights: dict[str, Tensor]
    alignment: Tensor
    mended: str = "none"

    @property
    def kind(self) -> tuple[str, str, int, float]:
        """Its values in the columns ``KIND`` of every table."""
        return tuple(getattr(self, column) for column in KIND)


class Ensemble(nn.Module):
    """The mean of the logits of ``n`` models."""

    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(model) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


def check_comparison(networks: Planned) -> None:
    """Raise ValueError, before anything is trained, unless the networks make whole blocks, and images are held out."""
    if not networks.held_out:
        raise ValueError("models are matched in accuracy on held-out images, and there are none: set held_out")
    if networks.models % BLOCK:
        raise ValueError(
            f"models are compared in blocks of {BLOCK} leaves, so that {networks.models} models do not come out even"
        )


def one_per_block(nodes: Nodes, model: nn.Module) -> Group:
    """The first of these nodes in every block of eight leaves, or all if they are as large.

    Raises ValueError for nodes that do not divide a block, and are not made of whole ones.
    """
    if BLOCK % nodes.n_leaves and nodes.n_leaves % BLOCK:
        raise ValueError(f"nodes of {nodes.n_leaves} leaves cannot be compared block by block, of {BLOCK} leaves each")
    every = max(1, BLOCK // nodes.n_leaves)
    numbers = tuple(range(0, len(nodes.effort), every))
    weights = take(nodes.weights, slice(None, None, every))
    return Group(nodes.algorithm, nodes.n_leaves, 0.0, numbers, model, weights, nodes.alignment[::every])


def after_repair(
    nodes: Nodes, model: nn.Module, spec: PermutationSpec, leaves: Weights, inputs: Tensor, device: str
) -> Group:
    """The same after REPAIR, with the statistics that their leaves have on ``inputs`` (m, ...)."""
    as_merged = one_per_block(nodes, model)
    rows = torch.tensor(as_merged.nodes)
    chosen = take(grouped(leaves, nodes.n_leaves), rows)
    parents = Permutation(spec, take(nodes.indices, rows)).apply(chosen)
    weights = repaired(model, as_merged.weights, parents, inputs, pick_device(device))
    return replace(as_merged, mended="repair", weights=weights, alignment=_unaligned(len(rows)))


@kept
def repaired(model: nn.Module, merged: Weights, parents: Weights, inputs: Tensor, device: str) -> dict[str, Tensor]:
    """The merges (n, ...) of these parents (n, leaves, ...) after REPAIR."""
    model = copy.deepcopy(model).to(device)
    return to(repair(model, to(merged, device), to(parents, device), inputs.to(device)), "cpu")


def ensembles(model: nn.Module, leaves: Weights) -> Group:
    """The ensembles of the first blocks' leaves."""
    weights = {}
    for key, tensor in grouped(leaves, BLOCK).items():
        for member in range(BLOCK):
            weights[f"members.{member}.{key}"] = tensor[:ENSEMBLES, member]
    numbers = tuple(range(len(next(iter(weights.values())))))
    return Group("ensemble", BLOCK, 0.0, numbers, Ensemble(model, BLOCK).eval(), weights, _unaligned(len(numbers)))


def stopped_early(
    merged: Sequence[Group], dataset: Dataset, networks: Planned, device: str, first_leaf: int = 0
) -> list[Group]:
    """For each merge in these groups, its first leaf, stopped in its training at the merge's held-out accuracy.

    ``first_leaf`` is the number, among the recipe's networks, of the leaf that the nodes' numbers begin at.
    """
    if not merged:
        return []
    model, first = merged[0].model, merged[0]
    numbers = [node * first.n_leaves for node in first.nodes]
    targets = torch.empty(len(merged), len(numbers), dtype=torch.float64)
    for row, group in enumerate(merged):
        accuracy = evaluate(model, group.weights, dataset.held_out, device, networks.chunk).correct.double().mean(1)
        for column, number in enumerate(numbers):
            targets[row, column] = accuracy[group.nodes.index(number // group.n_leaves)]
    leaves = [first_leaf + number for number in numbers]
    stopped = stop_early(networks.recipe, dataset, leaves, targets, networks.epochs[-1], device, networks.chunk).weights
    groups = []
    for row, group in enumerate(merged):
        columns = torch.tensor([numbers.index(node * group.n_leaves) for node in group.nodes])
        weights = take(take(stopped, row), columns)
        groups.append(
            replace(group, algorithm="early_stopped", weights=weights, alignment=_unaligned(len(group.nodes)))
        )
    return groups


def spoiled(merged: Group, leaves: Weights, dataset: Dataset, seed: int, device: str, chunk: int) -> Group:
    """For each merge of a group, its first leaf, spoiled by noise until it is as accurate on held-out images.

    The weight matrices of the leaf, of those (n, ...) that the nodes are made of, get Gaussian noise of so many times
    each matrix's own deviation. The multiple is found by bisection; the network nearest to the merge is taken.
    """
    model, held_out = merged.model, dataset.held_out

    def accuracy(weights: Weights) -> Tensor:
        return evaluate(model, weights, held_out, device, chunk).correct.double().mean(1)

    first = take(leaves, torch.tensor([node * merged.n_leaves for node in merged.nodes]))
    generator = torch.Generator().manual_seed(seed)
    noise = {}
    for key, tensor in first.items():
        if tensor.ndim > 2:  # a matrix of each network
            deviation = tensor.flatten(1).std(1)
            noise[key] = torch.randn(tensor.shape, generator=generator) * _for_each(deviation, tensor)
    target = accuracy(merged.weights)
    low, high = torch.zeros(len(target)), torch.full((len(target),), MOST_NOISE)
    nearest, best = dict(first), (accuracy(first) - target).abs()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        noisy = dict(first)
        for key, tensor in noise.items():
            noisy[key] = first[key] + _for_each(middle, tensor) * tensor
        reached = accuracy(noisy)
        nearer = (reached - target).abs() < best
        best = torch.where(nearer, (reached - target).abs(), best)
        for key in noise:
            nearest[key] = torch.where(_for_each(nearer, noise[key]), noisy[key], nearest[key])
        low, high = torch.where(reached > target, middle, low), torch.where(reached > target, high, middle)
    return replace(merged, algorithm="noise", weights=nearest, alignment=_unaligned(len(merged.nodes)))


def penalised_leaves(
    merged: Group, strength: float, dataset: Dataset, networks: Planned, device: str, first_leaf: int
) -> Group:
    """For each merge of a group, its first leaf, trained anew with an L2 penalty of this strength, to the end.

    ``first_leaf`` is the number, among the recipe's networks, of the leaf that the nodes' numbers begin at.
    """
    recipe = replace(networks.recipe, l2=strength)
    trained = [
        train(recipe, dataset, 1, networks.epochs, device, first=first_leaf + node * merged.n_leaves).last
        for node in merged.nodes
    ]
    weights = {key: torch.cat([one[key] for one in trained]) for key in trained[0]}
    unaligned = _unaligned(len(merged.nodes))
    return replace(merged, algorithm="l2", strength=strength, weights=weights, alignment=unaligned)


def penalised(
    model: nn.Module,
    dataset: Dataset,
    networks: Planned,
    penalties: Mapping[str, Sequence[float]],
    n_models: int,
    device: str,
) -> list[Group]:
    """Models trained with a penalty in their loss: ``n_models`` of each strength, as ``{"l1": [0.001], "l2": []}``."""
    groups = []
    for penalty, strengths in penalties.items():
        if penalty not in PENALTIES:
            raise ValueError(f"unknown penalty {penalty!r}: there are {', '.join(PENALTIES)}")
        for strength in strengths:
            recipe = replace(networks.recipe, **{penalty: strength})
            weights = train(recipe, dataset, n_models, networks.epochs, device, networks.chunk).last
            numbers = tuple(range(n_models))
            groups.append(Group(penalty, 1, strength, numbers, model, weights, _unaligned(n_models)))
    return groups


def _for_each(values: Tensor, tensor: Tensor) -> Tensor:
    """A value of each network (n,), with axes of one to go with its tensor (n, ...)."""
    return values.reshape(-1, *[1] * (tensor.ndim - 1))


def _unaligned(n: int) -> Tensor:
    return torch.full((n,), torch.nan, dtype=torch.float64)
