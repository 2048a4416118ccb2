"""Which modules of a model run in 16 bits, and which stay in float32: found by running each on calibration data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tauten.make.passes.device._casts import HALF, CastInputs, CastOutputs, cast, tensors

ROOT = ""
_TOO_FAR = "relative error"


@dataclass(frozen=True)
class Call:
    """What a module was called with, and what it returned, in float32."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


@dataclass
class Halves:
    """A copy of a module, part by part in 16 bits; what does not bear that is an island of float32.

    Every part is held against what it answered in float32, on the same inputs: layers first, then what they are parts
    of, since code between layers may overflow where no layer does. Islands are added and never taken back.
    """

    exact: nn.Module
    dtype: torch.dtype
    tolerance: float
    module: nn.Module = field(init=False)
    islands: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    _handles: dict[str, RemovableHandle] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module = copy.deepcopy(self.exact).eval()
        self._parts = dict(self.module.named_modules())
        self._exact = dict(self.exact.named_modules())
        self._made: dict[int, nn.Parameter] = {}  # one that is shared stays shared
        self._kept: dict[int, nn.Parameter] = {}
        for path in self._parts:
            self._halve(path)
        self.module.register_forward_hook(CastOutputs())

    def settle(self, calls: dict[str, list[Call]]) -> float:
        """Make islands until every part answers closely enough, the whole too; returns the error of the whole.

        It is at most the tolerance, unless everything is an island.
        """
        for path in _inside_first(self.module):
            if not self._in_island(path) and path != ROOT:
                self._settle(path, calls.get(path, []))
        return self._settle_root(calls[ROOT])

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left in 16 bits."""
        return not any(tensor.dtype in HALF for tensor in (*self.module.parameters(), *self.module.buffers()))

    def _settle(self, path: str, calls: list[Call]) -> None:
        fault = self._fault(path, calls)
        if fault is None:
            return
        if not self._is_layer(path) and self._has_own(path):
            self._restore_own(path)
            if self._fault(path, calls) is None:
                self.islands[f"{path} (its own parameters)"] = fault
                return
        self.add_island(path, fault)

    def _settle_root(self, calls: list[Call]) -> float:
        if self._fault(ROOT, calls) is not None and self._has_own(ROOT) and not self._is_layer(ROOT):
            self._restore_own(ROOT)
        fault = self._fault(ROOT, calls)
        if fault is not None and not fault.startswith(_TOO_FAR) and self._settle_by_one(calls, fault):
            fault = None
        step = 1
        while fault is not None:
            # Each is close enough and all together are not: those that are furthest off go first, in growing numbers.
            left = self._layers_left()
            if not left:
                self.add_island(ROOT, fault)
                return 0.0
            for path in left[:step]:
                self.add_island(path, f"relative error {self.errors[path]:.2g}; the whole model {fault}")
            step *= 2
            fault = self._fault(ROOT, calls)
        return self.errors.get(ROOT, 0.0)

    def _settle_by_one(self, calls: list[Call], fault: str) -> bool:
        """Whether one layer as an island is enough, as it is where code after it overflows on its answer."""
        for path in self._layers_left():
            self.add_island(path, f"the whole model {fault}")
            if self._fault(ROOT, calls) is None:
                return True
            self._handles.pop(path).remove()
            del self.islands[path]
            self._halve(path)
        return False

    def _layers_left(self) -> list[str]:
        """Layers that are no islands, those with the largest error first."""
        found = sorted(self.errors, key=lambda path: -self.errors[path])
        return [path for path in found if path != ROOT and not self._in_island(path) and self._is_layer(path)]

    def _is_layer(self, path: str) -> bool:
        return not any(True for _ in self._parts[path].children())

    def add_island(self, path: str, reason: str) -> None:
        """The part, with all that it holds, in float32 from now on."""
        for inner in [path, *(other for other in self._parts if _lies_in(other, path))]:
            self._restore_own(inner)
            self.islands.pop(inner, None)
            self.islands.pop(f"{inner} (its own parameters)", None)
        if path == ROOT:
            self.islands.clear()
        self._handles[path] = self._parts[path].register_forward_pre_hook(
            CastInputs(torch.float32, HALF), with_kwargs=True, prepend=True
        )
        self.islands[path] = reason

    def _halve(self, path: str) -> None:
        part, exact = self._parts[path], self._exact[path]
        own = 0
        for name, parameter in exact._parameters.items():
            if parameter is not None and parameter.dtype == torch.float32:
                if id(parameter) not in self._made:
                    half = nn.Parameter(parameter.detach().to(self.dtype), parameter.requires_grad)
                    self._made[id(parameter)] = half
                part._parameters[name] = self._made[id(parameter)]
                own += 1
        for name, buffer in exact._buffers.items():
            if buffer is not None and buffer.dtype == torch.float32:
                part._buffers[name] = buffer.to(self.dtype)
                own += 1
        if own:
            hook = CastInputs(self.dtype, (torch.float32,))
            self._handles[path] = part.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)

    def _restore_own(self, path: str) -> None:
        if path in self._handles:
            self._handles.pop(path).remove()
        part, exact = self._parts[path], self._exact[path]
        for name, parameter in exact._parameters.items():
            if parameter is not None:
                if id(parameter) not in self._kept:
                    self._kept[id(parameter)] = copy.deepcopy(parameter)
                part._parameters[name] = self._kept[id(parameter)]
        for name, buffer in exact._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.detach().clone()

    def _has_own(self, path: str) -> bool:
        part = self._parts[path]
        own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        return any(tensor.dtype in HALF for tensor in own)

    def _in_island(self, path: str) -> bool:
        return any(path == island or _lies_in(path, island) for island in self.islands)

    def _fault(self, path: str, calls: list[Call]) -> str | None:
        """Why the part cannot stay in 16 bits; ``None`` where it can, with its error noted."""
        worst = 0.0
        for call in calls:
            try:
                with torch.inference_mode():
                    out = self._parts[path](*copy_of(call.args), **copy_of(call.kwargs))
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as fault:
                return f"does not run: {type(fault).__name__}: {str(fault).strip().splitlines()[0][:200]}"
            for exact, half in zip(tensors(call.out), tensors(out), strict=True):
                if not exact.is_floating_point():
                    continue
                lost = int((exact.isfinite() & ~half.isfinite()).sum())
                if lost:
                    return f"overflows: {lost} of {exact.numel()} numbers are no longer finite"
                worst = max(worst, relative_error(exact, half))
        self.errors[path] = max(worst, self.errors.get(path, 0.0)) if path != ROOT else worst
        return f"{_TOO_FAR} {worst:.2g} is above {self.tolerance:g}" if worst > self.tolerance else None


def relative_error(exact: torch.Tensor, half: torch.Tensor) -> float:
    """The root of the mean square of the difference, in that of what is exact; where that is zero, as it is."""
    kept = exact.isfinite()
    wanted, came = exact[kept].double(), half[kept].double()
    size = float(wanted.norm())
    return float((came - wanted).norm()) / (size if size > 0 else 1.0)


@contextmanager
def watching(module: nn.Module) -> Iterator[dict[str, list[Call]]]:
    """Every call of every part while this lasts, by path; copies, for parts may work in place."""
    calls: dict[str, list[Call]] = {}
    pending: dict[str, list[tuple[Any, Any]]] = {}
    handles = []
    for path, part in module.named_modules():

        def before(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            pending.setdefault(path, []).append((copy_of(args), copy_of(kwargs)))

        def after(_: nn.Module, args: Any, kwargs: Any, out: Any, path: str = path) -> None:
            came = pending[path].pop()
            calls.setdefault(path, []).append(Call(came[0], came[1], copy_of(out)))

        handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(part.register_forward_hook(after, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def copy_of(value: Any) -> Any:
    """The structure with every tensor copied."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: copy_of(inner) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(copy_of(inner) for inner in value)
    return cast(value, torch.float32, ())


def _inside_first(module: nn.Module, path: str = ROOT) -> Iterator[str]:
    for name, child in module.named_children():
        yield from _inside_first(child, f"{path}.{name}" if path else name)
    yield path


def _lies_in(path: str, outer: str) -> bool:
    return path != outer and (outer == ROOT or path.startswith(f"{outer}."))
