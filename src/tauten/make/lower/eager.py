"""A model as a graph of ATen operations that PyTorch runs without the user's code: the yardstick of every speed-up.

Composite operations (``linear``, ``conv2d``, ``scaled_dot_product_attention``) stay whole, so that what is measured is
what the user's module does.
"""

from __future__ import annotations

import json
from typing import Any, Final

import torch

from tauten.core.target import Target
from tauten.core.tensor import Arrays
from tauten.errors import ArtifactError, LoweringError, MismatchError
from tauten.make.lower._compare import TOLERANCE, difference
from tauten.make.lower._document import Writer
from tauten.make.lower._export import export
from tauten.make.lower._graph import owners
from tauten.make.lower._samples import rows
from tauten.make.lower.lowering import DEFAULTS, Lowered, Lowering, Options
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.run.engines._operations import rebuild, to_tensor

__all__ = ["lower"]

_COMPARED: Final = 16


class Eager(Lowering):
    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        """The model as a document of operations, compared with the module.

        Raises ``LoweringError`` where an operation is not one of PyTorch's own or the model has a quantization plan,
        ``MismatchError`` where the graph answers otherwise.
        """
        if model.quantization is not None:
            raise LoweringError("eager: runs in float; lower a model with a quantization plan to onnx")
        data = context.task.data("calibrate")
        exported = export(model, next(iter(data))[0])
        document, weights = Writer(exported.program, [spec.name for spec in model.inputs]).write()
        graph = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        error = _compare(graph, weights, model, next(rows(data, model.inputs, batch=_COMPARED)))
        return Lowered(
            graph=graph,
            graph_name="graph.json",
            weights=weights,
            inputs=model.inputs,
            outputs=exported.outputs,
            layers=owners(weights, [name for name, _ in model.module.named_modules()]),
            notes={"largest_relative_difference": error, **_slower(model)},
        )


lower = Eager()


def _slower(model: Model) -> dict[str, Any]:
    """Says where the graph is slower than the user's module: the one fused kernel that export takes apart."""
    fused = (torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)
    names = [name for name, module in model.module.named_modules() if isinstance(module, fused)]
    return {"not_fused": dict.fromkeys(names, "PyTorch's fused encoder kernel is not exported")} if names else {}


def _compare(graph: bytes, weights: Arrays, model: Model, inputs: Arrays) -> float:
    try:
        rebuilt = rebuild(graph, weights, [spec.name for spec in model.inputs], len(model.outputs))
    except ArtifactError as fault:
        raise LoweringError(f"eager: {fault}") from fault
    largest = 0.0
    for batch in (inputs, next(rows([(inputs, None)], model.inputs, batch=1))):
        expected = forward(model.module, model.inputs, model.outputs, batch)
        with torch.inference_mode():
            answers = rebuilt(*(to_tensor(batch[spec.name]) for spec in model.inputs))
        for (name, wanted), came in zip(expected.items(), answers, strict=True):
            off = difference(wanted, came.numpy())
            largest = max(largest, off)
            if off > TOLERANCE:
                raise MismatchError(f"{name}: the exported operations differ by {off:.3g} of its largest value")
    return largest
