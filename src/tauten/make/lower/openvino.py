"""A model to OpenVINO's own graph, by way of ONNX; in float, or in the precision of the model's quantization plan."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from onnx import ModelProto
from torch import nn

from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import ArtifactError, LoweringError
from tauten.make.layers.early_exit import EarlyExits
from tauten.make.lower._float import FloatGraph, float_graph
from tauten.make.lower._graph import clean, owners
from tauten.make.lower._grids import materialize
from tauten.make.lower._openvino_check import Runner, check_answers, measure_noise
from tauten.make.lower._openvino_ir import write_graph
from tauten.make.lower._openvino_nncf import quantize_by_nncf
from tauten.make.lower._openvino_weights import Stored
from tauten.make.lower._quantize import Placement, quantize
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.run.engines.openvino import Settings, core, has_bfloat16, one_line

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["lower"]

_GRAPH_NAME: Final = "model.xml.gz"


class OpenVino(Lowering):
    """OpenVINO's graph: the float one is compared with the module before anything is quantized.

    ``placement`` says what a static plan makes int8: ``products`` or ``everything`` as Tauten places it
    (``_quantize.Placement``), or what NNCF chooses (``nncf``). ``precision`` is what the rest computes in: ``auto`` is
    float32 for a model in float, and for a quantized one what OpenVINO would choose (bfloat16 where the processor has
    it). With ``fixed`` shapes the engine also compiles the graph for batches of 1 and of the target's size, which is
    faster there, where no other dimension is open.
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "placement": ("auto", "products", "everything", "nncf"),
        "precision": ("auto", "f32", "bf16"),
        "shapes": ("open", "fixed"),
    }

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        chosen = self.chosen(options)
        plan, placement = model.quantization, chosen["placement"]
        _check(model, placement)
        made = float_graph(model, context)
        settings = Settings(
            precision=_precision(chosen["precision"], plan),
            batches=_batches(model.inputs, target) if chosen["shapes"] == "fixed" else (),
            rounds_inputs=plan is not None and plan.method == "dynamic",
            padding=made.padding,
        )
        borders = [spec.name for spec in (*model.inputs, *made.outputs)]
        notes: dict[str, Any] = {**made.notes()}
        try:
            context.progress("openvino", 0.5)
            written = write_graph(_read(made.model), borders)
            plain = Runner(written, model.inputs, made.outputs, Settings())
            whole = model.but(module=materialize(model.module)[0])
            notes["largest_relative_difference"] = check_answers(plain, whole, made.sample)
            if plan is not None:
                context.progress("quantize", 0.6)
            placements = _placements(placement, plan)
            for where in placements if plan is not None or settings.precision != "f32" else ():
                if plan is not None:
                    low = _quantized(model, plan, context, made, where)
                    written, notes["quantization"] = write_graph(low.graph, borders, low.four_bit), dict(low.notes)
                try:
                    runner = Runner(written, model.inputs, made.outputs, settings)
                    ratios = measure_noise(plain, runner, model, context)
                except (LoweringError, RuntimeError) as fault:
                    if where == placements[-1]:
                        raise
                    notes[f"placement_{where}"] = one_line(fault)
                    continue
                notes.setdefault("quantization", {})["sqnr_db"] = ratios
                break
        except (RuntimeError, ArtifactError) as fault:
            raise LoweringError(f"OpenVINO, {_told(chosen)}: {one_line(fault)}") from fault
        return Lowered(
            graph=written.graph,
            graph_name=_GRAPH_NAME,
            weights=written.weights,
            inputs=model.inputs,
            outputs=made.outputs,
            layers=owners(written.weights, [name for name, _ in model.module.named_modules()]),
            four_bit=written.four_bit,
            settings=settings.to_json(),
            notes={**notes, "options": {**chosen, "precision": settings.precision, "batches": list(settings.batches)}},
        )

    def choices(self, target: Target, quantized: bool) -> tuple[Options, ...]:
        """Fixed shapes beside the default: they are never slower, but hold the weights once more for each batch size.

        NNCF's placement is left to those who ask for it: it needs weights that no pass has put on grids.
        """
        fixed = {"shapes": "fixed"}
        precisions = ("bf16", "f32") if has_bfloat16() else ("f32",)
        if not quantized:
            return (DEFAULTS, *({**fixed, "precision": precision} for precision in precisions))
        placements = ("products", "everything")
        return (
            DEFAULTS,
            *({**fixed, "placement": where, "precision": what} for what in precisions for where in placements),
        )


lower = OpenVino()


@dataclass(frozen=True)
class _Low:
    graph: ov.Model
    notes: Mapping[str, Any]
    four_bit: frozenset[str] = frozenset()


def _quantized(model: Model, plan: QuantizationPlan, context: Context, made: FloatGraph, placement: str) -> _Low:
    """The plan carried out on the float graph."""
    if plan.method != "static" or plan.bits == 16:
        stored = Stored(made.model, model, plan, made.decided)
        graph = _read(stored.graph)
        return _Low(graph, {"plan": plan.to_json(), **stored.apply(graph)})
    if placement == "nncf":
        if made.decided:
            raise LoweringError(
                "OpenVINO: NNCF would round layers again whose grids are decided; quantize with rounding=engine, or "
                "choose the placement products"
            )
        graph, notes = quantize_by_nncf(_read(made.model), model, plan, context)
        return _Low(graph, notes)
    # OpenVINO's recurrent layers compute in float.
    recurrent = [name for name, module in model.module.named_modules() if isinstance(module, nn.RNNBase)]
    plan = plan.model_copy(update={"layers": {**dict.fromkeys(recurrent, "float32"), **plan.layers}})
    low = quantize(made.model, model, plan, context, made.decided, cast(Placement, placement))
    clean(low.graph, model.inputs, made.outputs)
    return _Low(_read(low.graph), low.notes, low.four_bit)


def _read(graph: ModelProto) -> ov.Model:
    return core().read_model(io.BytesIO(graph.SerializeToString()))


def _check(model: Model, placement: str) -> None:
    if isinstance(model.module, EarlyExits):
        raise LoweringError("OpenVINO: early exits need a graph for each stage; lower this model to onnx")
    plan = model.quantization
    if placement != "auto" and (plan is None or plan.method != "static" or plan.bits == 16):
        raise LoweringError(f"OpenVINO: placement {placement} is for a model with a static plan of 8 or 4 bits")


def _placements(asked: str, plan: QuantizationPlan | None) -> tuple[str, ...]:
    """What to try in turn, for some graphs OpenVINO cannot compile, and of the answers of some nothing is left.

    ``auto`` rounds more than what products read: beside layer normalization also what convolutions give.
    """
    static = plan is not None and plan.method == "static" and plan.bits != 16
    return (asked, "products") if asked == "auto" and static else (asked,)


def _precision(asked: str, plan: QuantizationPlan | None) -> str:
    if asked != "auto":
        return asked
    return "bf16" if plan is not None and (plan.bits == 16 or has_bfloat16()) else "f32"


def _batches(specs: Sequence[TensorSpec], target: Target) -> tuple[int, ...]:
    """The batch sizes to compile for: none where there is no batch, or another dimension is open too."""
    named = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    return tuple(sorted({1, target.batch})) if named == {"batch"} else ()


def _told(chosen: Options) -> str:
    return ", ".join(f"{name} {value}" for name, value in chosen.items())
