"""What ``evaluate`` judges an artifact by: batches, a metric, and the original where the metric compares with it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tauten.artifact.manifest import Manifest
from tauten.core.tensor import Array, Arrays, check_arrays
from tauten.errors import ConfigError, ExtraMissing, InputError, TaskError
from tauten.run.engines import load
from tauten.run.measure.metrics import find_metric
from tauten.run.measure.metrics.metric import Metric

if TYPE_CHECKING:
    from tauten.make.model.task import Task

LABELS = "labels"
SPLITS = ("test", "validate", "calibrate")


@dataclass(frozen=True)
class Judged:
    """Batches ``(inputs, labels or None)``, the metric with its name, and what the original answers, if it is needed.

    ``on`` names the data.
    """

    batches: Iterable[tuple[Mapping[str, Array], Array | None]]
    metric: Metric
    metric_name: str
    on: str
    reference: Callable[[Mapping[str, Array]], Arrays] | None = None


def from_task(reference: str, split: str | None, metric: str | None, original: Path | None) -> Judged:
    """From a task file. Needs PyTorch only where the file does, or where the original must be built."""
    from tauten.cli.task import load_task

    task = load_task(reference)
    found = find_metric(metric or task.metric)
    if split is None:
        split = next(name for name in SPLITS if task.has(name))
    name = metric or _name(task.metric)
    answers = None
    if found.reference:
        answers = load(original) if original else _build(task)
    return Judged(task.data(split), found, name, f"{split} of {reference}", answers)


def from_npz(path: Path, manifest: Manifest, metric: str | None, original: Path | None) -> Judged:
    """From a ``.npz`` file: an array for each input, and ``labels``."""
    found = find_metric(metric or "accuracy")
    arrays = read_npz(path)
    if LABELS in {spec.name for spec in manifest.inputs}:
        raise TaskError(f"{path}: the model has an input called {LABELS!r}: use a task file")
    labels = arrays.pop(LABELS, None)
    try:
        check_arrays(manifest.inputs, arrays)
    except InputError as fault:
        raise TaskError(f"{path}: {fault}") from None
    if not found.reference and labels is None:
        raise TaskError(f"{path}: expected an array called {LABELS!r}: {metric or 'accuracy'} compares with labels")
    if found.reference and original is None:
        raise ConfigError(f"{metric} compares with the original model: give --reference ARTIFACT, or --task")
    answers = load(original) if found.reference and original else None
    return Judged([(arrays, labels)], found, metric or "accuracy", str(path), answers)


def _name(metric: object) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def read_npz(path: Path) -> Arrays:
    """The arrays in a ``.npz`` file, by name; ``TaskError`` where it is none, or holds anything but plain arrays."""
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise TaskError(f"{path}: expected a .npz file (several named arrays), got a single array")
        with stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise TaskError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as fault:
        raise TaskError(f"{path}: expected a .npz file of plain arrays: {fault}") from None


def _build(task: Task) -> Callable[[Mapping[str, Array]], Arrays]:
    """The task's own model in PyTorch."""
    if task.epochs:
        raise ConfigError(
            "the metric compares with the original model, which this task would have to train first: "
            "give --reference ARTIFACT, the baseline's that optimize wrote"
        )
    try:
        from tauten.make.model.build import to_model
        from tauten.make.model.run import forward
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] != "torch":
            raise
        raise ExtraMissing("building the original model (--reference ARTIFACT spares that)", "optimize") from None
    model = to_model(task)
    return lambda inputs: forward(model.module, model.inputs, model.outputs, inputs)
