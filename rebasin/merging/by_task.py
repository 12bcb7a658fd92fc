"""Mending by task: one merge of models of different tasks, with statistics of its own for each of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rebasin.inputs import Inputs
from rebasin.merging.mending import check_parents, mender
from rebasin.weights import Kind, Models, check_fits, check_module, like, take, weights_of


def repair_by_task(model: nn.Module, merged: Kind, parents: Models, inputs: Sequence[Inputs]) -> list[Kind]:
    """Mend a merge of models of different tasks once for each task, with the statistics of that task's own model.

    ``merged`` is a module, a dict of tensors (*batch, ...) or a list of either, and ``parents`` has one more axis,
    (*batch, n, ...): parent t, in the merge's basin already, is the model of task t. ``inputs[t]`` (m, ...) are of that
    task alone. What comes back is a list of n merges, each of them what ``merged`` is. In each, running statistics are
    measured on the inputs of its task, and every unit has the mean and the deviation that it has in the task's model.
    They differ in each unit's scale and shift alone, so that one merge serves all tasks, if it is known which task an
    input is of. ``repair`` gives all tasks the average statistics, which fit none. Source: TACT (Sharma et al. 2024).

    Raises ValueError unless there are inputs for each parent, and what ``repair`` raises.

    >>> parents = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    >>> middle = rebasin.interpolate(*parents, 0.5)
    >>> tasks = [torch.randn(100, 3), torch.randn(100, 3) + 1]
    >>> first, second = repair_by_task(middle, middle, parents, tasks)
    >>> torch.allclose(second[0](tasks[1]).mean(0), parents[1][0](tasks[1]).mean(0), atol=1e-5)
    True
    """
    check_module(model, "repair_by_task(model, merged, parents, inputs)")
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise TypeError("the inputs are a list: those of each task, in the order of the parents")
    weights, parents = weights_of(merged, "the merge"), weights_of(parents, "the parents")
    leading = check_fits(model, parents, "the parents")
    check_parents(leading, check_fits(model, weights, "the merge"))
    *batch, n = leading
    if len(inputs) != n:
        raise ValueError(f"{n} parents have a task each: inputs of {len(inputs)} are given")
    mended = []
    for task, own in enumerate(inputs):
        expert = take(parents, slice(task, task + 1), len(batch))
        mended.append(like(merged, mender(model, own)(weights, expert)))
    return mended
