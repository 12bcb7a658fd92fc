"""Pairs of transformers: what is left of the barrier between them after each way to bring one to the other."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import DATASETS, Drawn
from lab.networks import ARCHITECTURES
from lab.report.claims import FEWEST_FOR_VERDICT, picked
from lab.report.draw import interval_rows, name_ends, on_page, width, word_colour
from lab.report.facts import ABOVE, BELOW, FEW, OPEN, Facts, outcome, reads
from lab.report.pairs import GONE, NOT_DECIDED, STILL_THERE
from lab.report.statistics import Interval, interval, unsigned
from lab.report.verdicts import ZERO
from lab.report.words import decimal, hundredths, points, side

NOT_MEASURED = "not measured"
TENTH = 0.1  # of the way from one network to the other: the share that the speech-music merge takes of the second
LOWER, NO_LOWER = "lower", "no lower"


@dataclass(frozen=True)
class Way:
    """A way to bring the second network of a pair to the first, as the tables name it, and what a reader calls it.

    ``curve`` is how it is drawn in the figure of a few lines, None where it is not.
    """

    title: str
    form: str
    matcher: str
    stream: str
    curve: Drawn | None = None

    @property
    def columns(self) -> dict[str, str]:
        """What rows of the tables have in their columns that are of this way."""
        return {"form": self.form, "matcher": self.matcher, "stream": self.stream}


WAYS = {
    "naive": Way("as they are", "LayerNorm", "none", "held", Drawn("as they are", "#009E73")),
    "activations": Way(
        "by activations", "LayerNorm", "activations", "matched", Drawn("activations", "#BF8400")
    ),
    "activations_held": Way("by activations, stream held", "LayerNorm", "activations", "held"),
    "correlation": Way("by correlation", "LayerNorm", "correlation", "matched"),
    "correlation_held": Way("by correlation, stream held", "LayerNorm", "correlation", "held"),
    "weights": Way("by weights", "LayerNorm", "weights", "matched", Drawn("weights", "#0072B2")),
    "weights_held": Way("by weights, stream held", "LayerNorm", "weights", "held"),
    "straight_through": Way("straight through", "LayerNorm", "straight-through", "matched"),
    "rewritten": Way("rewritten, as they are", "RMSNorm", "none", "held"),
    "rewritten_weights": Way("rewritten, by weights", "RMSNorm", "weights", "matched"),
    "step_activations": Way("permuted in step, by activations", "RMSNorm", "activations", "permuted"),
    "step_weights": Way("permuted in step, by weights", "RMSNorm", "weights", "permuted"),
    "step_learned": Way("permuted in step, straight through", "RMSNorm", "straight-through", "permuted"),
    "turned_activations": Way(
        "turned, by activations", "RMSNorm", "activations", "turned", Drawn("turned", "#D55E00")
    ),
    "turned_weights": Way("turned, by weights", "RMSNorm", "weights", "turned"),
    "turned_heads": Way("turned with heads, by weights", "RMSNorm", "weights", "turned with heads"),
    "learned": Way("turned, straight through", "RMSNorm", "straight-through", "turned"),
    "learned_heads": Way(
        "turned with heads, straight through", "RMSNorm", "straight-through", "turned with heads",
        Drawn("turned, learned", "#CC79A7"),
    ),
}  # fmt: skip
PERMUTED = (
    "activations", "correlation", "weights", "straight_through", "step_activations", "step_weights", "step_learned",
)  # fmt: skip
TURNED = ("turned_activations", "turned_weights", "turned_heads", "learned", "learned_heads")
# Of each matcher, the way that permutes the stream and the one that turns it.
BY_MATCHER = {
    "activations": ("activations", "turned_activations"),
    "weights": ("weights", "turned_weights"),
    "straight_through": ("straight_through", "learned"),
}
# The same, permuted from the same starts by the same steps.
IN_STEP = {
    "activations": ("step_activations", "turned_activations"),
    "weights": ("step_weights", "turned_weights"),
    "straight_through": ("step_learned", "learned"),
}
HELD = {"activations": "activations_held", "correlation": "correlation_held", "weights": "weights_held"}
# The barriers in nats that Generalized LMC reports of vision transformers on CIFAR-10.
PAPER = {"naive": 1.69, "activations": 1.27, "weights": 0.36, "permuted": 0.45, "turned": 0.0}
STYLES = {
    "vit": Drawn("vision transformers, digits", "#0072B2", "o"),
    "cifar10": Drawn("vision transformers, CIFAR-10", "#009E73", "D"),
    "language": Drawn("language models", "#D55E00", "s"),
}
IMAGES = ("vit", "cifar10")  # the kinds that recognise images


def networks(run: str) -> dict[str, str]:
    """The recipe of each kind that a run has, in order: ``vit`` on digits, ``cifar10``, and ``language``."""
    table = results.read(run, "transformers", "barriers")
    recipes = {}
    for recipe, rows in table.groupby("recipe"):
        architecture, dataset = rows[["architecture", "dataset"]].iloc[0]
        kind = "language" if architecture == "language" else "cifar10" if dataset == "cifar10" else "vit"
        recipes[kind] = str(recipe)
    return {kind: recipes[kind] for kind in STYLES if kind in recipes}


def barriers_of(run: str, kind: str) -> pd.DataFrame:
    """The rows of the table ``barriers`` on one kind of networks; none where the run lacks them."""
    return picked(results.read(run, "transformers", "barriers"), {"recipe": networks(run).get(kind)})


def by_pair(table: pd.DataFrame, way: str, metric: str) -> np.ndarray:
    """A metric of one way, (pairs,)."""
    return (
        picked(table, {**WAYS[way].columns, "metric": metric})
        .set_index("node", verify_integrity=True)["value"]
        .sort_index()
        .to_numpy()
    )


def in_nats(table: pd.DataFrame, way: str, metric: str = "loss_barrier") -> Interval:
    return interval(by_pair(table, way, metric))


def lowest(table: pd.DataFrame, ways: tuple[str, ...]) -> str:
    """That of some ways with the lowest mean barrier in test loss."""
    return min(ways, key=lambda way: in_nats(table, way).mean)


def state(value: Interval) -> str:
    """What is left of a barrier in loss: ``gone``, ``still there``, ``not decided``, or ``too few`` pairs for that."""
    return FEW if value.n < FEWEST_FOR_VERDICT else side(value, ZERO["loss"], STILL_THERE, GONE, NOT_DECIDED)


def told(run: str, kind: str) -> Facts:
    """The barriers in test loss on one kind of networks, in nats, by the names of ``WAYS``, and what they are of.

    ``weights_midpoint`` is the accuracy halfway in percent, ``weights_perplexity`` the exponential of the loss there.
    ``permuted`` and ``turned`` are the lowest barriers by permutations and by rotations, and ``permuted_way`` is what a
    reader calls the way. Outcomes: the states of these two, as ``state`` has them, joined by a comma.
    """
    table = barriers_of(run, kind)
    if not len(table):
        return Facts(NOT_MEASURED, {})
    values = {}
    for name in WAYS:
        values[name] = hundredths(in_nats(table, name))
        values[f"{name}_midpoint"] = points(interval(100 * by_pair(table, name, "accuracy_midpoint")))
        values[f"{name}_perplexity"] = decimal(math.exp(by_pair(table, name, "loss_midpoint").mean()), 1)
    best = {"permuted": lowest(table, PERMUTED), "turned": lowest(table, TURNED)}
    for group, name in best.items():
        values[group], values[f"{group}_way"] = values[name], WAYS[name].title
        values[f"{group}_midpoint"], values[f"{group}_perplexity"] = (
            values[f"{name}_{what}"] for what in ("midpoint", "perplexity")
        )
    values |= described(table)
    return Facts(", ".join(state(in_nats(table, name)) for name in best.values()), values)


def described(table: pd.DataFrame) -> dict[str, str]:
    """What a reader is told of one kind of networks: how many there are, how they were trained, and what they reach."""
    first, accuracy = table.iloc[0], 100 * by_pair(table, "naive", "accuracy_ends")
    return {
        "n": str(len(accuracy)),
        "models": str(2 * len(accuracy)),
        "width": str(first["width"]),
        "epochs": str(first["epochs"]),
        "data": DATASETS[first["dataset"]],
        "title": ARCHITECTURES[first["architecture"]].title,
        "accuracy": decimal(accuracy.mean(), 1),
        "loss": decimal(by_pair(table, "naive", "loss_ends").mean(), 2),
        "perplexity": decimal(math.exp(by_pair(table, "naive", "loss_ends").mean()), 1),
    }


@reads("transformers")
def vit(run: str) -> Facts:
    """The barriers between vision transformers; outcomes and values as ``told``, and ``paper_naive`` and so on."""
    return _beside_paper(told(run, "vit"))


@reads("transformers")
def cifar10(run: str) -> Facts:
    """The barriers between vision transformers on CIFAR-10, as ``vit`` has them."""
    return _beside_paper(told(run, "cifar10"))


def _beside_paper(facts: Facts) -> Facts:
    return Facts(facts.outcome, {**facts.values, **{f"paper_{name}": f"{high:.2f}" for name, high in PAPER.items()}})


@reads("transformers")
def language(run: str) -> Facts:
    """The barriers between language models; outcomes and values as ``told``."""
    return told(run, "language")


@reads("transformers")
def recipe(run: str) -> Facts:
    """What ``described`` tells of all kinds of networks, as ``vit_epochs``; outcomes: ``all`` kinds, or ``some``."""
    kinds = networks(run)
    values = {}
    for kind in kinds:
        values |= {f"{kind}_{name}": text for name, text in described(barriers_of(run, kind)).items()}
    return Facts("all" if len(kinds) == len(STYLES) else "some", values)


@reads("transformers")
def turning(run: str) -> Facts:
    """By how many nats turning the stream has a lower barrier than permuting it, by network and matcher.

    ``vit_activations`` is a difference with its sign. The outcome says for each matcher whether turning is ``lower``,
    ``no lower`` or ``open``, kind by kind of those in ``STYLES`` that the run has; or ``too few``.
    """
    return _differences(run, BY_MATCHER)


@reads("transformers")
def in_step(run: str) -> Facts:
    """The same, beside permutations that are found from the same starts by the same steps; likewise."""
    return _differences(run, IN_STEP)


@reads("transformers")
def starts(run: str) -> Facts:
    """The same for permuting by weights from where activations end, beside permuting networks as they are; likewise."""
    return _differences(run, {"weights": ("rewritten_weights", "step_weights")})


@reads("transformers")
def holding(run: str) -> Facts:
    """By how many nats the barrier is lower with the stream matched than held; outcomes and values as ``turning``."""
    return _differences(run, {matcher: (held, matcher) for matcher, held in HELD.items()})


@reads("transformers")
def rewriting(run: str) -> Facts:
    """By how many nats the barrier is lower once LayerNorm is rewritten, and nothing turned; likewise."""
    pairs = {"naive": "rewritten", "weights": "rewritten_weights"}
    return _differences(run, {name: (name, other) for name, other in pairs.items()})


def _differences(run: str, pairs: Mapping[str, tuple[str, str]], kinds: Collection[str] = tuple(STYLES)) -> Facts:
    """By how many nats the second way of each pair has a lower barrier than the first, signed; ``size_..`` unsigned."""
    words = {ABOVE: LOWER, BELOW: NO_LOWER, OPEN: OPEN, FEW: FEW}
    outcomes, values = [], {}
    for kind in (kind for kind in networks(run) if kind in kinds):
        table = barriers_of(run, kind)
        for name, (before, after) in pairs.items():
            lower = interval(by_pair(table, before, "loss_barrier") - by_pair(table, after, "loss_barrier"))
            values[f"{kind}_{name}"] = hundredths(lower, signed=True)
            values[f"size_{kind}_{name}"] = hundredths(unsigned(lower))
            outcomes.append(words[outcome(lower, fewest=FEWEST_FOR_VERDICT)])
    return Facts(", ".join(outcomes), values)


@reads("transformers")
def orders(run: str) -> Facts:
    """Whether matching by activations lowers the barrier of vision transformers, and by weights lowers it further.

    Values and outcomes as ``turning``, for the kinds of ``IMAGES``.
    """
    return _differences(run, {"activations": ("naive", "activations"), "weights": ("activations", "weights")}, IMAGES)


@reads("transformers")
def by_weights(run: str) -> Facts:
    """By how many nats matching by weights lowers the barrier of vision transformers, beside not matching at all.

    Values and outcomes as ``turning``, for the kinds of ``IMAGES``.
    """
    return _differences(run, {"weights": ("naive", "weights")}, IMAGES)


@reads("transformers")
def tenth(run: str) -> Facts:
    """Accuracy a tenth of the way, by correlation with the stream held minus that as they are, in points.

    ``vit`` is the gap of a kind, ``vit_naive`` and ``vit_held`` the accuracies in percent, ``vit_ends`` that of the
    networks. Outcomes as ``facts.outcome`` has them, kind by kind.
    """
    lines = results.read(run, "transformers", "lines")
    outcomes, values = [], {}
    for kind, recipe in networks(run).items():
        at = picked(lines, {"recipe": recipe, "lam": TENTH})
        naive, held = (100 * by_pair(at, name, "accuracy") for name in ("naive", "correlation_held"))
        gap = interval(held - naive)
        ends = 100 * by_pair(barriers_of(run, kind), "naive", "accuracy_ends").mean()
        values |= {
            kind: points(gap, signed=True),
            f"{kind}_naive": decimal(naive.mean(), 1),
            f"{kind}_held": decimal(held.mean(), 1),
            f"{kind}_ends": decimal(ends, 1),
        }
        outcomes.append(outcome(gap, fewest=FEWEST_FOR_VERDICT))
    return Facts(", ".join(outcomes), values)


@reads("transformers")
def proof(run: str) -> Facts:
    """By how much of its largest output a network changed at most as it was brought to the other: ten to the ``power``.

    The outcome is ``rounding``, or ``more``.
    """
    table = picked(results.read(run, "transformers", "barriers"), {"metric": "change"})
    pairs = len(table[["recipe", "node"]].drop_duplicates())
    power = math.ceil(math.log10(max(table["value"].max(), 1e-16)))
    return Facts("rounding" if power <= -11 else "more", {"power": f"−{-power}", "pairs": str(pairs)})


@reads("transformers")
def barriers_table(run: str) -> pd.DataFrame:
    """A row for each kind of networks and each way: barriers in nats and points, and what lies halfway."""
    rows = []
    for kind in networks(run):
        table = barriers_of(run, kind)
        about = described(table)
        for name, way in WAYS.items():
            rows.append(
                {
                    "networks": f"{about['data']}, {about['title']}",
                    "brought together": way.title,
                    "loss (nats)": hundredths(in_nats(table, name)),
                    "above the line": hundredths(in_nats(table, name, "loss_above_line")),
                    "accuracy (points)": points(interval(100 * by_pair(table, name, "accuracy_barrier"))),
                    "accuracy halfway (%)": points(interval(100 * by_pair(table, name, "accuracy_midpoint"))),
                    "n": about["n"],
                }
            )
    return pd.DataFrame(rows)


@reads("transformers")
def lines_table(run: str) -> pd.DataFrame:
    """Accuracy in percent by way, at the ends of the line, a tenth of the way, and halfway."""
    lines, rows = results.read(run, "transformers", "lines"), []
    for kind, recipe in networks(run).items():
        about = described(barriers_of(run, kind))
        for name, way in WAYS.items():
            row = {"networks": f"{about['data']}, {about['title']}", "brought together": way.title}
            for title, lam in (("first", 0.0), ("a tenth", TENTH), ("halfway", 0.5)):
                shares = by_pair(picked(lines, {"recipe": recipe, "lam": lam}), name, "accuracy")
                row[f"{title} (%)"] = points(interval(100 * shares))
            rows.append(row)
    return pd.DataFrame(rows)


@reads("transformers")
def along_the_line(run: str) -> Figure:
    """Test loss from a network to the midpoint with another, a panel for each kind: a thin line a pair, the mean thick.

    Both halves of a line are one sample: which network of a pair is the first means nothing.
    """
    lines, shown = results.read(run, "transformers", "lines"), networks(run)
    figure, panels = plt.subplots(len(shown), 1, figsize=(width(), 3.7 * len(shown)), squeeze=False)
    curves = {name: way.curve for name, way in WAYS.items() if way.curve is not None}
    ends = []
    for axes, (kind, recipe) in zip(panels[:, 0], shown.items(), strict=True):
        about = described(barriers_of(run, kind))
        ends_here = []
        for name, drawn in curves.items():
            halves = half_lines(lines, recipe, name)
            axes.plot(halves.columns, halves.T, color=on_page(drawn.colour), linewidth=0.7, alpha=0.3)
            axes.plot(halves.columns, halves.mean(), color=on_page(drawn.colour))
            ends_here.append((float(halves.mean().iloc[-1]), drawn.title, word_colour(drawn.colour)))
        axes.set(title=f"{about['data']}, {about['title']}", ylabel="test loss (nats)", xticks=[0, 0.25, 0.5])
        axes.set_xticklabels(["a network", "¼", "midpoint"])
        axes.set_ylim(bottom=0)
        ends.append((axes, ends_here))
    for axes, ends_here in ends:
        name_ends(axes, ends_here)
    return figure


def half_lines(lines: pd.DataFrame, recipe: str, way: str) -> pd.DataFrame:
    """The loss from each end of each line to its midpoint: a row for each half, a column for each place up to ½."""
    kind = {"recipe": recipe, **WAYS[way].columns, "metric": "loss"}
    loss = picked(lines, kind).pivot(index="node", columns="lam", values="value")
    places = [lam for lam in loss.columns if lam <= 0.5]
    first, second = loss[places], loss.iloc[:, ::-1].iloc[:, : len(places)]
    return pd.concat([first, second.set_axis(places, axis=1)], ignore_index=True)


@reads("transformers")
def barriers_by_way(run: str) -> Figure:
    """The barrier in test loss of every way, a row for each, with its interval, of all kinds of networks."""
    tables = {kind: barriers_of(run, kind) for kind in networks(run)}
    rows = {
        way.title: [(STYLES[kind], in_nats(table, name)) for kind, table in tables.items()]
        for name, way in WAYS.items()
    }
    return interval_rows(rows, "barrier in test loss (nats)")
