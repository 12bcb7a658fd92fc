"""Attack whole groups of models, and check that the attacks do what attacks must do; tables come out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lab.bookkeeping.spread import each
from lab.bookkeeping.vocabulary import GREY_LEVELS, KIND
from lab.controls import Group
from lab.device import pick_device
from lab.images import Split
from lab.measures.attacks import Attack, fgsm, perturb, suite, surviving, survivors
from lab.measures.perturbations import PERTURBATIONS, SETTINGS, under_perturbations
from lab.outputs import evaluate
from rebasin.progress import track
from rebasin.weights import Weights, take

MERGED = ("hierarchy", "many", "mean")
DIVISOR = 16  # of the logits, in the check of what their size does; a power of two, so that no digit is lost


def robust_accuracy(
    groups: Sequence[Group],
    splits: Sequence[Split],
    norm: str,
    epsilons: Sequence[float],
    losses: Sequence[str],
    steps: int,
    restarts: int,
    seed: int,
    device: str,
    chunk: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each group under FGSM and PGD with each loss, on a split of its own, at each of ``epsilons`` (in grey levels).

    The first table has a row per node, attack, loss and epsilon; attack ``worst`` is the worst case per image over all
    of them. The second keeps which images survive the worst case, bit-packed. A group that was attacked before is read
    from the cache.
    """
    rows, images = [], []
    radii = [epsilon / GREY_LEVELS for epsilon in epsilons]
    attacks = suite(losses, norm, steps, restarts)
    pixels = {id(split): split.pixels for split in splits}  # once for all groups with the same images
    calls = [
        (group.model, group.weights, pixels[id(split)], split.labels, radii, attack, seed, pick_device(device), chunk)
        for group, split in zip(groups, splits, strict=True)
        for _, attack in attacks
    ]
    found = each(survivors, calls, f"attack in {norm}")
    with track(len(groups), f"attack in {norm}", "group") as bar:
        for group, split in zip(groups, splits, strict=True):
            count = len(split.labels)
            # (nodes, epsilons, images)
            worst = torch.ones(len(group.nodes), len(epsilons), count, dtype=torch.bool)
            for name, attack in attacks:
                left = next(found)
                worst &= left
                rows += _rows(group, name, attack.loss, epsilons, left)
            rows += _rows(group, "worst", "all", epsilons, worst)
            for position, epsilon in enumerate(epsilons):
                packed = np.packbits(worst[:, position].numpy(), axis=1)
                for node, bits in zip(group.nodes, packed, strict=True):
                    images.append((*group.kind, node, epsilon, bits.tobytes(), count))
            bar.update()
    table = pd.DataFrame(rows, columns=[*KIND, "node", "attack", "loss", "epsilon", "images", "value"])
    kept = pd.DataFrame(images, columns=[*KIND, "node", "epsilon", "correct", "images"])
    return table.assign(norm=norm), kept.assign(norm=norm)


def _rows(group: Group, attack: str, loss: str, epsilons: Sequence[float], left: Tensor) -> list[tuple]:
    """A row for each node and epsilon, from which images are left: (nodes, epsilons, images)."""
    rows = []
    for node, curve in zip(group.nodes, left.double().mean(-1).tolist(), strict=True):
        for epsilon, value in zip(epsilons, curve, strict=True):
            rows.append((*group.kind, node, attack, loss, epsilon, left.shape[-1], value))
    return rows


def perturbed_accuracy(
    groups: Sequence[Group], splits: Sequence[Split], seed: int, device: str, chunk: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each group on a split of its own under every perturbation at every severity; severity 0 is the clean images.

    The first table has a row per node, perturbation and severity, with the ``amount`` that the severity stands for. The
    second counts for each image under how many of all these (``out_of``, severity 0 left out) it is classified
    correctly, one byte an image.
    """
    rows, images = [], []
    versions: dict[tuple[int, int], list[Split]] = {}  # of a split, perturbed once for all groups in one process
    amounts = [np.nan, *(PERTURBATIONS[kind][severity - 1] for kind, severity in SETTINGS)]
    settings = [(*setting, amount) for setting, amount in zip([("clean", 0), *SETTINGS], amounts, strict=True)]
    calls = [
        (group.model, group.weights, split, seed, pick_device(device), chunk, versions)
        for group, split in zip(groups, splits, strict=True)
    ]
    found = each(under_perturbations, calls, "perturb")
    with track(len(groups), "perturb", "group") as bar:
        for group, split, correct in zip(groups, splits, found, strict=True):  # (nodes, 1 + settings, images)
            for position, node in enumerate(group.nodes):
                share = correct[position].double().mean(-1).tolist()
                for setting, value in zip(settings, share, strict=True):
                    rows.append((*group.kind, node, *setting, len(split.labels), value))
                counts = correct[position, 1:].sum(0).to(torch.uint8).numpy().tobytes()
                images.append((*group.kind, node, counts, len(SETTINGS), len(split.labels)))
            bar.update()
    table = pd.DataFrame(rows, columns=[*KIND, "node", "perturbation", "severity", "amount", "images", "value"])
    return table, pd.DataFrame(images, columns=[*KIND, "node", "correct", "out_of", "images"])


def transfer_accuracy(
    groups: Sequence[Group],
    outside: Weights,
    split: Split,
    epsilons: Sequence[float],
    steps: int,
    seed: int,
    device: str,
    chunk: int,
) -> pd.DataFrame:
    """Accuracy of each node on images that were attacked on another model, by PGD on the cross-entropy in L-infinity.

    ``source`` is ``outside`` for the models (k, ...) outside every tree, where the value is the mean over them, and
    ``own leaf`` for the first leaf of a merged node. ``epsilons`` are in grey levels.
    """
    unmerged = next(group for group in groups if group.algorithm == "unmerged")
    pixels = split.pixels
    rows = []

    def correct(group: Group, weights: Weights, images: Tensor) -> list[float]:
        left = surviving(group.model, weights, images, split.labels, [0.0], Attack(), seed, device, chunk)
        return left.double().mean((1, 2)).tolist()

    with track(len(epsilons), "transfer attacks", "epsilon") as bar:
        for epsilon in epsilons:
            from_outside, from_leaves = (
                perturb(
                    unmerged.model, weights, pixels, split.labels, epsilon / GREY_LEVELS, Attack(steps=steps), seed,
                    device, chunk,
                )
                for weights in (outside, unmerged.weights)
            )  # fmt: skip
            for group in groups:
                shares = [correct(group, group.weights, images) for images in from_outside]
                for node, value in zip(group.nodes, np.mean(shares, axis=0), strict=True):
                    rows.append((*group.kind, node, "outside", epsilon, value))
                if group.algorithm in MERGED:
                    for position, node in enumerate(group.nodes):
                        alone = take(group.weights, slice(position, position + 1))
                        leaf = unmerged.nodes.index(node * group.n_leaves)
                        rows.append((*group.kind, node, "own leaf", epsilon, *correct(group, alone, from_leaves[leaf])))
            bar.update()
    return pd.DataFrame(rows, columns=[*KIND, "node", "source", "epsilon", "value"])


class Divided(nn.Module):
    """A model whose logits are divided by ``divisor``, which changes none of its answers."""

    def __init__(self, model: nn.Module, divisor: float) -> None:
        super().__init__()
        self.model, self.divisor = copy.deepcopy(model), divisor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.divisor


def attack_checks(
    groups: Sequence[Group],
    outside: Weights,
    split: Split,
    epsilon: float,
    losses: Sequence[str],
    steps: int,
    seed: int,
    device: str,
) -> pd.DataFrame:
    """What must hold of any attack, measured on the first node of each group, in L-infinity at ``epsilon`` grey levels.

    A row per check, loss and setting, with the accuracy that is left, but for ``ball``: the largest change of a pixel
    in grey levels, and ``pixels``: how far the farthest pixel lies outside [0, 1].
    """
    radius = epsilon / GREY_LEVELS
    pixels = split.pixels
    rows = []
    with track(len(groups), "check the attacks", "group") as bar:
        for group in groups:
            model, weights = group.model, take(group.weights, slice(1))
            left = partial(_share_left, model, weights, pixels, split.labels, seed=seed, device=device)
            changed = partial(
                _changed, model, images=pixels, labels=split.labels, radius=radius, seed=seed, device=device
            )
            divided = Divided(model, DIVISOR).eval(), {f"model.{key}": tensor for key, tensor in weights.items()}
            checks = [("clean", "", 0.0, left(0.0, Attack()))]
            for loss in losses:
                attack = Attack(loss, steps=steps)
                checks.append(("steps", loss, 1, left(radius, fgsm(loss))))
                for many in (5, 10, 20, 50, 100):
                    checks.append(("steps", loss, many, left(radius, Attack(loss, steps=many))))
                checks.append(("everything", loss, float(GREY_LEVELS), left(1.0, attack)))
                smaller = _share_left(*divided, pixels, split.labels, radius, attack, seed, device)
                checks.append(("divided logits", loss, DIVISOR, smaller))
                checks.append(("white box", loss, steps, left(radius, attack)))
                attacked = changed(weights, attack=attack)
                checks.append(("ball", loss, epsilon, float((attacked - pixels).abs().max()) * GREY_LEVELS))
                checks.append(("pixels", loss, 0.0, float(torch.maximum(-attacked, attacked - 1).max().clamp(min=0))))
                given = changed(outside, attack=attack)
                transferred = _share_left(model, weights, given, split.labels, 0.0, Attack(), seed, device)
                checks.append(("transfer", loss, steps, transferred))
            rows += [(*group.kind, group.nodes[0], *check) for check in checks]
            bar.update()
    return pd.DataFrame(rows, columns=[*KIND, "node", "check", "loss", "setting", "value"])


def _share_left(
    model: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    radius: float,
    attack: Attack,
    seed: int,
    device: str,
) -> float:
    """The share of images that the one model in ``weights`` (1, ...) still gets right."""
    return float(surviving(model, weights, images, labels, [radius], attack, seed, device).double().mean())


def _changed(
    model: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    radius: float,
    attack: Attack,
    seed: int,
    device: str,
) -> Tensor:
    """The images as attacked on the first of the models (n, ...)."""
    return perturb(model, weights, images, labels, radius, attack, seed, device)[0]


def clean_accuracy(groups: Sequence[Group], splits: dict[str, Split], device: str, chunk: int) -> pd.DataFrame:
    """Accuracy of every node on splits by name."""
    rows = []
    for group in groups:
        for name, split in splits.items():
            accuracy = evaluate(group.model, group.weights, split, device, chunk).correct.double().mean(1)
            for node, value in zip(group.nodes, accuracy.tolist(), strict=True):
                rows.append((*group.kind, node, name, value))
    return pd.DataFrame(rows, columns=[*KIND, "node", "split", "value"])
