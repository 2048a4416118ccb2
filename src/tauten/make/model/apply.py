"""The one place where a pass is applied: it forks the model, times the pass, verifies what came, and records it."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping

import numpy as np
import torch

from tauten.core.record import Record
from tauten.core.tensor import Array
from tauten.errors import PassError, RecipeError, TautenError
from tauten.make.model.digest import digest
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.run import forward
from tauten.make.model.training.checkpoint import Unwritable


def apply(step: Pass, model: Model, context: Context) -> Model:
    """The model after ``step``; ``model`` itself is left as it was.

    Raises ``RecipeError`` where a fact that the pass needs does not hold, ``PassError`` where the pass fails or leaves
    a module that no longer runs, or that answers with other outputs, shapes or with numbers that are not finite.
    """
    missing = sorted(step.needs - model.facts)
    if missing:
        raise RecipeError(f"{step.name} needs {missing}, which does not hold; what holds is {sorted(model.facts)}")
    fork = model.but(module=copy.deepcopy(model.module))
    example = next(iter(context.task.data("calibrate")))[0]
    before = forward(fork.module, model.inputs, model.outputs, example)
    seed_all(context.seed)
    started = time.perf_counter()
    try:
        change = step(fork, context)
    except (TautenError, Unwritable):
        raise
    except Exception as fault:
        raise PassError(f"{step.name}: {type(fault).__name__}: {fault}") from fault
    seconds = time.perf_counter() - started
    module = change.module.eval()
    _verify(step.name, before, module, model, example)
    parameters = {key: value for key, value in step.to_json().items() if key != "pass"}
    record = Record(
        name=step.name,
        parameters=parameters,
        seed=context.seed,
        seconds=seconds,
        before=digest(model.module),
        after=digest(module),
        notes=dict(change.notes),
    )
    return model.but(
        module=module,
        quantization=change.quantization or model.quantization,
        facts=(model.facts - step.drops) | step.gives,
        history=(*model.history, record),
    )


def seed_all(seed: int) -> None:
    """Seed every generator that a pass may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _verify(
    name: str, before: Mapping[str, Array], module: torch.nn.Module, model: Model, example: Mapping[str, Array]
) -> None:
    try:
        after = forward(module, model.inputs, model.outputs, example)
    except Exception as fault:
        raise PassError(f"{name}: the module it left does not run: {type(fault).__name__}: {fault}") from fault
    for output, array in after.items():
        expected = before[output]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise PassError(
                f"{name}: {output} was {expected.dtype}{expected.shape} and became {array.dtype}{array.shape}"
            )
        if np.isfinite(expected).all() and not np.isfinite(array).all():
            raise PassError(f"{name}: {output} holds numbers that are not finite")
