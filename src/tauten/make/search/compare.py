"""Strategies side by side: each at each ratio, before and after recovery, measured as written files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tauten.artifact.layers import masks
from tauten.artifact.read import Artifact
from tauten.core.environment import environment
from tauten.core.target import Target
from tauten.errors import ConfigError, RecipeError, TautenError
from tauten.make.model.pass_ import Pass
from tauten.make.model.task import Task
from tauten.make.search.comparison import CUT, INT8, RECOVERED, Comparison, Point, Saving
from tauten.make.search.contender import Contender, find_contender
from tauten.make.search.evaluator import DEFAULT_SAMPLING, Sampling
from tauten.make.search.improve import improvements
from tauten.make.search.levels import BASELINE, ENGINE_BASELINE
from tauten.make.search.observe import Observer
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.make.search.result import Entry, Improvement
from tauten.make.search.workshop import Order, Workshop
from tauten.make.search.workspace import Workspace
from tauten.run.measure.session import Timing

STRATEGIES = ("magnitude", "structured", "dynamic")
RATIOS = (0.3, 0.5, 0.7, 0.9)
EPOCHS, STEPS = 3, 500
"""Recovery where none is asked for by number: that of level ``medium``."""
CONTROL = "int8"
"""The untouched model in eight bits, named as level ``low`` names it."""
LEAST = 0.02
"""A smaller difference says nothing: as much comes from where two files lie in memory."""
ZEROS = 0.1
"""From this share of zeros on, arithmetic is saved on paper."""
Key = tuple[str, float]
"""A contender's label and a ratio."""


def compare(
    task: Task,
    target: str | Target = "server-cpu",
    passes: Iterable[str] = STRATEGIES,
    ratios: Iterable[float] = RATIOS,
    *,
    recover: int | None = None,
    int8: bool = False,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    sampling: Sampling = DEFAULT_SAMPLING,
    observer: Observer | None = None,
    origin: str = "",
) -> Comparison:
    """Hold strategies against each other: each of ``passes`` at each of ``ratios``, on the task's model.

    A strategy is named by its pass, ``magnitude`` or ``prune.magnitude``, with parameters as
    ``structured:criterion=l1``; any pass that has a ``ratio`` or a ``share`` is one. Each point is written and measured
    right after the cut; again after ``recover`` epochs of ``distill.recover`` (default: 3, and at least 500 steps,
    where the task has train data; 0 for none); and with ``int8`` once more in eight bits. A pass that trains what it
    adds is not trained again. Time is that of the last of these, all in one session with the untouched model, and with
    that in eight bits too, so that what the cut saves is told apart from what eight bits do.

    Everything goes to the folder ``out`` (default ``build/<task name>``): ``compare.json``, ``compare.html``,
    ``pictures/`` and ``candidates/``. Finished candidates of an earlier run are taken as they are. A point that cannot
    be made is told with its reason, and the others go on.

    Raises ``ConfigError`` for values that cannot be, and whatever keeps the untouched model from being measured.
    """
    order = Order.of(task, target, seed, sampling, observer, origin)
    contenders = tuple(find_contender(text) for text in passes)
    chosen = tuple(ratios)
    labels = [contender.label for contender in contenders]
    if not contenders or len(set(labels)) < len(labels):
        raise ConfigError(f"passes: expected strategies of different names, got {labels or 'none'}")
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 < ratio < 1 for ratio in chosen):
        raise ConfigError(f"ratios: expected different numbers between 0 and 1, got {list(chosen) or 'none'}")
    if recover is not None and recover < 0:
        raise ConfigError(f"recover: expected 0 or more epochs, got {recover}")
    for contender in contenders:
        for ratio in chosen:
            contender.at(ratio)  # a parameter that cannot be is told before any work
    workspace = Workspace(out if out is not None else f"build/{task.name}")
    run = _Run(order, contenders, chosen, _recovery(task, recover), int8, workspace)
    with workspace.opened():
        return run.go()


def _recovery(task: Task, epochs: int | None) -> Pass | None:
    if epochs == 0 or (epochs is None and not task.has("train")):
        return None
    steps = STEPS if epochs is None else 0
    return pass_from_json({"pass": "distill.recover", "epochs": epochs or EPOCHS, "steps": steps})


@dataclass(frozen=True)
class _Run:
    """One comparison's settings."""

    order: Order
    contenders: Sequence[Contender]
    ratios: Sequence[float]
    recovery: Pass | None
    int8: bool
    workspace: Workspace

    def go(self) -> Comparison:
        recipes = {
            (contender.label, ratio): self._recipes(contender, ratio)
            for contender in self.contenders
            for ratio in self.ratios
        }
        shop = Workshop(self.order, self.workspace, sum(map(len, recipes.values())))
        made, refused = self._make(shop, recipes)
        shipped = [[*artifacts.values()][-1] for artifacts in made.values() if artifacts]
        together = {artifact.path.name: artifact for artifact in (*self._control(shop), *shipped)}
        measured, timings = shop.measure({**shop.baselines, **together}, weighed=False)
        entries = {name: shop.entry(name, artifact) for name, artifact in measured.items()}
        points = [self._point(shop, key, made[key], refused[key], entries, timings) for key in recipes]
        found = Comparison(
            task=self.order.task.name,
            target=self.order.target,
            seed=self.order.seed,
            strategies=tuple(contender.label for contender in self.contenders),
            ratios=tuple(self.ratios),
            recover=getattr(self.recovery, "epochs", 0),
            int8=self.int8,
            quality_on=shop.evaluator.split,
            metric=shop.metric(),
            baseline=entries[BASELINE],
            engine_baseline=entries[ENGINE_BASELINE],
            control=entries.get(CONTROL),
            points=tuple(points),
            caveats=shop.caveats(),
            environment=environment(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - shop.started,
            tauten=version("tauten"),
        )
        self.order.observer.stage("write the report")
        self.workspace.publish(found, self.workspace.comparison)
        self._draw(found.to_json())
        return found

    def _draw(self, document: Mapping[str, Any]) -> None:
        from tauten.report import draw_comparison, write_comparison

        write_comparison(document, self.workspace.comparison_report)
        draw_comparison(document, self.workspace.pictures)

    def _control(self, shop: Workshop) -> list[Artifact]:
        """The untouched model in eight bits, where candidates end in them and it can be made."""
        if not (self.int8 or "float32" not in self.order.target.precisions):
            return []
        try:
            recipe = Recipe(CONTROL, (pass_from_json({"pass": "quantize.post_training"}),), self.order.target.engine)
            return [shop.make(recipe)[0]]
        except TautenError as fault:
            self.order.observer.refused(CONTROL, str(fault))
            return []

    def _recipes(self, contender: Contender, ratio: float) -> dict[str, Recipe | str]:
        """A recipe a stage, or why its order cannot be."""
        step, name = contender.at(ratio), contender.name(ratio)
        eight = pass_from_json({"pass": "quantize.post_training"})
        # Where nothing but eight bits runs, every stage ends in them.
        only = () if "float32" in self.order.target.precisions else (eight,)
        trained = (self.recovery,) if self.recovery and not step.trains else ()
        stages = {CUT: (f"{name}", (step, *only))}
        if trained:
            stages[RECOVERED] = (f"{name}-recovered", (step, *trained, *only))
        if self.int8 and not only:
            stages[INT8] = (f"{name}-int8", (step, *trained, eight))
        found: dict[str, Recipe | str] = {}
        for stage, (called, steps) in stages.items():
            try:
                found[stage] = Recipe(called, steps, self.order.target.engine)
            except RecipeError as fault:
                found[stage] = str(fault)
        return found

    def _make(
        self, shop: Workshop, recipes: Mapping[Key, Mapping[str, Recipe | str]]
    ) -> tuple[dict[Key, dict[str, Artifact]], dict[Key, dict[str, str]]]:
        """The artifacts of each point by stage, and why others are not there."""
        made: dict[Key, dict[str, Artifact]] = {key: {} for key in recipes}
        refused: dict[Key, dict[str, str]] = {key: {} for key in recipes}
        left = sum(map(len, recipes.values()))
        for key, stages in recipes.items():
            for stage, recipe in stages.items():
                left -= 1
                name = f"{key[0]} {key[1]:g}, {stage}"
                try:
                    if isinstance(recipe, str):
                        raise RecipeError(recipe)
                    name = recipe.name
                    artifact, reused = shop.make(recipe, left)
                except TautenError as fault:
                    refused[key][stage] = str(fault)
                    self.order.observer.refused(name, str(fault))
                    continue
                made[key][stage] = artifact
                self.order.observer.found(shop.entry(recipe.name, artifact), reused)
        return made, refused

    def _point(
        self,
        shop: Workshop,
        key: Key,
        artifacts: Mapping[str, Artifact],
        refused: Mapping[str, str],
        entries: Mapping[str, Entry],
        timings: Mapping[str, Timing],
    ) -> Point:
        contender = next(contender for contender in self.contenders if contender.label == key[0])
        name, step = contender.name(key[1]), contender.at(key[1])
        stages = {
            stage: entries.get(artifact.path.name) or shop.entry(artifact.path.name, artifact)
            for stage, artifact in artifacts.items()
        }
        told: dict[str, Any] = {"strategy": contender.label, "name": name, "step": step.to_json(), "ratio": key[1]}
        if not stages:
            return Point(**told, stages={}, refused=dict(refused))
        last = [*stages][-1]
        shipped = stages[last]
        better = {
            which: improvements(
                shipped, entries[which], timings[shipped.name].rounds_p50_ms, timings[which].rounds_p50_ms
            )
            for which in (BASELINE, ENGINE_BASELINE, CONTROL)
            if which in entries
        }
        eight = last == INT8 or "float32" not in self.order.target.precisions
        against = CONTROL if eight and CONTROL in better else ENGINE_BASELINE
        # Zeros are seen best in floats: eight bits round some more weights to zero.
        floats = artifacts.get(RECOVERED) or artifacts.get(CUT) or artifacts[last]
        return Point(
            **told,
            stages=stages,
            last=last,
            refused=dict(refused),
            compression={which: better[which]["size_bytes"].ratio for which in (BASELINE, ENGINE_BASELINE)},
            improvements=better,
            saving=saving(step, shipped, better[against], self.order.target.engine),
            masks=masks(floats) if any(layer["zeros"] >= ZEROS for layer in shipped.layers) else (),
        )


def saving(step: Pass, shipped: Entry, better: Mapping[str, Improvement], engine: str) -> Saving:
    """What ``shipped`` saves in measured time; ``better`` is its improvement on the untouched model there.

    Networks that decide by their input how much to compute are judged by the mean of their requests, which is what
    they lower; others by the median, which is steadier.
    """
    dynamic = step.name.startswith("dynamic.")
    measure = "latency_mean_ms" if dynamic else "latency_p50_ms"
    found = better[measure]
    told = {"measure": measure, "ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high}
    if found.ratio_low > 1 and found.ratio > 1 + LEAST:
        return Saving(**told, kind="time", text=f"{found.ratio:.3g} times faster")
    kind, text = "none", "no time saved outside the noise"
    if found.ratio_high < 1 and found.ratio < 1 - LEAST:
        kind, text = "slower", f"{1 / max(found.ratio, 1e-12):.3g} times slower"
    zeros = _zeros(shipped)
    if zeros >= ZEROS:
        text += f": {100 * zeros:.0f} % of the weights are zero, and {engine} multiplies by them all the same"
    elif dynamic and better["latency_p50_ms"].ratio_low > 1 + LEAST:
        dynamic = False
        text += f" in the mean; the median request is {better['latency_p50_ms'].ratio:.3g} times faster"
    elif dynamic:
        text += f": what it leaves out is arithmetic on paper, and no time on {engine}"
    return Saving(**told, kind=kind, arithmetic=zeros >= ZEROS or dynamic, text=text)


def _zeros(entry: Entry) -> float:
    """The share of all weights that is zero."""
    elements = sum(layer["elements"] for layer in entry.layers)
    return sum(layer["elements"] * layer["zeros"] for layer in entry.layers) / elements if elements else 0.0
