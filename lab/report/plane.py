"""The plane through A, B and π(B): the loss over it, and along the lines from A to either."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.interpolate import RectBivariateSpline

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import MATCHERS
from lab.report.claims import last_snapshots, picked
from lab.report.draw import ON_PHONE
from lab.report.explorers import Frame, explorer, ink, moving, panel, reading, slider, ticks
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
    """A pair of networks: its ``title``, the loss (y, x) on a grid, and what is on the lines from A.

    ``corners`` are x and y by name; ``lines`` a frame for each matcher, its index λ, of ``loss`` in nats and
    ``accuracy`` in percent.
    """

    title: str
    recipe: str
    width: int
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
    def levels(self) -> np.ndarray:
        """The losses (bands + 1,) that bound the bands: what is far above both lines is in the highest."""
        highest = max(line["loss"].max() for line in self.lines.values())
        return np.geomspace(self.loss.min(), min(self.loss.max(), BEYOND * highest), BANDS + 1)


def planes(run: str) -> list[Plane]:
    """The pairs of a run, each after its last epoch, in the order of the plan."""
    grid, corners, lines = (last_snapshots(results.read(run, "plane", table)) for table in ("grid", "corners", "lines"))
    return [
        _plane(*(picked(table, {"recipe": recipe}) for table in (grid, corners, lines)))
        for recipe in dict.fromkeys(grid["recipe"])
    ]


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
def lines_table(run: str) -> pd.DataFrame:
    """Loss and accuracy at A, at B, and halfway from A to B and to π(B)."""
    rows = []
    for plane in planes(run):
        as_they_are, matched = plane.lines["none"], plane.lines["weights"]
        for place, at in (
            ("A", as_they_are.iloc[0]),
            ("B, and π(B)", as_they_are.iloc[-1]),
            ("halfway to B", as_they_are.loc[0.5]),
            ("halfway to π(B)", matched.loc[0.5]),
        ):
            row = {"networks": plane.title, "at": place, "loss (nats)": decimal(at["loss"], 3)}
            rows.append(row | {"accuracy (%)": decimal(at["accuracy"], 1)})
    return pd.DataFrame(rows)


@reads("plane")
def distances_table(run: str) -> pd.DataFrame:
    """How far π(B) is from A, as a share of how far B is."""
    rows = []
    for plane in planes(run):
        ax, ay = plane.corners["A"]
        x, y = plane.corners["π(B)"]
        rows.append({"networks": plane.title, "from A to π(B), of A to B": decimal(np.hypot(x - ax, y - ay), 2)})
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
        shades = {"levels": plane.levels, "cmap": HEIGHTS, "norm": LogNorm(*plane.levels[[0, -1]]), "extend": "max"}
        bands = axes.contourf(x, y, loss, **shades)
        axes.contour(x, y, loss, levels=plane.levels, colors="white", linewidths=0.4, alpha=0.5)
        halo = [withStroke(linewidth=3, foreground="#0B2545")]
        for matcher in ENDS:
            line = np.array([plane.on_line(matcher, lam) for lam in (0, 1)])
            style = "--" if matcher == "none" else "-"
            axes.plot(*line.T, style, color="white", marker="o", path_effects=halo)
        for name, place in plane.corners.items():
            axes.annotate(
                name, place, xytext=(0, 8), textcoords="offset points", ha="center", color="white", path_effects=halo
            )
        bar = figure.colorbar(bands, ax=axes, label="test loss (nats)", ticks=plane.levels[[0, BANDS // 2, -1]])
        bar.ax.set_yticklabels([decimal(level, 2) for level in plane.levels[[0, BANDS // 2, -1]]])
        bar.ax.minorticks_off()
        axes.set(title=plane.title, aspect="equal", xlabel="distance, in that from A to B")
        axes.grid(visible=False)
    return figure


@reads("plane")
def along(run: str) -> str:
    """The landscapes with a slider for λ, that moves a point along either line; beside it the losses on both."""
    shown = planes(run)
    lams = shown[0].lines["none"].index.tolist()
    steps, middle = [decimal(lam, 2) for lam in lams], lams.index(0.5)
    panels = [panel(plane.title, _spoken(plane), _of_pair(plane, lams, middle)) for plane in shown]
    return explorer("explorer-plane", "Networks", panels, slider("On the way from A, λ =", steps, middle))


def _of_pair(plane: Plane, lams: list[float], at: int) -> str:
    """The landscape of a pair, the losses along its lines, and what they are at a step."""
    rows = "".join(
        reading(MATCHERS[matcher].colour, _kind(matcher), title, _values(plane.lines[matcher]), at)
        for matcher, title in (("none", "A to B"), ("weights", "A to π(B)"))
    )
    return f'{_map(plane, lams, at)}<div>{_profile(plane, lams, at)}<dl class="simple readings">{rows}</dl></div>'


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


def _map(plane: Plane, lams: list[float], at: int) -> str:
    """The loss from above, with the two lines, a point on each, and what the colours stand for."""
    (x0, x1), (y0, y1) = plane.x[[0, -1]], plane.y[[0, -1]]
    high = round(340 * (y1 - y0) / (x1 - x0))
    frame = Frame(340, high + 34, 0, 0, 0, 34, (x0, x1), (y0, y1))
    parts = [*_bands(plane, frame), *_key(plane, frame)]
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


def _bands(plane: Plane, frame: Frame) -> list[str]:
    """All that lies above each level in the colour of its band, the lowest first, with a faint line around it."""
    x, y, loss = plane.smooth()
    axes, levels = Figure().add_subplot(), plane.levels
    bands = []
    for number, level in enumerate(levels[:-1]):
        # The lowest band is the whole picture.
        above = axes.contourf(x, y, loss, levels=[level if number else 0.0, 2 * loss.max()]).get_paths()
        rings = [ring for path in above for ring in path.to_polygons()]
        d = "".join("M" + "L".join("{:g} {:g}".format(*frame.place(*point)) for point in ring) + "Z" for ring in rings)
        bands.append(f'<path class="band" fill="{_colour(number)}" fill-rule="evenodd" d="{d}"/>')
    return bands


def _colour(band: int) -> str:
    return to_hex(HEIGHTS((band + 0.5) / BANDS))


def _key(plane: Plane, frame: Frame) -> list[str]:
    """What the colours stand for, below the map."""
    wide, y = 112 / BANDS, frame.high - 18
    parts = [
        f'<rect x="{80 + number * wide:g}" y="{y:g}" width="{wide:g}" height="9" fill="{_colour(number)}"/>'
        for number in range(BANDS)
    ]
    low, high = (decimal(level, 2) for level in plane.levels[[0, -1]])
    words = [(74, f"loss {low}", "end"), (198, f"{high} nats or more", "start")]
    return parts + [frame.text(x, y + 9, text, anchor) for x, text, anchor in words]


def _profile(plane: Plane, lams: list[float], at: int) -> str:
    """The loss along both lines, with a point on each."""
    top = max(line["loss"].max() for line in plane.lines.values())
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
