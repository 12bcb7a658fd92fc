"""PLeaS as its authors' code fits it: by some hundred steps of Adam, where this package solves normal equations."""

from __future__ import annotations

import torch
from torch import Tensor

from lab.contestants.arena import Arena, Entry, of_expanded, with_measured_norms
from lab.contestants.steps import drawn_batches
from rebasin import Grams, Slots
from rebasin.expanding.expanded import expand_network
from rebasin.expanding.expansion import Heads, expand, output_keys
from rebasin.fitting.least_squares import flat_weight, put_back
from rebasin.fitting.normal_equations import Layout, layout_of
from rebasin.fitting.rows import draw_places, layer_inputs, layers_of, rows_at
from rebasin.graph import export
from rebasin.merging.pleas import choose_slots
from rebasin.weights import take

STEPS, IMAGES, RATE = 400, 32, 5e-4  # of the authors' code; images go through at once


def pleas_by_adam(arena: Arena, size: float) -> Entry | None:
    """PLeaS (Nasery et al. 2024) whose layers take 400 steps of Adam from the averaged weights, as its authors' do."""
    slots, _ = choose_slots(arena.grams, size=size, heads=arena.heads)
    network = expand_network(slots, arena.model, arena.parents, example=arena.example, heads=arena.heads)
    network = network.with_weights(fit_by_adam(arena.grams, slots, arena.inputs, heads=arena.heads, seed=arena.seed))
    return of_expanded(arena, with_measured_norms(arena, network))


@torch.no_grad()
def fit_by_adam(
    grams: Grams, slots: Slots, inputs: Tensor, *, heads: Heads = "shared", places: int = 16, seed: int = 0
) -> dict[str, Tensor]:
    """The dense weights of a merge whose layers were fitted by steps of Adam to batches of ``inputs`` (m, ...).

    Each layer by itself lessens the mean square of what it leaves of the targets of ``least_squares``: in each step on
    other images and, of a convolution, on some ``places`` of each. The rate falls to 0 as a cosine does. Of ``grams``
    only the models and the layers are used.
    """
    weights = expand(slots, grams.weights, grams.program, heads=heads)
    stacked = output_keys(grams.program) if heads == "side by side" else frozenset()
    layouts = {
        key: layout_of(slots, layer, grams.weights, stacked=key in stacked) for key, layer in grams.layers.items()
    }
    alone = [take(grams.weights, m) for m in range(grams.n)]
    fitted, models = {}, {}
    for key, layer in grams.layers.items():
        fitted[key] = flat_weight(weights, layer, grams.weights).float()
        models[key] = torch.stack([flat_weight(one, layer, grams.weights) for one in alone]).float()
    masks = {key: _mask(layout, fitted[key]) for key, layout in layouts.items()}
    generator = torch.Generator().manual_seed(seed)
    count = min(IMAGES, len(inputs))
    program = export(grams.model, (inputs[:count],))
    layers = layers_of(program)
    optimiser = torch.optim.Adam(fitted.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for chosen in drawn_batches(len(inputs), STEPS, IMAGES, generator):
        batch = inputs[chosen]
        for of_models in zip(*(layer_inputs(program, one, (batch,)) for one in alone), strict=True):
            node, x = of_models[0]
            key = layers[node][0]
            at = draw_places(node, x, places, generator)
            read = torch.stack([rows_at(node, x, at).flatten(0, 1) for _, x in of_models])  # (n, rows, columns)
            merged, targets = _merged_rows(read, models[key], layouts[key])
            left = merged @ fitted[key].T - targets
            fitted[key].grad = 2 / left.numel() * (left.T @ merged) * masks[key]
        optimiser.step()
        schedule.step()
    for key, layer in grams.layers.items():
        put_back(fitted[key], weights, layer, grams.weights)
    return weights


def _mask(layout: Layout, weight: Tensor) -> Tensor:
    """1 where an output may read a column, 0 elsewhere: (outputs, columns)."""
    mask = torch.zeros_like(weight)
    for rows, columns in layout.allowed:
        mask[rows.unsqueeze(-1), columns] = 1
    return mask


def _merged_rows(read: Tensor, models: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """What a layer of the merge reads (rows, columns), and what it should give for it (rows, outputs).

    Of ``read`` (n, rows, columns) a slot has the mean of the units that share it, and of what the models make of it the
    targets are the means likewise. A bias reads ones.
    """
    n, rows, columns = read.shape
    bias = models.shape[-1] > columns
    width, height = layout.members.shape[1], int(layout.rows.max()) + 1
    if bias:
        read = torch.cat([read, read.new_ones(n, rows, 1)], -1)
    merged, targets = read.new_zeros(rows, width), read.new_zeros(rows, height)
    for m in range(n):
        into = layout.columns[m]
        if bias:
            into = torch.cat([into, torch.tensor([width - 1])])
        merged.index_add_(1, into, read[m])
        targets.index_add_(1, layout.rows[m], read[m] @ models[m].T)
    units = torch.bincount(layout.rows.flatten(), minlength=height)
    return merged / layout.members.sum(0).clamp(min=1), targets / units
