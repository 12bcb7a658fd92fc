"""The data that a matcher looks at, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain
from typing import Any

from torch import Tensor

from rebasin.arguments import check_inputs, only_dtype
from rebasin.progress import track
from rebasin.weights import Weights


def batches_of(loader: Iterable[Any] | Tensor, weights: Weights, what: str, epochs: int = 1) -> Iterator[Any]:
    """The batches of a loader, ``epochs`` times over; one tensor is one batch.

    Raises TypeError for a loader that gives no batches, ValueError if there are none, or if one lies on another device
    than the weights, has another number format, or inputs that are not finite.
    """
    if isinstance(loader, Tensor):
        loader = [loader]
    if not isinstance(loader, Iterable) or isinstance(loader, str | Mapping):
        raise TypeError(
            f"the loader must give batches, as a DataLoader, a list or one tensor does: got {type(loader).__name__}"
        )
    own = only_dtype(weights)
    device = next(iter(weights.values())).device
    total = epochs * len(loader) if isinstance(loader, Sized) else 0
    count = 0
    with track(total, what, "batch") as bar:
        for batch in chain.from_iterable(loader for _ in range(epochs)):
            parts = batch if isinstance(batch, tuple | list) else [batch]
            for part in parts:
                if isinstance(part, Tensor) and part.device != device:
                    raise ValueError(f"the loader gives batches on {part.device}, the weights are on {device}")
            if not parts:
                raise ValueError("the loader gave a batch without inputs")
            check_inputs(parts[0], "the loader's inputs", device, own)
            yield batch
            count += 1
            bar.update()
    if not count:
        raise ValueError("the loader gave no batches")
