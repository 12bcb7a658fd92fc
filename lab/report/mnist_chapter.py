"""What the chapter on pairs of MNIST networks says: sentences and tables made from notebooks/mnist.ipynb's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import DATASETS
from lab.measures.matched import ALGORITHMS
from lab.report import tabs as report
from lab.report.chapter import ZERO, state
from lab.report.claims import FEWEST_FOR_VERDICT, picked
from lab.report.statistics import Interval, interval
from lab.report.words import hundredths, listed, nats, points, side

WAYS = {"weights": "by weights", "activations": "by activations", "straight-through": "straight through"}
# What the paper says of each, and of the barrier after so many epochs, the latter read off its plot code.
PAPER = {
    "naive": "–",
    "weights": "zero",
    "activations": "zero, a little worse than the others",
    "straight-through": "zero",
}
PAPER_EPOCHS = {1: "about 0.6"}
PAPER_STRAIGHT_THROUGH = 250  # epochs, in the authors' code
NAMES = {"naive": "as they are", **WAYS}
UNITS = {"loss": "nats of test loss", "accuracy": "points of test accuracy"}


def findings() -> dict[str, str]:
    """The chapter's findings, a paragraph each, by name."""
    if not report.runs("mnist"):
        return {"loss": "Not run yet.", **dict.fromkeys(("accuracy", "midpoint", "epochs", "straight_through"), "")}
    run = report.shown_run("mnist")
    barriers, paths = (results.read(run, "mnist", table) for table in ("barriers", "paths"))
    parameters = results.provenance(run, "mnist")["parameters"]
    networks = f"{DATASETS[parameters['mnist_dataset']]} networks"
    return {
        "loss": barrier_finding(barriers, "loss", networks),
        "accuracy": barrier_finding(barriers, "accuracy", networks),
        "midpoint": midpoint_finding(barriers, paths, networks),
        "epochs": epochs_finding(barriers),
        "straight_through": f"{straight_through_note(parameters)} {kept_note(paths)}",
    }


def barrier_finding(barriers: pd.DataFrame, metric: str, networks: str) -> str:
    """Whether the barrier in ``metric`` (loss or accuracy) is zero after the last epoch, and for which matchers."""
    last = barriers["epochs"].max()
    found = {algorithm: height(barriers, algorithm, f"{metric}_barrier", last) for algorithm in ALGORITHMS}
    states = {algorithm: state(found[algorithm], ZERO[metric]) for algorithm in WAYS}
    n = found["weights"].n
    if n < FEWEST_FOR_VERDICT:
        opening = (
            f"This run has too few pairs to say whether matching removes the barrier in {metric}</strong> "
            f"(n = {n}, {FEWEST_FOR_VERDICT} are needed)"
        )
    elif len(set(states.values())) == 1:
        opening = {
            "gone": f"All three matchers remove the barrier in {metric}</strong>",
            "still there": f"No matcher removes the barrier in {metric}</strong>",
            "not decided": f"Whether any matcher removes the barrier in {metric} is not decided</strong>",
        }[states["weights"]]
        # Of accuracy the paper defines no barrier.
        opening += {"gone": ", as the paper says", "still there": ", against the paper"}.get(
            states["weights"] if metric == "loss" else "", ""
        )
    else:
        parts = [
            f"is {which} once they are matched {listed(way for name, way in WAYS.items() if states[name] == which)}"
            for which in ("gone", "still there", "not decided")
            if which in states.values()
        ]
        opening = f"The barrier in {metric} between two {networks} {'; it '.join(parts)}</strong>"
    written = hundredths if metric == "accuracy" else nats
    left = listed([f"{written(found[algorithm])} {way}" for algorithm, way in WAYS.items()])
    return (
        f"<strong>{opening}: {written(found['naive'])} {UNITS[metric]} between two {networks} as they are, "
        f"and, once matched, {left} (n = {n} pairs, {last} epochs; zero means under {ZERO[metric]:g})."
    )


def midpoint_finding(barriers: pd.DataFrame, paths: pd.DataFrame, networks: str) -> str:
    """Whether the midpoint of two matched networks has a lower test loss than both, and what else it has."""
    gain, on_training = (
        height(barriers, "weights", "loss_gain", barriers["epochs"].max(), split) for split in ("test", "train")
    )
    if gain.n < FEWEST_FOR_VERDICT:
        opening = "So few pairs do not decide whether the midpoint has a lower test loss than both its ends"
    else:
        opening = side(
            gain, 0.0,
            f"The midpoint of two {networks} matched by weights has a lower test loss than both, as the paper says",
            f"The midpoint of two {networks} matched by weights has no lower test loss than both, against the paper",
            f"Whether the midpoint of two {networks} matched by weights has a lower test loss than both is not decided",
        )  # fmt: skip
    loss, accuracy = (_along(paths, metric) for metric in ("loss", "accuracy"))
    better = 100 * (accuracy[0.5] - accuracy[[0.0, 1.0]].max(axis=1))
    return (
        f"<strong>{opening}</strong>: the better one's less the midpoint's is {nats(gain, signed=True)} nats (n = "
        f"{gain.n} pairs), where the ends have {nats(_at_ends(loss))} in the mean. On training images that is "
        f"{nats(on_training, signed=True)} nats. The midpoint's test accuracy less the better end's is "
        f"{hundredths(interval(better), signed=True)} points; the ends have {hundredths(_at_ends(100 * accuracy))} %."
    )


def _along(paths: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric on test images along paths matched by weights: a row for each pair, a column for each point."""
    of = {"algorithm": "weights", "metric": metric, "split": "test"}
    return picked(paths, of).pivot(index="node", columns="lam", values="value")


def _at_ends(values: pd.DataFrame) -> Interval:
    """The mean over pairs of the mean of both ends."""
    return interval(values[[0.0, 1.0]].mean(axis=1).to_numpy())


def epochs_finding(barriers: pd.DataFrame) -> str:
    """How the barrier changes from the first epoch to the last."""
    first, last = barriers["epochs"].min(), barriers["epochs"].max()
    if first == last:
        return f"Of this run there are networks of {last} epochs alone, which tell nothing of training."
    early, late = (_values(barriers, "weights", "loss_barrier", epochs) for epochs in (first, last))
    fall = interval((early - late).to_numpy())
    if fall.n < FEWEST_FOR_VERDICT:
        opening = "So few pairs do not decide whether the barrier falls with training"
    else:
        opening = side(
            fall, 0.0, "The barrier falls with training, as the paper says",
            "The barrier rises with training, against the paper",
            "Whether the barrier falls with training is not decided",
        )  # fmt: skip
    return (
        f"<strong>{opening}</strong>: matched by weights it is {nats(interval(early.to_numpy()))} nats of test loss at "
        f"epoch {first} and {nats(interval(late.to_numpy()))} at epoch {last}, a fall of {nats(fall, signed=True)} "
        f"(n = {fall.n} pairs)."
    )


def straight_through_note(parameters: Mapping[str, Any]) -> str:
    """How long a run's straight-through matching was, beside the authors'."""
    epochs, size = parameters["straight_through_epochs"], parameters["straight_through_batch_size"]
    share = f"{100 * epochs / PAPER_STRAIGHT_THROUGH:g} % of their epochs"
    return (
        f"Here it goes over the training images {epochs} times, in batches of {size}: "
        f"{'as often as theirs' if epochs == PAPER_STRAIGHT_THROUGH else share}."
    )


def kept_note(paths: pd.DataFrame) -> str:
    """In how many pairs straight-through matching ends where matching by weights does: their paths are the same."""
    alike = paths.pivot(index=["node", "split", "metric", "lam"], columns="algorithm", values="value")
    same = (alike["straight-through"] == alike["weights"]).groupby("node").all()
    return f"In {same.sum()} of {len(same)} pairs it ends with the permutation that matching by weights finds."


def barriers_table(run: str) -> pd.DataFrame:
    """Barriers after the last epoch by matcher and split, as texts, beside what the paper says."""
    barriers = results.read(run, "mnist", "barriers")
    last = barriers["epochs"].max()
    rows = []
    for split in ("test", "train"):
        for algorithm in ALGORITHMS:
            of = {
                metric: height(barriers, algorithm, metric, last, split)
                for metric in (
                    "loss_barrier",
                    "loss_above_line",
                    "loss_gain",
                    "accuracy_barrier",
                    "accuracy_above_line",
                )
            }
            rows.append(
                {
                    "images": split,
                    "matched": NAMES[algorithm],
                    "barrier in loss": nats(of["loss_barrier"]),
                    "the paper": PAPER[algorithm],
                    "above the line": nats(of["loss_above_line"]),
                    "midpoint's gain": nats(of["loss_gain"], signed=True),
                    "barrier in accuracy": hundredths(of["accuracy_barrier"]),
                    "above its line": hundredths(of["accuracy_above_line"]),
                    "n": of["loss_barrier"].n,
                }
            )
    return pd.DataFrame(rows)


def epochs_table(run: str) -> pd.DataFrame:
    """Barriers on test images by epoch, as they are and matched by weights, as texts."""
    barriers = results.read(run, "mnist", "barriers")
    rows = []
    for epochs in sorted(barriers["epochs"].unique()):
        row = {"epochs": epochs}
        for algorithm in ("naive", "weights"):
            loss = height(barriers, algorithm, "loss_barrier", epochs)
            row[f"loss, {NAMES[algorithm]}"] = nats(loss)
        accuracy = height(barriers, "weights", "accuracy_barrier", epochs)
        row |= {"the paper's": PAPER_EPOCHS.get(epochs, "–"), "accuracy, by weights": points(accuracy), "n": accuracy.n}
        rows.append(row)
    return pd.DataFrame(rows)


def height(barriers: pd.DataFrame, algorithm: str, metric: str, epochs: int, split: str = "test") -> Interval:
    """The mean of a metric over pairs, in nats or, of accuracy, points."""
    values = _values(barriers, algorithm, metric, epochs, split).to_numpy()
    return interval(100 * values if metric.startswith("accuracy") else values)


def _values(barriers: pd.DataFrame, algorithm: str, metric: str, epochs: int, split: str = "test") -> pd.Series:
    """One value for each pair."""
    of = {"algorithm": algorithm, "metric": metric, "epochs": epochs, "split": split}
    return picked(barriers, of).set_index("node")["value"]
