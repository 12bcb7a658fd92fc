"""The merged network of any size: a torch module, and a file that torch alone can run."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from rebasin.arguments import check_choice
from rebasin.expanding import split_layers, split_operators  # noqa: F401  each adds to BECOMES
from rebasin.expanding.axes import Axes, CannotSplit
from rebasin.expanding.expansion import Heads, expand
from rebasin.expanding.rewriting import Block, Rewriting, rewrite
from rebasin.expanding.slots import Slots
from rebasin.expanding.split_proof import prove_split
from rebasin.graph import FixedBatchSize, export, two_or_more
from rebasin.inputs import Inputs, arguments_of, on_each
from rebasin.merging.record import side_by_side
from rebasin.spec import PermutationSpec, counted
from rebasin.tracing import Followed, double_inputs, follow_program
from rebasin.tracing.units import RULES
from rebasin.weights import Models, Weights, check_module, copied


def expand_network(
    slots: Slots, model: nn.Module, models: Models, *, example: Inputs, heads: Heads = "shared"
) -> Expanded:
    """The network of a merge with these slots, as a torch module.

    ``models`` are n modules, dicts of tensors or their stack (n, ...), and ``model`` is one of them, whose graph is
    rewritten; it is taken as in evaluation. ``example`` is an input with a batch axis, or the tuple of the model's
    inputs, of the size that the spec was traced with. Heads are ``"shared"``, so that the network gives the mean of the
    models' outputs where all units are apart, or ``"side by side"``: outputs of model 0, then of model 1, and so on.

    A layer whose units are split on both sides runs as a product for each set of models that its outputs belong to,
    which reads only units that share a model with them: nothing is multiplied by a zero. LayerNorm, RMSNorm and
    GroupNorm of one group go over each model's own slots; a slot of several models takes the mean of what these give
    it, then scale and shift. Heads of attention, and blocks of grouped convolutions and GroupNorms, stay whole.

    The network is proved before it is returned: see ``prove_split``. What no group moves is averaged unaligned.

    Raises ValueError for models that do not fit the slots, for slots of another spec than that of ``model``, and for a
    group that is split and cannot be, with the reason: ``kept_whole`` lists these. SpecError if the proof fails.

    >>> models = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> x = torch.ones(5, 3)
    >>> slots = Slots.apart(rebasin.trace(models[0], x), 2)
    >>> ensemble = expand_network(slots, models[0], models, example=x)
    >>> ensemble
    Expanded(2 models, 1 group, 8 + 8 -> 16 units; size 2.00)
    >>> torch.allclose(ensemble(x), (models[0](x) + models[1](x)) / 2, atol=1e-6)
    True
    """
    check_module(model, "expand_network(slots, model, models, example=...)")
    check_choice(heads, "heads", get_args(Heads))
    weights, _ = side_by_side(slots.spec, models, "expand_network(slots, model, models, example=...)")
    inputs = two_or_more(example)
    followed = _follow(model, inputs)
    rewriting = rewrite(followed, Axes(followed, slots, heads))
    if _in_any_format(followed.program):
        prove_split(followed, slots, inputs, heads)
    else:
        inputs_in_double = double_inputs(inputs)
        prove_split(_follow(copied(model).double().cpu(), inputs_in_double), slots, inputs_in_double, heads)
    return Expanded(rewriting, expand(slots, weights, followed.program, heads=heads), inputs)


def _follow(model: nn.Module, inputs: Inputs) -> Followed:
    """The model's graph, for batches of any size, and the units in it."""
    return follow_program(export(model, inputs, RULES, any_batch=True))


def _in_any_format(program: torch.export.ExportedProgram) -> bool:
    """Whether a graph computes in the format and on the device of its inputs, float64 and the CPU as well."""
    arguments = [torch.utils._pytree.tree_leaves((node.args, node.kwargs)) for node in program.graph.nodes]
    on_cpu = all(tensor.device.type == "cpu" for tensor in (program.state_dict | program.constants).values())
    return on_cpu and not any(isinstance(leaf, torch.dtype | torch.device) for leaves in arguments for leaf in leaves)


class Expanded(nn.Module):
    """A merged network of any size, as ``expand_network`` makes it.

    It runs on batches of any size where torch.export allows it, is taken as in evaluation, and has parameters that can
    be trained: the blocks of its layers. ``rebasin.trace`` can trace it again.

    - ``slots``: which unit of it each unit of each model went into.
    - ``macs``, ``macs_dense``, ``macs_parent``: multiply-adds for one input in its linear layers and convolutions, as
      it runs; if its split layers were whole, zeros multiplied; and of one parent. Products of activations with one
      another, as in attention, are not counted.
    """

    def __init__(self, rewriting: Rewriting, dense: Weights, example: Inputs) -> None:
        super().__init__()
        program = rewriting.followed.program
        self.slots, self.example = rewriting.axes.slots, example
        self.blocks = {**rewriting.blocks, **{key: Block(key) for key in rewriting.unused}}
        self.shapes = {key: tuple(tensor.shape) for key, tensor in dense.items()}
        self.outputs = program.call_spec.out_spec
        self.only_batch = None if rewriting.any_batch else rewriting.batch
        self.network = rewriting.module(dense)
        self.macs = self.macs_dense = self.macs_parent = 0
        parent = {**program.constants, **program.state_dict}
        counted = set()
        for name, places in rewriting.places.items():
            key = rewriting.blocks[name].key
            self.macs += places * self.network.get_parameter(name).numel()
            if key not in counted:
                counted.add(key)
                self.macs_dense += places * dense[key].numel()
                self.macs_parent += places * parent[key].numel()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """What the merge gives for the model's inputs, by their names if the example gave names.

        Raises TypeError for other inputs than the example had, ValueError for another batch size than the example's if
        torch.export fixed it.
        """
        args, kwargs = arguments_of(self.example)
        if len(inputs) != len(args) or named.keys() != kwargs.keys():
            raise TypeError(
                f"the merge takes {_listed(args, kwargs)}, as its example did, and is given {_listed(inputs, named)}"
            )
        first = (*inputs, *named.values())[0]
        if self.only_batch and first.shape[0] != self.only_batch:
            raise FixedBatchSize(
                f"torch.export fixed the batch size to {self.only_batch}, got {first.shape[0]}: "
                "where the model has len(x), write x.shape[0]"
            )
        return torch.utils._pytree.tree_unflatten(self.network(*inputs, **named), self.outputs)

    @property
    def size(self) -> float:
        """Multiply-adds as it runs, over those of one parent."""
        return self.macs / self.macs_parent

    @property
    def parameters_count(self) -> int:
        """How many parameters it holds."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its weights as dense tensors, by the models' keys, in the shapes of the merge; zero where no block is."""
        tensors = self.network.state_dict()
        dense = {}
        for name, block in self.blocks.items():
            if block.key not in dense:
                dense[block.key] = tensors[name].new_zeros(self.shapes[block.key])
            dense[block.key][block.at(dense[block.key].device)] = tensors[name]
        return dense

    def with_weights(self, weights: Weights) -> Expanded:
        """The same network with other dense weights, as ``weights`` gives them.

        Raises ValueError, naming the first key, for weights of other shapes, and for ones that are not zero where the
        network has no block, between units of different models.
        """
        other = copy.deepcopy(self)
        tensors = other.network.state_dict()
        left = {}
        for key, shape in self.shapes.items():
            if key not in weights or weights[key].shape != shape:
                given = tuple(weights[key].shape) if key in weights else "none"
                raise ValueError(f"{key!r} has shape {shape} in the merge, given is {given}")
            left[key] = int(weights[key].count_nonzero())
        for name, block in self.blocks.items():
            tensors[name].copy_(block.of(weights[block.key]))
            left[block.key] -= int(tensors[name].count_nonzero())
        for key, count in left.items():
            if count > 0:
                raise ValueError(f"{key!r} has {count} weights between units of different models, which are not run")
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, by custom ``.pt2``, that runs without this package, on batches of any size.

        ``torch.export.load(path).module()`` reads it.
        """
        device = next(self.parameters()).device
        example = on_each(lambda x: x.to(device), self.example)
        torch.export.save(export(_Spelled(self), example, any_batch=True), path)

    def __repr__(self) -> str:
        return f"Expanded({self.in_words()})"

    def in_words(self) -> str:
        """What the slots are, and the size."""
        return f"{self.slots.in_words()}; size {self.size:.2f}"


class _Spelled(nn.Module):
    """A merged network whose ``forward`` spells its inputs' names: torch cannot run the checks it writes of ``**``."""

    def __init__(self, merged: Expanded) -> None:
        super().__init__()
        self.network = merged.network
        run = functools.partial(_run, self.network, merged.outputs)
        self.forward = functools.update_wrapper(run, self.network.forward)  # which has the names


def _listed(inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> str:
    """What a network is called with, in words."""
    unnamed = [f"{counted(len(inputs), 'input')} without a name"] if inputs else []
    return ", ".join(unnamed + [f"{name}=" for name in named]) or "nothing"


def _run(network: nn.Module, outputs: torch.utils._pytree.TreeSpec, *inputs: Tensor, **named: Tensor) -> Any:
    """What a network gives, put together as the model's outputs."""
    return torch.utils._pytree.tree_unflatten(network(*inputs, **named), outputs)


def kept_whole(spec: PermutationSpec, model: nn.Module, example: Inputs) -> dict[str, str]:
    """The groups that must be merged whole, each with the reason: those that an operator of the model mixes.

    >>> class Attention(nn.Module):  # of one head, whose queries and keys are compared unit by unit
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.query, self.key, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 2)
    ...     def forward(self, x):
    ...         return self.out((self.query(x) @ self.key(x).mT).softmax(-1) @ x)
    >>> model, x = Attention(), torch.randn(2, 5, 4)
    >>> kept_whole(rebasin.trace(model, x), model, x)
    {'query': 'since matmul sums over its units'}
    """
    followed = follow_program(export(model, two_or_more(example), RULES, any_batch=True))
    index = dict(Slots.apart(spec, 2).index)
    reasons: dict[str, str] = {}
    while True:
        try:
            rewrite(followed, Axes(followed, Slots.from_index(spec, index)))
        except CannotSplit as error:
            reasons[error.group] = error.reason
            index[error.group] = torch.arange(spec.sizes[error.group]).expand(2, -1)
        else:
            return reasons
