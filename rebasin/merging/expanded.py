"""The merged network of any size: a torch module, and a file that torch alone can run."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rebasin.graph import export
from rebasin.merging import split_layers  # noqa: F401  adds what layers become
from rebasin.merging.axes import CannotSplit, Layout
from rebasin.merging.record import side_by_side
from rebasin.merging.rewriting import Block, Rewriting, rewrite
from rebasin.merging.slots import Slots
from rebasin.spec import PermutationSpec
from rebasin.tracing import Followed, follow_program
from rebasin.tracing.units import RULES, Value
from rebasin.weights import Models, Weights, check_module

Heads = Literal["shared", "side by side"]


def expand_network(
    slots: Slots, model: nn.Module, models: Models, *, example: Tensor | tuple[Tensor, ...], heads: Heads = "shared"
) -> Expanded:
    check_module(model, "expand_network(slots, model, models)")
    weights, _ = side_by_side(slots.spec, models, "expand_network(slots, model, models)")
    inputs = example_inputs(example)
    rewriting = rewrite_for(slots, model, inputs, heads)
    dense = expanded_weights(rewriting, slots.permutation.apply(weights))
    return Expanded(rewriting, dense, inputs)


def example_inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a model, two or more in a batch: torch.export takes a batch of one for a constant."""
    inputs = example if isinstance(example, tuple) else (example,)
    return tuple(torch.cat([x, x]) if x.ndim and len(x) == 1 else x for x in inputs)


def rewrite_for(slots, model, inputs, heads):
    followed = follow_program(export(model, inputs, RULES, any_batch=True))
    return rewrite(followed, Layout(slots, followed.membership, output_slots(followed, slots.n) if heads != "shared" else {}))


def output_slots(followed: Followed, n: int) -> dict[int, np.ndarray]:
    """For each unit that the network puts out, its slot for each model if heads stand side by side: (n,)."""
    slots: dict[int, np.ndarray] = {}
    (end,) = (node for node in followed.program.graph.nodes if node.op == "output")
    for node in end.all_input_nodes:
        membership = followed.membership
        own = [
            membership.unit[labels.units]
            for labels in followed.values[node].labels
            if all(
                membership.reasons.get(unit) == "an output of the network"
                for unit in membership.unit[labels.units].ravel().tolist()
            )
        ]
        if len(own) != 1 or own[0].ndim != 1:
            raise ValueError(f"heads cannot stand side by side: the output {node.name} is not that of a layer of its own")
        (units,) = own
        for number, unit in enumerate(units.tolist()):
            slots[unit] = np.arange(n) * len(units) + number
    return slots


class Expanded(nn.Module):
    """x"""

    def __init__(self, rewriting: Rewriting, dense: Weights, example: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.rewriting, self.example = rewriting, example
        self.network = network(rewriting, dense)

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.network(*inputs)
        spec = self.rewriting.followed.program.call_spec.out_spec
        return torch.utils._pytree.tree_unflatten(outputs, spec)


def network(rewriting: Rewriting, dense: Weights) -> torch.fx.GraphModule:
    """The graph with its parameters and buffers, cut from weights in the shapes of the merge."""
    root = nn.Module()
    statistics = rewriting.layout.slots.spec.statistics
    for name, block in rewriting.blocks.items():
        tensor = cut(block, dense[block.key])
        is_weight = block.key not in statistics and tensor.is_floating_point()
        _hold(root, name, nn.Parameter(tensor) if is_weight else tensor)
    for name, tensor in rewriting.constants.items():
        root.register_buffer(name, tensor, persistent=False)
    return torch.fx.GraphModule(root, rewriting.graph)


def _hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter or buffer of that name, which may lie within modules."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)


def cut(block: Block, tensor: Tensor) -> Tensor:
    """A block of an entry."""
    if block.rows is not None:
        tensor = tensor[torch.from_numpy(block.rows).to(tensor.device)]
    if block.columns is not None:
        tensor = tensor[:, torch.from_numpy(block.columns).to(tensor.device)]
    return tensor.detach().clone()


def expanded_weights(rewriting: Rewriting, permuted: Weights) -> dict[str, Tensor]:
    """The weights of the merge from those of the permuted models, (n, ...)."""
    layout, followed = rewriting.layout, rewriting.followed
    values = {value.key: value for value in followed.values.values() if isinstance(value, Value) and value.key}
    dense = {}
    for key, tensors in permuted.items():
        if key not in values or not tensors.is_floating_point():
            dense[key] = tensors[0].clone()
            continue
        axes = [layout.axis(values[key], axis) for axis in range(tensors.ndim - 1)]
        total, count = 0, 0
        for m, tensor in enumerate(tensors):
            ones = torch.ones_like(tensor)
            for number, axis in enumerate(axes):
                if axis.unchanged:
                    continue
                index = torch.from_numpy(axis.index[m].copy())
                shape = (*tensor.shape[:number], axis.size, *tensor.shape[number + 1 :])
                tensor = tensor.new_zeros(shape).index_add(number, index, tensor)
                if not (number == 1 and key in rewriting.reads):
                    ones = ones.new_zeros((*ones.shape[:number], axis.size, *ones.shape[number + 1 :])).index_add(number, index, ones)
                else:
                    ones = ones.narrow(number, 0, 1)
            total, count = total + tensor, count + ones
        dense[key] = total / count.clamp(min=1)
    return dense
