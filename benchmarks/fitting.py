"""What PLeaS takes of two ResNet20: Gram matrices and solution, against the 400 steps of Adam of its authors' code.

``python benchmarks/fitting.py`` prints a table and keeps it in benchmarks/fitting.json. Both fit the same merge, of the
size of one network, to the same 10000 images of CIFAR-10. What is left of the targets is a share of their squares, on
images that neither saw, in the mean over layers. The floor is the forward passes of both networks over the images,
without which nothing can be known of their layers. The networks are as wide as usual and trained for one epoch.
"""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.turns import keep
from lab.contestants.adam import fit_by_adam
from lab.data import load
from lab.networks import build
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin import Grams, Slots, collect, least_squares, pleas
from rebasin.expanding.expansion import expand
from rebasin.fitting.least_squares import flat_weight
from rebasin.fitting.normal_equations import equations_of, layout_of
from rebasin.merging.pleas import choose_slots
from rebasin.tracing import trace
from rebasin.weights import take

IMAGES, FRESH, BATCH, REPEATS = 10000, 1000, 250, 5
RECIPE = Recipe(
    architecture="resnet20_bn", width=16, batch_size=100, learning_rate=0.1, weight_decay=0.0005, optimiser="sgd"
)


def main() -> None:
    data = load("cifar10", 5000)
    model = build(RECIPE.architecture, data, RECIPE.width)
    weights = train(RECIPE, data, 2, [1], "cpu").last
    spec = trace(model, data.example)
    seen, fresh = data.train.sample(IMAGES).pixels, data.held_out.sample(FRESH).pixels
    batches = list(seen.split(BATCH))

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            for m in range(2):
                functional_call(model, take(weights, m), (batch,))

    seconds = {}
    _, seconds["forward passes"] = timed(forward)
    grams, seconds["gram matrices"] = timed(lambda: collect(spec, weights, batches, model=model))
    slots, seconds["matching"] = timed(lambda: choose_slots(grams)[0])
    (solved, _), seconds["solution"] = timed(lambda: least_squares(grams, slots))
    stepped, seconds["Adam"] = timed(lambda: fit_by_adam(grams, slots, seen))
    averaged = expand(slots, weights, grams.program)
    unseen = collect(spec, weights, list(fresh.split(BATCH)), model=model, seed=1)
    left = {"averaged": averaged, "closed form": solved, "Adam": stepped}
    merged = {size: pleas(grams, size=size).model for size in (1.0, 1.2)}
    parent = time_of(lambda: functional_call(model, take(weights, 0), (batches[0],)))
    table = {
        "what": f"two resnet20_bn of width {RECIPE.width}, {IMAGES} images of CIFAR-10, size 1",
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "left": {name: round(share_left(unseen, slots, own), 4) for name, own in left.items()},
        "adam_over_closed_form": round(seconds["Adam"] / (seconds["gram matrices"] + seconds["solution"]), 2),
        "runs_in_parents_time": {
            f"{size:g}": round(time_of(lambda network=network: network(batches[0])) / parent, 2)
            for size, network in merged.items()
        },
    }
    print(json.dumps(table, indent=1))
    keep(__file__, table)


def timed(work):
    """What some work gives, and the seconds that it took."""
    began = time.monotonic()
    return work(), time.monotonic() - began


@torch.no_grad()
def time_of(work) -> float:
    """The least seconds of several runs, after one that does not count."""
    work()
    return min(timed(work)[1] for _ in range(REPEATS))


def share_left(grams: Grams, slots: Slots, merged: dict[str, Tensor]) -> float:
    """What the layers of a merge leave of their targets, as a share of their squares, in the mean over layers."""
    shares = []
    for layer in grams.layers.values():
        (equations,) = equations_of(layer, layout_of(slots, layer, grams.weights), grams.weights, "averaged")
        gram, cross, energy = equations.gram.sum(0), equations.cross.sum(0), equations.energy.sum()
        flat = flat_weight(merged, layer, grams.weights)
        shares.append(float((energy + ((flat @ gram - 2 * cross) * flat).sum()) / energy))
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
