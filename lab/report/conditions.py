"""The comparison that decides the hierarchy's main claim, made again under other recipes: trees of eight networks."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import load_preset
from lab.bookkeeping.vocabulary import ALGORITHMS, INITIALS, MENDINGS
from lab.report.comparison import gap, percent
from lab.report.draw import ink, legend_below, offsets, on_page, paper, width
from lab.report.facts import Facts, reads
from lab.report.page import data_titles
from lab.report.words import decimal, listed

LEAVES = 8
AXES = ("width", "initial", "epochs", "weight_decay")  # what the recipes differ in, in the order of tables
COMPARED = ("hierarchy", "many")
Recipe = tuple[int, str, int, float]  # width, initial weights, epochs, weight decay


@reads("conditions")
def against_many(run: str) -> Facts:
    """Under how many recipes the hierarchy of eight is ahead of MergeMany in the mean, and by how many points.

    Outcomes: ``none``, ``some`` or ``all`` of the recipes as merged, then after REPAIR: ``none, some``. ``n`` is
    the number of trees of each recipe; values with ``_repaired`` are those after REPAIR.
    """
    by_recipe, names = recipes(run), recipe_names(run)
    outcomes, values = [], {"recipes": str(len(by_recipe))}
    for mended, suffix in (("none", ""), ("repair", "_repaired")):
        gaps = {recipe: gap(part, mended, LEAVES).mean() for recipe, part in by_recipe.items()}
        ahead = [names[recipe] for recipe, value in gaps.items() if value > 0]
        outcomes.append("all" if len(ahead) == len(gaps) else "some" if ahead else "none")
        values[f"ahead{suffix}"] = str(len(ahead))
        values[f"ahead_under{suffix}"] = "; ".join(ahead) or "none"
        values[f"lowest{suffix}"] = decimal(min(gaps.values()), 1, signed=True)
        values[f"highest{suffix}"] = decimal(max(gaps.values()), 1, signed=True)
    values["n"] = str(results.provenance(run, "conditions")["parameters"]["condition_networks"]["models"] // LEAVES)
    values["data"] = listed(data_titles(results.provenance(run, "conditions")["dataset"]))
    return Facts(", ".join(outcomes), values)


@reads("conditions")
def initial_weights(run: str) -> Facts:
    """What the hierarchy of eight keeps from each kind of initial weights, over the other settings.

    Outcomes: the kind from which it keeps more under any other setting than from the others under their best, such as
    ``torch``; ``mixed`` where the ranges overlap; ``one kind`` where there is nothing to compare. Values are ranges of
    accuracy in percent, such as ``hierarchy_torch``.
    """
    by_kind: dict[str, dict[str, list[float]]] = {}
    for (_, initial, _, _), part in recipes(run).items():
        accuracies = by_kind.setdefault(initial, {"unmerged": [], "hierarchy": []})
        accuracies["unmerged"].append(percent(part, "unmerged", "none", 1).mean())
        accuracies["hierarchy"].append(percent(part, "hierarchy", "none", LEAVES).mean())
    if len(by_kind) < 2:
        return Facts("one kind", {})
    values = {
        f"{algorithm}_{initial}": f"{decimal(min(kept), 1)} to {decimal(max(kept), 1)}"
        for initial, accuracies in by_kind.items()
        for algorithm, kept in accuracies.items()
    }
    second, best = sorted(by_kind, key=lambda initial: max(by_kind[initial]["hierarchy"]))[-2:]
    apart = min(by_kind[best]["hierarchy"]) > max(by_kind[second]["hierarchy"])
    return Facts(best if apart else "mixed", values)


@reads("conditions")
def not_run(run: str) -> Facts:
    """How many recipes of the full plan, that of preset ``gpu``, the run does not have.

    Outcomes: ``some``, ``none``, or ``other data`` for a run on another data set. ``untried`` names the settings that
    no recipe of the run has; a plan is made of all combinations of its settings, and what is missing has one or more.
    """
    preset = load_preset("gpu")
    plan = preset["varied"] | {"epochs": preset["condition_networks"]["epochs"]}
    data = results.provenance(run, "conditions")["dataset"]
    if data["name"] != preset["condition_networks"]["dataset"]:
        return Facts("other data", {"data": listed(data_titles(data))})
    had = list(recipes(run))
    untried, tried = [], 1
    for position, column in enumerate(AXES):
        settings = {recipe[position] for recipe in had}
        untried += [setting_name(column, value) for value in plan[column] if value not in settings]
        tried *= len(settings & set(plan[column]))
    planned = math.prod(len(plan[column]) for column in AXES)
    values = {
        "missing": str(planned - tried),
        "planned": str(planned),
        "untried": listed(untried, "or") if untried else "none",
    }
    return Facts("some" if planned > tried else "none", values)


@reads("conditions")
def accuracy_table(run: str) -> pd.DataFrame:
    """Test accuracy of nodes of eight leaves under every recipe, as merged and after REPAIR, in percent."""
    rows = []
    for recipe, part in recipes(run).items():
        settings = zip(("width", "initial weights", "epochs", "weight decay"), AXES, recipe, strict=True)
        row = {title: INITIALS[value] if column == "initial" else f"{value:g}" for title, column, value in settings}
        row["unmerged"] = decimal(percent(part, "unmerged", "none", 1).mean(), 1)
        for mended, after in (("none", ""), ("repair", f" {MENDINGS['repair']}")):
            for algorithm in COMPARED:
                mean = percent(part, algorithm, mended, LEAVES).mean()
                row[ALGORITHMS[algorithm].title + after] = decimal(mean, 1)
            row["gap" + after] = decimal(gap(part, mended, LEAVES).mean(), 1, signed=True)
        rows.append(row)
    return pd.DataFrame(rows)


@reads("conditions")
def accuracy_by_recipe(run: str) -> Figure:
    """Test accuracy of nodes of eight leaves: a row for each recipe, filled as merged, open after REPAIR."""
    by_recipe, names = recipes(run), recipe_names(run)
    figure, axes = plt.subplots(figsize=(width(), 0.8 + 0.55 * len(by_recipe)))
    leaves = ALGORITHMS["unmerged"]
    for row, part in enumerate(by_recipe.values()):
        unmerged = percent(part, "unmerged", "none", 1).mean()
        axes.plot(unmerged, row, leaves.marker, color=on_page(leaves.colour), label=leaves.title)
        for offset, algorithm in zip(offsets(len(COMPARED), 0.28), COMPARED, strict=True):
            drawn, y = ALGORITHMS[algorithm], row + offset
            merged, repaired = (percent(part, algorithm, mended, LEAVES).mean() for mended in ("none", "repair"))
            colour = on_page(drawn.colour)
            axes.plot([merged, repaired], [y, y], color=colour, linewidth=1.2)
            axes.plot(merged, y, drawn.marker, color=colour, label=drawn.title)
            axes.plot(repaired, y, drawn.marker, color=colour, markerfacecolor=paper())
    axes.set_yticks(range(len(by_recipe)), [names[recipe].replace(", ", "\n", 1) for recipe in by_recipe])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy (%)")
    axes.plot([], [], "o", color=ink(), markerfacecolor=paper(), label=MENDINGS["repair"])
    legend_below(figure, axes)
    return figure


def recipes(run: str) -> dict[Recipe, pd.DataFrame]:
    """The test accuracies under each recipe, in the order of tables and figures."""
    table = results.read(run, "conditions", "conditions")
    parts = table[table["metric"] == "accuracy"].groupby(list(AXES))
    order = list(INITIALS)
    return dict(sorted(parts, key=lambda part: (part[0][0], order.index(part[0][1]), *part[0][2:])))


def recipe_names(run: str) -> dict[Recipe, str]:
    """What readers call each recipe: the settings in which the recipes of the run differ."""
    had = list(recipes(run))
    varied = [position for position in range(len(AXES)) if len({recipe[position] for recipe in had}) > 1]
    return {
        recipe: ", ".join(setting_name(AXES[at], recipe[at]) for at in varied or range(len(AXES))) for recipe in had
    }


def setting_name(column: str, value: object) -> str:
    """A setting in words: ``width 512``, ``LeCun-normal``, ``3 epochs``."""
    if column == "initial":
        return INITIALS[value]
    return f"{value} epochs" if column == "epochs" else f"{column.replace('_', ' ')} {value:g}"
