"""The hierarchy against MergeMany under many recipes, as merged and mended by REPAIR, at the end or at every stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pandas as pd
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.device import pick_device
from lab.images import Dataset, Split
from lab.merges import merge_all
from lab.outputs import evaluate
from lab.training.plan import Planned, train_plan
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.mending import mender
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights, flat, grouped, to


def compare(
    plan: Sequence[Planned],
    sizes: Sequence[int],
    repair_images: int,
    test_images: int,
    seed: int,
    device: str,
    merge_chunk: int,
) -> tuple[pd.DataFrame, list[Dataset], float]:
    """Train every entry of a plan, merge its models and test the nodes: the table, the data sets, seconds of training.

    The table is that of ``measure_merges``, mended at every stage too, with a column for each part of the recipe.
    ``repair_images`` training images are what REPAIR takes its statistics on. Raises ValueError before any training as
    ``sizes_for`` does, and for two entries that are alike.
    """
    fitting = {planned: sizes_for(planned, sizes) for planned in plan}
    if len(fitting) < len(plan):
        raise ValueError("two entries of the plan are alike")
    parts, datasets, training_seconds = [], {}, 0.0
    with track(sum(len(planned.epochs) for planned in plan), "recipes", "snapshot") as bar:
        for planned, epochs, data, model, leaves, seconds in train_plan(plan, device):
            inputs = data.train.sample(repair_images).pixels
            tested = data.test.sample(test_images)
            part = measure_merges(
                model, leaves, inputs, tested, fitting[planned], True, seed, device, planned.chunk, merge_chunk
            )
            parts.append(part.assign(**planned.columns(epochs)))
            datasets[data.fingerprint] = data
            training_seconds += seconds
            bar.update()
    return pd.concat(parts, ignore_index=True), list(datasets.values()), training_seconds


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


def measure_merges(
    model: nn.Module,
    leaves: Weights,
    inputs: Tensor,
    tested: Split,
    sizes: Sequence[int],
    every_stage: bool,
    seed: int,
    device: str,
    chunk: int,
    merge_chunk: int,
) -> pd.DataFrame:
    """Accuracy (a share) and loss (nats) of the leaves (n, ...) and of all their ``merges``, on the images ``tested``.

    A row is one metric of one node; node k of ``n_leaves`` = s owns the leaves k s to (k + 1) s - 1. ``chunk`` models
    are tested at once.
    """
    parts = []
    for algorithm, mended, n_leaves, weights in merges(
        model, leaves, inputs, sizes, every_stage, seed, pick_device(device), merge_chunk
    ):
        answers = evaluate(model, weights, tested, device, chunk)
        kind = {"algorithm": algorithm, "mended": mended, "n_leaves": n_leaves, "stage": n_leaves.bit_length() - 1}
        for metric, of_images in (("accuracy", answers.correct), ("loss", answers.loss)):
            values = of_images.double().mean(1).numpy()
            part = pd.DataFrame({"node": range(len(values)), "value": values})
            parts.append(part.assign(**kind, split="test", metric=metric))
    return pd.concat(parts, ignore_index=True)


def merges(
    model: nn.Module,
    leaves: Weights,
    inputs: Tensor,
    sizes: Sequence[int],
    every_stage: bool,
    seed: int = 0,
    device: str = "cpu",
    chunk: int = 32,
) -> Iterator[tuple[str, str, int, Weights]]:
    """Algorithm, mending, number of leaves, and weights (nodes, ...): of the leaves (n, ...), then of every merge.

    Mending is ``none``, ``repair`` with the leaves as parents, or, of the hierarchy and if ``every_stage``,
    ``repair every stage`` with the two nodes before. ``inputs`` (m, ...) are what REPAIR takes its statistics on;
    ``chunk`` pairs or groups are merged at once. The largest of ``sizes`` is that of a tree.
    """
    spec = trace(model, inputs[:2])
    mend = mender(copy.deepcopy(model).to(device), inputs.to(device))
    tree_leaves = max(sizes)
    yield "unmerged", "none", 1, leaves
    for nodes in merge_all(spec, leaves, tree_leaves, tree_leaves, seed, device, chunk, sizes):
        yield nodes.algorithm, "none", nodes.n_leaves, nodes.weights
        parents = Permutation(spec, nodes.indices).apply(grouped(leaves, nodes.n_leaves))
        yield nodes.algorithm, "repair", nodes.n_leaves, mend(to(nodes.weights, device), to(parents, device))
    if every_stage:
        for size, weights in mended_trees(spec, model, leaves, inputs, tree_leaves, seed, device, chunk).items():
            yield "tree", "repair every stage", size, weights


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
