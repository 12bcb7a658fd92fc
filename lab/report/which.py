"""Which method for which networks: what the guide says beside the facts of the chapters."""

from __future__ import annotations

from lab.bookkeeping import results
from lab.networks import ARCHITECTURES
from lab.report.arena import ONE, accuracy, by_kind, difference
from lab.report.facts import Facts, outcome, reads
from lab.report.hierarchy import drops
from lab.report.page import data_titles
from lab.report.statistics import interval
from lab.report.words import listed, points

A_FIFTH_MORE = 1.2


@reads("accuracy")
def lost_by_two(run: str) -> Facts:
    """How many points of test accuracy two networks lose when they are matched by their weights and averaged.

    Outcomes: where that lies, ``above`` zero, ``below`` or ``open``, or ``too few`` pairs.
    """
    made = results.provenance(run, "accuracy")
    networks = made["parameters"]["networks"]
    lost = interval(drops(results.read(run, "accuracy", "nodes"), "hierarchy", 2, "test", "accuracy"))
    values = {
        "lost": points(lost),
        "n": str(lost.n),
        "networks": f"{ARCHITECTURES[networks['architecture']].title}s of width {networks['width']}",
        "data": listed(data_titles(made["dataset"])),
    }
    return Facts(outcome(lost), values)


@reads("arena")
def a_fifth_more(run: str) -> Facts:
    """Accuracies of refitted PLeaS at the size of one network and a fifth more, and of both networks side by side.

    By kind of networks: ``one_mlp``, ``more_mlp``, ``ensemble_mlp``, and ``n``, the fewest pairs. The outcome says
    where the difference that a fifth makes lies: ``mlp above, vgg11 open``; ``not measured`` without such merges.
    """
    sides, values, pairs = [], {}, []
    for kind, rows in by_kind(run).items():
        reached = {
            "one": accuracy(rows, "pleas_refitted", ONE),
            "more": accuracy(rows, "pleas_refitted", A_FIFTH_MORE),
            "ensemble": accuracy(rows, "ensemble", 2.0),
        }
        if None in reached.values():
            continue
        more, one = (("pleas_refitted", size, "none") for size in (A_FIFTH_MORE, ONE))
        gained = difference(rows, more, one)
        sides.append(f"{kind} {outcome(gained)}")
        values |= {f"{name}_{kind}": points(value) for name, value in reached.items()}
        pairs.append(gained.n)
    return Facts(", ".join(sides), {**values, "n": str(min(pairs))}) if sides else Facts("not measured", {})
