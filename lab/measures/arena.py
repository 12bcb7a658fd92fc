"""What is measured of any merge in the arena: accuracy over all classes and for each task, calibration, and size."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lab.bookkeeping.cache import kept
from lab.bookkeeping.content import content
from lab.contestants import MENDINGS, Arena, Method
from lab.contestants.arena import MEASURES
from lab.images import Split
from lab.measures.calibration import calibration_error


@dataclass(frozen=True)
class Tried:
    """What a method reached: its logits on the test images of each task, (m, all classes), and its network's cost.

    ``structured``, ``dense`` and ``parameters`` are in multiples of one parent, and ``seconds`` are those of merging
    and mending, without the pass for the Gram matrices. ``one_head`` is that of ``Entry``.
    """

    logits: list[Tensor]
    structured: float
    dense: float
    parameters: float
    seconds: float
    one_head: bool


@kept
def tried(arena: Arena, method: Method, size: float) -> dict[str, dict[str, Any]]:
    """The fields of ``Tried`` for what a method makes at a size, mended in each way that there is for it."""
    pass_made = "timed_grams" in vars(arena)
    began = time.monotonic()
    entry = method(arena, size)
    merging = time.monotonic() - began
    if entry is None:
        return {}
    if not pass_made and "timed_grams" in vars(arena):
        merging -= arena.timed_grams[1]  # whichever method comes first does not pay for all
    reached = {}
    for mended, mending in MENDINGS.items():
        began = time.monotonic()
        other = mending(arena, entry)
        seconds = merging + time.monotonic() - began
        if other is not None:
            logits = [answers(other.network, split, arena.batch) for split in arena.test]
            sizes = {by: getattr(other, by) for by in MEASURES}
            reached[mended] = {"logits": logits, **sizes, "seconds": seconds, "one_head": other.one_head}
    return reached


@kept
def gram_seconds(arena: Arena) -> float:
    """How long the pass for the Gram matrices takes, which serves all methods and sizes."""
    return arena.timed_grams[1]


def try_method(arena: Arena, method: Method, size: float) -> dict[str, Tried]:
    """What a method reaches at a size, as merged (``none``) and mended; empty if it makes no merge of that size.

    It is kept, and computed once, if the code of the method can be told: if it stands in a module.
    """
    function = tried if _is_told(method) else tried.function
    return {mended: Tried(**fields) for mended, fields in function(arena, method, size).items()}


def try_sizes(arena: Arena, method: Method, sizes: Iterable[float]) -> Iterator[tuple[dict[str, Any], Tried]]:
    """What a method reaches at each of these sizes, as merged and mended, behind its ``mended`` and ``size``."""
    for size in sizes:
        for mended, reached in try_method(arena, method, size).items():
            yield {"mended": mended, "size": size}, reached


@functools.cache
def _is_told(method: Method) -> bool:
    """Whether the code of a method can be told; that of one which stands in a notebook cannot."""
    try:
        content(method)
    except TypeError:
        return False
    return True


@torch.no_grad()
def answers(network: Callable[[Tensor], Tensor], split: Split, batch: int) -> Tensor:
    """The logits (m, all classes) of a network. Raises ValueError for ones that are NaN or infinite."""
    logits = torch.cat([network(part.float() / 255) for part in split.images.split(batch)])
    if not logits.isfinite().all():
        raise ValueError("a network's outputs are NaN or infinite")
    return logits


def scores(entry: Tried, test: tuple[Split, ...]) -> list[tuple[str, str, float]]:
    """Task, metric and value of what was reached.

    - ``joint``: over the images of all tasks, whose task nobody tells. Each head's softmax goes over its own classes,
      and the likeliest class of all heads is the answer. ``accuracy``; ``calibration_error`` of the answer's
      probability in its head; ``loss``, the cross-entropy in nats in the head of an image's own task; and what the
      network costs in multiples of one parent, ``structured``, ``dense`` and ``parameters``.
    - ``0``, ``1``, ...: ``accuracy`` and ``loss`` over the images and the classes of that task alone.
    """
    classes = entry.logits[0].shape[1] // len(test)
    labels = torch.cat([split.labels + task * classes for task, split in enumerate(test)])
    logits = torch.cat(entry.logits).double()
    heads = 1 if entry.one_head else len(test)
    logarithms = logits.unflatten(1, (heads, -1)).log_softmax(-1).flatten(1)  # (images, all classes)
    probabilities = logarithms.exp()
    right = (probabilities.argmax(1) == labels).double().mean()
    loss = -logarithms.gather(1, labels.unsqueeze(1)).mean()
    rows = [
        ("joint", "accuracy", float(right)),
        ("joint", "loss", float(loss)),
        ("joint", "calibration_error", float(calibration_error(probabilities, labels))),
    ]
    rows += [("joint", by, getattr(entry, by)) for by in MEASURES]
    for task, (of_task, split) in enumerate(zip(entry.logits, test, strict=True)):
        own = of_task[:, task * classes : (task + 1) * classes].double()
        rows.append((str(task), "accuracy", float((own.argmax(1) == split.labels).double().mean())))
        rows.append((str(task), "loss", float(cross_entropy(own, split.labels))))
    return rows
