"""The hierarchy beside other ways of merging: accuracy by number of models, what merging costs, and barriers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, MATCHERS, Drawn
from lab.networks import ARCHITECTURES
from lab.report.claims import FEWEST_FOR_VERDICT, contrast, picked
from lab.report.draw import ink, interval_line, legend_below, name_ends, offsets, on_page, shades, width, word_colour
from lab.report.facts import Facts, outcome, reads
from lab.report.page import data_titles
from lab.report.statistics import Interval, interval
from lab.report.verdicts import ZERO, claim
from lab.report.words import decimal, listed, nats, points, side

BLOCK = 8  # leaves of the nodes that the claims are decided on
MOST_ROUNDS = 100  # of MergeMany, which ends there even where another round would help
NOT_MEASURED = "not measured"
SPLITS = {"test": "test images", "train": "training images"}


@reads("accuracy")
def against_many(run: str) -> Facts:
    """Test accuracy of the hierarchy minus that of MergeMany on the same eight networks, in points; each in percent.

    Outcomes: where the gap's interval lies, ``above``, ``below`` or ``open``; ``too few`` networks for a verdict; ``not
    measured`` where the run has no merges of eight by one of the two.
    """
    return _against(run, "H2", "at_8", {"hierarchy": BLOCK, "many": BLOCK, "unmerged": 1})


@reads("accuracy")
def against_naive(run: str) -> Facts:
    """As ``against_many``, beside the average of the same networks as they are."""
    return _against(run, "H1", "at_8", {"hierarchy": BLOCK, "mean": BLOCK})


def _against(run: str, name: str, condition: str, kinds: dict[str, int]) -> Facts:
    """The gap of a claim's condition, and the accuracy of each kind, a number of leaves by algorithm."""
    gap = claim(run, name).condition(condition)
    if gap is None:
        return Facts(NOT_MEASURED, {})
    made, images = results.provenance(run, "accuracy"), results.read(run, "accuracy", "images")
    means = {kind: contrast(images, [term(kind, size)], BLOCK).mean() for kind, size in kinds.items()}
    networks = made["parameters"]["networks"]
    values = {
        "gap": points(gap.effect, signed=True),
        "lead": decimal(abs(gap.effect.mean), 1),
        "n": str(gap.effect.n),
        "networks": f"{ARCHITECTURES[networks['architecture']].title}s of width {networks['width']}",
        "data": listed(data_titles(made["dataset"])),
    }
    return Facts(
        outcome(gap.effect, gap.bound, FEWEST_FOR_VERDICT),
        values | {kind: decimal(mean, 1) for kind, mean in means.items()},
    )


@reads("accuracy")
def growth(run: str) -> Facts:
    """By how many points the gap to MergeMany is larger at eight networks than at four; outcomes as ``against_many``.

    ``gap`` is that at the largest number of networks, ``models``, that both have merged, from ``n`` groups.
    """
    grows = claim(run, "H2").condition("grows")
    if grows is None:
        return Facts(NOT_MEASURED, {})
    images = results.read(run, "accuracy", "images")
    largest = max(set(sizes_of(images, "hierarchy")) & set(sizes_of(images, "many")))
    gap = _gap(images, largest)
    values = {"growth": points(grows.effect, signed=True), "models": str(largest)}
    return Facts(
        outcome(grows.effect, grows.bound, FEWEST_FOR_VERDICT),
        values | {"gap": points(gap, signed=True), "n": str(gap.n)},
    )


@reads("accuracy")
def cost(run: str) -> Facts:
    """How many points of test accuracy the hierarchy of eight lies below the mean of its own leaves.

    Outcomes as ``against_many``, but against the claim's bound, which is among the values.
    """
    drop = claim(run, "H3").condition("at_8")
    if drop is None:
        return Facts(NOT_MEASURED, {})
    values = {"lost": points(drop.effect), "n": str(drop.effect.n), "bound": f"{drop.bound:g}"}
    return Facts(outcome(drop.effect, drop.bound, FEWEST_FOR_VERDICT), values)


@reads("accuracy")
def cost_by_size(run: str) -> Facts:
    """Points of test accuracy that each way of merging loses, at the largest number of models that all have merged.

    Outcomes: ``grows`` if the hierarchy and MergeMany lose more, in the mean, with every doubling, else ``does not
    grow``; ``not measured`` where one of the two was not run.
    """
    nodes = results.read(run, "accuracy", "nodes")
    if not {"hierarchy", "many"} <= set(ways_of(nodes)):
        return Facts(NOT_MEASURED, {})
    size = max(set.intersection(*(set(sizes_of(nodes, algorithm)) for algorithm in ways_of(nodes))))
    lost = {algorithm: interval(drops(nodes, algorithm, size, "test", "accuracy")) for algorithm in ways_of(nodes)}
    values = {"models": str(size), "n": str(lost["hierarchy"].n)}
    grows = all(_loses_more_each_time(nodes, algorithm) for algorithm in ("hierarchy", "many"))
    return Facts("grows" if grows else "does not grow", values | {name: points(value) for name, value in lost.items()})


def _loses_more_each_time(nodes: pd.DataFrame, algorithm: str) -> bool:
    lost = [drops(nodes, algorithm, size, "test", "accuracy").mean() for size in sizes_of(nodes, algorithm)]
    return [0.0, *lost] == sorted([0.0, *lost])


@reads("accuracy")
def barriers(run: str) -> Facts:
    """The barriers between two networks, matched and as they are, in points and nats, on test and on training images.

    Outcomes, of either: ``gone`` if matching leaves none; ``not lowered`` if it leaves one of them as high as it was;
    else what is left, such as ``accuracy still there, loss gone``, each ``gone``, ``still there`` or ``not decided``.
    Joined: ``gone on test images, not lowered on training images``. Values are by split: ``loss_test``, ``loss_train``.
    """
    test, train = (_barrier(run, split) for split in ("test", "train"))
    values = {f"{name}_test": value for name, value in test.values.items()}
    values |= {f"{name}_train": value for name, value in train.values.items()}
    return Facts(f"{test.outcome} on test images, {train.outcome} on training images", values)


def _barrier(run: str, split: str) -> Facts:
    pairs = picked(results.read(run, "accuracy", "barriers"), {"n_leaves": 2, "split": split})
    matched, unmatched = (picked(pairs, {"matcher": matcher}) for matcher in ("weights", "none"))
    accuracy, loss = _height(matched, "accuracy_barrier"), _height(matched, "loss_barrier")
    accuracy_unmatched, loss_unmatched = _height(unmatched, "accuracy_barrier"), _height(unmatched, "loss_barrier")
    states = [
        side(value, ZERO[metric], "still there", "gone", "not decided")
        for metric, value in (("accuracy", accuracy), ("loss", loss))
    ]
    if accuracy.mean >= accuracy_unmatched.mean or loss.mean >= loss_unmatched.mean:
        left = "not lowered"
    else:
        left = "gone" if states == ["gone", "gone"] else f"accuracy {states[0]}, loss {states[1]}"
    values = {
        "accuracy": points(accuracy),
        "accuracy_unmatched": points(accuracy_unmatched),
        "loss": nats(loss),
        "loss_unmatched": nats(loss_unmatched),
        "n": str(accuracy.n),
    }
    return Facts(left, values)


def _height(pairs: pd.DataFrame, metric: str) -> Interval:
    """A barrier of pairs: in accuracy in points, in loss in nats."""
    scale = 100 if metric.startswith("accuracy") else 1
    return interval(scale * picked(pairs, {"metric": metric})["value"].to_numpy())


@reads("merge")
def rounds(run: str) -> Facts:
    """Whether MergeMany always came to a round that shortened no distance: ``ended``, or ``stopped``.

    Where it was stopped, some groups used up their ``limit`` of rounds: ``stopped`` says how many, of how many models.
    """
    effort = picked(results.read(run, "merge", "nodes"), {"algorithm": "many", "metric": "effort"})
    groups = effort.groupby("n_leaves")["value"]
    stopped = [
        f"{(values >= MOST_ROUNDS).sum()} of {len(values)} groups of {size}"
        for size, values in groups
        if values.max() >= MOST_ROUNDS
    ]
    values = {
        "limit": str(MOST_ROUNDS),
        "most": f"{effort['value'].max():.0f}",
        "stopped": ", ".join(stopped) or "none",
    }
    return Facts("stopped" if stopped else "ended", values)


@reads("accuracy")
def accuracy_table(run: str) -> pd.DataFrame:
    """Test accuracy by number of models and way of merging, and the hierarchy's gap to MergeMany.

    A cell is empty where an algorithm was not run.
    """
    images = results.read(run, "accuracy", "images")
    rows = []
    for size in sorted(images["n_leaves"].unique().tolist()):
        row = {"models": str(size)}
        for algorithm in ("unmerged", *ways_of(images)):
            title = ALGORITHMS[algorithm].title
            row[title] = ""
            if size in sizes_of(images, algorithm):
                mean = interval(contrast(images, [term(algorithm, size)], size))
                row |= {title: points(mean), "n": str(mean.n)}
        both = all(size in sizes_of(images, algorithm) for algorithm in ("hierarchy", "many"))
        rows.append(row | {"gap": points(_gap(images, size), signed=True) if both else ""})
    table = pd.DataFrame(rows)
    return table[[column for column in table if column != "n"] + ["n"]]


@reads("accuracy")
def cost_table(run: str) -> pd.DataFrame:
    """What merging costs, by number of models and way of merging, in accuracy and loss, on test and training images."""
    nodes = results.read(run, "accuracy", "nodes")
    rows = []
    for algorithm in ways_of(nodes):
        for size in sizes_of(nodes, algorithm):
            row = {"method": ALGORITHMS[algorithm].title, "models": str(size)}
            for metric, unit, written in (("accuracy", "points", points), ("loss", "nats", nats)):
                for split in ("test", "train"):
                    cost_here = interval(drops(nodes, algorithm, size, split, metric))
                    row[f"{metric}, {split} ({unit})"] = written(cost_here)
            rows.append(row | {"n": str(cost_here.n)})
    return pd.DataFrame(rows)


@reads("accuracy")
def barrier_table(run: str) -> pd.DataFrame:
    """Barriers of pairs by both definitions, on test and training images, in accuracy and loss."""
    rows = []
    table = results.read(run, "accuracy", "barriers")
    # Those as they are come last.
    for (matcher, size, split), pairs in table.groupby(["matcher", "n_leaves", "split"], sort=False):
        row = {"pairs": MATCHERS[matcher].title, "models": str(size), "images": split}
        for metric, unit, written in (("accuracy", "points", points), ("loss", "nats", nats)):
            for definition, title in (("barrier", "from mean"), ("above_line", "above line")):
                row[f"{metric}, {title} ({unit})"] = written(_height(pairs, f"{metric}_{definition}"))
        rows.append(row | {"n": str(pairs["node"].nunique())})
    return pd.DataFrame(rows)


@reads("accuracy")
def accuracy_by_leaves(run: str) -> Figure:
    """Test accuracy of every node by the number of its leaves (Hierarchical Re-Basin, Figure 2).

    A dot is a node, a bar the median of its kind, the dashed line the median of the unmerged networks. Every other
    number of leaves has a strip of its own: where in a strip a dot stands has no meaning.
    """
    nodes = results.read(run, "accuracy", "nodes")
    return dots_by_leaves(picked(nodes, {"metric": "accuracy", "split": "test"}))


def dots_by_leaves(accuracy: pd.DataFrame) -> Figure:
    """The figure of test accuracies (shares), one of each node."""
    sizes = sorted(accuracy["n_leaves"].unique())
    figure, axes = plt.subplots(figsize=(width(), 4.2))
    for place in range(1, len(sizes), 2):
        axes.axvspan(place - 0.5, place + 0.5, color=plt.rcParams["grid.color"], alpha=0.35, linewidth=0, zorder=0)
    leaves, unmerged = ALGORITHMS["unmerged"], _percent(accuracy, "unmerged", 1)
    axes.axhline(np.median(unmerged), color=on_page(leaves.colour), linewidth=1.5, linestyle="--", zorder=1)
    _dots(axes, 0, unmerged, leaves)
    ends = [(np.median(unmerged), leaves.title, word_colour(leaves.colour))]
    ways = ways_of(accuracy)
    for offset, algorithm in zip(offsets(len(ways), 0.5), ways, strict=True):
        drawn, own_sizes = ALGORITHMS[algorithm], sizes_of(accuracy, algorithm)
        for size in own_sizes:
            _dots(axes, sizes.index(size) + offset, _percent(accuracy, algorithm, size), drawn)
        last = np.median(_percent(accuracy, algorithm, own_sizes[-1]))
        ends.append((last, drawn.title, word_colour(drawn.colour)))
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set(xlabel="networks merged into one", ylabel="test accuracy (%)", xlim=(-0.5, len(sizes) - 0.5))
    axes.grid(axis="x", visible=False)
    name_ends(axes, ends)
    return figure


def _percent(accuracy: pd.DataFrame, algorithm: str, n_leaves: int) -> np.ndarray:
    """The accuracy of every node of a kind (nodes,), in percent."""
    return 100 * picked(accuracy, {"algorithm": algorithm, "n_leaves": n_leaves})["value"].to_numpy()


def _dots(axes: plt.Axes, x: float, values: np.ndarray, drawn: Drawn) -> None:
    """One dot per node, spread a little so that they can be told apart, and a dark bar at their median, above them."""
    spread = (np.random.default_rng(0).random(len(values)) - 0.5) * 0.16
    colour = on_page(drawn.colour)
    axes.scatter(x + spread, values, color=colour, s=26, alpha=0.55, linewidth=0, marker=drawn.marker)
    axes.hlines(np.median(values), x - 0.12, x + 0.12, color=ink(), linewidth=2.5, zorder=3, label=drawn.title)


@reads("accuracy")
def drop_by_leaves(run: str) -> Figure:
    """What merging costs: mean of a node's leaves minus the node in accuracy, the node minus its leaves in loss."""
    nodes = results.read(run, "accuracy", "nodes")
    figure, panels = plt.subplots(2, 2, figsize=(width(), 4.8), sharex=True, sharey="row")
    sizes = sorted(nodes["n_leaves"].unique())[1:]
    for metric, row in zip(("accuracy", "loss"), panels, strict=True):
        for split, axes in zip(SPLITS, row, strict=True):
            for algorithm in ways_of(nodes):
                own_sizes, drawn = sizes_of(nodes, algorithm), ALGORITHMS[algorithm]
                lost = [interval(drops(nodes, algorithm, size, split, metric)) for size in own_sizes]
                interval_line(axes, [sizes.index(size) for size in own_sizes], lost, drawn, drawn.title)
            axes.axhline(0, color=ink(), linewidth=1)
    for axes, title in zip(panels[0], SPLITS.values(), strict=True):
        axes.set_title(title)
    panels[0, 0].set_ylabel("accuracy lost (points)")
    panels[1, 0].set_ylabel("loss gained (nats)")
    panels[1, 0].set_xticks(range(len(sizes)), sizes)
    for axes in panels[1]:
        axes.set_xlabel("networks merged into one")
    figure.align_ylabels(panels[:, 0])
    legend_below(figure, panels[0, 0])
    return figure


@reads("accuracy")
def along_the_line(run: str) -> Figure:
    """Accuracy and loss along the line between two parents, on test images beside training images.

    Means over pairs with their 95 % bands.
    """
    paths = results.read(run, "accuracy", "paths")
    figure, panels = plt.subplots(2, 2, figsize=(width(), 4.8), sharex=True, sharey="row")
    sizes = sorted(picked(paths, {"matcher": "weights"})["n_leaves"].unique().tolist())
    lines = [("none", 2, on_page(MATCHERS["none"].colour), "--")]
    lines += [("weights", size, shade, "-") for size, shade in zip(sizes, shades(len(sizes)), strict=True)]
    kinds = [(metric, split) for metric in ("accuracy", "loss") for split in SPLITS]
    for (metric, split), axes in zip(kinds, panels.flat, strict=True):
        for matcher, size, colour, style in lines:
            kind = picked(paths, {"split": split, "matcher": matcher, "n_leaves": size, "metric": metric})
            values = kind.pivot(index="node", columns="lam", values="value")  # (pairs, points)
            scale = 100 if metric == "accuracy" else 1
            bounds = [interval(scale * values[lam].to_numpy()) for lam in values]
            label = "as they are" if matcher == "none" else f"matched, merge of {size}"
            label += f" (n = {len(values)})"
            axes.plot(values.columns, [bound.mean for bound in bounds], style, color=colour, label=label)
            low, high = ([getattr(bound, end) for bound in bounds] for end in ("low", "high"))
            axes.fill_between(values.columns, low, high, color=colour, alpha=0.25, linewidth=0)
    for axes, title in zip(panels[0], SPLITS.values(), strict=True):
        axes.set_title(title)
    panels[0, 0].set_ylabel("accuracy (%)")
    panels[1, 0].set_ylabel("loss (nats)")
    panels[1, 0].set_xticks((0, 0.5, 1), ("0", "½", "1"))
    for axes in panels[1]:
        axes.set_xlabel("λ, from one to the other")
    figure.align_ylabels(panels[:, 0])
    legend_below(figure, panels[0, 0])
    return figure


def line_title(matcher: str, n_leaves: int) -> str:
    """What readers call the line between two parents: of two networks as they are, or matched, into a node."""
    return "two networks as they are" if matcher == "none" else f"matched, into a node of {n_leaves}"


def drops(nodes: pd.DataFrame, algorithm: str, n_leaves: int, split: str, metric: str) -> np.ndarray:
    """The barrier of n models: (nodes,), how much worse each node is than the mean of its own leaves.

    In points of accuracy, or nats of loss; positive is worse.
    """
    measured = picked(nodes, {"split": split, "metric": metric}).sort_values("node")
    leaves = picked(measured, {"algorithm": "unmerged"})["value"].to_numpy()
    merged = picked(measured, {"algorithm": algorithm, "n_leaves": n_leaves})["value"].to_numpy()
    drop = leaves.reshape(-1, n_leaves).mean(1) - merged  # the leaves of a node are neighbours
    return 100 * drop if metric == "accuracy" else -drop


def ways_of(table: pd.DataFrame) -> list[str]:
    """The algorithms that a table has merges by, in the order of the vocabulary."""
    return [name for name in ALGORITHMS if name != "unmerged" and name in set(table["algorithm"])]


def sizes_of(table: pd.DataFrame, algorithm: str) -> list[int]:
    """The numbers of leaves that a table has nodes of: MergeMany may stop at fewer than the others."""
    return sorted(table[table["algorithm"] == algorithm]["n_leaves"].unique().tolist())


def term(algorithm: str, n_leaves: int, weight: int = 1) -> dict[str, object]:
    """A term of ``claims.contrast``."""
    return {"algorithm": algorithm, "n_leaves": n_leaves, "weight": weight}


def _gap(images: pd.DataFrame, size: int) -> Interval:
    """The hierarchy's accuracy minus MergeMany's on the same groups of ``size``, in points."""
    return interval(contrast(images, [term("hierarchy", size), term("many", size, -1)], size))
