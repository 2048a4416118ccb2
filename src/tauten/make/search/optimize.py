"""The main job: make candidates, measure what was written, keep what is best within the budget."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from tauten.artifact.layers import layers
from tauten.artifact.read import Artifact
from tauten.artifact.write import WhatSize, copy_artifact, write_measures
from tauten.core.environment import environment
from tauten.core.measure import Measure
from tauten.core.target import Budget, Target, find_target
from tauten.errors import ConfigError, TautenError
from tauten.make.model.apply import seed_all
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.search.budget import choose, judge, nearest
from tauten.make.search.builder import CandidateBuilder
from tauten.make.search.evaluator import QualityEvaluator, Sampling, time_together, weigh
from tauten.make.search.identity import identify_candidate, identify_task
from tauten.make.search.improve import improvements
from tauten.make.search.levels import BASELINE, ENGINE_BASELINE, find_level
from tauten.make.search.observe import Observer, Silent
from tauten.make.search.pareto import front
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, Measures, OnTest, Refused, Result
from tauten.make.search.strategies import STRATEGIES
from tauten.make.search.workspace import Workspace
from tauten.run.measure.metrics import FunctionMetric, find_metric
from tauten.run.measure.quality import drop
from tauten.run.measure.session import Timing

DEFAULT_BUDGET = Budget(max_drop=0.5)
DEFAULT_SAMPLING = Sampling()


def optimize(
    task: Task,
    target: str | Target = "server-cpu",
    budget: Budget | None = None,
    level: str | Iterable[Recipe] = "medium",
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strategy: str = "listed",
    sampling: Sampling = DEFAULT_SAMPLING,
    observer: Observer | None = None,
    origin: str = "",
) -> Result:
    """Make the best artifact of ``task``'s model that holds ``budget`` on ``target``.

    Everything goes to the folder ``out`` (default ``build/<task name>``): ``result.json``, ``report.html``, ``best/``
    and ``candidates/``. Finished candidates of an earlier run on the same task, target and seed are taken as they are,
    so a run that was interrupted goes on where it stopped. ``origin`` is the text that the task was read from,
    ``sampling`` how long to measure.

    Without a budget, at most 0.5 points may be lost; that has a meaning for metrics in percent alone, so that
    ``ConfigError`` asks for a budget where the metric is another.

    Returns a result whose ``met`` says whether anything holds the budget; where nothing does there is no ``best``.
    Raises ``ConfigError`` for values that cannot be, and whatever keeps the untouched model from being measured.
    """
    where = find_target(target)
    if where.device != "cpu":
        raise ConfigError(
            f"target {where.name}: expected a device that the baselines run on (cpu), got {where.device}; "
            "tauten.save writes an artifact for it, which can be measured and served there"
        )
    run = _Run(
        task=task,
        target=where,
        budget=budget or _default_budget(task),
        level=level if isinstance(level, str) else "custom",
        seed=seed,
        workspace=Workspace(out if out is not None else f"build/{task.name}"),
        observer=observer or Silent(),
        origin=origin,
        sampling=sampling,
    )
    recipes = find_level(level, run.target.engine)
    with run.workspace.opened():
        return run.go(recipes, strategy)


def _default_budget(task: Task) -> Budget:
    unit = find_metric(task.metric).unit
    if unit != "%":
        raise ConfigError(
            f"budget: expected a limit, since the metric is told in {unit!r}, of which half a point may be much or "
            "little; give max_drop in that unit (--max-drop), or another limit"
        )
    return DEFAULT_BUDGET


@dataclass(frozen=True)
class _Run:
    """One run's settings."""

    task: Task
    target: Target
    budget: Budget
    level: str
    seed: int
    workspace: Workspace
    observer: Observer
    origin: str
    sampling: Sampling

    def go(self, recipes: Sequence[Recipe], strategy: str) -> Result:
        started = time.perf_counter()
        model, task_key = self._prepare()
        context = Context(self.task, model.module, self.seed, self.observer.step)
        builder = CandidateBuilder(model, self.target, context)
        baseline, evaluator = self._baseline(builder, task_key)
        engine_baseline, _ = self._make(
            Recipe(ENGINE_BASELINE, (), self.target.engine), builder, evaluator, task_key, len(recipes)
        )
        made, refused = self._search(recipes, strategy, builder, evaluator, task_key)
        everything = {BASELINE: baseline, ENGINE_BASELINE: engine_baseline, **made}
        everything, timings = self._measure(everything)
        entries = {name: judge(self.budget, self._entry(name, artifact)) for name, artifact in everything.items()}
        candidates = [entry for name, entry in entries.items() if name in made]
        chosen = choose(self.budget, candidates, entries[BASELINE])
        test = self._test(chosen, everything, evaluator) if chosen else None
        met = chosen is not None and self._confirmed(test)
        self.workspace.withdraw()
        result = Result(
            task=self.task.name,
            target=self.target,
            budget=self.budget,
            level=self.level,
            seed=self.seed,
            met=met,
            explanation=self._explain(chosen, test, candidates),
            quality_on=evaluator.split,
            metric=self._metric(evaluator),
            baseline=entries[BASELINE],
            engine_baseline=entries[ENGINE_BASELINE],
            best=self._deliver(everything[chosen.name], chosen) if chosen and met else None,
            candidates=tuple(candidates),
            nearest=() if met else self._nearest(chosen, candidates),
            front=tuple(entry.name for entry in front(candidates)),
            refused=tuple(refused),
            improvements=_improve(chosen, entries, timings) if chosen and met else {},
            test=test,
            caveats=_caveats(baseline),
            environment=environment(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - started,
            tauten=version("tauten"),
        )
        self._publish(result)
        return result

    def _prepare(self) -> tuple[Model, str]:
        """The model to start from (trained where the task says so), and what identifies the task."""
        self.observer.stage("look at the model")
        seed_all(self.seed)
        model = to_model(self.task)
        key = identify_task(self.task, model.module, self.seed, self.origin)
        if not self.task.epochs:
            return model, key
        weights = self.workspace.load_fitted(key)
        if weights is None:
            self.observer.stage("train the model")
            from tauten.make.model.fit import fit

            fitted = fit(replace(self.task, model=model.module), self.seed, self.observer.step).build()
            weights = {name: tensor.detach().cpu().numpy() for name, tensor in fitted.state_dict().items()}
            self.workspace.save_fitted(key, weights)
        # A copy: the module may be the user's own.
        module = copy.deepcopy(model.module)
        module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        return model.but(module=module.eval()), key

    def _baseline(self, builder: CandidateBuilder, task_key: str) -> tuple[Artifact, QualityEvaluator]:
        """The untouched model in PyTorch eager fp32; its size is that of its weights as safetensors."""
        self.observer.stage("measure the untouched model")
        recipe = Recipe(BASELINE, (), "eager")
        key = identify_candidate(task_key, recipe, self.target, self.seed)
        found = self.workspace.finished(BASELINE, key)
        artifact = found or builder.make(recipe, self.workspace.candidate(BASELINE), key)
        evaluator = QualityEvaluator(self.task, artifact, self.seed)
        return evaluator.evaluate(artifact, size="weights"), evaluator

    def _search(
        self,
        recipes: Sequence[Recipe],
        strategy: str,
        builder: CandidateBuilder,
        evaluator: QualityEvaluator,
        task_key: str,
    ) -> tuple[dict[str, Artifact], list[Refused]]:
        made: dict[str, Artifact] = {}
        refused: list[Refused] = []
        search = STRATEGIES.get(strategy)(recipes, self.seed)
        while (recipe := search.ask()) is not None:
            try:
                builder.check(recipe)
                artifact, reused = self._make(recipe, builder, evaluator, task_key, search.left)
            except TautenError as fault:
                refused.append(Refused(name=recipe.name, recipe=recipe.to_json(), error=str(fault)))
                self.observer.refused(recipe.name, str(fault))
                search.tell(recipe, None)
                continue
            made[recipe.name] = artifact
            entry = self._entry(recipe.name, artifact)
            self.observer.found(entry, reused)
            search.tell(recipe, entry)
        return made, refused

    def _make(
        self, recipe: Recipe, builder: CandidateBuilder, evaluator: QualityEvaluator, task_key: str, left: int
    ) -> tuple[Artifact, bool]:
        """The candidate of a recipe with its quality measured, and whether an earlier run had finished it."""
        self.observer.stage(recipe.name, left)
        key = identify_candidate(task_key, recipe, self.target, self.seed)
        artifact = self.workspace.finished(recipe.name, key)
        if artifact is None:
            artifact = builder.make(recipe, self.workspace.candidate(recipe.name), key)
        elif {"quality", "drop_points"} <= set(artifact.manifest.measures):
            return artifact, True
        self.observer.step("measure quality", 0.9)
        return evaluator.evaluate(artifact), False

    def _measure(self, artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Artifact], dict[str, Timing]]:
        """Time, memory and start-up of all, with the baselines in the same run."""
        self.observer.stage(f"measure {len(artifacts)} artifacts side by side")
        seconds, starts = self.sampling.seconds, self.sampling.starts
        timings = time_together(artifacts, self.task, self.target, seconds, self.observer.step)
        measured: dict[str, Artifact] = {}
        for index, (name, artifact) in enumerate(artifacts.items()):
            self.observer.step(f"start and weigh {name}", index / len(artifacts))
            measures: dict[str, Measure] = {**timings[name].measures, **weigh(artifact, self.task, self.target, starts)}
            size: WhatSize = "weights" if name == BASELINE else "artifact"
            measured[name] = write_measures(artifact, measures, size)
        return measured, timings

    def _test(self, chosen: Entry, artifacts: Mapping[str, Artifact], evaluator: QualityEvaluator) -> OnTest | None:
        """The test set, looked at once."""
        if not self.task.has("test"):
            return None
        self.observer.stage("look at the test set")
        names = (BASELINE, ENGINE_BASELINE, chosen.name)
        first, second, third = (evaluator.quality(artifacts[name], "test") for name in names)
        return OnTest(
            baseline=first.measure,
            engine_baseline=second.measure,
            best=third.measure,
            drop_points=drop(first, third, evaluator.metric.better),
        )

    def _confirmed(self, test: OnTest | None) -> bool:
        """Whether the test set agrees that the drop is within the budget."""
        return test is None or self.budget.max_drop is None or test.drop_points.value <= self.budget.max_drop

    def _entry(self, name: str, artifact: Artifact) -> Entry:
        manifest = artifact.manifest
        measures: Measures = {}
        by_batch: dict[str, Measure] = {}
        for key, measure in manifest.measures.items():
            kind, _, batch = key.partition(".")
            if kind == "throughput_per_s":
                by_batch[batch] = measure
            elif kind != "drop_points":
                measures[key] = measure
        if by_batch:
            measures["throughput_per_s"] = dict(sorted(by_batch.items(), key=lambda item: int(item[0])))
        return Entry(
            name=name,
            recipe={**manifest.recipe, "name": name},
            artifact=self.workspace.relative(artifact),
            measures=measures,
            drop_points=manifest.measures.get("drop_points"),
            history=tuple(record.to_json() for record in manifest.history),
            layers=tuple(layer.to_json() for layer in layers(artifact)),
        )

    def _deliver(self, artifact: Artifact, entry: Entry) -> Entry:
        copy = copy_artifact(artifact, self.workspace.best)
        return entry.model_copy(update={"artifact": self.workspace.relative(copy)})

    def _nearest(self, chosen: Entry | None, candidates: Sequence[Entry]) -> tuple[str, ...]:
        if chosen:  # it held the budget on the validation data, and lost it on the test set
            return (chosen.name,)
        return tuple(entry.name for entry in nearest(self.budget, candidates))

    def _explain(self, chosen: Entry | None, test: OnTest | None, candidates: Sequence[Entry]) -> str:
        if not candidates:
            return "No candidate could be made; see refused for the reasons."
        if chosen is None:
            close = nearest(self.budget, candidates, 1)[0]
            return f"No candidate holds the budget. The nearest is {close.name}: {'; '.join(close.violations)}."
        if test and not self._confirmed(test):
            return (
                f"{chosen.name} held the budget on the validation data, but on the test set it loses "
                f"{test.drop_points.value:.2f} points, more than {self.budget.max_drop:g}: it is not handed over."
            )
        return f"{chosen.name} is the best of {sum(entry.within_budget for entry in candidates)} within the budget."

    def _metric(self, evaluator: QualityEvaluator) -> dict[str, str]:
        metric = self.task.metric
        metric = metric.function if isinstance(metric, FunctionMetric) else metric
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
        return {"name": name, "unit": evaluator.metric.unit, "better": evaluator.metric.better}

    def _publish(self, result: Result) -> None:
        self.workspace.publish(result)
        self.observer.stage("write the report")
        from tauten.report import write_report

        write_report(result.to_json(), self.workspace.report)


def _caveats(baseline: Artifact) -> tuple[str, ...]:
    """What a reader of the comparison must know."""
    notes = [record.notes.get("not_fused") for record in baseline.manifest.history]
    names = [name for found in notes if isinstance(found, dict) for name in found]
    if not names:
        return ()
    return (
        "PyTorch's fused encoder kernel does not survive export, so the module itself may be faster than the baseline "
        f"measured here, and speed-ups against it are flattered: {', '.join(names)}.",
    )


def _improve(best: Entry, entries: Mapping[str, Entry], timings: Mapping[str, Timing]) -> dict[str, Any]:
    return {
        name: improvements(best, entries[name], timings[best.name].rounds_p50_ms, timings[name].rounds_p50_ms)
        for name in (BASELINE, ENGINE_BASELINE)
    }
