"""What the chapter on planted permutations says, made from results: no number is typed, save the paper's."""

from __future__ import annotations

import pandas as pd
from scipy.stats import binomtest

from lab.bookkeeping import results
from lab.report import page as report
from lab.report.claims import FEWEST_FOR_VERDICT, NOT_REPLICATED, REPLICATED
from lab.report.planted_figures import PAPER, by_size, network_name
from lab.report.robustness_chapter import claim
from lab.report.statistics import FEWEST_FOR_INTERVAL
from lab.report.words import points


def finding() -> str:
    """In how many trained networks the planted permutation was recovered, in how many sweeps, and what that decides."""
    if not report.runs("planted"):
        return "No permutation was planted yet."
    run = report.runs("planted")[0]
    decided = {condition.name: condition for condition in claim(run, "G2").conditions}
    if len(decided) < 2:
        return (
            f"<strong>Run {run} has no trained MLPs with planted permutations</strong>, on which the claim is decided."
        )
    exact, short = decided["recovered exactly"], decided["in 4 sweeps at most"]
    table = results.read(run, "planted", "recovered")
    mlp = table[table["network"] == "mlp"].pivot(index="node", columns="metric", values="value")
    n = len(mlp)
    if n < FEWEST_FOR_VERDICT:
        opening = (
            "This run has too few networks to say whether planted permutations are recovered "
            f"(n = {n}, {FEWEST_FOR_VERDICT} are needed)"
        )
    elif exact.verdict == REPLICATED:
        few = {
            REPLICATED: "in as few sweeps as the paper says",
            NOT_REPLICATED: "but not in the paper's three to four sweeps",
        }
        told = few.get(short.verdict, "though it is not decided whether four sweeps are enough")
        opening = f"A planted permutation is recovered exactly, {told}"
    elif exact.verdict == NOT_REPLICATED:
        opening = "A planted permutation is not always recovered, against the paper"
    else:
        opening = "Whether a planted permutation is always recovered is not decided"
    title = results.provenance(run, "planted")["dataset"]["title"]
    mean = f", {points(short.effect)} in the mean" if n >= FEWEST_FOR_INTERVAL else ""
    recovered = int(mlp["recovered"].sum())
    share = binomtest(recovered, n).proportion_ci()
    return (
        f"<strong>{opening}</strong>: in {recovered} of {n} MLPs trained on {title}, permuted at random, weight "
        f"matching finds the way back to the last bit (exact 95 % interval of the share: {100 * share.low:.0f} to "
        f"{100 * share.high:.0f} %), after {_range(mlp['sweeps'])} sweeps{mean} (n = {n}; the paper: 3 to 4), of which "
        f"the last only finds nothing to change. {_ties(mlp)}"
    )


def _range(sweeps: pd.Series) -> str:
    low, high = int(sweeps.min()), int(sweeps.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _ties(found: pd.DataFrame) -> str:
    """Whether the permutation is the planted one, or only one that gives the same weights."""
    tied = int((found["ties"] > 0).sum())
    if not tied:
        return "Wherever the weights are found again, so is the permutation itself: no unit stands in another's place."
    return (
        f"In {tied} of them some units stand in other places, since their weights are equal: the network is the same."
    )


def times_finding() -> str:
    """What weight matching takes between independent networks, by size, and which of the paper's sizes were not run."""
    if not report.runs("planted"):
        return ""
    run = report.runs("planted")[0]
    median = _medians(run)["seconds"]
    told = ", ".join(f"{_seconds(median[name])} s ({network_name(name)})" for name in by_size(list(median.index)))
    missing = [network_name(name) for name in by_size(list(set(PAPER) - set(median.index)))]
    left = f" Not run here: {', '.join(missing)}." if missing else ""
    return f"Weight matching of one pair of independent networks takes {told} (medians, run {run}).{left}"


def recovered_table(run: str) -> pd.DataFrame:
    """A row for each kind of network, as texts: recovered in how many, and in how many sweeps."""
    table = results.read(run, "planted", "recovered")
    rows = []
    for name in by_size(table["network"].unique().tolist()):
        one = table[table["network"] == name]
        found = one.pivot(index="node", columns="metric", values="value")
        counts = found["sweeps"].astype(int).value_counts().sort_index()
        rows.append(
            {
                "network": network_name(name),
                "instances": one["weights"].iloc[0],
                "recovered": f"{int(found['recovered'].sum())} of {len(found)}",
                "with units of equal weights": f"{int((found['ties'] > 0).sum())}",
                "sweeps (of how many networks)": ", ".join(f"{sweeps} ({count})" for sweeps, count in counts.items()),
            }
        )
    return pd.DataFrame(rows)


def times_table(run: str) -> pd.DataFrame:
    """A row for each network that the run or the paper timed, as texts: medians over pairs, and the paper's seconds."""
    table = results.read(run, "planted", "times")
    medians = _medians(run)
    rows = []
    for name in by_size(list(set(PAPER) | set(medians.index))):
        row = {"network": network_name(name), "seconds": "not run", "paper's seconds": f"{PAPER.get(name, '')}"}
        # In this order, so that on a phone what matters is in sight.
        row |= dict.fromkeys(("sweeps", "weights (millions)", "instances", "each pair (s)", "tracing (s)"), "")
        if name in medians.index:
            one, found = table[table["network"] == name], medians.loc[name]
            each = one[one["metric"] == "seconds"].sort_values("node")["value"]
            row |= {
                "instances": one["weights"].iloc[0],
                "weights (millions)": f"{found['parameters']:.1f}"
                if found["parameters"] >= 1
                else f"{found['parameters']:.2g}",
                "sweeps": f"{found['sweeps']:.0f}",
                "seconds": _seconds(found["seconds"]),
                "each pair (s)": ", ".join(_seconds(value) for value in each),
                "tracing (s)": "" if pd.isna(found.get("tracing_seconds")) else f"{found['tracing_seconds']:.1f}",
            }
        rows.append(row)
    return pd.DataFrame(rows)


def threads_note(run: str) -> str:
    """Where the times were taken, beyond what the provenance tells."""
    table = results.read(run, "planted", "times")
    threads, device = int(table["threads"].iloc[0]), table["device"].iloc[0]
    told = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{told} of the processor" + ("" if device == "cpu" else f", and the GPU ({device})")


def _medians(run: str) -> pd.DataFrame:
    """Medians over pairs: a row for each network, a column for each metric."""
    return results.read(run, "planted", "times").pivot_table(
        index="network", columns="metric", values="value", aggfunc="median"
    )


def _seconds(value: float) -> str:
    """Seconds with two digits that mean something."""
    places = 2 if value < 1 else 1 if value < 10 else 0
    return f"{value:.{places}f}"
