"""When the barrier between two networks is zero: over width and training time, of failures, norms, data shared out."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset
from lab.bookkeeping.vocabulary import MATCHERS, OPTIMISERS
from lab.networks import ARCHITECTURES
from lab.report.claims import FEWEST_FOR_VERDICT, last_snapshots, picked
from lab.report.facts import FEW, Facts, outcome, reads
from lab.report.pairs import (
    EITHER,
    FALLS,
    RISES,
    barriers_over,
    by_pair,
    in_nats,
    in_points,
    state,
    title_of_networks,
)
from lab.report.statistics import interval, unsigned
from lab.report.verdicts import ZERO, claim
from lab.report.words import decimal, nats, points, side

NOT_MEASURED = "not measured"
# Of a pair's two networks: which images they saw.
SUBSETS = {"split": "shared out", "all": "all, for both"}
# What is done to a path's points, as the table of norms calls it.
PATHS = {"none": "as merged", "repair": "REPAIR at the midpoint", "reset": "statistics measured anew"}
# Git Re-Basin's barriers once matched on CIFAR-10, in nats of test loss by epoch: where two arrows in its plot's code
# point, the second at epoch 22 in place of 25.
PAPER_CIFAR10 = {1: 0.31, 25: 0.015}


def section(run: str, name: str) -> pd.DataFrame:
    """The rows of a run's table ``barriers`` that were measured for a question, perhaps none.

    Of networks with several snapshots the last one's, but for the question of training time: a pair counts once.
    """
    table = picked(results.read(run, "barriers", "barriers"), {"section": name})
    return table if name == "epochs" else last_snapshots(table)


def shortest_and_longest(run: str, axis: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The rows at the first and at the last value of ``axis``, width or epochs, of each recipe that has several."""
    ends = []
    for _, recipe in section(run, axis).groupby("recipe", sort=False):
        if recipe[axis].nunique() > 1:
            ends.append(tuple(recipe[recipe[axis] == end] for end in (recipe[axis].min(), recipe[axis].max())))
    return ends


@reads("barriers")
def over_width(run: str) -> Facts:
    """What the barrier in loss does from the narrowest networks to the widest.

    Outcomes: ``falls``, ``rises``, ``open``, or ``too few`` pairs for a verdict, of each recipe with several widths in
    turn, joined by commas; ``not measured`` without any. Values begin with the architecture: ``mlp_loss_first``.
    """
    return _trends(run, "width")


@reads("barriers")
def over_epochs(run: str) -> Facts:
    """The same from the shortest training to the longest."""
    return _trends(run, "epochs")


def _trends(run: str, axis: str) -> Facts:
    directions, values = [], {}
    for first, last in shortest_and_longest(run, axis):
        fall = interval((by_pair(first, "loss_barrier") - by_pair(last, "loss_barrier")).dropna().to_numpy())
        directions.append(FEW if fall.n < FEWEST_FOR_VERDICT else side(fall, 0.0, FALLS, RISES, EITHER))
        name = first["architecture"].iloc[0]
        values[f"{name}_n"] = str(fall.n)
        for place, rows in (("first", first), ("last", last)):
            values[f"{name}_{place}"] = str(rows[axis].iloc[0])
            values[f"{name}_loss_{place}"] = nats(in_nats(rows, "loss_barrier"))
            values[f"{name}_accuracy_{place}"] = points(in_points(rows, "accuracy_barrier"))
    return Facts(", ".join(directions) or NOT_MEASURED, values)


@reads("barriers")
def widest(run: str) -> Facts:
    """What is left of the barrier at the largest width, of each recipe with several widths.

    Outcomes: ``gone``, ``still there`` or ``not decided`` in loss and in accuracy, such as ``loss gone, accuracy still
    there``; several recipes are joined by semicolons. Values as ``over_width``.
    """
    left = []
    for _, last in shortest_and_longest(run, "width"):
        loss = state(in_nats(last, "loss_barrier"), ZERO["loss"])
        left.append(f"loss {loss}, accuracy {state(in_points(last, 'accuracy_barrier'), ZERO['accuracy'])}")
    return Facts("; ".join(left) or NOT_MEASURED, over_width(run).values)


@reads("barriers")
def means_over_epochs(run: str) -> Facts:
    """What the mean barriers do from the shortest training to the longest, whatever their intervals.

    Outcomes: such as ``loss falls, accuracy rises``; several recipes are joined by semicolons. Values as
    ``over_epochs``.
    """
    directions = []
    for first, last in shortest_and_longest(run, "epochs"):
        means = {
            metric: [by_pair(rows, f"{metric}_barrier").mean() for rows in (first, last)]
            for metric in ("loss", "accuracy")
        }
        directions.append(
            ", ".join(f"{metric} {FALLS if end < start else RISES}" for metric, (start, end) in means.items())
        )
    return Facts("; ".join(directions) or NOT_MEASURED, over_epochs(run).values)


@reads("barriers")
def tempered_over_epochs(run: str) -> Facts:
    """What the mean barrier in loss on CIFAR-10 does with training once each network has its best softmax temperature.

    Outcomes: ``falls`` or ``rises`` from the shortest training to the longest; ``not measured``. Values are barriers at
    the best temperatures, and those of the midpoint, ``first`` and ``last``: below one is not sure enough.
    """
    for first, last in shortest_and_longest(run, "epochs"):
        if first["dataset"].iloc[0] == "cifar10":
            start, end = (in_nats(rows, "loss_barrier_tempered") for rows in (first, last))
            values = {"loss_first": nats(start), "loss_last": nats(end)}
            for place, rows in (("first", first), ("last", last)):
                values[f"midpoint_{place}"] = decimal(in_nats(rows, "temperature_midpoint").mean, 2)
            return Facts(FALLS if end.mean < start.mean else RISES, values)
    return Facts(NOT_MEASURED, {})


@reads("barriers")
def beside_the_paper(run: str) -> Facts:
    """The barriers in loss on CIFAR-10 at the first and the last epoch of which the paper's plot has one, too.

    Outcomes: ``higher`` than the paper's at the last, in the mean, or ``lower``; ``not measured`` without these epochs.
    """
    table = picked(section(run, "epochs"), {"dataset": "cifar10"})
    first, last = (picked(table, {"epochs": epochs}) for epochs in PAPER_CIFAR10)
    if not len(first) or not len(last):
        return Facts(NOT_MEASURED, {})
    paper_first, paper_last = PAPER_CIFAR10.values()
    at_last = in_nats(last, "loss_barrier")
    values = {
        "first": nats(in_nats(first, "loss_barrier")),
        "last": nats(at_last),
        "paper_first": f"{paper_first:g}",
        "paper_last": f"{paper_last:g}",
        "n": str(at_last.n),
    }
    return Facts("higher" if at_last.mean > paper_last else "lower", values)


@reads("barriers")
def failures(run: str) -> Facts:
    """The barriers in loss where Git Re-Basin says that matching fails: ``sgd`` and ``adam`` on MNIST.

    Outcomes: the verdicts of G9's two conditions, such as ``replicated, replicated``; ``not measured`` without one.
    """
    conditions = {name: claim(run, "G9").condition(name) for name in ("sgd", "adam")}
    if None in conditions.values():
        return Facts(NOT_MEASURED, {})
    values = {name: nats(condition.effect) for name, condition in conditions.items()}
    usual, sgd = _usual(run), picked(section(run, "failures"), {"optimiser": "sgd"})
    values |= {"n": str(conditions["sgd"].effect.n), "usual": nats(in_nats(usual, "loss_barrier"))}
    for name, rows in (("usual", usual), ("sgd", sgd)):
        values[f"{name}_accuracy"] = decimal(in_points(rows, "accuracy_ends").mean, 0)
    return Facts(", ".join(condition.verdict for condition in conditions.values()), values)


def _usual(run: str) -> pd.DataFrame:
    """The usual recipe's rows, on the same data and of the same networks as those that fail."""
    networks = ["dataset", "architecture", "width"]
    return section(run, "width").merge(section(run, "failures")[networks].drop_duplicates())


@reads("barriers")
def batch_norm(run: str) -> Facts:
    """What measuring BatchNorm's statistics anew does to the barrier between matched networks.

    Outcomes: whether the barrier in loss ``falls``, ``rises`` or is ``open``, on ``too few`` pairs whether its mean
    falls or rises, and what is left: such as ``falls, still there`` or ``too few, falls, still there``.
    """
    table = _of_norm(run, "BatchNorm")
    if not len(table):
        return Facts(NOT_MEASURED, {})
    fall = interval((by_pair(table, "loss_barrier") - by_pair(table, "loss_barrier", mended="reset")).to_numpy())
    values = {"fall": nats(fall), "n": str(fall.n), "needed": str(FEWEST_FOR_VERDICT)}
    for mended in PATHS:
        values |= {
            f"loss_{mended}": nats(in_nats(table, "loss_barrier", mended=mended)),
            f"accuracy_{mended}": points(in_points(table, "accuracy_barrier", mended=mended)),
            f"midpoint_{mended}": decimal(in_points(table, "accuracy_midpoint", mended=mended).mean, 0),
        }
    values["ends"] = decimal(in_points(table, "accuracy_ends").mean, 0)
    direction = side(fall, 0.0, FALLS, RISES, EITHER)
    if fall.n < FEWEST_FOR_VERDICT:
        direction = f"{FEW}, {FALLS if fall.mean > 0 else RISES}"
    return Facts(f"{direction}, {state(in_nats(table, 'loss_barrier', mended='reset'), ZERO['loss'])}", values)


@reads("barriers")
def layer_norm(run: str) -> Facts:
    """The barrier between matched LayerNorm networks, beside which those with BatchNorm stand.

    Outcomes: ``gone``, ``still there`` or ``not decided`` in loss; ``too few`` pairs for a verdict.
    """
    table = _of_norm(run, "LayerNorm")
    if not len(table):
        return Facts(NOT_MEASURED, {})
    loss = in_nats(table, "loss_barrier")
    values = {
        "loss": nats(loss),
        "accuracy": points(in_points(table, "accuracy_barrier")),
        "ends": decimal(in_points(table, "accuracy_ends").mean, 0),
        "midpoint": decimal(in_points(table, "accuracy_midpoint").mean, 0),
        "n": str(loss.n),
    }
    return Facts(FEW if loss.n < FEWEST_FOR_VERDICT else state(loss, ZERO["loss"]), values)


def _of_norm(run: str, norm: str) -> pd.DataFrame:
    table = section(run, "norms")
    return table[table["architecture"].map(lambda name: ARCHITECTURES[name].norm) == norm]


@reads("barriers")
def shared_out(run: str) -> Facts:
    """By how much the midpoint of two networks that saw different images is better than the better one.

    Outcomes: where the intervals of that lie, in loss and accuracy: ``loss above, accuracy below``; see ``_subset``.
    """
    return _subset(run, "split")


@reads("barriers")
def all_for_both(run: str) -> Facts:
    """The same, of two networks that saw all images."""
    return _subset(run, "all")


def _subset(run: str, subset: str) -> Facts:
    """Each ``above`` zero, ``below`` or ``open``, or ``too few`` pairs for an interval; ``not measured`` without any.

    ``better`` and ``more_accurate`` count the pairs whose midpoint is better than both; the others have no sign.
    """
    table = picked(section(run, "split"), {"subset": subset})
    if not len(table):
        return Facts(NOT_MEASURED, {})
    loss, accuracy = in_nats(table, "loss_gain"), in_points(table, "accuracy_gain")
    values = {
        "loss_by": nats(unsigned(loss)),
        "accuracy_by": points(unsigned(accuracy)),
        "better": str((by_pair(table, "loss_gain") > 0).sum()),
        "more_accurate": str((by_pair(table, "accuracy_gain") > 0).sum()),
        "n": str(loss.n),
        "needed": str(FEWEST_FOR_VERDICT),
    }
    return Facts(f"loss {outcome(loss)}, accuracy {outcome(accuracy)}", values)


@reads("barriers")
def width_table(run: str) -> pd.DataFrame:
    """Barriers by width, a row for each recipe and width."""
    return _trend_table(run, "width")


@reads("barriers")
def epochs_table(run: str) -> pd.DataFrame:
    """Barriers by training time, a row for each recipe and number of epochs, beside the paper's."""
    return _trend_table(run, "epochs")


def _trend_table(run: str, axis: str) -> pd.DataFrame:
    rows = []
    for (_, width, epochs), part in section(run, axis).groupby(["recipe", "width", "epochs"]):
        row = {"networks": title_of_networks(part), "width": str(width), "epochs": str(epochs)} | _barriers(part)
        if axis == "epochs":
            of_paper = part["dataset"].iloc[0] == "cifar10" and epochs in PAPER_CIFAR10
            row["arrow in Git Re-Basin's plot"] = f"{PAPER_CIFAR10[epochs]:g}" if of_paper else ""
        rows.append(row)
    return pd.DataFrame(rows)


@reads("barriers")
def failures_table(run: str) -> pd.DataFrame:
    """The failures that Git Re-Basin names, below the usual recipe on the same data."""
    rows = []
    for name, table in (("usual", _usual(run)), ("said to fail", section(run, "failures"))):
        for (_, width, epochs), part in table.groupby(["recipe", "width", "epochs"], sort=False):
            recipe = part.iloc[0]
            training = f"{OPTIMISERS[recipe['optimiser']]} at {recipe['learning_rate']:g}, {epochs} epochs"
            row = {"networks": f"{title_of_networks(part)}, width {width}", "recipe": name, "training": training}
            rows.append(row | {"accuracy of the ends (%)": points(in_points(part, "accuracy_ends"))} | _barriers(part))
    return pd.DataFrame(rows)


@reads("barriers")
def norms_table(run: str) -> pd.DataFrame:
    """BatchNorm and LayerNorm networks, matched, by what mends the points of their paths."""
    rows = []
    for _, part in section(run, "norms").groupby("recipe", sort=False):
        recipe = part.iloc[0]
        for mended, path in PATHS.items():
            table = picked(part, {"mended": mended})
            if len(table):
                rows.append(
                    {
                        "networks": f"{title_of_networks(part)}, width {recipe['width']}, {recipe['epochs']} epochs",
                        "path": path,
                        "points": str(table["points"].iloc[0]),
                        "accuracy of the ends (%)": points(in_points(table, "accuracy_ends", mended=mended)),
                        "of the midpoint (%)": points(in_points(table, "accuracy_midpoint", mended=mended)),
                        "barrier in loss (nats)": nats(in_nats(table, "loss_barrier", mended=mended)),
                        "over three points": nats(in_nats(table, "loss_barrier_of_three", mended=mended)),
                        "barrier in accuracy (points)": points(in_points(table, "accuracy_barrier", mended=mended)),
                        "n": str(in_nats(table, "loss_barrier", mended=mended).n),
                    }
                )
    return pd.DataFrame(rows)


@reads("barriers")
def split_table(run: str) -> pd.DataFrame:
    """Ends and midpoint of networks whose data were shared out between them, or not."""
    rows = []
    for _, part in section(run, "split").groupby("recipe", sort=False):
        for matcher in ("none", "weights"):
            for mended in ("none", "repair"):
                kind = {"matcher": matcher, "mended": mended}
                rows.append(
                    {
                        "data": SUBSETS[part["subset"].iloc[0]],
                        "pairs": MATCHERS[matcher].title + (", after REPAIR" if mended == "repair" else ""),
                        "loss of the ends (nats)": nats(in_nats(part, "loss_ends", **kind)),
                        "of the midpoint (nats)": nats(in_nats(part, "loss_midpoint", **kind)),
                        "accuracy of the ends (%)": points(in_points(part, "accuracy_ends", **kind)),
                        "of the midpoint (%)": points(in_points(part, "accuracy_midpoint", **kind)),
                        "n": str(in_nats(part, "loss_ends", **kind).n),
                    }
                )
    return pd.DataFrame(rows)


def _barriers(table: pd.DataFrame) -> dict[str, str]:
    """The barriers of one recipe: in loss not matched, matched, and repaired; in accuracy, matched."""
    return {
        "loss, not matched (nats)": nats(in_nats(table, "loss_barrier", "none")),
        "loss, matched (nats)": nats(in_nats(table, "loss_barrier")),
        "over three points": nats(in_nats(table, "loss_barrier_of_three")),
        "after REPAIR": nats(in_nats(table, "loss_barrier", mended="repair")),
        "accuracy, matched (points)": points(in_points(table, "accuracy_barrier")),
        "over three points ": points(in_points(table, "accuracy_barrier_of_three")),
        "after REPAIR ": points(in_points(table, "accuracy_barrier", mended="repair")),
        "n": str(in_nats(table, "loss_barrier").n),
    }


@reads("barriers")
def not_run(run: str) -> pd.DataFrame:
    """The networks that the presets plan, and the run does not have: a row for each recipe of a preset."""
    measured = results.read(run, "barriers", "barriers")[["recipe", "width"]].drop_duplicates()
    known = set(measured.itertuples(index=False, name=None))
    rows = []
    for preset in ("cpu", "gpu"):
        planned = pd.DataFrame(load_preset(preset)["barrier_recipes"])
        planned = planned.fillna({"architecture": "mlp", "width": ARCHITECTURES["mlp"].width})
        for _, entries in planned.groupby("recipe", sort=False):
            widths = [int(width) for width in entries["width"] if (entries["recipe"].iloc[0], width) not in known]
            known |= {(entries["recipe"].iloc[0], width) for width in widths}
            if widths:
                rows.append(
                    {
                        "question": entries["section"].iloc[0],
                        "networks": title_of_networks(entries),
                        "widths": ", ".join(map(str, sorted(widths))),
                        "preset": preset,
                    }
                )
    return pd.DataFrame(rows, columns=["question", "networks", "widths", "preset"])


@reads("barriers")
def barriers_over_width(run: str) -> Figure:
    """Barriers of matched pairs over width, as merged and after REPAIR: a line for each recipe."""
    return barriers_over(section(run, "width"), "width", "width of the first layer")


@reads("barriers")
def barriers_over_epochs(run: str) -> Figure:
    """Barriers of matched pairs over training time, as merged and after REPAIR: a line for each recipe."""
    return barriers_over(section(run, "epochs"), "epochs", "epochs of training")
