"""The reference attack: AutoAttack's standard suite, one model at a time, beside the attacks of this project."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lab.bookkeeping.cache import kept
from lab.bookkeeping.spread import each
from lab.bookkeeping.vocabulary import GREY_LEVELS, KIND
from lab.controls import Group
from lab.device import pick_device
from lab.images import Split
from lab.measures.attacks import Attack, suite, surviving
from lab.outputs import outputs
from rebasin.progress import track
from rebasin.weights import Weights, take, to


def reference_accuracy(
    groups: Sequence[Group],
    split: Split,
    epsilon: float,
    most_nodes: int,
    losses: Sequence[str],
    steps: int,
    seed: int,
    device: str,
) -> pd.DataFrame:
    """Accuracy of the first nodes of each group at ``epsilon`` (grey levels, L-infinity): a row per node and attack.

    ``attack`` is ``clean``, ``own`` for the worst case of FGSM and PGD over ``losses``, or ``autoattack``. Raises
    ModuleNotFoundError where the extra ``rebasin-book[attacks]`` is not installed.
    """
    pixels, rows = split.pixels, []
    radius, attacks = epsilon / GREY_LEVELS, [attack for _, attack in suite(losses, steps=steps)]
    alone = [
        (group, position, take(group.weights, slice(position, position + 1)))
        for group in groups
        for position in range(min(most_nodes, len(group.nodes)))
    ]
    calls = [
        (group.model, weights, pixels, split.labels, radius, seed, pick_device(device)) for group, _, weights in alone
    ]
    found = each(autoattack, calls, "AutoAttack")
    with track(len(alone), "AutoAttack", "node") as bar:
        for (group, position, weights), reference in zip(alone, found, strict=True):
            node, model, labels = group.nodes[position], group.model, split.labels
            clean = surviving(model, weights, pixels, labels, [0.0], Attack(), seed, device)
            own = torch.ones_like(clean)
            for attack in attacks:
                own &= surviving(model, weights, pixels, labels, [radius], attack, seed, device)
            for name, left in (("clean", clean), ("own", own), ("autoattack", reference)):
                rows.append((*group.kind, node, name, float(left.double().mean())))
            bar.update()
    return pd.DataFrame(rows, columns=[*KIND, "node", "attack", "value"])


@kept
def autoattack(
    model: nn.Module, weights: Weights, images: Tensor, labels: Tensor, epsilon: float, seed: int, device: str
) -> Tensor:
    """Which images (m, ...) the one model in ``weights`` (1, ...) still gets right after AutoAttack: (m,) in bool.

    The standard suite of Croce and Hein (2020), in L-infinity; ``epsilon`` in pixels from 0 to 1.
    """
    from pyautoattack import AutoAttack

    model = copy.deepcopy(model).to(device).eval()
    one = to(take(weights, 0), device)

    class Bound(nn.Module):
        """The model with these weights, as AutoAttack wants it."""

        def forward(self, x: Tensor) -> Tensor:
            return functional_call(model, one, (x,))

    images, labels = images.to(device), labels.to(device)
    attacked, *_ = AutoAttack(Bound().eval(), device=device, eps=epsilon, seed=seed).run_standard_evaluation(
        images, labels
    )
    logits = outputs(model, weights, attacked, device, batch=len(attacked))
    return logits[0].argmax(-1) == labels.cpu()
