"""Every name that a reader sees, and its colour."""

from __future__ import annotations

# One colour per way of merging, the same in every figure: Okabe and Ito's palette, safe for the colour-blind.
COLOURS = {
    "tree": "#0072B2", "merge_many": "#D55E00", "naive": "#009E73", "unmerged": "#999999",
    "early_stopped": "#CC79A7", "l1": "#E69F00", "l2": "#56B4E9", "ensemble": "#8C6BB1",
    "tree_repaired": "#0072B2", "merge_many_repaired": "#D55E00",
}  # fmt: skip


LABELS = {
    "tree": "hierarchy", "merge_many": "MergeMany", "naive": "naive average", "unmerged": "unmerged",
    "early_stopped": "unmerged, stopped early", "l1": "trained with L1 penalty", "l2": "trained with L2 penalty",
    "ensemble": "ensemble of the leaves", "tree_repaired": "hierarchy after REPAIR",
    "merge_many_repaired": "MergeMany after REPAIR",
}  # fmt: skip


DATASETS = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}


INITIALS = {"torch": "PyTorch's default", "lecun_normal": "LeCun-normal"}


MARKERS = {
    "tree": "o", "merge_many": "s", "naive": "^", "unmerged": "D", "early_stopped": "v", "l1": "P", "l2": "X",
    "ensemble": "*", "tree_repaired": "o", "merge_many_repaired": "s",
}  # fmt: skip
