"""Attacks: what is left of the accuracy of merged networks, beside unmerged ones that are as accurate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, GREY_LEVELS, title_of
from lab.report.claims import contrast, picked
from lab.report.draw import interval_line, legend_below, on_page, on_phone, shades, width, word_colour
from lab.report.facts import Facts, outcome, reads
from lab.report.hierarchy import BLOCK, term
from lab.report.kinds import (
    UNMERGED,
    Kind,
    by_kind,
    names,
    percent,
    percent_left,
    shared_images,
)
from lab.report.statistics import Interval, interval
from lab.report.verdicts import claim, gaps
from lab.report.words import decimal, listed, points

SHOWN = (2, 4, 8)  # grey levels
DRAWN_TO = 8  # grey levels: beyond, next to nothing is left of any network
# What is drawn in the plane of clean and robust accuracy; lines join the sizes or strengths of the first ones.
JOINED = [("hierarchy", "none"), ("early_stopped", "none"), ("l2", "none")]
ALONE = [("hierarchy", "repair"), ("many", "repair"), ("ensemble", "none"), ("unmerged", "none")]


@reads("attack")
def against_equals(run: str) -> Facts:
    """The hierarchy of eight minus unmerged networks of its accuracy, in points of worst-case accuracy at 2 and 4/255.

    The outcome is ``above``, ``below``, ``open`` or ``too few`` of both, or of each: ``below, open``; or ``not
    measured``. So it is of the other facts on H4.
    """
    return gaps(claim(run, "H4"), {"gap_2": "equals_2", "gap_4": "equals_4"})


@reads("attack")
def against_leaves(run: str) -> Facts:
    """The hierarchy of eight minus its leaves."""
    return gaps(claim(run, "H4"), {"gap_2": "leaves_2", "gap_4": "leaves_4"})


@reads("attack")
def beside_each_other(run: str) -> Facts:
    """What is left of merges of eight minus that of others in the same groups, in points, each by the images both have.

    ``leaves_6`` and ``leaves_8`` are the hierarchy beside its leaves, ``many_4`` is MergeMany beside the hierarchy.
    Outcomes: where they lie, ``above, above, above``; ``not measured`` where there is no such radius.
    """
    compared = {
        "leaves_6": (6.0, [term("hierarchy", BLOCK), term("unmerged", 1, -1)]),
        "leaves_8": (8.0, [term("hierarchy", BLOCK), term("unmerged", 1, -1)]),
        "many_4": (4.0, [term("many", BLOCK), term("hierarchy", BLOCK, -1)]),
    }
    table = picked(results.read(run, "attack", "images"), {"mended": "none"})
    outcomes, values = [], {}
    for name, (epsilon, terms) in compared.items():
        rows = picked(table, {"epsilon": epsilon})
        if any(picked(rows, {key: each[key] for key in ("algorithm", "n_leaves")}).empty for each in terms):
            return Facts("not measured", {})
        gap = interval(contrast(rows, terms, BLOCK))
        values |= {name: points(gap, signed=True), f"n_{name}": str(gap.n)}
        outcomes.append(outcome(gap))
    return Facts(", ".join(outcomes), values)


@reads("attack")
def with_more_models(run: str) -> Facts:
    """The hierarchy of eight minus that of two, at 4/255 alone."""
    return gaps(claim(run, "H4"), {"gap": "grows"})


@reads("attack")
def at_every_stage(run: str) -> Facts:
    """At how many stages and radii the hierarchy is less robust than its equals, in the mean and on the same images.

    Its equals are the networks stopped at its accuracy, and those with the L2 penalty that comes nearest. The outcome
    is ``all``, ``some`` or ``none``.
    """
    held_out = _accuracy(run, "held_out")
    below = []
    for epsilon in shown_epsilons(run)[:2]:
        left = _left(run, epsilon)
        for stage in [kind for kind in left if kind[:2] == ("hierarchy", "none")]:
            below += [left[stage].mean < left[peer].mean for peer in _peers(held_out, stage, ("l2",))]
    outcome = "all" if all(below) else "some" if any(below) else "none"
    return Facts(outcome, {"below": str(sum(below)), "comparisons": str(len(below))})


@reads("attack")
def images(run: str) -> Facts:
    """How many test images networks are attacked on: ``shared`` by all, and by those that the claims compare.

    The outcome is ``more for the claims`` or ``the same for all``.
    """
    counts = results.read(run, "attack", "images")["images"]
    fewest, most = int(counts.min()), int(counts.max())
    values = {"shared": str(fewest), "claims": str(most)}
    return Facts("more for the claims" if most > fewest else "the same for all", values)


@reads("attack")
def easier_images(run: str) -> Facts:
    """How often unmerged networks are right on the images that all networks are attacked on, and on the whole test set.

    Before any attack, in percent. The outcome is ``easier`` where they are right more often on the former, or ``no
    easier``; ``not measured`` where all were attacked.
    """
    clean = _left(run, 0.0)
    if UNMERGED not in clean:
        return Facts("not measured", {})
    shared, whole = clean[UNMERGED].mean, _accuracy(run, "test")[UNMERGED]
    values = {"shared": decimal(shared, 1), "whole": decimal(whole, 1)}
    return Facts("easier" if shared > whole else "no easier", values)


@reads("attack")
def near_constant(run: str) -> Facts:
    """Which kinds are right less than twice as often as chance, so that nothing can be said of their robustness.

    The outcome is ``some`` or ``none``.
    """
    bound = 2 * _chance(run)
    by_title: dict[str, list[str]] = {}
    for kind, accuracy in _accuracy(run, "test").items():
        if accuracy < bound:
            shown = names(kind)
            by_title.setdefault(shown["networks"], []).append(shown["models"])
    kinds = [f"{title} ({listed(models)})" for title, models in by_title.items()]
    values = {"kinds": listed(kinds) if kinds else "none", "bound": f"{bound:.0f}"}
    return Facts("some" if kinds else "none", values)


@reads("attack")
def robust_by_clean(run: str) -> Figure:
    """What is left under attack against clean accuracy: the hierarchy, its controls, and one penalty.

    A panel for each of two radii, all on the same images. Near-constant networks are left out. Numbers say how many
    networks were merged.
    """
    return _robust_by_clean(run, JOINED, [("unmerged", "none")])


@reads("attack")
def all_robust_by_clean(run: str) -> Figure:
    """The same, with MergeMany, merges after REPAIR and the ensemble."""
    return _robust_by_clean(run, JOINED, ALONE)


def _robust_by_clean(run: str, joined: Sequence[tuple[str, str]], alone: Sequence[tuple[str, str]]) -> Figure:
    epsilons = shown_epsilons(run)[:2]
    columns = 1 if on_phone() else len(epsilons)
    rows = len(epsilons) // columns
    size = (width(), 0.3 + 3.2 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    clean, bound = _left(run, 0.0), 2 * _chance(run)
    for axes, epsilon in zip(panels.flat, epsilons, strict=True):
        robust = _left(run, epsilon)
        for algorithm, mended in [*joined, *alone]:
            kinds = [k for k in robust if k[:2] == (algorithm, mended) and clean[k].mean >= bound]
            if not kinds:
                continue
            line, filled = "-" if (algorithm, mended) in joined else "none", mended == "none"
            x, label = [clean[kind].mean for kind in kinds], title_of(algorithm, mended)
            interval_line(axes, x, [robust[kind] for kind in kinds], ALGORITHMS[algorithm], label, line, filled)
            if algorithm in ("hierarchy", "early_stopped") and filled:
                for kind, at in zip(kinds, x, strict=True):
                    _number(axes, kind, at, robust[kind])
        axes.margins(x=0.16)
        axes.set_title(f"attacked at {radius_text(epsilon)}")
        axes.set_ylim(bottom=0)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy under attack (%)")
    for axes in panels[-1]:
        axes.set_xlabel("clean accuracy (%)")
    legend_below(figure, panels[0, 0])
    return figure


def _number(axes: plt.Axes, kind: Kind, x: float, left: Interval) -> None:
    """How many networks were merged, above the controls and below the hierarchy; beside a mark without an interval."""
    above, bar = kind.algorithm == "early_stopped", np.isfinite(left.low)
    side = 1 if above else -1
    y = (left.high if above else left.low) if bar else left.mean
    axes.annotate(
        f"{kind.n_leaves}", (x, y), xytext=(0, 4 * side) if bar else (-6, 0), textcoords="offset points",
        ha="center" if bar else "right", va=("bottom" if above else "top") if bar else "center",
        color=word_colour(ALGORITHMS[kind.algorithm].colour),
    )  # fmt: skip


@reads("attack")
def accuracy_by_radius(run: str) -> Figure:
    """Accuracy by the attack's radius: the hierarchy's stages, and below the unmerged networks as accurate as each."""
    table = results.read(run, "attack", "images")
    table = table[table["epsilon"] <= DRAWN_TO]
    epsilons, count = sorted(table["epsilon"].unique()), shared_images(table)
    rows, columns = (2, 1) if on_phone() else (1, 2)
    size = (width(), 0.3 + 3.2 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True)
    for axes, algorithm, title in (
        (panels[0], "hierarchy", "merged by the hierarchy"),
        (panels[1], "early_stopped", "unmerged, as accurate"),
    ):
        curves = {
            kind: [percent_left(rows[rows["epsilon"] == epsilon], count) for epsilon in epsilons]
            for kind, rows in by_kind(table)
            if kind == UNMERGED or kind[:2] == (algorithm, "none")
        }
        _band(axes, epsilons, curves.pop(UNMERGED), on_page(ALGORITHMS["unmerged"].colour), "leaves", "--")
        for colour, (kind, curve) in zip(shades(len(curves)), curves.items(), strict=True):
            _band(axes, epsilons, curve, colour, f"{kind.n_leaves} merged", "-")
        axes.set(xlabel=f"radius (of {GREY_LEVELS})", ylabel="accuracy left (%)", ylim=(0, None))
        axes.label_outer()
        axes.set_title(title)
    legend_below(figure, panels[0])
    return figure


def _band(axes: plt.Axes, x: Sequence[float], curve: Sequence[Interval], colour: str, label: str, line: str) -> None:
    """Means joined by a line, and their intervals as a band."""
    axes.plot(x, [value.mean for value in curve], line, color=colour, label=f"{label} (n = {curve[0].n})")
    axes.fill_between(
        x, [value.low for value in curve], [value.high for value in curve], color=colour, alpha=0.2, linewidth=0
    )


@reads("attack", "regularisation")
def matched_table(run: str, regularisation: str) -> pd.DataFrame:
    """Each stage beside the unmerged networks nearest to it in held-out accuracy, under attack, on the same images.

    Beside them stands their Lipschitz bound, mean over the networks whose weights were measured.
    """
    weights = picked(results.read(regularisation, "regularisation", "nodes"), {"metric": "lipschitz"})
    bound = {kind: rows["value"].mean() for kind, rows in by_kind(weights)}
    held_out, epsilons = _accuracy(run, "held_out"), shown_epsilons(run)[:2]
    left = {epsilon: _left(run, epsilon) for epsilon in epsilons}
    rows = []
    for stage in [kind for kind in held_out if kind[:2] == ("hierarchy", "none")]:
        for kind in [stage, *_peers(held_out, stage, ("l1", "l2"))]:
            row = names(kind) | {"held-out accuracy (%)": f"{held_out[kind]:.1f}"}
            row |= {f"left at {radius_text(epsilon)} (%)": points(left[epsilon][kind]) for epsilon in epsilons}
            row["Lipschitz bound"] = f"{bound[kind]:.0f}" if kind in bound else "–"
            rows.append(row | {"n": left[epsilons[0]][kind].n})
    return pd.DataFrame(rows)


def _peers(held_out: Mapping[Kind, float], stage: Kind, penalties: Sequence[str]) -> list[Kind]:
    """Unmerged networks that come nearest to a stage in held-out accuracy: stopped early, and with each penalty."""
    peers = [stage._replace(algorithm="early_stopped")]
    for penalty in penalties:
        trained = [kind for kind in held_out if kind.algorithm == penalty]
        peers += sorted(trained, key=lambda kind: abs(held_out[kind] - held_out[stage]))[:1]
    return [kind for kind in peers if kind in held_out]


@reads("attack")
def all_table(run: str) -> pd.DataFrame:
    """Worst-case accuracy, area under the curve and relative accuracy of every kind of network, on the same images.

    Beside the clean accuracy on these stands that on the whole test set.
    """
    table = results.read(run, "attack", "images")
    clean, chance, shown = _accuracy(run, "test"), _chance(run), shown_epsilons(run)
    epsilons = sorted(table["epsilon"].unique())
    left = {epsilon: _left(run, epsilon) for epsilon in epsilons}
    rows = []
    for kind, first in left[epsilons[0]].items():
        row = names(kind)
        for epsilon in epsilons:
            if epsilon in (0, *shown):
                row[f"left at {radius_text(epsilon)} (%)" if epsilon else "clean (%)"] = points(left[epsilon][kind])
            if epsilon == 0:
                row["clean, whole test set (%)"] = decimal(clean[kind], 1)
        means = [left[epsilon][kind].mean for epsilon in epsilons]
        reach = epsilons[-1] - epsilons[0]
        row["area"] = f"{np.trapezoid(means, epsilons) / reach:.1f}" if reach else ""
        known = clean[kind] >= 2 * chance and epsilons[0] == 0
        row["median distance (of 255)"] = _median_distance(means, epsilons) if known else "–"
        for epsilon in shown:
            relative = (left[epsilon][kind].mean - chance) / (first.mean - chance) if known else np.nan
            row[f"relative, {radius_text(epsilon)}"] = decimal(relative, 2) if known else "–"
        rows.append(row | {"n": first.n})
    return pd.DataFrame(rows)


def _median_distance(left: Sequence[float], epsilons: Sequence[float]) -> str:
    """The radius at which half of what was right without an attack is lost, on straight lines between the radii."""
    half = left[0] / 2
    if left[-1] > half:
        return f"> {epsilons[-1]:g}"
    return decimal(float(np.interp(half, left[::-1], epsilons[::-1])), 1)


@reads("attack")
def small_penalty(run: str) -> Facts:
    """What unmerged networks with the best L1 penalty have without an attack and at 4/255, and those without a penalty.

    On the images that all kinds were attacked on. The best is the most accurate. Outcomes: ``both`` where it is ahead
    of no penalty in both, else ``not both``; ``not measured`` if there is none.
    """
    clean, attacked = _left(run, 0.0), _left(run, 4.0)
    penalised = [kind for kind in clean if kind.algorithm == "l1" and kind in attacked]
    if UNMERGED not in attacked or not penalised:
        return Facts("not measured", {})
    best = max(penalised, key=lambda kind: clean[kind].mean)
    values = {}
    for name, kind in (("penalised", best), ("plain", UNMERGED)):
        values |= {f"{name}_clean": decimal(clean[kind].mean, 1), f"{name}_4": decimal(attacked[kind].mean, 1)}
        values[f"n_{name}"] = str(clean[kind].n)
    both = all(left[best].mean > left[UNMERGED].mean for left in (clean, attacked))
    return Facts("both" if both else "not both", values)


@reads("attack")
def l2_table(run: str) -> pd.DataFrame:
    """Worst-case accuracy within L2 balls, of the hierarchy's stages and its controls, all on the same images."""
    curves = picked(results.read(run, "attack", "curves"), {"norm": "l2", "attack": "worst"})
    rows = []
    for kind, own in by_kind(curves):
        row = names(kind)
        for epsilon, at in own.groupby("epsilon"):
            row[f"left at {radius_text(epsilon)} (%)" if epsilon else "clean (%)"] = points(percent(at["value"]))
        rows.append(row | {"n": own["node"].nunique()})
    return pd.DataFrame(rows)


@reads("attack")
def transfer_table(run: str) -> pd.DataFrame:
    """Accuracy on images that were attacked on other networks, by whose and by the radius."""
    rows = []
    for kind, own in by_kind(results.read(run, "attack", "transfer")):
        row = names(kind)
        for source in ("outside", "own leaf"):
            for epsilon, at in picked(own, {"source": source}).groupby("epsilon"):
                row[f"{source}, {radius_text(epsilon)} (%)"] = points(percent(at["value"]))
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def shown_epsilons(run: str) -> list[float]:
    """The radii that tables show: the usual ones, or the first few of a run that has none of them."""
    epsilons = sorted(results.read(run, "attack", "images")["epsilon"].unique())
    usual = [epsilon for epsilon in epsilons if epsilon in SHOWN]
    return usual or [epsilon for epsilon in epsilons if epsilon][:3]


def radius_text(epsilon: float) -> str:
    """A radius as the field writes it: ``4/255``."""
    return f"{epsilon:g}/{GREY_LEVELS}"


def _left(run: str, epsilon: float) -> dict[Kind, Interval]:
    """Worst-case accuracy of each kind at a radius, on the images that all kinds were attacked on."""
    table = results.read(run, "attack", "images")
    count = shared_images(table)
    return {kind: percent_left(rows, count) for kind, rows in by_kind(picked(table, {"epsilon": epsilon}))}


def _accuracy(run: str, split: str) -> dict[Kind, float]:
    """Clean accuracy of each kind on a whole split, in percent."""
    table = picked(results.read(run, "attack", "clean"), {"split": split})
    return {kind: 100 * rows["value"].mean() for kind, rows in by_kind(table)}


def _chance(run: str) -> float:
    """The accuracy of guessing, in percent."""
    return 100 / int(results.read(run, "attack", "clean")["classes"].iloc[0])
