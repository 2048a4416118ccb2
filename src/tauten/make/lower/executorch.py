"""A model to ExecuTorch, by way of ``torch.export``: what XNNPACK takes is handed to it, the rest runs in kernels."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from tauten.core.target import Target
from tauten.core.tensor import BATCH
from tauten.errors import EngineError, LoweringError
from tauten.make.lower._answers import hold_answers
from tauten.make.lower._executorch_program import largest_sizes, to_pte
from tauten.make.lower._export import export
from tauten.make.lower._grids import materialize
from tauten.make.lower._samples import rows
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.run.engines._pte import survey
from tauten.run.engines.executorch import Program

__all__ = ["lower"]

_COMPARED: Final = 16


class ExecuTorch(Lowering):
    """A program planned for the target's batch, with the weights inside; compared with the module.

    The weights are part of the program, where XNNPACK reads them in place: the artifact's weights file is empty.
    """

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        self.chosen(options)
        if model.quantization is not None:
            raise LoweringError("executorch: runs in float; lower a model with a quantization plan to onnx")
        module, _ = materialize(model.module)
        plain = model.but(module=module)
        data = context.task.data("calibrate")
        exported = export(plain, next(iter(data))[0])
        sample = next(islice(rows(data, model.inputs, batch=min(_COMPARED, target.batch)), 1))
        seen = {
            dim: size
            for spec in model.inputs
            for dim, size in spec.sizes(sample[spec.name].shape).items()
            if dim != BATCH
        }
        limits = largest_sizes(exported.program, model.inputs, target.batch, seen)
        context.progress("executorch", 0.3)
        graph = to_pte(exported.program, model.inputs, limits)
        try:
            program = Program(graph, target.threads)
            error = hold_answers(
                lambda arrays: program([arrays[spec.name] for spec in model.inputs]), plain, sample, "the program"
            )
        except EngineError as fault:
            raise LoweringError(f"executorch: the program does not run: {fault}") from fault
        return Lowered(
            graph=graph,
            graph_name="model.pte",
            weights={},
            inputs=model.inputs,
            outputs=exported.outputs,
            notes={"largest_relative_difference": error, "largest": limits, **_delegated(graph)},
        )


lower = ExecuTorch()


def _delegated(graph: bytes) -> dict[str, Any]:
    """How many operations XNNPACK has, and by name the kernels that it left, with how often each is called."""
    found = survey(graph)
    inside = sum((found.int8 + found.weights + found.other).values())
    return {"delegated": inside, "not_delegated": dict(sorted(found.kernels.items()))}
