"""The seam of everything that changes a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic
from torch import nn

from tauten.core.value import explain
from tauten.errors import RecipeError
from tauten.make.model.build import build_teacher
from tauten.make.model.model import FLOAT_WEIGHTS, Model, QuantizationPlan
from tauten.make.model.task import Task

Progress = Callable[[str, float], None]
"""Told what is being done and which share of it (0 to 1) is done."""


def silent(what: str, share: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model: the task, the untouched module, a seed, a progress line.

    ``reference`` is in evaluation mode and must not be changed. ``checkpoints`` is the folder in which passes that
    train keep how far they came, so that they go on after a kill.
    """

    task: Task
    reference: nn.Module
    seed: int = 0
    progress: Progress = silent
    checkpoints: Path | None = None

    @cached_property
    def teacher(self) -> nn.Module:
        """Whom a pass that distils learns from: the task's teacher, or the reference; not to be changed either.

        Raises ``TaskError`` where the task's teacher cannot be built, or answers in other shapes.
        """
        return build_teacher(self.task, self.reference)


@dataclass(frozen=True)
class Change:
    """What a pass made: the module, notes for the record (JSON), and a quantization plan where it decided one."""

    module: nn.Module
    notes: Mapping[str, Any] = field(default_factory=dict)
    quantization: QuantizationPlan | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """One change of a model: a frozen dataclass of its few parameters.

    ``name`` is ``folder.file``. ``needs`` are the facts that must hold before it, ``gives`` and ``drops`` those that
    it makes true and untrue. ``trains`` says that it needs ``task.train``.

    ``__call__`` gets a model whose module is its own to change, in evaluation mode, and returns it (or another) so.
    It raises ``PassError`` where it cannot treat the model at all; a layer that it cannot treat safely it leaves alone
    and names in the notes under ``refused`` (layer to reason).
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})
    gives: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, model: Model, context: Context) -> Change:
        """Change the model."""

    def to_json(self) -> dict[str, Any]:
        """``{"pass": name, **parameters}``."""
        return {"pass": self.name, **asdict(self)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """The pass with these parameters; ``RecipeError`` for an unknown one or one of another type."""
        known = sorted(one.name for one in fields(cls))
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise RecipeError(f"{cls.name}: no parameter {unknown}; it has {known}")
        try:
            made: Self = pydantic.TypeAdapter(cls).validate_python(dict(parameters))
        except pydantic.ValidationError as fault:
            # What a pass says of its own parameters names the pass already.
            raise RecipeError(f"{cls.name}: {explain(fault).removeprefix(f'{cls.name}: ')}") from None
        return made
