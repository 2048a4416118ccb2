"""Batch norms into the layers before them, so that grids are chosen for the weights that engines really multiply."""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from tauten.errors import PassError
from tauten.make.layers.quantized import put_layer
from tauten.make.model.model import Model
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._noise import Noise
from tauten.make.passes.quantize._walk import Program, calls, rank, read_program, readers

SAME: Final = 1e-4
"""The largest difference, of an output's largest number, that counts as rounding."""

_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(model: Model, data: Data) -> tuple[nn.Module, dict[str, Any]]:
    """The module with each batch norm that follows one layer alone in that layer, and notes of which.

    An identity takes a folded norm's place. Layers are found by the exported program, and the outputs are compared.
    Source: Jacob et al., 2018.
    """
    if not any(isinstance(part, _NORMS) for part in model.module.modules()):
        return model.module, {}
    try:
        program = read_program(model, data)
    except PassError as fault:
        return model.module, {"fold_refused": str(fault)}
    pairs = find_pairs(program)
    if not pairs:
        return model.module, {}
    noise = Noise(data, model.module)
    folded = copy.deepcopy(model.module)
    for path, of_norm in pairs:
        layer, norm = folded.get_submodule(path), folded.get_submodule(of_norm)
        _fold(layer, norm)
        put_layer(folded, norm, nn.Identity())
    worst = noise.worst(folded)
    if worst > SAME:
        return model.module, {"fold_refused": f"outputs would differ by {worst:.2g} of their largest number"}
    return folded.eval(), {"folded": {norm: path for path, norm in pairs}}


def before_norms(model: Model, data: Data) -> dict[str, str]:
    """Layers that an engine's graph will fold a batch norm into, whose weights are then others: by path, the reason."""
    if not any(isinstance(part, _NORMS) for part in model.module.modules()):
        return {}
    try:
        pairs = find_pairs(read_program(model, data))
    except PassError:
        return {}
    return {path: "a batch norm follows, which engines fold into it" for path, _ in pairs}


def find_pairs(program: Program) -> list[tuple[str, str]]:
    """Layers and the batch norms that alone read what they make, by their paths."""
    found = []
    for node in calls(program, "aten.batch_norm.default"):
        before = node.args[0]
        if node.args[5] or not isinstance(before, fx.Node) or len(readers(before)) != 1:
            continue
        path = _norm_of(program, node)
        of_layer = program.layer(before, transposed=True)
        if path is None or of_layer is None:
            continue
        # A linear layer makes features last, which are a norm's channels only where there are two dimensions.
        if isinstance(of_layer[1], nn.Linear) and rank(before) != 2:
            continue
        found.append((of_layer[0], path))
    return found


def _norm_of(program: Program, node: fx.Node) -> str | None:
    names = [program.own(argument) for argument in node.args[1:5]]
    path = names[2].rpartition(".")[0]
    norm = program.module.get_submodule(path) if path else None
    if type(norm) not in _NORMS:
        return None
    expected = [f"{path}.{last}" for last in ("weight", "bias", "running_mean", "running_var")]
    fits = all(name == wanted for name, wanted, given in zip(names, expected, node.args[1:5], strict=True) if given)
    return path if fits else None


def _fold(layer: Any, norm: Any) -> None:
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        weight = layer.weight
        layer.weight = nn.Parameter((weight.double() * _spread(layer, scale)).to(weight.dtype))
        layer.bias = nn.Parameter(bias.to(weight.dtype))


def _spread(layer: Any, scale: Tensor) -> Tensor:
    shape = layer.weight.shape
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # (inputs, outputs of a group, *kernel), and the inputs lie group by group.
        rows = scale.reshape(layer.groups, 1, shape[1]).expand(-1, shape[0] // layer.groups, -1)
        return rows.reshape(shape[0], shape[1], *(1 for _ in shape[2:]))
    return scale.reshape(-1, *(1 for _ in shape[1:]))
