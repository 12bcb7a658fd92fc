"""Which axes of a network's weights are permuted together, and permutations of them.

Weights are a ``dict[str, Tensor]`` as ``state_dict()`` gives it. Many networks are the same dict with any
number of leading axes, written ``*batch`` in shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


# Functions of one unit at a time: they commute with every permutation of the units.
UNITWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Identity, nn.Dropout,
)  # fmt: skip


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation group of each axis of each parameter (Git Re-Basin, section 3.1).

    ``axes["layer2.weight"] == ("hidden2", "hidden1")`` says that the rows move with group ``hidden2`` and the
    columns with ``hidden1``; ``None`` marks an axis that stays. ``sizes`` holds the number of units per group.
    """

    axes: Mapping[str, tuple[str | None, ...]]
    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        for key, groups in self.axes.items():
            named = [group for group in groups if group is not None]
            if len(named) != len(set(named)):
                raise ValueError(f"{key!r} carries one permutation group on two axes: {groups}")
            for group in named:
                if group not in self.sizes:
                    raise ValueError(f"{key!r} names the group {group!r}, which has no size")
        used = {group for groups in self.axes.values() for group in groups}
        for group in self.sizes:
            if group not in used:
                raise ValueError(f"group {group!r} has a size, but no parameter carries it")

    @classmethod
    def feed_forward(cls, model: nn.Module) -> PermutationSpec:
        """The spec of a plain chain of linear layers: one group per hidden layer.

        Raises ValueError unless the model is an ``nn.Sequential`` that holds, from the first linear layer on, nothing
        but linear layers that form a chain and functions that act on each unit alone.
        """
        for name, module in model.named_modules():
            if not isinstance(module, nn.Sequential) and next(module.children(), None) is not None:
                what = f"{name!r}, a {type(module).__name__}" if name else f"a {type(module).__name__}"
                raise ValueError(f"not a plain feed-forward network: {what} is no nn.Sequential of layers in order")
        parts = [(name, part) for name, part in model.named_modules() if not isinstance(part, nn.Sequential)]
        layers = [(name, part) for name, part in parts if isinstance(part, nn.Linear)]
        first = next((i for i, (_, part) in enumerate(parts) if isinstance(part, nn.Linear)), len(parts))
        for name, part in parts[first:]:
            if not isinstance(part, (nn.Linear, *UNITWISE)):
                what = f"{name!r}, a {type(part).__name__},"
                raise ValueError(f"not a plain feed-forward network: {what} is not known to act on each unit alone")
        axes: dict[str, tuple[str | None, ...]] = {}
        sizes: dict[str, int] = {}
        below: str | None = None
        for position, (name, layer) in enumerate(layers):
            if position and layer.in_features != layers[position - 1][1].out_features:
                raise ValueError(
                    f"not a plain feed-forward network: {name!r} takes {layer.in_features} inputs, but the layer "
                    f"before it gives {layers[position - 1][1].out_features}"
                )
            last = position == len(layers) - 1
            above = None if last else name
            if above is not None:
                sizes[above] = layer.out_features
            prefix = f"{name}." if name else ""
            axes[f"{prefix}weight"] = (above, below)
            if layer.bias is not None:
                axes[f"{prefix}bias"] = (above,)
            below = above
        unknown = [key for key in model.state_dict() if key not in axes]
        if unknown or not layers:
            what = f"{unknown[0]!r} belongs to no linear layer" if unknown else "it has no linear layer"
            raise ValueError(f"not a plain feed-forward network: {what}")
        return cls(axes, sizes)

    def batch_shape(self, weights: Weights, what: str = "the weights") -> torch.Size:
        """The leading axes ``*batch`` of weights that fit this spec.

        Raises ValueError, naming the first key at fault, for other keys, sizes or leading axes, and for NaN or
        infinite values.
        """
        for key in self.axes:
            if key not in weights:
                raise ValueError(f"{what}: the spec has {key!r}, the weights have not")
        for key in weights:
            if key not in self.axes:
                raise ValueError(f"{what}: the weights have {key!r}, the spec has not")
        batch = None
        for key, groups in self.axes.items():
            shape = weights[key].shape
            if len(shape) < len(groups):
                raise ValueError(f"{what}: {key!r} has shape {tuple(shape)}, the spec wants {len(groups)} axes")
            leading, own = shape[: len(shape) - len(groups)], shape[len(shape) - len(groups) :]
            for group, size in zip(groups, own, strict=True):
                if group is not None and size != self.sizes[group]:
                    raise ValueError(
                        f"{what}: {key!r} has shape {tuple(own)}, but group {group!r} has {self.sizes[group]} units"
                    )
            batch = leading if batch is None else batch
            if leading != batch:
                raise ValueError(f"{what}: {key!r} has leading axes {tuple(leading)}, others have {tuple(batch)}")
            if not torch.isfinite(weights[key]).all():
                raise ValueError(f"{what}: {key!r} holds NaN or infinite values")
        return batch


@dataclass(frozen=True)
class Permutation:
    """One permutation per group: unit ``i`` of the permuted network is unit ``indices[group][..., i]`` of the old.

    ``indices[group]`` has shape (*batch, units) and dtype int64.
    """

    spec: PermutationSpec
    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.indices.keys() != self.spec.sizes.keys():
            raise ValueError(f"groups {sorted(self.indices)} given, the spec has {sorted(self.spec.sizes)}")
        for group, index in self.indices.items():
            if index.dtype != torch.int64:
                raise ValueError(f"group {group!r}: indices must be int64, got {index.dtype}")
            units = torch.arange(self.spec.sizes[group], device=index.device)
            if index.shape[-1:] != units.shape or not (index.sort(-1).values == units).all():
                raise ValueError(f"group {group!r}: not a permutation of {self.spec.sizes[group]} units")

    @classmethod
    def identity(
        cls, spec: PermutationSpec, batch: tuple[int, ...] = (), device: torch.device | str | None = None
    ) -> Permutation:
        """The permutation that moves nothing, with leading axes ``batch``."""
        return cls(spec, {g: torch.arange(n, device=device).expand(*batch, n) for g, n in spec.sizes.items()})

    @classmethod
    def random(
        cls, spec: PermutationSpec, batch: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Permutation:
        """Uniformly random permutations, independent for each group and entry of ``batch``."""
        return cls(spec, {g: torch.rand(*batch, n, generator=generator).argsort(-1) for g, n in spec.sizes.items()})

    def apply(self, weights: Weights) -> dict[str, Tensor]:
        """The permuted weights; leading axes of both are broadcast. Raises ValueError if they do not fit."""
        batch = self.spec.batch_shape(weights)
        for index in self.indices.values():
            batch = torch.broadcast_shapes(batch, index.shape[:-1])
        permuted = {}
        for key, groups in self.spec.axes.items():
            tensor = weights[key]
            for axis, group in enumerate(groups):
                if group is not None:
                    tensor = permute_axis(tensor, self.indices[group], axis, len(groups))
            permuted[key] = tensor.expand(*batch, *tensor.shape[tensor.ndim - len(groups) :])
        return permuted

    def invert(self) -> Permutation:
        """The permutation that undoes this one."""
        return Permutation(self.spec, {group: index.argsort(-1) for group, index in self.indices.items()})

    def compose(self, first: Permutation) -> Permutation:
        """``first``, then this one: ``p.compose(q).apply(w) == p.apply(q.apply(w))``; leading axes are broadcast.

        Raises ValueError if the two are of different specs.
        """
        if first.spec != self.spec:
            raise ValueError("the two permutations are of different specs")
        return Permutation(
            self.spec, {g: permute_axis(first.indices[g], index, 0, own_axes=1) for g, index in self.indices.items()}
        )


def permute_axis(tensor: Tensor, index: Tensor, axis: int, own_axes: int) -> Tensor:
    """Gather along ``axis`` of the last ``own_axes`` axes of a tensor, one index per entry of its leading axes.

    ``tensor`` is (*batch, ...), ``index`` (*batch, units); the leading axes are broadcast.
    """
    leading = max(tensor.ndim - own_axes, index.ndim - 1)
    tensor = tensor.reshape(*[1] * (leading + own_axes - tensor.ndim), *tensor.shape)
    index = index.reshape(
        *[1] * (leading + 1 - index.ndim), *index.shape[:-1], *[1] * axis, -1, *[1] * (own_axes - axis - 1)
    )
    return torch.take_along_dim(tensor, index, leading + axis)
