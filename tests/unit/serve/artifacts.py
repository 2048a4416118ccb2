"""Small artifacts on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tauten.artifact.manifest import Manifest
from tauten.artifact.write import write_artifact
from tauten.codecs import CODECS
from tauten.core.target import Target
from tauten.core.tensor import Array, TensorSpec


def null_artifact(path: Path, name: str = "nothing") -> Path:
    """One that answers zeros."""
    return _write(
        path,
        name,
        "null",
        b"none",
        {},
        TensorSpec(name="x", shape=("batch", 3)),
        TensorSpec(name="y", shape=("batch",)),
    )


def linear_artifact(path: Path, name: str = "linear", scale: float = 1.0) -> Path:
    """``y = x @ weight``, with ``scale`` times the weight ``[[1, 0], [0, 1], [1, 1]]``, for ONNX Runtime."""
    from onnx import TensorProto, helper

    weight = np.array([[1, 0], [0, 1], [1, 1]], np.float32) * np.float32(scale)
    stored = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=weight.shape)
    stored.data_location = TensorProto.EXTERNAL  # its bytes are not in the graph
    stored.external_data.add(key="location", value="weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [stored],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x, y = TensorSpec(name="x", shape=("batch", 3)), TensorSpec(name="y", shape=("batch", 2))
    return _write(path, name, "onnx", model.SerializeToString(), {"weight": weight}, x, y)


def _write(
    path: Path, name: str, engine: str, graph: bytes, weights: dict[str, Array], x: TensorSpec, y: TensorSpec
) -> Path:
    files = {"graph.bin": graph, "weights.bin": CODECS.get("plain").encode(weights)}
    manifest = Manifest(
        name=name,
        created="2026-01-01T00:00:00Z",
        tauten="0",
        engine=engine,
        target=Target(name="test", engine=engine),
        inputs=(x,),
        outputs=(y,),
        graph="graph.bin",
        weights="weights.bin",
        weights_bytes=sum(array.nbytes for array in weights.values()),
        files={name: len(data) for name, data in files.items()},
    )
    write_artifact(path, manifest, files)
    return path
