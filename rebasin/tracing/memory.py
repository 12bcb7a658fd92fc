"""Which tensors of a model share memory, and a copy of the model in which the same ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rebasin.graph import place_of
from rebasin.weights import copied, forgetful, is_whole

Memory = tuple[int, tuple[int, ...], tuple[int, ...]]


def memory_of(tensor: Tensor) -> Memory:
    """Where a tensor lies in memory, and in which layout."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def span_of(tensor: Tensor) -> tuple[int, int, int]:
    """The storage of a tensor, and where in it the tensor begins and ends, in bytes."""
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage()._cdata, first * tensor.element_size(), (last + 1) * tensor.element_size()


def _has_span(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel() > 0


def emptied(model: nn.Module) -> nn.Module:
    """A copy on the CPU. Its parameters and buffers have no values, whole numbers aside: the proof redraws them.

    What shares memory in the model does so in the copy.
    """
    memo: dict[Any, Any] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if is_whole(tensor) or tensor.layout != torch.strided:
            continue
        own = tensor.untyped_storage()
        storage = storages.setdefault(own._cdata, torch.UntypedStorage(own.nbytes()))
        empty = torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return forgetful(copied(model, memo | {"torch": storages}).cpu())  # torch's own memo, of memory


def entangled(weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> set[str]:
    """The entries whose memory overlaps with that of others which are not the same tensor, or which are constants."""
    state = {**constants, **weights}
    spans = sorted((*span_of(tensor), key) for key, tensor in state.items() if _has_span(tensor))
    clusters: list[set[str]] = []
    storage, end = 0, 0
    for own, first, last, key in spans:
        if clusters and own == storage and first < end:
            clusters[-1].add(key)
            end = max(end, last)
        else:
            clusters.append({key})
            storage, end = own, last
    found: set[str] = set()
    for keys in clusters:
        if len({(memory_of(state[key]), key in weights) for key in keys}) > 1:
            found |= keys
    return found


def ties_of(state: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """The names of entries that are one tensor."""
    names: dict[Memory, list[str]] = {}
    for key, tensor in state.items():
        if _has_span(tensor):
            names.setdefault(memory_of(tensor), []).append(key)
    return tuple(tuple(own) for own in names.values() if len(own) > 1)


def check_constants(program: torch.export.ExportedProgram, models: Sequence[nn.Module]) -> None:
    """Raise ValueError if the graph takes for a constant what lies in the memory of a weight of one of the models.

    The model has it from a plain attribute, a list or a function, so that nothing tells how it moves.
    """
    spans = {}
    for model in models:
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if _has_span(tensor):
                spans[span_of(tensor)] = key
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        constant = program.constants.get(constants.get(node.name, ""))
        if node.op != "placeholder" or not node.users or not _has_span(constant):
            continue
        storage, first, last = span_of(constant)
        for (own, begin, end), key in spans.items():
            if own == storage and begin < last and first < end:
                raise ValueError(
                    f"the model reads the memory of {key!r} by another way than its name"
                    f"{place_of(next(iter(node.users)))}, as a plain attribute, a list or a function may hold it: no "
                    "spec can tell how that moves. Take it from the module in forward(), register a part of it as a "
                    "buffer, and modules in an nn.ModuleList"
                )
