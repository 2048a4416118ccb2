"""A model to ONNX, by way of ``torch.export``; in float, or in int8 where the model has a quantization plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from tauten.artifact.manifest import Stage
from tauten.core.target import Target
from tauten.core.tensor import Arrays
from tauten.make.layers.early_exit import EarlyExits
from tauten.make.lower._float import float_graph
from tauten.make.lower._graph import clean, detach, owners
from tauten.make.lower._quantize import Placement, quantize
from tauten.make.lower._quantize_weights import share
from tauten.make.lower._stages import GRAPH_NAME, split
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context

__all__ = ["lower"]


class Onnx(Lowering):
    """ONNX as ONNX Runtime runs it best: the graph is compared with the module before it is quantized.

    ``placement`` says which values a static plan makes int8 (``_quantize.Placement``).
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"placement": ("auto", "everything", "products")}

    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        placement = cast(Placement, self.chosen(options)["placement"])
        made = float_graph(model, context)
        graph, four_bit = made.model, frozenset[str]()
        notes: dict[str, Any] = {"largest_relative_difference": made.error}
        if model.quantization is not None:
            context.progress("quantize", 0.5)
            quantized = quantize(graph, model, model.quantization, context, made.decided, placement)
            graph, four_bit, notes["quantization"] = quantized.graph, quantized.four_bit, dict(quantized.notes)
            clean(graph, model.inputs, made.outputs)
        graphs, stages = [graph], tuple[Stage, ...]()
        if isinstance(model.module, EarlyExits):
            context.progress("stages", 0.9)
            graphs, stages = split(graph, model, model.module, made.sample)
        weights: Arrays = {}
        for part in graphs:  # each by itself: what one stage turns, the next has no hold of
            share(part.graph)
            weights |= detach(part)
        # Stages hand rows on, whose columns have to be as many in each.
        settings = {} if stages else made.settings()
        notes |= {} if stages else made.notes()
        modules = [name for name, _ in model.module.named_modules()]
        first, *more = (part.SerializeToString(deterministic=True) for part in graphs)
        return Lowered(
            graph=first,
            graph_name=GRAPH_NAME,
            stages=stages,
            more={stage.graph: data for stage, data in zip(stages[1:], more, strict=True)},
            weights=weights,
            inputs=model.inputs,
            outputs=made.outputs,
            layers=owners(weights, modules),
            four_bit=four_bit & weights.keys(),
            settings=settings,
            notes=notes,
        )

    def choices(self, target: Target, quantized: bool) -> tuple[Options, ...]:
        return (DEFAULTS, {"placement": "products"}) if quantized else (DEFAULTS,)


lower = Onnx()
