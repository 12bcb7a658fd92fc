"""The hierarchy against MergeMany under many recipes, as merged and mended by REPAIR, at the end or at every stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from torch import Tensor, nn

from lab.bookkeeping.cache import kept
from lab.device import pick_device
from lab.images import Dataset
from lab.merges import grouped, merge_all
from lab.outputs import evaluate
from lab.training.plan import Planned, train_plan
from rebasin.merging.hierarchy import merge_hierarchical
from rebasin.merging.mending import repair, reset_norms
from rebasin.permutation import Permutation
from rebasin.progress import track
from rebasin.spec import PermutationSpec
from rebasin.tracing import trace
from rebasin.weights import Weights


def compare(
    plan: Sequence[Planned],
    sizes: Sequence[int],
    repair_images: int,
    test_images: int,
    seed: int,
    device: str,
    chunk: int,
) -> tuple[pd.DataFrame, list[Dataset], float]:
    """Train every entry of a plan, merge its models and test the nodes: the table, the data sets, seconds of training.

    A row is a node's accuracy or loss on ``test_images`` images; node k of n leaves owns leaves k n to (k + 1) n - 1.
    ``repair_images`` training images are what REPAIR takes its statistics on. ``chunk`` pairs or groups are merged at
    once. Raises ValueError before any training as ``sizes_for`` does, and for two entries that are alike.
    """
    fitting = {planned: sizes_for(planned, sizes) for planned in plan}
    if len(fitting) < len(plan):
        raise ValueError("two entries of the plan are alike")
    parts, datasets, training_seconds = [], {}, 0.0
    with track(sum(len(planned.epochs) for planned in plan), "recipes", "snapshot") as bar:
        for planned, epochs, data, model, leaves, seconds in train_plan(plan, device):
            inputs = data.train.sample(repair_images).pixels
            tested = data.test.sample(test_images)
            found = merges(model, leaves, inputs, fitting[planned], seed, pick_device(device), chunk)
            for algorithm, mended, size, weights in found:
                each = evaluate(model, weights, tested, device, planned.chunk)
                metrics = {"accuracy": each.correct.double().mean(1), "loss": each.loss.double().mean(1)}
                told = planned.columns(epochs) | {"algorithm": algorithm, "mended": mended, "n_leaves": size}
                for metric, values in metrics.items():
                    part = pd.DataFrame({"node": range(len(values)), "value": values.numpy()})
                    parts.append(part.assign(**told, stage=size.bit_length() - 1, split="test", metric=metric))
            datasets[data.fingerprint] = data
            training_seconds += seconds
            bar.update()
    return pd.concat(parts, ignore_index=True), list(datasets.values()), training_seconds


def sizes_for(planned: Planned, sizes: Sequence[int]) -> list[int]:
    """Those of ``sizes`` that an entry has models for.

    Raises ValueError unless the sizes are 2, 4, 8, ... and the models a multiple of the largest that fits.
    """
    if not sizes or list(sizes) != [2**stage for stage in range(1, len(sizes) + 1)]:
        raise ValueError(f"where_sizes must be 2, 4, 8, ...: got {list(sizes)}")
    fitting = [size for size in sizes if size <= planned.models]
    if not fitting or planned.models % fitting[-1]:
        needed = fitting[-1] if fitting else sizes[0]
        raise ValueError(f"recipe {planned.name!r} needs a multiple of {needed} models, got {planned.models}")
    return fitting


def merges(
    model: nn.Module,
    leaves: Weights,
    inputs: Tensor,
    sizes: Sequence[int],
    seed: int = 0,
    device: str = "cpu",
    chunk: int = 32,
) -> Iterator[tuple[str, str, int, Weights]]:
    """Algorithm, mending, number of leaves, and weights (nodes, ...): of the leaves (n, ...), then of every merge.

    Mending is ``none``, at the ``end`` with the leaves as parents, or, of the tree, at ``every stage`` with the two
    nodes before. ``inputs`` (m, ...) are what REPAIR takes its statistics on.
    """
    spec = trace(model, inputs[:2])
    mend = mender(copy.deepcopy(model).to(device), inputs.to(device))
    yield "unmerged", "none", 1, leaves
    for nodes in merge_all(spec, leaves, sizes[-1], sizes[-1], seed, device, chunk):
        yield nodes.algorithm, "none", nodes.n_leaves, nodes.weights
        parents = Permutation(spec, nodes.indices).apply(grouped(leaves, nodes.n_leaves))
        yield nodes.algorithm, "end", nodes.n_leaves, mend(_to(device, nodes.weights), _to(device, parents))

    for size, weights in mended_trees(spec, model, leaves, inputs, sizes[-1], seed, device, chunk).items():
        yield "tree", "every stage", size, weights


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
    stages = merge_hierarchical(spec, _to(device, grouped(leaves, tree_leaves)), seed, chunk=chunk, mend=mend)
    return {
        2**number: {name: tensor.flatten(0, 1).cpu() for name, tensor in stage.weights.items()}
        for number, stage in enumerate(stages[1:], 1)
    }


def mender(model: nn.Module, inputs: Tensor) -> Callable[[Weights, Weights], dict[str, Tensor]]:
    """REPAIR on ``inputs``, ``mend(merged, parents)`` as ``merge_hierarchical`` takes it, fit for batch norms.

    REPAIR makes what a batch norm gives right by its weight and bias, whatever its running statistics: in a merge these
    are means of the parents', too wide for units that vary less. The weight would make up for that by a factor, which
    the next stage averages with another merge's. So they are measured anew first; what REPAIR changes in the layers
    before a norm is all that is left for its weight to make up for.
    """
    has_statistics = any(name.endswith("running_var") for name in model.state_dict())

    def mend(merged: Weights, parents: Weights) -> dict[str, Tensor]:
        merged = reset_norms(model, merged, inputs) if has_statistics else merged
        return repair(model, merged, parents, inputs)

    return mend


def _to(device: str, weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}
