"""The ONNX engine against graphs that lie, are damaged or point outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tauten.artifact.read import Artifact
from tauten.artifact.write import write_artifact
from tauten.codecs.plain import PLAIN
from tauten.core.target import Target
from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines import load
from tauten.run.engines._onnx_wire import MARKER, survey
from tauten.testing.artifacts import tiny_artifact
from tauten.testing.engines import artifact_for

WEIGHT = np.arange(64, dtype=np.float32).reshape(4, 16)


def external(name: str = "w", location: str = MARKER, shape: tuple[int, ...] = (4, 16), **more: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "256", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(*nodes: onnx.NodeProto, weight: TensorProto | None = None, **fields: object) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [weight if weight is not None else external()],
        **fields,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def artifact_of(folder: Path, graph: bytes | onnx.ModelProto, weights: Arrays | None = None, **fields) -> Artifact:
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    borders = {
        "inputs": (TensorSpec(name="x", shape=("batch", 4)),),
        "outputs": (TensorSpec(name="y", shape=("batch", 16)),),
        "layers": {},
    }
    weights = {"w": WEIGHT} if weights is None else weights
    return tiny_artifact(folder / "artifact", graph=data, weights=weights, engine="onnx", **{**borders, **fields})


def test_weights_come_from_the_artifact(tmp_path: Path) -> None:
    x = np.eye(4, dtype=np.float32)
    assert np.array_equal(load(artifact_of(tmp_path, graph_of()))({"x": x})["y"], WEIGHT)


def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    path.write_bytes(WEIGHT.tobytes())
    return path


def in_attribute(where: str) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=external("c", where))
    return graph_of(constant, helper.make_node("MatMul", ["x", "c"], ["y"]))


def in_branch(where: str) -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "c"], ["b"])],
        "inner",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        [external("c", where)],
    )
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    return graph_of(yes, helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner))


def in_function(where: str) -> onnx.ModelProto:
    model = graph_of(helper.make_node("Own", ["x"], ["y"], domain="own"))
    body = [
        helper.make_node("Constant", [], ["c"], value=external("c", where)),
        helper.make_node("MatMul", ["a", "c"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Own", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def in_sparse(where: str) -> onnx.ModelProto:
    values = external("s", where, shape=(64,))
    indices = helper.make_tensor("i", TensorProto.INT64, [64], range(64))
    return graph_of(sparse_initializer=[helper.make_sparse_tensor(values, indices, [4, 16])])


def in_training(where: str) -> onnx.ModelProto:
    model = graph_of()
    model.training_info.add().algorithm.initializer.append(external("t", where))
    return model


PLACES = [in_attribute, in_branch, in_function, in_sparse, in_training]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("inside", [False, True], ids=["a file", "the marker"])
def test_no_tensor_points_to_a_file(place: Callable[[str], onnx.ModelProto], inside: bool, tmp_path: Path) -> None:
    where = MARKER if inside else str(secret(tmp_path))
    with pytest.raises(ArtifactError, match="points to a file"):
        load(artifact_of(tmp_path, place(where)))


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "secret.bin", "*/_ORT_MEM_ADDR_/*", "", "Weights"]
)
def test_no_initializer_points_to_a_file(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="artifact's weights"):
        load(artifact_of(tmp_path, graph_of(weight=external(location=location))))


def test_a_file_named_as_the_marker_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MARKER).write_bytes(np.full(64, 7, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    x = np.eye(4, dtype=np.float32)
    assert np.array_equal(load(artifact_of(tmp_path, graph_of()))({"x": x})["y"], WEIGHT)
    with pytest.raises(ArtifactError, match="same initializers"):
        load(artifact_of(tmp_path, graph_of(), weights={}))


def merged() -> bytes:
    """Two attributes' tensors that are harmless apart and become one external tensor where protobuf merges them."""
    plain = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4, 16]).SerializeToString()
    pointer = external("c", "/etc/hostname").SerializeToString()
    attribute = b"\x0a\x05value" + b"\xa0\x01\x04"
    for part in (plain, pointer):
        attribute += b"\x2a" + bytes([len(part)]) + part
    node = b"\x12\x01c\x22\x08Constant" + b"\x2a" + bytes([len(attribute)]) + attribute
    graph = b"\x0a" + bytes([0x80 | len(node) & 0x7F, len(node) >> 7]) + node
    return b"\x08\x0a" + b"\x3a" + bytes([0x80 | len(graph) & 0x7F, len(graph) >> 7]) + graph


def test_what_protobuf_would_merge_is_refused() -> None:
    parsed = onnx.load_from_string(merged())
    assert parsed.graph.node[0].attribute[0].t.external_data
    with pytest.raises(ArtifactError):
        survey(merged())


@pytest.mark.parametrize(
    "weights",
    [
        {"w": WEIGHT.astype(np.float64)},
        {"w": WEIGHT[:, :8]},
        {"w": WEIGHT.reshape(16, 4)},
        {"other": WEIGHT},
        {"w": WEIGHT, "more": WEIGHT},
    ],
    ids=["dtype", "size", "shape", "name", "unused"],
)
def test_weights_that_do_not_fit_the_graph_are_refused(weights: Arrays, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="graph"):
        load(artifact_of(tmp_path, graph_of(), weights))


@pytest.mark.parametrize(
    "graph",
    [b"", b"no graph at all", b"\x08", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0f" * 9,
     b"\x20\x00\x00\x00ORTM" + bytes(64)],
    ids=["empty", "text", "cut", "endless number", "groups", "another format"],
)  # fmt: skip
def test_what_is_no_onnx_is_refused(graph: bytes, tmp_path: Path) -> None:
    with pytest.raises((ArtifactError, EngineError)):
        load(artifact_of(tmp_path, graph, weights={}))


def test_deep_nesting_is_refused() -> None:
    graph = b""
    for _ in range(200):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            size, length = len(graph), b""
            while True:
                size, low = size >> 7, size & 0x7F
                length += bytes([low | (0x80 if size else 0)])
                if not size:
                    break
            graph = tag + length + graph
    with pytest.raises(ArtifactError):
        survey(b"\x3a" + _length(graph) + graph)


def _length(data: bytes) -> bytes:
    size, out = len(data), b""
    while size > 0x7F:
        out += bytes([size & 0x7F | 0x80])
        size >>= 7
    return out + bytes([size])


@given(st.binary(max_size=200))
def test_any_bytes_are_surveyed_or_refused(data: bytes) -> None:
    try:
        survey(data)
    except ArtifactError:
        return


@given(st.data())
def test_what_is_surveyed_in_a_damaged_graph_is_what_protobuf_reads(data: st.DataObject) -> None:
    """Whatever one changed byte does: if both accept it, both see the same external tensors."""
    good = bytearray(in_attribute(MARKER).SerializeToString() if data.draw(st.booleans()) else SERIALIZED)
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = survey(bytes(good)).externals
    except ArtifactError:
        return
    try:
        parsed = onnx.load_from_string(bytes(good))
    except Exception:  # noqa: BLE001 - protobuf's own error has no public class
        return
    outside = {t.name for t in parsed.graph.initializer if t.external_data or t.data_location}
    assert outside == set(found)
    inner = [a.t for node in parsed.graph.node for a in node.attribute]
    assert not any(tensor.external_data or tensor.data_location for tensor in inner)


SERIALIZED = graph_of().SerializeToString()


@pytest.mark.parametrize(
    "borders",
    [
        {"inputs": (TensorSpec(name="z", shape=("batch", 4)),)},
        {"inputs": (TensorSpec(name="x", shape=("batch", 4), dtype="float64"),)},
        {"outputs": (TensorSpec(name="other", shape=("batch", 16)),)},
    ],
    ids=["input name", "input dtype", "output name"],
)
def test_a_manifest_that_the_graph_contradicts_is_refused(borders: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="declares"):
        load(artifact_of(tmp_path, graph_of(), **borders))


def test_an_operation_that_the_runtime_lacks_is_an_engine_error(tmp_path: Path, capfd) -> None:
    with pytest.raises(EngineError, match="Unheard"):
        load(artifact_of(tmp_path, graph_of(helper.make_node("Unheard", ["x", "w"], ["y"]))))
    assert capfd.readouterr() == ("", "")


def test_a_run_that_fails_is_an_engine_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [7, 3])
    nodes = (
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("ReduceSum", ["r"], ["t"]),
        helper.make_node("Add", ["p", "t"], ["y"]),
    )
    engine = load(artifact_of(tmp_path, graph_of(*nodes)))
    with pytest.raises(EngineError, match="Reshape"):
        engine({"x": np.zeros((2, 4), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    engine = load(artifact_of(tmp_path, graph_of()))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine({"x": np.zeros((2, 4), np.float32)})


def test_describes_threads_and_operations(tmp_path: Path) -> None:
    described = load(artifact_of(tmp_path, graph_of()), threads=2).describe()
    assert described["threads"] == 2
    assert described["spinning"] is False
    assert described["operations"] == {"int8": {}, "other": {"MatMul": 1}, "int8_share_of_products": 0.0}


def test_a_target_on_cuda_never_runs_on_the_processor_without_a_word(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    made = artifact_for("onnx", tmp_path / "cpu")
    target = Target(name="gpu", device="cuda")
    files = {made.manifest.graph: made.graph(), made.manifest.weights: PLAIN.encode(made.weights())}
    moved = write_artifact(tmp_path / "gpu", made.manifest.model_copy(update={"target": target}), files)
    with pytest.raises(EngineError, match="asks for CUDAExecutionProvider"):
        load(moved)
