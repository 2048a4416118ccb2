"""Tauten's side of the comparison: every engine and precision that it has, and the pick among them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tauten
from bench._latency_models import Subject
from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays
from tauten.errors import TautenError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.lower.lowering import Lowering, Options
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.search.recipe import pass_from_json
from tauten.run.engines import load

OURS = "Tauten"
ENGINES = ("onnx", "openvino")
"""Inductor, which compiles for minutes, stands among the peers alone: the pick is made without it."""
BATCH = 16
_ROUNDS = 4
_SLOT_S = 0.05
_FINALISTS = 5
_FINAL_ROUNDS = 12

NNCF = {"shapes": "fixed", "placement": "nncf", "precision": "bf16"}
"""OpenVINO's own quantizer, which takes models that no pass has put on grids."""

RECIPES: dict[str, tuple[dict[str, Any], ...]] = {
    "fp32": (),
    "int8": ({"pass": "quantize.post_training"},),
    "int8-smooth": ({"pass": "quantize.post_training", "smooth": 0.85},),
    "int8-dynamic": ({"pass": "quantize.dynamic"},),
    "int8-nncf": ({"pass": "quantize.post_training", "rounding": "engine"},),
}


@dataclass(frozen=True)
class Made:
    """A file that could be the pick."""

    name: str
    artifact: Artifact
    validated_db: float
    recipe: str


class Ours:
    """Makes all files once; picks for a number of threads and a batch by timing them in turn."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self.made: list[Made] = []
        self.refused: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        """By recipe, what passes, export, lowering and writing of its first file took; later ones share the export."""
        self.picked: dict[str, Any] = {}
        self.tried: list[dict[str, Any]] = []

    def prepare(self) -> None:
        calibrate = list(parts(self.subject.calibrate, 16))
        task = tauten.Task(
            name=self.subject.name,
            model=self.subject.module,
            inputs=self.subject.inputs,
            outputs=("answer",),
            calibrate=calibrate,
            metric="sqnr",
        )
        untouched = to_model(task)
        context = Context(task, untouched.module)
        right: Array | None = None
        for recipe, passes in RECIPES.items():
            started = time.perf_counter()
            try:
                model = untouched
                for step in passes:
                    model = apply(pass_from_json(step), model, context)
            except TautenError as fault:
                self.refused[recipe] = str(fault)
                continue
            before = time.perf_counter() - started
            for engine in ENGINES if recipe != "int8-nncf" else ("openvino",):
                target = Target(name="bench", engine=engine, batch=BATCH)
                lower = LOWERINGS.get(engine)
                for options in (NNCF,) if recipe == "int8-nncf" else ways(lower, target, model):
                    name = " ".join([recipe, engine, *(f"{key}={value}" for key, value in options.items())])
                    path = self.folder / name.replace(" ", "_").replace("=", "-")
                    started = time.perf_counter()
                    try:
                        lowered = lower(model, target, context, options)
                        artifact = to_artifact(lowered, path, name=task.name, engine=engine, target=target)
                        self.seconds.setdefault(recipe, before + time.perf_counter() - started)
                        came = answered(artifact, self.subject.validate)
                    except TautenError as fault:
                        self.refused[name] = str(fault)
                        continue
                    if right is None:
                        right = came
                    self.made.append(Made(name, artifact, sqnr_db(right, came), recipe))

    def pick(self, threads: int, batch: int, floor_db: float | None) -> Callable[[Arrays], Array]:
        """The fastest of those that answer at least as faithfully as ``floor_db``, measured on validation samples."""
        fit = [one for one in self.made if floor_db is None or one.validated_db >= floor_db]
        calls: dict[tuple[str, int], Callable[[Arrays], Array]] = {}
        for one in fit:
            for used in {1, threads}:
                calls[one.name, used] = caller(one.artifact, used)
        inputs = next(parts(self.subject.validate, batch))
        times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        # The fastest of many by a short look is often a lucky one: the few that lead are timed again, and longer.
        for rounds, most in ((_ROUNDS, len(calls)), (_FINAL_ROUNDS, _FINALISTS)):
            leading = sorted(calls, key=lambda key: median(times[key] or [0.0]))[:most]
            for _ in range(rounds):
                for key in leading:
                    times[key].append(_timed(calls[key], inputs))
        best = min(leading, key=lambda key: median(times[key]))
        by_name = {one.name: one for one in fit}
        self.tried = [
            {"what": name, "threads": used, "ms": median(times[name, used]), "sqnr_db": by_name[name].validated_db}
            for name, used in calls
        ]
        self.picked = {
            "name": best[0],
            "threads": best[1],
            "bytes": by_name[best[0]].artifact.size_bytes,
            "seconds": round(self.seconds[by_name[best[0]].recipe], 1),
        }
        chosen = calls[best]
        calls.clear()
        return chosen


def ways(lower: Lowering, target: Target, model: Model) -> tuple[Options, ...]:
    """The options that the lowering itself would have measured for this model."""
    found = lower.choices(target, model.quantization is not None)
    plan = model.quantization
    if plan is None or plan.method == "static":
        return found
    # Where placements mean nothing, so do choices that differ in them alone.
    plain = [{key: value for key, value in options.items() if key != "placement"} for options in found]
    return tuple(options for index, options in enumerate(plain) if options not in plain[:index])


def parts(arrays: Arrays, batch: int) -> Any:
    """Whole batches, in order."""
    for at in range(0, len(next(iter(arrays.values()))) - batch + 1, batch):
        yield {name: np.ascontiguousarray(array[at : at + batch]) for name, array in arrays.items()}


def caller(artifact: Artifact, threads: int) -> Callable[[Arrays], Array]:
    """Calls the artifact's engine, and gives the first output."""
    engine = load(artifact, threads=threads)
    return lambda arrays: engine(arrays)["answer"]


def answered(artifact: Artifact, samples: Arrays) -> Array:
    """The first output on all samples."""
    call = caller(artifact, 1)
    return np.concatenate([call(part) for part in parts(samples, 16)])


def sqnr_db(right: Array, came: Array) -> float:
    """Signal to noise in dB."""
    signal, noise = np.square(right, dtype=np.float64).sum(), np.square(right - came, dtype=np.float64).sum()
    return float(10 * np.log10(signal / noise)) if noise else 200.0


def _timed(call: Callable[[Arrays], Array], inputs: Arrays) -> float:
    """Milliseconds a call."""
    call(inputs)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SLOT_S or not done:
        call(inputs)
        done += 1
    return (time.perf_counter() - started) / done * 1e3
