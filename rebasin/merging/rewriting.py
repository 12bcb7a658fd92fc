"""The graph of a merge: that of one model, node by node, with the sizes that its axes have in the merge.

The lifted graph of ``torch.export`` is rewritten, in which parameters are inputs: so each layer can be given parameters of
its own, the blocks of its weight. What an operator becomes is decided by the rule by which the tracer follows it, so that
an operator is listed once; one without an entry here is copied if no axis of its tensors is split, and refused otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin.graph import operator, weight_keys
from rebasin.merging.axes import Axis, CannotSplit, Layout
from rebasin.tracing import Followed
from rebasin.tracing.rules import entries, products, shapes, sums
from rebasin.tracing.units import RULES, Rule, Value

aten = torch.ops.aten
Node = torch.fx.Node


@dataclass(frozen=True, eq=False)
class Block:
    """A part of an entry that is a parameter of the merge: ``rows`` and ``columns`` of it, None for all."""

    key: str
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None


@dataclass(eq=False)
class Rewriting:
    """The graph so far.

    - ``blocks``: its parameters and buffers by name; ``constants``: its other tensors.
    - ``places``: for how many places of one input each block that is a layer's weight is multiplied.
    - ``reads``: the entries whose axis 1 reads units, as the weights of linear layers and convolutions.
    """

    followed: Followed
    layout: Layout
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    blocks: dict[str, Block] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    places: Counter[str] = field(default_factory=Counter)
    reads: set[str] = field(default_factory=set)
    new: dict[Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = self.followed.program
        self.keys = weight_keys(program)
        inputs = program.graph_signature.user_inputs
        first = next(node for node in program.graph.nodes if node.name in inputs)
        self.batch = self.followed.values[first].shape[0]  # that of the example
        self._tensors: dict[str, Node] = {}

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A new node."""
        return self.graph.call_function(target, args, kwargs)

    def value(self, node: Node) -> Value:
        """What is known of a node's tensor."""
        return self.followed.values[node]

    def axis(self, node: Node, axis: int) -> Axis:
        """An axis of a node's tensor in the merge."""
        return self.layout.axis(self.value(node), axis)

    def copied(self, node: Node, args: Sequence[Any] | None = None) -> Node:
        """The node as it is, with these arguments in place of its own."""
        args = torch.fx.map_arg(tuple(node.args if args is None else args), self.new_of)
        return self.call(node.target, *args, **torch.fx.map_arg(node.kwargs, self.new_of))

    def new_of(self, node: Node) -> Any:
        """What has become of a node."""
        if node in self.keys and node not in self.new:
            return self.tensor(Block(self.keys[node]))
        return self.new[node]

    def tensor(self, block: Block) -> Node:
        """A block of an entry; one that is used twice is one parameter."""
        for name, other in self.blocks.items():
            if block.key == other.key and _same(block.rows, other.rows) and _same(block.columns, other.columns):
                return self._tensors[name]
        of_key = sum(block.key == other.key for other in self.blocks.values())
        name = block.key if block.rows is None else f"{block.key}_{of_key}"
        self.blocks[name] = block
        self._tensors[name] = self.graph.get_attr(name)
        return self._tensors[name]

    def constant(self, tensor: Tensor) -> Node:
        """A tensor that is no weight."""
        name = f"constant{len(self.constants)}"
        self.constants[name] = tensor
        return self.graph.get_attr(name)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


Becomes = Callable[[Rewriting, Node], Any]
BECOMES: dict[Rule, Becomes] = {}


def becomes(*rules: Rule) -> Callable[[Becomes], Becomes]:
    """The decorated function says what the operators that these rules follow become in the merge."""

    def register(function: Becomes) -> Becomes:
        BECOMES.update(dict.fromkeys(rules, function))
        return function

    return register


def rewrite(followed: Followed, layout: Layout) -> Rewriting:
    """The graph of the merge. Raises CannotSplit, naming a group that is split and cannot be."""
    merge = Rewriting(followed, layout)
    signature = followed.program.graph_signature
    for node in followed.program.graph.nodes:
        value = followed.values.get(node)
        if node.op == "placeholder" and node not in merge.keys:
            if node.name in signature.inputs_to_lifted_tensor_constants:
                merge.new[node] = merge.constant(
                    followed.program.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
                )
            else:
                merge.new[node] = merge.graph.placeholder(node.name)
        elif node.op == "placeholder" and merge.keys[node] in signature.non_persistent_buffers:
            merge.new[node] = merge.constant(followed.program.constants[merge.keys[node]])
        elif node.op == "call_function" and value is not None:  # assertions give nothing
            rule = RULES.get(operator(node))
            merge.new[node] = merge.copied(node) if isinstance(value, int) else BECOMES.get(rule, _refused)(merge, node)
        elif node.op == "output":
            merge.graph.output(torch.fx.map_arg(node.args[0], merge.new_of))
    return merge


def need_whole(merge: Rewriting, node: Node, axes: Sequence[int], what: str, where: Node | None = None) -> None:
    """Raise CannotSplit if one of the axes of a node's tensor is split."""
    for axis in axes:
        groups = merge.axis(node, axis).groups
        if groups:
            raise CannotSplit(groups[0], f"since {operator(where or node)} {what}")


def _refused(merge: Rewriting, node: Node) -> Node:
    """An operator of which it is not known what it becomes where axes are split."""
    for argument in node.all_input_nodes:
        value = merge.followed.values[argument]
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Value):
                for axis in range(len(part.shape)):
                    groups = merge.layout.axis(part, axis).groups
                    if groups:
                        raise CannotSplit(groups[0], f"since it is not known how {operator(node)} is")
    return merge.copied(node)


@becomes(
    entries.entrywise, entries.elementwise, entries.constant, shapes.permuted, shapes.transposed, shapes.turned,
    shapes.item, shapes.joined, shapes.stacked, shapes.padded, shapes.indexed, shapes.embedded,
    sums.normed_by_channel, sums.normed_for_good, RULES["max_pool1d"], RULES["max_pool2d"], RULES["max_pool3d"],
)  # fmt: skip
def _copied(merge: Rewriting, node: Node) -> Node:
    """Operators that hold no sizes of axes with units, and mix no units."""
    return merge.copied(node)


@becomes(shapes.reshaped, shapes.expanded)
def _resized(merge: Rewriting, node: Node) -> Node:
    """Literal sizes become those of the merge."""
    name = operator(node)
    place = {"view": 1, "_unsafe_view": 1, "reshape": 1, "expand": 1, "unflatten": 2}.get(name)
    if place is None or not isinstance(node.args[place], list | tuple):  # flatten, squeeze; a view as other numbers
        return merge.copied(node)
    value, sizes = merge.value(node), list(node.args[place])
    first = node.args[1] % len(merge.value(node.args[0]).shape) if name == "unflatten" else 0
    for entry, size in enumerate(sizes):
        axis = merge.layout.axis(value, first + entry)
        if axis.unchanged or size == -1:
            continue
        if isinstance(size, int):
            sizes[entry] = axis.size
        elif -1 in sizes or name == "expand":
            raise CannotSplit(axis.groups[0], f"since {name} computes two sizes")
        else:
            sizes[entry] = -1  # a size that is computed from the batch's
    return merge.copied(node, [*node.args[:place], sizes, *node.args[place + 1 :]])


@becomes(shapes.sliced)
def _sliced(merge: Rewriting, node: Node) -> Node:
    """The ends of a window move to where the same units end in the merge."""
    x, dim, start, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    axis = merge.axis(x, dim)
    if axis.unchanged:
        return merge.copied(node)
    start, end, _ = slice(start, end).indices(axis.index.shape[1])
    return merge.copied(node, [x, dim, _boundary(axis, start, node), _boundary(axis, end, node), step])


@becomes(shapes.selected)
def _selected(merge: Rewriting, node: Node) -> Node:
    """One slice of an axis, which all models share."""
    x, dim, index = node.args
    axis = merge.axis(x, dim)
    places = axis.index[:, index]
    if (places != places[0]).any():
        raise CannotSplit(axis.groups[0], "since select takes one of its units")
    return merge.copied(node, [x, dim, int(places[0])])


@becomes(shapes.parted)
def _parted(merge: Rewriting, node: Node) -> Node:
    """An axis in parts, each of the size that it has in the merge."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if merge.axis(node.args[0], dim).unchanged:
        return merge.copied(node)
    sizes = [merge.layout.axis(part, dim).size for part in merge.followed.values[node]]
    return merge.call(aten.split_with_sizes.default, merge.new_of(node.args[0]), sizes, dim)


def _boundary(axis: Axis, slices: int, node: Node) -> int:
    boundary = axis.boundary(slices)
    if boundary is None:
        raise CannotSplit(axis.groups[0], f"since {operator(node)} takes some of its units")
    return boundary


@becomes(shapes.unbound, shapes.rolled, shapes.flipped)
def _unmoved(merge: Rewriting, node: Node) -> Node:
    """Operators along axes that no group may be split along."""
    given = node.args[2 if operator(node) == "roll" else 1] if len(node.args) > 1 else 0
    need_whole(merge, node.args[0], [given] if isinstance(given, int) else given, "tells its units apart", node)
    return merge.copied(node)


@becomes(sums.reduced)
def _reduced(merge: Rewriting, node: Node) -> Node:
    """Sums over places, or within blocks."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = range(len(merge.value(node.args[0]).shape))
    if isinstance(dims, int) and not isinstance(dims, bool):
        axes = [dims]
    elif isinstance(dims, list | tuple) and dims:
        axes = dims
    need_whole(merge, node.args[0], axes, "takes its units together", node)
    return merge.copied(node)


@becomes(sums.compared)
def _compared(merge: Rewriting, node: Node) -> Node:
    """Weighed against one another: places, or what lies within blocks."""
    need_whole(merge, node.args[0], [node.args[1]], "weighs its units against one another", node)
    return merge.copied(node)


@becomes(products.matmul, products.addmm)
def _multiplied(merge: Rewriting, node: Node) -> Node:
    """Matrix products that sum over places, or within blocks."""
    a, b = node.args[-2:]
    need_whole(merge, a, [-1], "sums over its units", node)
    need_whole(merge, b, [-2 if len(merge.value(b).shape) > 1 else -1], "sums over its units", node)
    return merge.copied(node)


@becomes(products.einsum)
def _summed(merge: Rewriting, node: Node) -> Node:
    """Sums of products over places, or within blocks."""
    formula, factors = node.args[0].replace(" ", ""), node.args[1]
    if "->" in formula and "." not in formula:
        inputs, out = formula.split("->")
        for letters, factor in zip(inputs.split(","), factors, strict=True):
            summed = [axis for axis, letter in enumerate(letters) if letter not in out]
            need_whole(merge, factor, summed, "sums over its units", node)
    return merge.copied(node)


@becomes(products.attention)
def _attended(merge: Rewriting, node: Node) -> Node:
    """Whole heads, over places."""
    query, key, value = node.args[:3]
    for tensor, axes in ((query, [-1]), (key, [-1, -2]), (value, [-2])):
        need_whole(merge, tensor, axes, "sums over the units of a head", node)
    return merge.copied(node)
