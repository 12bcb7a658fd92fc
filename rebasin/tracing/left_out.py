"""What an example leaves out: slices that it does not reach, and entries that it does not use."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping

from rebasin.spec import PermutationSpec, shortened
from rebasin.tracing.groups import Membership, unreached_slices
from rebasin.tracing.units import Value

UNUSED = "not used in evaluation"
TELLING = 8  # units: many a size is a multiple of fewer by chance


def warn_of_left_out(spec: PermutationSpec, membership: Membership, tensors: Mapping[str, Value]) -> None:
    """Warn of what stays because the example does not need it, where other inputs may ask that it moves.

    ``tensors`` are the parameters and buffers that the graph uses, by their keys.
    """
    unreached = _unreached(spec, membership, tensors)
    if unreached:
        warnings.warn(
            f"the example does not reach {shortened(unreached)}: they stay, while others of their axis move. Trace "
            "with an example that reaches all that is used, such as the longest",
            stacklevel=3,
        )
    lengths = _moving_lengths(spec)
    unused = {}
    for key, why in spec.pinned.items():
        shape = spec.shapes[key]
        alike = {length for size in shape for length in lengths if _repeats(size, length)}
        if why == UNUSED and alike:
            unused[repr(key)] = max(alike)
    if unused:
        first = next(iter(unused.values()))
        warnings.warn(
            f"{shortened(list(unused))}: not used with this example, and so left in place. An axis is as long as one "
            f"that moves, or several times as long, as of {lengths[first]!r}. If the model uses what is named with "
            "other inputs, trace it with one of those",
            stacklevel=3,
        )


def _repeats(size: int, length: int) -> bool:
    """Whether an axis of this size may hold so many units, or several times as many if they are not too few to tell."""
    return size == length or (size > 0 and length >= TELLING and size % length == 0)


def _unreached(spec: PermutationSpec, membership: Membership, tensors: Mapping[str, Value]) -> list[str]:
    """The slices that the example does not reach, along axes of which others move, in words."""
    found = []
    for key, value in tensors.items():
        counts = unreached_slices(value, key in spec.blocks, membership.unit, membership.reasons)
        for axis in sorted(counts.keys() & {part.axis for part in spec.parts[key]}):
            found.append(f"{counts[axis]} of {value.shape[axis]} slices of {key!r} along axis {axis}")
    return found


def _moving_lengths(spec: PermutationSpec) -> dict[int, str]:
    """The lengths of the axes that groups move whole, each with the first entry that has it."""
    lengths: dict[int, str] = {}
    for key, parts in spec.parts.items():
        moving: dict[int, set[int]] = defaultdict(set)
        for part in parts:
            moving[part.axis].update(part.positions.flatten().tolist())
        for axis, slices in moving.items():
            if len(slices) == spec.view_shape(key)[axis]:
                lengths.setdefault(len(slices), key)
    return lengths
