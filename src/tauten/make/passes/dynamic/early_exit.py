"""Lets easy samples leave early (Teerapittayanon et al., 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import nn

from tauten.errors import PassError, RecipeError
from tauten.make.layers.early_exit import NEVER, Confidence, EarlyExits
from tauten.make.model.loss import are_classes
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import call, to_tensor
from tauten.make.model.train import Training
from tauten.make.passes.dynamic._heads import make_head, train_heads, train_together
from tauten.make.passes.dynamic._judge import judge
from tauten.make.passes.dynamic._points import Point, find_points, named_points, spread
from tauten.make.passes.dynamic._thresholds import Held, Outcome, for_drop, for_share, outcome

__all__ = ["EarlyExit"]


@dataclass(frozen=True)
class EarlyExit(Pass):
    """Small heads inside a classifier answer for the samples that they are sure of; only the others go on.

    There are at most ``exits`` heads, spread over the points through which all that was computed flows, or one on the
    output of each module named in ``at``. They are trained for ``epochs`` (``steps`` at least) on labels and on the
    model's own answers, while the model stays as it is; ``together`` trains both.

    How sure a head has to be is set on validation data: so that the mean cost is least at which, beyond doubt, at most
    ``max_drop`` points are lost (of right labels, or of the model's own answers where there are none), or so that
    ``share`` of the samples leave. Cost is counted in products; an exit that does not pay is left out, and told under
    ``refused``.

    ``learning_rate`` is the peak; default: the task's.
    """

    name: ClassVar[str] = "dynamic.early_exit"
    trains: ClassVar[bool] = True

    exits: Annotated[int, Field(ge=1, le=16)] = 2
    at: tuple[str, ...] = ()
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    confidence: Confidence = "probability"
    together: bool = False
    epochs: int = 3
    steps: int = 300
    learning_rate: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.exits <= 16:
            raise RecipeError(f"{self.name}: exits: expected 1 to 16, got {self.exits}")
        if not 0 <= self.max_drop < math.inf:
            raise RecipeError(f"{self.name}: max_drop: expected 0 or more points, got {self.max_drop}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise RecipeError(f"{self.name}: share: expected a number from 0 to 1, got {self.share}")
        if self.confidence not in get_args(Confidence):
            raise RecipeError(
                f"{self.name}: confidence: expected one of {', '.join(get_args(Confidence))}, got {self.confidence!r}"
            )
        if self.epochs < 1:
            raise RecipeError(f"{self.name}: epochs: expected at least 1, got {self.epochs}")
        if self.steps < 0:
            raise RecipeError(f"{self.name}: steps: expected 0 or more, got {self.steps}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"{self.name}: learning_rate: expected a number above 0, got {self.learning_rate}")

    def __call__(self, model: Model, context: Context) -> Change:
        """Put exits into the model. Raises ``PassError`` where it is no classifier of one output or has no point."""
        task = context.task
        if not task.has("train"):
            raise PassError(f"{self.name}: trains, but the task has no train data; give tauten.Task(..., train=...)")
        classes = _classes(model, context)
        points = self._points(model, context)
        convolves = any(isinstance(layer, nn.Conv1d) for layer in model.module.modules())
        heads = {point.path: make_head(point, classes, convolves) for point in points}
        module = EarlyExits(model.module, heads, self.confidence).eval()
        training = Training(
            epochs=self.epochs,
            steps=self.steps,
            learning_rate=self.learning_rate or task.learning_rate,
            precision=self.precision,
        )
        if self.together:
            trained = train_together(module, model, context, training, self)
        else:
            trained = train_heads(module, model, context, training)
        context.progress("finding how sure the exits have to be", 1.0)
        held, on = judge(module, points, model, context.task)
        thresholds = for_drop(held, self.max_drop) if self.share is None else for_share(held, self.share)
        reached = outcome(held, thresholds)
        module.thresholds.copy_(torch.tensor(thresholds))
        module.shares = reached.shares
        kept = [index for index, threshold in enumerate(thresholds) if threshold < NEVER]
        notes = {
            "exits": [_note(module, points[index], index, held, reached) for index in kept],
            "refused": {point.path: self._why() for index, point in enumerate(points) if index not in kept},
            "stays_to_the_end": max(0.0, 1 - sum(reached.shares)),
            "mean_products": reached.cost,
            "points_lost": dict(zip(("value", "low", "high"), reached.drop, strict=True)),
            "judged_on": on,
            "training": trained.to_notes(),
        }
        if not kept:
            return Change(module.model, notes)
        module.keep(kept)
        return Change(module, notes)

    def _why(self) -> str:
        if self.share is not None:
            return "no sample of the wanted share leaves here"
        return f"no sample can leave here and save anything with at most {self.max_drop:g} points lost beyond doubt"

    def _points(self, model: Model, context: Context) -> list[Point]:
        example = next(iter(context.task.data("calibrate")))[0]
        if self.at:
            return named_points(model.module, model.inputs, example, self.at)
        points = spread(find_points(model.module, model.inputs, example), self.exits)
        if not points:
            raise PassError(
                f"{self.name}: the model has no module in its first two thirds whose output is all that is read after; "
                "name modules with at=(...)"
            )
        return points


def _note(module: EarlyExits, point: Point, index: int, held: Held, reached: Outcome) -> dict[str, Any]:
    return {
        "at": point.path,
        "products_until": point.share,
        "products_of_head": float(held.heads[index]),
        "confidence": module.confidence,
        "temperature": float(module.temperatures[index]),
        "threshold": float(module.thresholds[index]),
        "share": reached.shares[index],
    }


def _classes(model: Model, context: Context) -> int:
    """How many classes the model tells apart; ``PassError`` where it is no classifier of samples."""
    task, name = context.task, EarlyExit.name
    if not any(spec.batch_axis is not None for spec in model.inputs):
        raise PassError(f"{name}: expected an input with a named batch dimension, for samples leave one by one")
    if len(model.outputs) != 1:
        raise PassError(f"{name}: expected a model with one output, class scores; it has {list(model.outputs)}")
    inputs, labels = next(iter(task.data("train")))
    with torch.no_grad():
        (scores,) = call(model.module, model.inputs, model.outputs, inputs).values()
    if scores.ndim != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        raise PassError(
            f"{name}: expected class scores (batch, classes) of at least two classes, got {model.outputs[0]!r} as "
            f"{str(scores.dtype).removeprefix('torch.')}{tuple(scores.shape)}"
        )
    if labels is not None and not (are_classes(to_tensor(labels)) and labels.size == len(scores)):
        raise PassError(
            f"{name}: expected labels that number the class of each sample, got {labels.dtype}{labels.shape}: what the "
            "model answers is no class"
        )
    return int(scores.shape[1])
