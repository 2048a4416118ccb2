"""Tauten's side of the comparison: every engine and precision that it has, and the pick among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch.nn import LayerNorm

import tauten
from bench._latency_models import Subject
from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays, TensorSpec
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
from tauten.run.engines._padding import SETTING

OURS = "Tauten"
SAME = "Tauten, all of the model's arithmetic"
ENGINES = ("onnx", "openvino")
"""Inductor, which compiles for minutes, stands among the peers alone: the pick is made without it."""
BATCH = 16
_ROUNDS = 4
_SLOT_S = 0.05
_REST_S = 0.01
"""Before each, so that threads of the one before, which spin for a while after their work, are at rest."""
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

SHARES = ("1/16", "1/8", "1/4", "3/8", "1/2")


def cuts(recipe: str) -> dict[str, tuple[dict[str, Any], ...]]:
    """``recipe`` after a share of the channels went and what reads them was fitted anew, without training.

    They trade fidelity that quantization leaves over for speed. They stand apart from the other recipes, for they leave
    out some of the model's arithmetic.
    """
    cut = {"pass": "prune.structured", "criterion": "wanda", "scope": "isomorphic", "round_to": 8, "samples": 128}
    return {f"{recipe}-cut-{share}": ({**cut, "ratio": float(Fraction(share))}, *RECIPES[recipe]) for share in SHARES}


@dataclass(frozen=True, eq=False)
class Made:
    """A file that could be the pick; ``less`` says what of the model's arithmetic it leaves out, if anything."""

    name: str
    artifact: Artifact
    validated_db: float
    recipe: str
    less: str = ""


@dataclass(frozen=True, eq=False)
class Way:
    """A file as it is loaded."""

    made: Made
    threads: int
    spinning: bool = False

    @property
    def name(self) -> str:
        return f"{self.made.name} spinning" if self.spinning else self.made.name


Picked = dict[str, tuple[Callable[[Arrays], Array], dict[str, Any]]]
"""By kind, how the pick is called, and what it is."""


class Ours:
    """Makes all files once; picks for a number of threads and a batch by timing them in turn.

    There are two picks: the fastest of all, and the fastest of those that do all of the model's arithmetic.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self.made: list[Made] = []
        self.refused: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        """By recipe, what passes, export, lowering and writing of its first file took; later ones share the export."""
        self.tried: list[dict[str, Any]] = []
        self._right: Array | None = None

    def prepare(self) -> None:
        self._prepare(self.subject.inputs, RECIPES)
        if self.subject.named:
            # Fixed shapes are for a batch alone.
            self._prepare(self.subject.named, RECIPES, prefix="no-padding", less=SETTING, drop=("shapes",))
        else:
            # Of each kind of model those that are fastest whole, each engine's in the default placement alone.
            normalizes = any(isinstance(module, LayerNorm) for module in self.subject.module.modules())
            recipes = cuts("int8-nncf" if normalizes else "int8")
            self._prepare(self.subject.inputs, recipes, less="channels", only=({}, {"shapes": "fixed"}))

    def _prepare(
        self,
        inputs: tuple[TensorSpec, ...],
        recipes: dict[str, tuple[dict[str, Any], ...]],
        *,
        prefix: str = "",
        less: str = "",
        drop: tuple[str, ...] = (),
        only: tuple[Options, ...] = (),
    ) -> None:
        """The files of ``recipes``, without the options of ``drop``, or with ``only`` those; NNCF's have its own."""
        task = tauten.Task(
            name=self.subject.name,
            model=self.subject.module,
            inputs=inputs,
            outputs=("answer",),
            calibrate=list(parts(self.subject.calibrate, 16)),
            metric="sqnr",
        )
        untouched = to_model(task)
        context = Context(task, untouched.module)
        for recipe, passes in recipes.items():
            started = time.perf_counter()
            try:
                model = untouched
                for step in passes:
                    model = apply(pass_from_json(step), model, context)
            except TautenError as fault:
                self.refused[f"{prefix} {recipe}".strip()] = str(fault)
                continue
            before = time.perf_counter() - started
            by_nncf = recipe.startswith("int8-nncf")
            for engine in ENGINES if not by_nncf else ("openvino",):
                target = Target(name="bench", engine=engine, batch=BATCH)
                lower = LOWERINGS.get(engine)
                found = (NNCF,) if by_nncf else ways(lower, target, model)
                if only and not by_nncf:
                    found = tuple(options for options in only if set(options) <= set(lower.options))
                for options in without(found, drop):
                    name = " ".join(filter(None, [prefix, recipe, engine, *(f"{k}={v}" for k, v in options.items())]))
                    path = self.folder / name.replace(" ", "_").replace("=", "-").replace("/", "-")
                    started = time.perf_counter()
                    try:
                        lowered = lower(model, target, context, options)
                        artifact = to_artifact(lowered, path, name=task.name, engine=engine, target=target)
                        self.seconds.setdefault(f"{prefix} {recipe}", before + time.perf_counter() - started)
                        came = answered(artifact, self.subject.validate)
                    except TautenError as fault:
                        self.refused[name] = str(fault)
                        continue
                    if self._right is None:
                        self._right = came
                    whole = less == SETTING and not lowered.settings.get(SETTING)
                    validated = sqnr_db(self._right, came)
                    self.made.append(Made(name, artifact, validated, f"{prefix} {recipe}", "" if whole else less))

    def pick(self, threads: int, batch: int, floor_db: float | None) -> Picked:
        """The fastest of those that answer at least as faithfully as ``floor_db``, measured on validation samples.

        Of all, under ``pick``, and of those that do all of the model's arithmetic, under ``same``; each as it is called
        and what it is.
        """
        fit = [one for one in self.made if floor_db is None or one.validated_db >= floor_db]
        tried = [Way(one, used, spins) for one in fit for used, spins in waits(one, threads)]
        calls = {way: caller(way.made.artifact, way.threads, spinning=way.spinning) for way in tried}
        inputs = list(parts(self.subject.validate, batch))
        times: dict[Way, list[float]] = {way: [] for way in tried}

        def time_in_turn(some: Sequence[Way], rounds: int) -> None:
            for index in range(rounds):
                for way in some:
                    times[way].append(_timed(calls[way], inputs[index % len(inputs)]))

        def fastest(some: Sequence[Way]) -> list[Way]:
            return sorted(some, key=lambda way: median(times[way]))[:_FINALISTS]

        time_in_turn(tried, _ROUNDS)
        # The fastest of many by a short look is often a lucky one: the few that lead are timed again, and longer.
        leading = {"pick": fastest(tried), "same": fastest([way for way in tried if not way.made.less])}
        for ways_ in leading.values():
            for way in ways_:
                times[way] = []
        time_in_turn(list(dict.fromkeys(way for ways_ in leading.values() for way in ways_)), _FINAL_ROUNDS)
        self.tried = [
            {"what": way.name, "threads": way.threads, "ms": median(times[way]), "sqnr_db": way.made.validated_db}
            for way in tried
        ]
        best = {kind: fastest(ways_)[0] for kind, ways_ in leading.items()}
        return {kind: (calls[way], self._told(way)) for kind, way in best.items()}

    def _told(self, way: Way) -> dict[str, Any]:
        return {
            "name": way.name,
            "threads": way.threads,
            "bytes": way.made.artifact.size_bytes,
            "seconds": round(self.seconds[way.made.recipe], 1),
            "less": way.made.less,
        }


def waits(made: Made, threads: int) -> list[tuple[int, bool]]:
    """As how many threads a file is tried, and whether they spin: where there are several, and the engine asks."""
    found = [(used, False) for used in sorted({1, threads})]
    return [*found, (threads, True)] if threads > 1 and made.artifact.manifest.engine == "onnx" else found


def without(found: Sequence[Options], drop: tuple[str, ...]) -> list[Options]:
    """The options without some of their names; those that are then the same, once."""
    plain = [{key: value for key, value in options.items() if key not in drop} for options in found]
    return [options for index, options in enumerate(plain) if options not in plain[:index]]


def ways(lower: Lowering, target: Target, model: Model) -> tuple[Options, ...]:
    """The options that the lowering itself would have measured for this model."""
    found = lower.choices(target, model.quantization is not None)
    plan = model.quantization
    if plan is None or plan.method == "static":
        return found
    # Where placements mean nothing, so do choices that differ in them alone.
    return tuple(without(found, ("placement",)))


def parts(arrays: Arrays, batch: int) -> Any:
    """Whole batches, in order."""
    for at in range(0, len(next(iter(arrays.values()))) - batch + 1, batch):
        yield {name: np.ascontiguousarray(array[at : at + batch]) for name, array in arrays.items()}


def caller(artifact: Artifact, threads: int, *, spinning: bool = False) -> Callable[[Arrays], Array]:
    """Calls the artifact's engine, and gives the first output."""
    engine = load(artifact, threads=threads, spinning=spinning)
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
    time.sleep(_REST_S)
    call(inputs)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SLOT_S or not done:
        call(inputs)
        done += 1
    return (time.perf_counter() - started) / done * 1e3
