"""A static plan carried out by NNCF: OpenVINO's own quantizer, which chooses itself what becomes int8."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from tauten.errors import ExtraMissing, LoweringError
from tauten.make.lower._quantize import saturating_products
from tauten.make.lower._samples import rows
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.run.engines._telemetry import no_telemetry

if TYPE_CHECKING:
    import openvino as ov

_NORMALIZES: Final = ("MVN", "RMSNorm")
_BETWEEN: Final = ("Convert", "FakeQuantize", "Multiply", "Reshape", "Squeeze", "Subtract", "Transpose", "Unsqueeze")
_FLOAT: Final = ("float32", "float16", "bfloat16")


def quantize_by_nncf(
    graph: ov.Model, model: Model, plan: QuantizationPlan, context: Context
) -> tuple[ov.Model, dict[str, Any]]:
    """The graph with its products in int8, and notes.

    With ``minmax`` calibration, ranges reach to the smallest and the largest number that was seen; otherwise NNCF finds
    them by its own rule, the ends averaged over samples. It corrects biases. Raises
    ``LoweringError`` where the plan asks for what NNCF does not do or where it fails, ``ExtraMissing`` where it is not
    installed.
    """
    if plan.bits != 8 or "int4" in plan.layers.values():
        raise LoweringError("OpenVINO: NNCF makes static graphs of 8 bits alone; choose another placement")
    nncf = _nncf()
    saturates, why = saturating_products()
    in_float = [path for path, precision in plan.layers.items() if precision in _FLOAT]
    ignored = sorted(readers(graph, in_float))
    normalizes = any(operation.get_type_name() in _NORMALIZES for operation in graph.get_ops())
    weights = _weights(graph)
    samples = list(rows(context.task.data("calibrate"), model.inputs, batch=1, limit=plan.samples))
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if saturates else nncf.OverflowFix.DISABLE,
        **({"activations_range_estimator_params": _seen()} if plan.calibration == "minmax" else {}),
    )
    try:
        with _silent():
            made = nncf.quantize(
                graph,
                nncf.Dataset(samples),
                # Signed activations for products of negative and positive numbers cost nothing in OpenVINO.
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER if normalizes else None,
                ignored_scope=nncf.IgnoredScope(names=ignored),
                advanced_parameters=advanced,
            )
    except Exception as fault:  # NNCF raises its own errors, RuntimeError, ValueError and others
        raise LoweringError(f"NNCF: {type(fault).__name__}: {str(fault)[:500]}") from fault
    _name_weights(made, weights)
    notes = {
        "plan": plan.to_json(),
        "quantizer": f"nncf {nncf.__version__}",
        "calibration_samples": len(samples),
        "reduce_range": {"value": saturates, "why": why},
        "in_float": dict.fromkeys(ignored, "the plan leaves it in float"),
    }
    return made, notes


def _seen() -> Any:
    """Ranges from the smallest to the largest number of all samples."""
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return RangeEstimatorParametersSet.MINMAX


def readers(graph: ov.Model, modules: Collection[str]) -> set[str]:
    """Names of the operations that multiply by, or look up in, a weight of one of ``modules``."""
    return {
        operation
        for (operation, _), weight in _weights(graph).items()
        if any(weight.startswith(f"{path}.") for path in modules)
    }


def _weights(graph: ov.Model) -> dict[tuple[str, int], str]:
    """By an operation's name and the number of its input, the name of the weight that it reads there."""
    found = {}
    for operation in graph.get_ops():
        for place in range(operation.get_input_size()):
            constant = _constant(operation, place)
            if constant is not None and len(constant.get_output_shape(0)) > 1:
                found[operation.get_friendly_name(), place] = constant.get_friendly_name()
    return found


def _name_weights(graph: ov.Model, weights: Mapping[tuple[str, int], str]) -> None:
    """Name constants after the weights that NNCF made them of, as other quantizers do, in place."""
    for operation in graph.get_ops():
        for place in range(operation.get_input_size()):
            weight = weights.get((operation.get_friendly_name(), place))
            constant = None if weight is None else _constant(operation, place)
            if constant is not None and constant.get_element_type().to_string() in ("i8", "u8"):
                constant.set_friendly_name(f"{weight}_quantized")
                _name_scale(constant, f"{weight}_scale")


def _name_scale(codes: ov.Node, name: str) -> None:
    for reader in codes.output(0).get_target_inputs():
        for scaled in reader.get_node().output(0).get_target_inputs():
            scale = scaled.get_node().input_value(1).get_node()
            if scaled.get_node().get_type_name() == "Multiply" and scale.get_type_name() == "Constant":
                scale.set_friendly_name(name)


def _constant(operation: ov.Node, place: int) -> ov.Node | None:
    """The constant that an operation reads, directly or after conversions, scales and changes of its shape."""
    if operation.get_type_name() in _BETWEEN:
        return None
    node = operation.input_value(place).get_node()
    while node.get_type_name() in _BETWEEN:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _nncf() -> Any:
    """NNCF, imported without its telemetry and its greeting."""
    said = io.StringIO()
    try:
        with no_telemetry(), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of the frameworks that it finds
            import nncf
    except ModuleNotFoundError as fault:
        raise ExtraMissing(f"placement nncf ({fault.name} is not installed)", "openvino") from fault
    for handler in logging.getLogger("nncf").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is said:
            handler.setStream(sys.stdout)
    return nncf


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without NNCF's progress bars and messages; its faults are exceptions and stay."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
