"""Sizes moved from activations into weights behind a norm, so that 8 bits span the activations."""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.passes.quantize._calibrate import Data, Hook, watching
from tauten.make.passes.quantize._fold import SAME
from tauten.make.passes.quantize._noise import Noise
from tauten.make.passes.quantize._walk import Program, calls, read_program, readers, scale_

_LEAST: Final = 1e-5
_BOUND: Final = 1e4


def smooth(model: Model, data: Data, alpha: float) -> tuple[nn.Module, dict[str, Any]]:
    """The module with each feature of a norm divided by a scale that the linear layers after it take up; and notes.

    The scale is ``largest input ** alpha / largest weight ** (1 - alpha)``, a feature. A norm that anything else reads
    too (as the residual sum after it does) is left. Outputs are compared. Source: Xiao et al., 2023.
    """
    try:
        program = read_program(model, data)
    except PassError as fault:
        return model.module, {"smooth_refused": str(fault)}
    found = find_norms(program)
    if not found:
        return model.module, {"smoothed": {}}
    noise = Noise(data, model.module)
    smoothed = copy.deepcopy(model.module)
    norms = {path: smoothed.get_submodule(path) for path in found}
    largest = _largest(smoothed, norms, data)
    for path, weights in found.items():
        tensors = [smoothed.get_parameter(name) for name in weights]
        inputs = largest[path].clamp_min(_LEAST)
        read = torch.stack([tensor.detach().abs().amax(0) for tensor in tensors]).amax(0).clamp_min(_LEAST)
        scale = (inputs**alpha / read ** (1 - alpha)).clamp(1 / _BOUND, _BOUND)
        norm: Any = norms[path]
        scale_(norm.weight, 1 / scale, 0)
        scale_(getattr(norm, "bias", None), 1 / scale, 0)
        for tensor in tensors:
            scale_(tensor, scale, 1)
    worst = noise.worst(smoothed)
    if worst > SAME:
        return model.module, {"smooth_refused": f"outputs would differ by {worst:.2g} of their largest number"}
    return smoothed.eval(), {"smoothed": found}


def find_norms(program: Program) -> dict[str, list[str]]:
    """Norms whose output linear layers alone read: their paths, and the names of those layers' weights."""
    found: dict[str, list[str]] = {}
    for node in calls(program, "aten.layer_norm.default", "aten.rms_norm.default"):
        name = program.own(node.args[2]) if len(node.args) > 2 else ""
        path, _, last = name.rpartition(".")
        bias = node.args[3] if len(node.args) > 3 and "layer" in str(node.target) else None
        if last != "weight" or not path or (bias is not None and program.own(bias) != f"{path}.bias"):
            continue
        if not isinstance(program.module.get_submodule(path), nn.LayerNorm | nn.RMSNorm) or not _flat(node):
            continue
        weights = [_weight(program, user, node) for user in readers(node)]
        if weights and all(weights):
            found[path] = weights
    return found


def _flat(node: fx.Node) -> bool:
    sizes = node.args[1]
    return isinstance(sizes, list | tuple) and len(sizes) == 1


def _weight(program: Program, user: fx.Node, norm: fx.Node) -> str:
    """The name of the weight of a linear operation that reads ``norm``, where it alone reads that weight."""
    if str(user.target) != "aten.linear.default" or user.args[0] is not norm:
        return ""
    return program.own(user.args[1])


def _largest(module: nn.Module, norms: dict[str, nn.Module], data: Data) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def widen(path: str) -> Hook:
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            seen = answer.detach().abs().reshape(-1, answer.shape[-1]).amax(0)
            found[path] = torch.maximum(found[path], seen) if path in found else seen

        return told

    with watching(norms, widen):
        data.walk(module)
    return found
