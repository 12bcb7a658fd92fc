"""Matching, merging, tracing, training and attacks, timed beside floors and peers in one run: ``make bench``.

Every contest of benchmarks/contests.py: its contestants take turns, and the table has the medians. It is kept in
benchmarks/bench.json, with every run, the machine and the versions. ``python -m benchmarks.bench ResNet MLP`` runs only
those whose names hold one of these words, and keeps nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import contests
from benchmarks.contests import Contest, SetUp, Sizes
from benchmarks.matchers import PEERS
from benchmarks.turns import in_turn, keep, medians
from lab.bookkeeping.workers import duration

# Each contest by its name, and about how many seconds it takes, of two cores.
CONTESTS: Mapping[str, tuple[SetUp, float]] = {
    "match a pair, 3x512 MLP": (contests.a_pair_of_mlps, 90),
    "match a pair, ResNet20": (contests.a_pair_of_resnet20, 15),
    "match a pair, ResNet-50": (contests.a_pair_of_resnet50, 110),
    "match 100 pairs, 3x512 MLP": (contests.many_pairs, 45),
    "MergeMany of 8, 3x256 MLP": (contests.merge_of_eight, 40),
    "universe of 5, 3x256 MLP": (contests.universe_of_five, 30),
    "PLeaS of 2, ResNet20": (contests.pleas_of_two, 45),
    "trace 19 networks": (contests.tracing, 140),
    "PGD-20 on 8 MLPs": (contests.attacks_as_measured, 15),
    "PGD-20, every step": (contests.attacks_to_the_end, 15),
    "train 8 MLPs, stacked": (contests.training, 20),
}
NOT_INSTALLED, NONE = "not installed", "–"
FULL = Sizes()


def main(words: Sequence[str] = (), sizes: Sizes = FULL) -> list[dict[str, Any]]:
    """Run the contests whose names hold one of the words, all without; print the table, and keep it if it is whole."""
    chosen = [name for name in CONTESTS if not words or any(word in name for word in words)]
    rows: list[dict[str, Any]] = []
    began, expected = time.monotonic(), [CONTESTS[name][1] for name in chosen]
    for number, name in enumerate(chosen):
        passed = time.monotonic() - began
        pace = passed / sum(expected[:number]) if number else 1.0
        left = duration(pace * sum(expected[number:]))
        print(f"[{number + 1}/{len(chosen)}] {name} ({duration(passed)} so far, about {left} left)", flush=True)
        rows.append(row(name, *run(CONTESTS[name][0], sizes)))
    print(f"\n{text(rows)}\n\n{len(rows)} rows in {duration(time.monotonic() - began)}", flush=True)
    if not words:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "foolbox")}
        keep(__file__, {"rows": rows, "versions": {"python": platform.python_version()} | versions | PEERS})
    return rows


def run(set_up: SetUp, sizes: Sizes) -> tuple[Contest, int, dict[str, list[float]]]:
    """A contest, its threads, and the seconds of each contestant in each round."""
    threads = torch.get_num_threads()
    with set_up(sizes) as contest:
        torch.set_num_threads(contest.threads or threads)
        try:
            contestants = {"ours": contest.ours, "floor": contest.floor, **contest.peers}
            if contest.rounds > 1:
                in_turn(contestants, 1)  # once for nothing: what comes first is slow
            return contest, torch.get_num_threads(), in_turn(contestants, contest.rounds)
        finally:
            torch.set_num_threads(threads)


def row(name: str, contest: Contest, threads: int, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """What a contest came to: the medians, and ours over the floor and over the fastest peer."""
    median = medians(seconds)
    fastest = min(contest.peers, key=median.__getitem__, default=None)
    return {
        "what": name,
        "ours_seconds": round(median["ours"], 6),
        "floor": contest.beneath,
        "floor_seconds": round(median["floor"], 6),
        "ours_over_floor": round(median["ours"] / median["floor"], 3),
        "peer": fastest if fastest else NOT_INSTALLED if contest.missing else NONE,
        "peer_seconds": round(median[fastest], 6) if fastest else None,
        "ours_over_peer": round(median["ours"] / median[fastest], 3) if fastest else None,
        "threads": threads,
        "runs": {contestant: [round(value, 6) for value in runs] for contestant, runs in seconds.items()},
    }


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a terminal shows it."""
    lines = [("what", "ours (s)", "floor (s)", "", "ours/floor", "peer (s)", "", "ours/peer")]
    for one in rows:
        numbers = [one[column] for column in ("ours_seconds", "floor_seconds", "peer_seconds")]
        ours, floor, peer = (NONE if value is None else f"{value:.3g}" for value in numbers)
        ratios = [one[column] for column in ("ours_over_floor", "ours_over_peer")]
        over_floor, over_peer = (NONE if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append((one["what"], ours, floor, one["floor"], over_floor, peer, one["peer"], over_peer))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
