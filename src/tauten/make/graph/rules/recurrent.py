"""Recurrent layers: a hidden unit is a row in the block of every gate, and a column of what reads the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tauten.errors import PassError
from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace

# Where a unit's rows are zeros in every gate, these are what its numbers are multiplied by at each step: a cell fades
# from where it started (LSTM: the forget gate; GRU: the update gate), a plain unit is tanh(0) at once.
_FADES = {"lstm": True, "gru": True, "rnn_tanh": False, "rnn_relu": False}
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(trace: Trace, call: Call) -> tuple[Value, ...]:
    """``(batch, steps, in) -> (batch, steps, directions * out)``, and the last states (of an LSTM: and cells).

    ``out`` is the number of hidden units, or that of projections where there are some. A layer has one number of hidden
    units for all that it stacks and for both directions, so that the same unit goes from each of them.
    """
    if "batch_sizes" in call.arguments:
        raise PassError("with packed sequences it has no pruning rule")
    data: Value = call["input"]
    given = list(call["hx"]) if call.op == "lstm" else [call["hx"]]
    for value in given:
        trace.freeze_all(value.axes[:-1], f"{call.where}: layers and samples")
    trace.freeze_all(data.axes[:-1], f"{call.where} reads it step by step")

    directions = 2 if call["bidirectional"] else 1
    cells, states = _stack(trace, call, data.axes[-1], directions)
    stays = given[-1].axes[-1].zero or not _FADES[call.op]
    # One axis for all of it: what starts, what comes out at each step, and what is left.
    states = trace.unify(states, given[0].axes[-1]).with_zero(states is not cells or stays)
    if call.op == "lstm":
        cells = trace.unify(cells, given[1].axes[-1]).with_zero(stays)

    lead = [Axis(axis.size, reason=f"{call.where}: steps and samples") for axis in data.axes[:-1]]
    left = [
        Value((*(Axis(size, reason=f"{call.where}: layers and samples") for size in shape[:-1]), units))
        for shape, units in zip(call.shapes[1:], [states, cells], strict=False)
    ]
    return Value((*lead, _side_by_side(states, directions))), *left


def _stack(trace: Trace, call: Call, data: Axis, directions: int) -> tuple[Axis, Axis]:
    """All layers and directions one after the other: the units' axis, and that of the states that they give."""
    count = call["num_layers"] * directions
    each = len(call["params"]) // count
    units = states = Axis(0)
    for number in range(count):
        of_input, of_hidden, *others = call["params"][number * each : (number + 1) * each]
        project = others.pop() if others and len(others[-1].axes) == 2 else None
        own = made = _units(trace, call, [of_input, *others, of_hidden], _GATES[call.op])
        if project is not None:
            trace.contract(own, project.axes[1], f"{call.where} projects states that are not zero when removed")
            made = trace.produce(project.axes[0])
        units = trace.unify(units, own) if number else own
        states = units if project is None else trace.unify(states, made) if number else made
        _read(trace, call, data, of_input)
        _read(trace, call, states, of_hidden)
        if (number + 1) % directions == 0:
            data = _side_by_side(states, directions)
    return units, states


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """One step: ``(batch, in)`` and the state before give the state after (of an LSTM: and the cell)."""
    kind = call.op.removesuffix("_cell")
    data: Value = call["input"]
    given = list(call["hx"]) if kind == "lstm" else [call["hx"]]
    of_input, of_hidden = call["w_ih"], call["w_hh"]
    biases = [call[name] for name in ("b_ih", "b_hh") if call[name] is not None]
    units = _units(trace, call, [of_input, *biases, of_hidden], _GATES[kind])
    _read(trace, call, data.axes[-1], of_input)
    _read(trace, call, units, of_hidden)
    stays = given[-1].axes[-1].zero or not _FADES[kind]
    for value in given:
        units = trace.unify(units, value.axes[-1])
    units = units.with_zero(stays and units.tracked)
    lead = [axis.with_zero(False) for axis in data.axes[:-1]]
    for value in given:
        lead = [trace.unify(own, other) for own, other in zip(lead, value.axes[:-1], strict=True)]
    made = tuple(Value((*lead, units)) for _ in given)
    return made if kind == "lstm" else made[0]


def _units(trace: Trace, call: Call, weights: Sequence[Value], gates: int) -> Axis:
    """The units that the rows of these weights and biases make, a block of rows a gate."""
    rows = [trace.produce(value.axes[0]) for value in weights]
    size = rows[0].size // gates
    if not all(axis.tracked and axis.zero for axis in rows):
        reason = f"{call.where} has a computed weight"
        trace.freeze_all(rows, reason)
        return Axis(size, reason=reason)
    units = trace.tracked(rows[0])[:size]
    for axis in rows:
        trace.ids.union(trace.tracked(axis).reshape(gates, size), units[None, :])
    return Axis(size, units, zero=True)


def _read(trace: Trace, call: Call, data: Axis, weight: Value) -> None:
    trace.contract(data, weight.axes[1], f"{call.where} sums over channels that are not zero when removed")


def _side_by_side(axis: Axis, directions: int) -> Axis:
    if axis.ids is None:
        return Axis(axis.size * directions, reason=axis.reason)
    return Axis(axis.size * directions, np.tile(axis.ids, directions), zero=axis.zero)
