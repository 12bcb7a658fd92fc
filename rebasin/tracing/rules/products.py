"""Operators that multiply tensors and sum: matrix products, attention, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.sums import compared, normed_by_channel
from rebasin.tracing.units import (
    Labels,
    Relations,
    Value,
    along,
    follow,
    join,
    outer,
    placed,
    renumbered,
    rule,
    tie_axes,
)


def product(relations: Relations, shape: tuple[int, ...], a: Value, b: Value, formula: str) -> Value:
    """The sum of products of two tensors that an einsum formula such as ``nk,km->nm`` says.

    Worked example, ``x`` (n, k) times ``w`` (k, m): let both have labels along k, x[n, :] the units 0 1 2 and w[:, m]
    the units 7 8 9, and w labels along m too, the units 3 4.

    1. Each letter becomes the number of an axis that both tensors share: n is 0, k is 1, m is 2. So x has units along
       axis 1, and w along axes 1 and 2.
    2. What meets along a shared axis is tied: 0 with 7, 1 with 8, 2 with 9.
    3. What the output keeps stays labelled: 3 4 along its axis 1. What is summed over, the units along k, is used as a
       set: none of them can change places with a unit outside of it.

    Labels along several axes together, as of heads and the units within, are blocks: where only some of their axes are
    summed over, the heads are left.
    """
    inputs, out = formula.split("->")
    letters_a, letters_b = inputs.split(",")
    number = {letter: axis for axis, letter in enumerate(dict.fromkeys(letters_a + letters_b + out))}
    why = "multiplied with something that stays"
    labels_a = _numbered(relations, a, letters_a, b, letters_b, number, why)
    labels_b = _numbered(relations, b, letters_b, a, letters_a, number, why)
    for of_a in labels_a:
        for of_b in labels_b:
            shared = tuple(axis for axis in of_a.axes if axis in of_b.axes)
            if shared:
                relations.tie(outer(relations, of_a, shared, why), outer(relations, of_b, shared, why), why)
    kept: list[Labels] = []
    place = {number[letter]: axis for axis, letter in enumerate(out)}
    for labels in labels_a + labels_b:
        axes = tuple(axis for axis in labels.axes if axis in place)
        if axes:
            kept.append(renumbered(Labels(axes, outer(relations, labels, axes, why)), place))
        else:
            relations.use(labels.units)
    return Value(shape, join(relations, kept, why))


def _numbered(
    relations: Relations, value: Value, letters: str, other: Value, others: str, number: dict[str, int], why: str
) -> list[Labels]:
    """A factor's labels with the axes that their letters stand for; pinned where the other factor has none."""
    numbered = []
    for labels in value.labels:
        meets = [others.index(letters[axis]) for axis in labels.axes if letters[axis] in others]
        if any(other.on(axis) is None and other.shape[axis] > 1 for axis in meets):
            relations.pin(labels.units, why)
        else:
            numbered.append(renumbered(labels, {axis: number[letters[axis]] for axis in labels.axes}))
    return numbered


@rule("einsum")
def einsum(relations: Relations, shape: tuple[int, ...], formula: str, values: Sequence[Value], **_: Any) -> Value:
    """A sum of products of two tensors, as the formula tells."""
    formula = formula.replace(" ", "")
    inputs = formula.split("->")[0].split(",")
    plain = "->" in formula and "." not in formula and all(len(set(letters)) == len(letters) for letters in inputs)
    if len(values) != 2 or not plain:
        return follow(relations, f"einsum of {formula!r}", shape, values, {})
    a, b = values
    return product(relations, shape, a, b, formula)


@rule("linear")
def linear(relations: Relations, shape: tuple[int, ...], x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Rows of a matrix times the last axis, plus a bias."""
    places = _letters(len(x.shape) - 1)
    out = product(relations, shape, x, weight, f"{places}K,NK->{places}N")
    return out if bias is None else elementwise(relations, shape, out, bias)


@rule("addmm")
def addmm(relations: Relations, shape: tuple[int, ...], bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """A bias plus the product of two matrices."""
    return elementwise(relations, shape, product(relations, shape, a, b, "nk,km->nm"), bias)


@rule("matmul", "bmm", "mm")
def matmul(relations: Relations, shape: tuple[int, ...], a: Value, b: Value) -> Value:
    """Matrix products over the last two axes, batch axes broadcast."""
    if len(b.shape) == 1 or len(a.shape) == 1:
        return follow(relations, "matmul with a vector", shape, [a, b], {})
    places = _letters(len(shape) - 2)
    names = []
    for value, ends in ((a, "NK"), (b, "KM")):
        own = places[len(places) - (len(value.shape) - 2) :]
        names.append(own + ends)
    return product(relations, shape, a, b, f"{names[0]},{names[1]}->{places}NM")


@rule("scaled_dot_product_attention")
def attention(
    relations: Relations,
    shape: tuple[int, ...],
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Softmax of queries times keys, times values."""
    if enable_gqa:
        return follow(relations, "attention with fewer heads of keys than of queries", shape, [q, k, v, attn_mask], {})
    places = _letters(len(shape) - 2)
    scores = (*shape[:-2], q.shape[-2], k.shape[-2])
    weights = product(relations, scores, q, k, f"{places}QD,{places}KD->{places}QK")
    if attn_mask is not None:
        weights = elementwise(relations, scores, weights, attn_mask)
    weights = compared(relations, scores, weights, -1)
    return product(relations, shape, weights, v, f"{places}QK,{places}KE->{places}QE")


def _letters(count: int) -> str:
    return "abcdefghij"[:count]


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    relations: Relations,
    shape: tuple[int, ...],
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **_: Any,
) -> Value:
    """Channels mixed within groups, over windows of places."""
    if len(x.shape) != len(weight.shape):
        return follow(relations, "convolution without a batch", shape, [x, weight, bias], {})
    why = "the places of a convolution"
    x = placed(relations, x, range(2, len(x.shape)), why)
    weight = placed(relations, weight, range(2, len(weight.shape)), why)
    out = along(relations, weight, 0, why)
    if groups == 1:
        relations.reach(along(relations, x, 1, why))
        tie_axes(relations, x, 1, weight, 1, "fed by the input or by something that stays")
    else:
        why = "blocks of channels of which some stay"
        channels = along(relations, x, 1, why)
        inside = relations.heads(channels.reshape(groups, -1), 1, why)
        relations.tie(inside, relations.heads(out.reshape(groups, -1), 1, why), why)
        if weight.shape[1] > 1:
            relations.reach(channels)
            if weight.key is None or weight.key in relations.columns:
                relations.pin(channels, "a computed weight of a grouped convolution")
            else:
                relations.columns[weight.key] = channels, groups
    value = Value(shape, (Labels((1,), out),))
    return value if bias is None else normed_by_channel(relations, shape, value, bias)
