"""Widths from measured latency: cut what buys the most milliseconds per lost quality, until a limit holds."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from tauten.core.target import Target
from tauten.core.value import JsonObject, Value
from tauten.make.model.pass_ import Pass
from tauten.make.model.task import Task
from tauten.make.search.adaptation import Adaptation, Pace
from tauten.make.search.evaluator import DEFAULT_SAMPLING, Sampling
from tauten.make.search.observe import Observer
from tauten.make.search.recipe import pass_from_json
from tauten.make.search.workshop import Order, Workshop
from tauten.make.search.workspace import Workspace

DEFAULT_PACE = Pace()


class Taken(Value):
    """One step that was taken: a group, how many channels it left, what it gained and lost, and the latency then."""

    group: str
    width: int
    gain_ms: float
    lost_points: float
    latency_ms: float


class Adapted(Value):
    """What ``adapt`` found: a ``prune.structured`` pass for a recipe, and the way to it.

    ``step`` is the pass as JSON, ``None`` where the untouched model holds the limit already. ``latency_ms`` is that of
    the network it makes, as it was tried. ``met`` says whether it holds ``limit_ms``, ``why`` why the search ended.
    """

    schema_version: Literal[1] = 1
    task: str
    target: Target
    seed: int
    limit_ms: float
    measure: str
    met: bool
    latency_ms: float
    why: str
    trials: Annotated[int, Field(ge=0)]
    step: JsonObject | None
    taken: tuple[Taken, ...]
    closed: dict[str, str]
    seconds: Annotated[float, Field(ge=0)]

    @property
    def cut(self) -> Pass | None:
        """The pass, to be put into a recipe before ``distill.recover``."""
        return None if self.step is None else pass_from_json(self.step)

    @property
    def ratios(self) -> tuple[tuple[str, float], ...]:
        """What is cut of each group: ``(group, ratio)``."""
        return () if self.step is None else tuple((name, ratio) for name, ratio in self.step["ratios"])


def adapt(
    task: Task,
    target: str | Target = "server-cpu",
    *,
    max_latency_ms: float,
    pace: Pace = DEFAULT_PACE,
    between: Sequence[Pass] = (),
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    sampling: Sampling = DEFAULT_SAMPLING,
    observer: Observer | None = None,
    origin: str = "",
) -> Adapted:
    """Find how many channels of each group to cut so that the latency at batch 1 holds ``max_latency_ms``.

    Each trial is a written artifact, timed on the target's engine in turn with the network as it is, and judged on the
    validation data. ``pace`` says how large steps are, which percentile has to hold, and how many trials there are at
    most. ``between`` are passes that follow the cut in each trial: ``quantize.post_training`` where the final model
    will run in eight bits, a short ``distill.recover`` where steps are to be judged after some recovery.

    Trials are kept in the folder ``out`` (default ``build/<task name>``), with ``adapt.json``; a run that was
    interrupted goes on where it stopped. Raises ``ConfigError`` for values that cannot be, and whatever keeps the
    untouched model from being measured.
    """
    order = Order.of(task, target, seed, sampling, observer, origin)
    search = Adaptation(max_latency_ms, between, order.target.engine, pace)
    workspace = Workspace(out if out is not None else f"build/{task.name}")
    with workspace.opened():
        shop = Workshop(order, workspace, search.left)
        while (trial := search.ask()) is not None:
            shop.learn(search, trial)
        found = Adapted(
            task=task.name,
            target=order.target,
            seed=seed,
            limit_ms=max_latency_ms,
            measure=pace.measure,
            met=search.met,
            latency_ms=search.latency_ms,
            why=search.why,
            trials=search.spent,
            step=search.cut.to_json() if search.cut else None,
            taken=tuple(
                Taken(
                    group=step.group,
                    width=step.width,
                    gain_ms=step.gain_ms,
                    lost_points=step.lost,
                    latency_ms=step.latency_ms(pace.measure),
                )
                for step in search.taken
            ),
            closed={name: group.closed for name, group in search.groups.items() if group.closed},
            seconds=time.perf_counter() - shop.started,
        )
        workspace.publish(found, workspace.adaptation)
    return found
