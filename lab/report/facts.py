"""What a run's tables say about one question: facts with an outcome. The words stand in the chapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval

Shown = TypeVar("Shown", bound=Callable)

# The outcomes of an interval against a bound.
ABOVE, BELOW, OPEN, FEW = "above", "below", "open", "too few"


@dataclass(frozen=True)
class Facts:
    """The answer to one question: an ``outcome``, a word, and ``values`` by name, as a reader sees them.

    A chapter's sentence names the outcome that it was written for, and takes the values; the book is not built when the
    results have another outcome.
    """

    outcome: str
    values: Mapping[str, str]


def reads(*notebooks: str) -> Callable[[Shown], Shown]:
    """Marks a function that a chapter can show: which notebooks' tables it reads.

    The function takes a run for each of them, and returns ``Facts``, a table of texts (a DataFrame) or a figure. It
    takes none where it reads no run's tables, but benchmarks/, say, or nothing.
    """

    def mark(function: Shown) -> Shown:
        function.notebooks = notebooks
        return function

    return mark


def outcome(value: Interval, bound: float = 0.0, fewest: int = FEWEST_FOR_INTERVAL) -> str:
    """Where an interval lies: ``above`` or ``below`` a bound, ``open``; or ``too few``, of fewer than ``fewest``."""
    if value.n < fewest:
        return FEW
    return ABOVE if value.low > bound else BELOW if value.high < bound else OPEN
