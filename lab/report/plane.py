"""The plane through A, B and π(B): the loss over it and along the lines from A to either, as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.interpolate import RectBivariateSpline

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import MATCHERS
from lab.report.claims import picked
from lab.report.draw import ON_PHONE
from lab.report.explorers import Frame, explorer, ink, moving, panel, reading, slider, snapshots, ticks
from lab.report.facts import Facts, reads
from lab.report.pairs import title_of_networks
from lab.report.words import decimal

# From the valleys to the heights, on a light page as on a dark one.
HEIGHTS = LinearSegmentedColormap.from_list(
    "heights", ["#0B2545", "#13518A", "#2C8C99", "#8CC9A1", "#E9E4A6", "#F2B46B", "#D9653B"]
)
BANDS = 14  # of one colour each, between the lowest and the highest loss, by its logarithm
BEYOND = 1.5  # times the highest loss on a line: where the colours end
FINE = 97  # points on a side, that a grid is smoothed to before it is drawn
ENDS = {"none": "B", "weights": "π(B)"}  # where the line from A leads, by how B was matched


@dataclass(frozen=True)
class Plane:
    """A pair of networks after some epochs: its ``title``, the loss (y, x) on a grid, and what is on the lines from A.

    ``corners`` are x and y by name; ``lines`` a frame for each matcher, its index λ, of ``loss`` in nats and
    ``accuracy`` in percent.
    """

    title: str
    recipe: str
    width: int
    epochs: int
    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    corners: dict[str, tuple[float, float]]
    lines: dict[str, pd.DataFrame]
    images: int

    def on_line(self, matcher: str, lam: float) -> tuple[float, float]:
        """The point of the plane at ``lam`` of the line from A."""
        (ax, ay), (bx, by) = self.corners["A"], self.corners[ENDS[matcher]]
        return ax + lam * (bx - ax), ay + lam * (by - ay)

    def smooth(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The grid made finer, by cubic splines of the loss's logarithm: x, y and loss (y, x)."""
        x, y = (np.linspace(side[0], side[-1], FINE) for side in (self.x, self.y))
        degree = min(3, len(self.x) - 1)
        spline = RectBivariateSpline(self.y, self.x, np.log(self.loss), kx=degree, ky=degree)
        return x, y, np.exp(np.clip(spline(y, x), np.log(self.loss.min()), np.log(self.loss.max())))

    @property
    def highest(self) -> float:
        """The highest loss on the two lines."""
        return max(line["loss"].max() for line in self.lines.values())

    @property
    def barriers(self) -> dict[str, float]:
        """By matcher, how high the line to the matched network rises above the mean of its ends, in nats."""
        return {matcher: line["loss"].max() - line["loss"].iloc[[0, -1]].mean() for matcher, line in self.lines.items()}


def levels(alike: Sequence[Plane]) -> np.ndarray:
    """The losses (bands + 1,) that bound the bands of these planes: what is far above all lines is in the highest."""
    lowest, highest = min(plane.loss.min() for plane in alike), max(plane.highest for plane in alike)
    return np.geomspace(lowest, min(max(plane.loss.max() for plane in alike), BEYOND * highest), BANDS + 1)


def planes(run: str) -> list[Plane]:
    """The pairs of a run, each after its last epoch, in the order of the plan."""
    return [times[-1] for times in over_epochs(run)]


def over_epochs(run: str) -> list[list[Plane]]:
    """The pairs of a run in the order of the plan, each at all its numbers of epochs, ascending."""
    grid, *others = (results.read(run, "plane", table) for table in ("grid", "corners", "lines"))
    pairs: dict[str, list[Plane]] = {}
    for recipe, epochs in sorted(set(zip(grid["recipe"], grid["epochs"], strict=True)), key=lambda pair: pair[1]):
        at = {"recipe": recipe, "epochs": epochs}
        pairs.setdefault(recipe, []).append(_plane(picked(grid, at), *(picked(table, at) for table in others)))
    return [pairs[recipe] for recipe in dict.fromkeys(grid["recipe"])]


def _plane(grid: pd.DataFrame, corners: pd.DataFrame, lines: pd.DataFrame) -> Plane:
    loss = picked(grid, {"metric": "loss"}).pivot(index="y", columns="x", values="value")
    of_matcher = {}
    for matcher in ENDS:
        values = picked(lines, {"matcher": matcher}).pivot(index="lam", columns="metric", values="value")
        of_matcher[matcher] = values.assign(accuracy=100 * values["accuracy"])
    return Plane(
        title=title_of_networks(grid),
        recipe=grid["recipe"].iloc[0],
        width=int(grid["width"].iloc[0]),
        epochs=int(grid["epochs"].iloc[0]),
        x=loss.columns.to_numpy(),
        y=loss.index.to_numpy(),
        loss=loss.to_numpy(),
        corners={name: (x, y) for name, x, y in corners[["corner", "x", "y"]].itertuples(index=False)},
        lines=of_matcher,
        images=int(grid["images"].iloc[0]),
    )


@reads("plane")
def midpoints(run: str) -> Facts:
    """The loss in nats halfway from A to B and to π(B), by recipe: ``mnist_mlp_none``, ``mnist_mlp_weights``.

    ``_ends`` is the mean of A's and B's loss, ``_width`` that of the networks. Outcomes: whether the loss halfway to
    π(B) is ``lower`` for all pairs, ``lower for some`` or ``no lower``. One pair of each recipe: no interval.
    """
    values, lower = {}, []
    for plane in planes(run):
        name = plane.recipe.replace(" ", "_")
        halfway = {matcher: line.loc[0.5, "loss"] for matcher, line in plane.lines.items()}
        values |= {f"{name}_{matcher}": decimal(loss, 2) for matcher, loss in halfway.items()}
        values[f"{name}_ends"] = decimal(plane.lines["none"]["loss"].iloc[[0, -1]].mean(), 2)
        lower.append(halfway["weights"] < halfway["none"])
        values |= {f"{name}_width": str(plane.width), "images": str(plane.images)}
    return Facts("lower" if all(lower) else "lower for some" if any(lower) else "no lower", values)


@reads("plane")
def in_training(run: str) -> Facts:
    """How the barriers in nats change from the first number of epochs to the last, by recipe.

    ``mnist_mlp_weights_first`` is that to π(B) at the first, ``_last`` at the last; ``_none_`` is that to B. Outcomes:
    whether the barrier to π(B) ``falls`` for all pairs, ``rises`` for all, ``falls for some``, or ``one time`` where
    networks were looked at but once.
    """
    values, falls = {}, []
    for times in over_epochs(run):
        name, first, last = times[0].recipe.replace(" ", "_"), times[0], times[-1]
        for when, plane in (("first", first), ("last", last)):
            values[f"{name}_epochs_{when}"] = str(plane.epochs)
            values |= {f"{name}_{matcher}_{when}": decimal(high, 2) for matcher, high in plane.barriers.items()}
        if first is not last:
            falls.append(last.barriers["weights"] < first.barriers["weights"])
    if not falls:
        return Facts("one time", values)
    return Facts("falls" if all(falls) else "falls for some" if any(falls) else "rises", values)


@reads("plane")
def lines_table(run: str) -> pd.DataFrame:
    """Loss and accuracy at A, at B, and halfway from A to B and to π(B): a row for each pair and number of epochs."""
    rows = []
    for plane in chain.from_iterable(over_epochs(run)):
        as_they_are, matched = plane.lines["none"], plane.lines["weights"]
        places = {
            "at A": as_they_are.iloc[0],
            "at B and π(B)": as_they_are.iloc[-1],
            "halfway to B": as_they_are.loc[0.5],
            "halfway to π(B)": matched.loc[0.5],
        }
        row = {"networks": plane.title, "epochs": str(plane.epochs)}
        row |= {f"loss {place} (nats)": decimal(at["loss"], 3) for place, at in places.items()}
        rows.append(row | {f"accuracy {place} (%)": decimal(at["accuracy"], 1) for place, at in places.items()})
    return pd.DataFrame(rows)


@reads("plane")
def distances_table(run: str) -> pd.DataFrame:
    """How far π(B) is from A, as a share of how far B is."""
    rows = []
    for plane in chain.from_iterable(over_epochs(run)):
        ax, ay = plane.corners["A"]
        x, y = plane.corners["π(B)"]
        row = {"networks": plane.title, "epochs": str(plane.epochs)}
        rows.append(row | {"from A to π(B), of A to B": decimal(np.hypot(x - ax, y - ay), 2)})
    return pd.DataFrame(rows)


@reads("plane")
def landscape(run: str) -> Figure:
    """The test loss on the plane through A, B and π(B), a panel for each pair of networks; lines are level.

    White: from A to B, dashed, and from A to π(B).
    """
    shown = planes(run)
    figure, panels = plt.subplots(len(shown), 1, figsize=(ON_PHONE, 4.2 * len(shown)), squeeze=False)
    for axes, plane in zip(panels[:, 0], shown, strict=True):
        x, y, loss = plane.smooth()
        bounds = levels([plane])
        shades = {"levels": bounds, "cmap": HEIGHTS, "norm": LogNorm(*bounds[[0, -1]]), "extend": "max"}
        bands = axes.contourf(x, y, loss, **shades)
        axes.contour(x, y, loss, levels=bounds, colors="white", linewidths=0.4, alpha=0.5)
        halo = [withStroke(linewidth=3, foreground="#0B2545")]
        for matcher in ENDS:
            line = np.array([plane.on_line(matcher, lam) for lam in (0, 1)])
            style = "--" if matcher == "none" else "-"
            axes.plot(*line.T, style, color="white", marker="o", path_effects=halo)
        for name, place in plane.corners.items():
            axes.annotate(
                name, place, xytext=(0, 8), textcoords="offset points", ha="center", color="white", path_effects=halo
            )
        bar = figure.colorbar(bands, ax=axes, label="test loss (nats)", ticks=bounds[[0, BANDS // 2, -1]])
        bar.ax.set_yticklabels([decimal(level, 2) for level in bounds[[0, BANDS // 2, -1]]])
        bar.ax.minorticks_off()
        axes.set(title=plane.title, aspect="equal", xlabel="distance, in that from A to B")
        axes.grid(visible=False)
    return figure


@reads("plane")
def along(run: str) -> str:
    """The landscapes with a slider for λ, that moves a point along either line; beside it the losses on both."""
    return _explorer([[plane] for plane in planes(run)])


@reads("plane")
def while_training(run: str) -> str:
    """The same, with a second slider for the epochs of training; the colours of a pair mean the same at all of them."""
    return _explorer(over_epochs(run))


def _explorer(pairs: Sequence[Sequence[Plane]]) -> str:
    lams = pairs[0][0].lines["none"].index.tolist()
    steps, middle = [decimal(lam, 2) for lam in lams], lams.index(0.5)
    panels = []
    for times in pairs:
        epochs, spoken = [str(plane.epochs) for plane in times], [_spoken(plane) for plane in times]
        drawn = [_of_pair(plane, times, lams, middle) for plane in times]
        content = snapshots("Epochs of training:", epochs, spoken, drawn) if len(times) > 1 else drawn[0]
        panels.append(panel(times[-1].title, spoken[-1], content))
    return explorer("explorer-plane", "Networks", panels, slider("On the way from A, λ =", steps, middle))


def _of_pair(plane: Plane, alike: Sequence[Plane], lams: list[float], at: int) -> str:
    """The landscape of a pair, the losses along its lines, and what they are at a step; ``alike`` share its scales."""
    rows = "".join(
        reading(MATCHERS[matcher].colour, _kind(matcher), title, _values(plane.lines[matcher]), at)
        for matcher, title in (("none", "A to B"), ("weights", "A to π(B)"))
    )
    profile = _profile(plane, max(other.highest for other in alike), lams, at)
    return f'{_map(plane, levels(alike), lams, at)}<div>{profile}<dl class="simple readings">{rows}</dl></div>'


def _kind(matcher: str) -> str:
    return "dashed" if matcher == "none" else "solid"


def _values(line: pd.DataFrame) -> list[str]:
    """Loss and accuracy at every step, in words."""
    return [
        f"{decimal(loss, 2)} nats, {decimal(accuracy, 1)} %"
        for loss, accuracy in line[["loss", "accuracy"]].itertuples(index=False)
    ]


def _spoken(plane: Plane) -> list[str]:
    lams = [decimal(lam, 2) for lam in plane.lines["none"].index]
    pairs = zip(lams, _values(plane.lines["none"]), _values(plane.lines["weights"]), strict=True)
    return [f"λ = {lam}. A to B: {first}. A to π(B): {second}." for lam, first, second in pairs]


def _map(plane: Plane, bounds: np.ndarray, lams: list[float], at: int) -> str:
    """The loss from above, with the two lines, a point on each, and what the colours stand for."""
    (x0, x1), (y0, y1) = plane.x[[0, -1]], plane.y[[0, -1]]
    high = round(340 * (y1 - y0) / (x1 - x0))
    frame = Frame(340, high + 34, 0, 0, 0, 34, (x0, x1), (y0, y1))
    parts = [*_bands(plane, bounds, frame), *_key(bounds, frame)]
    for matcher, end in ENDS.items():
        (ax, ay), (bx, by) = (frame.place(*plane.corners[name]) for name in ("A", end))
        parts.append(f'<path class="way {_kind(matcher)}" d="M{ax:g} {ay:g}L{bx:g} {by:g}"/>')
    for name, place in plane.corners.items():
        x, y = frame.place(*place)
        parts.append(f'<circle class="corner" cx="{x:g}" cy="{y:g}" r="4"/>')
        parts.append(frame.text(x, y - 11, name, kind="corner"))
    for matcher in ENDS:
        places = [frame.place(*plane.on_line(matcher, lam)) for lam in lams]
        mark = f'<circle class="mark" r="7"{ink(MATCHERS[matcher].colour)}/>'
        parts.append(moving(mark, places, at))
    return frame.svg("map", *parts)


def _bands(plane: Plane, bounds: np.ndarray, frame: Frame) -> list[str]:
    """All that lies above each level in the colour of its band, the lowest first, with a faint line around it."""
    x, y, loss = plane.smooth()
    axes, bands = Figure().add_subplot(), []
    for number, level in enumerate(bounds[:-1]):
        # The lowest band is the whole picture.
        above = axes.contourf(x, y, loss, levels=[level if number else 0.0, 2 * loss.max()]).get_paths()
        rings = [ring for path in above for ring in path.to_polygons()]
        d = "".join("M" + "L".join("{:g} {:g}".format(*frame.place(*point)) for point in ring) + "Z" for ring in rings)
        bands.append(f'<path class="band" fill="{_colour(number)}" fill-rule="evenodd" d="{d}"/>')
    return bands


def _colour(band: int) -> str:
    return to_hex(HEIGHTS((band + 0.5) / BANDS))


def _key(bounds: np.ndarray, frame: Frame) -> list[str]:
    """What the colours stand for, below the map."""
    wide, y = 112 / BANDS, frame.high - 18
    parts = [
        f'<rect x="{80 + number * wide:g}" y="{y:g}" width="{wide:g}" height="9" fill="{_colour(number)}"/>'
        for number in range(BANDS)
    ]
    low, high = (decimal(level, 2) for level in bounds[[0, -1]])
    words = [(74, f"loss {low}", "end"), (198, f"{high} nats or more", "start")]
    return parts + [frame.text(x, y + 9, text, anchor) for x, text, anchor in words]


def _profile(plane: Plane, top: float, lams: list[float], at: int) -> str:
    """The loss along both lines, with a point on each, below a loss of ``top``."""
    frame = Frame(340, 190, 40, 12, 22, 24, (0, 1), (0, 1.05 * top))
    parts = [frame.text(0, 12, "test loss (nats)", "start"), frame.rules(ticks(top), 1 if top > 0.4 else 2)]
    parts.append(frame.foot([(0, "A"), (0.5, "halfway")]))
    parts.append(frame.text(frame.wide, frame.high - frame.bottom + 17, "B, π(B)", "end"))
    for matcher, line in plane.lines.items():
        drawn = MATCHERS[matcher]
        places = list(zip(lams, line["loss"], strict=True))
        parts.append(frame.curve(places, f"curve {_kind(matcher)}", ink(drawn.colour)))
        mark = f'<circle class="mark" r="6"{ink(drawn.colour)}/>'
        parts.append(moving(mark, [frame.place(*place) for place in places], at))
    return frame.svg("profile", *parts)
