"""The models that robustness is compared on: merges of every kind, and unmerged models that are as accurate."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.bookkeeping.vocabulary import KIND
from lab.device import pick_device
from lab.images import Dataset
from lab.merges import Nodes, merge_all, unmerged
from lab.networks import build
from lab.outputs import evaluate
from lab.training.early_stopping import stop_early
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.merging.mending import repair
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights, grouped, take, to

# One node of each kind is measured in every block of so many leaves, so that kinds are compared block by block.
BLOCK = 8
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


def compared(
    dataset: Dataset,
    recipe: Recipe,
    epochs: int,
    n_models: int,
    tree_leaves: int,
    many_leaves: int,
    l1_strengths: list[float],
    l2_strengths: list[float],
    penalised_models: int,
    repair_images: int,
    device: str,
    chunk: int,
    merge_chunk: int,
) -> list[Group]:
    """Every group, training and merging whatever the cache does not hold.

    Leaves, hierarchy, MergeMany and naive averages, the first two after REPAIR on ``repair_images`` training images,
    the leaves' ensemble, unmerged models stopped early at the accuracy of each node of the hierarchy, and models with
    an L1 or L2 penalty in their loss. Raises ValueError without held-out images, or unless blocks of eight leaves come
    out even.
    """
    if not len(dataset.held_out.labels):
        raise ValueError("models are matched in accuracy on held-out images, and there are none: set held_out")
    if n_models % BLOCK:
        raise ValueError(
            f"models are compared in blocks of {BLOCK} leaves, so that {n_models} models do not come out even"
        )
    model = build(recipe.architecture, dataset, recipe.width).eval()
    spec = trace(model, dataset.example)
    leaves = train(recipe, dataset, n_models, (epochs,), device, chunk).last
    merged = merge_all(spec, leaves, tree_leaves, many_leaves, recipe.seed, pick_device(device), merge_chunk)
    inputs = dataset.train.sample(repair_images).pixels

    groups = [_one_per_block(nodes, model) for nodes in [unmerged(spec, leaves), *merged]]
    for nodes in merged:
        if nodes.algorithm in ("tree", "merge_many"):
            groups.append(_repaired_group(nodes, model, spec, leaves, inputs, pick_device(device)))
    groups.append(_ensembles(model, leaves))
    hierarchy = [group for group in groups if group.kind[:2] == ("tree", "none")]
    groups += _stopped_early(hierarchy, dataset, recipe, epochs, device, chunk)
    for penalty, strengths in (("l1", l1_strengths), ("l2", l2_strengths)):
        for strength in strengths:
            penalised = replace(recipe, **{penalty: strength})
            weights = train(penalised, dataset, penalised_models, (epochs,), device, chunk).last
            numbers = tuple(range(penalised_models))
            groups.append(Group(penalty, 1, strength, numbers, model, weights, _unaligned(len(numbers))))
    return groups


def _one_per_block(nodes: Nodes, model: nn.Module) -> Group:
    every = max(1, BLOCK // nodes.n_leaves)
    numbers = tuple(range(0, len(nodes.effort), every))
    weights = take(nodes.weights, slice(None, None, every))
    return Group(nodes.algorithm, nodes.n_leaves, 0.0, numbers, model, weights, nodes.alignment[::every])


def _unaligned(n: int) -> Tensor:
    return torch.full((n,), torch.nan, dtype=torch.float64)


def _repaired_group(
    nodes: Nodes, model: nn.Module, spec: PermutationSpec, leaves: Weights, inputs: Tensor, device: str
) -> Group:
    """The group of these nodes after REPAIR."""
    as_merged = _one_per_block(nodes, model)
    rows = torch.tensor(as_merged.nodes)
    chosen = take(grouped(leaves, nodes.n_leaves), rows)
    parents = Permutation(spec, take(nodes.indices, rows)).apply(chosen)
    weights = repaired(model, as_merged.weights, parents, inputs, device)
    return replace(as_merged, mended="repair", weights=weights, alignment=_unaligned(len(rows)))


@kept
def repaired(model: nn.Module, merged: Weights, parents: Weights, inputs: Tensor, device: str) -> dict[str, Tensor]:
    """The merges (n, ...) of these parents (n, leaves, ...) after REPAIR."""
    model = copy.deepcopy(model).to(device)
    return to(repair(model, to(merged, device), to(parents, device), inputs.to(device)), "cpu")


def _ensembles(model: nn.Module, leaves: Weights) -> Group:
    """The ensembles of the first blocks' leaves."""
    weights = {
        f"members.{member}.{key}": tensor[:ENSEMBLES, member]
        for key, tensor in grouped(leaves, BLOCK).items()
        for member in range(BLOCK)
    }
    numbers = tuple(range(len(next(iter(weights.values())))))
    return Group("ensemble", BLOCK, 0.0, numbers, Ensemble(model, BLOCK).eval(), weights, _unaligned(len(numbers)))


def _stopped_early(
    hierarchy: list[Group], dataset: Dataset, recipe: Recipe, epochs: int, device: str, chunk: int
) -> list[Group]:
    """For each node of the hierarchy, its first leaf, stopped at the node's accuracy on the held-out images."""
    model, first = hierarchy[0].model, hierarchy[0]
    numbers = [node * first.n_leaves for node in first.nodes]
    targets = torch.empty(len(hierarchy), len(numbers), dtype=torch.float64)
    for row, group in enumerate(hierarchy):
        accuracy = evaluate(model, group.weights, dataset.held_out, device, chunk).correct.double().mean(1)
        for column, number in enumerate(numbers):
            targets[row, column] = accuracy[group.nodes.index(number // group.n_leaves)]
    weights = stop_early(recipe, dataset, numbers, targets, epochs, device, chunk).weights
    groups = []
    for row, group in enumerate(hierarchy):
        columns = [numbers.index(node * group.n_leaves) for node in group.nodes]
        stopped = {key: tensor[row, columns] for key, tensor in weights.items()}
        groups.append(
            replace(group, algorithm="early_stopped", weights=stopped, alignment=_unaligned(len(group.nodes)))
        )
    return groups
