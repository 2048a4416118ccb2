"""What every engine must hold.

Each function of ``CHECKS`` takes an artifact for the engine and an empty folder to work in, and raises
``AssertionError`` where the contract is broken. ``artifact_for`` makes an artifact for an engine that has a lowering of
the same name; needs the ``optimize`` extra.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from tauten.artifact.read import Artifact
from tauten.artifact.write import copy_artifact
from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import ArtifactError, InputError
from tauten.run.engines import load
from tauten.testing._hold import hold

_SIZE: Final = 6  # of named dimensions other than the batch
_THREADS: Final = 8


def artifact_for(engine: str, path: str | os.PathLike[str]) -> Artifact:
    """A tiny artifact that ``engine`` runs: a lowered CNN, or for an engine without a lowering one without a graph."""
    from tauten.make.lower import LOWERINGS
    from tauten.make.lower.artifact import to_artifact
    from tauten.make.model.build import to_model
    from tauten.make.model.pass_ import Context
    from tauten.testing.artifacts import tiny_artifact
    from tauten.testing.tiny import cnn_task

    if engine not in LOWERINGS.names():
        return tiny_artifact(path, engine=engine)
    # A batch smaller than what the checks ask for, which engines that are made for a largest one have to cut.
    task, target = cnn_task(), Target(name="contract", engine=engine, batch=2)
    model = to_model(task)
    lowered = LOWERINGS.get(engine)(model, target, Context(task, model.module))
    return to_artifact(lowered, path, name=task.name, engine=engine, target=target)


def loads_from_files(artifact: Artifact, folder: Path) -> None:
    """It loads from an artifact and from a path, and declares the manifest's inputs and outputs."""
    for source in (artifact, artifact.path, str(artifact.path)):
        engine = load(source)
        hold(engine.inputs == artifact.manifest.inputs, f"declares inputs {engine.inputs}")
        hold(engine.outputs == artifact.manifest.outputs, f"declares outputs {engine.outputs}")


def answers_as_declared(artifact: Artifact, folder: Path) -> None:
    """For batches of 1 and 5: the declared names, dtypes and shapes; and the same answers again."""
    engine = load(artifact)
    for batch in (1, 5):
        inputs = draw(artifact, batch)
        answers = engine(inputs)
        names = [spec.name for spec in artifact.manifest.outputs]
        hold(list(answers) == names, f"expected outputs {names}, got {list(answers)}")
        for spec in artifact.manifest.outputs:
            came = answers[spec.name]
            hold(isinstance(came, np.ndarray), f"{spec.name}: expected an array, got a {type(came).__name__}")
            hold(came.dtype.name == spec.dtype, f"{spec.name}: expected {spec.dtype}, got {came.dtype}")
            sizes = spec.sizes(came.shape)
            hold(sizes.get("batch", batch) == batch, f"{spec.name}: batch {batch} gave shape {came.shape}")
        _same(answers, engine(inputs), "the same inputs gave other answers")


def refuses_inputs_that_do_not_fit(artifact: Artifact, folder: Path) -> None:
    """A missing or unknown name, another dtype or rank gives ``InputError``."""
    engine = load(artifact)
    good = draw(artifact, 2)
    name = next(iter(good))
    wrong: dict[str, Arrays] = {
        "no inputs": {},
        "an unknown name": {**good, "unknown_": good[name]},
        "another dtype": {**good, name: good[name].astype(np.complex64)},
        "another rank": {**good, name: good[name][None]},
    }
    for what, inputs in wrong.items():
        try:
            engine(inputs)
        except InputError:
            continue
        raise AssertionError(f"{what}: expected InputError, got an answer")
    hold(engine(good), "after wrong inputs it does not answer right ones")


def takes_any_memory(artifact: Artifact, folder: Path) -> None:
    """Arrays that are read-only, or not contiguous, are answered alike and left as they were."""
    engine = load(artifact)
    good = draw(artifact, 4)
    expected = engine({name: array.copy() for name, array in good.items()})
    frozen = {name: array.copy() for name, array in good.items()}
    for array in frozen.values():
        array.flags.writeable = False
    strided = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in good.items()}
    reversed_twice = {name: array[..., ::-1].copy()[..., ::-1] for name, array in good.items()}
    for what, inputs in (("read-only", frozen), ("strided", strided), ("backward", reversed_twice)):
        _same(expected, engine(inputs), f"{what} arrays gave other answers")
        hold(all(np.array_equal(inputs[name], good[name]) for name in good), f"{what} arrays were changed")


def keeps_answers_apart(artifact: Artifact, folder: Path) -> None:
    """A later call does not change the arrays that an earlier one gave."""
    engine = load(artifact)
    first = engine(draw(artifact, 3, seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    engine(draw(artifact, 3, seed=2))
    _same(kept, first, "a later call changed an earlier answer")


def answers_many_threads(artifact: Artifact, folder: Path) -> None:
    """Eight threads with inputs of their own get the answers that one thread gets."""
    engine = load(artifact)
    inputs = [draw(artifact, 1 + index % 3, seed=index) for index in range(_THREADS)]
    expected = [engine(one) for one in inputs]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in range(5):
            for wanted, came in zip(expected, pool.map(engine, inputs), strict=True):
                _same(wanted, came, "another thread's call changed an answer")


def stands_alone(artifact: Artifact, folder: Path) -> None:
    """Two engines over one artifact answer alike, and closing one leaves the other."""
    first, second = load(artifact), load(artifact, threads=2)
    inputs = draw(artifact, 2)
    expected = first(inputs)
    _same(expected, second(inputs), "a second engine answers otherwise", tolerance=1e-4)
    first.close()
    first.close()
    _same(expected, second(inputs), "closing one engine changed another", tolerance=1e-4)


def describes_itself(artifact: Artifact, folder: Path) -> None:
    """``describe`` is JSON, and names the engine."""
    described = load(artifact).describe()
    hold(json.loads(json.dumps(described)) == described, f"what it describes is no JSON: {described}")
    hold(described.get("engine") == artifact.manifest.engine, f"describes engine {described.get('engine')!r}")


def refuses_damage(artifact: Artifact, folder: Path) -> None:
    """An artifact with a changed byte in any of its files gives ``ArtifactError``."""
    for name in artifact.manifest.files:
        copy = copy_artifact(artifact, folder / "damaged")
        path = copy.path / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(bytes(data))
        try:
            load(copy.path)
        except ArtifactError:
            continue
        raise AssertionError(f"{name} was changed: expected ArtifactError, got an engine")


CHECKS: Final[tuple[Callable[[Artifact, Path], None], ...]] = (
    loads_from_files,
    answers_as_declared,
    refuses_inputs_that_do_not_fit,
    takes_any_memory,
    keeps_answers_apart,
    answers_many_threads,
    stands_alone,
    describes_itself,
    refuses_damage,
)


def draw(artifact: Artifact, batch: int, seed: int = 0) -> Arrays:
    """Inputs that fit: normal numbers, or for integers and booleans 0 and 1."""
    random = np.random.default_rng(seed)
    return {spec.name: _draw(spec, batch, random) for spec in artifact.manifest.inputs}


def _draw(spec: TensorSpec, batch: int, random: np.random.Generator) -> Array:
    sizes = {dim: _SIZE for dim in spec.shape if isinstance(dim, str) and dim != "batch"}
    shape = spec.concrete(batch, **sizes)
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return random.standard_normal(shape).astype(spec.dtype)
    return random.integers(0, 2, shape).astype(spec.dtype)


def _same(wanted: Arrays, came: Arrays, what: str, tolerance: float = 0.0) -> None:
    hold(list(wanted) == list(came), f"{what}: {list(came)} for {list(wanted)}")
    for name, array in wanted.items():
        other = came[name]
        alike = array.shape == other.shape and np.allclose(array, other, rtol=tolerance, atol=tolerance, equal_nan=True)
        hold(alike, f"{what}: {name}")
