"""One tree of networks at a time: what all its merges can do, and how much it takes to fool one of each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.bookkeeping.vocabulary import KIND
from lab.controls import BLOCK, Group, after_repair, one_per_block, penalised_leaves, spoiled, stopped_early
from lab.images import Dataset, Split
from lab.measures.attacks import LOSSES
from lab.measures.comparison import merged_and_repaired
from lab.measures.halving import accuracies, perturbed_versions, retained_share
from lab.measures.lipschitz import bounds_hold, eclipse_fast, layer_matrices
from lab.measures.norms import layer_norms
from lab.measures.regularisation import parameters
from lab.measures.robustness import robust_accuracy
from lab.merges import Nodes, merge_all, unmerged
from lab.outputs import evaluate
from lab.training.plan import Planned
from lab.training.train import train
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, take

# Of these kinds each image's outcome is kept, for contrasts over networks and images: algorithm, leaves.
BY_IMAGE = (("unmerged", 1), ("hierarchy", 4), ("hierarchy", 8), ("many", 4), ("many", 8), ("mean", 8))
# Of these, one node of each block is attacked and perturbed, beside the controls.
FOOLED = (("unmerged", 1), ("hierarchy", 2), ("hierarchy", 4), ("hierarchy", 8), ("many", 8))


@dataclass(frozen=True)
class Tree:
    """``leaves`` (n, ...), the networks number ``number`` n and on of a recipe, and all that was merged of them."""

    number: int
    leaves: dict[str, Tensor]
    merged: list[Nodes]
    seconds: float  # of training

    @property
    def first_leaf(self) -> int:
        return self.number * len(next(iter(self.leaves.values())))


@dataclass(frozen=True)
class Trial:
    """What the nodes of a tree are tried with, one of each kind in a block of eight leaves.

    The images ``attacked``, within ``epsilons`` grey levels, in so many ``steps``; the images ``halved``, under so much
    of each perturbation (``amounts``); beside unmerged networks trained with a penalty of ``l2_strength``.
    """

    attacked: Split
    epsilons: Sequence[float]
    steps: int
    halved: Split
    amounts: Mapping[str, float]
    l2_strength: float


@kept
def measured(
    number: int,
    networks: Planned,
    data: Dataset,
    model: nn.Module,
    spec: PermutationSpec,
    merges: Mapping[str, Sequence[int]],
    inputs: Tensor,
    trial: Trial | None,
    device: str,
    chunk: int,
) -> dict[str, Any]:
    """Grow the tree with this number, and measure it: columns of its tables by name, and the ``seconds`` of training.

    Tables ``nodes`` and ``images`` are those of ``every_node``. With a ``trial``, ``attacked`` and ``perturbed`` are
    those of ``under_attack`` and ``under_halving``. ``inputs`` (m, ...) are what REPAIR takes its statistics on.
    """
    tree = grow(number, networks, data, spec, merges, device, chunk)
    nodes, images = every_node(tree, model, spec, data.test, inputs, device, networks.chunk)
    tables = {"nodes": nodes, "images": images}
    if trial is not None:
        groups = fooled_groups(tree, model, spec, data, networks, inputs, trial.l2_strength, device)
        seed, together = networks.recipe.seed, networks.chunk
        tables["attacked"] = under_attack(groups, trial.attacked, trial.epsilons, trial.steps, seed, device, together)
        tables["perturbed"] = under_halving(groups, trial.halved, trial.amounts, seed, device, together)
    columns = {name: numbered(table, tree).to_dict("list") for name, table in tables.items()}
    return {"seconds": tree.seconds, **columns}


def grow(
    number: int,
    networks: Planned,
    data: Dataset,
    spec: PermutationSpec,
    merges: Mapping[str, Sequence[int]],
    device: str,
    chunk: int,
) -> Tree:
    """Train the tree with this number, of ``networks.models`` leaves, and merge it, in an order of its own."""
    first = number * networks.models
    trained = train(networks.recipe, data, networks.models, networks.epochs, device, networks.chunk, first)
    seed = networks.recipe.seed + number
    merged = merge_all(spec, trained.last, merges, seed, device, chunk)
    return Tree(number, trained.last, merged, float(trained.seconds.sum()))


def every_node(
    tree: Tree, model: nn.Module, spec: PermutationSpec, test: Split, inputs: Tensor, device: str, chunk: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy, loss, weight norm and Lipschitz bound of every node, as merged and after REPAIR on ``inputs`` (m, ...).

    The first table has a row per node and metric. The second keeps, of the kinds ``BY_IMAGE`` as merged, which test
    images are classified correctly, bit-packed. Bounds are those of multilayer perceptrons: others have none.
    """
    rows, images = [], []
    for algorithm, mended, n_leaves, weights in merged_and_repaired(
        model, spec, tree.leaves, tree.merged, inputs, device
    ):
        tested = evaluate(model, weights, test, device, chunk)
        measured = {"accuracy": tested.correct.double().mean(1), "loss": tested.loss.double().mean(1)}
        measured |= _norm_and_bound(model, weights)
        kind = (algorithm, mended, n_leaves, 0.0)
        for metric, values in measured.items():
            rows += [(*kind, node, metric, value) for node, value in enumerate(values.tolist())]
        if mended == "none" and (algorithm, n_leaves) in BY_IMAGE:
            packed = np.packbits(tested.correct.numpy(), axis=1)
            images += [(*kind, node, bits.tobytes(), len(test.labels)) for node, bits in enumerate(packed)]
    return (
        pd.DataFrame(rows, columns=[*KIND, "node", "metric", "value"]),
        pd.DataFrame(images, columns=[*KIND, "node", "correct", "images"]),
    )


def _norm_and_bound(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """L2 norm of the weight matrices of networks (n, ...), and their Lipschitz bound where one is proven: (n,) each."""
    measured = {"l2_norm": layer_norms(parameters(model, weights))["all", "l2"]}
    if bounds_hold(model):
        # One network at a time: its matrices in float64 are the largest thing in memory.
        alone = [take(weights, slice(node, node + 1)) for node in range(len(next(iter(weights.values()))))]
        measured["lipschitz"] = torch.cat([eclipse_fast(layer_matrices(model, one)) for one in alone])
    return measured


def fooled_groups(
    tree: Tree,
    model: nn.Module,
    spec: PermutationSpec,
    data: Dataset,
    networks: Planned,
    inputs: Tensor,
    l2_strength: float,
    device: str,
) -> list[Group]:
    """One node of each kind in every block of eight leaves, and unmerged networks as accurate as a merge of eight.

    Where the hierarchy has no node of eight, they are as accurate as its largest below. These controls come by their
    accuracy in three ways: training that stops early, noise on the weights of a trained network, and training to the
    end with an L2 penalty of this strength.
    """
    groups = [
        one_per_block(nodes, model)
        for nodes in (unmerged(spec, tree.leaves), *tree.merged)
        if (nodes.algorithm, nodes.n_leaves) in FOOLED
    ]
    hierarchy = [nodes for nodes in tree.merged if nodes.algorithm == "hierarchy" and nodes.n_leaves <= BLOCK]
    if not hierarchy:
        return groups
    largest = max(hierarchy, key=lambda nodes: nodes.n_leaves)
    as_merged, first = one_per_block(largest, model), tree.first_leaf
    return [
        *groups,
        after_repair(largest, model, spec, tree.leaves, inputs, device),
        *stopped_early([as_merged], data, networks, device, first),
        spoiled(as_merged, tree.leaves, data, tree.number, device, networks.chunk),
        penalised_leaves(as_merged, l2_strength, data, networks, device, first),
    ]


def under_attack(
    groups: Sequence[Group], split: Split, epsilons: Sequence[float], steps: int, seed: int, device: str, chunk: int
) -> pd.DataFrame:
    """Which images of a split each node gets right, whatever FGSM and PGD try in L-infinity, at each of ``epsilons``.

    Both attacks are made with the cross-entropy and with the margin. A row per node and epsilon (in grey levels), the
    images bit-packed.
    """
    radii = [float(epsilon) for epsilon in epsilons]
    _, left = robust_accuracy(groups, [split] * len(groups), "linf", radii, LOSSES, steps, 1, seed, device, chunk)
    return left.drop(columns="norm")


def under_halving(
    groups: Sequence[Group], split: Split, amounts: Mapping[str, float], seed: int, device: str, chunk: int
) -> pd.DataFrame:
    """Accuracy of each node on the images as they are (``clean``) and under so much of each perturbation.

    A row per node and perturbation. ``retained`` is the share of the accuracy above chance that is left, mean over the
    perturbations.
    """
    rows = []
    versions = perturbed_versions(split, amounts, seed)
    chance = 1 / (int(split.labels.max()) + 1)
    for group in groups:
        measured = accuracies(group.model, group.weights, split, versions, device, chunk)
        measured["retained"] = retained_share(measured, chance)
        for kind, values in measured.items():
            amount = amounts.get(kind, np.nan)
            rows += [(*group.kind, node, kind, amount, v) for node, v in zip(group.nodes, values.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=[*KIND, "node", "metric", "amount", "value"])


def numbered(table: pd.DataFrame, tree: Tree) -> pd.DataFrame:
    """A tree's table with the number of the tree, and its nodes numbered on from those of the trees before."""
    return table.assign(tree=tree.number, node=table["node"] + tree.first_leaf // table["n_leaves"])
