"""Makes candidates: recipe to artifact. Passes that two recipes begin with are applied once."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from pathlib import Path

from tauten.artifact.read import Artifact
from tauten.core.record import Record
from tauten.core.target import Precision, Target
from tauten.errors import RecipeError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.apply import apply
from tauten.make.model.imported import OnnxModule
from tauten.make.model.model import QUANTIZED, Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.training.memory import give_back
from tauten.make.passes.quantize._sensitivity import layer_sensitivity
from tauten.make.search.recipe import Recipe

_KEPT = 3


class CandidateBuilder:
    """Holds the untouched model, and the last few models on the way from it."""

    def __init__(self, model: Model, target: Target, context: Context) -> None:
        self._context = context
        self._target = target
        self._untouched = model
        self._made: OrderedDict[str, Model] = OrderedDict()

    def check(self, recipe: Recipe) -> None:
        """``RecipeError`` where the model, the task or the target cannot have this recipe; nothing is run for that."""
        task = self._context.task
        if isinstance(self._untouched.module, OnnxModule):
            names = [step.name for step in recipe.passes if not step.name.startswith("quantize.")]
            if names:
                raise RecipeError(f"{', '.join(names)} needs the model's PyTorch code, and it came as an ONNX file")
        if recipe.trains and not task.has("train"):
            names = [step.name for step in recipe.passes if step.trains]
            raise RecipeError(f"{', '.join(names)} trains, but the task has no train data")
        for precision in _precisions(recipe):
            if precision not in self._target.precisions:
                raise RecipeError(f"runs in {precision}, and target {self._target.name} has {self._target.precisions}")

    def make(self, recipe: Recipe, path: Path, key: str) -> Artifact:
        """Apply the passes, lower, and write the artifact to ``path``; what that took of memory is given back.

        The model itself is kept, for the same passes may be lowered in another way next.
        """
        model = self._apply(recipe.passes)
        started = time.perf_counter()
        self._context.progress(f"lower to {recipe.lowering}", 0.0)
        lowered = LOWERINGS.get(recipe.lowering)(model, self._target, self._context, recipe.options)
        record = Record(
            name=f"lower.{recipe.lowering}",
            parameters=dict(recipe.options),
            seed=self._context.seed,
            seconds=time.perf_counter() - started,
            before=model.history[-1].after if model.history else "",
            after=hashlib.sha256(b"".join((lowered.graph, *lowered.more.values()))).hexdigest(),
            notes=dict(lowered.notes),
        )
        artifact = to_artifact(
            lowered,
            path,
            name=self._context.task.name,
            engine=recipe.lowering,
            target=self._target,
            recipe=recipe.to_json(),
            history=(*model.history, record),
            key=key,
            codec=recipe.codec,
        )
        del lowered
        give_back()
        return artifact

    def before(self, recipe: Recipe, index: int) -> Model:
        """The model that the recipe's pass at ``index`` gets."""
        return self._apply(recipe.passes[:index])

    def sensitivity(self, recipe: Recipe, index: int) -> dict[str, float]:
        """What the outputs lose when the pass at ``index`` quantizes one layer alone, by the layer's path.

        Raises ``PassError`` for a pass that puts no layers on grids.
        """
        return layer_sensitivity(self.before(recipe, index), self._context, recipe.passes[index])

    def _apply(self, passes: tuple[Pass, ...]) -> Model:
        model = self._untouched
        for index, step in enumerate(passes):
            prefix = json.dumps([earlier.to_json() for earlier in passes[: index + 1]], sort_keys=True)
            if prefix in self._made:
                self._made.move_to_end(prefix)
                model = self._made[prefix]
                continue
            self._context.progress(step.name, index / len(passes))
            model = self._made[prefix] = apply(step, model, self._context)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return model


def _precisions(recipe: Recipe) -> tuple[Precision, ...]:
    """What the target has to have: the precision that the recipe brings the model to, and those of other layers."""
    halves: list[Precision] = [
        getattr(step, "dtype", "float16") for step in recipe.passes if step.name == "device.half"
    ]
    for step in recipe.passes:
        if QUANTIZED in step.gives:
            bits: dict[int, Precision] = {16: getattr(step, "half", "float16"), 8: "int8", 4: "int4"}
            others = [precision for _, precision in getattr(step, "layers", ())]
            return tuple(dict.fromkeys((bits[getattr(step, "bits", 8)], *others, *halves)))
    return tuple(dict.fromkeys(halves)) or ("float32",)
