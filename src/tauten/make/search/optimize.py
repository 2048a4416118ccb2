"""The main job: make candidates, measure what was written, keep what is best within the budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from tauten.artifact.layers import masks
from tauten.artifact.read import Artifact
from tauten.artifact.write import copy_artifact
from tauten.core.environment import environment
from tauten.core.target import AUTO, Budget, Target
from tauten.errors import ConfigError, TautenError
from tauten.make.model.task import Task
from tauten.make.search.aim import weights_left
from tauten.make.search.budget import choose, judge, nearest
from tauten.make.search.candidates import Search
from tauten.make.search.evaluator import DEFAULT_SAMPLING, QualityEvaluator, Sampling
from tauten.make.search.improve import improvements
from tauten.make.search.levels import BASELINE, ENGINE_BASELINE, LEVELS, check_codec, find_level
from tauten.make.search.observe import Observer
from tauten.make.search.pareto import front
from tauten.make.search.race import best_float, race
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import EngineTried, Entry, Improvement, OnTest, Result
from tauten.make.search.sizing import ToSize
from tauten.make.search.strategies import STRATEGIES
from tauten.make.search.strategies._strategy import Strategy
from tauten.make.search.workshop import Order, Workshop
from tauten.make.search.workspace import Workspace
from tauten.run.measure.metrics import find_metric
from tauten.run.measure.quality import drop
from tauten.run.measure.session import Timing

QUICKENED = ("medium", "high")
"""Levels at which one candidate more is made and timed on the guess that it is faster."""
DEFAULT_BUDGET = Budget(max_drop=0.5)


def optimize(
    task: Task,
    target: str | Target = "server-cpu",
    budget: Budget | None = None,
    level: str | Iterable[Recipe] = "medium",
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strategy: str = "listed",
    engine: str | None = None,
    codec: str = AUTO,
    sampling: Sampling = DEFAULT_SAMPLING,
    observer: Observer | None = None,
    origin: str = "",
) -> Result:
    """Make the best artifact of ``task``'s model that holds ``budget`` on ``target``.

    Everything goes to the folder ``out`` (default ``build/<task name>``): ``result.json``, ``report.html``, ``best/``
    and ``candidates/``. Finished candidates of an earlier run on the same task, target and seed are taken as they are,
    so a run that was interrupted goes on where it stopped. ``strategy`` says what is tried: ``listed``, all recipes of
    the level; ``adapt``, cuts by measured latency in place of the level's ratios (``Adaptation``). ``engine`` is one of
    the target's, by default its first; with ``auto`` those that are installed are measured, and the fastest is used
    for recipes that name none. ``codec`` stores the weights; with ``auto`` they are coded where ``budget`` limits the
    bytes and they are over the limit, and the level then tries recipes that aim at it. ``origin`` is the text that the
    task was read from, ``sampling`` how long to measure.

    Without a budget, at most 0.5 points may be lost; that has a meaning for metrics in percent alone, so that
    ``ConfigError`` asks for a budget where the metric is another.

    Returns a result whose ``met`` says whether anything holds the budget; where nothing does there is no ``best``.
    Raises ``ConfigError`` for values that cannot be, and whatever keeps the untouched model from being measured.
    """
    order = Order.of(task, target, seed, sampling, observer, origin, engine)
    budget = budget or _default_budget(task)
    check_codec(codec)
    left = None if budget.max_bytes is None else weights_left(budget.max_bytes)
    recipes = find_level(level, order.target.lowering(engine), codec=codec, weights_bytes=left)
    run = _Run(
        order=order,
        budget=budget,
        level=level if isinstance(level, str) else "custom",
        codec=codec,
        workspace=Workspace(out if out is not None else f"build/{task.name}"),
        names=frozenset(recipe.name for recipe in recipes),
    )
    if strategy not in STRATEGIES.names():
        raise ConfigError(f"strategy: expected one of {', '.join(STRATEGIES.names())}, got {strategy!r}")
    kind = STRATEGIES.get(strategy)
    kind(recipes, seed, budget)  # what it lacks is told before any work
    with run.workspace.opened():
        return run.go(lambda aimed: kind(aimed, seed, budget), recipes)


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

    order: Order
    budget: Budget
    level: str
    codec: str
    workspace: Workspace
    names: frozenset[str]

    def go(self, plan: Callable[[Sequence[Recipe]], Strategy], recipes: Sequence[Recipe]) -> Result:
        shop = Workshop(self.order, self.workspace, len(recipes))
        engines = race(shop) if self.order.engine == AUTO else ()
        size = ToSize(shop, self.budget.max_bytes, self.codec, free=self.level in LEVELS)
        found = Search(shop, size, self.budget.max_drop, self.names)
        found.through(plan(size.aim(recipes)))
        if self.level in QUICKENED:
            found.quicken()
        made = found.made
        untouched = self._untouched(shop, engines, made)
        everything, timings = shop.measure({BASELINE: shop.baseline, **untouched, **made})
        entries = {
            name: judge(self.budget, shop.entry(name, artifact).model_copy(update={"mixed": found.mixed.get(name)}))
            for name, artifact in everything.items()
        }
        candidates = [entry for name, entry in entries.items() if name in made]
        chosen = choose(self.budget, candidates, entries[BASELINE])
        close = self._nearest(chosen, candidates)
        shown = (chosen.name,) if chosen else close
        beside = _beside(shown[0] if shown else None, untouched, everything)
        test = self._test(chosen, beside, everything, shop.evaluator) if chosen else None
        met = chosen is not None and self._confirmed(test)
        self.workspace.withdraw()
        result = Result(
            task=self.order.task.name,
            target=self.order.target,
            budget=self.budget,
            level=self.level,
            seed=self.order.seed,
            met=met,
            explanation=self._explain(chosen, test, candidates) + ("" if chosen else size.explain()),
            quality_on=shop.evaluator.split,
            metric=shop.metric(),
            baseline=entries[BASELINE],
            engine_baseline=entries[beside].model_copy(update={"name": ENGINE_BASELINE}),
            best=self._deliver(everything[chosen.name], chosen) if chosen and met else None,
            candidates=tuple(candidates),
            nearest=() if met else close,
            front=tuple(entry.name for entry in front(candidates)),
            refused=tuple(found.refused),
            improvements=_improve(chosen, beside, entries, timings) if chosen and met else {},
            test=test,
            masks=masks(everything[shown[0]]) if shown else (),
            engines=engines,
            caveats=shop.caveats(),
            environment=environment(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - shop.started,
            tauten=version("tauten"),
        )
        self._publish(result)
        return result

    def _untouched(
        self, shop: Workshop, engines: Sequence[EngineTried], made: Mapping[str, Artifact]
    ) -> dict[str, Artifact]:
        """The untouched model on each engine that candidates run on, by name."""
        found = {}
        for engine in dict.fromkeys(artifact.manifest.engine for artifact in made.values()):
            try:
                artifact = shop.untouched(best_float(engines, engine))
                found[artifact.path.name] = artifact
            except TautenError as fault:
                self.order.observer.refused(f"{ENGINE_BASELINE}-{engine}", str(fault))
        return found or {ENGINE_BASELINE: shop.engine_baseline}

    def _test(
        self, chosen: Entry, beside: str, artifacts: Mapping[str, Artifact], evaluator: QualityEvaluator
    ) -> OnTest | None:
        """The test set, looked at once."""
        if not self.order.task.has("test"):
            return None
        self.order.observer.stage("look at the test set")
        names = (BASELINE, beside, chosen.name)
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

    def _publish(self, result: Result) -> None:
        self.workspace.publish(result, self.workspace.result)
        self.order.observer.stage("write the report")
        from tauten.report import draw_result, write_report

        write_report(result.to_json(), self.workspace.report)
        draw_result(result.to_json(), self.workspace.pictures)


def _beside(name: str | None, untouched: Mapping[str, Artifact], everything: Mapping[str, Artifact]) -> str:
    """Which of ``untouched`` runs on the engine of the candidate of that name; the first where none does."""
    engine = everything[name].manifest.engine if name else ""
    names = [other for other, artifact in untouched.items() if artifact.manifest.engine == engine]
    return (names or [*untouched])[0]


def _improve(
    best: Entry, beside: str, entries: Mapping[str, Entry], timings: Mapping[str, Timing]
) -> dict[str, dict[str, Improvement]]:
    """The best against PyTorch eager, and against the untouched model on its engine, which is the one ``beside`` it."""
    return {
        which: improvements(best, entries[name], timings[best.name].rounds_p50_ms, timings[name].rounds_p50_ms)
        for which, name in ((BASELINE, BASELINE), (ENGINE_BASELINE, beside))
    }
