"""A model to ExecuTorch, by way of ``torch.export``: what XNNPACK takes is handed to it, the rest runs in kernels.

A model with a quantization plan goes through XNNPACK's own quantizer, with the plan's ranges (``_pt2e``).

Some programs are lowered with a batch that varies and then do not run so: XNNPACK cannot change the shapes of some
quantized operations once they are set up. Such a model gets a method for one row and one for the target's batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final

import torch
from torch.export import ExportedProgram

from tauten.core.rows import count_rows, take_rows
from tauten.core.target import Target
from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec
from tauten.errors import EngineError, LoweringError
from tauten.make.lower._answers import hold_answers, hold_rows_apart
from tauten.make.lower._executorch_program import fix_batches, largest_sizes, to_pte
from tauten.make.lower._export import export
from tauten.make.lower._grids import materialize
from tauten.make.lower._pt2e import check_plan, quantize_program
from tauten.make.lower._samples import gather
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.run.engines._fixed import run_fixed
from tauten.run.engines._pte import METHOD, method_for, survey
from tauten.run.engines.executorch import Program, Settings, without_words

__all__ = ["lower"]

_COMPARED: Final = 16


class ExecuTorch(Lowering):
    """A program planned for the target's batch, with the weights inside; in float, it is compared with the module.

    In 8 bits activations are signed and weights have a scale an output channel, which is what XNNPACK computes with.
    ``shapes`` says whether one method takes any batch (``open``), or a method each of a few batch sizes (``fixed``),
    which the engine fills up; what does not run with open shapes gets fixed ones all the same.

    The weights are part of the program, where XNNPACK reads them in place: the artifact's weights file is empty.
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"shapes": ("open", "fixed")}

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        shapes = self.chosen(options)["shapes"]
        if model.quantization is not None:
            check_plan("executorch", model.quantization)
        module, decided = materialize(model.module)
        plain = model.but(module=module)
        data = context.task.data("calibrate")
        exported = export(plain, next(iter(data))[0])
        program, notes = exported.program, dict[str, Any]()
        if model.quantization is not None:
            context.progress("quantize", 0.2)
            plan = model.quantization
            made = quantize_program(exported, plain, plan, context, decided, partial(_quantizer, plan))
            program, notes["quantization"] = made.program, made.notes
        context.progress("executorch", 0.3)
        maker = _Maker(
            plain, program, exported.outputs, target, gather(data, model.inputs, min(_COMPARED, target.batch))
        )
        found = maker.fixed() if shapes == "fixed" else maker.any_shapes()
        return Lowered(
            graph=found.graph,
            graph_name="model.pte",
            weights={},
            inputs=model.inputs,
            outputs=exported.outputs,
            settings={"batches": list(found.batches)} if found.batches else {},
            notes={**notes, **found.notes, **_delegated(found)},
        )


@dataclass(frozen=True)
class _Found:
    """A program that was run, and the batch sizes of its methods where they are fixed."""

    graph: bytes
    batches: tuple[int, ...]
    notes: dict[str, Any]


@dataclass(frozen=True)
class _Maker:
    """Makes the file and tries it out: on ``sample``, of which it needs a few rows, and on fewer rows of it.

    ``model`` is the module in float, ``program`` what is lowered, in whatever precision.
    """

    model: Model
    program: ExportedProgram
    outputs: tuple[TensorSpec, ...]
    target: Target
    sample: Arrays

    def any_shapes(self) -> _Found:
        """A method for all sizes where that runs, else methods for a few sizes. Raises ``LoweringError``."""
        try:
            return self.open()
        except LoweringError as fault:
            if not self.names_batch:
                raise
            first = fault
        try:
            found = self.fixed()
        except LoweringError as fault:
            raise LoweringError(f"{first}; with batches of fixed sizes: {fault}") from fault
        return replace(found, notes={**found.notes, "not_open": str(first)})

    @property
    def names_batch(self) -> bool:
        return any(spec.batch_axis is not None for spec in self.model.inputs)

    @property
    def seen(self) -> dict[str, int]:
        """The sizes that the sample has, rows aside."""
        sizes = [spec.sizes(self.sample[spec.name].shape) for spec in self.model.inputs]
        return {dim: size for found in sizes for dim, size in found.items() if dim != BATCH}

    def open(self) -> _Found:
        """One method that takes each size up to a limit."""
        limits = largest_sizes(self.program, self.model.inputs, self.target.batch, self.seen)
        graph = to_pte({METHOD: self.program}, self.model.inputs, limits)
        return _Found(graph, (), {"largest": limits, **self._try(graph, ())})

    def fixed(self) -> _Found:
        """A method for one row, and one for the target's batch.

        Raises ``LoweringError`` also where a batch cannot be cut and filled up without another answer.
        """
        specs = self.model.inputs
        rowless = [spec.name for spec in self.outputs if spec.batch_axis is None]
        if rowless or not self.names_batch:
            raise LoweringError(
                f"executorch: batches of fixed sizes are cut and filled up, but {', '.join(rowless) or 'no input'} "
                f"{'does not count' if rowless else 'counts'} rows"
            )
        hold_rows_apart(self.model, self.outputs, self.sample)
        batches = tuple(sorted({1, self.target.batch}))
        programs = fix_batches(self.program, specs, self.sample, batches)
        limits = largest_sizes(programs[method_for(1)], specs, self.target.batch, self.seen)
        graph = to_pte(programs, specs, limits)
        largest = {**limits, BATCH: batches[-1]}
        return _Found(graph, batches, {"largest": largest, "batches": list(batches), **self._try(graph, batches)})

    def _try(self, graph: bytes, batches: tuple[int, ...]) -> dict[str, Any]:
        """Run the file on several numbers of rows; in float, compare what it answers with the module."""
        specs = self.model.inputs
        try:
            run = Program(graph, self.target.threads, Settings(batches=batches).methods)
            answer = partial(self._answer, run, batches)
            if self.model.quantization is None:
                off = hold_answers(answer, self.model, self.sample, "the program")
                return {"largest_relative_difference": off}
            size = count_rows(specs, self.sample)
            # Up and down again: what fails is to change shapes that were set up for other rows.
            with without_words():
                for rows in (size, 1, min(3, size), size) if self.names_batch else (size,):
                    answer(take_rows(specs, self.sample, range(rows)) if self.names_batch else self.sample)
        except EngineError as fault:
            raise LoweringError(f"executorch: the program does not run: {fault}") from fault
        return {}

    def _answer(self, run: Program, batches: tuple[int, ...], arrays: Arrays) -> list[Array]:
        """The program's outputs in order, as its engine would give them."""
        names = [spec.name for spec in self.model.inputs]
        if not batches:
            return run([arrays[name] for name in names])

        def once(size: int, part: Arrays) -> Arrays:
            answers = run([part[name] for name in names], method_for(size))
            return dict(zip((spec.name for spec in self.outputs), answers, strict=True))

        return list(run_fixed(once, batches, (self.model.inputs, arrays), self.outputs).values())


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


def _delegated(made: _Found) -> dict[str, Any]:
    """How many operations XNNPACK has, and by name the kernels that it left, with how often each is called."""
    found = survey(made.graph, Settings(batches=made.batches).methods)
    inside = sum((found.int8 + found.weights + found.other).values())
    return {"delegated": inside, "not_delegated": dict(sorted(found.kernels.items()))}
