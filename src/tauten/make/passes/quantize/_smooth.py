"""Sizes moved from activations into weights, so that 8 bits span the activations."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from tauten.errors import PassError
from tauten.make.layers.quantized import round_to_range
from tauten.make.layers.scaled import scale_input
from tauten.make.model.model import Model
from tauten.make.passes.quantize._calibrate import Data, Hook, watching
from tauten.make.passes.quantize._fold import SAME
from tauten.make.passes.quantize._noise import Noise
from tauten.make.passes.quantize._walk import Program, calls, read_program, readers, scale_

_LEAST: Final = 1e-5
_BOUND: Final = 1e4
_ROWS: Final = 1024
_WORTH: Final = 0.7  # of the error before; for less, the product with the scale is not worth its time
_WEIGHT_STEPS: Final = 127


def smooth(model: Model, data: Data, alpha: float) -> tuple[nn.Module, dict[str, Any]]:
    """The module with features divided by scales that the linear layers which read them take up; and notes.

    The scale is ``largest input ** alpha / largest weight ** (1 - alpha)``, a feature. A norm that linear layers alone
    read takes it into its own weight (``smoothed``). Other linear layers divide their input themselves, one value that
    several read by one scale (``scaled``), where in 8 bits they then err much less. Outputs are compared. Source: Xiao
    et al., 2023; there the scales of other inputs than norms' are left out.
    """
    try:
        program = read_program(model, data)
    except PassError as fault:
        return model.module, {"smooth_refused": str(fault)}
    found = find_norms(program)
    alone = find_inputs(program, {name for weights in found.values() for name in weights})
    if not found and not alone:
        return model.module, {"smoothed": {}, "scaled": []}
    noise = Noise(data, model.module)
    smoothed = copy.deepcopy(model.module)
    norms = {path: smoothed.get_submodule(path) for path in found}
    readers_ = {path: smoothed.get_submodule(path) for group in alone for path in group}
    largest = _largest(smoothed, norms, readers_, data)
    for path, weights in found.items():
        tensors = [smoothed.get_parameter(name) for name in weights]
        scale = _scale(largest[path], tensors, alpha)
        norm: Any = norms[path]
        scale_(norm.weight, 1 / scale, 0)
        scale_(getattr(norm, "bias", None), 1 / scale, 0)
        for tensor in tensors:
            scale_(tensor, scale, 1)
    scaled: list[str] = []
    for group, rows in zip(alone, _first_rows(smoothed, alone, data), strict=True):
        tensors = [smoothed.get_submodule(path).get_parameter("weight") for path in group]
        scale = _scale(largest[group[0]], tensors, alpha)
        if _error(rows, tensors, scale) < _WORTH * _error(rows, tensors, torch.ones_like(scale)):
            scaled += group
            for path in group:
                scale_input(smoothed, path, 1 / scale)
    worst = noise.worst(smoothed)
    if worst > SAME:
        return model.module, {"smooth_refused": f"outputs would differ by {worst:.2g} of their largest number"}
    return smoothed.eval(), {"smoothed": found, "scaled": scaled}


def _scale(inputs: Tensor, weights: list[Any], alpha: float) -> Tensor:
    read = torch.stack([weight.detach().abs().amax(0) for weight in weights]).amax(0).clamp_min(_LEAST)
    return (inputs.clamp_min(_LEAST) ** alpha / read ** (1 - alpha)).clamp(1 / _BOUND, _BOUND)


def _error(rows: Tensor, weights: list[Any], scale: Tensor) -> float:
    """The squared error of the products of ``rows (samples, features)`` in 8 bits, scaled so."""
    inputs = rows / scale
    rounded = round_to_range(inputs, inputs.min().clamp_max(0.0), inputs.max().clamp_min(0.0))
    error = 0.0
    for weight in weights:
        scaled = weight.detach() * scale
        step = scaled.abs().amax(1, keepdim=True).clamp_min(_LEAST * 1e-5) / _WEIGHT_STEPS
        error += float((rounded @ (torch.round(scaled / step) * step).T - rows @ weight.detach().T).square().sum())
    return error


def _first_rows(module: nn.Module, groups: list[list[str]], data: Data) -> list[Tensor]:
    """Some rows ``(samples, features)`` of what each group of layers is given."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Hook:
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            if path not in found:
                found[path] = x.detach().reshape(-1, x.shape[-1])[:_ROWS].clone()

        return told

    with watching({group[0]: module.get_submodule(group[0]) for group in groups}, keep):
        data.walk(module, 1)
    return [found[group[0]] for group in groups]


def find_inputs(program: Program, done: Collection[str]) -> list[list[str]]:
    """Paths of linear layers whose weights are not among ``done``, those that read one value together."""
    found: dict[fx.Node, list[str]] = {}
    for node in calls(program, "aten.linear.default"):
        layer = program.layer(node, convolutions=False)
        source = node.args[0]
        if layer is not None and layer[0] and isinstance(source, fx.Node) and f"{layer[0]}.weight" not in done:
            found.setdefault(source, []).append(layer[0])
    return list(found.values())


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


def _largest(
    module: nn.Module, norms: dict[str, nn.Module], layers: dict[str, nn.Module], data: Data
) -> dict[str, Tensor]:
    """The largest magnitude of each feature: of what norms answer, and of what other layers are given."""
    found: dict[str, Tensor] = {}

    def widen(path: str) -> Hook:
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            features = answer if path in norms else x
            seen = features.detach().abs().reshape(-1, features.shape[-1]).amax(0)
            found[path] = torch.maximum(found[path], seen) if path in found else seen

        return told

    with watching({**norms, **layers}, widen):
        data.walk(module)
    return found
