"""The dense weights of a merge whose units are slots: what gives units is averaged, what reads them is added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from rebasin.arguments import check_choice
from rebasin.expanding.layout import blocks_of, places
from rebasin.expanding.slots import Slots
from rebasin.graph import AFFINE, MAKE_PLAIN, is_layer, operator, weight_keys
from rebasin.spec import PermutationSpec
from rebasin.weights import Models, is_whole, weights_of

Heads = Literal["shared", "side by side"]
PRODUCTS = ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum")


@torch.no_grad()
def expand(
    slots: Slots, models: Models, program: torch.export.ExportedProgram, *, heads: Heads = "shared"
) -> dict[str, Tensor]:
    """The dense weights of the merge that ``slots`` describe, a dict of tensors of the new shapes.

    ``models`` are n modules, dicts of tensors or their stack (n, ...), and ``program`` the exported graph of one. An
    axis that gives units (rows, biases, norms) has in each slot the mean over the units that share it, an axis that
    reads units (columns) their sum over models: W' = sum_m M_out^m W^m U_in^m (Stoica et al. 2024, equation 8). So a
    weight between two slots without a common owner is 0. The outputs of the network are its slots too: ``"shared"``,
    of which the merge gives the mean over the models, or ``"side by side"``, first those of model 0. Other slices that
    no group moves are shared, unaligned, as in every merge. Of whole numbers, such as counters, the first is kept.

    Raises ValueError, naming the entry, if the models do not fit, or if it is a tensor that reads units here and gives
    them there, a computed weight, or one whose units cannot become more.
    """
    check_choice(heads, "heads", get_args(Heads))
    spec = slots.spec
    weights = weights_of(models)
    n = spec.batch_shape(weights, "the models")
    if n != (slots.n,):
        raise ValueError(f"the slots are of {slots.n} models, the weights have leading axes {tuple(n)}")
    reading = read_axes(spec, program)
    stacked = output_keys(program) if heads == "side by side" else frozenset()
    moved = slots.permutation.apply(weights)
    expanded = {}
    for key, tensor in moved.items():
        if is_whole(tensor):
            expanded[key] = tensor[0].clone()
        else:
            expanded[key] = _expanded(slots, key, tensor, reading.get(key), key in stacked)
    return expanded


def _expanded(slots: Slots, key: str, tensor: Tensor, reads: int | None, stacked: bool) -> Tensor:
    """One entry (n, ...) of the permuted models, in the shape that its slots have."""
    if stacked and key in slots.spec.blocks:
        raise ValueError(f"{key!r} is a grouped convolution that gives outputs: its heads must be shared")
    if tensor.ndim == 1:
        return tensor.mean()
    views = slots.spec.view(key, tensor)  # grouped convolutions made whole
    gives = _giving_axis(slots, key, reads)
    index: dict[int, Tensor] = {}  # axis: (n, slices)
    shape = list(views.shape[1:])
    for axis in [gives] if reads is None else [gives, reads]:
        index[axis], shape[axis] = places(slots, key, axis, stacked=stacked and axis == gives)
    total = views.new_zeros(shape)
    for m in range(slots.n):
        at = []
        for axis in range(max(index) + 1):
            slices = index[axis][m] if axis in index else torch.arange(shape[axis])
            at.append(slices.to(views.device).reshape(-1, *[1] * (max(index) - axis)))
        total.index_put_(tuple(at), views[m], accumulate=True)
    members = torch.bincount(index[gives].flatten(), minlength=shape[gives]).to(total)
    total /= members.reshape(-1, *[1] * (total.ndim - gives - 1))
    # Of a grouped convolution, blocks have moved as wholes: there are more of them, of the same size.
    blocks = shape[1] // slots.spec.shapes[key][1] if key in slots.spec.blocks else 1
    return blocks_of(total, blocks)


def _giving_axis(slots: Slots, key: str, reads: int | None) -> int:
    """The axis whose slices are what an entry gives: that on which groups lie and which does not read."""
    axes = sorted({part.axis for part in slots.spec.parts[key]} - {reads})
    if len(axes) > 1:
        raise ValueError(f"{key!r} holds units along the axes {axes}, and no layer reads it: they cannot be split")
    return axes[0] if axes else 0


def read_axes(spec: PermutationSpec, program: torch.export.ExportedProgram) -> dict[str, int]:
    """The axis along which an entry reads units, for the weights of linear layers and convolutions; others read none.

    Raises ValueError, naming the entry, for a tensor that reads units in one place and gives them in another, and for
    a weight that is computed from others, or multiplied outside of a layer.
    """
    keys, same, alone = weight_keys(program), _same_tensor(program), _of_parameters_alone(program)
    reading: set[str] = set()
    giving: set[str] = set()
    for node, key in keys.items():
        for user, argument in _users(node, alone):
            layer = is_layer(user)
            if layer and user.args[1] is node:
                reading |= same[key]
            elif spec.parts.get(key) and layer and user.args[1] is argument:
                raise ValueError(f"{key!r}: a layer's weight is computed from it, and cannot be split: {MAKE_PLAIN}")
            elif spec.parts.get(key) and operator(user) in PRODUCTS:
                raise ValueError(f"{key!r} is multiplied outside of a linear layer or convolution: it cannot be split")
            else:
                giving |= same[key]
    for key in sorted(reading & giving):
        if any(part.axis == 1 for part in spec.parts.get(key, ())):
            names = " and ".join(map(repr, sorted(same[key])))
            raise ValueError(f"{names}: one tensor reads units here and gives them there; untie it to split them")
    return dict.fromkeys(sorted(reading), 1)


def output_keys(program: torch.export.ExportedProgram) -> frozenset[str]:
    """The entries of the last layers and of norms behind them, after which there is no linear layer or convolution."""
    keys = weight_keys(program)
    before: set[torch.fx.Node] = set()  # nodes with a layer somewhere after them
    last: set[str] = set()
    for node in reversed(program.graph.nodes):
        if operator(node) in AFFINE and node not in before:
            last |= {keys[argument] for argument in node.all_input_nodes if argument in keys}
        if node in before or is_layer(node):
            before.update(node.all_input_nodes)
    return frozenset(last)


def _same_tensor(program: torch.export.ExportedProgram) -> dict[str, set[str]]:
    """For each parameter or buffer, the names that its memory has."""
    tensors = {**program.constants, **program.state_dict}
    memory = {key: tensors[key].data_ptr() for key in weight_keys(program).values()}
    memory |= {key: tensor.data_ptr() for key, tensor in program.state_dict.items()}
    names: dict[int, set[str]] = defaultdict(set)
    for key, address in memory.items():
        names[address].add(key)
    return {key: names[address] for key, address in memory.items()}


def _users(node: torch.fx.Node, alone: set[torch.fx.Node]) -> Iterator[tuple[torch.fx.Node, torch.fx.Node]]:
    """The nodes that use what a node gives, as it is or computed from parameters alone, and what they are given."""
    for user in node.users:
        if user in alone:
            yield from _users(user, alone)
        else:
            yield user, node


def _of_parameters_alone(program: torch.export.ExportedProgram) -> set[torch.fx.Node]:
    """The parameters, and what is computed from nothing else before a layer is reached."""
    alone = set(weight_keys(program))
    for node in program.graph.nodes:
        if node.op == "call_function" and operator(node) not in AFFINE and alone.issuperset(node.all_input_nodes):
            alone.add(node)
    return alone
