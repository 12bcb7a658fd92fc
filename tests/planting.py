"""Made-up results for the tests of the report: runs that hold what a test planted in them."""

import dataclasses
import functools
import itertools

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.data import load


def images_table(nodes):
    """The table ``images`` of notebooks/accuracy.ipynb from bits by (algorithm, number of leaves, node)."""
    rows = [(*kind, np.packbits(np.array(bits, bool)).tobytes(), len(bits)) for kind, bits in nodes.items()]
    return pd.DataFrame(rows, columns=["algorithm", "n_leaves", "node", "correct", "images"])


def planted_images(accuracy, trees, images=200):
    """Nodes of 8-leaf trees: ``accuracy`` by (algorithm, leaves), of which each node misses a little, at random."""
    hardness = np.random.default_rng(0).random(images)
    nodes = {}
    for (algorithm, size), share in accuracy.items():
        for node in range(trees * 8 // size):
            # MergeMany has the hierarchy's noise with neighbours swapped: equal shares give a mean gap of exactly 0.
            rng = np.random.default_rng((size, node ^ (algorithm == "merge_many")))
            nodes[algorithm, size, node] = hardness + rng.normal(0, 0.02, images) < share
    return images_table(nodes)


def plant(run, tables, notebook="accuracy"):
    """Let a run have these tables of a notebook."""
    results.finish(begun(notebook, run), digits(), tables)


@functools.cache
def begun(notebook, run):
    """An execution of a notebook with its defaults; fingerprinting its code is slow, and once is enough."""
    return clean(results.begin(notebook, results.declared_parameters(notebook) | {"run": run}))


@functools.cache
def digits():
    return load("digits")


def clean(experiment):
    """The experiment as from a clean tree, whatever the tree that the tests run in."""
    return dataclasses.replace(experiment, code=experiment.code | {"clean": True})


TREE_WINS = {
    ("unmerged", 1): 0.95,
    ("tree", 4): 0.85, ("merge_many", 4): 0.80, ("naive", 4): 0.4,
    ("tree", 8): 0.80, ("merge_many", 8): 0.60, ("naive", 8): 0.2,
}  # fmt: skip


KIND = ["algorithm", "mended", "n_leaves", "strength", "node"]


def one_node_per_block(algorithm, size, blocks):
    """The numbers of the nodes that attacks, perturbations and bounds are measured on: the first of each 8 leaves."""
    kind = (algorithm, "none", size, 0.0)
    # Models stopped early have the hierarchy's noise with neighbours swapped: equal shares give a mean gap of 0.
    return [
        ((*kind, block * 8 // size), np.random.default_rng((size, block ^ (algorithm == "early_stopped"))))
        for block in range(blocks)
    ]


def plant_attack(run, worst, blocks, epsilons=(0.0, 2.0, 4.0), images=200):
    """Let a run have a worst-case accuracy of ``worst`` by (algorithm, leaves), or by (algorithm, leaves, epsilon)."""
    hardness = np.random.default_rng(0).random(images)
    rows = []
    for (algorithm, size), epsilon in itertools.product({kind[:2]: None for kind in worst}, epsilons):
        share = worst.get((algorithm, size, epsilon), worst.get((algorithm, size)))
        for kind, rng in one_node_per_block(algorithm, size, blocks):
            bits = np.packbits(hardness + rng.normal(0, 0.02, images) < share)
            rows.append((*kind, epsilon, bits.tobytes(), images, "linf"))
    table = pd.DataFrame(rows, columns=[*KIND, "epsilon", "correct", "images", "norm"])
    plant(run, {"images": table}, "attack")


def plant_perturbations(run, accuracy, blocks, images=200):
    """Let a run have a mean accuracy of ``accuracy`` by (algorithm, leaves) over 45 perturbed forms of each image."""
    hardness = np.random.default_rng(0).random((45, images))
    rows = []
    for (algorithm, size), share in accuracy.items():
        for kind, rng in one_node_per_block(algorithm, size, blocks):
            counts = (hardness + rng.normal(0, 0.02, hardness.shape) < share).sum(0).astype(np.uint8)
            rows.append((*kind, counts.tobytes(), 45, images))
    plant(run, {"images": pd.DataFrame(rows, columns=[*KIND, "correct", "out_of", "images"])}, "perturbations")


def plant_regularisation(run, values, blocks, noise=0.01):
    """Let a run have ``values`` by (algorithm, leaves, metric), times the block's own scale and a little noise."""
    rows = []
    for (algorithm, size, metric), value in values.items():
        for kind, rng in one_node_per_block(algorithm, size, blocks):
            own = np.random.default_rng(kind[-1] * size // 8).lognormal(0, 1)
            rows.append((*kind, metric, value * own * np.exp(rng.normal(0, noise))))
    plant(run, {"nodes": pd.DataFrame(rows, columns=[*KIND, "metric", "value"])}, "regularisation")


ROBUST = {("unmerged", 1): 0.3, ("tree", 2): 0.4, ("tree", 8): 0.6, ("early_stopped", 8): 0.45}


REGULAR = {
    (algorithm, size, metric): value
    for metric in ("l2_norm", "lipschitz")
    for algorithm, size, value in (("unmerged", 1, 10.0), ("tree", 8, 6.0), ("naive", 8, 8.0))
}


SWAPPED = {"tree": "merge_many", "merge_many": "tree"}


TREE_LOSES = {(SWAPPED.get(algorithm, algorithm), size): share for (algorithm, size), share in TREE_WINS.items()}


BARRIER_RECIPES = {
    "digits width": {"width": 8}, "digits mlp": {"epochs": 1}, "digits sgd low": {"optimiser": "sgd"},
    "digits batch norm": {"architecture": "resnet20_bn"}, "digits layer norm": {"architecture": "resnet20_ln"},
    "digits split": {"subset": "split"}, "digits whole": {},
}  # fmt: skip


BARRIER_RECIPE = {
    "dataset": "digits", "architecture": "mlp", "width": 64, "epochs": 10, "optimiser": "adam", "learning_rate": 0.001,
    "subset": "all", "n_leaves": 2, "split": "test", "points": 25,
}  # fmt: skip


BARRIER_METRICS = [
    "loss_barrier", "accuracy_barrier", "loss_ends", "accuracy_ends", "loss_midpoint", "accuracy_midpoint", "loss_gain",
    "accuracy_gain", "loss_barrier_tempered", "temperature_ends", "temperature_midpoint",
]  # fmt: skip


def planted_barriers(recipe, pairs=8, mended="none", algorithm="weights", **told):
    """Rows of the table ``barriers``: of each metric the value told, else 0.5, with a little noise."""
    values = {metric: told.pop(metric, 0.5) for metric in BARRIER_METRICS}
    kind = (
        BARRIER_RECIPE
        | BARRIER_RECIPES.get(recipe, {})
        | {"recipe": recipe, "mended": mended, "algorithm": algorithm}
        | told
    )
    noise = np.random.default_rng(0).normal(0, 0.001, pairs)
    return [
        kind | {"metric": metric, "node": node, "value": value + noise[node]}
        for metric, value in values.items()
        for node in range(pairs)
    ]


def barriers_of_all(recipe, **told):
    """The same by every algorithm and mending."""
    kinds = [(algorithm, mended) for algorithm in ("naive", "weights") for mended in ("none", "repair")]
    return [row for algorithm, mended in kinds for row in planted_barriers(recipe, 8, mended, algorithm, **told)]
