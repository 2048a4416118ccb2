"""The inductor engine against documents that must not be compiled; machines without a compiler or a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines import inductor, load
from tauten.run.engines.engine import Engine
from tauten.testing.artifacts import tiny_artifact

X = np.arange(6, dtype=np.float32).reshape(2, 3)
W = np.ones((3, 3), np.float32)
LINEAR = {"target": "aten.linear.default", "args": [{"node": 0}, {"node": 1}]}


def engine_of(folder: Path, *nodes: dict[str, Any], **fields: Any) -> Engine:
    graph = {
        "format": 1,
        "arguments": [{"input": "x"}, {"weight": "w"}],
        "nodes": list(nodes),
        "outputs": [{"node": 1 + len(nodes)}],
    }
    borders = {
        "inputs": (TensorSpec(name="x", shape=("batch", 3)),),
        "outputs": (TensorSpec(name="y", shape=("batch", 3)),),
        "target": Target(name="test", engine="inductor", batch=4),
    }
    data = json.dumps(graph).encode()
    return load(
        tiny_artifact(folder / "a", graph=data, weights={"w": W}, engine="inductor", layers={}, **{**borders, **fields})
    )


@pytest.mark.parametrize(
    "node",
    [
        {"target": "aten.as_strided.default", "args": [{"node": 0}, [9999], [1]]},
        {"target": "aten.gelu.default", "args": [{"node": 0}], "kwargs": {"approximate": "'); print('ran'); ('"}},
        {"target": "aten.einsum.default", "args": ["ij\\n,jk", [{"node": 0}, {"node": 1}]]},
        {"target": "os.system", "args": ["true"]},
    ],
)
def test_what_must_not_be_compiled_is_refused(node: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not allowed"):
        engine_of(tmp_path, node)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(EngineError, match=r"install g\+\+ or clang\+\+"):
        engine_of(tmp_path, LINEAR)


def test_without_a_device_it_does_not_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EngineError, match="CUDA device"):
        engine_of(tmp_path, LINEAR, target=Target(name="test", engine="inductor", device="cuda"))


def test_batches_are_filled_up_and_what_is_compiled_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler itself: 3 rows run as 4, 9 as 4, 4 and 1; a full house runs operations one by one."""
    monkeypatch.setattr(inductor.torch, "compile", lambda module, **_: module)
    engine = engine_of(tmp_path, LINEAR)
    again = load(tmp_path / "a")
    rows = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    for count in (3, 9, 0):
        np.testing.assert_allclose(engine({"x": rows[:count]})["y"], rows[:count] @ W, rtol=1e-5, atol=1e-6)
    assert again.describe()["compiled_shapes"] == [[[1, 3]], [[4, 3]]]
    monkeypatch.setattr(inductor, "MAX_SHAPES", 2)
    engine({"x": rows[:2]})
    assert again.describe()["calls_not_compiled"] == 1
    engine.close()
    assert again({"x": X})["y"].shape == (2, 3)
    with pytest.raises(EngineError, match="closed"):
        engine({"x": X})


def test_a_compiler_that_fails_is_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: Any, **_: Any) -> Any:
        raise AssertionError("wrong strides")

    monkeypatch.setattr(inductor.torch, "compile", broken)
    with pytest.raises(EngineError, match="wrong strides"):
        engine_of(tmp_path, LINEAR)
