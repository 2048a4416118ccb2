"""The eager engine against documents that are damaged or call what they must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.tensor import TensorSpec
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines import load
from tauten.run.engines._operations import rebuild, resolve
from tauten.run.engines.engine import Engine
from tauten.testing.artifacts import tiny_artifact

X = np.arange(6, dtype=np.float32).reshape(2, 3)
W = np.ones((3, 3), np.float32)


def document(*nodes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plain = {"target": "aten.linear.default", "args": [{"node": 0}, {"node": 1}]}
    whole = {
        "format": 1,
        "arguments": [{"input": "x"}, {"weight": "w"}],
        "nodes": list(nodes) or [plain],
        "outputs": [{"node": 2}],
    }
    return {**whole, **changes}


def engine_of(folder: Path, graph: dict[str, Any] | bytes) -> Engine:
    data = graph if isinstance(graph, bytes) else json.dumps(graph).encode()
    borders = {
        "inputs": (TensorSpec(name="x", shape=("batch", 3)),),
        "outputs": (TensorSpec(name="y", shape=("batch", 3)),),
    }
    return load(tiny_artifact(folder / "a", graph=data, weights={"w": W}, engine="eager", layers={}, **borders))


def test_runs_a_document(tmp_path: Path) -> None:
    assert np.array_equal(engine_of(tmp_path, document())({"x": X})["y"], X @ W)


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default", "aten.set_.source_Storage", "aten.resize_.default", "aten._unsafe_view.default",
        "aten.no_such.default", "aten.linear.no_such", "aten.linear", "aten.__class__.mro", "aten.linear.__call__",
        "os.system", "operator.attrgetter", "operator.setitem", "builtins.eval", "torch.load", "math.prod",
        "quantized.linear.default", "quantized_decomposed.embedding_byte.default", "quantized_decomposed.no.such",
        "quantized_decomposed.quantize_per_tensor.out", "prims.add.default", "",
    ],
)  # fmt: skip
def test_a_call_that_is_not_allowed_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="operation"):
        engine_of(tmp_path, document({"target": target, "args": [{"node": 0}]}))


def test_resolves_to_the_operation_itself() -> None:
    assert resolve("aten.linear.default") is torch.ops.aten.linear.default


NODE = {"target": "aten.relu.default", "args": [{"node": 0}]}


@pytest.mark.parametrize(
    "graph",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        document(format=2),
        document(arguments=[{"input": "x"}]),
        document(arguments=[{"input": "y"}, {"weight": "w"}]),
        document(arguments=[{"input": "x"}, {"weight": "w"}, {"weight": "w"}]),
        document(arguments=[{"input": "x"}, {"weight": "w", "memory_format": "float32"}]),
        document(outputs=[]),
        document(outputs=[3]),
        document(outputs=[{"node": 9}]),
        document({**NODE, "args": [{"node": 2}]}),
        document({**NODE, "args": [{"node": -1}]}),
        document({**NODE, "args": [{"node": True, "dtype": "int8"}]}),
        document({**NODE, "args": [{"device": "cuda"}]}),
        document({**NODE, "args": [{"dtype": "load"}]}),
        document({**NODE, "args": [1.5]}),
        document({**NODE, "kwargs": {"x=print(1)) #": 1}}),
        document({"args": []}),
        document(nodes=7),
    ],
)
def test_a_malformed_document_is_refused(graph: dict[str, Any] | bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        engine_of(tmp_path, graph)


def test_text_never_becomes_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and strings of a document reach ``torch.fx``, which writes source code, as values only."""
    text = "'); print('ran'); ('"
    node = {"target": "aten.gelu.default", "args": [{"node": 0}], "kwargs": {"approximate": text}}
    graph = document(node, arguments=[{"input": "x"}, {"weight": "w"}])
    with pytest.raises(EngineError, match="PyTorch"):
        engine_of(tmp_path, graph)({"x": X})
    assert "ran" not in capsys.readouterr().out


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "format",
                        "arguments",
                        "nodes",
                        "outputs",
                        "input",
                        "weight",
                        "node",
                        "target",
                        "args",
                        "kwargs",
                        "float",
                        "dtype",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_rebuilt_or_refused(value: Any) -> None:
    for graph in (value, {"format": 1, "arguments": [{"input": "x"}], "nodes": value, "outputs": [{"node": 0}]}):
        try:
            rebuild(json.dumps(graph).encode(), {}, ["x"], 1)
        except ArtifactError:
            continue


def test_an_operation_that_fails_is_an_engine_error(tmp_path: Path) -> None:
    node = {"target": "aten.view.default", "args": [{"node": 0}, [7]]}
    with pytest.raises(EngineError, match="shape"):
        engine_of(tmp_path, document(node))({"x": X})


def test_sets_the_threads_it_was_asked_for(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    artifact = tiny_artifact(
        tmp_path / "a",
        graph=json.dumps(document()).encode(),
        weights={"w": W},
        engine="eager",
        layers={},
        inputs=(TensorSpec(name="x", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", shape=("batch", 3)),),
    )
    try:
        assert load(artifact, threads=2).describe()["threads"] == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
