"""Two 2-2-2-1 networks that compute the same decision and that no permutation connects (Git Re-Basin, section 6).

Their inputs are uniform on the square [-1, 1]^2, and the answer is yes where x1 < 0 and x2 > 0. All is computed in
fractions: a network of ReLUs is linear on each of some convex polygons, and shares of points are areas.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn

from rebasin.inner_products import inner_product
from rebasin.matching.by_weights import weight_matching
from rebasin.permutation import Permutation
from rebasin.tracing import trace

# An affine function (a, b, c) of two values is a v1 + b v2 + c: a unit, of what the two before it answer, or of the
# point (x1, x2). A convex polygon is its corners in order.
Affine = tuple[Fraction, ...]
Layer = tuple[Affine, ...]
Network = tuple[Layer, ...]
# The order of the two units of each hidden layer, counted from 1: ("12", "21") swaps those of the second layer.
Orders = tuple[str, str]
Polygon = tuple[tuple[Fraction, Fraction], ...]

SQUARE: Polygon = tuple((Fraction(x), Fraction(y)) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
X1, X2, NOTHING = (tuple(map(Fraction, parts)) for parts in ((1, 0, 0), (0, 1, 0), (0, 0, 0)))


def _network(*layers: Sequence[Sequence[int]]) -> Network:
    """A network from rows of weights, the bias of each unit last."""
    return tuple(tuple(tuple(map(Fraction, unit)) for unit in layer) for layer in layers)


A = _network([[-1, 0, 1], [0, -1, 0]], [[-1, 0, 1], [0, 1, 0]], [[-1, -1, 0]])
B = _network([[1, 0, 0], [0, 1, 1]], [[1, 0, 0], [0, -1, 1]], [[-1, -1, 0]])
PERMUTATIONS: tuple[Orders, ...] = tuple(product(("12", "21"), repeat=2))
POINTS = 25  # of a path, both ends included
LAMS = tuple(Fraction(point, POINTS - 1) for point in range(POINTS))


def permuted(network: Network, orders: Orders) -> Network:
    """The same function with the units of both hidden layers in another order."""
    first, second = ([int(unit) - 1 for unit in order] for order in orders)
    below, middle, above = network
    return (
        tuple(below[i] for i in first),
        tuple((*(middle[i][j] for j in first), middle[i][-1]) for i in second),
        tuple((*(unit[i] for i in second), unit[-1]) for unit in above),
    )


def between(a: Network, b: Network, lam: Fraction) -> Network:
    """The network at ``lam`` of the straight line from ``a`` to ``b``."""
    return tuple(
        tuple(
            tuple((1 - lam) * u + lam * v for u, v in zip(*units, strict=True)) for units in zip(*layers, strict=True)
        )
        for layers in zip(a, b, strict=True)
    )


def pieces(network: Network) -> list[tuple[Polygon, Affine]]:
    """The convex polygons on which the network is linear, with its output there: together they make the square."""
    parts: list[tuple[Polygon, Layer]] = [(SQUARE, _network([[1, 0, 0], [0, 1, 0]])[0])]
    for depth, layer in enumerate(network):
        parts = [(polygon, tuple(_through(unit, values) for unit in layer)) for polygon, values in parts]
        for unit in range(len(layer) if depth < len(network) - 1 else 0):
            split = []
            for polygon, values in parts:
                on, off = halves(polygon, values[unit])
                silent = (*values[:unit], NOTHING, *values[unit + 1 :])
                split += [(half, answers) for half, answers in ((on, values), (off, silent)) if half]
            parts = split
    return [(polygon, output) for polygon, (output,) in parts]


def _through(unit: Affine, values: Layer) -> Affine:
    """What a unit answers to values that are affine functions of the point."""
    *weights, bias = unit
    of_point = [sum(w * value[i] for w, value in zip(weights, values, strict=True)) for i in range(3)]
    return (of_point[0], of_point[1], of_point[2] + bias)


def halves(polygon: Polygon, height: Affine) -> tuple[Polygon, Polygon]:
    """The parts of a convex polygon where an affine function is positive and where it is not; () is nothing."""
    if not any(height):
        return (), polygon
    return _above(polygon, height), _above(polygon, tuple(-part for part in height))


def _above(polygon: Polygon, height: Affine) -> Polygon:
    """The part of a convex polygon where an affine function is at least 0; () if that has no area."""
    heights = [height[0] * x + height[1] * y + height[2] for x, y in polygon]
    if max(heights, default=0) <= 0:
        return ()
    corners = []
    for here in range(len(polygon)):
        (x, y), h = polygon[here], heights[here]
        (u, v), k = polygon[here - 1], heights[here - 1]
        if h * k < 0:
            share = k / (k - h)
            corners.append((u + share * (x - u), v + share * (y - v)))
        if h >= 0:
            corners.append((x, y))
    return tuple(corners)


def area(polygon: Polygon) -> Fraction:
    """The area of a polygon, by the shoelace formula."""
    sides = zip(polygon, (*polygon[1:], *polygon[:1]), strict=True)
    return abs(sum((x * v - u * y for (x, y), (u, v) in sides), Fraction(0))) / 2


def misclassified(network: Network) -> list[Polygon]:
    """The points of the square on which the network is wrong, as convex polygons that do not overlap.

    It says yes where its output is at least 0. Lines have no area: their points count for nothing.
    """
    wrong = []
    for polygon, output in pieces(network):
        negative, positive = halves(polygon, tuple(-part for part in output))
        right, left = halves(positive, X1)
        wrong += [halves(halves(negative, X1)[1], X2)[0], right, halves(left, X2)[1]]
    return [polygon for polygon in wrong if polygon]


def error(network: Network) -> Fraction:
    """The share of the square's points on which the network is wrong."""
    return sum(map(area, misclassified(network)), Fraction(0)) / area(SQUARE)


def paths() -> pd.DataFrame:
    """The error along the line from A to each permutation of B: a row for each of 25 points."""
    rows = []
    for node, orders in enumerate(PERMUTATIONS):
        for lam in LAMS:
            rows.append((node, *orders, float(lam), float(error(between(A, permuted(B, orders), lam)))))
    return pd.DataFrame(rows, columns=["node", "first", "second", "lam", "value"]).assign(metric="error")


def barriers(paths: pd.DataFrame) -> pd.DataFrame:
    """The largest error along each path minus the mean of its two ends: a row for each permutation."""
    rows = []
    for kind, path in paths.groupby(["node", "first", "second"]):
        values = path.sort_values("lam")["value"].to_numpy()
        rows.append((*kind, values.max() - (values[0] + values[-1]) / 2))
    return pd.DataFrame(rows, columns=["node", "first", "second", "value"]).assign(metric="error_barrier")


def worst(paths: pd.DataFrame) -> pd.DataFrame:
    """The row of each path where its error is largest, of several points the one nearest to the midpoint."""
    high = paths[paths["value"] == paths.groupby("node")["value"].transform("max")]
    nearest = (high["lam"] - 0.5).abs().groupby(high["node"]).idxmin()
    return high.loc[nearest, ["node", "first", "second", "lam", "value"]].reset_index(drop=True)


def regions(points: pd.DataFrame) -> pd.DataFrame:
    """The misclassified polygons at points of paths, as ``worst`` gives them: a row for each corner, in order."""
    rows = []
    for point in points.itertuples():
        orders, lam = (point.first, point.second), LAMS[round(point.lam * (POINTS - 1))]
        for number, polygon in enumerate(misclassified(between(A, permuted(B, orders), lam))):
            for corner, (x1, x2) in enumerate(polygon):
                rows.append((point.node, *orders, point.lam, number, corner, float(x1), float(x2)))
    return pd.DataFrame(rows, columns=["node", "first", "second", "lam", "polygon", "corner", "x1", "x2"])


def model() -> nn.Sequential:
    """The same architecture as a torch module, in float64, which holds these networks' weights exactly."""
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()


def state(network: Network) -> dict[str, Tensor]:
    """A network's weights as the entries of ``model().state_dict()``."""
    weights = {}
    for layer, name in zip(network, ("0", "2", "4"), strict=True):
        rows = torch.tensor([[float(part) for part in unit] for unit in layer], dtype=torch.float64)
        weights |= {f"{name}.weight": rows[:, :-1], f"{name}.bias": rows[:, -1]}
    return weights


def by_library(seed: int) -> pd.DataFrame:
    """What the library makes of the pair: a row for each permutation.

    ``same`` says whether its permuted B is the one made here, to the last bit, ``inner_product`` how near its weights
    are to A's, and ``matched`` whether it is what weight matching finds.
    """
    spec = trace(model(), torch.zeros(1, 2))
    a, b = state(A), state(B)
    matching = weight_matching(spec, a, b, seed=seed).permutation.indices
    rows = []
    for node, orders in enumerate(PERMUTATIONS):
        units = [torch.tensor([int(unit) - 1 for unit in order]) for order in orders]
        order_of = dict(zip(spec.sizes, units, strict=True))
        moved = Permutation(spec, order_of).apply(b)
        same = all(torch.equal(moved[key], tensor) for key, tensor in state(permuted(B, orders)).items())
        matched = all(torch.equal(matching[group], order) for group, order in order_of.items())
        rows.append((node, *orders, same, float(inner_product(spec, a, moved)), matched))
    return pd.DataFrame(rows, columns=["node", "first", "second", "same", "inner_product", "matched"])
