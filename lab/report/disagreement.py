"""Barriers in loss beside those in accuracy: matched pairs of every recipe that any notebook measured."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import INITIALS, OPTIMISERS, RECIPE
from lab.report.claims import picked
from lab.report.draw import ink, legend_below, width
from lab.report.facts import Facts, reads
from lab.report.pairs import FLOOR, NOT_DECIDED, SHAPES, above_floor, networks_title, shade_zero
from lab.report.statistics import FEWEST_FOR_INTERVAL, interval
from lab.report.verdicts import ZERO
from lab.report.words import decimal, hundredths, nats, points

# What is said of matched pairs: a metric of the tables of barriers, how the path is mended, and what to multiply it by.
# Tempered barriers and those after REPAIR are over the ends and the midpoint, and are held against those ``_of_three``.
SAID = {
    "loss": ("loss_barrier", "none", 1),
    "loss_of_three": ("loss_barrier_of_three", "none", 1),
    "tempered": ("loss_barrier_tempered", "none", 1),
    "loss_repaired": ("loss_barrier_of_three", "repair", 1),
    "accuracy": ("accuracy_barrier", "none", 100),
    "accuracy_of_three": ("accuracy_barrier_of_three", "none", 100),
    "accuracy_repaired": ("accuracy_barrier_of_three", "repair", 100),
    "ends": ("accuracy_ends", "none", 100),
    "temperature_ends": ("temperature_ends", "none", 1),
    "temperature_midpoint": ("temperature_midpoint", "none", 1),
}
# Test accuracy of LayerNorm ResNet20s on CIFAR-10 in the data that the authors of REPAIR released, by width in units of
# the usual one: the ends, the midpoint of matched networks, and the same after REPAIR.
RELEASED = {1: (92.4, 50.7, 68.8), 4: (95.5, 88.5, 91.3), 16: (96.2, 92.6, 94.9), 32: (96.4, 92.3, 94.8)}


def recipes(barriers: str, mnist: str, accuracy: str) -> pd.DataFrame:
    """A row for each recipe and number of epochs, the lowest barrier in accuracy first.

    It has the parts of the recipe, what readers call ``networks`` and ``training``, whether these epochs are the
    recipe's ``last``, and an Interval for each of ``SAID``, None where it was not measured. The same networks may have
    two names in a plan, or be in two notebooks: then the first counts, of which the most was measured.
    """
    tables = [
        results.read(barriers, "barriers", "barriers"),
        results.read(mnist, "mnist", "barriers").assign(recipe="of the notebook mnist"),
        _of_accuracy(accuracy).assign(recipe="of the notebook accuracy"),
    ]
    table = picked(pd.concat(tables, ignore_index=True), {"matcher": "weights", "split": "test"})
    rows = []
    for names, pairs in table.groupby(["dataset", *RECIPE, "epochs"], sort=False):
        pairs = picked(pairs, {"recipe": pairs["recipe"].iloc[0]})
        values = dict(list(pairs.groupby(["metric", "mended"])["value"]))
        row = dict(zip(("dataset", *RECIPE, "epochs"), names, strict=True))
        for name, (metric, mended, scale) in SAID.items():
            measured = values.get((metric, mended))
            row[name] = None if measured is None else interval(scale * measured.to_numpy())
        rows.append(row | {"networks": networks_title(row["dataset"], row["architecture"])})
    whole = pd.DataFrame(rows)
    whole["last"] = whole["epochs"] == whole.groupby(["dataset", *RECIPE])["epochs"].transform("max")
    whole["training"] = [_training(row, whole) for _, row in whole.iterrows()]
    return whole.sort_values("accuracy", key=lambda column: column.map(lambda barrier: barrier.mean), kind="stable")


def _of_accuracy(run: str) -> pd.DataFrame:
    """The pairs of the notebook accuracy, in the columns of a table of barriers."""
    table = results.read(run, "accuracy", "barriers")
    return picked(table, {"matcher": "weights", "n_leaves": 2, "split": "test"}).assign(mended="none")


def _training(row: pd.Series, whole: pd.DataFrame) -> str:
    """How networks were trained, with what tells them from others that would be called the same."""
    alike = picked(whole, row[["networks", "width", "optimiser", "learning_rate", "subset", "epochs"]])
    words = [f"{OPTIMISERS[row['optimiser']]} at {row['learning_rate']:g}"]
    words += ["data shared out"] if row["subset"] == "split" else []
    for part in RECIPE:
        if alike[part].nunique() > 1:
            words.append(INITIALS[row[part]] if part == "initial" else f"{part.replace('_', ' ')} {row[part]}")
    return ", ".join([*words, f"{row['epochs']} epoch{'s' if row['epochs'] > 1 else ''}"])


@reads("barriers", "mnist", "accuracy")
def zero_in_loss(barriers: str, mnist: str, accuracy: str) -> Facts:
    """Of how many recipes the barrier in loss is zero at their last epoch, and whether that in accuracy is zero, too.

    Outcomes: ``none`` is zero in loss; of those that are, ``all``, ``some`` or ``none in accuracy``, the others surely
    not; ``not decided``. The values name the first that is (``kept``) and the last that is not (``lost``).
    """
    last = [row for row in recipes(barriers, mnist, accuracy).itertuples() if row.last]
    zero = [row for row in last if row.loss.high < ZERO["loss"]]
    kept = [row for row in zero if row.accuracy.high < ZERO["accuracy"]]
    lost = [row for row in zero if row.accuracy.low > ZERO["accuracy"]]
    values = {"recipes": len(last), "zero": len(zero), "zero_loss": ZERO["loss"], "zero_accuracy": ZERO["accuracy"]}
    for name, rows in (("kept", kept[:1]), ("lost", lost[-1:])):
        for row in rows:
            values |= {f"{name}_networks": f"{row.networks}, width {row.width}", f"{name}_n": row.loss.n}
            values |= {f"{name}_loss": nats(row.loss), f"{name}_accuracy": points(row.accuracy)}
    if not zero:
        outcome = "none"
    elif lost:
        outcome = "some in accuracy" if kept else "none in accuracy"
    else:
        outcome = "all in accuracy" if len(kept) == len(zero) else NOT_DECIDED
    return Facts(outcome, {name: str(value) for name, value in values.items()})


@reads("barriers", "mnist", "accuracy")
def temperature(barriers: str, mnist: str, accuracy: str) -> Facts:
    """Which share of the barriers in loss the best softmax temperature takes away.

    Of recipes at their last epoch whose barrier lies wholly above zero, over the ends and the midpoint. Outcomes:
    ``stays`` if more than half of them keep such a barrier, else ``goes``; ``no barrier`` where none has one.
    """
    return _taken(_measured(barriers, mnist, accuracy), "loss", "tempered")


@reads("barriers", "mnist", "accuracy")
def repaired_loss(barriers: str, mnist: str, accuracy: str) -> Facts:
    """Which share of the barriers in loss REPAIR of the midpoint takes away; as ``temperature``."""
    return _taken(_measured(barriers, mnist, accuracy), "loss", "loss_repaired")


@reads("barriers", "mnist", "accuracy")
def repaired_accuracy(barriers: str, mnist: str, accuracy: str) -> Facts:
    """Which share of the barriers in accuracy REPAIR of the midpoint takes away; as ``temperature``."""
    return _taken(_measured(barriers, mnist, accuracy), "accuracy", "accuracy_repaired")


def _measured(barriers: str, mnist: str, accuracy: str) -> pd.DataFrame:
    """The recipes at their last epoch whose temperatures were measured."""
    whole = recipes(barriers, mnist, accuracy)
    return whole[whole["last"] & whole["tempered"].notna()]


def _taken(measured: pd.DataFrame, metric: str, after: str) -> Facts:
    before = measured[f"{metric}_of_three"]
    barred = [(then, now) for then, now in zip(before, measured[after], strict=True) if then.low > ZERO[metric]]
    if not barred:
        return Facts("no barrier", {"recipes": "0"})
    shares = [100 * (1 - now.mean / then.mean) for then, now in barred]
    still = sum(now.low > ZERO[metric] for _, now in barred)
    values = {"share": np.median(shares), "least": min(shares), "most": max(shares), "recipes": len(barred)}
    values = {name: decimal(float(value), 0) for name, value in (values | {"still": still}).items()}
    return Facts("stays" if 2 * still > len(barred) else "goes", values)


@reads("barriers", "mnist", "accuracy")
def raised(barriers: str, mnist: str, accuracy: str) -> Facts:
    """Of how many recipes the best temperatures raise the barrier in loss, and what they are where they do most.

    Of recipes with enough pairs for an interval. Outcomes: ``none``; ``some, midpoint unsure`` if there the midpoint is
    best at a temperature under 1, and not sure enough, where its ends are too sure; else ``some``.
    """
    rows = [row for row in _measured(barriers, mnist, accuracy).itertuples() if row.loss.n >= FEWEST_FOR_INTERVAL]
    rises = [row.tempered.mean - row.loss_of_three.mean for row in rows]
    counts = {"raised": str(sum(rise > 0 for rise in rises)), "recipes": str(len(rows))}
    if counts["raised"] == "0":
        return Facts("none", counts)
    most = rows[int(np.argmax(rises))]
    values = {
        "networks": f"{most.networks}, width {most.width}",
        "loss": nats(most.loss_of_three),
        "tempered": nats(most.tempered),
        "accuracy": points(most.accuracy_of_three),
        "temperature_ends": hundredths(most.temperature_ends),
        "temperature_midpoint": hundredths(most.temperature_midpoint),
        "n": str(most.loss.n),
    }
    unsure = most.temperature_midpoint.mean < 1 < most.temperature_ends.mean
    return Facts("some, midpoint unsure" if unsure else "some", counts | values)


@reads("barriers", "mnist", "accuracy")
def recipes_table(barriers: str, mnist: str, accuracy: str) -> pd.DataFrame:
    """A row for each recipe and number of epochs; a cell is empty where something was not measured."""
    whole = recipes(barriers, mnist, accuracy)
    table = pd.DataFrame({"networks": whole["networks"] + ", width " + whole["width"].astype(str)})
    table["training"] = whole["training"]
    for title, name, text in (
        ("accuracy of the ends (%)", "ends", points),
        ("barrier in loss (nats)", "loss", nats),
        ("over three points", "loss_of_three", nats),
        ("at the best temperature", "tempered", nats),
        ("after REPAIR", "loss_repaired", nats),
        ("barrier in accuracy (points)", "accuracy", points),
        ("over three points ", "accuracy_of_three", points),
        ("after REPAIR ", "accuracy_repaired", points),
    ):
        table[title] = ["" if value is None else text(value) for value in whole[name]]
    table["n"] = [str(value.n) for value in whole["loss"]]
    return table


@reads()
def released_table() -> pd.DataFrame:
    """What others measured: the drop from the ends to the midpoint, in a paper's own data."""
    table = pd.DataFrame(RELEASED.values(), columns=["ends (%)", "midpoint (%)", "after REPAIR (%)"])
    table.insert(0, "width", [f"{width}x" for width in RELEASED])
    table.insert(3, "drop (points)", table["ends (%)"] - table["midpoint (%)"])
    table["drop (points) "] = table["ends (%)"] - table["after REPAIR (%)"]
    return table.map(lambda value: value if isinstance(value, str) else f"{value:.1f}")


def furthest_from_trend(whole: pd.DataFrame, number: int = 3) -> pd.DataFrame:
    """The recipes whose two barriers agree least: the highest in accuracy first.

    They lie furthest from the straight line through the logarithms of all barriers, by least squares; those below an
    axis's floor count as on it.
    """
    loss, accuracy = (
        np.log([max(value.mean, FLOOR[metric]) for value in whole[metric]]) for metric in ("loss", "accuracy")
    )
    slope, start = np.polyfit(loss, accuracy, 1)
    off = pd.Series(np.abs(accuracy - start - slope * loss), whole.index)
    # The rows stand by their barriers in accuracy already, the lowest first.
    return whole[off >= off.nlargest(number).iloc[-1]].iloc[::-1]


@reads("barriers", "mnist", "accuracy")
def loss_against_accuracy(barriers: str, mnist: str, accuracy: str) -> Figure:
    """Barrier in loss and in accuracy: a mark with both intervals for each recipe; what counts as zero is shaded."""
    whole = recipes(barriers, mnist, accuracy)
    figure, axes = plt.subplots(figsize=(width(), 4.2))
    shade_zero(axes.axvspan, "loss")
    shade_zero(axes.axhspan, "accuracy")
    for number, networks in enumerate(whole["networks"].unique()):
        rows = picked(whole, {"networks": networks})
        bounds = {metric: np.transpose([above_floor(value, metric) for value in rows[metric]]) for metric in ZERO}
        low, height, high = bounds["accuracy"]
        left, middle, right = bounds["loss"]
        axes.errorbar(
            middle, height, (height - low, high - height), (middle - left, right - middle), linestyle="none",
            marker=SHAPES[number % len(SHAPES)], markersize=8, elinewidth=1, alpha=0.85, label=networks,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="barrier in test loss (nats)", ylabel="barrier in accuracy (points)")
    axes.set(xlim=(FLOOR["loss"] / 2, None), ylim=(FLOOR["accuracy"] / 2, None))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.text(0.02, 0.02, "counts as zero", transform=axes.transAxes)
    # Names of how they were trained stand above one another in the empty corner, each with a line to its mark.
    for number, row in enumerate(furthest_from_trend(whole).itertuples()):
        mark = [max(value.mean, FLOOR[metric]) for metric, value in (("loss", row.loss), ("accuracy", row.accuracy))]
        _, _, name = row.training.partition(", ")
        axes.annotate(
            name, mark, xytext=(0.02, 0.95 - 0.09 * number), textcoords="axes fraction", va="center",
            arrowprops={"arrowstyle": "-", "color": ink(), "linewidth": 0.6, "relpos": (1, 0.5), "shrinkB": 5},
        )  # fmt: skip
    legend_below(figure, axes)
    return figure
