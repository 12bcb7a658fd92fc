"""Whether the attacks are any good: what must hold of them, the size of the logits, and the reference."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ATTACKS, KIND, LOSSES
from lab.report.attacks import radius_text, shown_epsilons
from lab.report.claims import picked
from lab.report.facts import Facts, reads
from lab.report.kinds import UNMERGED, by_images, by_kind, names, of_stages, percent
from lab.report.words import decimal, points

# What a check came to. Attacks that leave equally many images of every network are not told apart.
HOLDS, FAILS, NOT_TOLD_APART = "holds", "fails", "not told apart"


@reads("attack")
def logit_size(run: str) -> Facts:
    """What is left of unmerged networks under PGD with either loss, as they are and with their logits divided.

    The outcome is ``fools the cross-entropy`` where dividing helps against that loss by more than a point, and not
    against the margin; ``fools both``, or ``fools neither``.
    """
    checks = picked(results.read(run, "attack", "checks"), UNMERGED._asdict())
    left = 100 * checks.groupby(["loss", "check"])["value"].mean()
    values, fooled = {}, []
    for loss in LOSSES:
        before, divided = left[loss, "white box"], left[loss, "divided logits"]
        values |= {loss: f"{before:.1f}", f"{loss}_divided": f"{divided:.1f}"}
        fooled.append(divided - before > 1)
    outcomes = {(True, False): "fools the cross-entropy", (True, True): "fools both", (False, True): "fools the margin"}
    return Facts(outcomes.get(tuple(fooled), "fools neither"), values)


@reads("attack")
def checks(run: str) -> Facts:
    """How many of the things that must hold of any attack hold.

    The outcome is ``all hold``, ``some fail``, or ``some not told apart`` where attacks that are compared are equally
    strong.
    """
    states = checks_table(run)["state"]
    failed, alike = (int((states == state).sum()) for state in (FAILS, NOT_TOLD_APART))
    outcome = "some fail" if failed else f"some {NOT_TOLD_APART}" if alike else "all hold"
    return Facts(outcome, {"checks": str(len(states)), "failed": str(failed), "not_told_apart": str(alike)})


@reads("autoattack")
def autoattack(run: str) -> Facts:
    """By how many points AutoAttack goes beyond FGSM and PGD together, over all networks that both attacked.

    Beside it the radius. The outcome is ``further`` or ``no further``.
    """
    table = results.read(run, "autoattack", "nodes").pivot(index=[*KIND, "node"], columns="attack", values="value")
    further = 100 * (table["own"] - table["autoattack"])
    radius = radius_text(results.provenance(run, "autoattack")["parameters"]["auto_epsilon"])
    values = {"mean": decimal(further.mean(), 1), "most": decimal(further.max(), 1), "n": str(len(further))}
    values |= {"radius": radius}
    return Facts("further" if further.mean() > 0 else "no further", values)


@reads("attack")
def losses_table(run: str) -> pd.DataFrame:
    """Accuracy under PGD with each loss alone and in the worst case; kinds differ in how many images they have."""
    curves = picked(of_stages(results.read(run, "attack", "curves")), {"norm": "linf"})
    attacks = {("pgd", loss): f"{ATTACKS['pgd']}, {title}" for loss, title in LOSSES.items()}
    attacks["worst", "all"] = ATTACKS["worst"]
    rows = []
    for kind, own in by_images(curves):
        row = names(kind) | {"images": str(own["images"].iloc[0])}
        for epsilon in shown_epsilons(run):
            for (attack, loss), title in attacks.items():
                value = picked(own, {"attack": attack, "loss": loss, "epsilon": epsilon})["value"]
                row[f"{title}, {radius_text(epsilon)}"] = f"{100 * value.mean():.1f}" if len(value) else ""
        rows.append(row)
    return pd.DataFrame(rows)


@reads("autoattack")
def autoattack_table(run: str) -> pd.DataFrame:
    """AutoAttack beside this project's attacks on the same images."""
    titles = {"clean": "clean (%)", "own": "FGSM and PGD (%)", "autoattack": "AutoAttack (%)"}
    rows = []
    for kind, own in by_kind(results.read(run, "autoattack", "nodes")):
        left = own.pivot(index="node", columns="attack", values="value")
        row = names(kind) | {title: points(percent(left[attack])) for attack, title in titles.items()}
        row["difference"] = points(percent(left["autoattack"] - left["own"]), signed=True)
        rows.append(row | {"n": len(left)})
    return pd.DataFrame(rows)


@reads("attack")
def checks_table(run: str) -> pd.DataFrame:
    """Whether the attacks do what attacks must do: what was found, and whether it ``holds``, ``fails``, or neither.

    A comparison of attacks that left equally many images of every network says nothing: ``not told apart``.
    """
    checks = results.read(run, "attack", "checks")
    images = results.provenance(run, "attack")["parameters"]["check_images"]
    noise = 1 / images + 1e-9  # one image more or less is noise
    rows = []
    for loss in [name for name in LOSSES if name in set(checks["loss"])]:
        rows += _checks_of_loss(checks[checks["loss"] == loss], loss, noise)
    ball = checks[checks["check"] == "ball"]
    rows.append(
        (
            "the change stays in the ball",
            f"{ball['value'].max():.3f} grey levels at most, of {ball['setting'].max():g}",
            _state(bool((ball["value"] <= ball["setting"] * (1 + 1e-4)).all())),
        )
    )
    outside = float(checks[checks["check"] == "pixels"]["value"].max())
    rows.append(("pixels stay in [0, 1]", f"{abs(outside):g} outside at most", _state(outside <= 0)))
    return pd.DataFrame(rows, columns=["what must hold", "found", "state"])


def _checks_of_loss(checks: pd.DataFrame, loss: str, noise: float) -> list[tuple[str, str, str]]:
    """The checks of the attacks with one loss, over the networks that were checked: what, what was found, its state."""
    title = LOSSES[loss]
    steps = picked(checks, {"check": "steps"})
    # (networks, numbers of steps)
    curves = steps.pivot(index=[*KIND, "node"], columns="setting", values="value").to_numpy()
    one, best = curves[:, 0], curves[:, 1:].min(1)
    white, transferred, everything, divided = (
        _values_of(checks, check) for check in ("white box", "transfer", "everything", "divided logits")
    )
    counts = ", ".join(f"{count:g}" for count in sorted(steps["setting"].unique()))
    rows = [
        (
            f"{title}: more steps never help the network, beyond one image",
            f"{', '.join(f'{100 * left:.1f}' for left in curves.mean(0))} % left after {counts} steps",
            _state(bool((np.diff(curves, axis=1) <= noise).all()), bool((curves == curves[:, :1]).all())),
        ),
        (
            f"{title}: many steps do at least as well as one",
            f"{100 * one.mean():.1f} % left by FGSM, {100 * best.mean():.1f} % by PGD",
            _state(bool((best <= one).all()), bool((best == one).all())),
        ),
        (
            f"{title}: attacks on the network itself beat those made on another",
            f"{100 * white.mean():.1f} % left, against {100 * transferred.mean():.1f} %",
            _state(bool((white <= transferred + noise).all()), bool((white == transferred).all())),
        ),
    ]
    if loss == "margin":
        moved = float(np.abs(divided - white).max())
        rows += [
            (
                f"{title}: nothing survives a radius of the whole pixel range",
                f"{100 * everything.max():.1f} % left at most",
                _state(bool((everything == 0).all())),
            ),
            (
                f"{title}: dividing the logits by 16 changes nothing, to rounding",
                f"accuracy moves by {100 * moved:.1f} points at most",
                _state(moved <= noise),
            ),
        ]
    return rows


def _values_of(checks: pd.DataFrame, check: str) -> np.ndarray:
    """What a check left of each network, in the order of networks."""
    return picked(checks, {"check": check}).set_index([*KIND, "node"])["value"].sort_index().to_numpy()


def _state(holds: bool, equal: bool = False) -> str:
    return NOT_TOLD_APART if equal else HOLDS if holds else FAILS
