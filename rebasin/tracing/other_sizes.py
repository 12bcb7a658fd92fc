"""The proof beyond the examples: the model itself is run on batches, lengths and resolutions that no example has."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rebasin.graph import names_of
from rebasin.inputs import Inputs, arguments_of, on_each, shapes_of, tensors_of
from rebasin.spec import PermutationSpec, SpecError
from rebasin.tracing.proof import (
    WIDE,
    computing_in,
    derangements,
    drawn_like,
    inputs_like,
    permuted,
    stays,
    widened,
)
from rebasin.weights import copied

# From this size on, half of it is tried before the double, which costs more.
LARGE = 128
BATCH = "batch"
Place = tuple[int, int]  # an axis of the tensor of this number


def prove_other_sizes(
    spec: PermutationSpec,
    model: nn.Module,
    programs: Sequence[torch.export.ExportedProgram],
    examples: Sequence[Inputs],
) -> tuple[str, ...]:
    """What the spec was proved on, in sentences. Raises SpecError if it fails on a size that no example has.

    ``model`` is a copy on the CPU, and ``programs`` its graphs for the examples. For each of these another batch size
    is tried, and for each size beside the batch one that is larger or smaller, wherever inputs have it. What the model
    does not take is passed over, and told.
    """
    proved = {shapes_of(inputs): _in_words(inputs) for inputs in examples}
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    weights = drawn_like(tensors, torch.Generator().manual_seed(0))
    refused: dict[str, bool] = {}
    for program, inputs in zip(programs, examples, strict=True):
        for what, choices in _other_sizes(inputs).items():
            for other in choices:
                if shapes_of(other) in proved or _proves(spec, model, weights, program, other):
                    proved[shapes_of(other)] = _in_words(other)
                    break
            else:
                refused[what] = True
    sentences = ["proved on inputs of " + "; ".join(proved.values())]
    words = ["another batch size"] if refused.pop(BATCH, None) else []
    if refused:
        words.append(f"other sizes in place of {', '.join(refused)}")
    if words:
        sentences.append(f"not on {', '.join(words)}: none that was tried could be computed")
    return tuple(sentences)


def _other_sizes(inputs: Inputs) -> dict[str, list[Inputs]]:
    """Inputs of a larger batch, and by the size of each other axis ones of another size, in the order to try.

    All axes of one size are changed together, as height and width, or words and their mask; then each alone, since
    words and what each of them has may be as many.
    """
    tensors = tensors_of(inputs)
    count = max((len(x) for x in tensors[:1] if x.ndim), default=0)
    batch = [(number, 0) for number, x in enumerate(tensors) if x.ndim and len(x) == count]
    choices = {BATCH: [_resized(inputs, batch, count + 1)]} if count else {}
    small = _resized(inputs, batch, min(1, count))
    places: dict[int, list[Place]] = {}
    for number, x in enumerate(tensors):
        for axis, size in enumerate(x.shape):
            if axis and size:
                places.setdefault(size, []).append((number, axis))
    for size, own in places.items():
        others = [size // 2, 2 * size] if size >= LARGE else [2 * size, size // 2]
        together = [own, *([place] for place in own)] if len(own) > 1 else [own]
        resized = [_resized(small, axes, other) for axes in together for other in others if other]
        choices[str(size)] = resized
    return choices


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


def _proves(
    spec: PermutationSpec,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    program: torch.export.ExportedProgram,
    inputs: Inputs,
) -> bool:
    """Whether the model takes inputs of this size, with outputs to compare. Raises SpecError if they change.

    All groups are permuted together. ``weights`` are redrawn, as inputs are, and all is computed in float64: see
    ``prove``.
    """
    generator = torch.Generator().manual_seed(1)
    drawn = _named(program, inputs_like(program, inputs, generator))
    old = _outputs(model, weights, drawn)
    if not old:
        return False
    index = {group: derangements(spec, group, generator) for group in spec.sizes}
    new = _outputs(model, {**weights, **permuted(spec, weights, index)}, drawn)
    # Another network, and other inputs.
    weights = drawn_like(weights, generator)
    other = _outputs(model, weights, _named(program, inputs_like(program, inputs, generator)))
    if not other:
        return False
    if not new or not all(map(stays, new, old, other)):
        raise SpecError(
            f"permuting all groups together changes what the network computes for inputs of {_in_words(inputs)}, which "
            "no example has: give examples of both sizes, trace(model, [example, another])"
        )
    return True


def _named(program: torch.export.ExportedProgram, tensors: tuple[Tensor, ...]) -> Inputs:
    """The inputs of a graph, by their names if it has them."""
    names = names_of(program)
    return dict(zip(names, tensors, strict=True)) if names else tensors


class _Wide(TorchDispatchMode):
    """Operators compute in float64 where they are told another format, and where a narrow tensor meets a wide one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = widened((args, kwargs or {}))
        formats = {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if formats.intersection(WIDE) and formats.intersection(WIDE.values()) and not function._schema.is_mutable:
            args, kwargs = tree_map_only(Tensor, lambda x: x.to(WIDE.get(x.dtype, x.dtype)), (args, kwargs))
        return function(*args, **kwargs)


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
    return copied(model, memo).eval()


def _in_words(inputs: Inputs) -> str:
    """The shapes of inputs."""
    names = [f"{name} " for name in inputs] if isinstance(inputs, Mapping) else [""] * len(tensors_of(inputs))
    return ", ".join(f"{name}{tuple(x.shape)}" for name, x in zip(names, tensors_of(inputs), strict=True))
