"""Features inside a teacher that a student learns to hold too (FitNets: Romero et al., 2015).

A linear map from the student's width to the teacher's learns along and is thrown away; over pictures it is a 1x1
convolution. Other than in FitNets, hints are learned together with the answers, not in a stage before; the map begins
as the best one on a batch (least squares), so that the hint says something from the first step; and the error is
measured in units of the teacher's mean square, so that one weight fits every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import Arrays
from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.model.run import Tensors, call
from tauten.make.model.training.randomness import randomness_kept
from tauten.make.model.training.recompute import find_blocks
from tauten.make.passes.distill._losses import in_rows

AUTO = "auto"
_POINTS = 3
_ROWS = 4096


@dataclass(frozen=True)
class Hint:
    """A module of the teacher, one of the student, and the axis of their features."""

    teacher: str
    student: str
    axis: int

    @property
    def name(self) -> str:
        """As a recipe has it."""
        return self.teacher if self.teacher == self.student else f"{self.teacher}={self.student}"


class Hints(nn.Module):
    """The points, and the maps between them: one a point, nothing where both are equally wide."""

    def __init__(self, points: tuple[Hint, ...], maps: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.points = points
        self.maps = nn.ModuleDict({str(index): maps[point.name] for index, point in enumerate(points)})
        self.seen: Tensors = {}

    def error(self, features: Tensors) -> torch.Tensor:
        """How far the student's last features, once mapped, are from the teacher's: a mean over the points."""
        errors = []
        for index, point in enumerate(self.points):
            ours, theirs = in_rows(self.seen[point.student].float(), point.axis), features[point.teacher]
            theirs = in_rows(theirs.float(), point.axis)
            errors.append(
                functional.mse_loss(self.maps[str(index)](ours), theirs) / theirs.square().mean().clamp(1e-12)
            )
        return torch.stack(errors).mean()

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        """The student's features are kept at each call meanwhile."""
        with _watching(student, [point.student for point in self.points], self.seen):
            yield
        self.seen.clear()

    def features(self, teacher: nn.Module, model: Model, inputs: Arrays) -> tuple[Tensors, Tensors]:
        """A teacher's outputs and features."""
        found: Tensors = {}
        with _watching(teacher, [point.teacher for point in self.points], found):
            return call(teacher, model.inputs, model.outputs, inputs), found


def find_hints(given: tuple[str, ...], model: Model, teacher: nn.Module, inputs: Arrays) -> Hints:
    """The hints that ``given`` asks for: ``NAME``, ``TEACHER=STUDENT``, or ``auto``.

    ``auto`` takes up to three points, at a quarter, a half and three quarters of the way through the teacher, whose
    features have the same places (positions, pixels) in both; widths may differ. Raises ``PassError`` for a name that
    there is not, or features that do not fit.
    """
    theirs, ours = _walk(teacher, model, inputs), _walk(model.module, model, inputs)
    by_place = _blocks(teacher, theirs), _blocks(model.module, ours)
    points = _choose(*by_place) if given == (AUTO,) else tuple(_point(text, theirs, ours) for text in given)
    maps: dict[str, nn.Module] = {}
    for point in points:
        maps[point.name] = _fit(in_rows(ours[point.student], point.axis), in_rows(theirs[point.teacher], point.axis))
    return Hints(points, maps)


def _point(text: str, theirs: Tensors, ours: Tensors) -> Hint:
    one, _, other = text.partition("=")
    other = other or one
    for whose, name, there in (("teacher", one, theirs), ("student", other, ours)):
        if name not in there:
            known = ", ".join(list(there)[:20])
            raise PassError(f"hints: the {whose} has no module {name!r} that gives one tensor; such are {known}")
    axis = _axis(theirs[one], ours[other])
    if axis is None:
        shapes = f"{tuple(theirs[one].shape)} and {tuple(ours[other].shape)}"
        raise PassError(f"hints: {text}: expected features that differ in one axis at most, their width, got {shapes}")
    return Hint(one, other, axis)


def _choose(theirs: Tensors, ours: Tensors) -> tuple[Hint, ...]:
    """Points by position: the same name where there is one, or else what comes as far through the student."""
    names = list(theirs)
    chosen: dict[str, Hint] = {}
    for quarter in range(1, _POINTS + 1):
        by_nearness = sorted(range(len(names)), key=lambda at: abs((at + 1) / (len(names) + 1) - quarter / 4))
        for at in by_nearness:
            point = _partner(names[at], (at + 1) / len(names), theirs[names[at]], ours)
            if point is not None:
                chosen[point.name] = point
                break
    if not chosen:
        raise PassError(
            "hints: no features of teacher and student have the same places; name two modules: teacher=student"
        )
    return tuple(chosen.values())


def _partner(name: str, done: float, feature: torch.Tensor, ours: Tensors) -> Hint | None:
    others = list(ours)
    near = sorted(range(len(others)), key=lambda at: abs((at + 1) / len(others) - done))
    for other in ([name] if name in others else []) + [others[at] for at in near]:
        axis = _axis(feature, ours[other])
        if axis is not None:
            return Hint(name, other, axis)
    return None


def _blocks(module: nn.Module, features: Tensors) -> Tensors:
    """What the module's repeated blocks give, or where there are none its layers, the last one aside: the answer."""
    blocks = set(find_blocks(module))
    found = {name: value for name, value in features.items() if module.get_submodule(name) in blocks}
    return found or dict(list(features.items())[:-1])


def _axis(theirs: torch.Tensor, ours: torch.Tensor) -> int | None:
    """The axis of the width: the one that differs, or by custom; ``None`` where more differ, or the batch does."""
    if theirs.ndim != ours.ndim or theirs.ndim < 2 or theirs.shape[0] != ours.shape[0]:
        return None
    apart = [axis for axis in range(theirs.ndim) if theirs.shape[axis] != ours.shape[axis]]
    if len(apart) > 1:
        return None
    return apart[0] if apart else -1 if theirs.ndim == 3 else 1


def _fit(ours: torch.Tensor, theirs: torch.Tensor) -> nn.Module:
    """The linear map that is best on these rows, slightly ridged; none where both are equally wide."""
    if ours.shape[1] == theirs.shape[1]:
        return nn.Identity()
    layer = nn.Linear(ours.shape[1], theirs.shape[1]).to(ours.device)
    spread = torch.linspace(0, len(ours) - 1, min(len(ours), _ROWS), device=ours.device).round().long()
    x, y = ours[spread].double(), theirs[spread].double()
    middle, aim = x.mean(0), y.mean(0)
    square = (x - middle).T @ (x - middle)
    ridge = 1e-3 * square.diagonal().mean().clamp(min=1e-12)
    square.diagonal().add_(ridge)
    weight = torch.linalg.solve(square, (x - middle).T @ (y - aim)).T
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(aim - weight @ middle)
    return layer


def _walk(module: nn.Module, model: Model, inputs: Arrays) -> Tensors:
    """Features by module, in the order of execution; modules that run twice or give no tensor of floats left out."""
    found: Tensors = {}
    twice: set[str] = set()
    names = [name for name, _ in module.named_modules() if name]
    with torch.no_grad(), randomness_kept(), _watching(module, names, found, twice):
        call(module, model.inputs, model.outputs, inputs)
    return {name: value for name, value in found.items() if name not in twice and value.is_floating_point()}


@contextmanager
def _watching(module: nn.Module, names: list[str], found: Tensors, twice: set[str] | None = None) -> Iterator[None]:
    """What the named modules give, of several the first, is put into ``found`` meanwhile."""

    def hook(name: str) -> object:
        def keep(layer: nn.Module, given: object, came: object) -> None:
            if twice is not None and name in found:
                twice.add(name)
            came = came[0] if isinstance(came, tuple | list) and came else came
            if isinstance(came, torch.Tensor):
                found[name] = came

        return keep

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
