"""Measures candidates: quality one by one, time and memory all together in one run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from tauten.artifact.read import Artifact
from tauten.artifact.write import WhatSize, write_measures
from tauten.core.measure import Measure
from tauten.core.rows import count_rows, has_batch, join_rows, resize_rows
from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays
from tauten.core.value import Value
from tauten.errors import TaskError
from tauten.make.model.apply import seed_all
from tauten.make.model.pass_ import Progress
from tauten.make.model.task import Batch, Data, Task
from tauten.make.search.identity import add_batch
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.run.measure.memory import measure_fresh
from tauten.run.measure.quality import Quality, drop, find_metric, measure_quality
from tauten.run.measure.session import Timing, measure_together

ROWS = 128
"""Samples that calls are timed on, in turn; fewer where they would be large."""
MAX_ROWS_BYTES = 2**24
STEADY = 0.01
"""Timing stops early where every median is known to within this share of itself."""
MAX_REMEMBERED_BYTES = 2**30


class Sampling(Value):
    """How long to measure: ``seconds`` of calls an artifact, and ``starts`` of fresh processes."""

    seconds: Annotated[float, Field(gt=0)] = 1.0
    starts: Annotated[int, Field(ge=1)] = 3


DEFAULT_SAMPLING = Sampling()


class Remembered:
    """An engine's answers, each computed once: the original is asked the same questions for every candidate."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._answers: dict[bytes, Arrays] = {}
        self._room = MAX_REMEMBERED_BYTES

    def __call__(self, inputs: Mapping[str, Array]) -> Arrays:
        key = hashlib.sha256()
        for name in sorted(inputs):
            key.update(np.ascontiguousarray(inputs[name]).data)
        found = self._answers.get(key.digest())
        if found is None:
            found = self._engine(inputs)
            self._room -= sum(array.nbytes for array in found.values())
            if self._room > 0:
                self._answers[key.digest()] = found
        return found


class QualityEvaluator:
    """Quality against the untouched model, which is ``baseline`` on its engine.

    Drops are paired sample by sample, so every walk over a split has to give the same batches: each begins with the
    same seed, and ``TaskError`` tells of a source that comes otherwise all the same.
    """

    def __init__(self, task: Task, baseline: Artifact, seed: int = 0) -> None:
        self.metric = find_metric(task.metric)
        self._task = task
        self._baseline = baseline
        self._seed = seed
        self._first_walks: dict[str, str] = {}
        if self.metric.reference:
            self.split = "validate" if task.has("validate") else "calibrate"
        else:
            self.split = "validate"
            task.data("validate")

    @cached_property
    def _engine(self) -> Engine:
        # The eager engine sets PyTorch's threads for the whole process; training after this wants its own back.
        threads = torch.get_num_threads()
        try:
            return load(self._baseline)
        finally:
            torch.set_num_threads(threads)

    @cached_property
    def _answers(self) -> Remembered:
        return Remembered(self._engine)

    @cached_property
    def _of_baseline(self) -> Quality:
        return self.quality(self._baseline, self.split)

    def quality(self, artifact: Artifact, split: str) -> Quality:
        """Quality of an artifact through its engine, on the batches called ``split``."""
        engine = self._engine if artifact.path == self._baseline.path else load(artifact)
        data = self._task.data(split)
        if not self.metric.reference:
            _labelled(data)
        return measure_quality(engine, self._walk(data), self.metric, self._answers if self.metric.reference else None)

    def _walk(self, data: Data) -> Iterator[Batch]:
        seed_all(self._seed)
        seen = hashlib.sha256()
        for inputs, labels in data:
            add_batch(seen, inputs, labels)
            yield inputs, labels
        if self._first_walks.setdefault(data.what, seen.hexdigest()) != seen.hexdigest():
            raise TaskError(
                f"{data.what}: its batches came in another order or with other numbers at another walk, so candidates "
                "cannot be compared sample by sample; give the same batches at each walk, such as a DataLoader with "
                "shuffle=False"
            )

    def evaluate(self, artifact: Artifact, size: WhatSize = "artifact") -> Artifact:
        """The artifact with ``quality`` and ``drop_points`` on the validation data in its manifest."""
        ours = self._of_baseline if artifact.path == self._baseline.path else self.quality(artifact, self.split)
        measures = {"quality": ours.measure, "drop_points": drop(self._of_baseline, ours, self.metric.better)}
        return write_measures(artifact, measures, size)


def time_together(
    artifacts: Mapping[str, Artifact],
    task: Task,
    target: Target,
    seconds: float,
    progress: Progress,
    batches: Sequence[int] = (),
) -> dict[str, Timing]:
    """Latency and throughput of all, interleaved in one fresh process, on real inputs.

    Throughput is that of ``batches``, by default of all up to the target's.
    """
    # Calibration data may be of what was trained on, of which a network that decides by its input is surer.
    split = "validate" if task.has("validate") else "calibrate"
    one = sum(array.nbytes for array in rows(task, 1).values())
    sample = rows(task, max(min(ROWS, MAX_ROWS_BYTES // max(one, 1)), target.batch), split)
    batches = batches or [batch for batch in (1, 8, 16, 32) if batch <= target.batch] or [1]
    paths = {name: artifact.path for name, artifact in artifacts.items()}
    return measure_together(
        paths, sample, threads=target.threads, batches=batches, seconds=seconds, steady=STEADY, progress=progress
    )


def weigh(artifact: Artifact, task: Task, target: Target, repeats: int) -> dict[str, Measure]:
    """Peak memory, start-up and load time of fresh processes that load and run the artifact."""
    return measure_fresh(artifact.path, rows(task, 1), threads=target.threads, repeats=repeats)


def rows(task: Task, count: int, split: str = "calibrate") -> Arrays:
    """``count`` rows of the data called ``split``, repeated where there are fewer of the first batch's shape."""
    gathered: list[Arrays] = []
    for inputs, _ in task.data(split):
        if gathered and not _alike(task, gathered[0], inputs):
            continue
        gathered.append(inputs)
        if not has_batch(task.inputs) or sum(count_rows(task.inputs, some) for some in gathered) >= count:
            break
    return resize_rows(task.inputs, join_rows(task.inputs, gathered), count)


def _alike(task: Task, one: Arrays, other: Arrays) -> bool:
    """Whether two batches have the same shapes, the number of samples aside."""
    sizes = [resize_rows(task.inputs, arrays, 1) for arrays in (one, other)]
    return all(sizes[0][name].shape == sizes[1][name].shape for name in sizes[0])


def _labelled(data: Data) -> None:
    if next(iter(data))[1] is None:
        raise TaskError(f"{data.what}: the metric needs labels: give (inputs, labels) batches, or a fidelity metric")
