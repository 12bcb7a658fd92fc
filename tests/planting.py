"""Made-up results for the tests of the report: runs that hold what a test planted in them."""

import dataclasses
import functools
import itertools
from dataclasses import asdict

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.data import load
from lab.measures.paths import path_barriers
from lab.training.plan import read_networks
from lab.training.recipe import Recipe


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
            rng = np.random.default_rng((size, node ^ (algorithm == "many")))
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
    ("hierarchy", 4): 0.85, ("many", 4): 0.80, ("mean", 4): 0.4,
    ("hierarchy", 8): 0.80, ("many", 8): 0.60, ("mean", 8): 0.2,
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


ROBUST = {("unmerged", 1): 0.3, ("hierarchy", 2): 0.4, ("hierarchy", 8): 0.6, ("early_stopped", 8): 0.45}


REGULAR = {
    (algorithm, size, metric): value
    for metric in ("l2_norm", "lipschitz")
    for algorithm, size, value in (("unmerged", 1, 10.0), ("hierarchy", 8, 6.0), ("mean", 8, 8.0))
}


SWAPPED = {"hierarchy": "many", "many": "hierarchy"}


TREE_LOSES = {(SWAPPED.get(algorithm, algorithm), size): share for (algorithm, size), share in TREE_WINS.items()}


BARRIER_RECIPES = {
    "digits width": {"section": "width", "width": 8},
    "digits mlp": {"section": "epochs", "epochs": 1},
    "digits sgd low": {"section": "failures", "optimiser": "sgd"},
    "digits batch norm": {"section": "norms", "architecture": "resnet20_bn"},
    "digits layer norm": {"section": "norms", "architecture": "resnet20_ln"},
    "digits split": {"section": "split", "subset": "split"},
    "digits whole": {"section": "split"},
}
BARRIER_RECIPE = {"dataset": "digits", "epochs": 10, "n_leaves": 2, "split": "test", "points": 25} | asdict(
    Recipe(width=64)
)
PATH_METRICS = [
    f"{metric}_{name}"
    for metric in ("loss", "accuracy")
    for name in ("barrier", "above_line", "barrier_of_three", "ends", "midpoint", "gain")
]
BARRIER_METRICS = [*PATH_METRICS, "loss_barrier_tempered", "temperature_ends", "temperature_midpoint"]


def planted_barriers(recipe, pairs=8, mended="none", matcher="weights", **changes):
    """Rows of the table ``barriers``: of each metric the value among the changes, else 0.5, with a little noise.

    Other changes are columns. The barrier of three points is the whole one unless it is changed, too.
    """
    values = {metric: changes.pop(metric) for metric in BARRIER_METRICS if metric in changes}
    for metric in ("loss", "accuracy"):
        values.setdefault(f"{metric}_barrier_of_three", values.get(f"{metric}_barrier", 0.5))
    columns = {"recipe": recipe, "mended": mended, "matcher": matcher}
    columns = BARRIER_RECIPE | BARRIER_RECIPES.get(recipe, {}) | columns | changes
    noise = np.random.default_rng(0).normal(0, 0.001, pairs)
    return [
        columns | {"metric": metric, "node": node, "value": values.get(metric, 0.5) + noise[node]}
        for metric in BARRIER_METRICS
        for node in range(pairs)
    ]


# What the midpoint of two leaves has, by (matcher, metric); the ends have 0.9 and 0.3.
HIGH_BARRIERS = {
    ("weights", "accuracy"): 0.7, ("weights", "loss"): 0.6, ("none", "accuracy"): 0.2, ("none", "loss"): 2.0
}  # fmt: skip


def planted_paths(middle):
    """The table ``paths`` of notebooks/accuracy.ipynb: four pairs of leaves with these midpoints, a little apart."""
    rows = []
    for (matcher, metric), value in middle.items():
        ends = 0.9 if metric == "accuracy" else 0.3
        for node in range(4):
            for lam, at in ((0.0, ends), (0.5, value + 0.001 * node), (1.0, ends)):
                rows += [(matcher, 2, node, split, lam, metric, at) for split in ("train", "test")]
    table = pd.DataFrame(rows, columns=["matcher", "n_leaves", "node", "split", "lam", "metric", "value"])
    return table.assign(epochs=20)


def barriers_on(paths):
    """The table ``barriers`` of notebooks/accuracy.ipynb, of these paths."""
    networks = read_networks(results.declared_parameters("accuracy")["networks"])
    return path_barriers(paths).assign(**networks.columns(20))


def plant_accuracy(run, accuracy, trees, middle=HIGH_BARRIERS):
    """Let a run have all tables of notebooks/accuracy.ipynb; losses are twice the errors."""
    images = planted_images(accuracy, trees)
    rows = []
    for node in images.itertuples():
        share = np.unpackbits(np.frombuffer(node.correct, np.uint8), count=node.images).mean()
        for metric, value in (("accuracy", share), ("loss", 2 * (1 - share))):
            rows += [(node.algorithm, node.n_leaves, node.node, split, metric, value) for split in ("train", "test")]
    nodes = pd.DataFrame(rows, columns=["algorithm", "n_leaves", "node", "split", "metric", "value"])
    paths = planted_paths(middle)
    plant(run, {"images": images, "nodes": nodes, "paths": paths, "barriers": barriers_on(paths)})


def plant_conditions(run, gaps, models=8, initial="torch"):
    """Let a run have the table of notebooks/conditions.ipynb, with these gaps in points: (as merged, after REPAIR).

    They are those of widths 32, 64 and 128, or by recipe: (width, initial weights, epochs, weight decay).
    """
    if not isinstance(gaps, dict):
        gaps = {(width, initial, 3, 0.0): both for width, both in zip((32, 64, 128), gaps, strict=False)}
    rows = []
    for recipe, both in gaps.items():
        rows.append((*recipe, "unmerged", "none", 1, 0, 0.9))
        for mended, gap in zip(("none", "repair"), both, strict=True):
            for algorithm, value in (("hierarchy", 0.5 + gap / 100), ("many", 0.5), ("mean", 0.2)):
                rows.append((*recipe, algorithm, mended, 8, 0, value))
    columns = ["width", "initial", "epochs", "weight_decay", "algorithm", "mended", "n_leaves", "node", "value"]
    table = pd.DataFrame(rows, columns=columns).assign(metric="accuracy")
    given = results.declared_parameters("conditions") | {"run": run, "condition_networks": {"models": models}}
    results.finish(clean(results.begin("conditions", given)), digits(), {"conditions": table})


def planted_comparison(recipes, merged, repaired, every_stage, models):
    """The table ``nodes`` of notebooks/comparison.ipynb: gaps in points at 2, 4 and 8 leaves, by recipe and mending.

    ``merged`` has the gaps of each of the recipes (a dict of columns); those after REPAIR are alike for all. MergeMany
    has 50 % as merged and 60 % after REPAIR, and the naive average 10 and 20; gaps of nodes differ by 0.2 points. Nodes
    come in no order.
    """
    rows = []
    for recipe, gaps in zip(recipes, merged, strict=True):
        leaves = {"algorithm": "unmerged", "mended": "none", "n_leaves": 1, "value": 0.9}
        rows += [recipe | leaves | {"node": node} for node in range(models)]
        for at, size in enumerate((2, 4, 8)):
            values = {
                ("many", "none"): 50, ("many", "repair"): 60,
                ("mean", "none"): 10, ("mean", "repair"): 20,
                ("hierarchy", "none"): 50 + gaps[at], ("hierarchy", "repair"): 60 + repaired[at],
                ("hierarchy", "repair every stage"): 60 + every_stage[at],
            }  # fmt: skip
            for (algorithm, mended), node in itertools.product(values, reversed(range(models // size))):
                noise = 0.1 * (-1) ** node if algorithm == "hierarchy" else 0
                kind = {"algorithm": algorithm, "mended": mended, "n_leaves": size, "node": node}
                rows.append(recipe | kind | {"value": (values[algorithm, mended] + noise) / 100})
    return pd.DataFrame(rows).assign(metric="accuracy", split="test")


def barriers_of_all(recipe, **changes):
    """The same by every matcher and mending."""
    kinds = [(matcher, mended) for matcher in ("none", "weights") for mended in ("none", "repair")]
    return [row for matcher, mended in kinds for row in planted_barriers(recipe, 8, mended, matcher, **changes)]


def plant_barriers(rows, run="mine"):
    """Let a run have these rows of the table ``barriers`` of notebooks/barriers.ipynb."""
    plant(run, {"barriers": pd.DataFrame(rows)}, "barriers")


def planted_path(loss, accuracy, matcher="weights", epochs=100, node=0, split="test"):
    """A path over three points, as rows of the table ``paths`` of notebooks/mnist.ipynb."""
    rows = [
        (matcher, epochs, node, 2, split, lam, metric, value)
        for metric, values in (("loss", loss), ("accuracy", accuracy))
        for lam, value in zip((0.0, 0.5, 1.0), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["matcher", "epochs", "node", "n_leaves", "split", "lam", "metric", "value"])


MNIST_HEIGHTS = {"none": 0.9, "weights": 0.001, "activations": 0.002, "straight-through": 0.001}


def plant_mnist(heights=MNIST_HEIGHTS, pairs=8, epochs=(1, 100), early=0.6, run="mine", parameters=None, **values):
    """Let a run have the tables of notebooks/mnist.ipynb, with values a little different from pair to pair.

    Barriers are ``heights`` by matcher after the last of the epochs, ``early`` before; other metrics 0.5, or as named.
    """
    rows, paths = [], []
    for epoch, node in itertools.product(epochs, range(pairs)):
        last = epoch == epochs[-1]
        for matcher, height in heights.items():
            if not last and matcher not in ("none", "weights"):
                continue
            for split, metric in itertools.product(("train", "test") if last else ("test",), PATH_METRICS):
                value = values.get(metric, height if "barrier" in metric or "line" in metric else 0.5)
                rows.append(
                    (matcher, epoch, node, split, metric, (value if last else early) + 1e-5 * node * (1 + last))
                )
    for matcher, split, node in itertools.product(heights, ("train", "test"), range(pairs)):
        height = heights[matcher]
        paths.append(
            planted_path((0.1, 0.1 + height, 0.1), (0.98, 0.98 - height, 0.98), matcher, epochs[-1], node, split)
        )
    recipe = asdict(Recipe(width=64, batch_size=64, learning_rate=0.003, initial="lecun_normal"))
    columns = {"mended": "none", "points": 25, "n_leaves": 2, "dataset": "digits"} | recipe
    barriers = pd.DataFrame(rows, columns=["matcher", "epochs", "node", "split", "metric", "value"]).assign(**columns)
    begun_once = begun("mnist", run)
    given = begun_once.parameters | (parameters or {})
    given["mnist_networks"] = given["mnist_networks"] | {"epochs": list(epochs)}
    experiment = dataclasses.replace(begun_once, parameters=given)
    results.finish(experiment, digits(), {"paths": pd.concat(paths), "barriers": barriers}, models="planted")
