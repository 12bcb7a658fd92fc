"""Permutations of a network's units: apply, invert, compose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin.arguments import check_tensor
from rebasin.spec import Part, PermutationSpec, check_spec, counted
from rebasin.weights import Kind, like, to, weights_of


@dataclass(frozen=True, eq=False, repr=False)
class Permutation:
    """One permutation per group of a spec: unit ``i`` of the permuted network is unit ``indices[group][..., i]``.

    ``indices[group]`` has shape (*batch, units) and dtype int64; many permutations are one with leading axes. For a
    group within blocks it is (*batch, blocks, units): unit u of block i of the permuted network is unit
    ``indices[group][..., i, u]`` of the old network's block ``indices[spec.inside[group]][..., i]``.

    Two permutations are compared by identity. Raises ValueError if the indices are no permutations of the spec's
    groups.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.ones(1, 3)
    >>> permutation = Permutation.random(rebasin.trace(model, x))
    >>> torch.allclose(permutation.apply(model)(x), model(x), atol=1e-6)
    True
    """

    spec: PermutationSpec
    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_spec(self.spec, "Permutation(spec, indices)")
        if not isinstance(self.indices, Mapping):
            raise TypeError(f"indices must be a dict by group, got {type(self.indices).__name__}")
        if self.indices.keys() != self.spec.sizes.keys():
            raise ValueError(f"groups {sorted(self.indices)} given, the spec has {sorted(self.spec.sizes)}")
        for group, index in self.indices.items():
            check_tensor(index, f"group {group!r}: indices")
            if index.dtype != torch.int64:
                raise ValueError(f"group {group!r}: indices must be int64, got {index.dtype}")
            units = torch.arange(self.spec.sizes[group], device=index.device)
            blocks = self.spec.index_shape(group)[:-1]
            fits = index.shape[-1:] == units.shape and index.shape[-1 - len(blocks) : -1] == blocks
            if not fits or not (index.sort(-1).values == units).all():
                raise ValueError(f"group {group!r}: not a permutation of {self.spec.sizes[group]} units")
        try:
            leading_axes(self.spec, self.indices)
        except RuntimeError:
            shapes = {group: tuple(index.shape) for group, index in self.indices.items()}
            raise ValueError(f"the leading axes of the indices do not fit one another: {shapes}") from None

    @classmethod
    def identity(
        cls, spec: PermutationSpec, batch: tuple[int, ...] = (), device: torch.device | str | None = None
    ) -> Permutation:
        """The permutation that moves nothing, with leading axes ``batch``."""
        check_spec(spec, "Permutation.identity(spec)")
        indices = {}
        for group, size in spec.sizes.items():
            indices[group] = torch.arange(size, device=device).expand(*batch, *spec.index_shape(group))
        return cls(spec, indices)

    @classmethod
    def random(
        cls, spec: PermutationSpec, batch: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Permutation:
        """Uniformly random permutations, independent for each group, block and entry of ``batch``."""
        check_spec(spec, "Permutation.random(spec)")
        indices = {}
        for group in spec.sizes:
            indices[group] = torch.rand(*batch, *spec.index_shape(group), generator=generator).argsort(-1)
        return cls(spec, indices)

    def state_dict(self) -> dict[str, Tensor]:
        """The indices by group, to be saved as plain tensors: ``torch.save(permutation.state_dict(), path)``."""
        return {group: index.clone() for group, index in self.indices.items()}

    @classmethod
    def from_state_dict(cls, spec: PermutationSpec, state: Mapping[str, Tensor]) -> Permutation:
        """The permutation that ``state_dict`` gave: ``from_state_dict(spec, torch.load(path, weights_only=True))``.

        Raises ValueError if it does not fit the spec.
        """
        check_spec(spec, "Permutation.from_state_dict(spec, state)")
        return cls(spec, state)

    @property
    def batch(self) -> torch.Size:
        """The leading axes; those of all groups, broadcast."""
        return leading_axes(self.spec, self.indices)

    def __repr__(self) -> str:
        units = sum(self.spec.units(group) for group in self.spec.sizes)
        batch = f", batch {tuple(self.batch)}" if self.batch else ""
        return f"Permutation({counted(len(self.indices), 'group')}, {units} units{batch})"

    @property
    def flat(self) -> dict[str, Tensor]:
        """The permutation of each group's units, those of all blocks taken together: (*batch, units) each."""
        return flatten(self.spec, self.indices)

    def apply(self, models: Kind) -> Kind:
        """The permuted models: a module, a dict of tensors with any leading axes, or a list of either.

        They come back as what they were given as. Leading axes of weights and permutation are broadcast: one
        permutation goes for all models, and of one dict of tensors, many permutations make many. Models on another
        device stay there. Raises ValueError if the models do not fit the spec, or if a module would become many.
        """
        weights = weights_of(models)
        own = self.spec.leading_axes(weights)
        flat = to(self.flat, next(iter(weights.values())).device)
        self.spec.check_finite(weights)
        try:
            batch = torch.broadcast_shapes(own, self.batch)
        except RuntimeError:
            raise ValueError(
                f"models with leading axes {tuple(own)} and permutations with {tuple(self.batch)} do not fit"
            ) from None
        if batch != own and not isinstance(models, Mapping):
            raise ValueError(
                f"permutations with leading axes {tuple(self.batch)} make many models of one: "
                "pass a dict of tensors, such as state_dict(), in place of a module or a list"
            )
        permuted = {}
        for key, shape in self.spec.shapes.items():
            moved = permuted_entry(self.spec, key, weights[key], flat).expand((*batch, *shape))
            # What is given back shares no memory, neither with what was given nor within itself.
            shared = moved.untyped_storage()._cdata == weights[key].untyped_storage()._cdata
            permuted[key] = moved.clone() if shared or batch != own else moved
        return like(models, permuted)

    def invert(self) -> Permutation:
        """The permutation that undoes this one."""
        back = {group: index.argsort(-1) for group, index in self.indices.items()}
        for inner, outer in self.spec.inside.items():
            back[inner] = torch.take_along_dim(back[inner], back[outer].unsqueeze(-1), -2)
        return Permutation(self.spec, back)

    def compose(self, first: Permutation) -> Permutation:
        """``first``, then this one: ``p.compose(q).apply(w)`` is ``p.apply(q.apply(w))``; leading axes are broadcast.

        Raises ValueError if the two are of different specs.
        """
        if not isinstance(first, Permutation):
            raise TypeError(f"a permutation is composed with another one, got {type(first).__name__}")
        if first.spec != self.spec:
            raise ValueError("the two permutations are of different specs")
        try:
            leading_axes(self.spec, self.indices, first.indices)
        except RuntimeError:
            raise ValueError(
                f"permutations with leading axes {tuple(self.batch)} and {tuple(first.batch)} do not fit"
            ) from None
        return Permutation(self.spec, compose(self.spec, self.indices, first.indices))


def leading_axes(spec: PermutationSpec, *permutations: Mapping[str, Tensor]) -> torch.Size:
    """The leading axes of indices (*batch, *index_shape) by group, broadcast."""
    shapes = [
        index.shape[: index.ndim - len(spec.index_shape(group))]
        for indices in permutations
        for group, index in indices.items()
    ]
    return torch.broadcast_shapes(*shapes)


def compose(spec: PermutationSpec, indices: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``first``, then ``indices``: (*batch, *index_shape) for each group; leading axes are broadcast."""
    leading = leading_axes(spec, indices, first)
    indices, first = _broadcast(spec, indices, leading), _broadcast(spec, first, leading)
    composed = {}
    for group, index in indices.items():
        before = first[group]
        if group in spec.inside:
            before = torch.take_along_dim(before, indices[spec.inside[group]].unsqueeze(-1), -2)
        composed[group] = torch.take_along_dim(before, index, -1)
    return composed


def _broadcast(spec: PermutationSpec, indices: Mapping[str, Tensor], leading: torch.Size) -> dict[str, Tensor]:
    """Indices by group with these leading axes."""
    return {group: index.expand(*leading, *spec.index_shape(group)) for group, index in indices.items()}


def flatten(spec: PermutationSpec, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutation of each group's units, those of all blocks taken together: (*batch, units) each."""
    return {
        group: (indices[spec.inside[group]].unsqueeze(-1) * spec.sizes[group] + index).flatten(-2)
        if group in spec.inside
        else index
        for group, index in indices.items()
    }


def permuted_entry(spec: PermutationSpec, key: str, tensor: Tensor, flat: Mapping[str, Tensor]) -> Tensor:
    """An entry (*batch, *shape) with its groups permuted, by what ``Permutation.flat`` gives."""
    return spec.unview(key, permute(spec.view(key, tensor), spec.parts[key], flat, len(spec.shapes[key])))


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
        entries = zip(tensor.reshape(-1, *own), index.reshape(-1, index.shape[-1]), strict=True)
        return torch.stack([entry.index_select(axis, order) for entry, order in entries]).reshape(tensor.shape)
    leading = max(tensor.ndim - own_axes, index.ndim - 1)
    tensor = tensor.reshape(*[1] * (leading + own_axes - tensor.ndim), *tensor.shape)
    index = index.reshape(
        *[1] * (leading + 1 - index.ndim), *index.shape[:-1], *[1] * axis, -1, *[1] * (own_axes - axis - 1)
    )
    return torch.take_along_dim(tensor, index, leading + axis)
