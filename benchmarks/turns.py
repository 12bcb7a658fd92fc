"""What the benchmarks share: contestants that take turns, and a file of what was measured, and on which machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.bookkeeping import results
from lab.bookkeeping.checkout import commit

Timed = Callable[[], float]  # does its work, and gives the seconds that it took


def in_turn(contestants: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """The seconds of each contestant in each round.

    Each round begins with another one, so that what else the machine does hits all alike.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(contestants[name]())
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each contestant's runs."""
    return {name: statistics.median(runs) for name, runs in seconds.items()}


def clocked(work: Callable[[], object]) -> Timed:
    """Some work as a contestant: its wall time."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def machine() -> dict[str, Any]:
    """The kind of machine, and the commit of the code."""
    return {"hardware": results._hardware(), "commit": commit()}


def keep(script: str, table: Mapping[str, Any]) -> None:
    """Write what a script measured to the JSON file beside it, with the machine and the commit."""
    Path(script).with_suffix(".json").write_text(json.dumps({**table, **machine()}, indent=1) + "\n")
