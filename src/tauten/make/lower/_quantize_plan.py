"""What a quantization plan means for each weight of a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
from onnx import GraphProto, TensorProto, numpy_helper
from torch import nn

from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.lower._graph import all_nodes, owners
from tauten.make.lower._grids import Decided
from tauten.make.lower._half import Half
from tauten.make.lower._quantize_weights import Rounded, Weight, decided_weight, round_weight, tensors_of
from tauten.make.lower._recurrent import fits
from tauten.make.model.model import LayerPrecision, QuantizationPlan

Way = Literal["static", "dynamic", "stored", "half", "float"]
"""``static`` and ``dynamic`` multiply in int8; ``stored`` is a weight in whole numbers before a product in float."""

_LEAST: Final = 256  # numbers; a smaller tensor that no product reads stays in float
_SEVEN_BITS: Final = 64
_HALVES: Final = ("float16", "bfloat16")


@dataclass(frozen=True)
class Choice:
    """How one weight is treated, and where it is not multiplied in int8, ``why``."""

    weight: Weight
    precision: LayerPrecision
    way: Way
    why: str = ""
    rounded: Rounded | None = None


def choose(
    graph: GraphProto,
    weights: Collection[Weight],
    module: nn.Module,
    plan: QuantizationPlan,
    decided: Mapping[str, Decided],
    *,
    untouched: Collection[str] = (),
    reduced: bool = False,
) -> list[Choice]:
    """A choice for each weight: what a layer decided holds first, then what the plan says of its module, then the plan.

    Nodes of the names ``untouched`` shall compute in float. ``reduced`` uses 7 of 8 bits where a layer decided nothing.
    """
    tensors = tensors_of(graph)
    chosen = []
    for weight in weights:
        array = numpy_helper.to_array(tensors[weight.name])
        fixed = decided.get(weight.name)
        rounded, anew = None, ""
        if fixed is not None:
            layer = dict(module.named_modules()).get(weight.name.removesuffix(".weight"))
            codes = layer.codes if isinstance(layer, QuantizedLayer) else None
            rounded = decided_weight(array, weight, fixed.grid, codes)
            anew = "" if rounded is not None else "it is not as the layer decided it, and rounded anew"
        precision = _precision(weight.module, plan)
        if rounded is not None:
            precision = "int4" if rounded.bits <= 4 else "int8"
        if any(node.name in untouched for node in weight.readers):
            chosen.append(Choice(weight, "float32", "float", "it finds how sure an early exit is"))
            continue
        if precision == "float32":
            why = "the plan leaves it in float32" if plan.layers else "the plan says float32"
            chosen.append(Choice(weight, precision, "float", why))
            continue
        if precision in _HALVES:
            chosen.append(Choice(weight, precision, "half", f"the plan says {precision}"))
            continue
        asked = rounded is not None or (weight.module and _said(weight.module, plan) is not None)
        way, why = _way(weight, plan, rounded, bool(asked))
        if way == "float":
            chosen.append(Choice(weight, "float32", way, why))
            continue
        if rounded is None:
            bits = 4 if precision == "int4" else 8
            grouped = plan.granularity == "group" and weight.kind == "matrix" and way == "stored"
            small = reduced and way != "stored"
            rounded = round_weight(array, weight, bits, plan.granularity, plan.group if grouped else 0, small)
        elif reduced and way != "stored" and int(np.abs(rounded.codes.astype(np.int16)).max(initial=0)) > _SEVEN_BITS:
            # Sums that saturate would be far further from what was decided than half the steps are.
            granularity = "tensor" if rounded.axis is None else "channel"
            rounded = round_weight(rounded.weight, weight, 8, granularity, reduced=True)
            why = "its decided 8 bits would saturate this processor's sums: it has 7"
        chosen.append(Choice(weight, precision, way, "; ".join(filter(None, (why, anew))), rounded))
    return _whole_recurrent(chosen)


def halves(
    graph: GraphProto, choices: Collection[Choice], plan: QuantizationPlan, module: nn.Module
) -> dict[str, Half]:
    """The tensors to hold in half: the weights chosen so, and where the whole plan is, all others of two dimensions."""
    found: dict[str, Half] = {
        choice.weight.name: cast(Half, choice.precision) for choice in choices if choice.way == "half"
    }
    if plan.bits != 16:
        return found
    known = {choice.weight.name for choice in choices}
    inner = {name for node in all_nodes(graph) for name in node.input}
    for node in graph.node:
        inner -= set(node.input)
    outer = inner | {value.name for value in graph.output}
    paths = [name for name, _ in module.named_modules()]
    for tensor in graph.initializer:
        size = numpy_helper.to_array(tensor).size
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or size < _LEAST:
            continue
        precision = _precision(owners({tensor.name: None}, paths).get(tensor.name, ""), plan)
        if tensor.name not in known | outer and precision in _HALVES:
            found[tensor.name] = precision
    return found


def _said(module: str, plan: QuantizationPlan) -> LayerPrecision | None:
    """What the plan says of a module or the nearest one around it."""
    path = module
    while path:
        if path in plan.layers:
            return plan.layers[path]
        path = path.rpartition(".")[0]
    return plan.layers.get("")


def _precision(module: str, plan: QuantizationPlan) -> LayerPrecision:
    said = _said(module, plan)
    if said is not None:
        return said
    by_bits: dict[int, Any] = {16: plan.half, 8: "int8", 4: "int4"}
    return cast(LayerPrecision, by_bits[plan.bits])


def _way(weight: Weight, plan: QuantizationPlan, rounded: Rounded | None, asked: bool) -> tuple[Way, str]:
    """How a weight in whole numbers is computed with, and why not in int8."""
    if plan.method == "weight_only":
        return "stored", "weight-only: activations stay in float"
    if weight.kind == "table":
        return "stored", "rows are looked up, nothing is multiplied"
    if weight.kind == "recurrent":
        if all(node.op_type == "LSTM" for node in weight.readers):
            return "dynamic", ""
        return "stored", "ONNX Runtime has no 8-bit GRU: its weights are small in the file and float32 while it runs"
    if weight.kind == "transposed":
        if plan.method == "dynamic" and not asked:
            return "float", "dynamic int8 is for linear layers; ConvTranspose is faster in float"
        return "stored", (
            "ONNX Runtime has no 8-bit kernel for ConvTranspose on a CPU: its weight is small in the file and float32 "
            "while it runs"
        )
    if rounded is not None and rounded.group:
        return "stored", "8-bit products have one scale a channel, this weight has one a group"
    if weight.kind == "matrix" and not weight.plain:
        return "stored", "its Gemm scales or transposes what it reads"
    if rounded is not None and rounded.axis not in (None, weight.axis):
        return "stored", "its scales do not lie along the output channels"
    if plan.method == "dynamic":
        if weight.kind == "matrix":
            return "dynamic", ""
        if asked:
            return "stored", "dynamic int8 is for linear layers; Conv is faster in float"
        return "float", "dynamic int8 is for linear layers; Conv is faster in float"
    if rounded is not None and weight.kind == "conv" and not rounded.uniform:
        return "stored", "8-bit convolutions have one zero point for all channels, this weight has several"
    return "static", ""


def _whole_recurrent(choices: list[Choice]) -> list[Choice]:
    """An LSTM multiplies in int8 with both of its weights or with none."""
    together = {
        choice.weight.name: choice.rounded
        for choice in choices
        if choice.weight.kind == "recurrent" and choice.way == "dynamic" and choice.rounded is not None
    }
    made = []
    for choice in choices:
        if choice.weight.name in together and not all(fits(node, together) for node in choice.weight.readers):
            why = "ONNX Runtime's 8-bit LSTM wants both weights symmetric, with a scale a row, and time first"
            choice = Choice(choice.weight, choice.precision, "stored", why, choice.rounded)
        made.append(choice)
    return made
