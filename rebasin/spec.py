"""Which axes of a network's weights are permuted together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rebasin.arguments import check_tensor
from rebasin.spec_file import packed, read_spec_file, unpacked, write_spec_file
from rebasin.weights import Weights, check_finite, is_whole, leading_axes_of


class SpecError(ValueError):
    """A spec contradicts itself, or its proof refutes it."""


@dataclass(frozen=True, eq=False)
class Part:
    """Where the units of a group lie along one axis of an entry: unit u owns the slices ``positions[u]``.

    ``positions`` is (units, copies), int64. A unit may own several slices: a channel owns as many columns of a linear
    layer after flattening as it had pixels. Copy k of one unit corresponds to copy k of every other. If the group lies
    within blocks, the rows are the units of the first block, then those of the second, and so on.
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

    def __hash__(self) -> int:
        return hash((self.group, self.axis, self.positions.shape))


@dataclass(frozen=True, repr=False)
class PermutationSpec:
    """The permutation groups of a network: which slices of which entries of ``state_dict()`` move together.

    ``rebasin.trace`` derives it from a model; ``from_axes`` is for one that is written by hand. Two specs are equal if
    they say the same. Source: Git Re-Basin, section 3.1.

    - ``sizes``: the number of units of each group.
    - ``shapes``: the shape of each entry.
    - ``parts``: where groups lie in each entry. A slice of an axis belongs to one part at most.
    - ``inside``: groups whose units lie within the units of another group, which are called blocks. If
      ``inside["query"] == "heads"``, each head has ``sizes["query"]`` query units, which move within the head, and with
      it.
    - ``blocks``: the number of channel groups of each grouped convolution. ``parts`` count its slices as if it were a
      whole convolution that is zero outside of its blocks.
    - ``statistics``: entries that move along, but are no weights to match: running means, counters, masks.
    - ``pinned``: for each entry that no group moves, the reason; for one that moves, but of which the example reached a
      part only, how much stays.
    - ``ties``: the names of entries that are one tensor, for each such tensor.
    - ``proof``: what the spec was proved on, in sentences; none if it was written by hand. Specs may differ in it.

    Raises SpecError if these contradict one another.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> spec
    PermutationSpec(1 group, 8 units; 1 of 4 entries stays)
    >>> print(spec.summary())
    group  units  lies along
    0      8      0.weight axis 0, 0.bias axis 0 and 1 more
    <BLANKLINE>
    stays   reason
    2.bias  an output of the network
    <BLANKLINE>
    proved on inputs of (1, 3); (2, 3); (5, 3)
    not on other sizes in place of 3: none that was tried could be computed
    """

    sizes: Mapping[str, int]
    parts: Mapping[str, tuple[Part, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    inside: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()
    pinned: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = field(default=(), compare=False)
    proof: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for key in sorted(self.parts.keys() ^ self.shapes.keys()):
            raise SpecError(f"{key!r} has no {'shape' if key in self.parts else 'parts, not even an empty tuple'}")
        for group, outer in self.inside.items():
            if group not in self.sizes or outer not in self.sizes or outer in self.inside:
                raise SpecError(
                    f"group {group!r} is inside {outer!r}: both need a size, and blocks lie in no other group"
                )
        used = {part.group for parts in self.parts.values() for part in parts}
        used |= {self.inside[group] for group in used if group in self.inside}
        for group in self.sizes:
            if group not in used:
                raise SpecError(f"group {group!r} has a size, but no parameter carries it")
        for key, parts in self.parts.items():
            shape = self.view_shape(key)
            for part in parts:
                if not 0 <= part.axis < len(shape):
                    raise SpecError(
                        f"{key!r} has {len(shape)} axes, and group {part.group!r} is said to lie on {part.axis}"
                    )
            times = {part.axis: torch.zeros(shape[part.axis], dtype=torch.int64) for part in parts}
            for part in parts:
                if part.group not in self.sizes:
                    raise SpecError(f"{key!r} names the group {part.group!r}, which has no size")
                if len(part.positions) != self.units(part.group):
                    raise SpecError(
                        f"{key!r} holds {len(part.positions)} units of {part.group!r}, of {self.units(part.group)}"
                    )
                slices = part.positions.flatten()
                if not slices.numel():
                    raise SpecError(f"{key!r}: group {part.group!r} has no units")
                least, most = int(slices.min()), int(slices.max())
                if least < 0 or most >= len(times[part.axis]):
                    raise SpecError(f"{key!r} has no slice {least if least < 0 else most} along axis {part.axis}")
                times[part.axis] += torch.bincount(slices, minlength=len(times[part.axis]))
            for axis, counted in times.items():
                if (counted > 1).any():
                    raise SpecError(f"{key!r}: slice {int(counted.argmax())} along axis {axis} belongs to two units")

    @classmethod
    def from_axes(
        cls, state: Weights, axes: Mapping[str, Sequence[str | None]], statistics: Iterable[str] = ()
    ) -> PermutationSpec:
        """A spec written by hand: for each entry of ``state``, the group of each axis, or None for an axis that stays.

        Nothing is proved. ``statistics`` names the entries that are no weights; whole numbers never are. Raises
        TypeError or ValueError, naming the first key, for what is no tensor or no name, and if the axes do not fit
        ``state``.

        >>> state = {"in": torch.zeros(8, 3), "out": torch.zeros(2, 8)}  # rows of one, columns of the other
        >>> PermutationSpec.from_axes(state, {"in": ("hidden", None), "out": (None, "hidden")})
        PermutationSpec(1 group, 8 units; 0 of 2 entries stay)
        """
        sizes: dict[str, int] = {}
        parts: dict[str, tuple[Part, ...]] = {}
        for what, given in (("state", state), ("axes", axes)):
            if not isinstance(given, Mapping):
                raise TypeError(f"{what} must be a dict by the entries' names, got {type(given).__name__}")
        for key, tensor in state.items():
            check_tensor(tensor, f"the state: {key!r}")
        if isinstance(statistics, str):
            raise TypeError(f"statistics must be a list of names, got the text {statistics!r}")
        statistics = list(statistics)
        for name in statistics:
            if name not in state:
                raise ValueError(f"statistics names {name!r}, which the state has not")
        for key, groups in axes.items():
            if not isinstance(groups, list | tuple):
                raise TypeError(f"{key!r}: the groups of its axes must be a tuple of names or None, got {groups!r}")
            if key not in state:
                raise ValueError(f"axes are given for {key!r}, which the state has not")
            if len(groups) != state[key].ndim:
                raise ValueError(f"{key!r} has {state[key].ndim} axes, groups are given for {len(groups)}")
            for group, size in zip(groups, state[key].shape, strict=True):
                if not isinstance(group, str | None):
                    raise TypeError(f"{key!r}: a group is called by a name, or None where nothing moves, got {group!r}")
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
        whole = (key for key, tensor in state.items() if is_whole(tensor))
        return cls(sizes, parts, shapes, statistics=frozenset([*statistics, *whole]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, so that one trace serves all models of an architecture: see ``load``."""
        parts: dict[str, list[dict[str, Any]]] = {}
        for key, own in self.parts.items():
            parts[key] = [{"group": part.group, "axis": part.axis, "positions": packed(part.positions)} for part in own]
        write_spec_file(
            path,
            {
                "sizes": dict(self.sizes),
                "shapes": dict(self.shapes),
                "parts": parts,
                "inside": dict(self.inside),
                "blocks": dict(self.blocks),
                "statistics": sorted(self.statistics),
                "pinned": dict(self.pinned),
                "ties": self.ties,
                "proof": self.proof,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PermutationSpec:
        """The spec that ``save`` wrote to a file. It is not proved anew.

        Raises ValueError for another file, and SpecError for one whose entries contradict one another.

        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> spec = rebasin.trace(model, torch.ones(1, 3))
        >>> spec.save(folder / "spec.json")
        >>> PermutationSpec.load(folder / "spec.json") == spec
        True
        """
        contents = read_spec_file(path)
        try:
            parts: dict[str, tuple[Part, ...]] = {}
            for key, own in contents["parts"].items():
                parts[key] = tuple(Part(part["group"], part["axis"], unpacked(part["positions"])) for part in own)
            return cls(
                contents["sizes"],
                parts,
                {key: tuple(shape) for key, shape in contents["shapes"].items()},
                contents["inside"],
                contents["blocks"],
                frozenset(contents["statistics"]),
                contents["pinned"],
                tuple(map(tuple, contents["ties"])),
                tuple(contents["proof"]),
            )
        except SpecError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"{os.fspath(path)} is a damaged spec: {error!r}") from error

    def __hash__(self) -> int:
        return hash(
            (
                frozenset(self.sizes.items()),
                frozenset((key, tuple(shape)) for key, shape in self.shapes.items()),
                frozenset(self.inside.items()),
                self.statistics,
            )
        )

    def __repr__(self) -> str:
        units = sum(self.units(group) for group in self.sizes)
        stay = sum(not self.parts.get(key) for key in self.shapes)
        return (
            f"PermutationSpec({counted(len(self.sizes), 'group')}, {units} units; "
            f"{stay} of {len(self.shapes)} entries stay{'s' * (stay == 1)})"
        )

    def summary(self) -> str:
        """A table of the groups, with the entries that each lies in, what stays, with the reasons, and the proof."""
        places: dict[str, list[str]] = {group: [] for group in self.sizes}
        for key, parts in self.parts.items():
            for part in parts:
                places[part.group].append(f"{key} axis {part.axis}")
        groups = [("group", "units", "lies along")]
        for group, lies in places.items():
            within = f" in each of {self.sizes[self.inside[group]]} blocks" if group in self.inside else ""
            groups.append((group, f"{self.sizes[group]}{within}", shortened(lies)))
        reasons: dict[str, list[str]] = {}
        for key, reason in self.pinned.items():
            reasons.setdefault(reason, []).append(key)
        stays = [("stays", "reason"), *((shortened(keys), reason) for reason, keys in reasons.items())]
        tables = [_table(groups), *([_table(stays)] if reasons else []), "\n".join(self.proof)]
        return "\n\n".join(table for table in tables if table)

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
        whole[self._own(key, tensor.device)] = tensor
        return whole

    def unview(self, key: str, tensor: Tensor) -> Tensor:
        """The inverse of ``view``."""
        if key not in self.blocks:
            return tensor
        return tensor[self._own(key, tensor.device)]

    def _own(self, key: str, device: torch.device) -> tuple[Any, ...]:
        """The index of what is not zero in a grouped convolution made whole: each row's own columns."""
        rows, own = self.shapes[key][:2]
        row = torch.arange(rows, device=device).unsqueeze(-1)  # (out, 1)
        columns = row // (rows // self.blocks[key]) * own + torch.arange(own, device=device)  # (out, in of a block)
        return (..., row, columns, *[slice(None)] * (len(self.shapes[key]) - 2))

    def batch_shape(self, weights: Weights, what: str = "the weights") -> torch.Size:
        """The leading axes ``*batch`` of weights that fit this spec.

        Raises ValueError, naming the first key at fault, for other keys or sizes, for leading axes or devices that
        differ between entries, and for NaN or infinite values.
        """
        batch = self.leading_axes(weights, what)
        self.check_finite(weights, what)
        return batch

    def leading_axes(self, weights: Weights, what: str = "the weights") -> torch.Size:
        """The leading axes ``*batch`` of weights that fit this spec, whatever their values are: see ``batch_shape``."""
        batch = leading_axes_of(self.shapes, weights, what, "the spec")
        for key in self.weights:
            if is_whole(weights[key]) and self.parts.get(key):
                raise ValueError(f"{what}: {key!r} holds whole numbers ({weights[key].dtype}), which are no weights")
        return batch

    def check_finite(self, weights: Weights, what: str = "the weights") -> None:
        """Raise ValueError, naming the first key, for NaN or infinite values."""
        for key in self.shapes:
            # A buffer that does not move, such as a mask, may hold what it likes.
            if key not in self.statistics or self.parts.get(key):
                check_finite(weights[key], f"{what}: {key!r}")


def check_spec(spec: PermutationSpec, call: str) -> None:
    """Raise TypeError, with the right order of the arguments in ``call``, unless the first one is a spec."""
    if not isinstance(spec, PermutationSpec):
        raise TypeError(f"the first argument is the spec, and a {type(spec).__name__} was given: {call}")


def check_groups(spec: PermutationSpec) -> None:
    """Raise ValueError unless a spec has a group of units."""
    if not spec.sizes:
        raise ValueError("the spec has no group of units that can be matched: spec.pinned says why")


def check_family(spec: PermutationSpec, group: Any) -> None:
    """Raise ValueError unless this is a group that lies in no other: one whose units a merge may keep apart."""
    if group not in spec.families:
        raise ValueError(f"{group!r} is no group that can be split: there are {', '.join(spec.families)}")


def counted(count: int, thing: str) -> str:
    """So many things, in words."""
    return f"{count} {thing}{'s' * (count != 1)}"


def shortened(names: Sequence[str], most: int = 2) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
