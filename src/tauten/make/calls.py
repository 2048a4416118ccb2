"""Every pass on its own, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tauten.artifact.read import Artifact
from tauten.core.target import Target, find_target
from tauten.errors import PluginError, TaskError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.task import Task
from tauten.make.passes import PASSES
from tauten.make.passes.distill._reference import refer_to


def prune(
    what: Task | Model,
    method: Literal["structured", "depth", "magnitude", "gradual"] = "structured",
    *,
    task: Task | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Model:
    """Remove channels (``structured``) or residual blocks (``depth``), or set single weights to zero.

    The latter at once (``magnitude``) or step by step in training (``gradual``).

    ``what`` is a task, or a model that another call made (then ``task`` says where data comes from).
    ``parameters`` are the pass', such as ``ratio=0.5``. Raises ``RecipeError`` for parameters that do not fit,
    ``PassError`` where the model cannot be treated.
    """
    return _apply(f"prune.{method}", what, task, seed, parameters)


def sensitivity(
    what: Task | Model, *, task: Task | None = None, seed: int = 0, **parameters: Any
) -> dict[str, list[list[float]]]:
    """How far the outputs move when each group of channels alone is cut: ``{group: [[ratio, loss], ...]}``.

    ``parameters`` are those of ``prune.structured`` that say what is measured, such as ``criterion`` and ``samples``.
    Arguments and errors as in ``prune``; nothing is cut.
    """
    asked = {"ratio": 0, "scope": "sensitivity", "repair": "none", **parameters}
    measured: dict[str, list[list[float]]] = (
        _apply("prune.structured", what, task, seed, asked).history[-1].notes["sensitivity"]
    )
    return measured


def recover(
    what: Task | Model,
    *,
    task: Task | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Model:
    """Train on the task's train data to win quality back, with the original as a teacher unless ``distill=False``.

    With a folder for ``checkpoints``, the same call goes on after a kill where it was. Other arguments and errors as in
    ``prune``.
    """
    return _apply("distill.recover", what, task, seed, parameters, checkpoints)


def distill(
    what: Task | Model,
    students: Sequence[str | Callable[[], nn.Module]] = (),
    *,
    task: Task | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Model:
    """Teach a row of students, each by the one before it; the last one comes back.

    ``students`` are functions that build modules, or references to such, as ``FILE.py:function``; without any, Tauten
    prunes the model further for each of ``ratios``. Other arguments and errors as in ``recover``.
    """
    named = tuple(student if isinstance(student, str) else refer_to(student) for student in students)
    return _apply("distill.progressive", what, task, seed, {"students": named, **parameters}, checkpoints)


def dynamic(
    what: Task | Model,
    method: Literal["early_exit", "gates", "token_merging"] = "early_exit",
    *,
    task: Task | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Model:
    """Let each input decide how much is computed for it: by leaving early, by channels, or by tokens.

    Arguments and errors as in ``prune``.
    """
    return _apply(f"dynamic.{method}", what, task, seed, parameters)


def quantize(
    what: Task | Model,
    method: Literal["post_training", "dynamic", "weight_only", "quantization_aware"] = "post_training",
    *,
    task: Task | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Model:
    """Give weights 16, 8 or 4 bits, and with ``post_training`` and ``quantization_aware`` activations 8.

    The module that comes back computes with the rounded weights, and with rounded inputs where their ranges are fixed;
    ``save`` makes the engine's graph of the same numbers. ``quantization_aware`` trains, and with a folder for
    ``checkpoints`` goes on after a kill where it was. Other arguments and errors as in ``prune``.
    """
    return _apply(f"quantize.{method}", what, task, seed, parameters, checkpoints)


def compress(
    what: Task | Model,
    method: str,
    *,
    task: Task | None = None,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Model:
    """Make weights that take fewer bytes in a file, or fewer weights: ``share``, ``low_rank`` and more.

    What a file takes depends on its codec too, which ``save`` is told. Methods that train go on after a kill with a
    folder for ``checkpoints``. Other arguments and errors as in ``prune``; ``PluginError`` for an unknown method.
    """
    return _apply(f"compress.{method}", what, task, seed, parameters, checkpoints)


def device(
    what: Task | Model,
    method: Literal["half", "in_place", "channels_last", "micro_batches"] = "half",
    *,
    task: Task | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Model:
    """Compute the same in 16 bits (``half``), in less memory (``in_place``, ``micro_batches``), or in another layout.

    The record's notes hold the measured peak of memory before and after, and by name what was refused. Arguments and
    errors as in ``prune``.
    """
    return _apply(f"device.{method}", what, task, seed, parameters)


def save(
    what: Task | Model,
    path: str | os.PathLike[str],
    *,
    task: Task | None = None,
    target: str | Target = "server-cpu",
    seed: int = 0,
    codec: str = "plain",
) -> Artifact:
    """Lower to the target's engine and write the artifact to the folder ``path``, whole or not at all.

    ``codec`` is how its weights are stored. Raises ``LoweringError`` where the model cannot become a graph,
    ``MismatchError`` where the graph answers otherwise, ``PluginError`` for an unknown codec.
    """
    model, context = _begin(what, task, seed)
    where = find_target(target)
    lowered = LOWERINGS.get(where.engine)(model, where, context)
    recipe = {
        "name": "custom",
        "passes": [{"pass": record.name, **record.parameters} for record in model.history],
        "lowering": where.engine,
        **({"codec": codec} if codec != "plain" else {}),
    }
    return to_artifact(
        lowered,
        path,
        name=context.task.name,
        engine=where.engine,
        target=where,
        recipe=recipe,
        history=model.history,
        codec=codec,
    )


def _apply(
    name: str,
    what: Task | Model,
    task: Task | None,
    seed: int,
    parameters: dict[str, Any],
    checkpoints: str | os.PathLike[str] | None = None,
) -> Model:
    step = _find(name).from_parameters(parameters)
    model, context = _begin(what, task, seed)
    return apply(step, model, replace(context, checkpoints=None if checkpoints is None else Path(checkpoints)))


def _find(name: str) -> type[Pass]:
    """The pass ``call.method``; ``PluginError`` with the call's methods where it has no such one."""
    call, _, method = name.partition(".")
    methods = [known.partition(".")[2] for known in PASSES.names() if known.startswith(f"{call}.")]
    if method not in methods:
        raise PluginError(f"tauten.{call}: no method {method!r}: there are {', '.join(methods)}")
    return PASSES.get(name)


def _begin(what: Task | Model, task: Task | None, seed: int) -> tuple[Model, Context]:
    if isinstance(what, Task):
        task = what
        model = to_model(what)
        return model, Context(task, model.module, seed)
    if not isinstance(what, Model):
        raise TaskError(f"expected a tauten.Task, or a Model that another call made; got a {type(what).__name__}")
    if task is None:
        raise TaskError("task: a Model brings no data of its own; give task=...")
    return what, Context(task, build(task), seed)
