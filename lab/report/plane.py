"""The plane through A, B and π(B): the loss over it, and along the lines from A to either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.interpolate import RectBivariateSpline

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import MATCHERS
from lab.report.claims import last_snapshots, picked
from lab.report.facts import Facts, reads
from lab.report.pairs import title_of_networks
from lab.report.words import decimal

# From the valleys to the heights, on a light page as on a dark one.
HEIGHTS = LinearSegmentedColormap.from_list(
    "heights", ["#0B2545", "#13518A", "#2C8C99", "#8CC9A1", "#E9E4A6", "#F2B46B", "#D9653B"]
)
BANDS = 14  # of one colour each, between the lowest and the highest loss, by its logarithm
FINE = 97  # points on a side, that a grid is smoothed to before it is drawn
ENDS = {"none": "B", "weights": "π(B)"}  # where the line from A leads, by how B was matched


@dataclass(frozen=True)
class Plane:
    """A pair of networks: ``title``, the loss (y, x) on a grid, where the corners lie, and what is on the lines.

    ``corners`` are x and y by name; ``lines`` a frame for each matcher, of ``loss`` in nats and ``accuracy`` in percent,
    with λ as its index.
    """

    title: str
    recipe: str
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
        """The losses (bands + 1,) that bound the bands."""
        return np.geomspace(self.loss.min(), self.loss.max(), BANDS + 1)


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

    ``_ends`` is the mean of A's and B's. Outcomes: whether the loss halfway to π(B) is ``lower`` for all pairs, ``lower
    for some`` or ``no lower``. One pair of each recipe: no interval.
    """
    values, lower = {}, []
    for plane in planes(run):
        name = plane.recipe.replace(" ", "_")
        halfway = {matcher: line.loc[0.5, "loss"] for matcher, line in plane.lines.items()}
        values |= {f"{name}_{matcher}": decimal(loss, 2) for matcher, loss in halfway.items()}
        values[f"{name}_ends"] = decimal(plane.lines["none"]["loss"].iloc[[0, -1]].mean(), 2)
        lower.append(halfway["weights"] < halfway["none"])
        values["images"] = str(plane.images)
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
            row = {"networks": plane.title, "": place, "loss (nats)": decimal(at["loss"], 3)}
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
    figure, panels = plt.subplots(len(shown), 1, figsize=(5.6, 4.4 * len(shown)), squeeze=False)
    for axes, plane in zip(panels[:, 0], shown, strict=True):
        x, y, loss = plane.smooth()
        bands = axes.contourf(x, y, loss, levels=plane.levels, cmap=HEIGHTS, norm=LogNorm(*plane.levels[[0, -1]]))
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
    figure.tight_layout()
    return figure
