"""Only a new head: the question whether a merge is needed at all."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lab.contestants.arena import Arena, Entry
from rebasin import Permutation, Slots
from rebasin.expanding.expansion import output_keys
from rebasin.fitting.least_squares import STRENGTHS
from rebasin.weights import take


def new_head(arena: Arena, size: float) -> Entry | None:
    """The first parent with a new last layer over the classes of all tasks, by ridge least squares on its features.

    It is the only method that needs the labels of the training images. Classes count alike, however many images they
    have, and the ridge's strength is chosen on every second image. Its outputs estimate indicators of the classes,
    between 0 and 1, so that they are no logits: accuracy alone is to be compared. None for networks that do not end in
    a linear layer with an output for each class: class codes come behind it.
    """
    last = {key.rpartition(".")[0] for key in output_keys(arena.program)}
    if size != 1 or len(last) != 1:
        return None
    replaced = arena.model.get_submodule(min(last))
    if not isinstance(replaced, nn.Linear) or replaced.out_features != arena.classes:
        return None
    network = copy.deepcopy(arena.model)
    network.load_state_dict(take(arena.parents, 0))
    pixels, labels = torch.cat([split.pixels for split in arena.train]), _joint_labels(arena)
    features = _read_by(network, min(last), arena.batches(pixels))
    weight = _ridge(features.double(), labels, arena.classes * len(arena.train)).float()
    head = nn.Linear(weight.shape[1] - 1, len(weight))
    head.load_state_dict({"weight": weight[:, :-1], "bias": weight[:, -1]})
    network.set_submodule(min(last), head)
    # A head of all classes costs as much as n heads on one body.
    sizes = arena.sizes(Slots.of_permutation(Permutation.identity(arena.spec, (arena.n,))))
    return Entry(network.eval(), **sizes, one_head=True)


def _joint_labels(arena: Arena) -> Tensor:
    """The labels of the training images among the classes of all tasks."""
    return torch.cat([split.labels + task * arena.classes for task, split in enumerate(arena.train)])


@torch.no_grad()
def _read_by(network: nn.Module, layer: str, batches: list[Tensor]) -> Tensor:
    """What a layer reads (m, columns), with a last column of ones."""
    read: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for batch in batches:
        network(batch)
    hook.remove()
    features = torch.cat(read)
    return torch.cat([features, torch.ones(len(features), 1)], 1)


def _ridge(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The weight (classes, columns) that is closest to the indicators of the labels, each class counting alike."""
    targets = nn.functional.one_hot(labels, classes).to(features)
    share = 1 / torch.bincount(labels, minlength=classes).clamp(min=1)[labels].to(features).unsqueeze(-1)
    held = torch.arange(len(labels)) % 2 == 1

    def solution(rows: Tensor, strength: float) -> Tensor:
        gram = features[rows].T @ (share[rows] * features[rows])
        # Units that are dead have no square of their own: the mean one keeps the matrix regular.
        ridge = strength * (gram.diagonal() + gram.diagonal().mean()).diag()
        return torch.linalg.solve(gram + ridge, features[rows].T @ (share[rows] * targets[rows])).T

    def left(strength: float) -> float:
        error = features[held] @ solution(~held, strength).T - targets[held]
        return float((share[held] * error.square()).sum())

    return solution(torch.ones_like(held), min(STRENGTHS, key=left))
