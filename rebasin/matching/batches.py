"""The data that a matcher looks at, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import length_hint
from typing import Any

from torch import Tensor

from rebasin.inputs import Inputs, check_inputs
from rebasin.progress import track
from rebasin.weights import Weights

Loader = Iterable[Any] | Inputs


def batches_of(loader: Loader, weights: Weights, what: str, epochs: int = 1) -> Iterator[tuple[Any, ...]]:
    """The batches of a loader, ``epochs`` times over, each a tuple that begins with the inputs.

    A tensor or a dict of them is one batch. A batch is its inputs, a tensor or a dict, or a tuple or list that begins
    with them: a tensor, a tuple of several, or a dict.

    Raises TypeError for a loader that gives no batches, and for a tuple of tensors, of which nobody can tell whether
    they are batches, as ``images.split(100)`` gives them, or the inputs of one. Raises ValueError if there are none, if
    it can be read only once and there are several epochs, or if a batch lies on another device than the weights, or has
    inputs that are not finite.
    """
    if isinstance(loader, Tensor | Mapping):
        loader = [loader]
    if isinstance(loader, tuple) and loader and all(isinstance(part, Tensor) for part in loader):
        raise TypeError(
            "the loader is a tuple of tensors, which may be batches or the inputs of one: make it a list of batches, "
            "list(images.split(100)), or of one batch that begins with its inputs, [((first, second),)]"
        )
    if not isinstance(loader, Iterable) or isinstance(loader, str):
        raise TypeError(
            "the loader must give batches, as a DataLoader, a list, one tensor or a dict of tensors does: got "
            f"{type(loader).__name__}"
        )
    if epochs > 1 and isinstance(loader, Iterator):
        raise ValueError(f"epochs={epochs} reads the loader more than once, which it cannot be: make a list of it")
    if not weights:
        raise ValueError(f"{what}: the model has no weights, and so nothing to measure or match")
    device = next(iter(weights.values())).device
    total = epochs * length_hint(loader, 0)  # a DataLoader over a stream has no length
    count = 0
    with track(total, what, "batch") as bar:
        for batch in chain.from_iterable(loader for _ in range(epochs)):
            parts = batch if isinstance(batch, tuple | list) else [batch]
            for part in parts:
                if isinstance(part, Tensor) and part.device != device:
                    raise ValueError(f"the loader gives batches on {part.device}, the weights are on {device}")
            if not parts:
                raise ValueError("the loader gave a batch without inputs")
            check_inputs(parts[0], "the loader's inputs", device)
            yield tuple(parts)
            count += 1
            bar.update()
    if not count:
        raise ValueError("the loader gave no batches")
