"""What the chapter on the papers' disagreement says: barriers in loss beside those in accuracy, recipe by recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import DATASETS
from lab.report.barriers_chapter import heights, mean
from lab.report.barriers_figures import ARCHITECTURES, OPTIMISERS
from lab.report.chapter import ZERO
from lab.report.hierarchy import barriers
from lab.report.page import PREFERRED, runs
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.words import decimal, hundredths, nats, points
from lab.training.recipe import Recipe

# The notebooks that a run may have these barriers from.
SOURCES = ("barriers", "mnist", "accuracy")
NORMS = {"ln": "LayerNorm", "bn": "BatchNorm"}
# Test accuracy of LayerNorm ResNet20s on CIFAR-10 in the data that the authors of REPAIR released, by width in units of
# the usual one: the ends, the midpoint of matched networks, and the same after REPAIR.
RELEASED = {1: (92.4, 50.7, 68.8), 4: (95.5, 88.5, 91.3), 16: (96.2, 92.6, 94.9), 32: (96.4, 92.3, 94.8)}


@dataclass(frozen=True)
class Pairs:
    """Matched pairs of one recipe: means over pairs, accuracy in percent and points, loss in nats.

    ``tempered`` is the barrier in loss with the ends and the midpoint each at its own best temperature, the repaired
    ones are those after REPAIR of the midpoint; all three are of three points, and so are ``loss_of_three`` and
    ``accuracy_of_three``, which they are to be held against. The temperatures are the best ones of the ends, in the
    mean, and of the midpoint. None is not measured. ``recipe`` is every part of the recipe that the run tells.
    """

    dataset: str
    architecture: str
    width: int
    training: str
    epochs: int
    loss: Interval
    accuracy: Interval
    ends: Interval | None = None
    tempered: Interval | None = None
    loss_repaired: Interval | None = None
    accuracy_repaired: Interval | None = None
    loss_of_three: Interval | None = None
    accuracy_of_three: Interval | None = None
    temperature_ends: Interval | None = None
    temperature_midpoint: Interval | None = None
    recipe: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        network = ARCHITECTURES.get(self.architecture, self.architecture)
        return f"{DATASETS[self.dataset]} {network}, width {self.width}, {self.training}, epoch {self.epochs}"


def recipes(run: str) -> list[Pairs]:
    """Every recipe of a run whose pairs were matched by their weights, the lowest barrier in accuracy first."""
    readers: dict[str, Callable[[str], list[Pairs]]] = {
        "barriers": _of_barriers, "mnist": _of_mnist, "accuracy": _of_accuracy
    }  # fmt: skip
    found = [pairs for source in SOURCES if results.is_shown(run, source) for pairs in readers[source](run)]
    # The same networks may be under two names of a plan, or in two notebooks: the first source measured the most.
    kept = {(pairs.dataset, pairs.epochs, pairs.recipe): pairs for pairs in reversed(found)}.values()
    return sorted((_told_apart(pairs, kept) for pairs in kept), key=lambda pairs: pairs.accuracy.mean)


def _told_apart(pairs: Pairs, others: Iterable[Pairs]) -> Pairs:
    """The same, its training with the parts of the recipe that tell it from others of its name."""
    alike = [dict(other.recipe) for other in others if other.name == pairs.name]
    parts = [f"{key} {value}" for key, value in pairs.recipe if len({other.get(key) for other in alike}) > 1]
    return replace(pairs, training=", ".join([pairs.training, *parts]))


def _recipe(told: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The parts of a recipe among these, by name."""
    return tuple((field.name, told[field.name]) for field in fields(Recipe) if field.name in told)


def _of_three(part: pd.DataFrame, metric: str) -> Interval:
    """The barrier over the ends and the midpoint alone: what has been measured at no other points compares with it."""
    scale = 100 if metric == "accuracy" else 1
    sign = scale if metric == "accuracy" else -scale  # so that upwards is better
    mean_end, midpoint = (sign * heights(part, f"{metric}_{name}") for name in ("ends", "midpoint"))
    better_end = midpoint - scale * heights(part, f"{metric}_gain")
    return interval((mean_end - np.minimum(midpoint, 2 * mean_end - better_end)).to_numpy())


def _of_barriers(run: str) -> list[Pairs]:
    table = results.read(run, "barriers", "barriers")
    return [
        Pairs(
            one["dataset"],
            one["architecture"],
            width,
            _training(one["optimiser"], one["learning_rate"]) + ("" if one["subset"] == "all" else ", data shared out"),
            epochs,
            mean(part, "loss_barrier"),
            mean(part, "accuracy_barrier"),
            mean(part, "accuracy_ends"),
            mean(part, "loss_barrier_tempered"),
            mean(part, "loss_barrier", mended="repair"),
            mean(part, "accuracy_barrier", mended="repair"),
            _of_three(part, "loss"),
            _of_three(part, "accuracy"),
            mean(part, "temperature_ends"),
            mean(part, "temperature_midpoint"),
            _recipe(one),
        )
        for (_, width, epochs), part in table.groupby(["recipe", "width", "epochs"], sort=False)
        for one in [part.iloc[0]]
    ]


def _of_mnist(run: str) -> list[Pairs]:
    given = results.provenance(run, "mnist")["parameters"]
    kind = given["mnist_dataset"], "mlp", given["mnist_width"], _training("adam", given["mnist_learning_rate"])
    size, seed = given["mnist_batch_size"], given["seed"]
    recipe = Recipe("mlp", given["mnist_width"], size, given["mnist_learning_rate"], seed=seed, initial="lecun_normal")
    table, paths = (results.read(run, "mnist", name) for name in ("barriers", "paths"))
    found = []
    for epochs, part in table[(table["algorithm"] == "weights") & (table["split"] == "test")].groupby("epochs"):
        barrier = {metric: rows["value"].to_numpy() for metric, rows in part.groupby("metric")}
        ends = _ends(paths[(paths["epochs"] == epochs) & (paths["algorithm"] == "weights")])
        loss, accuracy = interval(barrier["loss_barrier"]), interval(100 * barrier["accuracy_barrier"])
        found.append(Pairs(*kind, epochs, loss, accuracy, ends, recipe=_recipe(asdict(recipe))))
    return found


def _of_accuracy(run: str) -> list[Pairs]:
    given = results.provenance(run, "accuracy")["parameters"]
    kind = given["dataset"], given["architecture"], given["width"], _training("adam", given["learning_rate"])
    paths = results.read(run, "accuracy", "paths")
    paths = paths[(paths["algorithm"] == "tree") & (paths["n_leaves"] == 2) & (paths["split"] == "test")]
    found = {metric: interval(rows["barrier"].to_numpy()) for metric, rows in barriers(paths).groupby("metric")}
    recipe = _recipe(asdict(Recipe()) | given)
    return [Pairs(*kind, given["epochs"], found["loss"], found["accuracy"], _ends(paths), recipe=recipe)]


def _training(optimiser: str, rate: float) -> str:
    return f"{OPTIMISERS[optimiser]} at {rate:g}"


def _ends(paths: pd.DataFrame) -> Interval | None:
    """The mean test accuracy of both ends of each path, in percent."""
    ends = paths[paths["lam"].isin([0, 1]) & (paths["metric"] == "accuracy") & (paths["split"] == "test")]
    return interval(100 * ends.groupby("node")["value"].mean().to_numpy()) if len(ends) else None


def table(run: str) -> pd.DataFrame:
    """A row for each recipe, as texts; a cell is empty where something was not measured."""

    def cell(value: Interval | None, text: Callable[[Interval], str]) -> str:
        return "" if value is None else text(value)

    return pd.DataFrame(
        {
            "data": DATASETS[one.dataset],
            "network": ARCHITECTURES.get(one.architecture, one.architecture).split(",")[0],
            "norm": NORMS.get(one.architecture.split("_")[-1], "none"),
            "width": one.width,
            "training": f"{one.training}, {one.epochs} epoch{'s' if one.epochs > 1 else ''}",
            "accuracy of the ends (%)": cell(one.ends, points),
            "barrier in loss (nats)": nats(one.loss),
            "at the best temperature": cell(one.tempered, nats),
            "after REPAIR": cell(one.loss_repaired, nats),
            "barrier in accuracy (points)": points(one.accuracy),
            "after REPAIR ": cell(one.accuracy_repaired, points),
            "n": one.loss.n,
        }
        for one in recipes(run)
    )


def marks(run: str) -> list[tuple[str, Interval, Interval]]:
    """Data set and network, barrier in loss and barrier in accuracy of each recipe, for the figure."""
    return [
        (f"{DATASETS[one.dataset]} {ARCHITECTURES.get(one.architecture, one.architecture)}", one.loss, one.accuracy)
        for one in recipes(run)
    ]


def released_table() -> pd.DataFrame:
    """What others measured, as texts: the drop from the ends to the midpoint."""
    return pd.DataFrame(
        {
            "width": f"{width}x",
            "ends (%)": f"{ends:.1f}",
            "midpoint (%)": f"{midpoint:.1f}",
            "drop (points)": f"{ends - midpoint:.1f}",
            "after REPAIR (%)": f"{repaired:.1f}",
            "drop (points) ": f"{ends - repaired:.1f}",
        }
        for width, (ends, midpoint, repaired) in RELEASED.items()
    )


def sources() -> list[str]:
    """The notebooks that these barriers are from, first the one with the largest run: it is this that is shown."""
    order = [os.environ.get("REBASIN_RUN"), *PREFERRED]
    return sorted(SOURCES, key=lambda source: order.index(runs(source)[0]) if runs(source) else len(order))


def shown_run() -> str | None:
    """The run that the chapter speaks of, if there is one."""
    return next(iter(runs(sources()[0])), None)


def zero_finding() -> str:
    """Whether a zero barrier in loss is reached, and whether one in accuracy comes with it, at recipes' last epochs."""
    run = shown_run()
    if run is None:
        return "Not run yet."
    found = _last(recipes(run))
    zero = [one for one in found if one.loss.high < ZERO["loss"]]
    both = [one for one in zero if one.accuracy.high < ZERO["accuracy"]]
    lost = [one for one in zero if one.accuracy.low > ZERO["accuracy"]]
    if not zero:
        opening = "No recipe of this run is shown to reach a zero barrier in loss"
    elif lost and both:
        opening = "A zero barrier in loss is reached, and one in accuracy does not always come with it"
    elif lost:
        opening = "A zero barrier in loss is reached, and is no zero barrier in accuracy"
    elif len(both) == len(zero):
        opening = "A zero barrier in loss is reached, and comes with one in accuracy"
    else:
        opening = "A zero barrier in loss is reached; whether one in accuracy comes with it is not decided"
    told = (
        f"of {len(found)} {'recipe' if len(found) == 1 else 'recipes, each'} at its last epoch, {len(zero) or 'none'} "
        f"{'has' if len(zero) == 1 else 'have'} a barrier in test loss under {ZERO['loss']} nats"
    )
    if zero:
        told += f" ({'; '.join(_told(one) for one in zero)}); in accuracy, zero is under {ZERO['accuracy']} points"
    rest = sorted((one for one in found if one not in zero), key=lambda one: one.loss.mean)
    ends = [_told(one) for one in dict.fromkeys((rest[0], rest[-1]))] if rest else []
    more = f" Not shown to be zero: {'from ' * (len(ends) > 1)}{' to '.join(ends)}." if ends else ""
    return f"<strong>{opening}</strong>: {told} (whole intervals, run {run}).{more}"


def _last(found: list[Pairs]) -> list[Pairs]:
    """Each recipe once, at its last epoch."""
    epochs = {(one.dataset, one.recipe): one.epochs for one in sorted(found, key=lambda one: one.epochs)}
    return [one for one in found if one.epochs == epochs[one.dataset, one.recipe]]


def _told(one: Pairs) -> str:
    return f"{one.name}: {nats(one.loss)} nats, {points(one.accuracy)} points, n = {one.loss.n} pairs"


def parts_finding() -> str:
    """Which share of the barriers temperature takes away, and which REPAIR: recipes at their last epoch."""
    run = shown_run()
    found = [] if run is None else [one for one in _last(recipes(run)) if one.tempered is not None]
    if not found:
        return "Temperatures and REPAIR were not measured yet."
    if not any(one.loss_of_three.low > ZERO["loss"] for one in found):
        return (
            "<strong>No recipe whose temperatures were measured has a barrier in loss</strong> wholly above "
            f"{ZERO['loss']} nats that they could explain (run {run})."
        )
    return (
        "<strong>The best softmax temperature takes away "
        f"{_taken(found, 'loss_of_three', 'tempered', ZERO['loss'])} of the barrier in loss</strong>; REPAIR of the "
        f"midpoint takes away {_taken(found, 'loss_of_three', 'loss_repaired', ZERO['loss'])} of it, and "
        f"{_taken(found, 'accuracy_of_three', 'accuracy_repaired', ZERO['accuracy'])} of that in accuracy (run {run}; "
        f"medians over the recipes whose barrier lies wholly above {ZERO['loss']} nats or {ZERO['accuracy']} points, "
        f"and from the least to the most; over the ends and the midpoint alone). {_raised(found)}"
    ).strip()


def _raised(found: list[Pairs]) -> str:
    """In how many recipes the best temperatures raise the barrier in loss, and what they are where they do so most."""
    rises = {one: one.tempered.mean - one.loss_of_three.mean for one in found if one.loss.n >= FEWEST_FOR_INTERVAL}
    raised = sum(by > 0 for by in rises.values())
    if not raised:
        return ""
    one = max(rises, key=rises.get)
    return (
        f"In {raised} of {len(rises)} recipes with an interval the best temperatures raise the barrier in loss, the "
        f"most for {one.name}: from {nats(one.loss_of_three)} to {nats(one.tempered)} nats, "
        f"beside {points(one.accuracy_of_three)} points of accuracy (n = {one.loss.n} pairs). Its ends are best at a "
        f"temperature of {hundredths(one.temperature_ends)}, its midpoint at {hundredths(one.temperature_midpoint)}; "
        "what is best above one is too sure."
    )


def _taken(found: list[Pairs], before: str, after: str, zero: float) -> str:
    """The share that is taken away of barriers that lie wholly above ``zero``: its median and range over recipes."""
    barred = [one for one in found if getattr(one, before).low > zero]
    shares = [100 * (1 - getattr(one, after).mean / getattr(one, before).mean) for one in barred]
    if not shares:
        return "nothing that could be measured"
    least, middle, most = (decimal(float(pick(shares)), 0) for pick in (min, np.median, max))
    return f"{middle} % ({least} to {most}, {len(shares)} recipe{'s' if len(shares) > 1 else ''})"
