"""Methods whose units share slots: ZipIt!, RegMean and PLeaS, of any size."""

from __future__ import annotations

import torch

from lab.contestants.arena import Arena, Entry, Together, of_expanded, with_measured_norms
from lab.contestants.whole import by_weights
from rebasin import Fitted, Permutation, Slots, collect, fit_slots, pleas, refit
from rebasin.expanding.expanded import expand_network
from rebasin.fitting.alignment import correlations, match_grams, mismatch
from rebasin.merging.budget import shaped_budget
from rebasin.merging.gains import linear_gains
from rebasin.merging.zipping import zip_slots
from rebasin.weights import Weights, stack, take


def zipped(arena: Arena, size: float) -> Entry | None:
    """ZipIt! (Stoica et al. 2024); above size 1 a partial zip. Statistics of batch norms are measured, as there."""
    slots = _zip_slots(arena, size)
    if slots is None:
        return None
    network = expand_network(slots, arena.model, arena.parents, example=arena.example, heads=arena.heads)
    return of_expanded(arena, with_measured_norms(arena, network))


def zipped_and_fitted(arena: Arena, size: float) -> Entry | None:
    """The slots of ZipIt! with layers fitted by least squares."""
    slots = _zip_slots(arena, size)
    return None if slots is None else _entry(arena, fit_slots(arena.grams, slots, heads=arena.heads))


def regmean(arena: Arena, size: float) -> Entry | None:
    """RegMean (Jin et al. 2023): least squares on the parents' own rows, nothing matched."""
    return _entry(arena, _regmean(arena)) if size == 1 else None


def regmean_refitted(arena: Arena, size: float) -> Entry | None:
    """RegMean, each layer then fitted anew to what the merge itself reads by then, as RegMean++ (Nguyen et al. 2025).

    The targets are the means of what the parents' layers give; those of RegMean++ are what they would give on the
    merge's inputs.
    """
    return _refitted(arena, _regmean(arena)) if size == 1 else None


def pleas_averaged(arena: Arena, size: float) -> Entry | None:
    """PLeaS (Nasery et al. 2024) as ``rebasin.pleas`` has it: the targets are means, the gains are by mismatch."""
    return _entry(arena, pleas(arena.grams, size=size, heads=arena.heads))


def pleas_stacked(arena: Arena, size: float) -> Entry | None:
    """PLeaS with the objective of RegMean: each parent's rows are fitted, one below the other."""
    return _entry(arena, pleas(arena.grams, size=size, objective="stacked", heads=arena.heads))


def pleas_refitted(arena: Arena, size: float) -> Entry | None:
    """PLeaS, then each layer fitted anew to what the merge itself reads by then."""
    return _refitted(arena, pleas(arena.grams, size=size, heads=arena.heads))


def by_weights_refitted(arena: Arena, size: float) -> Entry | None:
    """The mean of units matched by their weights, each layer then fitted to what the merge itself reads by then.

    No Gram matrices are needed, which take too much of many convolutional networks.
    """
    if size != 1 or arena.heads != "shared":
        return None
    slots = Slots.of_permutation(by_weights(arena))
    return _entry(arena, refit(slots, arena.parents, arena.inputs, model=arena.model, seed=arena.seed))


def pleas_tree(arena: Arena, size: float) -> Entry | None:
    """PLeaS as the node of a tree: pairs are merged, then their merges, stage by stage; of 4, 8, ... networks."""
    return _tree(arena, size, refitted=False)


def pleas_tree_refitted(arena: Arena, size: float) -> Entry | None:
    """The same, each node refitted on its own inputs before it is merged in its turn."""
    return _tree(arena, size, refitted=True)


def _tree(arena: Arena, size: float, refitted: bool) -> Entry | None:
    if size != 1 or arena.n < 4 or arena.n.bit_count() > 1 or arena.heads != "shared":
        return None
    nodes = [take(arena.parents, m) for m in range(arena.n)]
    while len(nodes) > 1:
        nodes = [_pair(arena, stack(nodes[at : at + 2]), refitted) for at in range(0, len(nodes), 2)]
    return Entry(Together(arena.model, (nodes[0],), shared=True), 1.0, 1.0, 1.0)


def pleas_by_weights(arena: Arena, size: float) -> Entry | None:
    """PLeaS of units that are matched by their weights."""
    return _entry(arena, pleas(arena.grams, size=size, permutation=by_weights(arena), heads=arena.heads))


def pleas_with_linear_gains(arena: Arena, size: float) -> Entry | None:
    """PLeaS whose gains are linear in the share of a group that is kept apart, as in the paper.

    There a whole group is worth the accuracy that was measured; here it is the mismatch that its merge would cost. At
    size 1 there is nothing to choose.
    """
    if size == 1:
        return None
    permutation = match_grams(arena.grams)
    worth = {group: float(lost.sum()) for group, lost in mismatch(arena.grams, permutation).items()}
    gains = linear_gains(arena.spec, worth)
    return _entry(arena, pleas(arena.grams, size=size, permutation=permutation, gains=gains, heads=arena.heads))


def pleas_on_noise(arena: Arena, size: float) -> Entry | None:
    """PLeaS without data: as many images of noise, uniform in the pixel range, stand for the training images."""
    noise = torch.rand(arena.inputs.shape, generator=torch.Generator().manual_seed(arena.seed))
    return _entry(arena, pleas(arena.grams_on(noise), size=size, heads=arena.heads))


def pleas_on_other_images(arena: Arena, size: float) -> Entry | None:
    """PLeaS without data: images that have to do with no task stand for the training images, where there are some."""
    if arena.other is None:
        return None
    return _entry(arena, pleas(arena.grams_on(arena.other), size=size, heads=arena.heads))


def _pair(arena: Arena, parents: Weights, refitted: bool) -> Weights:
    """The weights of a merge of two networks, which has their shape."""
    grams = collect(arena.spec, parents, arena.batches(arena.inputs), model=arena.model, seed=arena.seed)
    merge = pleas(grams)
    return (refit(merge, grams, arena.inputs, seed=arena.seed) if refitted else merge).model.weights


def _zip_slots(arena: Arena, size: float) -> Slots | None:
    """The slots of ZipIt! at this size; None for networks with units within blocks, for which it is not defined."""
    if arena.spec.inside:
        return None
    merged = None
    if size != 1:
        costs = arena.costs(arena.heads)
        merged = shaped_budget(arena.spec, costs, shape="prefix", size=size, n=arena.n, whole=arena.kept_whole).merged
    return zip_slots(arena.spec, correlations(arena.grams), merged=merged)


def _regmean(arena: Arena) -> Fitted:
    slots = Slots.of_permutation(Permutation.identity(arena.spec, (arena.n,)))
    return fit_slots(arena.grams, slots, objective="stacked", heads=arena.heads)


def _refitted(arena: Arena, merge: Fitted) -> Entry:
    return _entry(arena, refit(merge, arena.grams, arena.inputs, seed=arena.seed))


def _entry(arena: Arena, merge: Fitted) -> Entry:
    return of_expanded(arena, merge.model)
