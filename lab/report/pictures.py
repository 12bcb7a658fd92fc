"""What networks see: a photograph under each perturbation, a digit under attack; and what two networks' units share."""

from __future__ import annotations

import base64
import html
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import GREY_LEVELS, PERTURBATIONS
from lab.report.claims import picked
from lab.report.draw import width
from lab.report.explorers import explorer, panel, slider
from lab.report.facts import Facts, reads
from lab.report.words import decimal

SHOWN_FIRST = 5  # severity
SAME, OTHER = "the same", "another"
ATTACKS = {"noise": "noise", "pgd": "attack"}


def pixels(row: pd.Series) -> np.ndarray:
    """An image of a table as (height, width, channels) in uint8."""
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["shape"]).transpose(1, 2, 0)


@reads("pictures")
def perturbed_photograph(run: str) -> str:
    """A photograph as it is, and under each perturbation, with a slider over severities."""
    images = results.read(run, "pictures", "images")
    shown = [_tile("as it is", [_png(pixels(images.iloc[0]))])]
    for kind, (title, _) in PERTURBATIONS.items():
        rows = picked(images, {"perturbation": kind}).sort_values("severity")
        shown.append(_tile(title, [_png(pixels(row)) for _, row in rows.iterrows()]))
    severities = [str(severity) for severity in range(1, images["severity"].max() + 1)]
    tiles = f'<div class="tiles">{"".join(shown)}</div>'
    spoken = [f"severity {severity}" for severity in severities]
    control = slider("Severity", severities, severities.index(str(SHOWN_FIRST)))
    return explorer("explorer-tiles", "", [panel("", spoken, tiles)], control)


def _tile(title: str, images: list[str]) -> str:
    """Pictures of one kind, of which one is seen: that of the step that a slider is at, or the only one."""
    seen = "".join(
        f'<img alt="" src="{image}"'
        + (f' data-step="{step}"{"" if step == SHOWN_FIRST - 1 else " hidden"}>' if len(images) > 1 else ">")
        for step, image in enumerate(images)
    )
    return f'<div class="tile">{seen}<span>{html.escape(title)}</span></div>'


def _png(image: np.ndarray) -> str:
    """An image as the address of a PNG that holds it."""
    buffer = io.BytesIO()
    plt.imsave(buffer, image, format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@reads("pictures")
def attacked(run: str) -> Facts:
    """What a network makes of a digit under the strongest attack, and under noise as large: ``answer``, ``noise``.

    ``label`` is what it is, ``epsilon`` how far each pixel was moved, in grey levels. The outcome says what the network
    answers under the attack and under noise: ``another, the same`` where only the attack changes its mind.
    """
    table = results.read(run, "pictures", "attacks")
    last = picked(table, {"epsilon": table["epsilon"].max()}).set_index("kind")
    answers = last["answer"]
    changed = {kind: OTHER if answers[kind] != last.loc[kind, "label"] else SAME for kind in ATTACKS}
    values = {"answer": str(answers["pgd"]), "noise": str(answers["noise"]), "label": str(last["label"].iloc[0])}
    return Facts(f"{changed['pgd']}, {changed['noise']}", values | {"epsilon": str(last["epsilon"].iloc[0])})


@reads("pictures")
def under_attack(run: str) -> Figure:
    """A digit under noise and under attack, by how far each pixel may be moved: what a network sees, and says."""
    table = results.read(run, "pictures", "attacks")
    epsilons = sorted(table["epsilon"].unique())
    figure, panels = plt.subplots(len(ATTACKS), len(epsilons), figsize=(width(), 0.52 * width()), squeeze=False)
    for row, (kind, title) in enumerate(ATTACKS.items()):
        for axes, epsilon in zip(panels[row], epsilons, strict=True):
            (shown,) = [each for _, each in picked(table, {"kind": kind, "epsilon": epsilon}).iterrows()]
            axes.imshow(pixels(shown).squeeze(-1), cmap="gray", vmin=0, vmax=GREY_LEVELS)
            wrong = shown["answer"] != shown["label"]
            words = f"“{shown['answer']}”, {decimal(100 * shown['confidence'], 0)} %"
            axes.set_xlabel(words, fontweight="bold" if wrong else "normal")
            if row == 0:
                axes.set_title(f"±{epsilon}" if epsilon else "as it is")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        panels[row, 0].set_ylabel(title)
    return figure


@reads("pictures")
def scores(run: str) -> Facts:
    """The mean score of units that meet, ``before`` and ``after`` matching, and that of ``others`` after it.

    The outcome: whether those that meet ``light up``, to more than twice the larger of the other two, or ``stay dark``.
    """
    table = results.read(run, "pictures", "scores")
    meeting = table["unit_a"] == table["unit_b"]
    means = table.groupby(["matcher", meeting])["value"].mean()
    before, after, others = means["none", True], means["weights", True], means["weights", False]
    values = {"before": decimal(before, 2), "after": decimal(after, 2), "others": decimal(others, 2)}
    values["units"] = str(table["unit_a"].nunique())
    return Facts("light up" if after > 2 * max(before, others, 0) else "stay dark", values)


@reads("pictures")
def score_matrix(run: str) -> Figure:
    """The scores of the units of two networks, the second's as they are and matched: on the diagonal, those that meet.

    The first's units stand in the order of their scores with those that they meet once matched, the highest first.
    """
    table = results.read(run, "pictures", "scores")
    squares = {
        matcher: rows.pivot(index="unit_a", columns="unit_b", values="value").to_numpy()
        for matcher, rows in table.groupby("matcher")
    }
    order, highest = np.argsort(-squares["weights"].diagonal()), table["value"].quantile(0.995)
    shown = {"B as it is": squares["none"][order], "B matched": squares["weights"][order][:, order]}
    figure, panels = plt.subplots(1, 2, figsize=(width(), 0.5 * width()), sharey=True)
    for axes, (title, square) in zip(panels, shown.items(), strict=True):
        shades = axes.imshow(square, cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
        axes.set(title=title, xlabel="unit of B", xticks=[], yticks=[])
        axes.grid(visible=False)
    panels[0].set_ylabel("unit of A")
    figure.colorbar(shades, ax=panels, label="score", shrink=0.8, extend="both")
    return figure
