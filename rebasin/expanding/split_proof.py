"""The proof of a split: redrawn models, merged or with nothing shared, must give what they gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rebasin.expanding.axes import Axes
from rebasin.expanding.expansion import Heads, expand, read_axes
from rebasin.expanding.rewriting import rewrite
from rebasin.expanding.slots import Slots
from rebasin.graph import ordered, run
from rebasin.inputs import Inputs
from rebasin.spec import PermutationSpec, SpecError
from rebasin.tracing import Followed
from rebasin.tracing.proof import redrawn, same
from rebasin.weights import stack


@torch.no_grad()
def prove_split(followed: Followed, slots: Slots, inputs: Inputs, heads: Heads = "shared") -> None:
    """Raise CannotSplit, naming a group, or SpecError, unless the merge with these slots computes what it should.

    ``followed`` is the graph of a model on the CPU. Its weights and ``inputs`` are redrawn in float64, whole numbers
    aside.

    1. The merge of models that are one but for ``slots.permutation`` must give what that one gives, whatever is shared.
       This goes for all slots that hold one unit of the permuted models each; those of ZipIt! do not.
    2. The merge of two unlike models of which nothing is shared must give the outputs of both, unless a part of the
       network is held in place and is therefore shared after all, or cannot be split.
    """
    spec = slots.spec
    networks = _Redrawn(followed, spec, inputs)
    if _aligned(slots):
        model = networks.draw()
        moved = slots.permutation.invert().apply(stack([model] * slots.n))
        if not networks.agree(slots, moved, [networks.outputs(model)] * slots.n, heads):
            raise SpecError(f"a merge of equal models computes something else: {_at_fault(networks, slots)}")
    apart = Slots.apart(spec, 2)
    try:
        axes = Axes(followed, apart, "side by side")
        rewrite(followed, axes)
    except ValueError:  # a group that cannot be split, or an output without units of its own
        return
    unlike = networks.draw_unlike(axes)
    if unlike and not networks.agree(apart, stack(unlike), list(map(networks.outputs, unlike)), "side by side"):
        raise SpecError(f"a merge with nothing shared computes something else: {_at_fault(networks, apart)}")


class _Redrawn:
    """Models of one graph with redrawn weights, and what they and their merges compute."""

    def __init__(self, followed: Followed, spec: PermutationSpec, inputs: Inputs) -> None:
        self.followed, self.program, self.spec = followed, followed.program, spec
        self.generator = torch.Generator().manual_seed(0)
        drawn = []
        for x in ordered(self.program, inputs):
            random = torch.randn(x.shape, generator=self.generator, dtype=torch.float64)
            drawn.append(random if x.is_floating_point() else x)
        self.inputs = tuple(drawn)

    def draw(self) -> dict[str, Tensor]:
        """A model; zeros where the graph does not use an entry."""
        drawn = redrawn(self.program, self.generator)
        return {key: drawn[key] if key in drawn else torch.zeros(shape) for key, shape in self.spec.shapes.items()}

    def draw_unlike(self, axes: Axes) -> list[dict[str, Tensor]]:
        """Two models that are alike only where a merge with these axes shares something; none if it shares units."""
        first, second = self.draw(), self.draw()
        values = self.followed.tensors
        reading = read_axes(self.spec, self.program)
        for key, shape in self.spec.shapes.items():
            if key not in values:
                continue
            giving = [axes.of(values[key], axis) for axis in range(len(shape)) if axis != reading.get(key)]
            split = [axis for axis in giving if axis.groups]
            if not split or any((axis.index == axis.index[0]).all(0).any() for axis in split):
                if key in reading:
                    return []
                second[key] = first[key]
        return [first, second]

    def agree(
        self, slots: Slots, models: Mapping[str, Tensor], outputs: Sequence[Sequence[Tensor]], heads: Heads
    ) -> bool:
        """Whether the merge of models (n, ...) gives the mean of the outputs that they have, or these side by side."""
        rewriting = rewrite(self.followed, Axes(self.followed, slots, heads))
        merge = rewriting.module(expand(slots, models, self.program, heads=heads)).double()
        for merged, *of_models in zip(merge(*self.inputs), *outputs, strict=True):
            expected = torch.stack(of_models).mean(0)
            wider = [axis for axis, size in enumerate(merged.shape) if size != expected.shape[axis]]
            if wider and heads == "side by side":
                expected = torch.cat(of_models, wider[0])
            if merged.shape != expected.shape or not same(merged, expected):
                return False
        return True

    def outputs(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """What a model computes."""
        (end,) = (node for node in self.program.graph.nodes if node.op == "output")
        outputs: dict[torch.fx.Node, Tensor] = {}

        def visit(node: torch.fx.Node, args: list[Any], compute: Callable[..., Any]) -> Any:
            value = compute(*args)
            if node in end.all_input_nodes:
                outputs[node] = value
            return value

        constants = {key: x.double() if x.is_floating_point() else x for key, x in self.program.constants.items()}
        run(self.program, {**constants, **weights}, self.inputs, visit)
        return [outputs[node] for node in end.args[0]]


def _aligned(slots: Slots) -> bool:
    """Whether each slot holds the same unit of all the permuted models that it belongs to."""
    for group, index in slots.index.items():
        units = torch.arange(index.shape[1], device=index.device).expand_as(index).flatten()
        first, last = (
            torch.zeros(slots.widths[group], dtype=units.dtype, device=units.device).scatter_reduce(
                0, index.flatten(), units, reduction, include_self=False
            )
            for reduction in ("amin", "amax")
        )
        if not torch.equal(first, last):
            return False
    return True


def _at_fault(networks: _Redrawn, slots: Slots) -> str:
    """Which of the split groups cannot even be split alone: a pair of equal models must not notice."""
    units = {group: torch.arange(slots.spec.sizes[group]) for group in slots.index}
    whole = {group: torch.stack([own, own]) for group, own in units.items()}
    model, wrong = networks.draw(), []
    outputs = [networks.outputs(model)] * 2
    for group, own in units.items():
        half = torch.stack([own, torch.where(own < len(own) // 2, own, own + len(own))])
        alone = Slots.from_index(slots.spec, {**whole, group: half})
        split = slots.widths[group] > len(own)
        if split and not networks.agree(alone, stack([model, model]), outputs, "shared"):
            wrong.append(group)
    return f"merge {', '.join(map(repr, wrong))} whole" if wrong else "some groups cannot be split together"
