"""Independent clients of the same protocols agree with the gRPC server, and gRPC with HTTP."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tauten.core.tensor import TensorSpec
from tauten.errors import ExtraMissing, ServeError
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES
from tauten.run.serve.protocol.grpc.messages import MESSAGES, REFLECTIONS
from tauten.run.serve.server import Server
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.tiny import WAIT_S, Double, Gated, Running, Same, ask, running, tensor, until

triton: Any = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")

SPECS = [TensorSpec(name=dtype, shape=("batch", 2), dtype=dtype) for dtype in DATATYPES]
NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Double(), Same(SPECS), grpc_port=0) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(server.server.grpc_target) as client:
        yield client


@pytest.fixture
def channel(server: Running) -> Iterator[Any]:
    with grpc.insecure_channel(server.server.grpc_target) as channel:
        yield channel


def inputs_of(arrays: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    found = []
    for name, array in arrays.items():
        found.append(triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name]))
        found[-1].set_data_from_numpy(array)
    return found


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("m", "2")
    assert client.get_server_metadata(as_json=True)["name"] == "tauten"
    found = client.get_model_metadata("m", as_json=True)
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert client.get_model_config("m").config.max_batch_size == 32
    assert client.get_inference_statistics("m").model_stats[0].name == "m"
    assert [one.name for one in client.get_model_repository_index().models] == ["m", "n"]


def test_every_datatype_answers_as_over_http(client: Any, server: Running) -> None:
    draw = np.random.default_rng(1)
    names = [spec.name for spec in SPECS]
    arrays = {name: draw.integers(0, 2, (3, 2)).astype(name) for name in names}
    outputs = [triton.InferRequestedOutput(f"out_{name}") for name in names]
    result = client.infer("n", inputs_of(arrays), outputs=outputs, request_id="7", compression_algorithm="gzip")
    assert result.get_response().id == "7"
    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), array, strict=True)
    x = draw.random((2, 3), np.float32)
    over_http = ask(server.port, "POST", "/v2/models/m/infer", {"inputs": [tensor("x", "FP32", [2, 3], x.tolist())]})
    over_grpc = client.infer("m", inputs_of({"x": x}))
    for output in over_http.json()["outputs"]:
        wanted = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(over_grpc.as_numpy(output["name"]), wanted, strict=True)
    assert {"float16"} == BINARY_ONLY


def test_a_stream_of_requests(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    arrays = [np.full((1, 3), index, np.float32) for index in range(20)]
    for index, array in enumerate(arrays):
        client.async_stream_infer("m", inputs_of({"x": array}), request_id=str(index))
    client.async_stream_infer("q", inputs_of({"x": arrays[0]}))
    for index, array in enumerate(arrays):
        result, error = answers.get(timeout=WAIT_S)
        assert error is None
        assert result.get_response().id == str(index)
        np.testing.assert_array_equal(result.as_numpy("double"), array * 2)
    assert "no model named 'q'" in str(answers.get(timeout=WAIT_S)[1])
    client.stop_stream()


def test_many_requests_at_once_and_their_explanation(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for index in range(100):
        client.async_infer(
            "m",
            inputs_of({"x": np.full((1, 3), index, np.float32)}),
            lambda result, error: answers.put((result, error)),
            request_id=str(index),
            headers={"tauten-explain": "1"},
        )
    for _ in range(100):
        result, error = answers.get(timeout=WAIT_S)
        assert error is None
        response = result.get_response()
        np.testing.assert_array_equal(result.as_numpy("double"), [[2.0 * int(response.id)] * 3])
        assert response.parameters["tauten_batch_rows"].int64_param >= 1


def test_errors_carry_status_and_message(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    wrong = inputs_of({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT\] x: expected shape \(batch, 3\), got"):
        client.infer("m", wrong)
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND\] no model named 'nope'"):
        client.infer("nope", wrong)


def test_http_and_grpc_are_counted_together() -> None:
    with running(Double(), grpc_port=0) as server, triton.InferenceServerClient(server.server.grpc_target) as client:
        x = np.zeros((2, 3), np.float32)
        client.infer("m", inputs_of({"x": x}))
        ask(server.port, "POST", "/v2/models/m/infer", {"inputs": [tensor("x", "FP32", [2, 3], x.tolist())]})
        metrics = ask(server.port, "GET", "/metrics").body.decode()
        assert 'nv_inference_request_success{model="m",version="1"} 2' in metrics
        assert 'nv_inference_count{model="m",version="1"} 4' in metrics


def test_health_checks(channel: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "m", "inference.GRPCInferenceService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="q"), timeout=WAIT_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_who_watches_health_is_told_when_the_server_stops() -> None:
    engine = Gated()
    with running(engine, grpc_port=0, run_in="thread") as server:
        target = server.server.grpc_target
        with grpc.insecure_channel(target) as channel, triton.InferenceServerClient(target) as client:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            assert next(watch).status == SERVING
            done: queue.Queue[Any] = queue.Queue()
            x = np.zeros((1, 3), np.float32)
            client.async_infer("m", inputs_of({"x": x}), lambda result, error: done.put(error))
            engine.wait_entered()
            stopped = server.stop_soon()
            assert next(watch).status == NOT_SERVING
            assert list(watch) == []
            until(lambda: server.server._endpoints.draining)
            assert not stopped.done()
            engine.gate.set()
            assert done.get(timeout=WAIT_S) is None
            assert stopped.result(WAIT_S) == 0


def test_reflection_lists_services_and_their_messages(channel: Any) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    names = set(database.get_services())
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= names
    pool = DescriptorPool(database)
    for name in names:
        assert pool.FindServiceByName(name).methods
    request = pool.FindMessageTypeByName("inference.ModelInferRequest")
    assert request.fields_by_name["raw_input_contents"].number == 7
    with pytest.raises(KeyError):
        pool.FindMessageTypeByName("inference.Nothing")


@pytest.mark.parametrize("schema", REFLECTIONS, ids=lambda schema: schema.package)
def test_reflection_in_both_versions(channel: Any, schema: Any) -> None:
    method = MESSAGES.methods(schema)["ServerReflectionInfo"]
    asked = [
        method.request(list_services="", host="h"),
        method.request(file_by_filename="tauten/inference.proto"),
        method.request(file_by_filename="nothing.proto"),
        method.request(all_extension_numbers_of_type="inference.ModelConfig"),
        method.request(all_extension_numbers_of_type="inference.Nothing"),
        method.request(),
    ]
    stream = channel.stream_stream(method.path)(iter([one.SerializeToString() for one in asked]), timeout=WAIT_S)
    answers = [method.response.FromString(data) for data in stream]
    assert [answer.WhichOneof("message_response") for answer in answers] == [
        "list_services_response",
        "file_descriptor_response",
        "error_response",
        "all_extension_numbers_response",
        "error_response",
        "error_response",
    ]
    assert len(answers[0].list_services_response.service) == 4
    assert [answer.original_request for answer in answers] == asked
    assert answers[2].error_response.error_code == 5


def test_without_a_grpc_port_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, tauten.run.serve.server as s, tauten.cli.serve;"
        "from tests.unit.serve.tiny import Double; from tauten.run.serve.model import ServedModel;"
        "s.Server([ServedModel('m', Double())]);"
        "print([name for name in sys.modules if name.partition('.')[0] in ('grpc', 'google')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_a_grpc_port_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tauten.run.serve.grpc_server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ExtraMissing, match=r'pip install "tauten\[grpc\]"'):
        Server([ServedModel("m", Double())], ServeSettings(grpc_port=0))


def test_a_grpc_port_in_use_closes_the_other_port_again(server: Running) -> None:
    import asyncio

    taken = int(server.server.grpc_target.rpartition(":")[2]) if server.server.grpc_target else 0

    async def main() -> None:
        second = Server([ServedModel("m", Double())], ServeSettings(port=0, grpc_port=taken))
        with pytest.raises(ServeError, match="--grpc-port"):
            await second.start()
        with pytest.raises(ServeError, match="not started"):
            _ = second.port

    asyncio.run(main())
