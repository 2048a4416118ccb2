"""A model for PyTorch's compiler: its operations as a document, which the engine compiles where it runs."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Final

import torch

from tauten.core.target import Target
from tauten.errors import ArtifactError, LoweringError
from tauten.make.lower._answers import hold_answers
from tauten.make.lower._document import Writer
from tauten.make.lower._export import export
from tauten.make.lower._graph import owners
from tauten.make.lower._grids import materialize
from tauten.make.lower._inductor_quantizer import weight_names, x86_quantizer
from tauten.make.lower._pt2e import check_plan, quantize_program
from tauten.make.lower._samples import rows
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.run.engines._operations import rebuild, to_tensor

__all__ = ["lower"]

_COMPARED: Final = 16


class Inductor(Lowering):
    """The document of the eager engine, in float or with the pairs of operations that mark int8 for the compiler.

    In 8 bits activations are unsigned and weights signed with a scale an output channel: what x86 multiplies fastest.
    The document's operations are compared with the module; what they are compiled to is measured with the artifact.
    """

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        self.chosen(options)
        plan = model.quantization
        if plan is not None:
            check_plan("inductor", plan)
            if target.device != "cpu":
                raise LoweringError(f"inductor: quantizes for x86 processors, target {target.name} is {target.device}")
        module, decided = materialize(model.module)
        plain = model.but(module=module)
        data = context.task.data("calibrate")
        exported = export(plain, next(iter(data))[0])
        program, notes, called = exported.program, dict[str, Any](), dict[str, str]()
        if plan is not None:
            context.progress("quantize", 0.3)
            made = quantize_program(exported, plain, plan, context, decided, partial(x86_quantizer, plan))
            program, notes["quantization"] = made.program, made.notes
            called = weight_names(program)
        document, weights = Writer(program, [spec.name for spec in model.inputs], called).write()
        graph = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        context.progress("compare", 0.7)
        sample = next(rows(data, model.inputs, batch=_COMPARED))
        try:
            rebuilt = rebuild(graph, weights, [spec.name for spec in model.inputs], len(model.outputs))
        except ArtifactError as fault:
            raise LoweringError(f"inductor: {fault}") from fault

        def run(arrays: Any) -> list[Any]:
            with torch.inference_mode():
                return [answer.numpy() for answer in rebuilt(*(to_tensor(arrays[spec.name]) for spec in model.inputs))]

        if plan is None:
            notes["largest_relative_difference"] = hold_answers(run, plain, sample, "the document of operations")
        else:
            run(sample)
        return Lowered(
            graph=graph,
            graph_name="graph.json",
            weights=weights,
            inputs=model.inputs,
            outputs=exported.outputs,
            layers=owners(weights, [name for name, _ in model.module.named_modules()]),
            notes=notes,
        )


lower = Inductor()
