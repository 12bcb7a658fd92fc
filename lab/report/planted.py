"""Planted permutations and run times: what weight matching recovers, and how long it takes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.bookkeeping.vocabulary import ALGORITHMS
from lab.report.draw import ink, legend_below, on_page, width
from lab.report.facts import Facts, reads
from lab.report.page import data_titles
from lab.report.verdicts import claim
from lab.report.words import listed, points, seconds

# Git Re-Basin, section 5: seconds of Algorithm 1 on a V100, between trained networks.
PAPER = {"mlp": 3, "resnet50": 33, "resnet20 x32": 194}
PAPER_MLP = 0.9  # million weights: 3 hidden layers of 512 units, for MNIST
NAMES = {"mlp": "MLP", "resnet50": "ResNet50"}
STYLES = {"mlp": ALGORITHMS["many"], "resnet50": ALGORITHMS["mean"], "resnet20": ALGORITHMS["hierarchy"]}


@reads("planted")
def recovery(run: str) -> Facts:
    """In how many trained MLPs the planted permutation was found again, in how many sweeps.

    The outcome is the verdict of G2's first condition, that all are, and of its second, the paper's number of sweeps.
    """
    decided = claim(run, "G2")
    mlp = by_trial(results.read(run, "planted", "recovered"), "mlp")
    fewest, most = int(mlp["sweeps"].min()), int(mlp["sweeps"].max())
    exact, short = decided.condition("exact"), decided.condition("short")
    return Facts(
        f"{exact.verdict}, {short.verdict}",
        {
            "recovered": str(int(mlp["recovered"].sum())),
            "n": str(exact.effect.n),
            "needed": str(exact.needed),
            "bound": f"{exact.bound:g}",
            "share": f"{exact.effect.low:.0f} to {exact.effect.high:.0f} %",
            "sweeps": f"{fewest}" if fewest == most else f"{fewest} to {most}",
            "mean_sweeps": points(short.effect),
            "data": listed(data_titles(results.provenance(run, "planted")["dataset"])),
        },
    )


@reads("planted")
def ties(run: str) -> Facts:
    """In how many of the recovered MLPs units of equal weights stand in each other's places: ``some`` or ``none``."""
    mlp = by_trial(results.read(run, "planted", "recovered"), "mlp")
    tied = int((mlp["ties"] > 0).sum())
    return Facts("some" if tied else "none", {"tied": str(tied), "n": str(len(mlp))})


@reads("planted")
def times(run: str) -> Facts:
    """Seconds of weight matching by network, and which of the paper's sizes were not run.

    The outcome is ``all of the paper's sizes`` or ``sizes missing``.
    """
    median = _medians(run)["seconds"]
    missing = [network_name(name) for name in by_size(list(set(PAPER) - set(median.index)))]
    values = {name.replace(" ", "_"): seconds(median[name]) for name in median.index}
    threads, device = (results.read(run, "planted", "times")[column].iloc[0] for column in ("threads", "device"))
    values |= {"missing": listed(missing) if missing else "none", "threads": str(threads), "device": device}
    return Facts("sizes missing" if missing else "all of the paper's sizes", values)


@reads("planted")
def recovered_table(run: str) -> pd.DataFrame:
    """A row for each kind of network: recovered in how many, and in how many sweeps."""
    table = results.read(run, "planted", "recovered")
    rows = []
    for name in by_size(table["network"].unique().tolist()):
        trials = by_trial(table, name)
        counts = trials["sweeps"].astype(int).value_counts().sort_index()
        rows.append(
            {
                "network": network_name(name),
                "instances": table.loc[table["network"] == name, "weights"].iloc[0],
                "recovered": f"{int(trials['recovered'].sum())} of {len(trials)}",
                "with units of equal weights": f"{int((trials['ties'] > 0).sum())}",
                "sweeps (in how many trials)": ", ".join(f"{sweeps} ({count})" for sweeps, count in counts.items()),
            }
        )
    return pd.DataFrame(rows)


@reads("planted")
def times_table(run: str) -> pd.DataFrame:
    """A row for each network that the run or the paper timed: medians over pairs, and the paper's seconds."""
    table, medians = results.read(run, "planted", "times"), _medians(run)
    rows = []
    for name in by_size(list(set(PAPER) | set(medians.index))):
        row = {"network": network_name(name), "seconds": "not run", "paper's seconds": f"{PAPER.get(name, '')}"}
        # In this order, so that on a phone what matters is in sight.
        row |= dict.fromkeys(("sweeps", "weights (millions)", "instances", "each pair (s)", "tracing (s)"), "")
        if name in medians.index:
            own, median = table[table["network"] == name], medians.loc[name]
            pairs = own[own["metric"] == "seconds"].sort_values("node")["value"]
            millions, tracing = median["parameters"], median.get("tracing_seconds")
            row |= {
                "instances": own["weights"].iloc[0],
                "weights (millions)": f"{millions:.1f}" if millions >= 1 else f"{millions:.2g}",
                "sweeps": f"{median['sweeps']:.0f}",
                "seconds": seconds(median["seconds"]),
                "each pair (s)": ", ".join(seconds(value) for value in pairs),
                "tracing (s)": "" if pd.isna(tracing) else f"{tracing:.1f}",
            }
        rows.append(row)
    return pd.DataFrame(rows)


@reads("planted")
def seconds_by_size(run: str) -> Figure:
    """Seconds of weight matching over the number of weights, a mark for each pair, with the paper's seconds beside.

    Of the paper's networks only those are drawn that were timed here, at our number of weights; and its MLP only beside
    one that is as large.
    """
    times = results.read(run, "planted", "times")
    figure, axes = plt.subplots(figsize=(width(), 3.8))
    labelled = set()
    for network in by_size(times["network"].unique().tolist()):
        own = times[times["network"] == network]
        took, weights = (own[own["metric"] == metric]["value"] for metric in ("seconds", "parameters"))
        family, _, factor = network.partition(" ")
        style, label = STYLES[family], None if family in labelled else network_name(family)
        labelled.add(family)
        axes.plot(weights, took, style.marker, color=on_page(style.colour), alpha=0.7, label=label)
        if factor:
            above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(factor, (weights.iloc[0], took.max()), **above)
        if network in PAPER and (network != "mlp" or weights.iloc[0] > PAPER_MLP):
            beside = {"xytext": (-9, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate("the paper's,\non a V100", (weights.iloc[0], PAPER[network]), **beside)
            axes.plot(weights.iloc[0], PAPER[network], style.marker, color=ink(), markersize=9, markerfacecolor="none")
    axes.set(xscale="log", yscale="log", xlabel="weights (millions)", ylabel="weight matching (s)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(0.12, 0.15)
    legend_below(figure, axes)
    return figure


def network_name(network: str) -> str:
    """What readers call a network."""
    return NAMES.get(network, network.replace("resnet20", "ResNet20"))


def by_size(networks: list[str]) -> list[str]:
    """The MLP, ResNet50, and ResNet20 from the narrowest to the widest."""
    order = list(NAMES)

    def place(name: str) -> tuple[int, int]:
        return (order.index(name), 0) if name in order else (len(order), int(name.split("x")[-1]))

    return sorted(networks, key=place)


def by_trial(recovered: pd.DataFrame, network: str) -> pd.DataFrame:
    """A row for each planted permutation of a network, a column for each metric."""
    return recovered[recovered["network"] == network].pivot(index="node", columns="metric", values="value")


def _medians(run: str) -> pd.DataFrame:
    """Medians over pairs: a row for each network, a column for each metric."""
    times = results.read(run, "planted", "times")
    return times.pivot_table(index="network", columns="metric", values="value", aggfunc="median")
