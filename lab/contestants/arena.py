"""The arena: what is merged, on which images, and what a merging method hands in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.images import Split
from rebasin import Grams, Permutation, PermutationSpec, Slots, collect
from rebasin.expanding.costs import LayerCost, count_cost, graph_costs
from rebasin.expanding.expanded import Expanded, kept_whole
from rebasin.expanding.expansion import Heads, output_keys
from rebasin.fitting.norm_statistics import measure_norms
from rebasin.graph import export
from rebasin.merging.mending import norms_of
from rebasin.weights import Weights

MEASURES = ("structured", "dense", "parameters")
# What the Gram matrices may take: sixteen ResNet20 of the usual width need nine.
GIBIBYTES = 10.0


@dataclass(frozen=True, eq=False)
class Arena:
    """Networks that any merging method is tried on, and the images that it is tried with.

    - ``model``, ``spec``: one of the parents, and how their units may be permuted.
    - ``parents`` (n, ...): the weights of n networks.
    - ``train``: the images that a method may look at, a split for each task. Labels are for the method ``head`` alone.
    - ``test``: the images that it is measured on, a split for each task. There is one task that all parents share; or
      parent t has a task of its own, whose classes are numbered from 0, and a merge has n heads side by side.
    - ``other`` (m, ...): images that have to do with no task, for merges without data.
    - ``seed``: decides all chance; ``batch``: images that go through at once.

    Raises ValueError, before anything is merged, for networks and tasks that do not fit.
    """

    model: nn.Module
    spec: PermutationSpec
    parents: Weights
    train: tuple[Split, ...]
    test: tuple[Split, ...]
    other: Tensor | None = None
    seed: int = 0
    batch: int = 500

    def __post_init__(self) -> None:
        leading = self.spec.batch_shape(self.parents, "the parents")
        if len(leading) != 1 or leading[0] < 2:
            raise ValueError(f"two parents or more are merged, (n, ...): they have the leading axes {tuple(leading)}")
        if len(self.test) not in (1, self.n) or len(self.train) != len(self.test):
            raise ValueError(
                f"{self.n} parents have one task, or a task each: there are {len(self.train)} training splits and "
                f"{len(self.test)} test splits"
            )
        for what, splits in (("training", self.train), ("test", self.test)):
            for task, split in enumerate(splits):
                if len(split.labels) < 2:
                    raise ValueError(f"task {task} has {len(split.labels)} {what} images: two are needed at least")
                if int(split.labels.max()) >= self.classes:
                    raise ValueError(f"task {task} has the label {int(split.labels.max())}, the parents {self.classes}")

    @property
    def n(self) -> int:
        """The number of parents."""
        return len(next(iter(self.parents.values())))

    @property
    def heads(self) -> Heads:
        """Whether all parents share the outputs, or stand side by side with outputs of their own."""
        return "shared" if len(self.test) == 1 else "side by side"

    @cached_property
    def classes(self) -> int:
        """The number of outputs of one parent."""
        with torch.no_grad():
            return self.model(self.example).shape[1]

    @cached_property
    def inputs(self) -> Tensor:
        """The training images of all tasks, in a mixed order, as a network takes them."""
        pixels = torch.cat([split.pixels for split in self.train])
        return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(self.seed))]

    @property
    def example(self) -> Tensor:
        """Two images, as a network takes them."""
        return Split(self.train[0].images[:2], self.train[0].labels[:2]).pixels

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph of a parent, for two images."""
        return export(self.model, (self.example,))

    @cached_property
    def kept_whole(self) -> dict[str, str]:
        """The groups that must be merged whole."""
        return kept_whole(self.spec, self.model, self.example)

    @property
    def grams(self) -> Grams:
        """The Gram matrices of the parents on the training images: one pass, which serves all methods and sizes."""
        return self.timed_grams[0]

    @cached_property
    def timed_grams(self) -> tuple[Grams, float]:
        """The same, and the seconds that the pass took."""
        began = time.monotonic()
        return self.grams_on(self.inputs), time.monotonic() - began

    def grams_on(self, images: Tensor) -> Grams:
        """The Gram matrices of the parents on these images (m, ...)."""
        batches = self.batches(images)
        return collect(self.spec, self.parents, batches, model=self.model, memory=GIBIBYTES, seed=self.seed)

    def batches(self, images: Tensor) -> list[Tensor]:
        """The images in batches that are nearly of one size."""
        return list(images.chunk(math.ceil(len(images) / self.batch)))

    def costs(self, heads: Heads) -> tuple[LayerCost, ...]:
        """What the layers of a merge with such heads cost."""
        return graph_costs(self.spec, self.program, heads=heads)

    def sizes(self, slots: Slots) -> dict[str, float]:
        """What a merge with these slots costs, in multiples of one parent, by each of ``MEASURES``."""
        one = Slots.of_permutation(Permutation.identity(self.spec, (1,)))
        merged, parent = self.costs(self.heads), self.costs("shared")
        return {by: count_cost(merged, slots, by=by) / count_cost(parent, one, by=by) for by in MEASURES}


@dataclass(frozen=True, eq=False)
class Entry:
    """What a method hands in: a network, and what it costs in multiples of one parent.

    - ``network``: gives the logits (m, all classes) of images (m, ...), of heads side by side in the parents' order.
    - ``structured``, ``dense``: its multiply-adds, as they need to run, and with zeros multiplied; ``parameters``.
    - ``one_head``: whether its outputs are one head over the classes of all tasks, although the parents' are not.
    - ``weights``, ``parents``: of a merge that has the parents' shape, its weights, and the parents (n, ...) in its
      basin. It can be mended then.
    """

    network: Callable[[Tensor], Tensor]
    structured: float
    dense: float
    parameters: float
    one_head: bool = False
    weights: Weights | None = None
    parents: Weights | None = None


# A method hands in an entry of some size, in multiples of one parent; None if it makes no merge of that size.
Method = Callable[[Arena, float], Entry | None]
# What mends an entry hands in another; None if there is nothing to be mended.
Mending = Callable[[Arena, Entry], Entry | None]


@dataclass(frozen=True, eq=False)
class Together:
    """Networks of the parents' shape, which answer together.

    Of a ``shared`` head the logits are the mean of theirs; else they stand side by side, and those of ``unknown``
    classes behind them are 0.
    """

    model: nn.Module
    weights: tuple[Weights, ...]
    shared: bool
    unknown: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        logits = [functional_call(self.model, dict(weights), (x,)) for weights in self.weights]
        if self.shared:
            return torch.stack(logits).mean(0)
        return nn.functional.pad(torch.cat(logits, 1), (0, self.unknown))


def with_own_heads(arena: Arena, merged: tuple[Weights, ...], parents: Weights) -> Together:
    """A merge for each task, or one for all, in which each task keeps the head of its own parent."""
    if arena.heads == "shared":
        return Together(arena.model, merged, shared=True)
    keys = output_keys(arena.program)
    merged = merged * arena.n if len(merged) == 1 else merged
    networks = [{**body, **{key: parents[key][task] for key in keys}} for task, body in enumerate(merged)]
    return Together(arena.model, tuple(networks), shared=False)


def with_measured_norms(arena: Arena, network: Expanded) -> Expanded:
    """An expanded network with the statistics of its batch norms, if it has any, measured on all tasks' images."""
    return measure_norms(network, arena.batches(arena.inputs)) if norms_of(arena.program) else network


def of_expanded(arena: Arena, network: Expanded) -> Entry:
    """An expanded network, and what it costs as it was built."""
    parameters = network.parameters_count / sum(tensor.numel() for tensor in arena.model.parameters())
    return Entry(network, network.size, network.macs_dense / network.macs_parent, parameters)
