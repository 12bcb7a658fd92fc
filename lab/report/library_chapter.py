"""What the chapter on the library says: what tracing finds and what matching costs, from benchmarks/."""

from __future__ import annotations

import html
import json
from typing import Any

import pandas as pd
from IPython.display import HTML

from lab.bookkeeping.code import ROOT
from lab.report import tabs as report

IMPLEMENTATIONS = {
    "ours": "rebasin, weight matching (this book)",
    "frank-wolfe": "rebasin, Frank-Wolfe (this book)",
    "textbook": "Algorithm 1 as printed (this book)",
    "rebasin": "PyPI's rebasin",
    "sd-meh": "PyPI's sd-meh",
    "sd-mecha": "PyPI's sd-mecha",
}
BUDGET = 10  # seconds that tracing a network should take at most


def measured(name: str) -> dict[str, Any]:
    """The figures of a benchmark. Raises FileNotFoundError if it was never run."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def below(name: str) -> HTML:
    """One line: what a benchmark was measured on."""
    made = measured(name)
    hardware, versions = made["hardware"], made["versions"]
    facts = [
        hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores",
        ", ".join(f"{library} {version}" for library, version in versions.items()),
        f"commit {made['commit'][:10]}",
        f"benchmarks/{name}.py",
    ]
    return HTML(f'<p class="measured-on">Measured on: {html.escape(" · ".join(facts))}</p>')


def tracing_finding() -> str:
    """How many networks were traced and proved, how much of them moves, how long the slowest took."""
    rows = measured("tracing")["rows"]
    slowest = max(rows, key=lambda row: row["trace_seconds"])
    stiffest = min(rows, key=lambda row: row["share_moving"])
    late = sum(row["trace_seconds"] > BUDGET for row in rows)
    told = "each within" if not late else f"all but {late} within"
    return (
        f"All {len(rows)} networks tried are traced and proved, {told} {BUDGET} seconds "
        f"(the slowest, {_short(slowest)}, in {slowest['trace_seconds']:.1f}). At least "
        f"{100 * stiffest['share_moving']:.1f} % of the numbers in each belong to units that move ({_short(stiffest)})."
    )


def tracing_table() -> HTML:
    """A row for each network: its groups, what moves, what stays and why, and the time beside that of the export."""
    rows = [
        {
            "network": html.escape(row["network"].removeprefix("torchvision ")),
            "numbers (millions)": f"{row['numbers'] / 1e6:.1f}",
            "groups": f"{row['groups']}",
            "of blocks + within": f"{row['groups_of_blocks']} + {row['groups_within_blocks']}",
            "moves (%)": f"{100 * row['share_moving']:.3f}",
            "stays (%), and why": "; ".join(
                f"{100 * share:.3f} {html.escape(reason.removesuffix(' of the network'))}"
                for reason, share in row["share_pinned_by_reason"].items()
            ),
            "tracing (s)": f"{row['trace_seconds']:.1f}",
            "the export alone (s)": f"{row['export_seconds']:.1f}",
        }
        for row in measured("tracing")["rows"]
    ]
    return report.table(pd.DataFrame(rows))


def matching_finding() -> str:
    """How fast weight matching is beside the fastest other implementation, and whether it finds as much."""
    made = measured("matching")
    lowest = min(min(each["each_order"]) for each in made["ours_minus_other_objective"].values())
    batched = made["batched"]
    found = made["raw"]["objective"]
    beyond = sum(found["frank-wolfe"][0] > value for value in found["ours"])
    dearer = made["median_seconds"]["frank-wolfe"] / made["median_seconds"]["ours"]
    quality = "none finds more" if lowest >= -1e-4 else f"one finds {-lowest:.4f} more"
    return (
        f"A pair of 3x512 MLPs is matched in {100 * made['ours_over_fastest_other']:.0f} % of the time of the fastest "
        f"other implementation ({IMPLEMENTATIONS[made['fastest_other']]}), and in the same visiting order {quality}. "
        f"{batched['pairs']} pairs at once, on {batched['threads']} threads, take "
        f"{100 * batched['at_once_over_one_by_one']:.0f} % of the time that they take one after another on one. "
        f"Frank-Wolfe matching takes {dearer:.1f} times as long, and finds more than weight matching does in "
        f"{beyond} of the {made['orders']} visiting orders."
    )


def matching_table() -> HTML:
    """A row for each implementation: its time, the ratio of ours to it, and the objective it reaches."""
    made = measured("matching")
    seconds, objective = made["median_seconds"], made["mean_objective"]
    rows = [
        {
            "implementation": name,
            "one pair (ms)": f"{1e3 * seconds[key]:.0f}",
            "weight matching over it": f"{seconds['ours'] / seconds[key]:.2f}",
            "objective": f"{objective[key]:.2f}",
        }
        for key, name in IMPLEMENTATIONS.items()
        if key in seconds
    ]
    floor = {"implementation": "the assignments alone (floor)", "one pair (ms)": f"{1e3 * seconds['floor']:.0f}"}
    floor |= {"weight matching over it": f"{seconds['ours'] / seconds['floor']:.2f}", "objective": "–"}
    return report.table(pd.DataFrame([*rows, floor]))


def _short(row: dict[str, Any]) -> str:
    return html.escape(row["network"].removeprefix("torchvision "))
