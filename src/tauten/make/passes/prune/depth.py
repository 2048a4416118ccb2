"""Removes whole residual blocks, so that the model is shallower for every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Arrays
from tauten.errors import PassError, RecipeError
from tauten.make.graph.export import export
from tauten.make.graph.residual import Block
from tauten.make.graph.shorten import Shortener
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward

__all__ = ["Depth"]


@dataclass(frozen=True)
class Depth(Pass):
    """Removes the residual blocks ``x + f(x)`` without which the model answers most alike: ``f`` goes, ``x`` stays.

    ``blocks`` says how many, or ``ratio`` which share of those that can be removed (rounded, at least one); with
    neither, one goes. ``keep`` names blocks that stay, or modules that hold them. What comes after the sum, such as a
    norm or a ReLU, stays. In a transformer, attention and the layers after it are a block each.

    Importance is measured: the squared difference that a block's absence makes to the outputs on ``samples``
    calibration samples, over the variance of the untouched model's. The least important block goes, and the rest is
    measured anew (greedy leave-one-out; Men et al., 2024, and Gromov et al., 2024, rank once, by how much a block
    changes its input).
    """

    name: ClassVar[str] = "prune.depth"

    blocks: Annotated[int, Field(ge=1)] | None = None
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    keep: tuple[str, ...] = ()
    samples: Annotated[int, Field(ge=1)] = 64

    def __post_init__(self) -> None:
        if self.blocks is not None and self.ratio is not None:
            raise RecipeError(f"{self.name}: blocks and ratio both say how many blocks go: give one of them")
        if self.blocks is not None and self.blocks < 1:
            raise RecipeError(f"{self.name}: blocks: expected at least 1, got {self.blocks}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise RecipeError(f"{self.name}: ratio: expected above 0 and at most 1, got {self.ratio}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples: expected at least 1, got {self.samples}")

    def __call__(self, model: Model, context: Context) -> Change:
        example = next(iter(context.task.data("calibrate")))[0]
        context.progress("finding residual blocks", 0.0)
        shortener = Shortener(
            model.module,
            export(model.module, model.inputs, example),
            model.inputs,
            example,
            lambda module, arrays: forward(module, model.inputs, model.outputs, arrays),
        )
        free = self._free(shortener)
        count = self.blocks if self.blocks is not None else max(1, round((self.ratio or 0.0) * len(free)))
        if count > len(free):
            raise PassError(
                f"{count} blocks are to go, but only {len(free)} can: {', '.join(block.name for block in free)}"
            )
        before = _count(model.module)
        importance = _Importance(model, context, self.samples)
        removed, steps = self._choose(shortener, free, count, importance, context)
        shortener.remove(removed)
        notes = {
            "removed": [
                {
                    "block": block.name,
                    "divergence": step[block.name],
                    "parameters": block.parameters,
                    "layers": list(block.layers),
                }
                for block, step in zip(removed, steps, strict=True)
            ],
            "divergences": steps[0],
            "refused": shortener.refused,
            "parameters_before": before,
            "parameters_after": _count(model.module),
        }
        return Change(model.module, notes)

    def _free(self, shortener: Shortener) -> list[Block]:
        """The blocks that can go and may."""
        blocks = shortener.blocks
        if not blocks:
            told = "; ".join(f"{name}: {why}" for name, why in list(shortener.refused.items())[:5])
            raise PassError(f"no residual block of the model can be removed: {told or 'it has none'}")
        names = [*(block.name for block in blocks), *shortener.refused]
        for kept in self.keep:
            if not any(_holds(kept, name) for name in names):
                raise PassError(f"keep: no residual block is in {kept!r}; there are {', '.join(names)}")
        free = [block for block in blocks if not any(_holds(kept, block.name) for kept in self.keep)]
        if not free:
            raise PassError(f"keep: every residual block is to stay: {', '.join(names)}")
        return free

    def _choose(
        self, shortener: Shortener, free: Sequence[Block], count: int, importance: _Importance, context: Context
    ) -> tuple[list[Block], list[dict[str, float]]]:
        """The blocks that go, in that order, and the divergences of all that were open at each step."""
        removed: list[Block] = []
        steps: list[dict[str, float]] = []
        left = list(free)
        while len(removed) < count:
            if not left:
                raise PassError(f"only {len(removed)} of {count} blocks can be removed together: {shortener.refused}")
            step = {}
            for block in left:
                context.progress(f"the model without {block.name}", len(removed) / count)
                with shortener.without([*removed, block]) as shorter:
                    step[block.name] = importance(shorter)
            least = min(left, key=lambda block: step[block.name])
            left.remove(least)
            why = shortener.fault([*removed, least])
            if why:
                shortener.refused[least.name] = f"cannot go together with {removed[-1].name}: {why}"
                continue
            removed.append(least)
            steps.append(step)
        return removed, steps


class _Importance:
    """How far a module's outputs are from the untouched model's, on calibration data."""

    def __init__(self, model: Model, context: Context, samples: int) -> None:
        self._model = model
        self._batches = list(_first(model, context, samples))
        self._expected = [self._answers(context.reference, batch) for batch in self._batches]

    def __call__(self, module: nn.Module) -> float:
        """Squared difference over variance, summed over the outputs that are numbers."""
        found = [self._answers(module, batch) for batch in self._batches]
        total = 0.0
        for name in self._expected[0]:
            expected = np.concatenate([answers[name].ravel() for answers in self._expected]).astype(np.float64)
            other = np.concatenate([answers[name].ravel() for answers in found]).astype(np.float64)
            total += float(np.mean((expected - other) ** 2) / max(float(expected.var()), np.finfo(np.float64).tiny))
        return total

    def _answers(self, module: nn.Module, batch: Arrays) -> Arrays:
        found = forward(module, self._model.inputs, self._model.outputs, batch)
        numbers = {name: array for name, array in found.items() if np.issubdtype(array.dtype, np.floating)}
        return numbers or found


def _first(model: Model, context: Context, samples: int) -> Iterator[Arrays]:
    for inputs, _ in context.task.data("calibrate"):
        size = min(samples, count_rows(model.inputs, inputs))
        yield take_rows(model.inputs, inputs, range(size))
        samples -= size
        if samples <= 0:
            return


def _holds(kept: str, name: str) -> bool:
    return name == kept or name.startswith(f"{kept}.")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
