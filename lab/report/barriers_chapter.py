"""What the chapter on barriers says: over width and training time, of failures, norms and data shared out."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset
from lab.report.barriers_figures import OPTIMISERS, label
from lab.report.chapter import ZERO
from lab.report.claims import FEWEST_FOR_VERDICT, last_snapshots
from lab.report.page import runs
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.words import listed, nats, points, side

# What the names of a section's recipes end in.
SECTIONS = {
    "width": ("width",),
    "epochs": ("mlp",),
    "failures": ("sgd low", "adam high", "vgg"),
    "norms": ("batch norm", "layer norm"),
    "split": ("split", "whole"),
}
CHANGES = {"sgd low": "SGD at a low rate", "adam high": "Adam at a high rate", "vgg": "VGG-16 in place of an MLP"}
NORMS = {"batch norm": "BatchNorm", "layer norm": "LayerNorm"}
SHARES = {"split": "shared out", "whole": "all, for both"}
MENDED = {"none": "as it is", "repair": "REPAIR at the midpoint", "reset": "statistics measured anew"}
# Git Re-Basin's barriers once matched, in nats of test loss, by data set and epochs: read off its plots' code.
PAPER = {("mnist", 1): "about 0.6", ("cifar10", 1): "0.31", ("cifar10", 25): "0.015 (epoch 22)"}
DIRECTIONS = {
    "falls": "falls for {}",
    "rises": "rises for {}",
    "either": "may go either way for {}",
    "few": "was measured on too few pairs for {}",
}


def section(run: str, name: str) -> pd.DataFrame:
    """The rows of a run's table ``barriers`` that a section is about, perhaps none.

    Of networks with several snapshots the last one's, but for the section on training time: a pair counts once.
    """
    table = results.read(run, "barriers", "barriers")
    table = table[table["recipe"].str.endswith(SECTIONS[name])]
    return table if name == "epochs" else last_snapshots(table)


def heights(table: pd.DataFrame, metric: str, algorithm: str = "weights", mended: str = "none") -> pd.Series:
    """A metric of pairs, by node."""
    chosen = (table["metric"] == metric) & (table["algorithm"] == algorithm) & (table["mended"] == mended)
    return table[chosen].set_index("node")["value"].sort_index()


def mean(table: pd.DataFrame, metric: str, algorithm: str = "weights", mended: str = "none") -> Interval:
    """A metric's mean over pairs; shares of accuracy in percent or points."""
    scale = 100 if metric.startswith("accuracy") else 1
    return interval(scale * heights(table, metric, algorithm, mended).to_numpy())


def missing(name: str, run: str | None) -> str:
    """Which recipes of a section the run does not have, and what command runs them."""
    made = set() if run is None else set(section(run, name)["recipe"])
    told = []
    for preset in ("cpu", "gpu"):
        named = [entry["recipe"] for entry in load_preset(preset)["barrier_recipes"]]
        lacking = [one for one in dict.fromkeys(named) if one.endswith(SECTIONS[name]) and one not in made]
        made.update(lacking)
        if lacking:
            told.append(
                f"{', '.join(lacking)} (<code>.venv/bin/python -m lab.bookkeeping.pipeline {preset} barriers</code>)"
            )
    where = "" if run is None else f" in run {run}"
    return f"Not run{where}: {'; '.join(told)}." if told else ""


def finding(name: str) -> str:
    """What a section opens with, of the run to show, and what that run lacks."""
    run = next(iter(runs("barriers")), None)
    table = None if run is None else section(run, name)
    if table is None or not len(table):
        return missing(name, run)
    told = {
        "width": lambda: _trend_finding(table, "width"),
        "epochs": lambda: _trend_finding(table, "epochs"),
        "failures": lambda: _failures_finding(table),
        "norms": lambda: _norms_finding(table),
        "split": lambda: _split_finding(table),
    }[name]()
    return " ".join(filter(None, (told, missing(name, run))))


@dataclass(frozen=True)
class Trend:
    """Barriers of matched pairs at the first and the last value of an axis, and by how much that in loss falls.

    Of each end the barrier in loss, in nats, and that in accuracy, in points.
    """

    label: str
    first: int
    last: int
    at_first: tuple[Interval, Interval]
    at_last: tuple[Interval, Interval]
    fall: Interval

    @property
    def direction(self) -> str:
        if self.fall.n < FEWEST_FOR_INTERVAL:
            return "few"
        return side(self.fall, 0.0, "falls", "rises", "either")


def trends(table: pd.DataFrame, axis: str) -> list[Trend]:
    """The trend of each recipe that has several values on ``axis``, width or epochs."""
    found = []
    for _, recipe in table.groupby("recipe", sort=False):
        values = sorted(recipe[axis].unique())
        if len(values) < 2:
            continue
        ends = [recipe[recipe[axis] == value] for value in (values[0], values[-1])]
        fall = (heights(ends[0], "loss_barrier") - heights(ends[1], "loss_barrier")).dropna().to_numpy()
        both = ((mean(end, "loss_barrier"), mean(end, "accuracy_barrier")) for end in ends)
        found.append(Trend(label(recipe.iloc[0]), values[0], values[-1], *both, interval(fall)))
    return found


def _trend_finding(table: pd.DataFrame, axis: str) -> str:
    found = trends(table, axis)
    if not found:
        return ""
    opening = "; ".join(
        form.format(listed(trend.label for trend in found if trend.direction == direction))
        for direction, form in DIRECTIONS.items()
        if direction in [trend.direction for trend in found]
    )
    what = "width" if axis == "width" else "training"
    told = "; ".join(
        f"{trend.label}, {_at(axis, trend.first)}: {nats(trend.at_first[0])} nats of test loss and "
        f"{points(trend.at_first[1])} points of accuracy, {_at(axis, trend.last)}: {nats(trend.at_last[0])} nats and "
        f"{points(trend.at_last[1])} points, a change of {nats(negative(trend.fall), signed=True)} nats "
        f"({_pairs(trend.fall.n)})"
        for trend in found
    )
    gone = [trend.label for trend in found if trend.at_last[0].high < ZERO["loss"]]
    zero = f"In loss it ends under {ZERO['loss']} nats, which counts as zero, for {listed(gone) if gone else 'none'}."
    opening = f"With {what}, the barrier in loss between matched networks {opening}"
    return f"<strong>{opening}.</strong> {_capital(told)}. {zero}"


def negative(value: Interval) -> Interval:
    """The interval of minus a mean."""
    return Interval(-value.mean, -value.high, -value.low, value.n)


def _at(axis: str, value: int) -> str:
    return f"width {value}" if axis == "width" else f"epoch {value}"


def _failures_finding(table: pd.DataFrame) -> str:
    found = [(_ending(name, CHANGES), mean(rows, "loss_barrier")) for name, rows in table.groupby("recipe", sort=False)]
    above = [change for change, barrier in found if barrier.low > ZERO["loss"]]
    below = [change for change, barrier in found if barrier.high < ZERO["loss"]]
    open_ = [change for change, _ in found if change not in above + below]
    parts = [f"leaves a barrier with {listed(above)}"] if above else []
    parts += [f"does not with {listed(below)}" if above else f"leaves none with {listed(below)}"] if below else []
    parts += [f"is not decided with {listed(open_)}"] if open_ else []
    told = "; ".join(f"{change}: {nats(barrier)} nats ({_pairs(barrier.n)})" for change, barrier in found)
    return f"<strong>Of the failures they name, matching {'; '.join(parts)}.</strong> {told}."


def _norms_finding(table: pd.DataFrame) -> str:
    norms = {_ending(name, NORMS): rows for name, rows in table.groupby("recipe", sort=False)}
    told = [_left(norm, rows, "none") for norm, rows in norms.items()]
    if "BatchNorm" not in norms:
        return f"{'; '.join(told)}."
    batch = norms["BatchNorm"]
    gain = interval((heights(batch, "loss_barrier") - heights(batch, "loss_barrier", mended="reset")).to_numpy())
    told.insert(1, _left("with its statistics measured anew", batch, "reset"))
    if gain.n < FEWEST_FOR_INTERVAL:
        opening = "On too few pairs for an interval, measuring BatchNorm's statistics anew changes the barrier"
    else:
        does = side(gain, 0.0, "lowers", "raises", "cannot be told to change")
        opening = f"Measuring BatchNorm's statistics anew {does} the barrier"
    left = mean(batch, "loss_barrier", mended="reset")
    gone = side(left, ZERO["loss"], ", and does not remove it", ", and removes it", "")
    change = f"by {nats(negative(gain), signed=True)} nats ({_pairs(gain.n)})"
    return f"<strong>{opening}{gone}: {change}.</strong> What is left: {'; '.join(told)}."


def _left(name: str, rows: pd.DataFrame, mended: str) -> str:
    """The barriers of matched pairs in loss and accuracy, and what their ends have."""
    loss, accuracy, ends = (
        mean(rows, metric, mended=mended) for metric in ("loss_barrier", "accuracy_barrier", "accuracy_ends")
    )
    return (
        f"{name}, {nats(loss)} nats and {points(accuracy)} points of accuracy, between networks that have "
        f"{points(ends)} % ({_pairs(loss.n)})"
    )


def _pairs(n: int) -> str:
    """How many pairs there are, and how many a verdict would need."""
    return f"n = {n} pairs" + (f"; a verdict needs {FEWEST_FOR_VERDICT}" if n < FEWEST_FOR_VERDICT else "")


def _split_finding(table: pd.DataFrame) -> str:
    shares = {_ending(name, SHARES): rows for name, rows in table.groupby("recipe", sort=False)}
    told = []
    for share, rows in shares.items():
        loss, accuracy = (heights(rows, f"{metric}_gain").to_numpy() for metric in ("loss", "accuracy"))
        told.append(
            f"of data {share}, the midpoint of {(loss > 0).sum()} of {len(loss)} matched pairs has a lower test loss "
            f"than both ends (by {nats(interval(loss), signed=True)} nats), and of {(accuracy > 0).sum()} a higher "
            f"accuracy (by {points(interval(100 * accuracy), signed=True)} points)"
        )
    out = shares.get("shared out")
    if out is None:
        return f"{_capital('; '.join(told))}."
    gain = mean(out, "loss_gain")
    if gain.n < FEWEST_FOR_INTERVAL:
        opening = "Whether the midpoint beats two networks that were given different data is left open by so few pairs"
    else:
        does = side(
            gain, 0.0, "has a lower test loss than both", "does not beat the better one",
            "is about as good as the better one",
        )  # fmt: skip
        opening = f"The midpoint of two networks that were given different data {does}"
    return f"<strong>{opening}</strong> ({_pairs(gain.n)}). {_capital('; '.join(told))}."


def trend_table(run: str, axis: str) -> pd.DataFrame:
    """Barriers of the section on ``axis``, width or epochs, a row for each recipe and value, as texts."""
    rows = []
    for (_, width, epochs), part in section(run, axis).groupby(["recipe", "width", "epochs"]):
        row = {"networks": label(part.iloc[0]), "width": width, "epochs": epochs} | _barriers(part)
        if axis == "epochs":
            row["Git Re-Basin, loss"] = PAPER.get((part["dataset"].iloc[0], epochs), "")
        rows.append(row)
    return pd.DataFrame(rows)


def failures_table(run: str) -> pd.DataFrame:
    """The failures that Git Re-Basin names, below the usual recipe on the same data, as texts."""
    failures, usual = section(run, "failures"), section(run, "width")
    usual = usual.merge(failures[["dataset", "architecture", "width"]].drop_duplicates())
    rows = []
    for (name, width, epochs), part in pd.concat([usual, failures]).groupby(["recipe", "width", "epochs"], sort=False):
        one = part.iloc[0]
        training = f"{OPTIMISERS[one['optimiser']]} at {one['learning_rate']:g}"
        change = "the usual recipe" if name.endswith("width") else _ending(name, CHANGES)
        row = {"networks": f"{label(one)}, width {width}", "": change, "training": f"{training}, {epochs} epochs"}
        rows.append(row | {"accuracy of the ends (%)": points(mean(part, "accuracy_ends"))} | _barriers(part))
    return pd.DataFrame(rows)


def norms_table(run: str) -> pd.DataFrame:
    """BatchNorm and LayerNorm networks, matched, by what mends the points of their paths, as texts."""
    rows = []
    for name, part in section(run, "norms").groupby("recipe", sort=False):
        for mended, path in MENDED.items():
            here = part[part["mended"] == mended]
            if len(here):
                one = here.iloc[0]
                rows.append(
                    {
                        "networks": f"{label(one).split(',')[0]}, width {one['width']}, {one['epochs']} epochs",
                        "norm": _ending(name, NORMS),
                        "path": path,
                        "points": here["points"].iloc[0],
                        "accuracy of the ends (%)": points(mean(here, "accuracy_ends", mended=mended)),
                        "of the midpoint (%)": points(mean(here, "accuracy_midpoint", mended=mended)),
                        "barrier in loss (nats)": nats(mean(here, "loss_barrier", mended=mended)),
                        "barrier in accuracy (points)": points(mean(here, "accuracy_barrier", mended=mended)),
                        "n": mean(here, "loss_barrier", mended=mended).n,
                    }
                )
    return pd.DataFrame(rows)


def split_table(run: str) -> pd.DataFrame:
    """Ends and midpoint of networks whose data were shared out between them, or not, as texts."""
    rows = []
    for name, part in section(run, "split").groupby("recipe", sort=False):
        for algorithm, matched in (("naive", "as they are"), ("weights", "matched")):
            for mended in ("none", "repair"):
                kind = {"algorithm": algorithm, "mended": mended}
                rows.append(
                    {
                        "data": _ending(name, SHARES),
                        "pairs": matched + (", after REPAIR" if mended == "repair" else ""),
                        "loss of the ends (nats)": nats(mean(part, "loss_ends", **kind)),
                        "of the midpoint (nats)": nats(mean(part, "loss_midpoint", **kind)),
                        "accuracy of the ends (%)": points(mean(part, "accuracy_ends", **kind)),
                        "of the midpoint (%)": points(mean(part, "accuracy_midpoint", **kind)),
                        "n": mean(part, "loss_ends", **kind).n,
                    }
                )
    return pd.DataFrame(rows)


def _barriers(part: pd.DataFrame) -> dict[str, str | int]:
    """The barriers of one recipe: in loss as they are, matched, and repaired; in accuracy, matched."""
    return {
        "loss, not matched (nats)": nats(mean(part, "loss_barrier", "naive")),
        "loss, matched (nats)": nats(mean(part, "loss_barrier")),
        "after REPAIR": nats(mean(part, "loss_barrier", mended="repair")),
        "accuracy, matched (points)": points(mean(part, "accuracy_barrier")),
        "after REPAIR ": points(mean(part, "accuracy_barrier", mended="repair")),
        "n": mean(part, "loss_barrier").n,
    }


def _ending(name: str, words: dict[str, str]) -> str:
    """What the ending of a recipe's name stands for."""
    return next(word for ending, word in words.items() if name.endswith(ending))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
