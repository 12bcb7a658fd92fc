"""The library: which networks are traced, what matching costs, and what the matchers find, from benchmarks/."""

from __future__ import annotations

import json
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping.code import ROOT
from lab.bookkeeping.vocabulary import ALGORITHMS
from lab.report.draw import ink, on_page, width
from lab.report.facts import Facts, reads
from lab.report.words import decimal

OURS = {"ours": "weight matching", "textbook": "Algorithm 1 as printed", "frank-wolfe": "Frank-Wolfe"}
OTHERS = {"rebasin": "PyPI's rebasin", "sd-meh": "PyPI's sd-meh", "sd-mecha": "PyPI's sd-mecha"}
NEARLY_ALL = 0.99  # of a model's numbers
BUDGET = 10  # seconds that tracing a network should take at most
SAME = 1e-4  # below which two objectives are one, in another order of float32 sums


def measured(name: str) -> dict[str, Any]:
    """The figures of a benchmark. Raises FileNotFoundError if it was never run."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


@reads()
def tracing() -> Facts:
    """How many networks were traced and proved, how long the slowest took, and how much of the stiffest one moves.

    The outcome is ``all in time``, within the budget of seconds, or ``some late``.
    """
    rows = measured("tracing")["rows"]
    slowest = max(rows, key=lambda row: row["trace_seconds"])
    stiffest = min(rows, key=lambda row: row["share_moving"])
    late = sum(row["trace_seconds"] > BUDGET for row in rows)
    return Facts(
        "some late" if late else "all in time",
        {
            "n": str(len(rows)),
            "late": str(late),
            "in_time": str(len(rows) - late),
            "budget": str(BUDGET),
            "slowest": network_name(slowest),
            "slowest_seconds": f"{slowest['trace_seconds']:.1f}",
            "stiffest": network_name(stiffest),
            "least_moving": f"{100 * stiffest['share_moving']:.1f}",
        },
    )


@reads()
def families() -> Facts:
    """How many models of the package transformers were traced, and of how many nearly all moves.

    The outcome is ``most move`` if that is so of more than half of them, else ``few move``.
    """
    rows = measured("families")["rows"]
    nearly_all = sum(row["share_moving"] >= NEARLY_ALL for row in rows)
    stiffest = min(rows, key=lambda row: row["share_moving"])
    return Facts(
        "most move" if 2 * nearly_all > len(rows) else "few move",
        {
            "n": str(len(rows)),
            "nearly_all": str(nearly_all),
            "share": f"{100 * NEARLY_ALL:.0f}",
            "stiffest": stiffest["model"],
            "least_moving": f"{100 * stiffest['share_moving']:.0f}",
        },
    )


@reads()
def speed() -> Facts:
    """The time of weight matching beside that of the fastest other implementation: ``faster`` or ``slower``."""
    benchmark = measured("matching")
    over = benchmark["ours_over_fastest_other"]
    fastest = OTHERS[benchmark["fastest_other"]]
    return Facts("faster" if over < 1 else "slower", {"percent": f"{100 * over:.0f}", "fastest": fastest})


@reads()
def objective() -> Facts:
    """Whether another implementation of Algorithm 1 finds more in a visiting order: ``none does`` or ``another does``.

    ``most`` is by how much of the inner product of the weights, at most.
    """
    benchmark = measured("matching")
    lowest = min(min(other["each_order"]) for other in benchmark["ours_minus_other_objective"].values())
    values = {"most": decimal(max(-lowest, 0), 4), "orders": str(benchmark["orders"])}
    return Facts("none does" if lowest >= -SAME else "another does", values)


@reads()
def batch() -> Facts:
    """The time of many pairs at once beside that of one after another on one thread: ``faster`` or ``slower``."""
    batched = measured("matching")["batched"]
    over = batched["at_once_over_one_by_one"]
    values = {"pairs": str(batched["pairs"]), "threads": str(batched["threads"]), "percent": f"{100 * over:.0f}"}
    return Facts("faster" if over < 1 else "slower", values)


@reads()
def frank_wolfe() -> Facts:
    """How often Frank-Wolfe finds more than weight matching, and at how many times the cost.

    The outcome is in how many of the visiting orders: ``always``, ``sometimes`` or ``never``.
    """
    benchmark = measured("matching")
    reached = benchmark["raw"]["objective"]
    better = sum(reached["frank-wolfe"][0] > value for value in reached["ours"])
    orders, seconds = benchmark["orders"], benchmark["median_seconds"]
    often = "always" if better == orders else "sometimes" if better else "never"
    times = seconds["frank-wolfe"] / seconds["ours"]
    return Facts(often, {"better": str(better), "orders": str(orders), "times": f"{times:.1f}"})


@reads()
def tracing_table() -> pd.DataFrame:
    """A row for each network: its groups, what moves, what stays and why, and the time beside that of the export."""
    rows = []
    for row in measured("tracing")["rows"]:
        reasons = {reason.removesuffix(" of the network"): n for reason, n in row["share_pinned_by_reason"].items()}
        rows.append(
            {
                "network": network_name(row),
                "groups": f"{row['groups']}",
                "moves (%)": f"{100 * row['share_moving']:.3f}",
                "tracing (s)": f"{row['trace_seconds']:.1f}",
                "the export alone (s)": f"{row['export_seconds']:.1f}",
                "numbers (millions)": f"{row['numbers'] / 1e6:.1f}",
                "groups of blocks": f"{row['groups_of_blocks']}",
                "groups within blocks": f"{row['groups_within_blocks']}",
                "stays (%), and why": "; ".join(f"{100 * share:.3f} {reason}" for reason, share in reasons.items()),
            }
        )
    return pd.DataFrame(rows)


@reads()
def families_table() -> pd.DataFrame:
    """A row for each model of the package transformers: what moves, and what stays and why."""
    rows = []
    for row in sorted(measured("families")["rows"], key=lambda row: -row["share_moving"]):
        reasons = {reason.removesuffix(" of the network"): n for reason, n in row["share_pinned_by_reason"].items()}
        rows.append(
            {
                "model": row["model"],
                "groups": f"{row['groups']}",
                "moves (%)": f"{100 * row['share_moving']:.1f}",
                "stays (%), and why": "; ".join(f"{100 * share:.1f} {reason}" for reason, share in reasons.items()),
            }
        )
    return pd.DataFrame(rows)


@reads()
def matching_table() -> pd.DataFrame:
    """A row for each implementation: its time, the ratio of ours to it, and the objective it reaches."""
    benchmark = measured("matching")
    seconds, reached = benchmark["median_seconds"], benchmark["mean_objective"]
    rows = []
    for key, name in (OURS | OTHERS | {"floor": "the assignments alone"}).items():
        if key in seconds:
            rows.append(
                {
                    "implementation": name,
                    "of": "this book" if key in OURS else "",
                    "one pair (ms)": f"{1e3 * seconds[key]:.0f}",
                    "our weight matching over it": f"{seconds['ours'] / seconds[key]:.2f}",
                    "objective": "–" if key == "floor" else f"{reached[key]:.2f}",
                }
            )
    return pd.DataFrame(rows)


@reads()
def matching_seconds() -> Figure:
    """A bar for each implementation, the fastest on top: milliseconds of one pair; a line at the assignments alone."""
    seconds = measured("matching")["median_seconds"]
    names = {key: name for key, name in (OURS | OTHERS).items() if key in seconds}
    slowest_first = sorted(names, key=seconds.get, reverse=True)
    figure, axes = plt.subplots(figsize=(width(), 0.45 * len(names) + 0.9))
    bars = axes.barh(
        [names[key] for key in slowest_first],
        [1e3 * seconds[key] for key in slowest_first],
        color=[on_page(ALGORITHMS["hierarchy" if key in OURS else "unmerged"].colour) for key in slowest_first],
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.axvline(1e3 * seconds["floor"], color=ink(), linewidth=1.5, linestyle=":")
    axes.set(xlabel="one pair (ms)")
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    return figure


@reads()
def measured_on() -> pd.DataFrame:
    """A row for each benchmark: the machine, the versions, the commit and the script."""
    rows = []
    for name in ("tracing", "families", "matching"):
        benchmark = measured(name)
        hardware = benchmark["hardware"]
        rows.append(
            {
                "benchmark": name,
                "machine": hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores",
                "versions": ", ".join(f"{library} {version}" for library, version in benchmark["versions"].items()),
                "commit": benchmark["commit"][:10],
                "script": f"benchmarks/{name}.py",
            }
        )
    return pd.DataFrame(rows)


def network_name(row: dict[str, Any]) -> str:
    """What a reader calls a network that was traced."""
    return row["network"].removeprefix("torchvision ")
