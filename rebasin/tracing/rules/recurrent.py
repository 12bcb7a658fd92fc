"""Recurrent layers, whole or step by step: a unit has a row in every gate, and reads all units of the step before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rebasin.tracing.rules.shapes import selected
from rebasin.tracing.units import Labels, Relations, Value, along, follow, placed, rule

WHY = "a recurrent layer of which something stays"


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(
    relations: Relations,
    shapes: Sequence[tuple[int, ...]],
    x: Value,
    states: Any,
    tensors: Any,
    biased: Any,
    layers: Any,
    *_: Any,
) -> list[Value]:
    """Layers one above the other, each forwards or both ways over the steps of a sequence."""
    if not isinstance(tensors, list | tuple):
        return follow(relations, "a recurrent layer of packed sequences", shapes, [x, states, tensors, biased], {})
    states = states if isinstance(states, list | tuple) else [states]
    x = placed(relations, x, range(len(x.shape) - 1), "the steps of a recurrent layer")
    projected = states[0].shape[-1] != states[-1].shape[-1]
    each = (4 if biased else 2) + projected
    below = along(relations, x, -1, WHY)
    hidden: list[list[np.ndarray]] = [[] for _ in states]
    ways = len(tensors) // each // layers
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            number = layer * ways + way
            own = [selected(relations, state.shape[1:], state, 0, number) for state in states]
            units = _step(relations, below, own, tensors[number * each : (number + 1) * each])
            for ends, end in zip(hidden, units, strict=True):
                ends.append(end)
            outputs.append(units[0])
        below = np.concatenate(outputs)
    last = [Value(shape, _stacked(ends, len(shape))) for shape, ends in zip(shapes[1:], hidden, strict=True)]
    return [Value(shapes[0], (Labels((len(shapes[0]) - 1,), below),)), *last]


@rule("lstm_cell")
def long_short_step(
    relations: Relations, shapes: Sequence[tuple[int, ...]], x: Value, states: Sequence[Value], *tensors: Any
) -> list[Value]:
    """One step of an LSTM."""
    x = placed(relations, x, range(len(x.shape) - 1), "the steps of a recurrent layer")
    units = _step(relations, along(relations, x, -1, WHY), states, tensors)
    return [Value(shape, (Labels((len(shape) - 1,), own),)) for shape, own in zip(shapes, units, strict=True)]


@rule("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def step(relations: Relations, shape: tuple[int, ...], x: Value, state: Value, *tensors: Any) -> Value:
    """One step of a GRU or a plain recurrent layer."""
    return long_short_step(relations, [shape], x, [state], *tensors)[0]


def _step(
    relations: Relations, below: np.ndarray, states: Sequence[Value], tensors: Sequence[Value | None]
) -> list[np.ndarray]:
    """The units of each state after a step: those that the layer gives, and those that an LSTM keeps to itself.

    ``tensors`` are the weights of what is below, and of the step before, their biases if there are any, and the weights
    of a projection. Rows are of one gate after another.
    """
    into, again, *others = [tensor for tensor in tensors if tensor is not None]
    *biases, projection = others if len(others) % 2 else [*others, None]
    rows = along(relations, into, 0, WHY)
    units = rows[: states[-1].shape[-1]]
    for tensor in (into, again, *biases):
        for gate in along(relations, tensor, 0, WHY).reshape(-1, len(units)):
            relations.tie(gate, units, WHY)
    given = units
    if projection is not None:
        given = along(relations, projection, 0, WHY)
        relations.tie(along(relations, projection, 1, WHY), units, WHY)
    relations.tie(along(relations, into, 1, WHY), below, WHY)
    relations.tie(along(relations, again, 1, WHY), given, WHY)
    for read in (below, units, given):
        relations.use(read)
    ends = [given, units][: len(states)]
    for state, own in zip(states, ends, strict=True):
        axis = len(state.shape) - 1
        state = placed(relations, state, range(axis), "the steps of a recurrent layer")
        if axis not in state.even:
            relations.tie(along(relations, state, axis, WHY), own, WHY)
    return ends


def _stacked(units: list[np.ndarray], axes: int) -> tuple[Labels, ...]:
    """The labels of the last states of all layers, one above the other along the first axis."""
    if len(units) == 1:
        return (Labels((axes - 1,), units[0]),)
    return (Labels((0, axes - 1), np.stack(units)),)
