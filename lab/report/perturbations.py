"""Perturbations that no adversary chose: what is left of the accuracy of merged networks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS, PERTURBATIONS
from lab.report.claims import picked
from lab.report.draw import errors, interval_line, legend_below, offsets, on_page, width
from lab.report.facts import ABOVE, BELOW, Facts, outcome, reads
from lab.report.kinds import (
    UNMERGED,
    Kind,
    by_images,
    by_kind,
    label,
    largest_shown,
    names,
    of_stages,
    percent,
    percent_by_node,
    percent_left,
    shared_images,
)
from lab.report.verdicts import claim, gaps
from lab.report.words import listed, points


@reads("perturbations")
def against_equals(run: str) -> Facts:
    """The hierarchy of eight minus unmerged networks of its accuracy, in points of mean accuracy over perturbations.

    The outcome is ``above``, ``below``, ``open``, ``too few`` or ``not measured``, as of the other facts on H5.
    """
    return gaps(claim(run, "H5"), {"gap": "equals"})


@reads("perturbations")
def against_leaves(run: str) -> Facts:
    """The hierarchy of eight minus its leaves."""
    return gaps(claim(run, "H5"), {"gap": "leaves"})


@reads("perturbations")
def with_more_models(run: str) -> Facts:
    """The hierarchy of eight minus that of two."""
    return gaps(claim(run, "H5"), {"gap": "grows"})


@reads("perturbations")
def ahead_and_behind(run: str) -> Facts:
    """Under which perturbations merges of eight are ahead of unmerged networks of their accuracy, or behind.

    Each by the 95 % interval of the differences of merges and their own equals, over severities. The outcome says how
    many there are: ``some ahead, some behind``, ``none ahead, some behind``, ``some ahead, none behind``, ``none``.
    """
    curves = results.read(run, "perturbations", "curves")
    harmed, kinds = curves[curves["severity"] > 0], _compared(curves)
    sides: dict[str, list[str]] = {ABOVE: [], BELOW: []}
    for perturbation, rows in harmed.groupby("perturbation", sort=False):
        merged, equals = (
            picked(rows, kinds[name]._asdict()).groupby("node")["value"].mean() for name in ("merged", "equals")
        )
        side = outcome(percent((merged - equals).dropna()))
        if side in sides:
            sides[side].append(PERTURBATIONS[perturbation][0])
    ahead, behind = sides[ABOVE], sides[BELOW]
    values = {name: listed(words) if words else "none" for name, words in (("ahead", ahead), ("behind", behind))}
    counts = [f"{'some' if words else 'none'} {name}" for name, words in (("ahead", ahead), ("behind", behind))]
    return Facts(", ".join(counts) if ahead or behind else "none", values | {"kinds": str(len(PERTURBATIONS))})


@reads("perturbations")
def images(run: str) -> Facts:
    """How many test images networks are tested on: ``shared`` by all, and by those that the claims compare.

    The outcome is ``more for the claims`` or ``the same for all``.
    """
    counts = results.read(run, "perturbations", "images")["images"]
    fewest, most = int(counts.min()), int(counts.max())
    values = {"shared": str(fewest), "claims": str(most), "kinds": str(len(PERTURBATIONS))}
    return Facts("more for the claims" if most > fewest else "the same for all", values)


@reads("perturbations")
def by_perturbation(run: str) -> Figure:
    """Accuracy under each perturbation, mean over severities: leaves, merged networks, and unmerged equals."""
    curves = results.read(run, "perturbations", "curves")
    harmed = curves[curves["severity"] > 0]
    kinds = _compared(harmed)
    perturbations = list(dict.fromkeys(harmed["perturbation"]))
    figure, axes = plt.subplots(figsize=(width(), 4.8))
    for shift, kind in zip(offsets(len(kinds), 0.4), kinds.values(), strict=True):
        rows = picked(harmed, kind._asdict())
        for place, perturbation in enumerate(perturbations):
            value = percent_by_node(picked(rows, {"perturbation": perturbation}))
            drawn = ALGORITHMS[kind.algorithm]
            axes.errorbar(
                value.mean, place + shift, xerr=errors([value]), color=on_page(drawn.colour), marker=drawn.marker,
                elinewidth=1.2, capsize=2, linestyle="none", label=label(kind),
            )  # fmt: skip
    axes.set_yticks(range(len(perturbations)), [PERTURBATIONS[name][0] for name in perturbations])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, mean over severities (%)")
    legend_below(figure, axes)
    return figure


@reads("perturbations")
def by_severity(run: str) -> Figure:
    """Mean accuracy over the perturbations by severity, of the kinds that were tested on the most images, all alike."""
    curves = results.read(run, "perturbations", "curves")
    curves = of_stages(curves[curves["images"] == curves["images"].max()])
    figure, axes = plt.subplots(figsize=(width(), 3.4))
    for kind, rows in by_kind(curves):
        severities = sorted(rows["severity"].unique())
        values = [percent_by_node(picked(rows, {"severity": severity})) for severity in severities]
        line = "--" if kind == UNMERGED else ":" if kind.n_leaves == 2 else "-"
        interval_line(axes, severities, values, ALGORITHMS[kind.algorithm], label(kind), line)
    axes.set(xlabel="severity (0 is clean)", ylabel="test accuracy (%)", ylim=(0, None))
    legend_below(figure, axes)
    return figure


@reads("perturbations")
def means_table(run: str) -> pd.DataFrame:
    """Mean accuracy over all perturbations and severities of every kind of network, on the same images."""
    table = results.read(run, "perturbations", "images")
    count = shared_images(table)
    rows = []
    for kind, own in by_kind(table):
        rows.append(names(kind) | {"mean accuracy (%)": points(percent_left(own, count)), "n": len(own)})
    return pd.DataFrame(rows)


@reads("perturbations")
def perturbations_table(run: str) -> pd.DataFrame:
    """Accuracy under each perturbation, mean over severities, of the hierarchy's stages and its controls."""
    curves = of_stages(results.read(run, "perturbations", "curves"))
    rows = []
    for kind, own in by_images(curves):
        harmed = own[own["severity"] > 0]
        row = names(kind) | {"images": str(own["images"].iloc[0])}
        row["clean (%)"] = f"{100 * picked(own, {'severity': 0})['value'].mean():.1f}"
        row["mean (%)"] = points(percent_by_node(harmed))
        for perturbation, at in harmed.groupby("perturbation", sort=False):
            row[PERTURBATIONS[perturbation][0]] = f"{100 * at['value'].mean():.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


@reads("perturbations")
def severities_table(run: str) -> pd.DataFrame:
    """Mean accuracy over the perturbations at each severity, of every kind of network."""
    rows = []
    for kind, own in by_images(results.read(run, "perturbations", "curves")):
        row = names(kind) | {"images": str(own["images"].iloc[0])}
        for severity, at in own.groupby("severity"):
            row[f"severity {severity} (%)" if severity else "clean (%)"] = points(percent_by_node(at))
        rows.append(row | {"n": own["node"].nunique()})
    return pd.DataFrame(rows)


@reads("perturbations")
def amounts_table(run: str) -> pd.DataFrame:
    """What the severities of each perturbation stand for."""
    curves = results.read(run, "perturbations", "curves")
    rows = []
    for perturbation, own in curves[curves["severity"] > 0].groupby("perturbation", sort=False):
        title, unit = PERTURBATIONS[perturbation]
        amounts = own.groupby("severity")["amount"].first()
        rows.append({"perturbation": title, "measured in": unit} | {f"{s}": f"{a:g}" for s, a in amounts.items()})
    return pd.DataFrame(rows)


def _compared(table: pd.DataFrame) -> dict[str, Kind]:
    """The leaves, the merged networks that the claim is about, and the unmerged ones as accurate as those."""
    size = largest_shown(table)
    return {
        "leaves": UNMERGED,
        "merged": Kind("hierarchy", n_leaves=size),
        "equals": Kind("early_stopped", n_leaves=size),
    }
