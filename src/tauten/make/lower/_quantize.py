"""Carries out a quantization plan: a float ONNX graph to int8, the way ONNX Runtime's kernels want it."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays
from tauten.errors import LoweringError
from tauten.make.lower._compare import open_session, run_session
from tauten.make.lower._embedding import quantize_embeddings
from tauten.make.lower._grids import Decided
from tauten.make.lower._int8 import computed_products, float_matrix_outputs, keep_names, report
from tauten.make.lower._ranges import find_ranges
from tauten.make.lower._samples import rows
from tauten.make.lower._stages import choosable, count_exits, decisions
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context

STATIC: Final = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Split", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad",
    "Resize",
)  # fmt: skip
"""What becomes int8 with fixed ranges: what ONNX Runtime has 8-bit kernels for on a CPU, less softmax, whose 256 steps
cost more than they save, and normalization, which would only gain rounding around a float kernel."""

PRODUCTS: Final = ("Conv", "MatMul", "Gemm")
"""What becomes int8 with fixed ranges beside layer normalization: products with a weight alone, with float results. The
sums between normalizations hold a few values far out of line (Dettmers et al., 2022), which one scale cannot span."""

DYNAMIC: Final = ("MatMul",)
"""What becomes int8 with ranges found at each call (Gemm is made a MatMul first). Convolutions are not: their dynamic
kernel has one scale for all channels and is slower than the float one."""

Placement = Literal["auto", "everything", "products"]
"""Which values of a static plan become int8: ``everything`` that has an 8-bit kernel, or alone what ``products`` with a
weight read. ``auto`` is products beside layer normalization, and everything elsewhere."""

_BATCH: Final = 32  # calibration samples a call: enough for speed, few enough for memory
_MEASURED: Final = 64  # samples that the signal-to-noise ratio is taken on
_QUIETEST: Final = 200.0  # dB; stands for outputs that are the same to the bit
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

    ``decided`` is what layers have fixed already, by the names of their weights. ``graph`` is left as it was.
    Raises ``LoweringError`` where the quantizer fails or the answers are lost in noise.
    """
    saturates, why = saturating_products()
    exits = count_exits(model.module)
    batches = list(rows(context.task.data("calibrate"), model.inputs, batch=_BATCH, limit=plan.samples))
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            path = Path(folder) / "int8.onnx"
            if plan.method == "static":
                _static(graph, path, plan, batches, saturates, decisions(graph.graph, exits), placement)
            else:
                _dynamic(graph, path, plan, saturates)
            made = onnx.load(path)
    except Exception as fault:  # ONNX Runtime's quantizer raises ValueError, RuntimeError, AssertionError and others
        raise LoweringError(f"ONNX Runtime's quantizer: {type(fault).__name__}: {fault}") from fault
    notes: dict[str, Any] = {
        "plan": plan.to_json(),
        "reduce_range": {"value": saturates, "why": why},
    }
    if plan.method == "static":
        notes["calibration_samples"] = sum(count_rows(model.inputs, batch) for batch in batches)
        float_matrix_outputs(made.graph, choosable(made.graph, exits))
    notes["embeddings"] = quantize_embeddings(made.graph)
    keep_names(made.graph)
    notes |= report(made.graph, plan)
    notes["sqnr_db"] = _noise(graph, made, model, context)
    return Quantized(made, notes)


def saturating_products() -> tuple[bool, str]:
    """Whether 8-bit products of this processor can overflow, so that weights shall use 7 bits; and why.

    x86 without VNNI adds pairs of unsigned times signed products in 16 bits, which saturates (``vpmaddubsw``); VNNI and
    ARM's dot products add in 32. A processor that cannot be asked counts as one that saturates.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False, f"{platform.machine()} adds 8-bit products in 32 bits"
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text("ascii", "replace")))
    except OSError:
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


def _static(
    graph: ModelProto,
    path: Path,
    plan: QuantizationPlan,
    batches: list[Arrays],
    saturates: bool,
    in_float: list[str],
    placement: Placement,
) -> None:
    options: dict[str, Any] = {
        "ActivationSymmetric": False,
        "WeightSymmetric": True,
    }
    kinds, excluded = list(STATIC), list(in_float)
    if placement == "auto" and any(node.op_type in _NORMALIZES for node in graph.graph.node):
        placement = "products"
    if placement == "products":
        kinds = list(PRODUCTS)
        options["OpTypesToExcludeOutputQuantization"] = kinds
        excluded += computed_products(graph.graph)
    prepared = _prepared(graph)
    if plan.calibration != "minmax":
        # The runtime's own histograms grow with each value that lies far out, until they fill the memory.
        ranges = find_ranges(prepared, kinds, batches, plan.calibration)
        options["TensorQuantOverrides"] = {
            name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()
        }
    quantize_static(
        prepared,
        path,
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=kinds,
        nodes_to_exclude=excluded,
        per_channel=plan.per_channel,
        reduce_range=saturates,
        activation_type=_TYPES[plan.activations],
        weight_type=_TYPES[plan.weights],
        extra_options=options,
    )


def _dynamic(graph: ModelProto, path: Path, plan: QuantizationPlan, saturates: bool) -> None:
    quantize_dynamic(
        _prepared(graph),
        path,
        op_types_to_quantize=list(DYNAMIC),
        per_channel=plan.per_channel,
        reduce_range=saturates,
        weight_type=_TYPES[plan.weights],
        extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
    )


def _prepared(graph: ModelProto) -> ModelProto:
    """A copy with shapes inferred, and marked so: the exporter has folded constants and batch norms already."""
    copy = onnx.shape_inference.infer_shapes(graph)
    copy.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return copy


def _noise(reference: ModelProto, quantized: ModelProto, model: Model, context: Context) -> dict[str, float]:
    """Signal to quantization noise in dB, an output: ten times the log of the ratio of their powers."""
    names = [value.name for value in reference.graph.output]
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    before, after = open_session(reference), open_session(quantized)
    for batch in rows(context.task.data("calibrate"), model.inputs, batch=_BATCH, limit=_MEASURED):
        expected, came = run_session(before, names, batch), run_session(after, names, batch)
        for name in names:
            wanted = expected[name].astype(np.float64)
            kept = np.isfinite(wanted)
            signal[name] += float(np.square(wanted[kept]).sum())
            noise[name] += float(np.square(wanted[kept] - came[name].astype(np.float64)[kept]).sum())
    ratios = {name: _decibel(signal[name], noise[name]) for name in names}
    lost = {name: ratio for name, ratio in ratios.items() if not ratio > 0}
    if lost:
        raise LoweringError(f"int8: the answers are lost in noise (signal to noise in dB: {lost}); leave it in float")
    return ratios


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return _QUIETEST
    if signal == 0 or not np.isfinite(noise):
        return float("-inf")
    return round(min(10 * float(np.log10(signal / noise)), _QUIETEST), 2)


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
