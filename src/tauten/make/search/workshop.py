"""Where candidates of one task are made and measured, beside the untouched model: what every kind of run shares."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from tauten.artifact.layers import layers
from tauten.artifact.read import Artifact
from tauten.artifact.recode import PLAIN, recode
from tauten.artifact.write import WhatSize, write_artifact, write_measures
from tauten.core.environment import environment
from tauten.core.measure import Measure
from tauten.core.target import AUTO, Target, find_target
from tauten.core.tensor import Arrays
from tauten.errors import ArtifactError, ConfigError, TautenError
from tauten.make.model.apply import seed_all
from tauten.make.model.build import to_model
from tauten.make.model.imported import OnnxModule
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.search.builder import CandidateBuilder
from tauten.make.search.evaluator import QualityEvaluator, Sampling, time_together, weigh
from tauten.make.search.identity import identify_candidate, identify_task
from tauten.make.search.improve import faster
from tauten.make.search.installed import missing
from tauten.make.search.levels import BASELINE, ENGINE_BASELINE
from tauten.make.search.observe import Observer, Silent
from tauten.make.search.recipe import Kind, Recipe, Way
from tauten.make.search.result import Entry, Improvement, Measures
from tauten.make.search.slim import slim_history, slim_measures
from tauten.make.search.strategies._strategy import Learner, Trial
from tauten.make.search.tried import Tried
from tauten.make.search.workspace import Workspace
from tauten.run.measure.metrics import FunctionMetric
from tauten.run.measure.session import Timing

_JUDGED: Final = frozenset({"quality", "drop_points"})
"""The measures that a candidate needs to be finished."""


@dataclass(frozen=True)
class Order:
    """What a run is asked for: the task, where it will run, the seed, how long to measure, and who is told.

    ``origin`` is the text that the task was read from. ``engine`` is one of the target's, empty for its first, or
    ``auto`` for the one that measures best. Raises ``ConfigError`` for a target on which the untouched model cannot be
    measured, and for an engine that is not the target's.
    """

    task: Task
    target: Target
    seed: int
    sampling: Sampling
    observer: Observer
    origin: str
    engine: str = ""

    def __post_init__(self) -> None:
        self.target.lowering(self.engine)
        if self.target.device != "cpu":
            raise ConfigError(
                f"target {self.target.name}: expected a device that the baselines run on (cpu), got "
                f"{self.target.device}; tauten.save writes an artifact for it, which can be measured and served there"
            )

    @classmethod
    def of(
        cls,
        task: Task,
        target: str | Target,
        seed: int,
        sampling: Sampling,
        observer: Observer | None,
        origin: str,
        engine: str | None = None,
    ) -> Order:
        """The order in the words of a caller: a target by name, and perhaps nobody who is told."""
        return cls(task, find_target(target), seed, sampling, observer or Silent(), origin, engine or "")

    @property
    def first(self) -> str:
        """The engine that is used until another has measured better."""
        if self.engine != AUTO:
            return self.target.lowering(self.engine)
        there = (engine for engine in self.target.engines if not missing(engine))
        return next(there, self.target.engine)


class Workshop:
    """Makes candidates in ``workspace``, which the caller holds open.

    Building it looks at the model, trains it where the task says so, and measures both baselines: ``baseline``, the
    untouched model in PyTorch eager fp32, and ``engine_baseline``, the same on the order's engine. ``ways`` says how
    recipes that leave it to the run are lowered, by their kind.
    """

    def __init__(self, order: Order, workspace: Workspace, left: int = 0) -> None:
        self.order = order
        self.workspace = workspace
        self.started = time.perf_counter()
        kinds: tuple[Kind, ...] = ("float32", "int8", "int8-dynamic")
        self.ways = {kind: Way(order.first) for kind in kinds}
        self._tried: dict[str, Artifact] = {}
        self._by_key: dict[str, Artifact] = {}
        self._measured: dict[str, dict[str, Measure]] = {}
        self.model, self._task_key = self._prepare()
        context = Context(order.task, self.model.module, order.seed, order.observer.step, workspace.checkpoints)
        self.builder = CandidateBuilder(self.model, order.target, context)
        self.baseline, self.evaluator = self._baseline()
        self.engine_baseline, _ = self._make(Recipe(ENGINE_BASELINE, (), order.first), left)

    @property
    def baselines(self) -> dict[str, Artifact]:
        """Both, by name."""
        return {BASELINE: self.baseline, ENGINE_BASELINE: self.engine_baseline}

    def key(self, recipe: Recipe) -> str:
        """What tells whether an earlier run's candidate is the one that ``recipe`` makes."""
        return identify_candidate(self._task_key, recipe, self.order.target, self.order.seed)

    def on_way(self, recipe: Recipe) -> Recipe:
        """The recipe with the engine and the options that it will be lowered with."""
        return recipe.on(self.ways[recipe.kind])

    def untouched(self, way: Way) -> Artifact:
        """The untouched model in float, lowered that way."""
        if way.engine == self.engine_baseline.manifest.engine and not way.options:
            return self.engine_baseline
        name = "-".join((ENGINE_BASELINE, way.engine, *way.options.values()))
        return self._make(Recipe(name, (), way.engine, way.options), 0)[0]

    def make(self, recipe: Recipe, left: int = 0) -> tuple[Artifact, bool]:
        """The candidate of a recipe with its quality measured, and whether an earlier run had finished it.

        ``left`` is how many more will be asked for. Raises ``RecipeError`` where the task or the target cannot have
        it, and whatever the passes and the lowering raise.
        """
        recipe = self.on_way(recipe)
        self.builder.check(recipe)
        return self._make(recipe, left)

    def _make(self, recipe: Recipe, left: int) -> tuple[Artifact, bool]:
        self.order.observer.stage(recipe.name, left)
        key = self.key(recipe)
        artifact = self.workspace.finished(recipe.name, key)
        if artifact is None and key in self._by_key:
            # Another recipe comes to the same, such as the untouched model's on this engine.
            made, files = self._by_key[key], self._by_key[key].manifest.files
            manifest = made.manifest.model_copy(update={"recipe": recipe.to_json()})
            path = self.workspace.candidate(recipe.name)
            return write_artifact(path, manifest, {name: (made.path / name).read_bytes() for name in files}), False
        if artifact is None:
            artifact = self.builder.make(recipe, self.workspace.candidate(recipe.name), key)
        elif set(artifact.manifest.measures) >= _JUDGED:
            self._by_key[key] = artifact
            return artifact, True
        if recipe.codec != PLAIN:
            artifact = self._slim(artifact, recipe, key)
        self.order.observer.step("measure quality", 0.9)
        self._by_key[key] = self.evaluator.evaluate(artifact)
        return self._by_key[key], False

    def code(self, recipe: Recipe, artifact: Artifact, codec: str) -> tuple[Recipe, Artifact, bool]:
        """``artifact``, which ``recipe`` made, with its weights coded: its recipe, itself, and whether it was there.

        Not one bit of what the weights decode to is another, so that the quality is the one that was measured. Raises
        ``ArtifactError`` where the codec gives back anything else.
        """
        coded = replace(self.on_way(recipe), name=f"{recipe.name}-{codec}", codec=codec)
        key = self.key(coded)
        found = self.workspace.finished(coded.name, key)
        if found is not None and set(found.manifest.measures) >= _JUDGED:
            return coded, found, True
        made = recode(artifact, codec, self.workspace.candidate(coded.name))
        if not _same_bits(made.weights(), artifact.weights()):
            raise ArtifactError(f"{made.path}: codec {codec} does not give back the weights that it was given")
        return coded, self._slim(made, coded, key), False

    def _slim(self, artifact: Artifact, recipe: Recipe, key: str) -> Artifact:
        """The artifact as that of ``recipe``, without what need not be shipped with it: notes are kept in the run."""
        manifest = artifact.manifest
        if any(record.notes for record in manifest.history):
            self.workspace.save_history(key, manifest.history)
        slim = {
            "recipe": recipe.to_json(),
            "key": key,
            "history": slim_history(manifest.history),
            "measures": slim_measures(manifest.measures),
        }
        files = {name: (artifact.path / name).read_bytes() for name in manifest.files}
        return write_measures(write_artifact(artifact.path, manifest.model_copy(update=slim), files), {})

    def time(self, artifacts: Mapping[str, Artifact], batches: Sequence[int] = ()) -> dict[str, Timing]:
        """Latency and throughput of all in one session, in turn; throughput at the target's batches by default."""
        order = self.order
        return time_together(artifacts, order.task, order.target, order.sampling.seconds, order.observer.step, batches)

    def try_out(self, trial: Trial, left: int = 0) -> tuple[Entry, Improvement, bool]:
        """A trial's entry with its latency, what its p50 latency gains, and whether an earlier run had measured it."""
        artifact, _ = self.make(trial.recipe, left)
        beside = self._tried.get(trial.against, self.engine_baseline)
        self._tried[trial.recipe.name] = artifact
        entry = self.entry(trial.recipe.name, artifact)
        found, reused = self.beside(trial, artifact, beside)
        return entry.model_copy(update={"measures": {**entry.measures, **found.latencies}}), found.gain, reused

    def beside(self, trial: Trial, artifact: Artifact, other: Artifact) -> tuple[Tried, bool]:
        """A trial's artifact timed in turn with another, and whether an earlier run had done so."""
        seen = (artifact.manifest.key, other.manifest.key, str(self.order.sampling.seconds))
        key = hashlib.sha256(" ".join(seen).encode()).hexdigest()
        found = self.workspace.load_trial(key)
        if found is not None:
            return found, True
        self.order.observer.step(f"time it beside {trial.against}", 0.95)
        timings = self.time({"ours": artifact, "theirs": other}, (1,))
        found = Tried(measures=timings["ours"].measures, gain=faster(timings["ours"], timings["theirs"]))
        self.workspace.save_trial(key, found)
        return found, False

    def learn(self, search: Learner, trial: Trial) -> None:
        """Try ``trial`` out and tell ``search`` what came of it."""
        try:
            entry, gain, reused = self.try_out(trial, search.left)
        except TautenError as fault:
            self.order.observer.refused(trial.recipe.name, str(fault))
            search.tell(trial.recipe, None)
            return
        self.order.observer.found(entry, reused)
        search.tell(trial.recipe, entry, gain)

    def measure(
        self, artifacts: Mapping[str, Artifact], *, weighed: bool = True
    ) -> tuple[dict[str, Artifact], dict[str, Timing]]:
        """Time of all side by side, and memory and start-up where they are ``weighed``, written to their manifests.

        Memory and start-up are taken by themselves, so that those of an earlier run on this machine hold.
        """
        observer = self.order.observer
        observer.stage(f"measure {len(artifacts)} artifacts side by side")
        timings = self.time(artifacts)
        measured: dict[str, Artifact] = {}
        for index, (name, artifact) in enumerate(artifacts.items()):
            measures: dict[str, Measure] = dict(timings[name].measures)
            if weighed and not self._weighed(artifact):
                observer.step(f"start and weigh {name}", index / len(artifacts))
                measures |= weigh(artifact, self.order.task, self.order.target, self.order.sampling.starts)
            size: WhatSize = "weights" if name == BASELINE else "artifact"
            if artifact.manifest.codec != PLAIN:
                self._measured[artifact.manifest.key] = measures
                measures = slim_measures({**artifact.manifest.measures, **measures})
            measured[name] = write_measures(artifact, measures, size)
        return measured, timings

    def _weighed(self, artifact: Artifact) -> bool:
        """Whether an earlier run has started this very artifact here, often enough."""
        manifest = artifact.manifest
        found = [manifest.measures.get(name) for name in ("peak_memory_mib", "startup_ms", "load_ms")]
        often = all(measure is not None and measure.repeats >= self.order.sampling.starts for measure in found)
        return often and manifest.environment == environment()

    def entry(self, name: str, artifact: Artifact) -> Entry:
        """A candidate as results tell it, from its manifest."""
        manifest = artifact.manifest
        history = None if manifest.codec == PLAIN else self.workspace.load_history(manifest.key)
        measures: Measures = {}
        by_batch: dict[str, Measure] = {}
        for key, measure in {**manifest.measures, **self._measured.get(manifest.key, {})}.items():
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
            history=tuple(record.to_json() for record in history or manifest.history),
            layers=tuple(layer.to_json() for layer in layers(artifact)),
        )

    def metric(self) -> dict[str, str]:
        """What quality is: name, unit, and which way is better."""
        metric = self.order.task.metric
        metric = metric.function if isinstance(metric, FunctionMetric) else metric
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
        return {"name": name, "unit": self.evaluator.metric.unit, "better": self.evaluator.metric.better}

    def caveats(self) -> tuple[str, ...]:
        """What a reader of the comparison with the baselines must know."""
        if isinstance(self.model.module, OnnxModule):
            return ("The model came as an ONNX file: the original is that file in ONNX Runtime, not in PyTorch.",)
        notes = [record.notes.get("not_fused") for record in self.baseline.manifest.history]
        names = [name for found in notes if isinstance(found, dict) for name in found]
        if not names:
            return ()
        return (
            "PyTorch's fused encoder kernel does not survive export, so the module itself may be faster than the "
            f"baseline measured here, and speed-ups against it are flattered: {', '.join(names)}.",
        )

    def _prepare(self) -> tuple[Model, str]:
        """The model to start from (trained where the task says so), and what identifies the task."""
        order = self.order
        order.observer.stage("look at the model")
        seed_all(order.seed)
        model = to_model(order.task)
        key = identify_task(order.task, model.module, order.seed, order.origin)
        if not order.task.epochs:
            return model, key
        weights = self.workspace.load_fitted(key)
        if weights is None:
            order.observer.stage("train the model")
            from tauten.make.model.fit import fit

            task = replace(order.task, model=model.module)
            fitted = fit(task, order.seed, order.observer.step, self.workspace.checkpoints).build()
            weights = {name: tensor.detach().cpu().numpy() for name, tensor in fitted.state_dict().items()}
            self.workspace.save_fitted(key, weights)
        # A copy: the module may be the user's own.
        module = copy.deepcopy(model.module)
        module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        return model.but(module=module.eval()), key

    def _baseline(self) -> tuple[Artifact, QualityEvaluator]:
        """The untouched model in PyTorch eager fp32, in ONNX Runtime where it came so.

        Its size is that of its weights as safetensors.
        """
        self.order.observer.stage("measure the untouched model")
        # A model that came as ONNX has no code that PyTorch runs.
        recipe = Recipe(BASELINE, (), "onnx" if isinstance(self.model.module, OnnxModule) else "eager")
        key = self.key(recipe)
        found = self.workspace.finished(BASELINE, key)
        artifact = found or self.builder.make(recipe, self.workspace.candidate(BASELINE), key)
        evaluator = QualityEvaluator(self.order.task, artifact, self.order.seed)
        return evaluator.evaluate(artifact, size="weights"), evaluator


def _same_bits(ours: Arrays, theirs: Arrays) -> bool:
    """Whether names, dtypes, shapes and bits agree."""
    return ours.keys() == theirs.keys() and all(
        (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        and array.tobytes() == theirs[name].tobytes()
        for name, array in ours.items()
    )
