"""Which axes of a network's weights are permuted together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rebasin.weights import Weights


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
