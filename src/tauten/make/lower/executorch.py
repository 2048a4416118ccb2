"""A model to ExecuTorch, by way of ``torch.export``: what XNNPACK takes is handed to it, the rest runs in kernels.

A model with a quantization plan goes through XNNPACK's own quantizer, with the plan's ranges (``_pt2e``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Final

import torch

from tauten.core.target import Target
from tauten.core.tensor import BATCH
from tauten.errors import EngineError, LoweringError
from tauten.make.lower._answers import hold_answers
from tauten.make.lower._executorch_program import largest_sizes, to_pte
from tauten.make.lower._export import export
from tauten.make.lower._grids import materialize
from tauten.make.lower._pt2e import check_plan, quantize_program
from tauten.make.lower._samples import rows
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.run.engines._pte import survey
from tauten.run.engines.executorch import Program

__all__ = ["lower"]

_COMPARED: Final = 16


class ExecuTorch(Lowering):
    """A program planned for the target's batch, with the weights inside; in float, it is compared with the module.

    In 8 bits activations are signed and weights have a scale an output channel, which is what XNNPACK computes with.

    The weights are part of the program, where XNNPACK reads them in place: the artifact's weights file is empty.
    """

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        self.chosen(options)
        if model.quantization is not None:
            check_plan("executorch", model.quantization)
        module, decided = materialize(model.module)
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
        program, notes = exported.program, dict[str, Any]()
        if model.quantization is not None:
            context.progress("quantize", 0.2)
            plan = model.quantization
            made = quantize_program(exported, plain, plan, context, decided, partial(_quantizer, plan))
            program, notes["quantization"] = made.program, made.notes
        limits = largest_sizes(program, model.inputs, target.batch, seen)
        context.progress("executorch", 0.3)
        graph = to_pte(program, model.inputs, limits)
        try:
            run = Program(graph, target.threads)
            if model.quantization is None:
                notes["largest_relative_difference"] = hold_answers(
                    lambda arrays: run([arrays[spec.name] for spec in model.inputs]), plain, sample, "the program"
                )
            else:
                run([sample[spec.name] for spec in model.inputs])
        except EngineError as fault:
            raise LoweringError(f"executorch: the program does not run: {fault}") from fault
        return Lowered(
            graph=graph,
            graph_name="model.pte",
            weights={},
            inputs=model.inputs,
            outputs=exported.outputs,
            notes={**notes, "largest": limits, **_delegated(graph)},
        )


lower = ExecuTorch()


def _quantizer(plan: QuantizationPlan, activations: Callable[..., Any], weights: Callable[..., Any]) -> Any:
    """XNNPACK's quantizer: for all that it takes, or where each call finds its ranges for linear layers."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    dynamic = plan.method == "dynamic"
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    config = replace(config, weight=replace(config.weight, observer_or_fake_quant_ctr=weights))
    quantizer = XNNPACKQuantizer()
    if dynamic:
        return quantizer.set_operator_type(torch.ops.aten.linear.default, config)
    ranges = replace(config.input_activation, observer_or_fake_quant_ctr=activations)
    return quantizer.set_global(replace(config, input_activation=ranges, output_activation=ranges))


def _delegated(graph: bytes) -> dict[str, Any]:
    """How many operations XNNPACK has, and by name the kernels that it left, with how often each is called."""
    found = survey(graph)
    inside = sum((found.int8 + found.weights + found.other).values())
    return {"delegated": inside, "not_delegated": dict(sorted(found.kernels.items()))}
