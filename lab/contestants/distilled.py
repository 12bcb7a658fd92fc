"""A control of all merging: the merge is trained until it answers as its parents do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from lab.contestants.arena import Arena, Entry, of_expanded, with_measured_norms
from lab.contestants.steps import drawn_batches
from lab.contestants.whole import ensemble
from rebasin.expanding.expanded import Expanded, expand_network
from rebasin.merging.pleas import choose_slots

STEPS, IMAGES, RATE = 400, 100, 1e-3


def distilled(arena: Arena, size: float) -> Entry | None:
    """The average of matched units, all its weights then trained by 400 steps of Adam to give the parents' answers.

    No labels are needed, and the images are those that all methods see. Each head learns the probabilities that its
    parent gives; a shared one, those of the ensemble.
    """
    slots, _ = choose_slots(arena.grams, size=size, heads=arena.heads)
    network = expand_network(slots, arena.model, arena.parents, example=arena.example, heads=arena.heads)
    network = with_measured_norms(arena, network)
    teachers = ensemble(arena, arena.n)
    assert teachers is not None
    with torch.no_grad():
        taught = torch.cat([_by_head(arena, teachers.network(batch)).exp() for batch in arena.inputs.split(IMAGES)])
    _train(arena, network, taught)
    return of_expanded(arena, network)


@torch.enable_grad()
def _train(arena: Arena, network: Expanded, taught: Tensor) -> None:
    """Steps of Adam on what the network's probabilities lack of ``taught`` (m, heads, classes)."""
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for at in drawn_batches(len(taught), STEPS, IMAGES, torch.Generator().manual_seed(arena.seed)):
        optimiser.zero_grad()
        answers = _by_head(arena, network(arena.inputs[at]))
        kl_div(answers, taught[at], reduction="sum").div(len(at)).backward()
        optimiser.step()
        schedule.step()
    for parameter in network.parameters():
        parameter.requires_grad_(False)


def _by_head(arena: Arena, logits: Tensor) -> Tensor:
    """The logarithms of the probabilities (m, heads, classes) of each head."""
    return logits.unflatten(1, (len(arena.test), -1)).log_softmax(-1)
