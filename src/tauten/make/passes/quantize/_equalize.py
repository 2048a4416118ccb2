"""Scales moved between layers, so that the channels of a weight are alike in size and one grid suits them all."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._fold import SAME
from tauten.make.passes.quantize._noise import Noise
from tauten.make.passes.quantize._walk import Program, read_program, readers, scale_

_SWEEPS: Final = 20
_CLOSE: Final = 1e-3
_BOUND: Final = 1e3  # no channel is scaled by more, up or down, in a sweep
_PASSES_SCALES: Final = (
    "aten.relu.default", "aten.relu_.default", "aten.leaky_relu.default", "aten.leaky_relu_.default",
    "aten.dropout.default", "aten.alias.default", "aten.clone.default", "aten.max_pool1d.default",
    "aten.max_pool2d.default", "aten.max_pool3d.default", "aten.avg_pool1d.default", "aten.avg_pool2d.default",
    "aten.avg_pool3d.default", "aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default",
    "aten.adaptive_avg_pool3d.default",
)  # fmt: skip
"""Operations of one channel each with ``f(s x) = s f(x)`` for every ``s > 0``."""

_FLATTEN: Final = "aten.flatten.using_ints"


@dataclass(frozen=True)
class Pair:
    """A layer and the one that alone reads it, by their paths; each channel is ``repeat`` inputs of the second."""

    first: str
    second: str
    repeat: int


def equalize(model: Model, data: Data) -> tuple[nn.Module, dict[str, Any]]:
    """The module with scales moved between layers that only ReLU-like operations connect, and notes of which.

    Each channel is given the geometric mean of its sizes in the two weights, again and again along the layers. Outputs
    are compared. Source: Nagel et al., 2019.
    """
    try:
        program = read_program(model, data)
    except PassError as fault:
        return model.module, {"equalize_refused": str(fault)}
    pairs = find_connected(program)
    if not pairs:
        return model.module, {"equalized": []}
    noise = Noise(data, model.module)
    equal = copy.deepcopy(model.module)
    for _ in range(_SWEEPS):
        if max([_level(equal, pair) for pair in pairs]) < _CLOSE:
            break
    worst = noise.worst(equal)
    if worst > SAME:
        return model.module, {"equalize_refused": f"outputs would differ by {worst:.2g} of their largest number"}
    return equal.eval(), {"equalized": [[pair.first, pair.second] for pair in pairs]}


def find_connected(program: Program) -> list[Pair]:
    """Layers and those that alone read them, through nothing that would not pass a positive scale on."""
    found = []
    for node in program.nodes:
        first = program.layer(node) if node.op == "call_function" else None
        if first is None:
            continue
        reached = _follow(node, last=isinstance(first[1], nn.Linear))
        second = None if reached is None else program.layer(reached[0])
        if reached is None or second is None:
            continue
        repeat = _repeat(first[1], second[1], flat=reached[1])
        if repeat:
            found.append(Pair(first[0], second[0], repeat))
    return found


def _follow(node: fx.Node, last: bool) -> tuple[fx.Node, bool] | None:
    """The layer's operation that alone reads ``node``'s numbers, and whether channels lie last in what it reads."""
    while True:
        users = readers(node)
        if len(users) != 1 or users[0].op != "call_function" or users[0].args[0] is not node:
            return None
        after = users[0]
        name = str(after.target)
        if name == _FLATTEN and not last and after.args[1:] in ((1,), (1, -1)):
            last = True
        elif name in _PASSES_SCALES and not (last and "pool" in name):
            pass
        else:
            return after, last
        node = after


def _repeat(first: Any, second: Any, flat: bool) -> int:
    """How many inputs of ``second`` each output of ``first`` is; 0 where they do not go together channel by channel."""
    outputs = first.weight.shape[0]
    if isinstance(second, nn.Linear):
        return second.in_features // outputs if flat and second.in_features % outputs == 0 else 0
    if flat or second.in_channels != outputs:
        return 0
    return 1 if second.groups == 1 or second.groups == second.in_channels == second.out_channels else 0


def _level(module: nn.Module, pair: Pair) -> float:
    """Move scales within a pair, in place; how far the largest was from 1, as a logarithm."""
    first: Any = module.get_submodule(pair.first)
    second: Any = module.get_submodule(pair.second)
    deep = not isinstance(second, nn.Linear) and second.groups > 1
    made = first.weight.detach().abs().flatten(1).amax(1)
    read = _reading(second, deep, pair.repeat)
    scale = (made / read).sqrt().clamp(1 / _BOUND, _BOUND)
    scale = torch.where((made > 0) & (read > 0), scale, torch.ones_like(scale))
    scale_(first.weight, 1 / scale, 0)
    scale_(first.bias, 1 / scale, 0)
    scale_(second.weight, scale.repeat_interleave(pair.repeat), 0 if deep else 1)
    return float(scale.log().abs().max())


def _reading(second: Any, deep: bool, repeat: int) -> Tensor:
    weight: Tensor = second.weight.detach().abs()
    read = weight.flatten(1).amax(1) if deep else weight.transpose(0, 1).flatten(1).amax(1)
    return read.reshape(-1, repeat).amax(1)
