"""A data set shared out by class: each task has classes of its own, and networks that know no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lab.bookkeeping.code import fingerprint
from lab.images import Dataset, Split

TUNED = ("tuned", "tuned alike")
TASKS = ("halves", "whole", "coded", *TUNED)


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The images of these classes alone, labelled 0, 1, ... in the order that the classes are given in.

    Raises ValueError for a class that the data set has not, or that is given twice.
    """
    for label in classes:
        if not 0 <= label < dataset.classes:
            raise ValueError(f"{dataset.title} has classes 0 to {dataset.classes - 1}, and no {label}")
    if len(set(classes)) < len(classes) or not classes:
        raise ValueError(f"a task has some classes, each once: got {list(classes)}")
    new_label = torch.full((dataset.classes,), -1)
    new_label[list(classes)] = torch.arange(len(classes))

    def own(split: Split) -> Split:
        labels = new_label[split.labels]
        return Split(split.images[labels >= 0], labels[labels >= 0])

    return replace(
        dataset,
        title=f"{dataset.title}, classes {', '.join(map(str, classes))}",
        train=own(dataset.train),
        held_out=own(dataset.held_out),
        test=own(dataset.test),
        fingerprint=fingerprint(dataset.fingerprint, list(classes)),
        numbers=tuple(classes),
    )


def halves(dataset: Dataset) -> list[Dataset]:
    """Two tasks: the first half of the classes, and the other half."""
    half = dataset.classes // 2
    return [of_classes(dataset, range(half)), of_classes(dataset, range(half, dataset.classes))]


def tasks_of(dataset: Dataset, tasks: str) -> list[Dataset]:
    """What a merge is asked, a head for each: ``"halves"``, two tasks with a half of the classes each, or one of all.

    Halves are also what networks were fine-tuned on, from a foundation each (``"tuned"``) or from one for both
    (``"tuned alike"``). The one of all is ``"whole"``, which all networks have learned, or ``"coded"``: each has
    learned a half of the classes, and answers by class codes, so that all have one head. Raises ValueError for another
    word.
    """
    if tasks not in TASKS:
        raise ValueError(f"tasks are {', '.join(TASKS)}, not {tasks!r}")
    return halves(dataset) if tasks in ("halves", *TUNED) else [dataset]


def learned_tasks(dataset: Dataset, tasks: str) -> list[Dataset]:
    """What networks are trained on, each on one: the same but for ``"coded"``, which are halves."""
    return tasks_of(dataset, "halves" if tasks == "coded" else tasks)
