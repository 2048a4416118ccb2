"""A model to OpenVINO's own graph, by way of ONNX."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from onnx import ModelProto

from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import ArtifactError, LoweringError
from tauten.make.layers.early_exit import EarlyExits
from tauten.make.lower._float import float_graph
from tauten.make.lower._graph import owners
from tauten.make.lower._grids import materialize
from tauten.make.lower._openvino_check import Runner, check_answers, measure_noise
from tauten.make.lower._openvino_ir import write_graph
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.run.engines.openvino import Settings, core, has_bfloat16, one_line

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["lower"]

_GRAPH_NAME: Final = "model.xml.gz"


class OpenVino(Lowering):
    """OpenVINO's graph, compared with the module.

    ``precision`` is what is computed in: ``auto`` is float32 for a model in float, and for a quantized one what
    OpenVINO would choose (bfloat16 where the processor has it). With ``fixed`` shapes the engine also compiles
    the graph for batches of 1 and of the target's size, which is faster there, where no other dimension is open.
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "precision": ("auto", "f32", "bf16"),
        "shapes": ("open", "fixed"),
    }

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        chosen = self.chosen(options)
        plan = model.quantization
        if isinstance(model.module, EarlyExits):
            raise LoweringError("OpenVINO: early exits need a graph for each stage, which only ONNX has here")
        if plan is not None:
            raise LoweringError("OpenVINO: runs in float; lower a model with a quantization plan to onnx")
        made = float_graph(model, context)
        settings = Settings(
            precision=_precision(chosen["precision"], plan),
            batches=_batches(model.inputs, target) if chosen["shapes"] == "fixed" else (),
        )
        notes: dict[str, Any] = {}
        try:
            context.progress("openvino", 0.6)
            written = write_graph(_read(made.model), [spec.name for spec in (*model.inputs, *made.outputs)])
            plain = Runner(written, model.inputs, made.outputs, Settings())
            whole = model.but(module=materialize(model.module)[0])
            notes["largest_relative_difference"] = check_answers(plain, whole, made.sample)
            if settings.precision != "f32":
                low = Runner(written, model.inputs, made.outputs, settings)
                notes["sqnr_db"] = measure_noise(plain, low, model, context)
        except (RuntimeError, ArtifactError) as fault:
            raise LoweringError(f"OpenVINO: {one_line(fault)}") from fault
        return Lowered(
            graph=written.graph,
            graph_name=_GRAPH_NAME,
            weights=written.weights,
            inputs=model.inputs,
            outputs=made.outputs,
            layers=owners(written.weights, [name for name, _ in model.module.named_modules()]),
            four_bit=written.four_bit,
            settings=settings.to_json(),
            notes=notes,
        )


lower = OpenVino()


def _read(graph: ModelProto) -> ov.Model:
    return core().read_model(io.BytesIO(graph.SerializeToString()))


def _precision(asked: str, plan: QuantizationPlan | None) -> str:
    if asked != "auto":
        return asked
    return "bf16" if plan is not None and (plan.bits == 16 or has_bfloat16()) else "f32"


def _batches(specs: Sequence[TensorSpec], target: Target) -> tuple[int, ...]:
    """The batch sizes to compile for: none where there is no batch, or another dimension is open too."""
    named = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    return tuple(sorted({1, target.batch})) if named == {"batch"} else ()
