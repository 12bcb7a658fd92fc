"""Numbers and lists as a reader sees them."""

from __future__ import annotations

from collections.abc import Iterable

from lab.report.statistics import FEWEST_FOR_INTERVAL, Interval


def in_words(value: Interval, places: int, signed: bool = False) -> str:
    """An interval in words: ``45.7 [44.9, 46.5]``, the mean alone where there are too few nodes for an interval."""
    mean, low, high = (decimal(bound, places, signed) for bound in (value.mean, value.low, value.high))
    return mean if value.n < FEWEST_FOR_INTERVAL else f"{mean} [{low}, {high}]"


def points(value: Interval, signed: bool = False) -> str:
    """An interval in words, with one decimal."""
    return in_words(value, 1, signed)


def nats(value: Interval, signed: bool = False) -> str:
    """As ``points``, with the three decimals that a loss needs."""
    return in_words(value, 3, signed)


def hundredths(value: Interval, signed: bool = False) -> str:
    """As ``points``, with two decimals."""
    return in_words(value, 2, signed)


def side(value: Interval, bound: float, above: str, below: str, neither: str) -> str:
    """The words for an interval wholly above a bound, wholly below it, or neither."""
    return above if value.low > bound else below if value.high < bound else neither


def listed(words: Iterable[str], joint: str = "and") -> str:
    """``a, b and c``, each once; or ``a, x; b; and c`` where one has a comma of its own. ``joint`` is that ``and``."""
    *most, last = dict.fromkeys(words)
    if not most:
        return last
    if any("," in word for word in (*most, last)):
        return f"{'; '.join(most)}; {joint} {last}"
    return f"{', '.join(most)} {joint} {last}"


def decimal(value: float, places: int, signed: bool = False) -> str:
    """A number with a true minus sign, and no sign where it is rounded to zero."""
    text = f"{value:{'+' if signed else ''}.{places}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def seconds(value: float) -> str:
    """Seconds with two digits that mean something."""
    return f"{value:.{2 if value < 1 else 1 if value < 10 else 0}f}"
