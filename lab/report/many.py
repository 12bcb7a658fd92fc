"""MergeMany of five networks, and of networks that saw half of the images each: loss, accuracy and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS
from lab.report.claims import FEWEST_FOR_VERDICT, contrast_of_nodes, picked
from lab.report.draw import ink, legend_below, on_page, width
from lab.report.facts import FEW, OPEN, Facts, reads
from lab.report.statistics import Interval, interval, less_in_percent
from lab.report.words import decimal, hundredths, nats, points

# The paper's table of five MNIST networks: test loss and accuracy of each, and of their merge.
PAPER_MEMBERS = {"loss": (0.1153, 0.1531, 0.1229, 0.1108, 0.1443), "accuracy": (0.9856, 0.9854, 0.9855, 0.9865, 0.9871)}
PAPER_MERGED = {"loss": 0.0727, "accuracy": 0.9831}
PAPER_EPOCHS = 100
CLOSE = 1.0  # points of calibration error: what claim G4 calls near to the ensemble's
LARGEST, SMALLEST = 120, 14  # square points: the area of a mark for all images, and for very few
RAREST = 0.005  # the share of images below which a bin is not drawn: its accuracy is mostly chance
NAMES = {
    "unmerged": "inputs",
    "many": ALGORITHMS["many"].title,
    "ensemble": "ensemble",
    "mean": ALGORITHMS["mean"].title,
}


@reads("many")
def recipe(run: str) -> Facts:
    """How many networks were trained for how long; ``as long`` as the paper's, or ``shorter``."""
    given = results.provenance(run, "many")["parameters"]
    all_images, halves = given["mnist_networks"], given["half_networks"]
    epochs = {"five_epochs": all_images["epochs"][-1], "half_epochs": halves["epochs"][-1]}
    values = epochs | {"half_models": halves["models"], "paper_epochs": PAPER_EPOCHS}
    shorter = min(epochs.values()) < PAPER_EPOCHS
    return Facts("shorter" if shorter else "as long", {name: str(value) for name, value in values.items()})


@reads("many")
def five(run: str) -> Facts:
    """By how many percent MergeMany of five lowers the test loss, and at what price in accuracy.

    The outcome is ``lower``, ``higher`` or ``open``; of too few groups ``too few, lower`` or ``too few, higher``.
    """
    nodes = of_groups(run, "all", 5)
    fall = loss_fall(nodes)
    price = difference(nodes, "accuracy", "unmerged", "many")
    loss, accuracy = (float(np.mean(PAPER_MEMBERS[metric])) for metric in ("loss", "accuracy"))
    return Facts(
        _side(fall, 0.0, "lower", "higher"),
        {
            "fall": points(fall),
            "paper_fall": decimal(100 * (1 - PAPER_MERGED["loss"] / loss), 1),
            "price": hundredths(price),
            "paper_price": decimal(100 * (accuracy - PAPER_MERGED["accuracy"]), 2),
            "n": str(fall.n),
            "needed": str(FEWEST_FOR_VERDICT),
        },
    )


@reads("many")
def small_groups(run: str) -> Facts:
    """How well the merges of the smallest groups on halves are calibrated: see ``_calibration``."""
    return _calibration(run, "half", half_sizes(run)[0])


@reads("many")
def large_groups(run: str) -> Facts:
    """How well the merges of the largest groups on halves are calibrated: see ``_calibration``."""
    return _calibration(run, "half", half_sizes(run)[-1])


@reads("many")
def five_calibrated(run: str) -> Facts:
    """How well the merges of five networks are calibrated that were trained on all images: see ``_calibration``."""
    return _calibration(run, "all", 5)


def _calibration(run: str, subset: str, n_leaves: int) -> Facts:
    """Calibration errors of merges, of their inputs and of their ensembles, in points.

    The outcome is that against the inputs (``better``, ``worse``, ``open``) and that against the ensemble: ``near``,
    within a point, ``far`` or ``open``; as in ``worse, far``. Of too few groups it is that of their means:
    ``too few, worse, far``.
    """
    nodes = of_groups(run, subset, n_leaves)
    gain = difference(nodes, "calibration_error", "unmerged", "many")
    behind = difference(nodes, "calibration_error", "many", "ensemble")
    beside = _side(gain, 0.0, "better", "worse"), _side(behind, CLOSE, "far", "near").removeprefix(f"{FEW}, ")
    return Facts(
        ", ".join(beside),
        {
            "inputs": hundredths(percent(nodes, "unmerged", "calibration_error")),
            "merged": hundredths(percent(nodes, "many", "calibration_error")),
            "ensemble": hundredths(percent(nodes, "ensemble", "calibration_error")),
            "size": str(n_leaves),
            "n": str(gain.n),
        },
    )


@reads("many")
def accuracy(run: str) -> Facts:
    """Accuracy of the merges of the smallest groups on halves, and of their inputs: ``lower``, ``higher`` or ``open``.

    Of too few groups ``too few, lower`` or ``too few, higher``.
    """
    nodes = of_groups(run, "half", half_sizes(run)[0])
    lost = difference(nodes, "accuracy", "unmerged", "many")
    merged, inputs = (hundredths(percent(nodes, name, "accuracy")) for name in ("many", "unmerged"))
    values = {"merged": merged, "inputs": inputs, "lost": hundredths(lost)}
    return Facts(_side(lost, 0.0, "lower", "higher"), values)


@reads("many")
def sureness(run: str) -> Facts:
    """How far confidence and accuracy lie apart in the smallest groups on halves, in points.

    The outcome says it of the inputs and of the merges, in the mean over groups: ``surer, less sure`` than right.
    """
    bins = of_groups(run, "half", half_sizes(run)[0], "reliability")
    by = {"inputs": surer(bins, "unmerged"), "merged": surer(bins, "many")}
    words = ["surer" if beyond > 0 else "less sure" for beyond in by.values()]
    return Facts(", ".join(words), {name: decimal(abs(beyond), 1) for name, beyond in by.items()})


@reads("many")
def tempered(run: str) -> Facts:
    """What the best temperatures leave of the calibration errors of the smallest groups on halves, in points.

    The outcome is whether more is left of the merges' error than of their inputs': ``more``, ``less`` or ``open``; of
    too few groups ``too few, more`` or ``too few, less``.
    """
    nodes = of_groups(run, "half", half_sizes(run)[0])
    metric = "calibration_error_tempered"
    merged, inputs = (hundredths(percent(nodes, name, metric)) for name in ("many", "unmerged"))
    beyond = difference(nodes, metric, "many", "unmerged")
    return Facts(_side(beyond, 0.0, "more", "less"), {"merged": merged, "inputs": inputs})


@reads("many")
def five_table(run: str) -> pd.DataFrame:
    """Loss and accuracy of five networks and of what is made of them, beside the paper's."""
    nodes = of_groups(run, "all", 5)
    members = of_groups(run, "all", 5, "members")
    ours = {name: nodes[nodes["algorithm"] == name] for name in NAMES}
    theirs = {
        "each network": {metric: _range(values, metric) for metric, values in PAPER_MEMBERS.items()},
        "unmerged": {metric: _text(np.mean(values), metric) for metric, values in PAPER_MEMBERS.items()},
        "many": {metric: _text(value, metric) for metric, value in PAPER_MERGED.items()},
    }
    rows = []
    for name, table in {"each network": members, **ours}.items():
        row = {"network": "inputs, their mean" if name == "unmerged" else NAMES.get(name, name)}
        for split in ("test", "train"):
            for metric, unit in (("loss", "nats"), ("accuracy", "%")):
                values = picked(table, {"split": split, "metric": metric})["value"]
                own = _range(values, metric) if name == "each network" else _text(values, metric)
                row[f"{split} {metric} ({unit})"] = own
                if split == "test":
                    row[f"the paper's {metric}"] = theirs.get(name, {}).get(metric, "–")
        rows.append(row)
    return pd.DataFrame(rows)


@reads("many")
def calibration_table(run: str) -> pd.DataFrame:
    """Loss, accuracy and calibration error of every kind of group on test images."""
    rows = []
    for subset, size in [("all", 5), *(("half", size) for size in half_sizes(run))]:
        nodes = of_groups(run, subset, size)
        for algorithm, name in NAMES.items():
            loss = _of_nodes(nodes, algorithm, "loss")
            rows.append(
                {
                    "models": str(size),
                    "trained on": "all images" if subset == "all" else "halves",
                    "network": name,
                    "test loss (nats)": nats(loss),
                    "accuracy (%)": hundredths(percent(nodes, algorithm, "accuracy")),
                    "calibration error (points)": hundredths(percent(nodes, algorithm, "calibration_error")),
                    "with a temperature": hundredths(percent(nodes, algorithm, "calibration_error_tempered")),
                    "n": loss.n,
                }
            )
    return pd.DataFrame(rows)


@reads("many")
def reliability_diagram(run: str) -> Figure:
    """Accuracy of the answers of each bin of confidence, over all groups on halves: a panel for each size of group.

    The larger a mark, the more images are answered with such confidence.
    """
    sizes, size = half_sizes(run), (width(), 0.7 + width() / 2)
    figure, panels = plt.subplots(1, len(sizes), figsize=size, sharex=True, sharey=True, squeeze=False)
    for number, axes in zip(sizes, panels[0], strict=True):
        table = of_groups(run, "half", number, "reliability")
        axes.plot([0, 100], [0, 100], color=ink(), linewidth=1, zorder=1)
        for algorithm in ("unmerged", "many", "ensemble"):
            drawn, bins = ALGORITHMS[algorithm], pooled(table[table["algorithm"] == algorithm])
            x, y, colour = 100 * bins["confidence"], 100 * bins["accuracy"], on_page(drawn.colour)
            axes.plot(x, y, color=colour, linewidth=1.5)
            area = np.maximum(LARGEST * bins["share"], SMALLEST)
            axes.scatter(x, y, area, color=colour, marker=drawn.marker, label=NAMES[algorithm])
        axes.set_title(f"groups of {number}")
        axes.set(xlabel="confidence (%)", xlim=(0, 103), ylim=(0, 103), aspect="equal")
    panels[0, 0].set_ylabel("accuracy (%)")
    legend_below(figure, panels[0, 0])
    for handle in figure.legends[0].legend_handles:
        handle.set_sizes([50])
    return figure


def half_sizes(run: str) -> list[int]:
    """The sizes of the groups of networks trained on halves, the smallest first."""
    nodes = results.read(run, "many", "nodes")
    return sorted(picked(nodes, {"subset": "half"})["n_leaves"].unique().tolist())


def of_groups(run: str, subset: str, n_leaves: int, table: str = "nodes") -> pd.DataFrame:
    """A table's rows about groups of so many networks, each trained on ``all`` of the images or on ``half``."""
    return picked(results.read(run, "many", table), {"subset": subset, "n_leaves": n_leaves})


def loss_fall(nodes: pd.DataFrame) -> Interval:
    """By how many percent the merges' test loss lies below the mean of their inputs', in the geometric mean."""
    terms = [{"algorithm": "unmerged", "weight": 1}, {"algorithm": "many", "weight": -1}]
    logs = interval(contrast_of_nodes(picked(nodes, {"split": "test", "metric": "loss"}), terms, "%"))
    return less_in_percent(logs)


def difference(nodes: pd.DataFrame, metric: str, first: str, second: str) -> Interval:
    """One kind of network minus another, group by group, on test images, in points."""
    terms = [{"algorithm": first, "weight": 1}, {"algorithm": second, "weight": -1}]
    return interval(contrast_of_nodes(picked(nodes, {"split": "test", "metric": metric}), terms, "points"))


def percent(nodes: pd.DataFrame, algorithm: str, metric: str) -> Interval:
    """A share on test images, in percent."""
    share = _of_nodes(nodes, algorithm, metric)
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n)


def surer(bins: pd.DataFrame, algorithm: str) -> float:
    """By how much the mean confidence lies above the accuracy, in points, in the mean over nodes."""
    rows = bins[bins["algorithm"] == algorithm]
    beyond = rows["share"] * (rows["confidence"] - rows["accuracy"])  # NaN, and left out, where no answer is
    return 100 * float(beyond.groupby(rows["node"]).sum().mean())


def pooled(bins: pd.DataFrame) -> pd.DataFrame:
    """Confidence, accuracy and share of each bin over all nodes, each node counted by its share, without rare bins."""
    columns = ["confidence", "accuracy"]
    weighted = bins[columns].mul(bins["share"], axis=0)  # NaN, and left out, where no answer is
    means = weighted.groupby(bins["bin"]).sum().div(bins.groupby("bin")["share"].sum(), axis=0)
    means["share"] = bins.groupby("bin")["share"].mean()
    return means[means["share"] >= RAREST]


def _of_nodes(nodes: pd.DataFrame, algorithm: str, metric: str) -> Interval:
    """A metric on test images as the table has it."""
    return interval(picked(nodes, {"algorithm": algorithm, "metric": metric, "split": "test"})["value"].to_numpy())


def _side(value: Interval, bound: float, above: str, below: str) -> str:
    """The word for an interval above or below a bound, or ``open``; of too few groups, that for their mean."""
    if value.n < FEWEST_FOR_VERDICT:
        return f"{FEW}, {above if value.mean > bound else below}"
    return above if value.low > bound else below if value.high < bound else OPEN


def _text(values: Any, metric: str) -> str:
    """Loss in nats, accuracy in percent, of one network or of several nodes."""
    of = interval(np.atleast_1d(values) * (1 if metric == "loss" else 100))
    return nats(of) if metric == "loss" else hundredths(of)


def _range(values: Sequence[float], metric: str) -> str:
    """From the least to the most."""
    return f"{_text(min(values), metric)} to {_text(max(values), metric)}"
