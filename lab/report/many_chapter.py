"""What the chapter on MergeMany says: sentences and tables made from notebooks/many.ipynb's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import LABELS
from lab.measures.many import ALGORITHMS
from lab.report import tabs as report
from lab.report.claims import FEWEST_FOR_VERDICT, contrast_of_nodes, picked
from lab.report.many_figures import half_groups
from lab.report.statistics import Interval, interval
from lab.report.words import decimal, hundredths, nats, points, side

# The paper's table of five MNIST networks: test loss and accuracy of each, and of their merge.
PAPER_MEMBERS = {"loss": (0.1153, 0.1531, 0.1229, 0.1108, 0.1443), "accuracy": (0.9856, 0.9854, 0.9855, 0.9865, 0.9871)}
PAPER_MERGED = {"loss": 0.0727, "accuracy": 0.9831}
SHOWN = 3  # groups of five that are shown network by network
CLOSE = 1.0  # points of calibration error: what claim G4 calls near to the ensemble's
NAMES = {
    "unmerged": "inputs, their mean",
    **{name: LABELS[name].removesuffix(" of the leaves") for name in ALGORITHMS if name != "unmerged"},
}


def findings() -> dict[str, str]:
    """The chapter's findings, a paragraph each, by name."""
    if not report.runs("many"):
        return {"five": "Not run yet.", "calibration": "", "temperature": "", "recipe": ""}
    run = report.shown_run("many")
    nodes = results.read(run, "many", "nodes")
    return {
        "five": five_finding(nodes),
        "calibration": " ".join(calibration_finding(nodes, group) for group in half_groups(nodes)),
        "temperature": temperature_finding(nodes, results.read(run, "many", "reliability")),
        "recipe": recipe_note(results.provenance(run, "many")["parameters"]),
    }


def five_finding(nodes: pd.DataFrame) -> str:
    """By how many percent MergeMany of five changes the test loss, and at what price in accuracy."""
    change = loss_change(nodes, "five")
    lost = difference(nodes, "five", "accuracy", "unmerged", "merge_many")
    theirs = 100 * (PAPER_MERGED["loss"] / np.mean(PAPER_MEMBERS["loss"]) - 1)
    price = 100 * (np.mean(PAPER_MEMBERS["accuracy"]) - PAPER_MERGED["accuracy"])
    if change.n < FEWEST_FOR_VERDICT:
        opening = (
            "This run has too few groups of five to say whether merging them lowers the test loss</strong> "
            f"(n = {change.n}, {FEWEST_FOR_VERDICT} are needed)"
        )
    else:
        opening = side(
            change, 0.0,
            "Five networks merged into one have a higher test loss than they have</strong>, against the paper",
            "Five networks merged into one have a lower test loss than they have</strong>, as the paper says",
            "Whether five networks merged into one have a lower test loss is not decided</strong>",
        )  # fmt: skip
    return (
        f"<strong>{opening}: MergeMany changes it by {points(change, signed=True)} %, in the paper's table by "
        f"{decimal(theirs, 1, signed=True)} %, and costs {hundredths(lost)} points of accuracy, in the paper "
        f"{price:.2f} (n = {change.n})."
    )


def calibration_finding(nodes: pd.DataFrame, group: str) -> str:
    """Whether the merge of a group is better calibrated than its inputs, and nearly as well as their ensemble."""
    size = group.removeprefix("half ")
    gain = difference(nodes, group, "calibration_error", "unmerged", "merge_many")
    behind = difference(nodes, group, "calibration_error", "merge_many", "ensemble")
    if gain.n < FEWEST_FOR_VERDICT:
        opening = (
            f"Too few groups of {size} to say how well their merges are calibrated</strong> "
            f"(n = {gain.n}, {FEWEST_FOR_VERDICT} are needed)"
        )
    else:
        better = side(
            gain, 0.0, "are better calibrated than their inputs", "are worse calibrated than their inputs",
            "cannot be told apart from their inputs in calibration",
        )  # fmt: skip
        near = side(
            behind, CLOSE, "more than a point above their ensembles'", "within a point of their ensembles'",
            "perhaps within a point of their ensembles'",
        )  # fmt: skip
        opening = f"Merges of {size} networks {better}, and their error is {near}</strong>"
    kinds = {"merge_many": "merged", "unmerged": "of the inputs", "ensemble": "of the ensemble"}
    errors = ", ".join(f"{hundredths(error(nodes, group, kind))} {words}" for kind, words in kinds.items())
    right = ", ".join(f"{hundredths(percent(nodes, group, kind))}" for kind in kinds)
    return (
        f"<strong>{opening}: the expected calibration error is, in points, {errors}, and the accuracy, in percent, "
        f"{right} (n = {gain.n})."
    )


def temperature_finding(nodes: pd.DataFrame, bins: pd.DataFrame) -> str:
    """How much surer inputs and merges are than they are right, and what is left of that at the best temperatures."""
    told = []
    for group in half_groups(nodes):
        sure = {kind: _surer(bins, group, kind) for kind in ("unmerged", "merge_many")}
        tempered = [hundredths(error(nodes, group, kind, "calibration_error_tempered")) for kind in sure]
        words = [f"{decimal(abs(by), 1)} points {'surer' if by > 0 else 'less sure'}" for by in sure.values()]
        told.append(
            f"of groups of {group.removeprefix('half ')}, the inputs are {words[0]} than they are right, the merges "
            f"{words[1]}; with a temperature chosen for each their errors are {tempered[0]} and {tempered[1]} points "
            f"(n = {error(nodes, group, 'merge_many').n})"
        )
    return " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in told)


def _surer(bins: pd.DataFrame, group: str, algorithm: str) -> float:
    """By how much the mean confidence is above the accuracy, in points, over nodes."""
    rows = picked(bins, {"group": group, "algorithm": algorithm})
    rows = rows[rows["share"] > 0]
    return 100 * float((rows["share"] * (rows["confidence"] - rows["accuracy"])).groupby(rows["node"]).sum().mean())


def recipe_note(parameters: Mapping[str, Any]) -> str:
    """How long the networks were trained, and how many groups that makes."""
    halves = parameters["half_models"]
    made = " and ".join(f"{halves // size} of {size}" for size in parameters["half_sizes"])
    return (
        f"Here the five are trained for {parameters['mnist_epochs'][-1]} epochs, and the {halves} networks on halves, "
        f"which make groups ({made}), for {parameters['half_epochs']} epochs of their half."
    )


def fives_table(run: str) -> pd.DataFrame:
    """Every network of the first groups of five and its group's merge, beside the paper's, as texts."""
    tables = {name: results.read(run, "many", name) for name in ("members", "nodes")}
    five = {name: table[table["group"] == "five"] for name, table in tables.items()}
    rows = [
        {"group": "the paper's", "network": str(number), "test loss": f"{loss:.4f}", "test accuracy": f"{accuracy:.4f}"}
        for number, (loss, accuracy) in enumerate(zip(*PAPER_MEMBERS.values(), strict=True), 1)
    ]
    means = {metric: float(np.mean(PAPER_MEMBERS[metric])) for metric in PAPER_MEMBERS}
    for name, of in ((NAMES["unmerged"], means), (NAMES["merge_many"], PAPER_MERGED)):
        rows.append({"group": "the paper's", "network": name})
        rows[-1] |= {f"test {metric}": f"{of[metric]:.4f}" for metric in ("loss", "accuracy")}
    for node in sorted(five["members"]["node"].unique())[:SHOWN]:
        members = five["members"][five["members"]["node"] == node]
        for member, part in members.groupby("member"):
            rows.append({"group": f"ours, {node + 1}", "network": str(member + 1)} | _measured(part))
        for algorithm in ALGORITHMS:
            part = picked(five["nodes"], {"node": node, "algorithm": algorithm})
            rows.append({"group": f"ours, {node + 1}", "network": NAMES[algorithm]} | _measured(part))
    return pd.DataFrame(rows).fillna("–")


def calibration_table(run: str) -> pd.DataFrame:
    """Loss, accuracy and calibration error of every kind of group on test images, as texts."""
    nodes = results.read(run, "many", "nodes")
    rows = []
    for group in ("five", *half_groups(nodes)):
        for algorithm in ALGORITHMS:
            loss = interval(picked(nodes, _where(group, algorithm, "loss"))["value"].to_numpy())
            rows.append(
                {
                    "group": "5 on all images" if group == "five" else f"{group.removeprefix('half ')} on halves",
                    "network": NAMES[algorithm],
                    "test loss (nats)": nats(loss),
                    "accuracy (%)": hundredths(percent(nodes, group, algorithm)),
                    "calibration error (points)": hundredths(error(nodes, group, algorithm)),
                    "with a temperature": hundredths(error(nodes, group, algorithm, "calibration_error_tempered")),
                    "n": loss.n,
                }
            )
    return pd.DataFrame(rows)


def loss_change(nodes: pd.DataFrame, group: str) -> Interval:
    """By how many percent the merges' test loss is above the mean of their inputs', in the geometric mean."""
    terms = [{"algorithm": "merge_many", "weight": 1}, {"algorithm": "unmerged", "weight": -1}]
    logs = interval(contrast_of_nodes(picked(nodes, {"group": group, "split": "test", "metric": "loss"}), terms, "%"))
    return Interval(*(100 * (np.exp(end) - 1) for end in (logs.mean, logs.low, logs.high)), logs.n)


def difference(nodes: pd.DataFrame, group: str, metric: str, first: str, second: str) -> Interval:
    """One kind of node less another, group by group, on test images, in points."""
    terms = [{"algorithm": first, "weight": 1}, {"algorithm": second, "weight": -1}]
    return interval(
        contrast_of_nodes(picked(nodes, {"group": group, "split": "test", "metric": metric}), terms, "points")
    )


def error(nodes: pd.DataFrame, group: str, algorithm: str, metric: str = "calibration_error") -> Interval:
    """A calibration error on test images, in points."""
    return interval(100 * picked(nodes, _where(group, algorithm, metric))["value"].to_numpy())


def percent(nodes: pd.DataFrame, group: str, algorithm: str) -> Interval:
    """Accuracy on test images, in percent."""
    return error(nodes, group, algorithm, "accuracy")


def _where(group: str, algorithm: str, metric: str) -> dict[str, str]:
    return {"group": group, "algorithm": algorithm, "metric": metric, "split": "test"}


def _measured(rows: pd.DataFrame) -> dict[str, str]:
    """Loss and accuracy of one network on both splits."""
    value = rows.set_index(["split", "metric"])["value"]
    return {
        f"{split} {metric}": decimal(value[split, metric], 4)
        for split in ("test", "train")
        for metric in ("loss", "accuracy")
    }
