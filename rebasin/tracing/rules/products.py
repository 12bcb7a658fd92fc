"""Operators that multiply tensors and sum: matrix products, attention, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rebasin.tracing.rules.entries import elementwise
from rebasin.tracing.rules.repeats import interleaved
from rebasin.tracing.rules.sums import compared, normed_by_channel
from rebasin.tracing.units import (
    FIXED,
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
    told_apart,
)

COMPUTED = "a computed weight of a grouped convolution"


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
    factors = ((a, letters_a), (b, letters_b))
    even = (axis for axis, letter in enumerate(out) if all(_is_even(*factor, letter) for factor in factors))
    return Value(shape, join(relations, kept, why), even=frozenset(even))


def _is_even(value: Value, letters: str, letter: str) -> bool:
    """Whether all slices of a factor along the axis of a letter are equal, or it has no such axis."""
    axis = letters.find(letter)
    return axis < 0 or axis in value.even or value.shape[axis] == 1


def _numbered(
    relations: Relations, value: Value, letters: str, other: Value, others: str, number: dict[str, int], why: str
) -> list[Labels]:
    """A factor's labels with the axes that their letters stand for; told apart where the other factor has none."""
    strange = {
        axis for axis, letter in enumerate(letters) if letter in others and _is_place(other, others.index(letter))
    }
    numbered = []
    for labels in value.labels:
        if told_apart(relations, labels, strange, why):
            numbered.append(renumbered(labels, {axis: number[letters[axis]] for axis in labels.axes}))
    return numbered


def _is_place(value: Value, axis: int) -> bool:
    return value.on(axis) is None and value.shape[axis] > 1 and axis not in value.even


@rule("einsum")
def einsum(relations: Relations, shape: tuple[int, ...], formula: str, values: Sequence[Value], **_: Any) -> Value:
    """A sum of products of tensors, as the formula tells: of the first two, then of that and the third, and so on."""
    inputs, out = _written_out(formula.replace(" ", ""), values)
    if any(len(set(letters)) < len(letters) for letters in [*inputs, out]):
        return follow(relations, f"einsum of {formula!r}", shape, values, {})
    sizes = {
        letter: size
        for letters, value in zip(inputs, values, strict=True)
        for letter, size in zip(letters, value.shape, strict=True)
    }
    result, letters = values[0], inputs[0]
    for number, (value, others) in enumerate(zip(values[1:], inputs[1:], strict=True), 2):
        needed = set(out).union(*inputs[number:])
        left = "".join(letter for letter in dict.fromkeys(letters + others) if letter in needed)
        left = out if number == len(values) else left
        between = tuple(sizes[letter] for letter in left)
        result, letters = product(relations, between, result, value, f"{letters},{others}->{left}"), left
    if len(values) == 1:
        return follow(relations, f"einsum of {formula!r}", shape, values, {})
    return result


def _written_out(formula: str, values: Sequence[Value]) -> tuple[list[str], str]:
    """The letters of each factor and of the result, where the formula may leave them out or write dots."""
    named, arrow, out = formula.partition("->")
    inputs = named.split(",")
    counts = [len(value.shape) - len(letters.replace(".", "")) for letters, value in zip(inputs, values, strict=True)]
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in formula]
    dots = ["".join(spare[max(counts) - count : max(counts)]) for count in counts]
    inputs = [letters.replace("...", own) for letters, own in zip(inputs, dots, strict=True)]
    every = "".join(inputs)
    if not arrow:
        longest = max(dots, key=len)
        out = longest + "".join(sorted(letter for letter in set(every) - set(longest) if every.count(letter) == 1))
    return inputs, out.replace("...", max(dots, key=len))


@rule("bilinear")
def bilinear(
    relations: Relations, shape: tuple[int, ...], a: Value, b: Value, weight: Value, bias: Value | None = None
) -> Value:
    """Units of two tensors, pair by pair, times a number of each pair."""
    out = einsum(relations, shape, "...i,oij,...j->...o", [a, weight, b])
    return out if bias is None else elementwise(relations, shape, out, bias)


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


@rule("baddbmm")
def batched(relations: Relations, shape: tuple[int, ...], bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """A bias plus products of two matrices each."""
    return elementwise(relations, shape, product(relations, shape, a, b, "bnk,bkm->bnm"), bias)


@rule("grouped_mm_fallback")
def of_experts(relations: Relations, shape: tuple[int, ...], x: Value, weight: Value, offs: Value) -> Value:
    """Rows times the matrix of their expert: (rows, k), (experts, k, m) -> (rows, m), by where the rows of each end.

    It is the package transformers that has it so. Experts and rows stay; the units that experts read and give move
    alike in all of them.
    """
    why = "told apart by which rows an expert gets"
    x, weight = placed(relations, x, [0], why), placed(relations, weight, [0], why)
    placed(relations, offs, [0], why)
    tie_axes(relations, x, 1, weight, 1, "fed by the input or by something that stays")
    relations.reach(along(relations, weight, 1, why))
    return Value(shape, (Labels((1,), along(relations, weight, 2, why)),))


@rule("outer")
def crossed(relations: Relations, shape: tuple[int, ...], a: Value, b: Value) -> Value:
    """Each entry of one vector times each of another."""
    return product(relations, shape, a, b, "n,m->nm")


@rule("dot", "vdot", "mv")
def with_vector(relations: Relations, shape: tuple[int, ...], a: Value, b: Value) -> Value:
    """A matrix, or a vector, times a vector."""
    return matmul(relations, shape, a, b)


@rule("matmul", "bmm", "mm")
def matmul(relations: Relations, shape: tuple[int, ...], a: Value, b: Value) -> Value:
    """Matrix products over the last two axes, batch axes broadcast."""
    if len(b.shape) == 1 or len(a.shape) == 1:
        rows, columns = _letters(len(a.shape) - 1), "stuvwxy"[: max(len(b.shape) - 2, 0)]
        last = "M" if len(b.shape) > 1 else ""
        return product(relations, shape, a, b, f"{rows}K,{columns}K{last}->{rows}{columns}{last}")
    places = _letters(len(shape) - 2)
    names = []
    for value, ends in ((a, "NK"), (b, "KM")):
        own = places[len(places) - (len(value.shape) - 2) :]
        names.append(own + ends)
    return product(relations, shape, a, b, f"{names[0]},{names[1]}->{places}NM")


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(relations: Relations, shape: tuple[int, ...], a: Value, b: Value, *_: Any, **__: Any) -> Value:
    """The distance of each row of one matrix from each row of another: differences summed up as products are."""
    places = _letters(len(shape) - 2)
    of_a, of_b = (places[len(places) - (len(value.shape) - 2) :] for value in (a, b))
    return product(relations, shape, a, b, f"{of_a}NK,{of_b}MK->{places}NM")


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
        k, v = (interleaved(relations, _heads_of(x, q), x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    places = _letters(len(shape) - 2)
    scores = (*shape[:-2], q.shape[-2], k.shape[-2])
    weights = product(relations, scores, q, k, f"{places}QD,{places}KD->{places}QK")
    if attn_mask is not None:
        weights = elementwise(relations, scores, weights, attn_mask)
    if is_causal:
        weights = placed(relations, weights, [-2, -1], "told apart by a causal mask")
    weights = compared(relations, scores, weights, -1)
    return product(relations, shape, weights, v, f"{places}QK,{places}KE->{places}QE")


def _heads_of(x: Value, q: Value) -> tuple[int, ...]:
    return (*x.shape[:-3], q.shape[-3], *x.shape[-2:])


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
        if 0 in weight.even and weight.shape[:2] == (groups, 1):
            out = inside  # one filter for all channels, each by itself
        relations.tie(inside, relations.heads(out.reshape(groups, -1), 1, why), why)
        if weight.shape[1] > 1:
            relations.reach(channels)
            if weight.key is None:
                relations.pin(channels, COMPUTED)
                placed(relations, weight, [1], COMPUTED)
            else:
                first = relations.columns.setdefault(weight.key, (channels, groups))[0]
                relations.tie(first, channels, why)
    # The batch may have units too, such as heads, and each entry of it goes through by itself.
    value = Value(shape, (Labels((1,), out), *(labels for labels in x.labels if labels.axes == (0,))))
    return value if bias is None else normed_by_channel(relations, shape, value, bias)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    relations: Relations,
    shape: tuple[int, ...],
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    *_: Any,
    **__: Any,
) -> Value:
    """Channels mixed within groups and spread over windows of places. The weight has a row for each channel read."""
    if len(x.shape) != len(weight.shape):
        return follow(relations, "transposed convolution without a batch", shape, [x, weight, bias], {})
    why = "the places of a convolution"
    x = placed(relations, x, range(2, len(x.shape)), why)
    weight = placed(relations, weight, range(2, len(weight.shape)), why)
    channels = along(relations, x, 1, why)
    relations.tie(channels, along(relations, weight, 0, why), "fed by the input or by something that stays")
    relations.reach(channels)
    out = along(relations, weight, 1, why)
    if groups > 1:
        why = "blocks of channels of which some stay"
        inside = relations.heads(channels.reshape(groups, -1), 1, why)
        if weight.shape[1] == 1:
            out = inside
        elif weight.key is None:
            relations.pin(channels, COMPUTED)
            relations.pin(out, COMPUTED)
            out = np.full(shape[1], FIXED)
        else:
            fresh = relations.fresh(shape[1])
            out = relations.columns.setdefault(weight.key, (fresh, groups))[0]
            relations.tie(inside, relations.heads(out.reshape(groups, -1), 1, why), why)
    # The batch may have units too, such as heads, and each entry of it goes through by itself.
    value = Value(shape, (Labels((1,), out), *(labels for labels in x.labels if labels.axes == (0,))))
    return value if bias is None else normed_by_channel(relations, shape, value, bias)
