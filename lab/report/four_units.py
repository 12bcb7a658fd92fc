"""Two networks of four hidden units, small enough to try all 24 orders of the second one's.

B is planted: it is A with its units in another order and a little noise on every weight.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lab.report.facts import Facts, reads
from lab.report.words import decimal

Order = tuple[int, ...]  # which of B's units stands at each place

UNITS = 4
# A reads input i by its unit i above all, and answers by turns up and down.
READS = np.array([[1.0, 0.3, 0.0, -0.2], [-0.3, 0.9, 0.2, 0.0], [0.0, -0.2, 1.1, 0.3], [0.2, 0.0, -0.3, 0.8]])
ANSWERS = np.array([0.9, -0.7, 1.0, -0.8])
PLANTED: Order = (1, 2, 3, 0)  # which of A's units B's were made from
NOISE = 0.06  # standard deviation, on every weight of B
SPOTS = np.linspace(0, UNITS - 1, 61)  # where the spot of light stands, as it passes over the inputs


@dataclass(frozen=True)
class Network:
    """Hidden units with weights (units, inputs) from what each ``reads``, and (units) to the output it ``answers``."""

    reads: np.ndarray
    answers: np.ndarray

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (m) for inputs (m, inputs): ReLU units, and no biases."""
        return np.maximum(inputs @ self.reads.T, 0) @ self.answers

    def reordered(self, order: Order) -> Network:
        """The same network, with its unit ``order[k]`` at place k."""
        return Network(self.reads[list(order)], self.answers[list(order)])

    def mean(self, other: Network) -> Network:
        """The network whose every weight is the mean of both."""
        return Network((self.reads + other.reads) / 2, (self.answers + other.answers) / 2)


def pair() -> tuple[Network, Network]:
    """A, and B, which is A in another order and with noise."""
    rng = np.random.default_rng(0)
    a = Network(READS, ANSWERS)
    b = a.reordered(PLANTED)
    noise = NOISE * rng.standard_normal((UNITS, UNITS)), NOISE * rng.standard_normal(UNITS)
    return a, Network(b.reads + noise[0], b.answers + noise[1])


def scores() -> np.ndarray:
    """The inner products (units, units) of the weights of A's units with those of B's."""
    a, b = pair()
    return a.reads @ b.reads.T + np.outer(a.answers, b.answers)


def score(order: Order) -> float:
    """The inner product of all weights of A with those of B in this order: what weight matching makes large."""
    return float(sum(scores()[place, unit] for place, unit in enumerate(order)))


def orders() -> list[Order]:
    """All orders of B's units; the first leaves them as they are."""
    return list(itertools.permutations(range(UNITS)))


def best() -> Order:
    """The order with the highest score."""
    return max(orders(), key=score)


def spots_of_light() -> np.ndarray:
    """Inputs (m, inputs) while a spot of light, two inputs wide, passes over them."""
    return np.maximum(1 - np.abs(SPOTS[:, None] - np.arange(UNITS)), 0)


def distance(first: Network, second: Network) -> float:
    """The root mean square difference of two networks' outputs under the spot of light."""
    return float(np.sqrt(np.mean((first(spots_of_light()) - second(spots_of_light())) ** 2)))


@reads()
def merged() -> Facts:
    """Score, and how far the average's outputs are from A's, ``before`` and ``after`` B is put into the best order.

    The outcome: whether the best order is the one that was ``planted``, or ``another``.
    """
    a, b = pair()
    values = {"orders": str(len(orders()))}
    for name, order in (("before", orders()[0]), ("after", best())):
        values |= {f"score_{name}": decimal(score(order), 1)}
        values |= {f"error_{name}": decimal(distance(a, a.mean(b.reordered(order))), 2)}
    found = tuple(PLANTED[unit] for unit in best()) == tuple(range(UNITS))
    return Facts("planted" if found else "another", values)
