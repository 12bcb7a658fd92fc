"""Sentences and tables of the chapters on robustness and regularisation, made from results: no number is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import LABELS
from lab.measures.perturbations import PERTURBATIONS, UNITS
from lab.report.chapter import verdict_table
from lab.report.claims import FEWEST_FOR_VERDICT, INCONCLUSIVE, NOT_REPLICATED, REPLICATED, Claim, Condition, decide
from lab.report.page import runs
from lab.report.robustness_figures import NEAR_CONSTANT, by_node_and_image
from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval, interval
from lab.report.words import decimal, points

CHANCE = 0.1  # of ten classes
KEYS = ["algorithm", "n_leaves", "strength"]


def claim(run: str, name: str) -> Claim:
    """One claim with its verdict on a run."""
    return next(decided for decided in decide(run) if decided.id == name)


def robustness_finding(run: str, name: str) -> str:
    """What a run says of H4 (attacks) or H5 (perturbations), one paragraph that opens with the answer."""
    decided = claim(run, name)
    what = {"H4": "attacks", "H5": "perturbations"}[name]
    if not decided.conditions:
        return f"<strong>Run {run} did not measure what the claim on {what} is decided by.</strong>"
    against_leaves = [c for c in decided.conditions if "its leaves" in c.name]
    against_equals = [c for c in decided.conditions if c.decisive]
    few = min(c.effect.n for c in decided.conditions)
    if few < FEWEST_FOR_VERDICT:
        opening = f"This run has too few networks to say whether merging makes them more robust to {what} (n = {few})"
    elif decided.verdict == REPLICATED:
        opening = f"Merging makes networks more robust to {what}, also than unmerged ones that are as accurate"
    elif NOT_REPLICATED in [c.verdict for c in against_equals]:
        gained = [c for c in against_leaves if c.verdict == REPLICATED]
        still = "unmerged networks that were stopped at the same accuracy are more robust"
        if not gained:
            opening = f"Merging does not make networks more robust to {what}: {still}"
        elif len(gained) == len(against_leaves):
            opening = (
                f"Merging makes networks more robust to {what}, but only by making them less accurate: {still} still"
            )
        else:
            where = " and ".join(_where(c) for c in gained)
            opening = f"Only{where} are merged networks more robust to {what} than their leaves, and {still} still"
    elif decided.verdict == NOT_REPLICATED:
        opening = f"Merging does not make networks more robust to {what}"
    elif decided.verdict == INCONCLUSIVE:
        opening = f"Whether merging makes networks more robust to {what} is not decided"
    else:
        opening = f"Merging makes networks more robust to {what} only in part of what was measured"
    lead = f"<strong>{opening}.</strong> "
    return (
        lead
        + f"A node of eight leaves, against its leaves: {_listed(against_leaves)}; against "
        + (f"unmerged networks that were stopped when they were as accurate: {_listed(against_equals)}.")
    )


def _where(condition: Condition) -> str:
    """At which epsilon a condition was measured: `` at 2/255``, or nothing."""
    at = condition.name.rpartition(" at ")[2]
    return f" at {at}" if at.endswith("/255") else ""


def _listed(conditions: Sequence[Condition]) -> str:
    """Effects in words: ``+1.2 [0.8, 1.6] points at 2/255, +0.3 [-0.1, 0.7] points at 4/255 (n = 8)``."""
    told = [f"{points(c.effect, signed=True)} {c.unit}{_where(c)}" for c in conditions]
    return ", ".join(told) + f" (n = {conditions[0].effect.n})" if told else "not measured"


def artefact_finding(run: str) -> str:
    """What dividing a model's logits does under either loss."""
    checks = results.read(run, "attack", "checks")
    alone = checks[(checks["algorithm"] == "unmerged") & (checks["check"].isin(["white box", "logits / 16"]))]
    left = alone.groupby(["loss", "check"])["value"].mean() * 100
    if not {"cross_entropy", "margin"} <= set(left.index.get_level_values(0)):
        return ""
    told = {loss: [left[loss, check] for check in ("white box", "logits / 16")] for loss in ("cross_entropy", "margin")}
    fooled = told["cross_entropy"][1] - told["cross_entropy"][0] > 1
    opening = (
        "The size of the logits fools the cross-entropy" if fooled else "The size of the logits fools no attack here"
    )
    epsilon = results.provenance(run, "attack")["parameters"]["check_epsilon"]
    moral = " Merging shrinks logits, so that numbers under the cross-entropy alone mislead." if fooled else ""
    return (
        f"<strong>{opening}.</strong> Dividing an unmerged network's logits by 16 changes none of its answers. Under "
        f"PGD on the cross-entropy at {epsilon:g}/255 its accuracy goes from {told['cross_entropy'][0]:.1f} to "
        f"{told['cross_entropy'][1]:.1f} %, under PGD on the margin from {told['margin'][0]:.1f} to "
        f"{told['margin'][1]:.1f} %.{moral}"
    )


def near_constant(run: str) -> str:
    """The kinds of model that are too inaccurate to speak of robustness."""
    named = [_kind(*key) for key, value in _clean(run).items() if 100 * value < NEAR_CONSTANT]
    if not named:
        return f"No kind of model has a clean accuracy below {NEAR_CONSTANT} %."
    told = ", ".join(named)
    return f"Near-constant, below {NEAR_CONSTANT} % of clean accuracy, and so without a relative accuracy: {told}."


def _clean(run: str) -> pd.Series:
    """Mean clean test accuracy by kind of model."""
    clean = results.read(run, "attack", "clean")
    return clean[clean["split"] == "test"].groupby(KEYS)["value"].mean()


def _kind(algorithm: str, n_leaves: int, strength: float) -> str:
    if strength:
        return f"{LABELS[algorithm]} of {strength:g}"
    if algorithm == "early_stopped":
        return f"{LABELS[algorithm]}, as accurate as {n_leaves} merged"
    return f"{LABELS[algorithm]} of {n_leaves}" if n_leaves > 1 else LABELS[algorithm]


def shown_epsilons(run: str) -> list[float]:
    """The epsilons that tables show: the usual ones, or the first few of a run that has none of them."""
    epsilons = sorted(results.read(run, "attack", "images")["epsilon"].unique())
    return [epsilon for epsilon in epsilons if epsilon in (2, 4, 8)] or [e for e in epsilons if e][:3]


def attack_table(run: str) -> pd.DataFrame:
    """Worst-case accuracy, area under the curve and relative accuracy of every kind of model, as texts."""
    curves = by_node_and_image(results.read(run, "attack", "images"))
    clean = _clean(run)
    shown, rows = shown_epsilons(run), []
    for key, group in _in_order(curves.groupby(KEYS)):
        by_epsilon = group.set_index("epsilon")["interval"]
        row = {"": _kind(*key)}
        row |= {
            f"{e:g}/255 (%)" if e else "clean (%)": points(by_epsilon[e]) for e in by_epsilon.index if e in [0, *shown]
        }
        means = np.array([value.mean for value in by_epsilon])
        reach = by_epsilon.index.max() - by_epsilon.index.min()
        row["area"] = f"{np.trapezoid(means, by_epsilon.index) / reach:.1f}" if reach else ""
        for epsilon in shown:
            known = 100 * clean[key] >= NEAR_CONSTANT and 0 in by_epsilon.index
            above = (by_epsilon[epsilon].mean / 100 - CHANCE) / (means[0] / 100 - CHANCE) if known else np.nan
            row[f"relative, {epsilon:g}/255"] = decimal(above, 2) if known else "–"
        rows.append(row | {"n": by_epsilon.iloc[0].n})
    return pd.DataFrame(rows)


def _in_order(groups: pd.api.typing.DataFrameGroupBy) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups by kind, in the order of the labels."""
    order = list(LABELS)
    return sorted(groups, key=lambda item: (order.index(item[0][0]), *item[0][1:]))


def loss_table(run: str) -> pd.DataFrame:
    """Accuracy under each attack with each loss alone, for the stages and the models as accurate, as texts."""
    curves = results.read(run, "attack", "curves")
    curves = curves[(curves["norm"] == "linf") & curves["algorithm"].isin(["unmerged", "tree", "early_stopped"])]
    curves = curves[curves["epsilon"].isin(shown_epsilons(run)) & (curves["attack"] != "fgsm")]
    rows = []
    for key, group in _in_order(curves.groupby(KEYS)):
        row = {"": _kind(*key)}
        for epsilon, at in group.groupby("epsilon"):
            for loss, name in (
                ("cross_entropy", "PGD, cross-entropy"),
                ("margin", "PGD, margin"),
                ("all", "worst case"),
            ):
                value = 100 * at[at["loss"] == loss]["value"]
                row[f"{name}, {epsilon:g}/255"] = f"{value.mean():.1f}" if len(value) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def matched_table(run: str) -> pd.DataFrame:
    """Every stage beside the unmerged models that are as accurate on held-out images, under attack, as texts."""
    clean, images = (results.read(run, "attack", table) for table in ("clean", "images"))
    held = clean[clean["split"] == "held_out"].groupby(KEYS)["value"].mean()
    curves = by_node_and_image(images).set_index([*KEYS, "epsilon"])["interval"]
    epsilons = shown_epsilons(run)[:2]
    rows = []
    for size in sorted(clean[clean["algorithm"] == "tree"]["n_leaves"].unique()):
        goal = held["tree", size, 0.0]
        peers = [("tree", size, 0.0), ("early_stopped", size, 0.0)]
        for penalty in ("l1", "l2"):
            if penalty in held.index.get_level_values(0):
                strength = (held[penalty, 1] - goal).abs().idxmin()
                peers.append((penalty, 1, strength))
        for key in peers:
            row = {"models": f"{size}" if key[0] == "tree" else "", "": _kind(*key)}
            row["held-out accuracy (%)"] = f"{100 * held[key]:.1f}"
            row |= {f"worst case, {epsilon:g}/255 (%)": points(curves[(*key, epsilon)]) for epsilon in epsilons}
            rows.append(row | {"n": curves[(*key, curves.index.get_level_values("epsilon")[0])].n})
    return pd.DataFrame(rows)


def transfer_table(run: str) -> pd.DataFrame:
    """Accuracy on images that were attacked on other models, as texts."""
    table = results.read(run, "attack", "transfer")
    rows = []
    for key, group in _in_order(table.groupby(KEYS)):
        row = {"": _kind(*key)}
        for (source, epsilon), values in group.groupby(["source", "epsilon"]):
            row[f"{source}, {epsilon:g}/255 (%)"] = points(interval(100 * values["value"].to_numpy()))
        rows.append(row)
    frame = pd.DataFrame(rows).fillna("")
    return frame[["", *sorted(frame.columns[1:], reverse=True)]]


def checks_table(run: str) -> pd.DataFrame:
    """Whether the attacks do what attacks must do, as texts: what was found, and whether it holds."""
    checks = results.read(run, "attack", "checks")
    images = results.provenance(run, "attack")["parameters"]["check_images"]
    noise = 1 / images + 1e-9  # one image more or less is noise
    rows = []

    def add(what: str, holds: list[bool], found: str) -> None:
        rows.append({"what must hold": what, "found": found, "": "holds" if all(holds) else "<strong>fails</strong>"})

    def value(model: pd.DataFrame, check: str, setting: float | None = None) -> float:
        chosen = model[(model["check"] == check) & ((model["setting"] == setting) | (setting is None))]
        return float(chosen["value"].iloc[0])

    by_model = [(key, group) for key, group in checks[checks["loss"] != ""].groupby([*KEYS, "loss"])]
    for loss in checks["loss"].unique():
        here = [group for key, group in by_model if key[-1] == loss]
        if not loss or not here:
            continue
        name = loss.replace("_", "-")
        curves = [group[group["check"] == "steps"].sort_values("setting")["value"].to_numpy() for group in here]
        told = ", ".join(f"{100 * at:.1f}" for at in np.mean(curves, axis=0))
        add(
            f"{name}: more steps never help the model, beyond one image",
            [bool((np.diff(curve) <= noise).all()) for curve in curves],
            f"{told} % left after 1, 5, 10, 20, 50, 100 steps",
        )
        add(
            f"{name}: many steps do at least as well as one",
            [bool(curve[1:].min() <= curve[0]) for curve in curves],
            f"{100 * np.mean([curve[0] for curve in curves]):.1f} % left by FGSM, "
            f"{100 * np.mean([curve.min() for curve in curves]):.1f} % by PGD",
        )
        white, given = ([value(group, check) for group in here] for check in ("white box", "transfer"))
        add(
            f"{name}: attacks on the model itself beat those made on another",
            [own <= other + noise for own, other in zip(white, given, strict=True)],
            f"{100 * np.mean(white):.1f} % left, against {100 * np.mean(given):.1f} %",
        )
        everything = [value(group, "everything") for group in here]
        if loss == "margin":
            add(
                "margin: nothing survives an epsilon of 1",
                [left == 0 for left in everything],
                f"{100 * max(everything):.1f} % left at most",
            )
            smaller = [value(group, "logits / 16") for group in here]
            moved = max(abs(a - b) for a, b in zip(white, smaller, strict=True))
            add(
                "margin: dividing the logits by 16 changes nothing, to rounding",
                [moved <= noise],
                f"accuracy moves by {100 * moved:.1f} points at most",
            )
    ball = checks[checks["check"] == "ball"]
    add(
        "the change stays in the ball",
        [bool((ball["value"] <= ball["setting"] * (1 + 1e-4)).all())],
        f"{ball['value'].max():.3f} grey levels at most, of {ball['setting'].max():g}",
    )
    pixels = checks[checks["check"] == "pixels"]["value"]
    add("pixels stay in [0, 1]", [bool((pixels <= 0).all())], f"{abs(pixels.max()):g} outside at most")
    return pd.DataFrame(rows)


def autoattack_finding() -> str:
    """How far AutoAttack goes beyond the attacks of this project, on the run that is shown first."""
    found = runs("autoattack")
    if not found:
        return "AutoAttack was not run yet."
    table = results.read(found[0], "autoattack", "nodes").pivot(index=[*KEYS, "node"], columns="attack", values="value")
    further = 100 * (table["own"] - table["autoattack"])
    made = results.provenance(found[0], "autoattack")
    parameters = made["parameters"]
    where = (
        f"{parameters['auto_images']} test images of {made['dataset']['title']} at {parameters['auto_epsilon']:g}/255"
    )
    return (
        "<strong>AutoAttack's standard suite, the reference, leaves "
        f"{decimal(further.mean(), 1)} points less than FGSM and PGD together</strong>, in the mean over the networks "
        f"below (n = {len(further)}) and {where}, and {decimal(further.max(), 1)} points less at most."
    )


def autoattack_table(run: str) -> pd.DataFrame:
    """AutoAttack beside this project's attacks on the same images, as texts."""
    table = results.read(run, "autoattack", "nodes")
    rows = []
    for key, group in _in_order(table.groupby(KEYS)):
        found = {name: 100 * at.sort_values("node")["value"].to_numpy() for name, at in group.groupby("attack")}
        row = {"": _kind(*key)}
        for name, label in (("clean", "clean (%)"), ("own", "FGSM and PGD (%)"), ("autoattack", "AutoAttack (%)")):
            row[label] = points(interval(found[name]))
        row["difference"] = points(interval(found["autoattack"] - found["own"]), signed=True)
        rows.append(row | {"n": len(found["clean"])})
    return pd.DataFrame(rows)


def perturbation_table(run: str) -> pd.DataFrame:
    """Accuracy under each perturbation, mean over severities, by stage and for models as accurate, as texts."""
    curves = results.read(run, "perturbations", "curves")
    curves = curves[curves["algorithm"].isin(["unmerged", "tree", "early_stopped"])]
    clean, harmed = curves[curves["severity"] == 0], curves[curves["severity"] > 0]
    rows = []
    for key, group in _in_order(harmed.groupby(KEYS)):
        group["perturbation"] = group["perturbation"].str.replace("_", " ")
        alone = clean.set_index(KEYS).loc[[key], "value"].to_numpy()
        row = {"": _kind(*key), "clean (%)": f"{100 * alone.mean():.1f}"}
        row["mean (%)"] = points(interval(100 * group.groupby("node")["value"].mean().to_numpy()))
        row |= {kind: f"{100 * at['value'].mean():.1f}" for kind, at in group.groupby("perturbation", sort=False)}
        rows.append(row)
    return pd.DataFrame(rows)


def severity_table() -> pd.DataFrame:
    """What the severities of each perturbation mean, as texts."""
    return pd.DataFrame(
        {"perturbation": kind.replace("_", " "), "measured in": UNITS[kind]}
        | {f"{severity}": f"{amount:g}" for severity, amount in enumerate(amounts, 1)}
        for kind, amounts in PERTURBATIONS.items()
    )


def verdicts(name: str) -> Callable[[str], pd.DataFrame]:
    """The table of one claim's verdict, for any run."""
    return lambda run: verdict_table(run, (name,))


def layer_table(run: str) -> pd.DataFrame:
    """L2 norm and largest singular value of each layer, for the stages and naive averages, as texts."""
    layers = results.read(run, "regularisation", "layers")
    layers = layers[layers["algorithm"].isin(["unmerged", "tree", "naive"]) & (layers["metric"] != "l1")]
    rows = []
    for key, group in _in_order(layers.groupby(KEYS)):
        row = {"": _kind(*key)}
        for (metric, layer), values in group.groupby(["metric", "layer"]):
            row[f"{layer}, {'L2 norm' if metric == 'l2' else 'spectral norm'}"] = f"{values['value'].mean():.2f}"
        rows.append(row | {"n": group["node"].nunique()})
    return pd.DataFrame(rows)


def regularity_finding(run: str) -> str:
    """What a run says of H6: norms and bounds by stage, and against the naive average."""
    decided = claim(run, "H6")
    if not decided.conditions:
        return f"<strong>Run {run} did not measure norms and bounds of nodes of eight leaves.</strong>"
    found = {condition.name: condition for condition in decided.conditions}
    norm, bound = (found[f"{what} below its leaves'"] for what in ("norm", "bound"))
    naive_norm, naive_bound = (found[f"{what} below the naive average's"] for what in ("norm", "bound"))
    few = min(condition.effect.n for condition in decided.conditions)
    if few < FEWEST_FOR_VERDICT:
        opening = f"This run has too few networks to say whether norms and bounds fall (n = {few})"
    elif norm.verdict == bound.verdict == REPLICATED:
        opening = "Norms and Lipschitz bounds fall with merging"
        if naive_norm.verdict == naive_bound.verdict == NOT_REPLICATED:
            opening += ", but only because averaging shrinks whatever does not agree: a naive average shrinks more"
    elif REPLICATED in (norm.verdict, bound.verdict):
        opening = f"Of norm and Lipschitz bound only the {'norm' if norm.verdict == REPLICATED else 'bound'} falls"
    else:
        opening = "Norms and Lipschitz bounds do not fall with merging"
    return (
        f"<strong>{opening}.</strong> At eight leaves the norm is {points(norm.effect)} % and the bound "
        f"{points(bound.effect)} % smaller than the leaves' (n = {norm.effect.n}); against the naive average of the "
        f"same leaves the norm is {points(naive_norm.effect, signed=True)} % and the bound "
        f"{points(naive_bound.effect, signed=True)} % smaller, where a minus means larger."
    )


def radius_finding(run: str) -> str:
    """What happens to the certified radius, and why."""
    nodes = results.read(run, "regularisation", "nodes")
    size = 8

    def ratio(metric: str) -> float:
        one = nodes[nodes["metric"] == metric].set_index(["algorithm", "n_leaves"])["value"]
        return float(one["tree", size].mean() / one["unmerged", 1].mean())

    if size not in nodes[nodes["algorithm"] == "tree"]["n_leaves"].to_numpy():
        return ""
    radius, margin, bound = (ratio(metric) for metric in ("median_radius", "median_margin", "lipschitz"))
    grey = 255 * nodes[nodes["metric"] == "median_radius"].groupby(["algorithm", "n_leaves"])["value"].mean()
    opening = (
        "What is certified shrinks with merging: the margin falls faster than the bound"
        if radius < 1
        else "What is certified grows with merging: the bound falls faster than the margin"
    )
    return (
        f"<strong>{opening}.</strong> The median certified radius of correctly classified images goes from "
        f"{grey['unmerged', 1]:.2f}/255 for the leaves to {grey['tree', size]:.2f}/255 for nodes of eight, in L2: the "
        f"margin is multiplied by {margin:.2f}, the bound by {bound:.2f}."
    )


def bounds_table(run: str) -> pd.DataFrame:
    """Norms, bounds from above and below, margins and radii of every kind of model, as texts."""
    nodes = results.read(run, "regularisation", "nodes")
    columns = {
        "l2_norm": ("L2 norm", 1), "l1_norm": ("L1 norm", 0), "spectral_product": ("product of spectral norms", 1),
        "averaged_bound": ("averaged activations", 1), "lipschitz": ("ECLipsE-Fast", 1),
        "largest_gradient": ("largest gradient", 2), "median_margin": ("margin, median", 2),
    }  # fmt: skip
    rows = []
    for key, group in _in_order(nodes.groupby(KEYS)):
        row = {"": _kind(*key)}
        for metric, (label, places) in columns.items():
            row[label] = _number(interval(group[group["metric"] == metric]["value"].to_numpy()), places)
        radius = interval(255 * group[group["metric"] == "median_radius"]["value"].to_numpy())
        rows.append(row | {"radius, median (/255)": _number(radius, 3), "n": group["node"].nunique()})
    return pd.DataFrame(rows)


def identity_table(run: str) -> pd.DataFrame:
    """The norm of plain means as measured and as the identity predicts it from leaves and alignment, as texts."""
    nodes = results.read(run, "regularisation", "nodes")
    wide = nodes.pivot(index=[*KEYS, "node"], columns="metric", values="value")
    if "predicted_norm" not in wide:
        return pd.DataFrame()
    wide = wide.dropna(subset=["predicted_norm"])
    rows = []
    for key, group in _in_order(wide.groupby(KEYS)):
        off = (group["parameter_norm"] / group["predicted_norm"] - 1).abs().max()
        rows.append(
            {
                "": _kind(*key),
                "measured": _number(interval(group["parameter_norm"].to_numpy()), 2),
                "predicted": _number(interval(group["predicted_norm"].to_numpy()), 2),
                "largest relative difference": f"{off:.0e}",
            }
        )
    return pd.DataFrame(rows)


def _number(value: Interval, places: int) -> str:
    mean, low, high = (decimal(bound, places) for bound in (value.mean, value.low, value.high))
    return mean if value.n < FEWEST_FOR_INTERVAL else f"{mean} [{low}, {high}]"
