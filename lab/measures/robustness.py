"""Attack whole groups of models, and check that the attacks do what attacks must do; tables come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.controls import Group
from lab.device import pick_device
from lab.images import Split
from lab.measures.attacks import Attack, fgsm, perturb, surviving, survivors
from lab.measures.perturbations import SETTINGS, under_perturbations
from lab.outputs import evaluate
from rebasin.progress import track
from rebasin.weights import Weights

GREY_LEVELS = 255  # epsilons are told in grey levels, as the field does
KINDS = ["algorithm", "n_leaves", "strength"]
MERGED = ("tree", "merge_many", "naive", "tree_repaired", "merge_many_repaired")


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
    with track(len(groups), f"attack in {norm}", "group") as bar:
        for group, split in zip(groups, splits, strict=True):
            worst = torch.ones(len(group.nodes), len(epsilons), len(split.labels), dtype=torch.bool)
            for loss in losses:
                for name, attack in (("fgsm", fgsm(loss, norm)), ("pgd", Attack(loss, norm, steps, restarts))):
                    survived = _survivors(group, split, epsilons, attack, seed, device, chunk)
                    worst &= survived
                    rows += _rows(group, name, loss, epsilons, survived)
            rows += _rows(group, "worst", "all", epsilons, worst)
            for position, epsilon in enumerate(epsilons):
                packed = np.packbits(worst[:, position].numpy(), axis=1)
                images += [
                    (group.algorithm, group.n_leaves, group.strength, node, epsilon, bits.tobytes(), len(split.labels))
                    for node, bits in zip(group.nodes, packed, strict=True)
                ]
            bar.update()
    table = pd.DataFrame(rows, columns=[*KINDS, "node", "attack", "loss", "epsilon", "value"]).assign(norm=norm)
    kept = pd.DataFrame(images, columns=[*KINDS, "node", "epsilon", "correct", "images"]).assign(norm=norm)
    return table, kept


def _survivors(
    group: Group, split: Split, epsilons: Sequence[float], attack: Attack, seed: int, device: str, chunk: int
) -> Tensor:
    """Which images survive: (n, epsilons, m)."""
    pixels, radii = split.pixels, [epsilon / GREY_LEVELS for epsilon in epsilons]
    return survivors(group.model, group.weights, pixels, split.labels, radii, attack, seed, pick_device(device), chunk)


def _rows(group: Group, attack: str, loss: str, epsilons: Sequence[float], survived: Tensor) -> list[tuple]:
    share = survived.double().mean(-1).tolist()
    return [
        (group.algorithm, group.n_leaves, group.strength, node, attack, loss, epsilon, value)
        for node, curve in zip(group.nodes, share, strict=True)
        for epsilon, value in zip(epsilons, curve, strict=True)
    ]


def perturbed_accuracy(
    groups: Sequence[Group], splits: Sequence[Split], seed: int, device: str, chunk: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each group on a split of its own under every perturbation at every severity; severity 0 is the clean images.

    The first table has a row per node, perturbation and severity. The second counts for each image under how many of
    all these (``out_of``, severity 0 left out) it is classified correctly, one byte an image.
    """
    rows, images = [], []
    versions: dict[tuple[int, int], list[Split]] = {}  # of a split, perturbed once for all groups
    with track(len(groups), "perturb", "group") as bar:
        for group, split in zip(groups, splits, strict=True):
            correct = under_perturbations(group.model, group.weights, split, seed, pick_device(device), chunk, versions)
            kind = (group.algorithm, group.n_leaves, group.strength)
            for position, node in enumerate(group.nodes):
                share = correct[position].double().mean(-1).tolist()
                rows += [
                    (*kind, node, *setting, value)
                    for setting, value in zip([("clean", 0), *SETTINGS], share, strict=True)
                ]
                counts = correct[position, 1:].sum(0).to(torch.uint8).numpy().tobytes()
                images.append((*kind, node, counts, len(SETTINGS), len(split.labels)))
            bar.update()
    table = pd.DataFrame(rows, columns=[*KINDS, "node", "perturbation", "severity", "value"])
    return table, pd.DataFrame(images, columns=[*KINDS, "node", "correct", "out_of", "images"])


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
        kept = surviving(group.model, weights, images, split.labels, [0.0], Attack(), seed, device, chunk)
        return kept.double().mean((1, 2)).tolist()

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
                kind = (group.algorithm, group.n_leaves, group.strength)
                each = [correct(group, group.weights, images) for images in from_outside]
                means = np.mean(each, axis=0)
                rows += [
                    (*kind, node, "outside", epsilon, value) for node, value in zip(group.nodes, means, strict=True)
                ]
                if group.algorithm in MERGED:
                    for position, node in enumerate(group.nodes):
                        one = {key: tensor[position : position + 1] for key, tensor in group.weights.items()}
                        leaf = unmerged.nodes.index(node * group.n_leaves)
                        rows.append((*kind, node, "own leaf", epsilon, *correct(group, one, from_leaves[leaf])))
            bar.update()
    return pd.DataFrame(rows, columns=[*KINDS, "node", "source", "epsilon", "value"])


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
            weights = {key: tensor[:1] for key, tensor in group.weights.items()}

            def left(attack: Attack, radius: float = radius, group: Group = group, weights: Weights = weights) -> float:
                kept = surviving(group.model, weights, pixels, split.labels, [radius], attack, seed, device)
                return float(kept.double().mean())

            found = [("clean", "", 0.0, left(Attack(), 0.0))]
            for loss in losses:
                found.append(("steps", loss, 1, left(fgsm(loss))))
                found += [("steps", loss, many, left(Attack(loss, steps=many))) for many in (5, 10, 20, 50, 100)]
                found.append(("everything", loss, float(GREY_LEVELS), left(Attack(loss, steps=steps), 1.0)))
                smaller = _scaled(group, weights, 1 / 16)
                found.append(("logits / 16", loss, steps, left(Attack(loss, steps=steps), weights=smaller)))
                found.append(("white box", loss, steps, left(Attack(loss, steps=steps))))
                made = perturb(
                    group.model, weights, pixels, split.labels, radius, Attack(loss, steps=steps), seed, device
                )[0]
                found.append(("ball", loss, epsilon, float((made - pixels).abs().max()) * GREY_LEVELS))
                found.append(("pixels", loss, 0.0, float(torch.maximum(-made, made - 1).max().clamp(min=0))))
                given = perturb(
                    group.model, outside, pixels, split.labels, radius, Attack(loss, steps=steps), seed, device
                )[0]
                kept = surviving(group.model, weights, given, split.labels, [0.0], Attack(), seed, device)
                found.append(("transfer", loss, steps, float(kept.double().mean())))
            rows += [(group.algorithm, group.n_leaves, group.strength, group.nodes[0], *one) for one in found]
            bar.update()
    return pd.DataFrame(rows, columns=[*KINDS, "node", "check", "loss", "setting", "value"])


def _scaled(group: Group, weights: Weights, factor: float) -> Weights:
    """The same models with their logits multiplied: the last layer's weights and biases."""
    last = list(weights)[-1].rpartition(".")[0]
    return {key: tensor * factor if key.rpartition(".")[0] == last else tensor for key, tensor in weights.items()}


def clean_accuracy(groups: Sequence[Group], splits: dict[str, Split], device: str, chunk: int) -> pd.DataFrame:
    """Accuracy of every node on splits by name."""
    rows = []
    for group in groups:
        for name, split in splits.items():
            accuracy = evaluate(group.model, group.weights, split, device, chunk).correct.double().mean(1)
            kind = (group.algorithm, group.n_leaves, group.strength)
            rows += [(*kind, node, name, value) for node, value in zip(group.nodes, accuracy.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=[*KINDS, "node", "split", "value"])
