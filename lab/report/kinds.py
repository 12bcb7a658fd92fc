"""Kinds of networks in tables and figures: what a reader calls them, in which order, and what is measured of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from lab.bookkeeping.vocabulary import ALGORITHMS, KIND, MENDINGS, title_of
from lab.report.statistics import Interval, interval


class Kind(NamedTuple):
    """How networks were made: the values of the columns ``KIND``."""

    algorithm: str
    mended: str = "none"
    n_leaves: int = 1
    strength: float = 0.0


UNMERGED = Kind("unmerged")
# The hierarchy, its leaves, and the unmerged networks that were stopped at its accuracy.
STAGES = [("unmerged", "none"), ("hierarchy", "none"), ("early_stopped", "none")]


def by_kind(table: pd.DataFrame) -> list[tuple[Kind, pd.DataFrame]]:
    """The rows of each kind of network: the unmerged first, then in the order of the vocabulary."""
    algorithms, mendings = list(dict.fromkeys(["unmerged", *ALGORITHMS])), list(MENDINGS)

    def place(part: tuple[Kind, pd.DataFrame]) -> tuple[int, int, int, float]:
        kind, _ = part
        return algorithms.index(kind.algorithm), mendings.index(kind.mended), kind.n_leaves, kind.strength

    return sorted(((Kind(*values), rows) for values, rows in table.groupby(list(KIND))), key=place)


def by_images(table: pd.DataFrame) -> list[tuple[Kind, pd.DataFrame]]:
    """As ``by_kind``, but kinds that were measured on the same number of ``images`` stand together, the most first."""
    return sorted(by_kind(table), key=lambda part: -part[1]["images"].iloc[0])


def of_stages(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the hierarchy, its leaves and its controls."""
    return table[pd.MultiIndex.from_frame(table[list(KIND[:2])]).isin(STAGES)]


def names(kind: Kind) -> dict[str, str]:
    """The first two columns of a table: how the networks were made, and of how many."""
    if kind.strength:
        models = f"strength {kind.strength:g}"
    elif kind.algorithm == "early_stopped":
        models = f"as {kind.n_leaves} merged"
    else:
        models = f"{kind.n_leaves}"
    return {"networks": title_of(kind.algorithm, kind.mended), "models": models}


def label(kind: Kind) -> str:
    """A kind in a legend: ``hierarchy of 8``."""
    title = title_of(kind.algorithm, kind.mended)
    return title if kind.n_leaves == 1 or kind.algorithm == "early_stopped" else f"{title} of {kind.n_leaves}"


def sizes(table: pd.DataFrame) -> list[int]:
    """Of how many leaves the hierarchy's nodes are."""
    return sorted(table[table["algorithm"] == "hierarchy"]["n_leaves"].unique().tolist())


def largest_shown(table: pd.DataFrame) -> int:
    """The size of the hierarchy's nodes that claims are about, eight, or the largest of a run without them."""
    known = sizes(table)
    return 8 if 8 in known else known[-1]


def shared_images(images: pd.DataFrame) -> int:
    """How many test images all rows are measured on: those are the first ones of each."""
    return int(images["images"].min())


def percent(values: Iterable[float]) -> Interval:
    """The interval over nodes of shares, in percent."""
    return interval(100 * np.asarray(values))


def percent_by_node(table: pd.DataFrame) -> Interval:
    """The same of a table's column ``value``; of what a node has several values, their mean counts."""
    return percent(table.groupby("node")["value"].mean())


def percent_left(rows: pd.DataFrame, images: int) -> Interval:
    """The share of the first ``images`` classified correctly, over nodes and images, in percent.

    ``rows``, one for each node, are of the table ``images`` of the notebooks attack or perturbations: bits, or for each
    image a count ``out_of`` how many forms of it.
    """
    counts = [np.frombuffer(correct, np.uint8) for correct in rows["correct"]]
    if "out_of" in rows:
        shares = np.stack([count[:images] for count in counts]) / rows["out_of"].to_numpy()[:, None]
    else:
        shares = np.stack([np.unpackbits(bits, count=images) for bits in counts])
    return interval(100.0 * shares)
