"""Sets more and more weights to zero while the model trains (Zhu, Gupta, 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import nn

from tauten.errors import PassError
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context
from tauten.make.passes.distill._student import Learning
from tauten.make.passes.prune._kinds import by_kind
from tauten.make.passes.prune._pattern import Pattern, fit_pattern
from tauten.make.passes.prune._share import check_share, sparsity
from tauten.make.passes.prune._smallest import lamp, magnitude, zero_smallest

__all__ = ["Gradual"]

_TIMES: Final = 100
"""How often weights are set to zero at most: more often changes little and costs a sort of all weights each time."""


@dataclass(frozen=True)
class Gradual(Learning):
    """Magnitude pruning in many small steps, between which the model wins back what each has cost.

    The share of zeros rises from ``start`` to ``ratio`` over the first ``share`` of the training, fast at first and
    ever slower (``Schedule``), and the model trains on at the full share. ``ratio``, ``scope`` and ``pattern`` are
    those of ``prune.magnitude``; on the way to a pattern, only weights that it would set to zero become so. The rest
    are the parameters of training, as ``Learning`` tells: with ``distill`` the original teaches.

    The best weights on held-out data are kept, of those epochs that end at the full share: a better epoch of a model
    with fewer zeros is not what was asked for.
    """

    name: ClassVar[str] = "prune.gradual"
    gives: ClassVar[frozenset[str]] = frozenset({SPARSE})
    trains: ClassVar[bool] = True

    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    scope: Literal["layer", "global", "lamp"] = "layer"
    pattern: str = ""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    share: Annotated[float, Field(gt=0, lt=1)] = 0.7
    distill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        final = check_share(self)
        if not 0 <= self.start <= final:
            raise self._wrong("start", f"0 or more and at most the share that becomes zero, {final:g}")
        if not 0 < self.share < 1:
            raise self._wrong("share", "above 0 and below 1")

    def __call__(self, model: Model, context: Context) -> Change:
        """Train ``model.module`` in place. Raises ``PassError`` where there is nothing to prune or to learn from."""
        task = context.task
        self.check_data(task, taught=self.distill)
        weights = dict(by_kind(model.module)["weights"])
        if not weights:
            raise PassError("the model has no weights to prune")
        pruner = _Pruner(self, model.module, weights)
        teachers = (context.teacher,) if self.distill else ()
        learnt = self.learn(model, context, teachers, keep_zeros=True, on_step=pruner, settled=self.share)
        pruner.check()
        return Change(model.module, {**learnt, **sparsity(weights), **pruner.to_notes()})


@dataclass(frozen=True)
class Schedule:
    """``final + (start - final) * (1 - step / until) ** 3`` up to the step ``until``, then ``final``."""

    start: float
    final: float
    until: int

    def __call__(self, step: int) -> float:
        """The share of zeros at a step, counted from 0."""
        if step >= self.until:
            return self.final
        return self.final + (self.start - self.final) * (1 - step / self.until) ** 3

    def acts(self, step: int) -> bool:
        """Whether weights are set to zero at this step: in equal distances, and where the final share is reached."""
        return step == self.until or (step < self.until and step % max(1, math.ceil(self.until / _TIMES)) == 0)


@dataclass
class _Pruner:
    """Called before each step of the training; remembers nothing that a training which goes on would lack."""

    step: Gradual
    module: nn.Module
    weights: Mapping[str, nn.Parameter]
    reached: dict[int, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __call__(self, step: int, steps: int) -> None:
        """Set to zero what the schedule asks for."""
        schedule = Schedule(self.step.start, check_share(self.step), math.floor(self.step.share * steps))
        if schedule.acts(step):
            self.reached[step] = schedule(step)
            self._prune(schedule(step))

    def _prune(self, share: float) -> None:
        if self.step.pattern:
            self._prune_towards(Pattern.parse(self.step.pattern, self.step.name), share)
            return
        listed = list(self.weights.values())
        score = lamp if self.step.scope == "lamp" else magnitude
        for together in [[weight] for weight in listed] if self.step.scope == "layer" else [listed]:
            zero_smallest(together, share, score)

    def _prune_towards(self, pattern: Pattern, share: float) -> None:
        """Of the weights that the pattern sets to zero, so many of the smallest that they are that share of all."""
        masks, self.refused = fit_pattern(self.module, self.weights, pattern)
        for name, mask in masks.items():
            weight = self.weights[name]
            candidates = weight.detach()[mask]
            zero_smallest([candidates], min(1.0, share / pattern.ratio))
            with torch.no_grad():
                weight[mask] = candidates

    def check(self) -> None:
        """``PassError`` where the training ended before the full share was reached."""
        final = check_share(self.step)
        parts = [weight for name, weight in self.weights.items() if name not in self.refused]
        zeros = sum(int((weight == 0).sum()) for weight in parts)
        if self.step.scope == "layer":
            wanted = sum(round(final * weight.numel()) for weight in parts)
        else:
            wanted = round(final * sum(weight.numel() for weight in parts))
        if zeros < wanted:
            raise PassError(
                f"{self.step.name}: {zeros} of {wanted} weights are zero: the training had fewer steps than its data "
                "said; see that train gives as many batches as its length"
            )

    def to_notes(self) -> dict[str, Any]:
        """The shares of zeros by step, and what was left alone."""
        told: dict[str, Any] = {"schedule": [[step, share] for step, share in self.reached.items()]}
        return {**told, "refused": self.refused} if self.step.pattern else told
