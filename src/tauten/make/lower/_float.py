"""A model as a float ONNX graph that answers as the module does: what every lowering but PyTorch's own begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import onnxruntime
import torch
from onnx import ModelProto
from torch import nn

from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import LoweringError, MismatchError
from tauten.make.lower._attention import plain_attention
from tauten.make.lower._compare import TOLERANCE, check_same, differences, open_session, run_session
from tauten.make.lower._export import Exported, export, quiet
from tauten.make.lower._graph import clean, rename, unwrap
from tauten.make.lower._grids import Decided, materialize
from tauten.make.lower._masks import plain_masks
from tauten.make.lower._padding import find_padding
from tauten.make.lower._remembered import remembered
from tauten.make.lower._rewrite import name_transposed, pool_means
from tauten.make.lower._rows import needed_rows
from tauten.make.lower._samples import rows
from tauten.make.lower._torchlib import translations_kept
from tauten.make.model.imported import OnnxModule
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.run.engines._padding import SETTING, Padding

_BORDER: Final = "tauten_"  # while the exporter works, so that no operation inside has a name the user chose
_COMPARED = 16  # samples of the calibration data that the graph is held against the module on


@dataclass(frozen=True)
class FloatGraph:
    """The graph with its weights inside, the specs of its outputs, and how it was compared with the module.

    ``decided`` is what quantized layers fixed, by the names of their weights. ``sample`` is the batch that graph and
    module were compared on, ``error`` the largest relative difference. ``padding`` is what calls can do without.
    """

    model: ModelProto
    outputs: tuple[TensorSpec, ...]
    decided: Mapping[str, Decided]
    sample: Arrays
    error: float
    padding: Padding | None
    why_padding_stays: str

    def settings(self) -> dict[str, Any]:
        """What an engine that shortens calls is told, beside what else it is told."""
        return {} if self.padding is None else {SETTING: self.padding.to_json()}

    def notes(self) -> dict[str, Any]:
        """What a lowering that heeds ``settings`` notes of it."""
        stays = {SETTING: f"stays: {self.why_padding_stays}"} if self.why_padding_stays else {}
        return self.settings() or stays


def float_graph(model: Model, context: Context) -> FloatGraph:
    """The model in float as an ONNX graph, after rewrites that engines run faster, compared with the module.

    Quantized layers stand in it with the float weights that their codes mean, and without the rounding of their inputs.

    Raises ``LoweringError`` where the module cannot be exported, ``MismatchError`` (which names the first operation
    that differs) where the graph answers otherwise.
    """
    made = remembered(model, context, "float graph", lambda: _make(model, context))
    # A copy, since lowerings change the graph that they are given.
    graph = ModelProto()
    graph.CopyFrom(made.model)
    return replace(made, model=graph)


def _make(model: Model, context: Context) -> FloatGraph:
    if isinstance(model.module, OnnxModule):
        return _imported(model, model.module, context)
    module, decided = materialize(model.module)
    model = model.but(module=module)
    _check_dtypes(module)
    data = context.task.data("calibrate")
    context.progress("export", 0.0)
    example = next(iter(data))[0]
    exported = export(model, example)
    graph, program = to_onnx(exported, model.inputs)
    clean(graph, model.inputs, exported.outputs)
    unwrap(graph.graph)
    pool_means(graph)
    plain_masks(graph)
    plain_attention(graph)
    needed_rows(graph)
    name_transposed(graph.graph, model.module.state_dict())
    context.progress("compare", 0.4)
    sample = next(islice(rows(data, model.inputs, batch=_COMPARED), 1))
    error = check_same(graph, program, model, sample)
    padding = _padding(graph, model, exported.outputs, sample)
    return FloatGraph(graph, exported.outputs, decided, sample, error, *padding)


def _check_dtypes(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dtype == torch.bfloat16:
            raise LoweringError(f"{name} is bfloat16, which NumPy lacks; use float16, or convert the module to float32")


def _imported(model: Model, module: OnnxModule, context: Context) -> FloatGraph:
    """The same of a model that came as ONNX: its own graph after the rewrites, compared with the file."""
    graph = module.proto()
    clean(graph, model.inputs, module.outputs)
    for rewrite in (pool_means, plain_masks, plain_attention, needed_rows):
        rewrite(graph)
    context.progress("compare", 0.4)
    sample = next(islice(rows(context.task.data("calibrate"), model.inputs, batch=_COMPARED), 1))
    session = open_session(graph)
    largest = 0.0
    for name, _, off in differences(lambda names, batch: run_session(session, names, batch), model, sample):
        largest = max(largest, off)
        if off > TOLERANCE:
            raise MismatchError(
                f"{name}: after rewrites the graph differs from the file by {off:.3g} of its largest value"
            )
    padding = _padding(graph, model, module.outputs, sample)
    return FloatGraph(graph, module.outputs, {}, sample, largest, *padding)


def _padding(
    graph: ModelProto, model: Model, outputs: tuple[TensorSpec, ...], sample: Arrays
) -> tuple[Padding | None, str]:
    names = [spec.name for spec in outputs]
    session: list[onnxruntime.InferenceSession] = []

    def run(arrays: Arrays) -> Arrays:
        if not session:  # most models have no mask, and need none
            session.append(open_session(graph))
        return run_session(session[0], names, arrays)

    return find_padding(model.inputs, outputs, sample, run)


def to_onnx(exported: Exported, inputs: tuple[TensorSpec, ...]) -> tuple[ModelProto, torch.export.ExportedProgram]:
    """The graph with its weights inside, and the program whose nodes its values are named after."""
    try:
        with quiet(), torch.no_grad(), translations_kept():
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
