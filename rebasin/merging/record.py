"""What every merging method takes, models side by side, and the one record that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebasin.inner_products import group_shape
from rebasin.matching.pairs import Matching
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec, check_spec, counted
from rebasin.weights import Model, Models, Weights, check_alike, like, take, weights_of


@dataclass(frozen=True, eq=False, repr=False)
class Merge:
    """One model made of n, or many of as many groups, with leading axes *batch.

    - ``model``: the merged model, as what the models were given as: a module, or a dict of tensors (*batch, ...).
    - ``weights``: its weights, a dict of tensors (*batch, ...).
    - ``permutation`` (*batch, n): what each model was permuted by. Unless it is mended, the merge is the mean of the
      permuted models, ``permutation.apply(models)``.
    - ``rounds`` (*batch,): how many times the models were gone through: MergeMany's rounds, the hierarchy's stages, 0
      for a plain mean.
    - ``sweeps`` (*batch,): the sweeps of all matchings that were made, taken together.
    - ``stages``: of a hierarchy, the nodes of each stage as they were before any mending at the end; else empty.

    Merges are compared by identity.
    """

    model: Model
    weights: dict[str, Tensor]
    permutation: Permutation
    rounds: Tensor
    sweeps: Tensor
    stages: tuple[Stage, ...] = ()

    def __repr__(self) -> str:
        batch = f"batch {tuple(self.rounds.shape)}, " if self.rounds.ndim else ""
        # A permutation of no groups has no leading axes.
        models = counted(self.permutation.batch[-1], "model") if self.permutation.batch else "models as they are"
        kind = "weights" if isinstance(self.model, dict) else type(self.model).__name__
        most = [int(count.max()) if count.numel() else 0 for count in (self.rounds, self.sweeps)]
        rounds, sweeps = counted(most[0], "round"), counted(most[1], "sweep")
        stages = f", {counted(len(self.stages), 'stage')}" if self.stages else ""
        return f"Merge({batch}{models} -> {kind}; {rounds}, {sweeps}{stages})"


@dataclass(frozen=True, eq=False, repr=False)
class Stage:
    """One stage of a hierarchy.

    - ``weights`` (*batch, nodes, ...): the nodes.
    - ``leaves[k]``: the models that node k is made of.
    - ``permutation`` (*batch, n): brings each model to its node. Unless it is mended, a node is the mean of its
      permuted leaves.
    - ``matching`` (*batch, pairs): how the pairs of this stage were matched.
    """

    weights: dict[str, Tensor]
    leaves: tuple[tuple[int, ...], ...]
    permutation: Permutation
    matching: Matching

    def __repr__(self) -> str:
        models = sum(map(len, self.leaves))
        return f"Stage({counted(len(self.leaves), 'node')} of {counted(models, 'model')})"


def side_by_side(spec: PermutationSpec, models: Models, call: str) -> tuple[dict[str, Tensor], torch.Size]:
    """The weights (*batch, n, ...) of models that are a list, or a dict of tensors already; and ``*batch``.

    Raises ValueError if there are none, or they do not fit the spec or one another; TypeError, with ``call``, if the
    first argument is no spec.
    """
    check_spec(spec, call)
    if isinstance(models, list | tuple):
        _check_list(spec, models)
    weights = weights_of(models)
    return weights, group_shape(spec, weights)


def of_one_merge(spec: PermutationSpec, models: Models, call: str) -> dict[str, Tensor]:
    """The weights (n, ...) of models of one merge. Raises what ``side_by_side`` does, and ValueError for several."""
    weights, batch = side_by_side(spec, models, call)
    if batch:
        raise ValueError(f"models of one merge are needed, (n, ...), the weights have the axes {tuple(batch)} before n")
    return weights


def one_by_one(spec: PermutationSpec, models: Models, call: str) -> tuple[list[dict[str, Tensor]], torch.Size]:
    """The weights (*batch, ...) of each of n models, which share their memory with what is given; and ``*batch``.

    ``models`` and errors are those of ``side_by_side``, which copies what is a list.
    """
    check_spec(spec, call)
    if not isinstance(models, list | tuple):
        weights, batch = side_by_side(spec, models, call)
        n = weights[next(iter(spec.shapes))].shape[len(batch)]
        return [take(weights, number, len(batch)) for number in range(n)], batch
    _check_list(spec, models)
    several = [weights_of(model) for model in models]
    for number, model in enumerate(several):
        check_alike(several[0], model, "model 0", f"model {number}")
        spec.check_finite(model, f"models[{number}]")
    return several, torch.Size()


def _check_list(spec: PermutationSpec, models: Sequence[Model]) -> None:
    """Raise ValueError unless these are one model or more, each by itself, that fit the spec."""
    if not models:
        raise ValueError("no models to merge: the list is empty")
    for number, model in enumerate(models):
        if spec.leading_axes(weights_of(model, f"models[{number}]"), f"models[{number}]"):
            raise ValueError(f"models[{number}] is many models: pass one dict of tensors (*batch, n, ...) instead")


def merged_like(models: Models, weights: Weights) -> Model:
    """A merge's weights as what its models are: a module, or a dict of tensors."""
    if isinstance(models, nn.Module | Mapping):
        return like(models, weights)
    return like(models[0], weights)


def unmoved(spec: PermutationSpec, batch: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """The identity's indices (*batch, *index_shape), to be written to."""
    return {group: index.clone() for group, index in Permutation.identity(spec, batch, device).indices.items()}
