"""Folds batch normalization into the layer before it, so that what is rounded in training is what is deployed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from tauten.errors import PassError
from tauten.make.graph.export import export
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context

_PRODUCTS = ("aten::linear", "aten::conv1d", "aten::conv2d", "aten::conv3d")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_norms(model: Model, context: Context) -> tuple[list[str], str]:
    """Fold each batch norm that reads a layer's answer, and reads it alone; the norms' names, and why none could be.

    In place: the layer takes the norm's scale and shift over by its statistics (Jacob et al., 2018), the norm becomes
    ``Identity``. Others stay: those behind a sum or an activation, or of a layer that is called more than once.
    """
    module = model.module
    if not any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        return [], ""
    try:
        program = export(module, model.inputs, next(iter(context.task.data("calibrate")))[0])
    except PassError as fault:
        return [], f"batch normalization stays as it is: {fault}"
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    held = {spec.arg.name: str(spec.target) for spec in program.graph_signature.input_specs if spec.kind in kinds}
    read = Counter(held[node.name] for node in program.graph.nodes for _ in node.users if node.name in held)
    folded = []
    for node in program.graph.nodes:
        if not _name(node).endswith("batch_norm"):
            continue
        before = node.args[0]
        if not isinstance(before, Node) or _name(before) not in _PRODUCTS or len(before.users) != 1:
            continue
        weight, mean = held.get(str(before.args[1])), held.get(str(node.args[3]))
        if weight is None or mean is None or read[weight] != 1 or read[mean] != 1:
            continue
        layer, norm = weight.removesuffix(".weight"), mean.removesuffix(".running_mean")
        if _fold(module, layer, norm):
            folded.append(norm)
    return folded, ""


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if node.op != "call_function" or schema is None else str(schema.name)


def _fold(module: nn.Module, layer_name: str, norm_name: str) -> bool:
    """Whether both are modules that can be made one, and were."""
    found = {name: part for name, part in module.named_modules(remove_duplicate=False) if part is not module}
    layer, norm = found.get(layer_name), found.get(norm_name)
    once = Counter(id(part) for part in found.values())
    if layer is None or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False
    if once[id(layer)] != 1 or once[id(norm)] != 1:
        return False
    fuse: Any
    if type(layer) is nn.Linear:
        fuse = fuse_linear_bn_eval
    elif type(layer) in _CONVOLUTIONS:
        fuse = fuse_conv_bn_eval
    else:
        return False
    with torch.no_grad():
        fused = fuse(layer, norm).eval()
    fused.requires_grad_(any(one.requires_grad for one in layer.parameters()))
    _put(module, layer_name, fused)
    _put(module, norm_name, nn.Identity().eval())
    return True


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)
