"""What a layer reads, as rows: each output of a linear layer or a convolution is one row times its weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from rebasin.graph import AFFINE, compute, is_layer, operator, walk, weight_keys
from rebasin.inputs import Inputs
from rebasin.weights import Weights


def layers_of(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, tuple[str, str | None]]:
    """The linear layers and convolutions of a graph in order, with the keys of their weight and bias.

    Layers whose weight or bias is computed are left out.
    """
    keys = weight_keys(program)
    layers: dict[torch.fx.Node, tuple[str, str | None]] = {}
    for node in program.graph.nodes:
        if is_layer(node):
            _, at_weight, at_bias = AFFINE[operator(node)]
            weight, bias = (node.args[at] if at < len(node.args) else None for at in (at_weight, at_bias))
            if weight in keys and (bias is None or bias in keys):
                layers[node] = keys[weight], None if bias is None else keys[bias]
    return layers


def alike_layers(program: torch.export.ExportedProgram, weights: Weights) -> set[str]:
    """The weights of the layers that read the same in all models (n, ...): what depends on no entry that differs.

    Entries that are not among ``weights`` are constants of the graph.
    """
    keys = weight_keys(program)
    own = {node: weights[key] for node, key in keys.items() if key in weights}
    differing = {node for node, entry in own.items() if not bool((entry == entry[:1]).all())}
    for node in program.graph.nodes:
        if any(used in differing for used in node.all_input_nodes):
            differing.add(node)
    layers = layers_of(program)
    apart = {key for node, (key, _) in layers.items() if node.args[0] in differing}
    return {key for key, _ in layers.values()} - apart


def number_of_blocks(layer: torch.fx.Node) -> int:
    """The number of channel groups of a convolution; 1 of all else."""
    return int(cast(int, layer.args[6])) if len(layer.args) > 6 else 1


def layer_inputs(
    program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Inputs
) -> Iterator[tuple[torch.fx.Node, Tensor]]:
    """The layers of a graph in order, each with what it reads; the graph is computed only as far as is asked for."""
    layers = layers_of(program)
    for node, args, kwargs, values in walk(program, weights, inputs):
        if node in layers:
            yield node, args[0]
        values[node] = compute(node, *args, **kwargs)


def draw_places(node: torch.fx.Node, x: Tensor, most: int | None, generator: torch.Generator) -> Tensor:
    """At most so many of the places of each image at which a layer gives an output: int64 (images, places).

    ``x`` (images, ...) is what the layer reads. Places are drawn anew for each image, or all taken for None.
    """
    linear = operator(node) == "linear"
    count = math.prod(x.shape[1:-1]) if linear else math.prod(span.windows for span in _spans(node, x))
    if most is None or most >= count:
        return torch.arange(count, device=x.device).expand(len(x), -1)
    return torch.rand(len(x), count, generator=generator).topk(most, 1).indices.to(x.device)


def rows_at(node: torch.fx.Node, x: Tensor, places: Tensor) -> Tensor:
    """What a layer reads for its outputs at ``places`` (images, places): (images, places, columns).

    The columns are those of its weight, all axes but the first as one, of a grouped convolution made whole. Rows of
    half numbers are float32, whose products do not overflow.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if operator(node) == "linear":
        return x.reshape(len(x), -1, x.shape[-1]).take_along_dim(places.unsqueeze(-1), 1)
    spans = _spans(node, x)
    x = functional.pad(x, [pad for span in reversed(spans) for pad in (span.before, span.after)])
    windows = _windows(spans, x.shape[2:]).to(x.device)[places]  # (images, places, kernel)
    # With the channels of a pixel side by side, a window is read in a few long pieces.
    pixels = x.flatten(2).transpose(1, 2).contiguous()  # (images, pixels, channels)
    first = len(pixels[0]) * torch.arange(len(x), device=x.device)
    read = pixels.flatten(0, 1)[(windows + first[:, None, None]).flatten()]
    return read.unflatten(0, windows.shape).transpose(2, 3).flatten(2)


class _Span(NamedTuple):
    """How the windows of a convolution lie along one axis of what it reads."""

    before: int  # how many zeros are put there
    after: int
    kernel: int
    stride: int
    dilation: int
    windows: int


def _spans(node: torch.fx.Node, x: Tensor) -> list[_Span]:
    """How a convolution's windows lie along each axis of places."""
    kernel = cast(torch.fx.Node, node.args[1]).meta["val"].shape[2:]
    settings = [*node.args[3:6], *(1, 0, 1)[max(0, len(node.args) - 3) :]]
    stride, padding, dilation = cast(list[Any], settings)
    spans = []
    for axis, size in enumerate(kernel):
        own_stride, own_dilation = _of_axis(stride, axis), _of_axis(dilation, axis)
        reach = own_dilation * (int(size) - 1)
        if isinstance(padding, str):
            before = reach // 2 if padding == "same" else 0
            after = reach - before if padding == "same" else 0
        else:
            before = after = _of_axis(padding, axis)
        windows = (x.shape[axis + 2] + before + after - reach - 1) // own_stride + 1
        spans.append(_Span(before, after, int(size), own_stride, own_dilation, windows))
    return spans


def _of_axis(setting: Any, axis: int) -> int:
    """The setting of one axis: settings are one number for all axes, or a list."""
    if isinstance(setting, Sequence):
        return int(setting[axis % len(setting)])
    return int(setting)


def _windows(spans: Sequence[_Span], sizes: Sequence[int]) -> Tensor:
    """The entries that each window reads, of padded places of these sizes in a row: int64 (windows, kernel)."""
    windows = torch.zeros(1, 1, dtype=torch.int64)
    for span, size in zip(spans, sizes, strict=True):
        own = torch.arange(span.windows)[:, None] * span.stride + torch.arange(span.kernel) * span.dilation
        # Every window and entry so far with every one along this axis: (windows so far, own, kernel so far, own).
        windows = windows[:, None, :, None] * size + own[None, :, None, :]
        windows = windows.flatten(2).flatten(0, 1)
    return windows
