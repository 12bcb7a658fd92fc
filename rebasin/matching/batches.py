"""The data that a matcher looks at, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import chain
from typing import Any

from torch import Tensor

from rebasin.progress import track
from rebasin.weights import Weights


def batches_of(loader: Iterable[Any] | Tensor, weights: Weights, what: str, epochs: int = 1) -> Iterator[Any]:
    """The batches of a loader, ``epochs`` times over; one tensor is one batch.

    Raises ValueError if there are none, or if one lies on another device than the weights.
    """
    if isinstance(loader, Tensor):
        loader = [loader]
    device = next(iter(weights.values())).device
    total = epochs * len(loader) if isinstance(loader, Sized) else 0
    count = 0
    with track(total, what, "batch") as bar:
        for batch in chain.from_iterable(loader for _ in range(epochs)):
            for part in batch if isinstance(batch, tuple | list) else [batch]:
                if isinstance(part, Tensor) and part.device != device:
                    raise ValueError(f"the loader gives batches on {part.device}, the weights are on {device}")
            yield batch
            count += 1
            bar.update()
    if not count:
        raise ValueError("the loader gave no batches")
