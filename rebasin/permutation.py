"""Which axes of a network's weights are permuted together, and permutations of them.

Weights are a ``dict[str, Tensor]`` as ``state_dict()`` gives it. Many networks are the same dict with any
number of leading axes, written ``*batch`` in shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


# Functions of one unit at a time: they commute with every permutation of the units.
UNITWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Identity, nn.Dropout,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """Where the units of a group lie along an axis of a parameter: unit u owns the slices ``positions[u]``.

    ``positions`` is (units, copies), int64. A unit that lies there several times has several copies, as a channel has
    in a linear layer after flattening; copy k of one unit corresponds to copy k of every other. Of a group within
    blocks the units of all blocks stand one block after another.
    """

    group: str
    axis: int
    positions: Tensor

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Part)
            and (self.group, self.axis) == (other.group, other.axis)
            and torch.equal(self.positions, other.positions)
        )


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation groups of a network: which slices of which parameters move together (Git Re-Basin, section 3.1).

    ``sizes`` holds the number of units per group. The units of a group in ``inside`` lie within the units, called
    blocks, of another: ``inside["query"] == "heads"`` says that each head has ``sizes["query"]`` of them, which move
    within their head and with it. ``shapes`` holds the shape of each entry of ``state_dict()`` and ``parts`` where the
    groups lie in it, each slice of an axis in one part at most. Grouped convolutions, of which ``blocks`` tells the
    number of groups, count as whole ones that are zero outside the blocks. ``statistics`` are buffers, which move along
    but are no weights to match. ``pinned`` tells why an entry that no group moves stays.
    """

    sizes: Mapping[str, int]
    parts: Mapping[str, tuple[Part, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    inside: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()
    pinned: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {part.group for parts in self.parts.values() for part in parts}
        used |= {self.inside[group] for group in used if group in self.inside}
        for group in self.sizes:
            if group not in used:
                raise ValueError(f"group {group!r} has a size, but no parameter carries it")
        for key, parts in self.parts.items():
            times = {part.axis: torch.zeros(self.view_shape(key)[part.axis], dtype=torch.int64) for part in parts}
            for part in parts:
                if part.group not in self.sizes:
                    raise ValueError(f"{key!r} names the group {part.group!r}, which has no size")
                if len(part.positions) != self.units(part.group):
                    raise ValueError(
                        f"{key!r} holds {len(part.positions)} units of {part.group!r}, of {self.units(part.group)}"
                    )
                slices = part.positions.flatten()
                if slices.min() < 0 or slices.max() >= len(times[part.axis]):
                    raise ValueError(f"{key!r} has no slice {int(slices.max())} along axis {part.axis}")
                times[part.axis] += torch.bincount(slices, minlength=len(times[part.axis]))
            for axis, counted in times.items():
                if (counted > 1).any():
                    raise ValueError(f"{key!r}: slice {int(counted.argmax())} along axis {axis} belongs to two units")

    @classmethod
    def trace(cls, model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> PermutationSpec:
        """The spec of any torch model, derived from its graph and proved on its function: ``rebasin.trace``."""
        from rebasin.trace import trace  # which builds on this module

        return trace(model, example)

    @classmethod
    def from_axes(
        cls, state: Weights, axes: Mapping[str, Sequence[str | None]], statistics: Iterable[str] = ()
    ) -> PermutationSpec:
        """A spec written by hand: the group of each axis of each entry of ``state``, None for an axis that stays.

        ``axes["layer2.weight"] == ("hidden2", "hidden1")`` says that the rows move with ``hidden2`` and the columns
        with ``hidden1``. It is not proved. ``statistics`` names entries that are no weights; whole numbers are none.
        Raises ValueError, naming the first key, if it does not fit ``state``.
        """
        sizes: dict[str, int] = {}
        parts: dict[str, tuple[Part, ...]] = {}
        for key, groups in axes.items():
            if key not in state:
                raise ValueError(f"axes are given for {key!r}, which the state has not")
            if len(groups) != state[key].ndim:
                raise ValueError(f"{key!r} has {state[key].ndim} axes, groups are given for {len(groups)}")
            for group, size in zip(groups, state[key].shape, strict=True):
                if group is not None and sizes.setdefault(group, size) != size:
                    raise ValueError(f"group {group!r} has {sizes[group]} units, but {size} in {key!r}")
            parts[key] = tuple(
                Part(group, axis, torch.arange(sizes[group]).unsqueeze(-1))
                for axis, group in enumerate(groups)
                if group is not None
            )
        for key in state:
            if key not in axes:
                raise ValueError(f"no axes are given for {key!r}")
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        whole = (key for key, tensor in state.items() if not tensor.is_floating_point())
        return cls(sizes, parts, shapes, statistics=frozenset([*statistics, *whole]))

    @classmethod
    def feed_forward(cls, model: nn.Module) -> PermutationSpec:
        """The spec of a plain chain of linear layers: one group per hidden layer. It needs no example and no proof.

        Raises ValueError unless the model is an ``nn.Sequential`` that holds, from the first linear layer on, nothing
        but linear layers that form a chain and functions that act on each unit alone.
        """
        for name, module in model.named_modules():
            plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
            if not plain and next(module.children(), None) is not None:
                what = f"{name!r}, a {type(module).__name__}" if name else f"a {type(module).__name__}"
                raise ValueError(f"not a plain feed-forward network: {what} is no nn.Sequential of layers in order")
        names: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if names.setdefault(id(parameter), name) != name:
                raise ValueError(f"not a plain feed-forward network: {name!r} is {names[id(parameter)]!r} too")
        parts = [(name, part) for name, part in model.named_modules() if not isinstance(part, nn.Sequential)]
        layers = [(name, part) for name, part in parts if isinstance(part, nn.Linear)]
        first = next((i for i, (_, part) in enumerate(parts) if isinstance(part, nn.Linear)), len(parts))
        for name, part in parts[first:]:
            if not isinstance(part, (nn.Linear, *UNITWISE)):
                what = f"{name!r}, a {type(part).__name__},"
                raise ValueError(f"not a plain feed-forward network: {what} is not known to act on each unit alone")
        axes: dict[str, tuple[str | None, ...]] = {}
        below: str | None = None
        for position, (name, layer) in enumerate(layers):
            if position and layer.in_features != layers[position - 1][1].out_features:
                raise ValueError(
                    f"not a plain feed-forward network: {name!r} takes {layer.in_features} inputs, but the layer "
                    f"before it gives {layers[position - 1][1].out_features}"
                )
            last = position == len(layers) - 1
            above = None if last else name
            prefix = f"{name}." if name else ""
            axes[f"{prefix}weight"] = (above, below)
            if layer.bias is not None:
                axes[f"{prefix}bias"] = (above,)
            below = above
        unknown = [key for key in model.state_dict() if key not in axes]
        if unknown or not layers:
            what = f"{unknown[0]!r} belongs to no linear layer" if unknown else "it has no linear layer"
            raise ValueError(f"not a plain feed-forward network: {what}")
        return cls.from_axes(model.state_dict(), axes)

    def units(self, group: str) -> int:
        """How many units a group has, those of all blocks taken together."""
        return self.sizes[group] * self.sizes.get(self.inside.get(group, ""), 1)

    def index_shape(self, group: str) -> tuple[int, ...]:
        """The shape of one permutation of a group: (units,), or (blocks, units) within blocks."""
        blocks = (self.sizes[self.inside[group]],) if group in self.inside else ()
        return (*blocks, self.sizes[group])

    def within(self, group: str) -> list[str]:
        """The groups within the blocks of a group."""
        return [inner for inner, outer in self.inside.items() if outer == group]

    @property
    def families(self) -> dict[str, list[str]]:
        """Each group that lies in no other, with what is assigned together with it: itself and those within."""
        return {group: [group, *self.within(group)] for group in self.sizes if group not in self.inside}

    @property
    def weights(self) -> list[str]:
        """The entries that are weights, and no statistics."""
        return [key for key in self.shapes if key not in self.statistics]

    def view_shape(self, key: str) -> tuple[int, ...]:
        """The shape in which ``parts`` count the slices of an entry."""
        shape, blocks = tuple(self.shapes[key]), self.blocks.get(key, 1)
        return (shape[0], shape[1] * blocks, *shape[2:]) if blocks > 1 else shape

    def view(self, key: str, tensor: Tensor) -> Tensor:
        """An entry (*batch, *shape) as ``parts`` see it, (*batch, *view_shape): grouped convolutions made whole."""
        if key not in self.blocks:
            return tensor
        leading, shape = tensor.shape[: tensor.ndim - len(self.shapes[key])], self.view_shape(key)
        whole = tensor.new_zeros(*leading, *shape)
        whole[(..., *self._own_columns(key, tensor.device), *[slice(None)] * (len(shape) - 2))] = tensor
        return whole

    def unview(self, key: str, tensor: Tensor) -> Tensor:
        """The inverse of ``view``."""
        if key not in self.blocks:
            return tensor
        return tensor[(..., *self._own_columns(key, tensor.device), *[slice(None)] * (len(self.shapes[key]) - 2))]

    def _own_columns(self, key: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows (out, 1) and columns (out, in of a block) of a grouped convolution made whole that are not zero."""
        rows, own = self.shapes[key][:2]
        row = torch.arange(rows, device=device).unsqueeze(-1)
        return row, row // (rows // self.blocks[key]) * own + torch.arange(own, device=device)

    def batch_shape(self, weights: Weights, what: str = "the weights") -> torch.Size:
        """The leading axes ``*batch`` of weights that fit this spec.

        Raises ValueError, naming the first key at fault, for other keys, sizes or leading axes, and for NaN or
        infinite values.
        """
        for key in self.shapes:
            if key not in weights:
                raise ValueError(f"{what}: the spec has {key!r}, the weights have not")
        for key in weights:
            if key not in self.shapes:
                raise ValueError(f"{what}: the weights have {key!r}, the spec has not")
        batch = None
        for key, own in self.shapes.items():
            shape = tuple(weights[key].shape)
            leading = shape[: max(0, len(shape) - len(own))]
            if shape[len(leading) :] != tuple(own):
                raise ValueError(f"{what}: {key!r} has shape {shape[len(leading) :]}, the spec has {tuple(own)}")
            batch = leading if batch is None else batch
            if leading != batch:
                raise ValueError(f"{what}: {key!r} has leading axes {leading}, others have {batch}")
            # A buffer that does not move, such as a mask, may hold what it likes.
            told = weights[key].is_floating_point() and (key not in self.statistics or self.parts.get(key))
            if told and weights[key].numel() and not torch.isfinite(torch.stack(weights[key].aminmax())).all():
                raise ValueError(f"{what}: {key!r} holds NaN or infinite values")
        return torch.Size(batch or ())


@dataclass(frozen=True)
class Permutation:
    """One permutation per group: unit ``i`` of the permuted network is unit ``indices[group][..., i]`` of the old.

    ``indices[group]`` has shape (*batch, units) and dtype int64. Of a group within blocks it is (*batch, blocks,
    units): unit u of block i of the permuted network is unit ``indices[group][..., i, u]`` of the old network's block
    ``indices[spec.inside[group]][..., i]``.
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
            blocks = self.spec.index_shape(group)[:-1]
            fits = index.shape[-1:] == units.shape and index.shape[-1 - len(blocks) : -1] == blocks
            if not fits or not (index.sort(-1).values == units).all():
                raise ValueError(f"group {group!r}: not a permutation of {self.spec.sizes[group]} units")

    @classmethod
    def identity(
        cls, spec: PermutationSpec, batch: tuple[int, ...] = (), device: torch.device | str | None = None
    ) -> Permutation:
        """The permutation that moves nothing, with leading axes ``batch``."""
        return cls(
            spec,
            {g: torch.arange(n, device=device).expand(*batch, *spec.index_shape(g)) for g, n in spec.sizes.items()},
        )

    @classmethod
    def random(
        cls, spec: PermutationSpec, batch: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Permutation:
        """Uniformly random permutations, independent for each group, block and entry of ``batch``."""
        return cls(
            spec, {g: torch.rand(*batch, *spec.index_shape(g), generator=generator).argsort(-1) for g in spec.sizes}
        )

    @property
    def flat(self) -> dict[str, Tensor]:
        """The permutation of each group's units, those of all blocks taken together: (*batch, units) each."""
        return flatten(self.spec, self.indices)

    def apply(self, weights: Weights) -> dict[str, Tensor]:
        """The permuted weights; leading axes of both are broadcast. Raises ValueError if they do not fit."""
        batch, flat = self.spec.batch_shape(weights), self.flat
        for index in flat.values():
            batch = torch.broadcast_shapes(batch, index.shape[:-1])
        permuted = {}
        for key, shape in self.spec.shapes.items():
            moved = permute(self.spec.view(key, weights[key]), self.spec.parts[key], flat, len(shape))
            permuted[key] = self.spec.unview(key, moved).expand((*batch, *shape))
        return permuted

    def invert(self) -> Permutation:
        """The permutation that undoes this one."""
        back = {group: index.argsort(-1) for group, index in self.indices.items()}
        for inner, outer in self.spec.inside.items():
            back[inner] = torch.take_along_dim(back[inner], back[outer].unsqueeze(-1), -2)
        return Permutation(self.spec, back)

    def compose(self, first: Permutation) -> Permutation:
        """``first``, then this one: ``p.compose(q).apply(w) == p.apply(q.apply(w))``; leading axes are broadcast.

        Raises ValueError if the two are of different specs.
        """
        if first.spec != self.spec:
            raise ValueError("the two permutations are of different specs")
        return Permutation(self.spec, compose(self.spec, self.indices, first.indices))


def compose(spec: PermutationSpec, indices: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``first``, then ``indices``: (*batch, *index_shape) for each group; leading axes are broadcast."""
    leading = torch.broadcast_shapes(
        *(i.shape[: i.ndim - len(spec.index_shape(g))] for each in (indices, first) for g, i in each.items())
    )
    indices, first = (
        {g: i.expand(*leading, *spec.index_shape(g)) for g, i in each.items()} for each in (indices, first)
    )
    composed = {}
    for group, index in indices.items():
        before = first[group]
        if group in spec.inside:
            before = torch.take_along_dim(before, indices[spec.inside[group]].unsqueeze(-1), -2)
        composed[group] = torch.take_along_dim(before, index, -1)
    return composed


def flatten(spec: PermutationSpec, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutation of each group's units, those of all blocks taken together: (*batch, units) each."""
    return {
        group: (indices[spec.inside[group]].unsqueeze(-1) * spec.sizes[group] + index).flatten(-2)
        if group in spec.inside
        else index
        for group, index in indices.items()
    }


def permute(tensor: Tensor, parts: Iterable[Part], flat: Mapping[str, Tensor], own_axes: int) -> Tensor:
    """The tensor (*batch, ...) whose last ``own_axes`` axes hold ``parts``, with the groups of ``parts`` permuted.

    ``flat[group]`` is (*batch, units), one permutation per entry of the leading axes, which are broadcast.
    """
    sources: dict[int, Tensor] = {}
    for part in parts:
        index = flat[part.group]
        positions = part.positions.to(index.device)
        if part.axis not in sources:
            slices = torch.arange(tensor.shape[part.axis - own_axes], device=index.device)
            sources[part.axis] = slices.repeat(*index.shape[:-1], 1)
        sources[part.axis][..., positions.flatten()] = positions[index].flatten(-2)
    for axis, source in sources.items():
        tensor = _gather(tensor, source, axis, own_axes)
    return tensor


def _gather(tensor: Tensor, index: Tensor, axis: int, own_axes: int) -> Tensor:
    """Gather along ``axis`` of the last ``own_axes`` axes of a tensor, one index per entry of its leading axes."""
    if index.ndim == 1:
        return tensor.index_select(tensor.ndim - own_axes + axis, index)
    batch, own = tensor.shape[: tensor.ndim - own_axes], tensor.shape[tensor.ndim - own_axes :]
    if tensor.device.type == "cpu" and batch == index.shape[:-1] and batch.numel():
        # One entry after another: five times faster than all at once.
        each = zip(tensor.reshape(-1, *own), index.reshape(-1, index.shape[-1]), strict=True)
        return torch.stack([one.index_select(axis, moved) for one, moved in each]).reshape(tensor.shape)
    leading = max(tensor.ndim - own_axes, index.ndim - 1)
    tensor = tensor.reshape(*[1] * (leading + own_axes - tensor.ndim), *tensor.shape)
    index = index.reshape(
        *[1] * (leading + 1 - index.ndim), *index.shape[:-1], *[1] * axis, -1, *[1] * (own_axes - axis - 1)
    )
    return torch.take_along_dim(tensor, index, leading + axis)
