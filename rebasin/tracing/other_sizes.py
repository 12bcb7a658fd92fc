"""The proof beyond the examples: the model itself is run on batches, lengths and resolutions that no example has."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rebasin.graph import names_of, operator
from rebasin.inputs import Inputs, arguments_of, on_each, shapes_of, tensors_of
from rebasin.spec import PermutationSpec, SpecError
from rebasin.tracing.proof import (
    WIDE,
    computing_in,
    derangements,
    drawn_like,
    inputs_like,
    nearly,
    permuted,
    rounding_alone,
    stays,
    widened,
)
from rebasin.weights import copied, in_evaluation

# From this size on, the double costs too much to be tried, unless half of it is refused; and so does a batch of many
# inputs with as many entries as a square of this size has.
LARGE = 128
# An input that is longer than a table is tried if it has no more entries than that along its axis, and if so many
# multiplications are enough for it, one for each weight and entry.
LONGEST, CHEAP = 1024, 1e9
BATCH = "batch"
Place = tuple[int, int]  # an axis of the tensor of this number
Networks = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def prove_other_sizes(
    spec: PermutationSpec,
    model: nn.Module,
    programs: Sequence[torch.export.ExportedProgram],
    examples: Sequence[Inputs],
) -> tuple[str, ...]:
    """What the spec was proved on, in sentences. Raises SpecError if it fails on a size that no example has.

    ``model`` is a copy on the CPU, and ``programs`` its graphs for the examples. For each of these a larger batch is
    tried, and one of many where inputs are small; for each size beside the batch the double, half of it, an odd one,
    two that differ where several axes have it, and one beyond each table that the example reaches in part. What the
    model does not take is passed over, and told; a warning says if it does not even take the examples, with other
    weights in float64.
    """
    trials = _Trials(model, _networks(spec, model), {shapes_of(inputs): _in_words(inputs) for inputs in examples})
    refused: dict[str, bool] = {}
    for program, inputs in zip(programs, examples, strict=True):
        smallest = inputs
        for what, wanted in _other_sizes(inputs, _tables(program)).items():
            taken = {kind: trials.first_taken(choices, program, inputs) for kind, choices in wanted.items()}
            if all(other is None for other in taken.values()):
                refused[what] = True
            odd = taken.get("odd")
            smallest = smallest if odd is None else min(smallest, odd, key=_entries)
        if BATCH not in refused and _entries(smallest) < LARGE**2:
            count, batch = _batch_of(inputs)
            trials.first_taken([_resized(smallest, batch, 4 * count + 1)], program, inputs)
    nothing_else = len(trials.proved) == len({shapes_of(inputs) for inputs in examples})
    if nothing_else and not all(map(trials.check_example, programs, examples)):
        warnings.warn(
            "the spec is proved on the graph of the example alone, since the model itself cannot be computed in "
            "float64, or gives nothing to compare: whether another size needs another spec was not seen. Where the "
            "model asks for a number format, ask for that of its weights",
            stacklevel=3,
        )
    sentences = ["proved on inputs of " + "; ".join(trials.proved.values())]
    words = ["another batch size"] if refused.pop(BATCH, None) else []
    if refused:
        words.append(f"other sizes in place of {', '.join(refused)}")
    if words:
        sentences.append(f"not on {', '.join(words)}: none that was tried could be computed")
    return tuple(sentences)


def _other_sizes(inputs: Inputs, tables: Mapping[int, int]) -> dict[str, dict[str, list[Inputs]]]:
    """Inputs of a larger batch, and by the size of each other axis ones of other sizes; each kind in the order to try.

    All axes of one size are changed together, as height and width, or words and their mask; then each alone, since
    words and what each of them has may be as many; and to two sizes that differ. ``tables`` are the lengths of
    those that are cut to each size.
    """
    count, batch = _batch_of(inputs)
    choices = {BATCH: {"larger": [_resized(inputs, batch, count + 1)]}} if count else {}
    small = _resized(inputs, batch, min(1, count))
    places: dict[int, list[Place]] = {}
    for number, x in enumerate(tensors_of(inputs)):
        for axis, size in enumerate(x.shape):
            if axis and size:
                places.setdefault(size, []).append((number, axis))
    for size, own in places.items():
        together = [own, *([place] for place in own)] if len(own) > 1 else [own]
        lengths = _other_lengths(size)
        if size in tables:
            lengths["beyond a table"] = [tables[size] + 1]
        choices[str(size)] = {}
        for kind, others in lengths.items():
            choices[str(size)][kind] = [_resized(small, axes, other) for other in others for axes in together]
        most, one = _two_lengths(size)
        for number, some in enumerate(_unequal(own)):
            both = [_resized(_resized(small, own, most), axes, one) for axes in some]
            choices[str(size)][f"unequal {number}"] = both
    return choices


def _unequal(places: list[Place]) -> list[list[list[Place]]]:
    """Which of the places that have one size to give another one, in several trials, each with what to try in turn.

    Of tensors that have it along several axes, the first axis of each, as the height of images and of their masks, then
    the second where there is a third; of tensors that have it once, the first tensor.
    """
    of: dict[int, list[Place]] = {}
    for place in places:
        of.setdefault(place[0], []).append(place)
    most = max(map(len, of.values()))
    if most == 1:
        return [[places[:1]]] if len(places) > 1 else []
    trials = []
    for number in range(most - 1):
        alike = [own[number] for own in of.values() if len(own) > number]
        trials.append([alike, alike[:1]])
    return trials


def _two_lengths(size: int) -> tuple[int, int]:
    """Two that differ, in place of one that several axes have: both less, or where it is small, it and the double."""
    half = size // 2
    odd = half - 1 - half % 2
    return (half, odd) if odd >= 3 else (size, 2 * size)


def _other_lengths(size: int) -> dict[str, list[int]]:
    """The sizes to try in place of one, by kind, each kind in the order to try: models tell sizes apart in many ways.

    Where the double is costly, or half is nothing, one of the two is enough. An odd size is tried that is less than
    half, of three or more, or the next one.
    """
    half = size // 2
    if half and size < LARGE:
        others = {"double": [2 * size], "half": [half]}
    else:
        others = {"double or half": [half, 2 * size] if half else [2 * size]}
    odd = half - 1 - half % 2
    if odd >= 3:
        others["odd"] = [odd] if size % 2 else [odd, size + 1]
    elif size % 2 == 0:
        others["odd"] = [size + 1]
    return others


def _tables(program: torch.export.ExportedProgram) -> dict[int, int]:
    """The lengths of the weights and constants that are cut to a size, by that size, if a longer input costs little."""
    weights = sum(tensor.numel() for tensor in program.state_dict.values())
    tables: dict[int, int] = {}
    for node in program.graph.nodes:
        table = _cut_tensor(node)
        if node is not table and table.op == "placeholder" and table.name not in program.graph_signature.user_inputs:
            axis = node.args[1] if len(node.args) > 1 else 0
            length, reached = (own.meta["val"].shape[axis] for own in (table, node))
            if reached < length < LONGEST and (length + 1) * weights < CHEAP:
                tables[reached] = max(length, tables.get(reached, 0))
    return tables


def _cut_tensor(node: torch.fx.Node) -> torch.fx.Node:
    """What a node is cut from, along this axis and perhaps others; the node itself if it is not cut."""
    while operator(node) == "slice":
        node = node.all_input_nodes[0]
    return node


def _batch_of(inputs: Inputs) -> tuple[int, list[Place]]:
    """The size of the batch, and the axes that have it."""
    tensors = tensors_of(inputs)
    count = max((len(x) for x in tensors[:1] if x.ndim), default=0)
    return count, [(number, 0) for number, x in enumerate(tensors) if x.ndim and len(x) == count]


def _entries(inputs: Inputs) -> int:
    return sum(x.numel() for x in tensors_of(inputs))


def _resized(inputs: Inputs, places: Iterable[Place], size: int) -> Inputs:
    """The inputs with these axes of another size, cut or gone through anew."""
    numbers = iter(range(len(tensors_of(inputs))))

    def of(x: Tensor) -> Tensor:
        number = next(numbers)
        for own, axis in places:
            if own == number:
                x = x.index_select(axis, torch.arange(size) % x.shape[axis])
        return x

    return on_each(of, inputs)


def _networks(spec: PermutationSpec, model: nn.Module) -> Networks:
    """Random float64 weights for a model, the same with all groups permuted, and others."""
    generator = torch.Generator().manual_seed(0)
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    weights = drawn_like(tensors, generator)
    index = {group: derangements(spec, group, generator) for group in spec.sizes}
    return weights, {**weights, **permuted(spec, weights, index)}, drawn_like(tensors, generator)


@dataclass
class _Trials:
    """A model with the weights of three ``networks``, and what their proof has succeeded on so far, in words."""

    model: nn.Module
    networks: Networks
    proved: dict[Any, str]

    def first_taken(
        self, choices: Iterable[Inputs], program: torch.export.ExportedProgram, example: Inputs
    ) -> Inputs | None:
        """The first inputs that the model takes, None if it takes none. Raises SpecError if the spec fails on them."""
        for inputs in choices:
            if shapes_of(inputs) in self.proved:
                return inputs
            stays = self.unchanged(program, inputs)
            if stays is False:
                self.check_example(program, example)
                raise SpecError(
                    f"permuting all groups together changes what the network computes for inputs of "
                    f"{_in_words(inputs)}, which no example has: give examples of both sizes, "
                    "trace(model, [example, another])"
                )
            if stays:
                self.proved[shapes_of(inputs)] = _in_words(inputs)
                return inputs
        return None

    def check_example(self, program: torch.export.ExportedProgram, example: Inputs) -> bool:
        """Whether the model takes the example. Raises SpecError if the spec, proved on its graph, fails there."""
        stays = self.unchanged(program, example)
        if stays is False:
            raise SpecError(
                "permuting all groups together changes what the model computes of the example itself, though not what "
                "its graph does: it computes something else while it is exported, or uses weights that it does not "
                "have by name. Let it compute the same, by its own parameters"
            )
        return bool(stays)

    def unchanged(self, program: torch.export.ExportedProgram, inputs: Inputs) -> bool | None:
        """Whether outputs stay with all groups permuted, in float64 for inputs of this size: see ``prove``.

        None if the model does not take the inputs, or gives nothing to compare, or nothing but rounding.
        """
        generator = torch.Generator().manual_seed(1)
        weights, moved, others = self.networks
        drawn = _named(program, inputs_like(program, inputs, generator))
        old = _outputs(self.model, weights, drawn)
        # Another network, and other inputs.
        other = _outputs(self.model, others, _named(program, inputs_like(program, inputs, generator))) if old else []
        if not other:
            return None
        new = _outputs(self.model, moved, drawn)
        if not new or all(map(stays, new, old, other)):
            return bool(new)
        tried = [_outputs(self.model, near, drawn) for near in nearly(weights)]
        nearby = [outputs for outputs in tried if outputs]
        if not nearby:
            return None
        told = []
        for number, values in enumerate(zip(new, old, other, strict=True)):
            if not stays(*values):
                told.append(rounding_alone(*values, [outputs[number] for outputs in nearby]))
        return None if None in told and False not in told else all(told)


def _named(program: torch.export.ExportedProgram, tensors: tuple[Tensor, ...]) -> Inputs:
    """The inputs of a graph, by their names if it has them."""
    names = names_of(program)
    return dict(zip(names, tensors, strict=True)) if names else tensors


class _Wide(TorchDispatchMode):
    """Operators compute in float64 where they are told another format, and where narrow tensors keep them from it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = widened((args, kwargs or {}))
        try:
            return function(*args, **kwargs)
        except RuntimeError:
            wide = tree_map_only(Tensor, lambda x: x.to(WIDE.get(x.dtype, x.dtype)), (args, kwargs))
            narrow = any(isinstance(x, Tensor) and x.dtype in WIDE for x in tree_leaves((args, kwargs)))
            if not narrow or function._schema.is_mutable:
                raise
            return function(*wide[0], **wide[1])


def _outputs(model: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs) -> list[Tensor]:
    """The tensors that a model gives with these weights; none if it does not take the inputs, or gives NaN."""
    args, kwargs = arguments_of(inputs)
    # Models may keep what they have computed with other weights.
    fresh = _filled(model, weights)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),  # of the CPU alone, where all is computed
            warnings.catch_warnings(),
            computing_in(torch.float64),
            _Wide(),
        ):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)
            outputs = tree_leaves(fresh(*args, **kwargs))
    except Exception:  # whatever a model says of inputs that it does not take
        return []
    tensors = [x for x in outputs if isinstance(x, Tensor) and x.numel()]
    return [] if any(x.isnan().any() or not x.isfinite().any() for x in tensors) else tensors


def _filled(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with these weights, in evaluation."""
    memo: dict[int, Any] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        memo[id(parameter)] = nn.Parameter(weights[key], requires_grad=False)
    for key, buffer in model.named_buffers(remove_duplicate=False):
        memo[id(buffer)] = weights[key]
    return in_evaluation(copied(model, memo))


def _in_words(inputs: Inputs) -> str:
    """The shapes of inputs."""
    names = [f"{name} " for name in inputs] if isinstance(inputs, Mapping) else [""] * len(tensors_of(inputs))
    return ", ".join(f"{name}{tuple(x.shape)}" for name, x in zip(names, tensors_of(inputs), strict=True))
