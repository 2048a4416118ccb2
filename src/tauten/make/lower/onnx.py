"""A model to ONNX, by way of ``torch.export``; in float, or in int8 where the model has a quantization plan."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import torch
from onnx import ModelProto

from tauten.artifact.manifest import Stage
from tauten.core.target import Target
from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import LoweringError
from tauten.make.layers.early_exit import EarlyExits
from tauten.make.lower._compare import check_same
from tauten.make.lower._export import Exported, export, quiet
from tauten.make.lower._graph import clean, detach, owners, rename, unwrap
from tauten.make.lower._quantize import quantize
from tauten.make.lower._rewrite import name_transposed, pool_means
from tauten.make.lower._samples import rows
from tauten.make.lower._stages import GRAPH_NAME, split
from tauten.make.lower.lowering import Lowered
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context

__all__ = ["lower"]

_BORDER: Final = "tauten_"  # while the exporter works, so that no operation inside has a name the user chose
_COMPARED = 16  # samples of the calibration data that the graph is held against the module on


def lower(model: Model, target: Target, context: Context) -> Lowered:
    """The model as an ONNX graph that is compared with the module before it is quantized.

    Raises ``LoweringError`` where the module cannot be exported or quantized, ``MismatchError`` (which names the first
    operation that differs) where the graph answers otherwise.
    """
    data = context.task.data("calibrate")
    context.progress("export", 0.0)
    example = next(iter(data))[0]
    exported = export(model, example)
    graph, program = to_onnx(exported, model.inputs)
    clean(graph, model.inputs, exported.outputs)
    unwrap(graph.graph)
    pool_means(graph)
    name_transposed(graph.graph, model.module.state_dict())
    context.progress("compare", 0.4)
    samples = list(islice(rows(data, model.inputs, batch=_COMPARED), 1))
    error = check_same(graph, program, model, samples[0])
    notes: dict[str, Any] = {"largest_relative_difference": error}
    if model.quantization is not None:
        context.progress("quantize", 0.5)
        graph, notes["quantization"] = quantize(graph, model, model.quantization, context)
        clean(graph, model.inputs, exported.outputs)
    graphs, stages = [graph], tuple[Stage, ...]()
    if isinstance(model.module, EarlyExits):
        context.progress("stages", 0.9)
        graphs, stages = split(graph, model, model.module, samples[0])
    weights: Arrays = {}
    for part in graphs:
        weights |= detach(part)
    modules = [name for name, _ in model.module.named_modules()]
    first, *more = (part.SerializeToString(deterministic=True) for part in graphs)
    return Lowered(
        graph=first,
        graph_name=GRAPH_NAME,
        stages=stages,
        more={stage.graph: data for stage, data in zip(stages[1:], more, strict=True)},
        weights=weights,
        inputs=model.inputs,
        outputs=exported.outputs,
        layers=owners(weights, modules),
        notes=notes,
    )


def to_onnx(exported: Exported, inputs: tuple[TensorSpec, ...]) -> tuple[ModelProto, torch.export.ExportedProgram]:
    """The graph with its weights inside, and the program whose nodes its values are named after."""
    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(
                exported.program,
                (),
                dynamo=True,
                verbose=False,
                input_names=[f"{_BORDER}in_{index}" for index in range(len(inputs))],
                output_names=[f"{_BORDER}out_{index}" for index in range(len(exported.outputs))],
            )
    except Exception as fault:  # the exporter wraps faults of its own and of its rewriters in many classes
        raise LoweringError(f"torch.onnx.export: {type(fault).__name__}: {str(fault)[:2000]}") from fault
    if made is None or made.exported_program is None:
        raise LoweringError("torch.onnx.export made no graph")
    graph = made.model_proto
    _name_borders(graph, [spec.name for spec in inputs], [spec.name for spec in exported.outputs])
    return graph, made.exported_program


def _name_borders(graph: ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Give inputs and outputs the names the user knows; a value inside that has one of these makes way."""
    borders = {f"{_BORDER}in_{index}": name for index, name in enumerate(inputs)}
    borders |= {f"{_BORDER}out_{index}": name for index, name in enumerate(outputs)}
    taken = set(borders.values())
    rename(graph.graph, lambda name: borders.get(name, f"{_BORDER}{name}" if name in taken else name))
