"""Every name that a reader sees: columns and their values, what they are called, and in which colour they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

# Columns that tables share. A row is one value of one ``metric``, of one ``node``: the k-th network or merge of its
# kind. ``algorithm`` says how networks were merged, ``matcher`` how the two of a pair were matched, ``mended`` what was
# done to the merge's statistics, ``n_leaves`` of how many networks it is made, ``strength`` that of a penalty.
KIND = ("algorithm", "mended", "n_leaves", "strength")
# How networks were trained: all parts of a recipe but the data set and the epochs.
RECIPE = (
    "architecture", "width", "batch_size", "learning_rate", "weight_decay", "seed", "initial", "l1", "l2", "optimiser",
    "schedule", "schedule_epochs", "warmup_epochs", "augmented", "subset",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """What a reader calls it, and how it is drawn: the same in every figure."""

    title: str
    colour: str
    marker: str = "o"


# After Okabe and Ito, safe for the colour-blind; the pale ones darkened, so that a thin line is seen on a white page.
ALGORITHMS = {
    "hierarchy": Drawn("hierarchy", "#0072B2", "o"),
    "many": Drawn("MergeMany", "#D55E00", "s"),
    "mean": Drawn("naive average", "#009E73", "^"),
    "unmerged": Drawn("unmerged", "#7F7F7F", "D"),
    "early_stopped": Drawn("unmerged, stopped early", "#CC79A7", "v"),
    "noise": Drawn("unmerged, spoiled by noise", "#8C564B", "<"),
    "l1": Drawn("trained with L1 penalty", "#2F97D0", "P"),
    "l2": Drawn("trained with L2 penalty", "#BF8400", "X"),
    "ensemble": Drawn("ensemble of the leaves", "#8C6BB1", "*"),
    "universe": Drawn("universe", "#0072B2", "P"),
}
MATCHERS = {
    "none": Drawn("not matched", "#009E73", "^"),
    "weights": Drawn("matched by weights", "#0072B2", "o"),
    "activations": Drawn("matched by activations", "#BF8400", "s"),
    "correlation": Drawn("matched by correlation", "#D55E00", "P"),
    "straight-through": Drawn("matched straight through", "#CC79A7", "D"),
    "frank-wolfe": Drawn("matched by Frank-Wolfe", "#2F97D0", "v"),
}
# What is done to a merge's units. ``reset`` measures BatchNorm's statistics anew.
MENDINGS = {
    "none": "as merged",
    "repair": "after REPAIR",
    "repair every stage": "REPAIR at every stage",
    "reset": "statistics measured anew",
    "repair by task": "after REPAIR for each task",
}
# Methods of the arena, by family: what a merge is compared with, whole units matched, CCA, ZipIt!, RegMean, PLeaS.
CONTESTANTS = {
    "parent": Drawn("one parent", "#7F7F7F", "D"),
    "ensemble": Drawn("ensemble", "#8C6BB1", "*"),
    "head": Drawn("one parent with a new head", "#7F7F7F", "X"),
    "distilled": Drawn("matched average, distilled", "#7F7F7F", "P"),
    "mean": Drawn("naive average", "#009E73", "^"),
    "weights": Drawn("weight matching", "#0072B2", "o"),
    "weights_refitted": Drawn("weight matching, refitted", "#0072B2", "h"),
    "hierarchy": Drawn("hierarchy", "#0072B2", "P"),
    "universe": Drawn("universe (C2M3)", "#0072B2", "d"),
    "activations": Drawn("activation matching", "#0072B2", "s"),
    "correlation": Drawn("correlation matching", "#0072B2", "v"),
    "mixed": Drawn("MuDSC: weights and correlation", "#0072B2", "<"),
    "cca": Drawn("CCA Merge", "#2F97D0", "o"),
    "zip": Drawn("ZipIt!", "#CC79A7", "o"),
    "zip_fitted": Drawn("ZipIt! with least squares", "#CC79A7", "s"),
    "regmean": Drawn("RegMean", "#BF8400", "o"),
    "regmean_refitted": Drawn("RegMean, refitted on its own inputs", "#BF8400", "s"),
    "pleas": Drawn("PLeaS", "#D55E00", "o"),
    "pleas_stacked": Drawn("PLeaS with RegMean's objective", "#D55E00", "s"),
    "pleas_refitted": Drawn("PLeaS, refitted on its own inputs", "#D55E00", "P"),
    "pleas_folded": Drawn("PLeaS after folding norms", "#D55E00", "p"),
    "pleas_adam": Drawn("PLeaS by 400 steps of Adam", "#D55E00", "<"),
    "pleas_tree": Drawn("PLeaS in a tree", "#D55E00", ">"),
    "pleas_tree_refitted": Drawn("PLeaS in a tree, each node refitted", "#D55E00", "H"),
    "pleas_weights": Drawn("PLeaS with weight matching", "#D55E00", "^"),
    "pleas_linear": Drawn("PLeaS with linear gains", "#D55E00", "v"),
    "pleas_noise": Drawn("PLeaS on noise", "#D55E00", "X"),
    "pleas_other": Drawn("PLeaS on other images", "#D55E00", "D"),
}
DATASETS = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10", "text": "torch's docs"}
INITIALS = {"torch": "PyTorch's default", "lecun_normal": "LeCun-normal"}
OPTIMISERS = {"adam": "Adam", "sgd": "SGD"}
SUBSETS = {"all": "all images", "half": "a random half of the images", "split": "images shared out by class"}

# Pixels are stored in so many steps from black to white; radii of attacks are counted in them, as the field does.
GREY_LEVELS = 255
# ``worst`` is what survives every attack with every loss.
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD", "worst": "worst case"}
LOSSES = {"cross_entropy": "cross-entropy", "margin": "margin"}
# Names of perturbations, and what the amount that a severity stands for is measured in.
PERTURBATIONS = {
    "gaussian_noise": ("Gaussian noise", "standard deviation, of the pixel range"),
    "uniform_noise": ("uniform noise", "largest change, of the pixel range"),
    "salt_and_pepper": ("salt and pepper", "share of values that become 0 or 1"),
    "blur": ("blur", "standard deviation, pixels"),
    "brightness": ("brightness", "added to the largest channel, of the pixel range"),
    "contrast": ("contrast", "share kept of the contrast"),
    "pixelate": ("pixelation", "share kept of a side"),
    "jpeg": ("JPEG", "quality, of 100"),
    "rotation": ("rotation", "degrees"),
}


def title_of(algorithm: str, mended: str = "none") -> str:
    """What a reader calls a kind of network: ``hierarchy after REPAIR``."""
    title = ALGORITHMS[algorithm].title
    return title if mended == "none" else f"{title} {MENDINGS[mended]}"
