"""The proof of a spec: a network with redrawn weights computes the same whichever way its groups are permuted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from rebasin.graph import given, weight_keys
from rebasin.permutation import flatten, permute
from rebasin.spec import PermutationSpec, SpecError

# Sums of float64 in another order differ by far less, a unit in a wrong place by far more.
ROUNDING = 1e-8


def prove(spec: PermutationSpec, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]) -> None:
    """Raise SpecError, naming the group, unless permuting the groups leaves the network's outputs as they are.

    All weights and buffers are redrawn in float64, and so are the inputs, twice, whole numbers aside. Each group is
    permuted at random by itself, in all blocks where it lies within blocks, and at last all of them. Raises ValueError
    if the redrawn network's outputs are not finite, since nothing can be compared then.
    """
    generator = torch.Generator().manual_seed(0)
    together = {name: [name] for name in spec.sizes}
    together["all groups together"] = list(spec.sizes)
    weights = redrawn(program, generator)
    index = {name: _derangements(spec, name, generator) for name in spec.sizes}
    with torch.no_grad():
        replays = []
        for _ in range(2):
            example = [
                torch.randn(x.shape, generator=generator, dtype=x.dtype) if x.is_floating_point() else x for x in inputs
            ]
            replays.append(_Replay(program, weights, example))
            if not replays[-1].finite():
                raise ValueError("nothing can be proved: for random weights and inputs, the outputs are not finite")
        for name, moving in together.items():
            moved = permuted(spec, weights, {group: index[group] for group in moving})
            if not all(replay.unchanged(moved) for replay in replays):
                raise SpecError(f"permuting {name!r} changes what the network computes: its spec is wrong")


def redrawn(program: torch.export.ExportedProgram, generator: torch.Generator) -> dict[str, Tensor]:
    """Random float64 values for all parameters, buffers and constants of a graph; whole numbers stay."""
    tensors = {**program.state_dict, **program.constants}
    drawn: dict[int, Tensor] = {}  # a tensor of two names is drawn once
    for tensor in tensors.values():
        if tensor.data_ptr() not in drawn:
            drawn[tensor.data_ptr()] = _redrawn(tensor, generator) if tensor.is_floating_point() else tensor
    return {key: drawn[tensor.data_ptr()] for key, tensor in tensors.items()}


def permuted(spec: PermutationSpec, weights: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those weights that the groups in ``index`` move, moved, all others held."""
    held = {g: torch.arange(n).expand(spec.index_shape(g)) for g, n in spec.sizes.items() if g not in index}
    flat = flatten(spec, {**held, **index})
    moving = {*index, *(inner for group in index for inner in spec.within(group))}
    moved = {}
    for key, parts in spec.parts.items():
        own = [part for part in parts if part.group in moving]
        if own:
            moved[key] = spec.unview(key, permute(spec.view(key, weights[key]), own, flat, weights[key].ndim))
    return moved


class _Replay:
    """A graph's values for one input and one set of weights, and what becomes of them when some weights change."""

    def __init__(self, program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]):
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        (output,) = (node for node in program.graph.nodes if node.op == "output")
        self.outputs = list(output.all_input_nodes)
        self.sources = {key: node for node, key in weight_keys(program).items()}
        self.values = given(program, weights, inputs)
        for node in self.nodes:
            self.values[node] = self._call(node, self.values.__getitem__)

    def finite(self) -> bool:
        """Whether the outputs are."""
        values = (self.values[node] for node in self.outputs)
        return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, Tensor))

    def unchanged(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether the outputs stay with these weights in place of their own.

        Only what depends on them is computed again, up to where it is what it was.
        """
        new: dict[torch.fx.Node, Any] = {self.sources[key]: tensor for key, tensor in weights.items()}
        for node in self.nodes:
            if any(argument in new for argument in node.all_input_nodes):
                value = self._call(node, lambda argument: new.get(argument, self.values[argument]))
                if not same(value, self.values[node]):
                    new[node] = value
        return not any(node in new for node in self.outputs)

    @staticmethod
    def _call(node: torch.fx.Node, value_of: Callable[[torch.fx.Node], Any]) -> Any:
        args = torch.fx.map_arg(node.args, value_of)
        kwargs = torch.fx.map_arg(node.kwargs, value_of)
        return cast(Callable[..., Any], node.target)(*args, **kwargs)


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same but for rounding."""
    if isinstance(a, list | tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor):
        return a == b
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    least, most = b.aminmax()
    bound = ROUNDING * max(-float(least), float(most))
    # Of tensors that differ, a few entries tell nearly always; of equal ones, all are compared.
    few = slice(None, None, 1 + a.numel() // 64)
    return math.isfinite(bound) and all(
        float((x - y).abs().max()) <= bound for x, y in ((a.flatten()[few], b.flatten()[few]), (a, b))
    )


def _derangements(spec: PermutationSpec, group: str, generator: torch.Generator) -> Tensor:
    """Random permutations that leave no unit in its place, one for each block: cycles through all."""
    cycle = torch.rand(spec.index_shape(group), generator=generator).argsort(-1)
    return torch.empty_like(cycle).scatter_(-1, cycle, cycle.roll(1, -1))


def _redrawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random float64 values of the size that keeps a network's signal alive; vectors positive, as variances are."""
    drawn = torch.empty(tensor.shape, dtype=torch.float64)  # filled in place: temporaries of large layers are slow
    if tensor.ndim < 2:
        return drawn.uniform_(0.5, 1.5, generator=generator)
    bound = (6 / tensor[0].numel()) ** 0.5
    return drawn.uniform_(-bound, bound, generator=generator)
