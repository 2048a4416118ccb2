"""Layers as operations of the exported program: which one's output is whose input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from tauten.make.graph.export import export
from tauten.make.layers.quantized import QUANTIZABLE
from tauten.make.model.model import Model
from tauten.make.passes.quantize._calibrate import Data

_CONVOLUTIONS: Final = (
    "aten.conv1d.default", "aten.conv1d.padding", "aten.conv2d.default", "aten.conv2d.padding", "aten.conv3d.default",
    "aten.conv3d.padding",
)  # fmt: skip
_TRANSPOSED: Final = ("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
_LINEAR: Final = "aten.linear.default"
_ASKS: Final = ("aten.sym_size", "aten._assert", "aten.sym_numel", "aten.sym_stride")
"""Operations that tell of a tensor or check it, and compute nothing of its numbers."""


@dataclass(frozen=True)
class Program:
    """The exported program of a module, with what its operations read by name."""

    module: nn.Module
    nodes: tuple[fx.Node, ...]
    names: dict[fx.Node, str]

    def own(self, node: Any) -> str:
        """The name of the parameter or buffer that ``node`` is, where one operation alone reads it; or nothing."""
        if not isinstance(node, fx.Node) or node not in self.names or len(readers(node)) != 1:
            return ""
        return self.names[node]

    def layer(self, node: fx.Node, convolutions: bool = True, transposed: bool = False) -> tuple[str, Any] | None:
        """The linear layer or convolution that alone makes the operation ``node``: its path and itself."""
        name = str(node.target)
        known = name == _LINEAR or (convolutions and name in _CONVOLUTIONS) or (transposed and name in _TRANSPOSED)
        if not known or not self.own(node.args[1]):
            return None
        path, _, last = self.own(node.args[1]).rpartition(".")
        layer = self.module.get_submodule(path)
        bias = node.args[2] if len(node.args) > 2 else None
        fits = last == "weight" and type(layer) in QUANTIZABLE and "weight" in layer._parameters
        if not fits or (bias is not None and self.own(bias) != (f"{path}.bias" if path else "bias")):
            return None
        return path, layer


def read_program(model: Model, data: Data) -> Program:
    """The module's program; ``PassError`` where ``torch.export`` cannot follow it."""
    program = export(model.module, model.inputs, next(data.batches()))
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    nodes = tuple(program.graph.nodes)
    names = {node: str(targets[node.name]) for node in nodes if node.op == "placeholder" and node.name in targets}
    return Program(model.module, nodes, names)


def readers(node: fx.Node) -> list[fx.Node]:
    """The operations that read a value's numbers."""
    return [user for user in node.users if not str(user.target).startswith(_ASKS)]


def calls(program: Program, *targets: str) -> Iterator[fx.Node]:
    """The operations with one of these names."""
    yield from (node for node in program.nodes if node.op == "call_function" and str(node.target) in targets)


def rank(node: Any) -> int:
    """How many dimensions a value has."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.ndim if isinstance(value, Tensor) else -1


def scale_(parameter: Tensor | None, by: Tensor, dim: int) -> None:
    """Multiply a parameter by ``by`` along one dimension, in place."""
    if parameter is not None:
        with torch.no_grad():
            parameter.mul_(by.to(parameter.dtype).reshape([-1 if at == dim else 1 for at in range(parameter.ndim)]))
