"""The graph of a merge: that of one model, node by node, with the sizes that its axes have in the merge.

The graph of ``torch.export`` is rewritten as it is, where parameters are inputs, and not the module that it unlifts to:
so a layer can be given other parameters, the blocks of its weight. What an operator becomes hangs on the rule by which
the tracer follows it, so that operators are listed once; ``split_operators`` and ``split_layers`` say what. An operator
for which they say nothing is copied where nothing that it takes is split, and refused otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rebasin.expanding.axes import Axes, Axis, CannotSplit
from rebasin.graph import names_of, operator, weight_keys
from rebasin.tracing import Followed
from rebasin.tracing.units import RULES, Rule, Value
from rebasin.weights import Weights, is_whole

Node = torch.fx.Node


@dataclass(frozen=True, eq=False)
class Block:
    """A part of an entry that is a parameter of the merge: some rows and columns of it, None for all."""

    key: str
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """A copy of the block, from the entry."""
        return tensor[self.at(tensor.device)].detach().clone()

    def at(self, device: torch.device) -> Any:
        """The index of the block in the entry."""
        if self.rows is None:
            return ...
        rows = torch.from_numpy(self.rows).to(device)
        if self.columns is None:
            return rows
        return rows.unsqueeze(-1), torch.from_numpy(self.columns).to(device)

    def is_same(self, other: Block) -> bool:
        """Whether two blocks are the same part of the same entry."""
        pairs = ((self.rows, other.rows), (self.columns, other.columns))
        return self.key == other.key and all(
            a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
        )


@dataclass(eq=False)
class Rewriting:
    """A graph that is being rewritten, and what it has become so far.

    - ``new``: what has become of each node of the old graph.
    - ``blocks``: the parameters and buffers of the new one, by name; ``constants``: its other tensors.
    - ``places``: for how many places of one input each block that is a layer's weight is multiplied.
    """

    followed: Followed
    axes: Axes
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    new: dict[Node, Any] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    places: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        program = self.followed.program
        self.keys = weight_keys(program)
        inputs = program.graph_signature.user_inputs
        # By what the graph calls an input, what the model calls it.
        self.names = dict(zip(inputs, names_of(program) or inputs, strict=True))
        first = next(node for node in program.graph.nodes if node.name in inputs)
        self.batch = self.value(first).shape[0]  # that of the example
        self.any_batch = bool(program.range_constraints)  # which there are of sizes that are not fixed

    def value(self, node: Node) -> Value:
        """What is known of the tensor that a node of the old graph gives."""
        value: Value = self.followed.values[node]
        return value

    def axis(self, node: Node, axis: int) -> Axis:
        """An axis of that tensor in the merge."""
        return self.axes.of(self.value(node), axis)

    def call(self, target: Callable[..., Any], *args: Any) -> Node:
        """A new node."""
        return self.graph.call_function(target, args)

    def copied(self, node: Node, args: Sequence[Any] | None = None) -> Node:
        """A node of the old graph as it is, with these arguments, of the old graph too, in place of its own."""
        args, kwargs = torch.fx.map_arg((tuple(node.args if args is None else args), node.kwargs), self.new_of)
        return self.graph.call_function(target_of(node), args, kwargs)

    def new_of(self, node: Node) -> Any:
        """What has become of a node of the old graph."""
        if node in self.keys and node not in self.new:
            return self.parameter(Block(self.keys[node]))
        return self.new[node]

    def parameter(self, block: Block) -> Node:
        """A block of an entry, which is one parameter however often it is used."""
        for name, other in self.blocks.items():
            if block.is_same(other):
                return self.graph.get_attr(name)
        number = sum(block.key == other.key for other in self.blocks.values())
        name = block.key if block.rows is None else f"{block.key}_{number}"
        self.blocks[name] = block
        return self.graph.get_attr(name)

    def constant(self, tensor: Tensor) -> Node:
        """A tensor that is none of the model's weights."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor
        return self.graph.get_attr(name)

    def module(self, dense: Weights) -> torch.fx.GraphModule:
        """The network, its blocks cut from weights in the shapes of the merge. It holds unused entries as well."""
        statistics, device = self.axes.slots.spec.statistics, next(iter(dense.values())).device
        root = nn.Module()
        for name, block in self.blocks.items():
            tensor = block.of(dense[block.key])
            trained = block.key not in statistics and not is_whole(tensor)
            _hold(root, name, nn.Parameter(tensor) if trained else tensor)
        for name, tensor in self.constants.items():
            root.register_buffer(name, tensor.to(device), persistent=False)
        module = torch.fx.GraphModule(root, self.graph)
        for key in self.unused:
            _hold(module, key, Block(key).of(dense[key]))
        return module

    @property
    def unused(self) -> list[str]:
        """The entries that the graph does not use, such as counters."""
        used = {block.key for block in self.blocks.values()}
        return [key for key in self.axes.slots.spec.shapes if key not in used]


Becomes = Callable[..., Any]
BECOMES: dict[Rule, Becomes] = {}


def becomes(*rules: Rule) -> Callable[[Becomes], Becomes]:
    """The decorated function says what becomes of the operators that these rules follow."""

    def register(function: Becomes) -> Becomes:
        BECOMES.update(dict.fromkeys(rules, function))
        return function

    return register


def rewrite(followed: Followed, axes: Axes) -> Rewriting:
    """The graph of the merge. Raises CannotSplit, naming a group that is split and cannot be."""
    merge = Rewriting(followed, axes)
    for node in followed.program.graph.nodes:
        value = followed.values.get(node)
        if node.op == "placeholder":
            _place(merge, node)
        elif node.op == "call_function" and isinstance(value, int):  # a size
            merge.new[node] = merge.copied(node)
        elif node.op == "call_function" and value is not None:  # assertions give nothing
            rule = RULES.get(operator(node))
            function = BECOMES.get(rule, _copied_whole) if rule else _copied_whole
            merge.new[node] = function(merge, node, *node.args, **node.kwargs)
        elif node.op == "output":
            merge.graph.output(torch.fx.map_arg(node.args[0], merge.new_of))
    return merge


def _place(merge: Rewriting, node: Node) -> None:
    """An input of the graph: of the network, or one of its constants; parameters follow where they are used."""
    program = merge.followed.program
    signature = program.graph_signature
    if node.name in signature.inputs_to_lifted_tensor_constants:
        merge.new[node] = merge.constant(program.constants[signature.inputs_to_lifted_tensor_constants[node.name]])
    elif node not in merge.keys:
        merge.new[node] = merge.graph.placeholder(merge.names[node.name])
    elif merge.keys[node] in signature.non_persistent_buffers:
        merge.new[node] = merge.constant(program.constants[merge.keys[node]])


def _copied_whole(merge: Rewriting, node: Node, *_: Any, **__: Any) -> Node:
    """An operator that takes nothing that is split."""
    for argument in node.all_input_nodes:
        value = merge.followed.values[argument]
        for part in value if isinstance(value, list) else [value]:
            for axis in range(len(part.shape) if isinstance(part, Value) else 0):
                groups = merge.axes.of(part, axis).groups
                if groups:
                    raise CannotSplit(groups[0], f"since it is not known what becomes of {operator(node)}")
    return merge.copied(node)


def target_of(node: Node) -> Callable[..., Any]:
    """The operator that a node calls."""
    assert callable(node.target)
    return node.target


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
