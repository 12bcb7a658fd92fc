"""Slots: which unit of the merge each unit of each of n models goes into. Every merge here is a case of this map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin.arguments import check_count, check_tensor
from rebasin.permutation import Permutation
from rebasin.spec import PermutationSpec, check_family, check_groups, check_spec, counted


@dataclass(frozen=True, eq=False, repr=False)
class Slots:
    """Which unit of the merge each unit of each of n models goes into.

    A unit of the merge is called a slot, and the models that have a unit in it are its owners.

    - ``permutation`` (n,): brings the models to common coordinates first. Units within blocks follow their block, so
      that this is where they are matched.
    - ``index[group]`` (n, units), int64, for each group that lies in no other: unit u of permuted model m goes into
      slot ``index[group][m, u]``. Of blocks, such as the heads of attention, it says where the whole block goes.

    Slots are numbered so that those with the same owners lie side by side: more owners first, then by the owners'
    numbers, then in the order in which they first appear. ``Slots.from_index`` numbers any map in this way. Permute and
    average, ZipIt! (Stoica et al. 2024), PLeaS (Nasery et al. 2024), a merge of many and the ensemble are cases.

    Raises ValueError, naming the group, if the shapes do not fit or the numbers are not as above.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = rebasin.trace(model, torch.ones(1, 3))
    >>> Slots.apart(spec, 2)
    Slots(2 models, 1 group, 8 + 8 -> 16 units)
    """

    spec: PermutationSpec
    permutation: Permutation
    index: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_index(self.spec, self.index, self.permutation)
        for group, index in self.index.items():
            if not torch.equal(index, _numbered(index)):
                raise ValueError(f"group {group!r}: slots of one owner set lie side by side, see Slots.from_index")

    @classmethod
    def from_index(
        cls, spec: PermutationSpec, index: Mapping[str, Tensor], permutation: Permutation | None = None
    ) -> Slots:
        """Any map of units to slots, ``index[group]`` (n, units), with its slots numbered anew.

        Units of one model may share a slot, as in ZipIt! (Stoica et al. 2024). Without a ``permutation`` the models
        are taken as they are.

        >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(2)}, {"w": ("units",)})
        >>> Slots.from_index(spec, {"units": torch.tensor([[7, 7], [7, 3]])}).index["units"]
        tensor([[0, 0],
                [0, 1]])
        """
        check_index(spec, index, permutation)
        if permutation is None:
            permutation = Permutation.identity(spec, (len(next(iter(index.values()))),))
        return cls(spec, permutation, {group: _numbered(units) for group, units in index.items()})

    @classmethod
    def of_permutation(cls, permutation: Permutation) -> Slots:
        """All units shared, unit by unit of the permuted models: permute and average. ``permutation`` is (n,)."""
        n, spec = _models(permutation), permutation.spec
        index = {group: torch.arange(spec.sizes[group]).expand(n, -1) for group in spec.families}
        return cls(spec, permutation, index)

    @classmethod
    def apart(cls, spec: PermutationSpec, n: int) -> Slots:
        """No unit shared: the ensemble of n models."""
        check_spec(spec, "Slots.apart(spec, n)")
        check_count(n, "n")
        index = {}
        for group in spec.families:
            index[group] = torch.arange(n * spec.sizes[group]).reshape(n, -1)
        return cls(spec, Permutation.identity(spec, (n,)), index)

    @classmethod
    def partial(cls, permutation: Permutation, merged: Mapping[str, int], scores: Mapping[str, Tensor]) -> Slots:
        """Of each group, the ``merged[group]`` most similar units are shared by all models, the others by none.

        ``permutation`` (n,) aligns the models, and ``scores[group]`` (units,) is how similar unit u of the *permuted*
        models is, more being better; of equal scores the first unit wins. All units are shared in groups without a
        number. Source: PLeaS (Nasery et al. 2024), section 3.

        Raises ValueError, naming the group, for more units than there are, or if scores are missing.

        >>> spec = rebasin.PermutationSpec.from_axes({"w": torch.zeros(3)}, {"w": ("units",)})
        >>> permutation = rebasin.Permutation.identity(spec, (2,))
        >>> Slots.partial(permutation, {"units": 1}, {"units": torch.tensor([0.1, 0.2, 0.9])}).index["units"]
        tensor([[1, 2, 0],
                [3, 4, 0]])
        """
        n, spec = _models(permutation), permutation.spec
        for group in merged:
            check_family(spec, group)
        index = {}
        for group in spec.families:
            size = spec.sizes[group]
            shared = merged.get(group, size)
            if not 0 <= shared <= size:
                raise ValueError(f"group {group!r} has {size} units, of which {shared} cannot be merged")
            units = torch.arange(size)
            if shared < size:
                if group not in scores or scores[group].shape != (size,):
                    raise ValueError(f"group {group!r} needs a score of each of its {size} units")
                units = torch.argsort(scores[group].cpu(), descending=True, stable=True)
            slots = torch.arange(n * size).reshape(n, size)  # all apart
            slots[:, units[:shared]] = units[:shared]  # the first model's own, for all
            index[group] = _numbered(slots)
        return cls(spec, permutation, index)

    @property
    def n(self) -> int:
        """The number of models."""
        return _models(self.permutation)

    @property
    def widths(self) -> dict[str, int]:
        """The number of slots of each group; of blocks, the number of blocks."""
        return {group: int(index.max()) + 1 for group, index in self.index.items()}

    @property
    def owners(self) -> dict[str, Tensor]:
        """Which models have a unit in each slot: bool (n, width) for each group."""
        widths = self.widths
        return {group: owners_of(index, widths[group]) for group, index in self.index.items()}

    def __repr__(self) -> str:
        return f"Slots({self.in_words()})"

    def in_words(self) -> str:
        """How many models and groups there are, and how many units become how many."""
        units = sum(self.spec.sizes[group] for group in self.index)
        before = " + ".join([str(units)] * self.n) if self.n < 4 else f"{self.n} x {units}"
        models, groups = counted(self.n, "model"), counted(len(self.index), "group")
        return f"{models}, {groups}, {before} -> {sum(self.widths.values())} units"


def check_index(spec: PermutationSpec, index: Mapping[str, Tensor], permutation: Permutation | None) -> None:
    """Raise ValueError, naming the group, unless these are numbers of slots, (n, units) for each group."""
    check_spec(spec, "Slots(spec, permutation, index)")
    check_groups(spec)
    if index.keys() != spec.families.keys():
        raise ValueError(f"slots of the groups {sorted(index)} given, the spec has {sorted(spec.families)}")
    n = None if permutation is None else _models(permutation)
    if permutation is not None and permutation.spec != spec:
        raise ValueError("the permutation is of another spec")
    for group, units in index.items():
        check_tensor(units, f"group {group!r}: slots")
        n = len(units) if n is None and units.ndim else n
        if units.dtype != torch.int64 or units.shape != (n, spec.sizes[group]):
            shape = f"{units.dtype} {tuple(units.shape)}"
            raise ValueError(f"group {group!r}: slots are int64, {(n, spec.sizes[group])}, got {shape}")
        if int(units.min()) < 0:
            raise ValueError(f"group {group!r}: there is no slot {int(units.min())}")


def _models(permutation: Permutation) -> int:
    """The n of a permutation (n,). Raises ValueError for another one, and for one of no groups, which has no n."""
    if not isinstance(permutation, Permutation):
        kind = type(permutation).__name__
        raise TypeError(
            f"a permutation of each of n models is needed, got {kind}: a Matching and a Merge have it as .permutation"
        )
    check_groups(permutation.spec)
    if len(permutation.batch) != 1:
        raise ValueError(f"slots need a permutation of each of n models, got one with axes {tuple(permutation.batch)}")
    return int(permutation.batch[0])


def owners_of(index: Tensor, width: int) -> Tensor:
    """Which of n models has a unit in each of ``width`` slots: bool (n, width)."""
    owners = torch.zeros(len(index), width, dtype=torch.bool, device=index.device)
    return owners.scatter_(1, index, True)


def _numbered(index: Tensor) -> Tensor:
    """The same map (n, units), its slots numbered by owners, and among those in the order of first appearance."""
    _, dense = torch.unique(index, return_inverse=True)
    width = int(dense.max()) + 1
    numbers = []  # of the owners of each slot
    for of_slot in owners_of(dense, width).T.tolist():
        numbers.append(tuple(m for m, owns in enumerate(of_slot) if owns))
    first = {slot: at for at, slot in reversed(list(enumerate(dense.flatten().tolist())))}
    order = sorted(range(width), key=lambda slot: (-len(numbers[slot]), numbers[slot], first[slot]))
    rank = torch.empty(width, dtype=torch.int64)
    rank[torch.tensor(order)] = torch.arange(width)
    return rank.to(index.device)[dense]
