"""Quantizing an exported program: a backend's own quantizer says where, Tauten's plan says by which scales.

The way is PyTorch's (``torchao.quantization.pt2e``): nodes are annotated, observers put in, calibration data shown to
them, and each becomes a pair of ``quantized_decomposed`` operations, which the backend fuses with what stands between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx
from torch.export import ExportedProgram

from tauten.errors import ExtraMissing, LoweringError
from tauten.make.lower._export import Exported, export_again, module_path, strip
from tauten.make.lower._grids import Decided
from tauten.make.lower._notices import without_notices
from tauten.make.lower._samples import rows
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context

_AT_ONCE: Final = 32  # samples that are shown to the observers in one call
_FLOAT: Final = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Quantized:
    """The program with its pairs of operations, and what the history says of it."""

    program: ExportedProgram
    notes: dict[str, Any]


def check_plan(engine: str, plan: QuantizationPlan) -> None:
    """``LoweringError`` for a plan that needs other arithmetic than 8 bits on both sides of a product."""
    if plan.method == "weight_only" or plan.bits != 8:
        raise LoweringError(
            f"{engine}: quantizes weights and activations to 8 bits, static or dynamic; for {plan.method} with "
            f"{plan.bits}-bit weights lower to onnx or openvino"
        )


def quantize_program(
    exported: Exported,
    model: Model,
    plan: QuantizationPlan,
    context: Context,
    decided: Mapping[str, Decided],
    make_quantizer: Callable[[Callable[..., Any], Callable[..., Any]], Any],
) -> Quantized:
    """``exported`` in 8 bits where the quantizer annotates, except in layers that the plan leaves in float.

    ``make_quantizer(activations, weights)`` gives the backend's quantizer with those observers. Batch norms are folded.
    Raises ``LoweringError`` where torchao cannot do it, ``ExtraMissing`` where it is not installed.
    """
    with without_notices(), torch.no_grad():
        try:
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            from tauten.make.lower._pt2e_observers import PerChannelWeightObserver, RangeObserver
        except ModuleNotFoundError as fault:
            raise ExtraMissing(f"quantizing exported programs ({fault.name} is not installed)", "edge") from fault
        try:
            quantizer = make_quantizer(
                RangeObserver.with_args(method=plan.calibration),
                PerChannelWeightObserver.with_args(whole=not plan.per_channel),
            )
            left = _leave_out(quantizer, plan)
            module = exported.program.module(check_guards=False)
            _separate_calls(module)
            prepared = prepare_pt2e(module, quantizer)
            _decide(prepared, decided)
            if plan.method == "static":
                _calibrate(prepared, model, plan, context)
            else:
                _show(prepared, model, context, 1)  # the weights' observers see them when the graph runs
            weights = [part for part in prepared.modules() if isinstance(part, PerChannelWeightObserver)]
            converted = convert_pt2e(prepared)
            for node in converted.graph.nodes:
                node.meta.pop("quantization_annotation", None)
            again = export_again(converted, model.inputs, next(_batches(model, context, _AT_ONCE)))
        except LoweringError:
            raise
        except Exception as fault:  # quantizers and the passes around them raise errors of many kinds
            raise LoweringError(f"torchao: {type(fault).__name__}: {str(fault).strip()[:2000]}") from fault
    notes: dict[str, Any] = {"method": plan.method, "quantized_weights": len(weights)}
    if decided:
        notes["grids_held"] = sum(part.held for part in weights)
        notes["grids_decided"] = len(decided)
    if left:
        notes["left_in_float"] = sorted(left)
    halves = sorted(name for name, kind in plan.layers.items() if kind in ("float16", "bfloat16"))
    if halves:
        notes["float32_for_half"] = halves
    return Quantized(again, notes)


def _leave_out(quantizer: Any, plan: QuantizationPlan) -> set[str]:
    """Make ``quantizer`` forget what it annotated in layers left in float, and around values that are no floats.

    Returns the set to which it adds the layers' names as it finds them.
    """
    floats = tuple(name for name, kind in plan.layers.items() if kind in _FLOAT)
    left: set[str] = set()
    annotate = quantizer.annotate

    def annotate_some(module: fx.GraphModule) -> fx.GraphModule:
        found: fx.GraphModule = annotate(module)
        for node in found.graph.nodes:
            if "quantization_annotation" not in node.meta:
                continue
            path = module_path(node).partition("@")[0]
            owner = next((name for name in floats if path == name or path.startswith(f"{name}.")), None)
            if owner is not None:
                left.add(owner)
            if owner is not None or not _is_float(node) or not all(_is_float(n) for n in node.all_input_nodes):
                # Sums of masks and places of embeddings are whole numbers, which have no scale.
                del node.meta["quantization_annotation"]
        return found

    quantizer.annotate = annotate_some
    return left


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _separate_calls(module: fx.GraphModule) -> None:
    """Give each later call of a module that is called more than once a name of its own, such as ``relu@1``.

    Quantizers gather operations by the module that they came from, and would take two calls of one ReLU for one
    pattern with two results. The exporter tells the calls apart in the keys of a node's stack of modules.
    """
    for node in module.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if not stack:
            continue
        key, (path, kind) = list(stack.items())[-1]
        _, again, number = str(key).rpartition("@")
        if again and number.isdigit() and "@" not in path:
            node.meta["nn_module_stack"] = {**stack, key: (f"{path}@{number}", kind)}


def _decide(prepared: fx.GraphModule, decided: Mapping[str, Decided]) -> None:
    """Tell the observers of a decided layer's weight and input what was decided."""
    for node in prepared.graph.nodes:
        if node.op != "call_function":
            continue
        for place, argument in enumerate(node.args):
            weight = _observed(prepared, argument)
            if weight is None or weight[1].op != "get_attr":
                continue
            found = decided.get(strip(str(weight[1].target)))
            if found is None or not hasattr(weight[0], "grid"):
                continue
            weight[0].grid = found.grid
            source = _observed(prepared, node.args[0]) if place else None
            if source is not None and found.input_range is not None and hasattr(source[0], "fixed"):
                low, high = found.input_range
                known = source[0].fixed or (low, high)
                source[0].fixed = min(low, known[0], 0.0), max(high, known[1], 0.0)


def _observed(prepared: fx.GraphModule, node: Any) -> tuple[Any, fx.Node] | None:
    """The observer that ``node`` is, and the node that it observes."""
    if isinstance(node, fx.Node) and node.op == "call_module" and isinstance(node.args[0], fx.Node):
        return prepared.get_submodule(str(node.target)), node.args[0]
    return None


def _calibrate(prepared: fx.GraphModule, model: Model, plan: QuantizationPlan, context: Context) -> None:
    _show(prepared, model, context, plan.samples)
    if plan.calibration != "minmax":
        for part in prepared.modules():
            start: Any = getattr(part, "start_counting", None)
            if start is not None:
                start()
        _show(prepared, model, context, plan.samples)


def _show(prepared: fx.GraphModule, model: Model, context: Context, samples: int) -> None:
    for arrays in _batches(model, context, samples):
        prepared(*arrays)


def _batches(model: Model, context: Context, samples: int) -> Iterator[tuple[torch.Tensor, ...]]:
    data = context.task.data("calibrate")
    for arrays in rows(data, model.inputs, batch=_AT_ONCE, limit=samples):
        yield tuple(torch.from_numpy(arrays[spec.name]) for spec in model.inputs)
