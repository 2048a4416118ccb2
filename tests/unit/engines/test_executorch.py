"""The ExecuTorch engine against programs that are damaged, lie or hand work elsewhere; and its largest batch."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tauten.artifact.read import Artifact
from tauten.artifact.write import write_artifact
from tauten.codecs.plain import PLAIN
from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import ArtifactError, EngineError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.run.engines import load
from tauten.run.engines._fixed import divide
from tauten.run.engines._pte import survey

BATCH = 4
TARGET = Target(name="edge", engine="executorch", batch=BATCH)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made(tmp_path_factory.mktemp("edge") / "artifact", "open")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same model with a method for one row and one for four."""
    return made(tmp_path_factory.mktemp("fixed") / "artifact", "fixed")


def made(path: Path, shapes: str) -> Artifact:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4))
    specs = (TensorSpec(name="x", shape=("batch", 3)),)
    task = Task(model=module.eval(), inputs=specs, calibrate=[np.ones((4, 3), np.float32)])
    model = to_model(task)
    lowered = LOWERINGS.get("executorch")(model, TARGET, Context(task, model.module), {"shapes": shapes})
    return to_artifact(lowered, path, name="edge", engine="executorch", target=TARGET)


def changed(artifact: Artifact, folder: Path, graph: bytes, **fields: object) -> Artifact:
    """The artifact with another program in it, its checksums made anew."""
    weights = {"w": np.ones(3, np.float32)} if fields.pop("weights", False) else {}
    manifest = artifact.manifest.model_copy(
        update={"weights_bytes": sum(array.nbytes for array in weights.values()), **fields}
    )
    files = {manifest.graph: graph, manifest.weights: PLAIN.encode(weights)}
    return write_artifact(folder / "changed", manifest, files)


def test_more_rows_than_planned_for_are_cut_and_joined(artifact: Artifact) -> None:
    engine = load(artifact)
    x = np.random.default_rng(0).standard_normal((2 * BATCH + 1, 3)).astype(np.float32)
    whole = engine({"x": x})["output"]
    assert engine.describe()["largest"] == {"batch": BATCH}
    assert np.array_equal(whole, np.concatenate([engine({"x": x[i : i + 1]})["output"] for i in range(len(x))]))


@given(rows=st.integers(1, 300), sizes=st.sets(st.integers(1, 64), min_size=1, max_size=5))
def test_a_batch_is_cut_into_parts_that_fit_a_size(rows: int, sizes: set[int]) -> None:
    ordered = sorted(sizes)
    parts = divide(rows, ordered)
    assert sum(had for had, _ in parts) == rows
    assert all(1 <= had <= size and size in sizes for had, size in parts)
    # Only the last is filled up, and only by much where there is no smaller size.
    assert all(had == size for had, size in parts[:-1])
    had, size = parts[-1]
    assert had >= 0.75 * size or had < ordered[0]


def test_batches_of_fixed_sizes_answer_as_open_ones(artifact: Artifact, fixed: Artifact) -> None:
    engine, other = load(fixed), load(artifact)
    assert fixed.manifest.settings == {"batches": [1, BATCH]}
    assert engine.describe()["batches"] == [1, BATCH]
    x = np.random.default_rng(0).standard_normal((2 * BATCH + 3, 3)).astype(np.float32)
    for rows in range(1, len(x) + 1):
        np.testing.assert_allclose(engine({"x": x[:rows]})["output"], other({"x": x[:rows]})["output"], atol=1e-6)
    with pytest.raises(EngineError, match="at least one row"):
        engine({"x": x[:0]})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "expected a program with the methods"),
        ({"batches": [1]}, "expected a program with the methods"),
        ({"batches": [1, 2, 4]}, "expected a program with the methods"),
        ({"batches": [4, 1]}, "expected batch sizes that rise"),
        ({"batches": [1, 1]}, "expected batch sizes that rise"),
        ({"batches": [0, 4]}, "batches"),
        ({"batches": list(range(1, 10))}, "batches"),
        ({"batches": "14"}, "batches"),
        ({"other": 1}, "other"),
    ],
)
def test_settings_that_the_program_does_not_have_are_refused(
    settings: dict[str, object], why: str, fixed: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=why):
        load(changed(fixed, tmp_path, fixed.graph(), settings=settings))


def test_methods_for_other_batches_than_they_are_named_for_are_refused(fixed: Artifact, tmp_path: Path) -> None:
    swapped = fixed.graph().replace(b"forward_4", b"forward_9")
    with pytest.raises(ArtifactError, match="the program has"):
        load(changed(fixed, tmp_path, swapped, settings={"batches": [1, 9]}))
    rowless = (TensorSpec(name="output", shape=(4, 4)),)
    with pytest.raises(ArtifactError, match="output does not count rows"):
        load(changed(fixed, tmp_path, fixed.graph(), outputs=rowless))


def test_no_rows_and_a_closed_engine_are_refused(artifact: Artifact) -> None:
    engine = load(artifact)
    with pytest.raises(EngineError, match="at least one row"):
        engine({"x": np.zeros((0, 3), np.float32)})
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine({"x": np.zeros((1, 3), np.float32)})


def test_tells_what_xnnpack_runs_and_what_it_leaves(artifact: Artifact) -> None:
    described = load(artifact).describe()
    assert described["operations"]["other"] == {"FullyConnected": 1}
    assert described["operations"]["int8_share_of_products"] == 0
    assert described["calls_of_xnnpack"] == 1
    assert described["not_in_xnnpack"] == {"aten::native_layer_norm.out": 1}


def test_threads_are_those_of_the_engine_that_was_loaded_first(artifact: Artifact) -> None:
    # In a process of its own: programs of other tests may be alive here. A pool that is taken from under a program is
    # memory that is gone, so that a crash is what this would end with.
    code = (
        f"import gc, numpy; from tauten.run.engines import load; path = {str(artifact.path)!r}; "
        "x = {'x': numpy.ones((1, 3), 'float32')}; first = load(path, threads=2); before = first(x)['output']; "
        "others = [load(path, threads=threads) for threads in (1, 3, 1, 2)]; "
        "assert all((one(x)['output'] == before).all() for one in [first, *others] * 20); "
        "assert [one.describe()['threads'] for one in [first, *others]] == [2] * 5; "
        "[one.close() for one in [first, *others]]; del first, others; gc.collect(); "
        "assert load(path, threads=1).describe()['threads'] == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_says_nothing(artifact: Artifact) -> None:
    """The runtime tells of the processor when it makes its first thread; a user sees none of it, and no warning."""
    code = (
        f"import sys; from tauten.run.engines import load; e = load({str(artifact.path)!r}, threads=1); "
        "import numpy; e({'x': numpy.ones((1, 3), 'float32')}); "
        "assert not any(name.startswith(('executorch.exir', 'torchao')) for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PK\x03\x04" + data[4:],
        lambda data: data[:64],
        lambda data: data[:16] + b"\xff" * 8 + data[24:],
        lambda data: data[:24] + b"\xff" * 8 + data[32:],
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"XnnpackBackend", b"OpenvinBackend"),
        lambda data: data.replace(b"forward", b"another"),
        lambda data: data.replace(b"XH00", b"XH99"),
    ],
)
def test_a_program_that_is_none_is_refused(damage, artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        load(changed(artifact, tmp_path, damage(artifact.graph())))


def test_a_border_that_is_not_the_programs_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    for specs in (
        (TensorSpec(name="x", shape=("batch", 5)),),
        (TensorSpec(name="x", shape=("batch", 3), dtype="int64"),),
        (TensorSpec(name="x", shape=("batch", 3)), TensorSpec(name="z", shape=("batch",))),
    ):
        with pytest.raises(ArtifactError, match="the manifest declares inputs"):
            load(changed(artifact, tmp_path, artifact.graph(), inputs=specs))
    with pytest.raises(ArtifactError, match="holds its weights"):
        load(changed(artifact, tmp_path, artifact.graph(), weights=True))


def test_a_target_with_another_device_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"device": "cuda"})
    with pytest.raises(EngineError, match="runs on the CPU"):
        load(changed(artifact, tmp_path, artifact.graph(), target=target))


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 1 << 16), byte=st.integers(0, 255))
def test_any_changed_byte_is_surveyed_or_refused(artifact: Artifact, place: int, byte: int) -> None:
    data = bytearray(artifact.graph())
    data[place % len(data)] = byte
    with contextlib.suppress(ArtifactError):
        survey(bytes(data))
