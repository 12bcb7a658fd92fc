"""The permutation groups of any torch model, from the graph that ``torch.export`` gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.arguments import only_dtype
from rebasin.graph import Number, export, number, operator, place_of, weight_keys, without_cache
from rebasin.inputs import Inputs, check_kind, on_each
from rebasin.spec import PermutationSpec
from rebasin.tracing.groups import Membership, find_groups
from rebasin.tracing.left_out import UNUSED, warn_of_left_out
from rebasin.tracing.memory import Memory, check_constants, emptied, entangled, memory_of, ties_of
from rebasin.tracing.other_sizes import prove_other_sizes
from rebasin.tracing.proof import prove
from rebasin.tracing.rules import (  # noqa: F401  each adds its rules to RULES
    entries,
    lookups,
    products,
    recurrent,
    repeats,
    shapes,
    sums,
)
from rebasin.tracing.units import RULES, Labels, Relations, Value, follow
from rebasin.weights import check_module, is_whole, state_of


def trace(model: nn.Module, example: Inputs | list[Inputs] | None = None, **named: Tensor) -> PermutationSpec:
    """The permutation groups of a model: which units can change places without changing what it computes.

    ``example`` is an input of the model, with a batch axis, the tuple of its inputs, or a dict of them by their names,
    as a tokenizer gives it: ``trace(model, batch)`` or ``trace(model, **batch)``. It should be of the size that the
    model is used at, as the longest text or an image of full resolution; one or two entries are enough. A list holds
    several examples: of other sizes, or other inputs, if the model computes something else for them. The model is taken
    as in evaluation, without a cache of what it has computed, and nothing of it is modified. Its graph is exported by
    ``torch.export``, and axes are followed through it operator by operator. What no rule in ``rebasin/tracing/rules``
    can follow stays where it is, and ``spec.pinned`` tells the reason. So does what the example does not reach, such as
    the end of a table that is cut to the input's length; a warning names it if others of its axis move. Another one
    names entries that are not used, but have an axis as long as one that moves. Before the spec is returned it is
    proved: all weights are redrawn, and inputs, tokens within their vocabulary; each group is permuted at random, and
    the outputs must stay what they were. This goes for all examples, also with other masks and whole numbers within
    their range, and then for inputs of other batch sizes, and of other lengths or resolutions where the model takes
    them; ``spec.proof`` says which.

    It takes some six times the memory of a model in float32, for networks in float64.

    Raises TypeError for other arguments, ValueError if torch.export refuses the model or the input, if the model's
    state_dict() renames entries, if it reads a weight by another way than its name, if an operator cannot be followed
    at all or cannot be computed in float64 (it is named, with its line), or if outputs are not finite, or nothing but
    rounding, and SpecError, naming a group, if permuting it changes the outputs, or if inputs of another size need
    another spec: then examples of both are needed.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> spec = trace(model, torch.randn(1, 3, 8, 8))
    >>> spec
    PermutationSpec(1 group, 8 units; 2 of 9 entries stay)
    >>> spec.pinned["4.bias"]
    'an output of the network'
    """
    check_module(model, "trace(model, example)")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a scripted model cannot be exported: give the module from before torch.jit.script")
    alone = without_cache(emptied(model))
    examples = [inputs_for(alone, inputs) for inputs in _given(example, named)]
    programs = [export(alone, inputs, RULES) for inputs in examples]
    for program in programs:
        check_constants(program, [model, alone])
    several = follow_programs(programs)
    followed = several[0]
    for program, inputs in zip(programs, examples, strict=True):
        prove(followed.spec, program, inputs)
    proof = prove_other_sizes(followed.spec, alone, programs, examples)
    spec = replace(_completed(followed.spec, model), proof=proof)
    tensors = {key: value for one in several for key, value in one.tensors.items()}
    warn_of_left_out(spec, followed.membership, tensors)
    return spec


@dataclass(frozen=True, eq=False)
class Followed:
    """A graph and the units in it.

    - ``values``: what is known of the tensor that each node gives; a list for several tensors, and a number for a size.
    - ``spec``: the groups of the parameters and buffers that it uses.
    - ``membership``: the group that each label of ``values`` is in.
    """

    program: torch.export.ExportedProgram
    values: Mapping[torch.fx.Node, Any]
    spec: PermutationSpec
    membership: Membership

    @property
    def tensors(self) -> dict[str, Value]:
        """What is known of the parameters and buffers that the graph uses, by their keys."""
        return {key: self.values[node] for node, key in weight_keys(self.program).items() if self.values[node].key}


def follow_program(program: torch.export.ExportedProgram) -> Followed:
    """Follow the units of a graph that ``rebasin.graph.export`` gave, operator by operator."""
    return follow_programs([program])[0]


def follow_programs(programs: Sequence[torch.export.ExportedProgram]) -> list[Followed]:
    """Follow the units of several graphs of one model: they have the groups that suit all of them."""
    relations = Relations()
    tensors: dict[str, Value] = {}
    values = [_relate(program, relations, tensors) for program in programs]
    for key, value in tensors.items():  # of a tensor under several names, the rules know the first
        if value.key in relations.columns:
            relations.columns[key] = relations.columns[value.key]
    spec, membership = find_groups(relations, tensors)
    return [Followed(program, known, spec, membership) for program, known in zip(programs, values, strict=True)]


def double_inputs(inputs: Inputs) -> Inputs:
    """The inputs of a model in float64 on the CPU; whole numbers as they are."""
    return on_each(lambda x: x.cpu().double() if x.is_floating_point() else x.cpu(), inputs)


def _given(example: Inputs | list[Inputs] | None, named: dict[str, Tensor]) -> list[Inputs]:
    """All examples. Raises TypeError or ValueError if there are none, or two ways to give one are mixed."""
    if (example is None) != bool(named):
        raise TypeError("trace(model, example) needs an example: an input, or inputs by their names, and not both")
    if example is None:
        return [named]
    if isinstance(example, list) and not example:
        raise ValueError("no example is given: the list is empty")
    return example if isinstance(example, list) else [example]


def inputs_for(model: nn.Module, example: Inputs) -> Inputs:
    """The inputs on the CPU, in the number format of the parameters if they have but one.

    Raises TypeError for anything but a tensor, a tuple or a dict of tensors, and ValueError for what has no values.
    """
    own = only_dtype(dict(model.named_parameters()))
    check_kind(example, "the example")

    def fitting(x: Tensor) -> Tensor:
        if x.is_meta:
            raise ValueError("the example is on the device 'meta', and has no values")
        return x.cpu().to(own or x.dtype) if x.is_floating_point() else x.cpu()

    return on_each(fitting, example)


def _relate(
    program: torch.export.ExportedProgram, relations: Relations, tensors: dict[str, Value]
) -> dict[torch.fx.Node, Any]:
    """What is known of each node's tensor. What the graph demands of the units is added to the relations.

    ``tensors`` are the parameters and buffers that other graphs of the model have used; those of this one are added.
    """
    keys, fleeting = weight_keys(program), program.graph_signature.non_persistent_buffers
    known: dict[torch.fx.Node, Any] = {}
    same: dict[Memory, str] = {}
    shared = Counter(map(memory_of, program.state_dict.values()))
    tangled = entangled(program.state_dict, program.constants)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            shape = _shape(node.meta["val"])
            known[node] = Value(shape)
            key = keys.get(node)
            if key is None or key in fleeting or is_whole(node.meta["val"]):
                continue
            memory = memory_of(program.state_dict[key])
            first = same.setdefault(memory, key)
            if first in tensors:  # one tensor under two names
                known[node] = tensors[key] = tensors[first]
            elif node.users or shared[memory] > 1:
                labels = [Labels((axis,), relations.fresh(size)) for axis, size in enumerate(shape) if size > 1]
                known[node] = tensors[key] = Value(shape, tuple(labels), key)
                for own in labels if key in tangled else ():
                    relations.pin(own.units, "shares its memory with another layout, or with what is not saved")
        elif node.op == "call_function" and node.meta.get("val") is not None:  # assertions give nothing
            if isinstance(node.meta["val"], Number):  # a size, or what is asserted of one
                known[node] = number(node.meta["val"])
                continue
            _check_sizes(node)
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
            try:
                shape, only_first = _shape(node.meta["val"]), _only_first_used(node)
                known[node] = follow(relations, operator(node), shape, args, kwargs, only_first)
            except Exception as error:
                raise ValueError(
                    f"the rule of the operator {operator(node)} fails{place_of(node)}: {error!r}. Write one that takes "
                    "this case, or put other operators in its place"
                ) from error
        elif node.op == "output":
            for value in node.all_input_nodes:
                for labels in known[value].labels:
                    relations.pin(labels.units, "an output of the network")
    return known


def _completed(spec: PermutationSpec, model: nn.Module) -> PermutationSpec:
    """The spec with every key of the model's state, in its order."""
    state = state_of(model)
    for key, parts in spec.parts.items():
        if parts and key not in state:
            raise ValueError(
                f"the model uses {key!r}, and its state_dict() has no such entry, so that no permutation could be "
                "applied: take away what renames its entries, such as a hook"
            )
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    left_out = {
        key: "whole numbers" if is_whole(tensor) else UNUSED for key, tensor in state.items() if key not in spec.parts
    }
    return replace(
        spec,
        parts={key: spec.parts.get(key, ()) for key in state},
        shapes={key: tuple(tensor.shape) for key, tensor in state.items()},
        statistics=frozenset(key for key, tensor in state.items() if key in buffers or is_whole(tensor)),
        pinned={**spec.pinned, **left_out},
        ties=ties_of(state),
    )


def _only_first_used(node: torch.fx.Node) -> bool:
    """Whether of several outputs of a node nothing but the first is used."""
    several = isinstance(node.meta["val"], list | tuple)
    return several and all(operator(user) == "getitem" and (user.args[1] == 0 or not user.users) for user in node.users)


def _check_sizes(node: torch.fx.Node) -> None:
    """Raise ValueError, naming the operator, if the sizes of what a node gives depend on values."""
    several = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    sizes = [size for value in several if isinstance(value, Tensor) for size in value.shape]
    if any(isinstance(size, torch.SymInt) and not size.node.has_hint() for size in sizes):
        raise ValueError(
            f"the size of what the operator {operator(node)} gives depends on values{place_of(node)}, so that no graph "
            "tells which units meet: weigh by a mask (torch.where, a product) in place of choosing entries"
        )


def _shape(value: Any) -> Any:
    """The shape of a tensor, or those of several; that of the example where the graph takes any batch."""
    return tuple(map(number, value.shape)) if isinstance(value, Tensor) else [_shape(part) for part in value]
