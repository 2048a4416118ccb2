"""Operations that treat each element by itself, with broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


@rule(
    "abs", "alias", "alpha_dropout", "asinh", "atan", "celu", "clone", "contiguous", "detach", "dropout", "elu", "erf",
    "expm1", "feature_dropout", "gelu", "hardshrink", "hardswish", "leaky_relu", "lift_fresh_copy", "log1p", "mish",
    "neg", "relu", "relu6", "round", "rrelu", "selu", "sign", "silu", "sin", "softshrink", "softsign", "sqrt", "square",
    "tanh", "tanhshrink", "to", "trunc", "type_as", "_to_copy",
)  # fmt: skip
def keeps_zero(trace: Trace, call: Call) -> Value:
    """One operand, and f(0) = 0."""
    data: Value = next(iter(call.arguments.values()))
    return data


@rule("cos", "exp", "hardsigmoid", "log_sigmoid", "logical_not", "sigmoid", "softplus", "erfc")
def loses_zero(trace: Trace, call: Call) -> Value:
    """One operand, and f(0) is another number."""
    data: Value = next(iter(call.arguments.values()))
    return data.with_zero(False)


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(trace: Trace, call: Call) -> Value:
    """New numbers in the shape of another tensor."""
    data: Value = call["self"]
    return Value(tuple(axis.with_zero(call.op == "zeros_like" and axis.tracked) for axis in data.axes))


@rule("log", "reciprocal", "rsqrt")
def breaks_at_zero(trace: Trace, call: Call) -> Value:
    """One operand, and f(0) is infinite: a removed channel must not come in as zeros."""
    data: Value = call["self"]
    for axis in data.axes:
        if axis.zero:
            trace.freeze(axis, f"{call.where} is not finite at zero")
    return data.with_zero(False)


@rule("clamp", "hardtanh", "clamp_min", "clamp_max")
def clamp(trace: Trace, call: Call) -> Value:
    data: Value = call["self"]
    bounds = [call.arguments.get(name) for name in ("min", "min_val", "max", "max_val")]
    if any(isinstance(bound, Value) for bound in bounds):
        return _broadcast(trace, call, call.values(), keeps=False)
    low = next((bound for bound in bounds[:2] if bound is not None), 0)
    high = next((bound for bound in bounds[2:] if bound is not None), 0)
    return data.with_zero(bool(low <= 0 <= high))


@rule("threshold")
def threshold(trace: Trace, call: Call) -> Value:
    data: Value = call["self"]
    return data.with_zero(call["value"] == 0 or call["threshold"] < 0)


@rule("pow")
def power(trace: Trace, call: Call) -> Value:
    base, exponent = call["self"], call["exponent"]
    if isinstance(base, Value) and not isinstance(exponent, Value) and exponent > 0:
        return base
    return loses_zero_between(trace, call)


@rule("div", "floor_divide", "remainder")
def divide(trace: Trace, call: Call) -> Value:
    data, divisor = call["self"], call["other"]
    if isinstance(divisor, Value):
        for axis in divisor.axes:
            if axis.zero:
                trace.freeze(axis, f"{call.where} divides by channels that are zero when removed")
    return _broadcast(trace, call, [data, divisor], keeps=True, multiplies=True)


@rule("mul")
def multiply(trace: Trace, call: Call) -> Value:
    """Zero where either side is."""
    return _broadcast(trace, call, [call["self"], call["other"]], keeps=True, multiplies=True)


@rule("add", "sub", "rsub", "maximum", "minimum", "fmax", "fmin")
def add(trace: Trace, call: Call) -> Value:
    """Zero where both sides are; a number that is not zero shifts every element."""
    operands = [call["self"], call["other"]]
    keeps = all(isinstance(operand, Value) or operand == 0 for operand in operands)
    return _broadcast(trace, call, operands, keeps=keeps)


@rule("addcmul", "addcdiv", "lerp")
def add_product(trace: Trace, call: Call) -> Value:
    """Zero where all sides are; a divisor must not be."""
    if call.op == "addcdiv":
        for axis in call["tensor2"].axes:
            if axis.zero:
                trace.freeze(axis, f"{call.where} divides by channels that are zero when removed")
    return _broadcast(trace, call, call.values(), keeps=call.op != "addcdiv")


@rule("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "atan2", "masked_fill")
def loses_zero_between(trace: Trace, call: Call) -> Value:
    """Elements by themselves, and nothing is known of zeros."""
    return _broadcast(trace, call, call.values(), keeps=False)


@rule("where")
def where(trace: Trace, call: Call) -> Value:
    """One branch or the other; the form without branches answers positions and cannot be followed."""
    return _broadcast(trace, call, [call["condition"], call["self"], call["other"]], keeps=False)


def _broadcast(trace: Trace, call: Call, operands: list[Any], *, keeps: bool, multiplies: bool = False) -> Value:
    """Axes aligned from the last one, as NumPy and PyTorch do.

    ``keeps`` says that zeros on all sides (with ``multiplies``: on any) give a zero.
    """
    values = [operand for operand in operands if isinstance(operand, Value)]
    shape = call.shapes[0]
    axes: list[Axis] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        meeting = [value.axes[-back] for value in values if len(value.axes) >= back]
        missing = len(meeting) < len(values)
        if size == 1:
            axis = meeting[0]
            for other in meeting[1:]:
                axis = trace.unify(axis, other)
            spread = 0
        else:
            for axis in meeting:
                if axis.size == 1:
                    trace.freeze(axis, f"{call.where} spreads one channel over many")
            full = [axis for axis in meeting if axis.size != 1]
            spread = len(meeting) - len(full)
            axis = full[0]
            for other in full[1:]:
                axis = trace.unify(axis, other)
            meeting = full
        zeros = [one.zero for one in meeting]
        zero = any(zeros) if multiplies else all(zeros) and not missing and not spread
        axes.append(axis.with_zero(keeps and zero and axis.tracked))
    return Value(tuple(axes))
