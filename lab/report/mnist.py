"""Pairs of MNIST networks: whether they share a basin once matched, by each of Git Re-Basin's three matchers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import DATASETS, MATCHERS
from lab.report.claims import FEWEST_FOR_VERDICT, picked
from lab.report.draw import legend_below, name_ends, on_page, width, word_colour
from lab.report.facts import FEW, Facts, outcome, reads
from lab.report.pairs import EITHER, FALLS, RISES, by_pair, in_nats, in_points, state
from lab.report.statistics import interval, unsigned
from lab.report.verdicts import ZERO
from lab.report.words import hundredths, nats, points, side

MATCHED = ("weights", "activations", "straight-through")
DASHES = {"none": ":", "weights": "-", "activations": "--", "straight-through": (0, (3, 2))}
# What the paper says of each matcher, and of the barrier after so many epochs, the latter where an arrow in
# its plot's code points.
PAPER = {
    "none": "–",
    "weights": "zero",
    "activations": "zero, a little worse than the others",
    "straight-through": "zero",
}
PAPER_EPOCHS = {1: "about 0.6"}
PAPER_STRAIGHT_THROUGH = 250  # epochs, in the authors' code


def after_training(run: str, split: str = "test") -> pd.DataFrame:
    """The rows of the table ``barriers`` after the last epoch, on test or training images."""
    table = results.read(run, "mnist", "barriers")
    return picked(table, {"epochs": table["epochs"].max(), "split": split})


@reads("mnist")
def barriers_matched(run: str) -> Facts:
    """The barriers in test loss after the last epoch, in nats: not matched, and by each matcher.

    Outcomes: ``gone``, ``still there`` or ``not decided``, where that is so for all three matchers; which it is for
    each, such as ``weights gone, activations still there, straight-through gone``; ``too few`` pairs for a verdict.
    """
    return _matched(run, "loss", "test")


@reads("mnist")
def barriers_on_train(run: str) -> Facts:
    """As ``barriers_matched``, in loss on training images."""
    return _matched(run, "loss", "train")


@reads("mnist")
def accuracy_matched(run: str) -> Facts:
    """As ``barriers_matched``, in points of test accuracy, of which the paper defines no barrier."""
    return _matched(run, "accuracy", "test")


def _matched(run: str, metric: str, split: str) -> Facts:
    table = after_training(run, split)
    mean, text = (in_nats, nats) if metric == "loss" else (in_points, hundredths)
    barriers = {matcher: mean(table, f"{metric}_barrier", matcher) for matcher in ("none", *MATCHED)}
    states = {matcher: state(barriers[matcher], ZERO[metric]) for matcher in MATCHED}
    if barriers["weights"].n < FEWEST_FOR_VERDICT:
        whole = FEW
    elif len(set(states.values())) == 1:
        whole = states["weights"]
    else:
        whole = ", ".join(f"{matcher} {left}" for matcher, left in states.items())
    values = {
        "unmatched": text(barriers["none"]),
        "weights": text(barriers["weights"]),
        "activations": text(barriers["activations"]),
        "straight_through": text(barriers["straight-through"]),
        "n": str(barriers["weights"].n),
        "epochs": str(table["epochs"].iloc[0]),
        "zero": f"{ZERO[metric]:g}",
        "data": DATASETS[table["dataset"].iloc[0]],
    }
    return Facts(whole, values)


@reads("mnist")
def midpoint_loss(run: str) -> Facts:
    """By how many nats the midpoint of two networks, matched by weights, has less test loss than the better of the two.

    Outcomes: ``above`` zero, ``below`` or ``open``; ``too few`` pairs for a verdict. ``by`` has no sign.
    """
    return _midpoint(run, "loss", "test")


@reads("mnist")
def midpoint_loss_on_train(run: str) -> Facts:
    """As ``midpoint_loss``, on training images."""
    return _midpoint(run, "loss", "train")


@reads("mnist")
def midpoint_accuracy(run: str) -> Facts:
    """By how many points the midpoint has more test accuracy than the better network; outcomes as ``midpoint_loss``."""
    return _midpoint(run, "accuracy", "test")


def _midpoint(run: str, metric: str, split: str) -> Facts:
    table = after_training(run, split)
    mean, text = (in_nats, nats) if metric == "loss" else (in_points, hundredths)
    gain = mean(table, f"{metric}_gain")
    values = {
        "by": text(unsigned(gain)),
        "ends": text(mean(table, f"{metric}_ends")),
        "midpoint": text(mean(table, f"{metric}_midpoint")),
        "n": str(gain.n),
    }
    return Facts(outcome(gain, fewest=FEWEST_FOR_VERDICT), values)


@reads("mnist")
def training(run: str) -> Facts:
    """By how many nats the barrier between networks matched by weights falls from the first epoch to the last.

    Outcomes: ``falls``, ``rises`` or ``open``; ``too few`` pairs for a verdict; ``one epoch`` where there is no other.
    """
    table = picked(results.read(run, "mnist", "barriers"), {"split": "test"})
    first, last = (picked(table, {"epochs": epochs}) for epochs in (table["epochs"].min(), table["epochs"].max()))
    fall = interval((by_pair(first, "loss_barrier") - by_pair(last, "loss_barrier")).to_numpy())
    values = {
        "first": str(first["epochs"].iloc[0]),
        "last": str(last["epochs"].iloc[0]),
        "at_first": nats(in_nats(first, "loss_barrier")),
        "at_last": nats(in_nats(last, "loss_barrier")),
        "fall": nats(fall),
        "paper": PAPER_EPOCHS.get(first["epochs"].iloc[0], "not given"),
        "n": str(fall.n),
    }
    if values["first"] == values["last"]:
        return Facts("one epoch", values)
    return Facts(FEW if fall.n < FEWEST_FOR_VERDICT else side(fall, 0.0, FALLS, RISES, EITHER), values)


@reads("mnist")
def straight_through(run: str) -> Facts:
    """In how many pairs straight-through matching ends where matching by weights does: their paths are the same.

    Outcomes: ``all``, ``some`` or ``none``.
    """
    paths = results.read(run, "mnist", "paths")
    values = paths.pivot(index=["node", "split", "metric", "lam"], columns="matcher", values="value")
    same = (values["straight-through"] == values["weights"]).groupby("node").all()
    return Facts(
        "all" if same.all() else "some" if same.any() else "none", {"same": str(same.sum()), "n": str(len(same))}
    )


@reads("mnist")
def straight_through_length(run: str) -> Facts:
    """How often straight-through matching saw the training images: ``shorter`` than the authors', or ``as long``."""
    given = results.provenance(run, "mnist")["parameters"]
    epochs, batch_size = given["straight_through_epochs"], given["straight_through_batch_size"]
    values = {"epochs": str(epochs), "batch_size": str(batch_size), "paper_epochs": str(PAPER_STRAIGHT_THROUGH)}
    return Facts("shorter" if epochs < PAPER_STRAIGHT_THROUGH else "as long", values)


@reads("mnist")
def barriers_table(run: str) -> pd.DataFrame:
    """Barriers after the last epoch by matcher and images, in nats and points, beside what the paper says."""
    rows = []
    for split in ("test", "train"):
        table = after_training(run, split)
        for matcher in ("none", *MATCHED):
            rows.append(
                {
                    "images": split,
                    "pairs": MATCHERS[matcher].title,
                    "loss": nats(in_nats(table, "loss_barrier", matcher)),
                    "the paper": PAPER[matcher],
                    "over three points": nats(in_nats(table, "loss_barrier_of_three", matcher)),
                    "above the line": nats(in_nats(table, "loss_above_line", matcher)),
                    "midpoint's gain": nats(in_nats(table, "loss_gain", matcher), signed=True),
                    "accuracy": hundredths(in_points(table, "accuracy_barrier", matcher)),
                    "above its line": hundredths(in_points(table, "accuracy_above_line", matcher)),
                    "n": str(in_nats(table, "loss_barrier", matcher).n),
                }
            )
    return pd.DataFrame(rows)


@reads("mnist")
def epochs_table(run: str) -> pd.DataFrame:
    """Barriers on test images by epoch, not matched and matched by weights."""
    table = picked(results.read(run, "mnist", "barriers"), {"split": "test"})
    rows = []
    for epochs, part in table.groupby("epochs"):
        accuracy = in_points(part, "accuracy_barrier")
        rows.append(
            {
                "epochs": str(epochs),
                "loss, not matched": nats(in_nats(part, "loss_barrier", "none")),
                "loss, matched by weights": nats(in_nats(part, "loss_barrier")),
                "the paper's": PAPER_EPOCHS.get(epochs, "–"),
                "accuracy, matched by weights": points(accuracy),
                "n": str(accuracy.n),
            }
        )
    return pd.DataFrame(rows)


@reads("mnist")
def along_the_line(run: str) -> Figure:
    """Test loss and accuracy from one network of a pair to the other: a thin line for each pair, their mean thick.

    On the left the whole line as it is, beside matching by weights; on the right the three matchers, so close that they
    can be told apart. Where two lie on one another, the dashes of one stand on the pale line of the other.
    """
    paths = picked(results.read(run, "mnist", "paths"), {"split": "test"})
    figure, panels = plt.subplots(2, 2, figsize=(width(), 5.0), sharex=True)
    for (metric, title, scale), (whole, closer) in zip(
        (("loss", "test loss (nats)", 1), ("accuracy", "test accuracy (%)", 100)), panels, strict=True
    ):
        of_metric = picked(paths, {"metric": metric})
        for matcher in ("none", *MATCHED):
            drawn, dashes = MATCHERS[matcher], DASHES[matcher]
            # A row for each point, a column for each pair.
            values = scale * picked(of_metric, {"matcher": matcher}).pivot(index="lam", columns="node", values="value")
            style = {"color": on_page(drawn.colour), "linestyle": dashes, "label": drawn.title}
            if matcher in ("none", "weights"):
                whole.plot(values.index, values, color=style["color"], linewidth=0.8, alpha=0.4)
                whole.plot(values.index, values.mean(axis=1), **style)
            if matcher != "none":
                below = {"linewidth": 6, "alpha": 0.4} if matcher == "weights" else {}
                closer.plot(values.index, values.mean(axis=1), **style | below)
        whole.set_ylabel(title)
    for axes, title in zip(panels[0], ("as they are, and matched", "matched, closer"), strict=True):
        axes.set_title(title)
    for axes in panels[1]:
        axes.set(xlabel="λ", xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
    figure.align_ylabels(panels[:, 0])
    legend_below(figure, panels[0, 0], panels[0, 1])
    return figure


@reads("mnist")
def barrier_by_epoch(run: str) -> Figure:
    """Barrier in test loss over epochs of training, not matched and matched by weights: a dot for each pair."""
    barriers = picked(results.read(run, "mnist", "barriers"), {"split": "test", "metric": "loss_barrier"})
    figure, axes = plt.subplots(figsize=(width(), 3.6))
    ends = []
    for matcher in ("none", "weights"):
        drawn = MATCHERS[matcher]
        colour = on_page(drawn.colour)
        values = picked(barriers, {"matcher": matcher}).pivot(index="epochs", columns="node", values="value")
        means = values.mean(axis=1)
        axes.plot(values.index, values, ".", color=colour, alpha=0.7)
        axes.plot(means.index, means, linestyle=DASHES[matcher], color=colour, label=drawn.title)
        ends.append((means.iloc[-1], drawn.title.replace(" by", "\nby"), word_colour(drawn.colour)))
    epochs = sorted(barriers["epochs"].unique())
    axes.set(xscale="log", xlabel="epochs of training", ylabel="barrier in test loss (nats)")
    axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
    axes.minorticks_off()
    axes.set_ylim(bottom=min(0.0, float(barriers["value"].min())))
    name_ends(axes, ends)
    return figure
