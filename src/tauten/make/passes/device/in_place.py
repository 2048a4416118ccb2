"""Activations that write over what they are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import nn

from tauten.core.tensor import Array, Arrays
from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import call, forward
from tauten.make.model.training.trial import trying
from tauten.make.passes.device._peak import compare, measure_peak
from tauten.make.passes.device._readers import Readers

__all__ = ["InPlace"]

_KINDS: Final = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.ELU, nn.CELU,
    nn.SELU, nn.Threshold,
)  # fmt: skip


@dataclass(frozen=True)
class InPlace(Pass):
    """Sets ``inplace`` on activation modules where it is proven that nobody sees the difference.

    The proof is the exported program: what the activation is given must have no other reader, must not lie in the
    memory of an input, a weight, or an output, and must not be expanded. An activation that is called several times
    must be proven each time. What gradients need is tried: one step back in training mode must not miss anything.
    Everything else is left alone and named under ``refused``. The answers are the same, bit for bit.
    """

    name: ClassVar[str] = "device.in_place"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, model: Model, context: Context) -> Change:
        """Change the activations of ``model.module``. Raises ``PassError`` where there is none, or no program."""
        paths = _activations(model.module)
        if not paths:
            kinds = ", ".join(kind.__name__ for kind in _KINDS)
            raise PassError(f"{self.name}: the model has no activation module that could work in place ({kinds})")
        example = next(iter(context.task.data("calibrate")))[0]
        before = forward(model.module, model.inputs, model.outputs, example)
        peak = measure_peak(model, example)
        readers = Readers(model, example)
        counts = _count_calls(model, list(paths), example)
        done: dict[str, nn.Module] = {}
        refused: dict[str, str] = {}
        for part, names in paths.items():
            reason = _why_not(readers, names, counts[part])
            if reason is None:
                done[min(names)] = part
            else:
                refused[min(names)] = reason
        for part in done.values():
            _set(part, True)
        refused |= _not_trainable(model, done, example)
        _hold_equal(self.name, model, example, before)
        notes: dict[str, Any] = {
            "in_place": sorted(done),
            "refused": refused,
            "peak": compare(peak, measure_peak(model, example)),
        }
        return Change(model.module, notes)


def _activations(module: nn.Module) -> dict[nn.Module, set[str]]:
    """Activations that do not work in place yet, each with every path that it is known by."""
    found: dict[nn.Module, set[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if type(part) in _KINDS and not part.inplace:
            found.setdefault(part, set()).add(path)
    return found


def _set(part: nn.Module, in_place: bool) -> None:
    part.inplace = in_place  # type: ignore[assignment]  # a plain attribute, which modules are not typed for


def _count_calls(model: Model, parts: list[nn.Module], example: Arrays) -> Counter[nn.Module]:
    counts: Counter[nn.Module] = Counter()
    handles = [part.register_forward_hook(lambda layer, given, found: counts.update([layer])) for part in parts]
    try:
        forward(model.module, model.inputs, model.outputs, example)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _why_not(readers: Readers, paths: set[str], calls: int) -> str | None:
    nodes = readers.calls(paths)
    if not nodes:
        return "the model does not call it"
    if len(nodes) != calls:
        return f"it is called {calls} times, and the program of the model shows {len(nodes)} operations of it"
    return next((reason for node in nodes if (reason := readers.why_not_in_place(node)) is not None), None)


def _not_trainable(model: Model, done: dict[str, nn.Module], example: Arrays) -> dict[str, str]:
    """Take out of ``done`` what a step back cannot do without, and say so of each."""
    refused: dict[str, str] = {}
    if _steps_back(model, example):
        return refused
    for part in done.values():
        _set(part, False)
    if not _steps_back(model, example):
        # Not for their sake: the model cannot be trained anyhow.
        for part in done.values():
            _set(part, True)
        return refused
    for path, part in list(done.items()):
        _set(part, True)
        if not _steps_back(model, example):
            _set(part, False)
            del done[path]
            refused[path] = "gradients need what it is given"
    return refused


def _steps_back(model: Model, example: Mapping[str, Array]) -> bool:
    """Whether gradients can be computed in training mode. Leaves no trace."""
    module = model.module
    was = {part: part.training for part in module.modules()}
    module.train()
    try:
        with trying(module), torch.enable_grad():
            found = call(module, model.inputs, model.outputs, example)
            losses = [tensor.float().sum() for tensor in found.values() if tensor.requires_grad]
            learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if losses and learning:
                torch.autograd.grad(sum(losses[1:], losses[0]), learning, allow_unused=True)
    except (RuntimeError, ValueError):
        return False
    finally:
        for part, mode in was.items():
            part.training = mode
    return True


def _hold_equal(name: str, model: Model, example: Arrays, before: Mapping[str, Array]) -> None:
    given = {key: array.copy() for key, array in example.items()}
    after = forward(model.module, model.inputs, model.outputs, given)
    for output, array in after.items():
        if not np.array_equal(array, before[output], equal_nan=True):
            raise PassError(f"{name}: {output} is not what it was, though it was proven to be; please report this")
    for key, array in given.items():
        if not np.array_equal(array, example[key], equal_nan=True):
            raise PassError(f"{name}: the model wrote over its input {key}")
