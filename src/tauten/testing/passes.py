"""What every pass must hold.

Each function of ``CHECKS`` takes a pass and an empty folder to work in, and raises ``AssertionError`` where the
contract is broken. A pass is tried on the first of ``TASKS`` that it does not refuse: a tiny residual CNN, or a tiny
vision transformer, both with labelled data. ``example`` makes a pass of a class.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from tauten.core.target import Target
from tauten.errors import PassError, RecipeError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.apply import apply, seed_all
from tauten.make.model.build import build, to_model
from tauten.make.model.digest import digest
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes import PASSES
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.run.engines import load
from tauten.testing._hold import hold
from tauten.testing.engines import draw
from tauten.testing.tiny import residual_task, vision_transformer_task

TASKS: Final[tuple[Callable[[], Task], ...]] = (residual_task, vision_transformer_task)


def example(kind: type[Pass]) -> Pass:
    """A pass of that class: with its defaults, and a half for each number that has none.

    Where the defaults alone do not say what to do, because one of several parameters must, that is ``ratio``, a half.
    """
    required = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    parameters = dict.fromkeys(required, 0.5)
    try:
        return kind.from_parameters(parameters)
    except RecipeError:
        if "ratio" not in kind.__dataclass_fields__:
            raise
        return kind.from_parameters({**parameters, "ratio": 0.5})


def round_trips_through_json(step: Pass, folder: Path) -> None:
    """``from_parameters`` and the registry give back what ``to_json`` wrote, and it is JSON."""
    kind = type(step)
    document = json.loads(json.dumps(step.to_json()))
    hold(document.pop("pass") == step.name, f"to_json names another pass than {step.name}")
    hold(kind.from_parameters(document) == step, f"from_parameters gave another pass for {document}")
    if step.name in PASSES.names():
        hold(pass_from_json({"pass": step.name, **document}) == step, "the registry's pass differs")


def refuses_parameters_that_do_not_fit(step: Pass, folder: Path) -> None:
    """A parameter it has not, or one of a type that no parameter has, gives ``RecipeError``."""
    wrong: list[dict[str, Any]] = [{**_parameters(step), "no_such_parameter": 1}]
    kind, given = type(step), _parameters(step)
    wrong += [{**given, field.name: {"an": ["object"]}} for field in fields(kind)]
    for parameters in wrong:
        try:
            kind.from_parameters(parameters)
        except RecipeError:
            continue
        raise AssertionError(f"{parameters}: expected RecipeError, got a pass")


def does_what_it_declares(step: Pass, folder: Path) -> None:
    """Facts are added and dropped as declared, one that is needed is asked for, and the record tells of it."""
    model, context, made = _tried(step).applied
    expected = (model.facts - step.drops) | step.gives
    hold(made.facts == expected, f"expected facts {sorted(expected)}, got {sorted(made.facts)}")
    record = made.history[-1]
    parameters = json.loads(json.dumps(_parameters(step)))
    hold(record.name == step.name and record.seed == context.seed, f"the record is of {record.name}, {record.seed}")
    hold(record.parameters == parameters, f"the record has parameters {record.parameters}")
    json.dumps(record.to_json())
    hold(Recipe(name="one", passes=(step,)).trains == step.trains, "a recipe disagrees on whether it trains")
    if step.needs:
        try:
            apply(step, model.but(facts=frozenset()), context)
        except RecipeError:
            return
        raise AssertionError(f"needs {sorted(step.needs)}, but runs without")


def leaves_the_model_alone(step: Pass, folder: Path) -> None:
    """Neither the model that it is applied to nor the reference changes."""
    tried = _tried(step)
    model, context, _ = tried.applied
    hold(digest(model.module) == tried.model_before, "the model that was given changed")
    hold(digest(context.reference) == tried.reference_before, "the reference changed")


def repeats_itself(step: Pass, folder: Path) -> None:
    """The same seed gives the same module."""
    model, context, made = _tried(step).applied
    again = apply(step, model, context)
    hold(digest(again.module) == digest(made.module), "the same seed gave another module")


def keeps_the_border(step: Pass, folder: Path) -> None:
    """Outputs keep names, shapes and dtypes, whatever the batch; and the module is in evaluation mode."""
    model, _, made = _tried(step).applied
    hold(made.outputs == model.outputs and made.inputs == model.inputs, "inputs or outputs have other names")
    hold(not any(module.training for module in made.module.modules()), "a module was left in training mode")
    for batch in (1, 5):
        inputs = {spec.name: np.ones(spec.concrete(batch), spec.dtype) for spec in model.inputs}
        before = forward(model.module, model.inputs, model.outputs, inputs)
        after = forward(made.module, made.inputs, made.outputs, inputs)
        for name, array in before.items():
            alike = array.shape == after[name].shape and array.dtype == after[name].dtype
            hold(alike, f"{name}: was {array.dtype}{array.shape}, became {after[name].dtype}{after[name].shape}")


def runs_as_an_artifact(step: Pass, folder: Path) -> None:
    """Lowered to ONNX, written and read again, it answers with finite numbers."""
    _, context, made = _tried(step).applied
    target = Target(name="contract")
    lowered = LOWERINGS.get("onnx")(made, target, context)
    json.dumps(dict(lowered.notes))
    artifact = to_artifact(
        lowered, folder / "artifact", name="contract", engine="onnx", target=target, history=made.history
    )
    engine = load(artifact)
    for batch in (1, 5):
        for name, array in engine(draw(artifact, batch)).items():
            hold(len(array) == batch and np.isfinite(array).all(), f"{name}: batch {batch} gave {array}")


CHECKS: Final[tuple[Callable[[Pass, Path], None], ...]] = (
    round_trips_through_json,
    refuses_parameters_that_do_not_fit,
    does_what_it_declares,
    leaves_the_model_alone,
    repeats_itself,
    keeps_the_border,
    runs_as_an_artifact,
)


@dataclass(frozen=True)
class _Tried:
    """A pass after its first run: what it was ``applied`` to and with, and what came; and digests from before it."""

    applied: tuple[Model, Context, Model]
    model_before: str
    reference_before: str


@cache
def _tried(step: Pass) -> _Tried:
    """The pass applied to the first task's model that it treats; once for all checks, for it may train."""
    refusals = []
    for make in TASKS:
        # Anew for each pass: what one changes must not be held against another.
        model, context = to_model(make()), Context(make(), build(make()), seed=7)
        before, reference = digest(model.module), digest(context.reference)
        try:
            return _Tried((model, context, apply(step, model, context)), before, reference)
        except PassError:
            # What the pass raises itself is a refusal; what apply finds wrong is a fault of the pass.
            reason = _refusal(step, model, context)
            if reason is None:
                raise
            refusals.append(f"{make.__name__}: {reason}")
    raise AssertionError(f"{step.name} can treat none of the tasks: {'; '.join(refusals)}")


def _refusal(step: Pass, model: Model, context: Context) -> str | None:
    """Why the pass cannot treat the model, in its own words."""
    seed_all(context.seed)
    try:
        step(model.but(module=copy.deepcopy(model.module)), context)
    except PassError as fault:
        return str(fault)
    except Exception:  # noqa: BLE001 - a fault of any kind is no refusal
        return None
    return None


def _parameters(step: Pass) -> dict[str, Any]:
    return {key: value for key, value in step.to_json().items() if key != "pass"}
