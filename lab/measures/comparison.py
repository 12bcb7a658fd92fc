"""Merges of many recipes tested alike: as merged, and mended by REPAIR at the end or at every stage."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.device import pick_device
from lab.images import Split
from lab.merges import Nodes
from lab.outputs import evaluate
from lab.training.plan import Planned
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.mending import mender
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec
from rebasin.weights import Weights, flat, grouped, to

Kind = tuple[str, str, int, Weights]  # algorithm, mending, number of leaves, and the weights (nodes, ...)


def check_plan(plan: Sequence[Planned], sizes: Sequence[int]) -> None:
    """Raise ValueError, before anything is trained, for two entries that are alike, and as ``sizes_for`` does."""
    for planned in plan:
        sizes_for(planned, sizes)
    if len(set(plan)) < len(plan):
        raise ValueError("two entries of the plan are alike")


def sizes_for(planned: Planned, sizes: Sequence[int]) -> list[int]:
    """Those of ``sizes`` that an entry has models for.

    Raises ValueError unless the sizes are 2, 4, 8, ... and the models a multiple of the largest that fits.
    """
    if not sizes or list(sizes) != [2**stage for stage in range(1, len(sizes) + 1)]:
        raise ValueError(f"comparison_sizes must be 2, 4, 8, ...: got {list(sizes)}")
    fitting = [size for size in sizes if size <= planned.models]
    if not fitting or planned.models % fitting[-1]:
        needed = fitting[-1] if fitting else sizes[0]
        raise ValueError(f"recipe {planned.name!r} needs a multiple of {needed} models, got {planned.models}")
    return fitting


def accuracy_and_loss(model: nn.Module, kinds: Iterable[Kind], tested: Split, device: str, chunk: int) -> pd.DataFrame:
    """Accuracy (a share) and loss (nats) of networks of every kind on the images ``tested``.

    A row is one metric of one node; node k of ``n_leaves`` = s owns the leaves k s to (k + 1) s - 1. ``chunk`` models
    are tested at once.
    """
    parts = []
    for algorithm, mended, n_leaves, weights in kinds:
        answers = evaluate(model, weights, tested, device, chunk)
        kind = {"algorithm": algorithm, "mended": mended, "n_leaves": n_leaves, "stage": n_leaves.bit_length() - 1}
        for metric, of_images in (("accuracy", answers.correct), ("loss", answers.loss)):
            values = of_images.double().mean(1).numpy()
            part = pd.DataFrame({"node": range(len(values)), "value": values})
            parts.append(part.assign(**kind, split="test", metric=metric))
    return pd.concat(parts, ignore_index=True)


def merged_and_repaired(
    model: nn.Module, spec: PermutationSpec, leaves: Weights, merged: Sequence[Nodes], inputs: Tensor, device: str
) -> Iterator[Kind]:
    """The leaves (n, ...), and each of their merges: as it is, and after REPAIR with its leaves as parents.

    ``inputs`` (m, ...) are what REPAIR takes its statistics on.
    """
    device = pick_device(device)
    mend = mender(copy.deepcopy(model).to(device), inputs.to(device))
    yield "unmerged", "none", 1, leaves
    for nodes in merged:
        yield nodes.algorithm, "none", nodes.n_leaves, nodes.weights
        parents = Permutation(spec, nodes.indices).apply(grouped(leaves, nodes.n_leaves))
        yield nodes.algorithm, "repair", nodes.n_leaves, mend(to(nodes.weights, device), to(parents, device))


def repaired_at_every_stage(
    model: nn.Module,
    spec: PermutationSpec,
    leaves: Weights,
    largest: int,
    inputs: Tensor,
    seed: int,
    device: str,
    chunk: int,
) -> Iterator[Kind]:
    """The hierarchy's nodes, each repaired with the two nodes before as parents; ``chunk`` pairs are merged at once."""
    trees = mended_trees(spec, model, leaves, inputs, largest, seed, pick_device(device), chunk)
    for size, weights in trees.items():
        yield "hierarchy", "repair every stage", size, weights


@kept
def mended_trees(
    spec: PermutationSpec,
    model: nn.Module,
    leaves: Weights,
    inputs: Tensor,
    tree_leaves: int,
    seed: int,
    device: str,
    chunk: int,
) -> dict[int, dict[str, Tensor]]:
    """The nodes of each size of trees that are mended at every stage."""
    mend = mender(copy.deepcopy(model).to(device), inputs.to(device))
    groups = to(grouped(leaves, tree_leaves), device)
    stages = merge_hierarchical(spec, groups, seed=seed, chunk=chunk, mend=mend).stages
    return {2**number: to(flat(stage.weights, 2), "cpu") for number, stage in enumerate(stages, 1)}
