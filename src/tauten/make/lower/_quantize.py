"""Carries out a quantization plan: a float ONNX graph to int8, the way ONNX Runtime's kernels want it."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tauten.core.environment import processor_flags
from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays
from tauten.errors import LoweringError
from tauten.make.lower._grids import Decided
from tauten.make.lower._half import store_halves
from tauten.make.lower._int8 import float_matrix_outputs, keep_names, left_in_float, report, untreated
from tauten.make.lower._noise import noise
from tauten.make.lower._quantize_plan import Choice, choose, halves
from tauten.make.lower._quantize_products import as_matrix_products, dynamic_products, static_products
from tauten.make.lower._quantize_weights import Rounded, find_weights, share, tensors_of, untie
from tauten.make.lower._ranges import find_ranges, float_values
from tauten.make.lower._recurrent import dynamic_lstms, name_recurrent
from tauten.make.lower._remembered import remembered
from tauten.make.lower._samples import rows
from tauten.make.lower._stages import choosable, count_exits, decisions
from tauten.make.lower._weight_only import store_weights
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.make.model.ranges import Range

STATIC: Final = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Split", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad",
    "Resize",
)  # fmt: skip
"""What becomes int8 with fixed ranges: what ONNX Runtime has 8-bit kernels for on a CPU, less softmax, whose 256 steps
cost more than they save, and normalization, which would only gain rounding around a float kernel."""

Placement = Literal["auto", "everything", "products"]
"""Which values of a static plan become int8: ``everything`` that has an 8-bit kernel, or alone what ``products`` with a
weight read. ``auto`` is products beside layer normalization, and everything elsewhere."""

_BATCH: Final = 32  # calibration samples a call: enough for speed, few enough for memory
_MEASURED: Final = 64  # samples that the signal-to-noise ratio is taken on
_SHARES_SCALE: Final = (
    "AveragePool", "Flatten", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What has its input's scale for its result, whatever is said of the result."""

_NORMALIZES: Final = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
_TYPES: Final = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


@dataclass(frozen=True)
class Quantized:
    """A graph whose plan is carried out.

    ``notes`` say what runs in which precision, what stayed float and why, and the signal-to-noise ratio. ``four_bit``
    names int8 weights whose values all lie in -8 to 7.
    """

    graph: ModelProto
    notes: Mapping[str, Any]
    four_bit: frozenset[str] = frozenset()


def quantize(
    graph: ModelProto,
    model: Model,
    plan: QuantizationPlan,
    context: Context,
    decided: Mapping[str, Decided] = MappingProxyType({}),
    placement: Placement = "auto",
) -> Quantized:
    """The graph in the plan's precision.

    ``decided`` is what layers have fixed already, by the names of their weights: their codes are in the graph as they
    are. ``placement`` is for static plans. ``graph`` is left as it was.
    Raises ``LoweringError`` where the quantizer fails or the answers are lost in noise.
    """
    saturates, why = saturating_products()
    exits = count_exits(model.module)
    samples = _samples(model, context, max(plan.samples, _MEASURED))
    calibration = list(rows([(batch, None) for batch in samples], model.inputs, batch=_BATCH, limit=plan.samples))
    work = _prepared(graph)
    name_recurrent(work.graph, model.module.state_dict())
    untie(work.graph)
    weights = find_weights(work.graph, [name for name, _ in model.module.named_modules()])
    others = untreated(work.graph, weights)
    in_float = decisions(work.graph, exits)
    choices = choose(work.graph, weights, model.module, plan, decided, untouched=in_float, reduced=saturates)
    halved = halves(work.graph, choices, plan, model.module)
    notes: dict[str, Any] = {"plan": plan.to_json(), "reduce_range": {"value": saturates, "why": why}}
    reasons: dict[str, str] = {}
    if any(choice.way == "static" for choice in choices):
        notes["calibration_samples"] = sum(count_rows(model.inputs, batch) for batch in calibration)
        fixed = _decided_ranges(choices, decided)
        if placement == "auto":
            normalizes = any(node.op_type in _NORMALIZES for node in work.graph.node)
            placement, pairs = ("products", True) if normalizes else ("everything", False)
        else:
            pairs = False
        notes["placement"] = placement
        ranges = _Ranges(work, model, context, plan, calibration)
        if placement == "products":
            _products(work, plan, choices, ranges, fixed, pairs=pairs)
        else:
            work = _everything(work, plan, choices, ranges, fixed, in_float, saturates)
            float_matrix_outputs(work.graph, choosable(work.graph, exits))
        left = left_in_float(work.graph, choices)
        reasons |= dict.fromkeys(left, "its input was left in float by ONNX Runtime's quantizer")
    ways = _in_whole_numbers(work, choices)
    reasons |= store_halves(work, halved)
    share(work.graph)
    notes |= report(work.graph, choices, ways, reasons, others)
    unknown = sorted(decided.keys() - {weight.name for weight in weights})
    if unknown:
        notes["decided_in_vain"] = dict.fromkeys(unknown, "the graph holds no weight of this name: unused, or tied")
    if plan.granularity == "group" and plan.method != "weight_only":
        notes["groups"] = "8-bit products have one scale a channel: groups are of decided weights, and of weights alone"
    fours = {choice.weight.name for choice in choices if choice.rounded is not None and choice.rounded.bits <= 4}
    keep_names(work.graph)
    notes |= noise(graph, work, model, context, samples, simulated=bool(decided))
    return Quantized(work, notes, _nibbles(work, fours))


def saturating_products() -> tuple[bool, str]:
    """Whether 8-bit products of this processor can overflow, so that weights shall use 7 bits; and why.

    x86 without VNNI adds pairs of unsigned times signed products in 16 bits, which saturates (``vpmaddubsw``); VNNI and
    ARM's dot products add in 32. A processor that cannot be asked counts as one that saturates.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False, f"{platform.machine()} adds 8-bit products in 32 bits"
    flags = processor_flags()
    if not flags:
        return True, "whether this x86 processor has VNNI is not known: weights use 7 bits, which is safe without it"
    if flags & {"avx512_vnni", "avx_vnni"}:
        return False, "this processor has VNNI, which adds 8-bit products in 32 bits"
    return True, "this x86 processor has no VNNI: its 16-bit sums would saturate with 8-bit weights"


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out calibration batches, one by one."""

    def __init__(self, batches: list[Arrays]) -> None:
        self._left = iter(batches)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


def _samples(model: Model, context: Context, count: int) -> list[Arrays]:
    """Calibration data, read once and the same for a seed even where a loader shuffles."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            np.random.seed(context.seed % 2**32)
            return list(rows(context.task.data("calibrate"), model.inputs, batch=_BATCH, limit=count))
    finally:
        np.random.set_state(state)


def _rounded(choices: Collection[Choice], way: str, kind: str = "") -> dict[str, Rounded]:
    return {
        choice.weight.name: choice.rounded
        for choice in choices
        if choice.way == way and choice.rounded is not None and kind in ("", choice.weight.kind)
    }


def _in_whole_numbers(work: ModelProto, choices: Collection[Choice]) -> dict[str, str]:
    """Carry out what is dynamic and what is stored, in place; by a stored weight's name, how it is computed with."""
    dynamic_lstms(work, _rounded(choices, "dynamic", "recurrent"))
    moved, stored = _rounded(choices, "dynamic", "matrix"), _rounded(choices, "stored")
    plain = [choice.weight.name for choice in choices if choice.weight.kind == "matrix" and choice.weight.plain]
    turned = as_matrix_products(work.graph, [name for name in plain if name in moved or name in stored])
    moved |= {name: moved[name].transposed() for name in turned & moved.keys()}
    stored |= {name: stored[name].transposed() for name in turned & stored.keys()}
    dynamic_products(work.graph, moved)
    return store_weights(work, stored)


def _decided_ranges(choices: Collection[Choice], decided: Mapping[str, Decided]) -> dict[str, Range]:
    """By a value, the range that the layers which read it have decided: the widest, where they differ."""
    found: dict[str, Range] = {}
    for choice in choices:
        fixed = decided.get(choice.weight.name)
        if choice.way != "static" or fixed is None or fixed.input_range is None:
            continue
        for node in choice.weight.readers:
            low, high = found.get(node.input[0], (0.0, 0.0))
            found[node.input[0]] = (min(low, fixed.input_range[0]), max(high, fixed.input_range[1]))
    return found


@dataclass(frozen=True)
class _Ranges:
    """Ranges of values of a float graph on calibration data, each found once for a model."""

    graph: ModelProto
    model: Model
    context: Context
    plan: QuantizationPlan
    batches: Sequence[Arrays]

    def of(self, names: Collection[str]) -> dict[str, Range]:
        """The range of each that has one."""
        # A table that fills as placements ask for more values.
        what = ("ranges", self.plan.calibration, self.plan.samples)
        known: dict[str, Range | None] = remembered(self.model, self.context, what, dict)
        missing = sorted(set(names) - known.keys())
        found = find_ranges(self.graph, missing, self.batches, self.plan.calibration)
        known.update({name: found.get(name) for name in missing})
        return {name: ends for name in sorted(names) if (ends := known[name]) is not None}


def _products(
    work: ModelProto,
    plan: QuantizationPlan,
    choices: Collection[Choice],
    ranges: _Ranges,
    fixed: Mapping[str, Range],
    *,
    pairs: bool,
) -> None:
    rounded = _rounded(choices, "static")
    nodes = [node for choice in choices if choice.way == "static" for node in choice.weight.readers]
    values = {node.input[0] for node in nodes}
    if pairs:
        made = {node.output[0] for node in nodes if node.op_type == "Conv"}
        values |= made | {node.output[0] for node in work.graph.node if made & set(node.input)}
    known = set(float_values(work, sorted({node.op_type for node in work.graph.node})))
    found = ranges.of((values - fixed.keys()) & known)
    static_products(work.graph, rounded, {**found, **fixed}, plan.activations, pairs=pairs)


def _everything(
    work: ModelProto,
    plan: QuantizationPlan,
    choices: Collection[Choice],
    known: _Ranges,
    fixed: Mapping[str, Range],
    in_float: Collection[str],
    saturates: bool,
) -> ModelProto:
    """What ONNX Runtime's own quantizer makes of the graph, with the scales that were found here."""
    rounded = _rounded(choices, "static")
    excluded = {node.name for choice in choices if choice.way != "static" for node in choice.weight.readers}
    # The runtime's own histograms grow with each value that lies far out, until they fill the memory.
    ranges = known.of(float_values(work, STATIC))
    producers = {name: node for node in work.graph.node for name in node.output}
    for name, ends in fixed.items():
        source = name
        while source in producers and producers[source].op_type in _SHARES_SCALE:
            source = producers[source].input[0]
        for value in (name, source):
            low, high = ranges.get(value, ends) if value in fixed and value != name else ends
            ranges[value] = (min(low, ends[0]), max(high, ends[1]))
    overrides: dict[str, Any] = {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()
    }
    overrides |= {name: _override(weight) for name, weight in rounded.items()}
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            path = Path(folder) / "int8.onnx"
            quantize_static(
                work,
                path,
                _Reader(list(known.batches[:1])),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(STATIC),
                nodes_to_exclude=sorted({*in_float, *excluded}),
                per_channel=plan.per_channel,
                reduce_range=saturates,
                activation_type=_TYPES[plan.activations],
                weight_type=_TYPES[plan.weights],
                extra_options={
                    "ActivationSymmetric": False, "WeightSymmetric": True, "TensorQuantOverrides": overrides,
                },
            )  # fmt: skip
            made = onnx.load(path)
    except Exception as fault:  # ONNX Runtime's quantizer raises ValueError, RuntimeError, AssertionError and others
        raise LoweringError(f"ONNX Runtime's quantizer: {type(fault).__name__}: {fault}") from fault
    tensors = tensors_of(made.graph)
    for name, weight in rounded.items():
        codes, scale = tensors.get(f"{name}_quantized"), tensors.get(f"{name}_scale")
        # It has rounded anew, past the ends of a narrower grid. A scale that it widened lest a bias overflow goes with
        # its own codes.
        if codes is None or scale is None or not np.array_equal(numpy_helper.to_array(scale), weight.scale):
            continue
        codes.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight.codes), codes.name))
    return made


def _override(rounded: Rounded) -> list[dict[str, Any]]:
    """A weight's grid as the quantizer wants it told: an entry a channel."""
    zero = np.zeros(rounded.scale.shape, np.int8) if rounded.zero_point is None else rounded.zero_point
    along = {} if rounded.axis is None else {"axis": rounded.axis}
    return [
        {"quant_type": QuantType.QInt8, "scale": one, "zero_point": other, **along}
        for one, other in zip(rounded.scale.reshape(-1), zero.reshape(-1), strict=True)
    ]


def _nibbles(work: ModelProto, weights: Collection[str]) -> frozenset[str]:
    """The int8 tensors of the graph that hold 4-bit weights."""
    names = {name for weight in weights for name in (weight, f"{weight}_quantized")}
    kept = (tensor for tensor in work.graph.initializer if tensor.data_type == TensorProto.INT8)
    return frozenset(tensor.name for tensor in kept if tensor.name in names)


def _prepared(graph: ModelProto) -> ModelProto:
    """A copy with shapes inferred, and marked so: the exporter has folded constants and batch norms already."""
    copy = onnx.shape_inference.infer_shapes(graph)
    copy.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return copy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's prints and notices; its faults are exceptions and stay."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    # logging.warning() gives the root logger a handler where it has none, for good: have one while this runs.
    root.addHandler(logging.NullHandler())
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
