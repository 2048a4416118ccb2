"""The gRPC server, asked with bare bytes: statuses, deadlines, limits, streams and how it stops."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tauten.errors import ConfigError, EngineError, ServeError
from tauten.run.serve.catalog import Catalog
from tauten.run.serve.grpc_infer import STREAM_DEPTH
from tauten.run.serve.protocol.limits import Limits
from tauten.run.serve.settings import Observing, Security
from tests.unit.serve.artifacts import linear_artifact, null_artifact
from tests.unit.serve.grpc_tiny import (
    METHODS,
    RunningGrpc,
    arrays_of,
    ask_grpc,
    channel_to,
    ones,
    request_of,
    running_grpc,
    status_of,
)
from tests.unit.serve.tiny import WAIT_S, Broken, Double, Gated, until

INFER = METHODS["ModelInfer"].path
STREAM = METHODS["ModelStreamInfer"]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningGrpc]:
    with running_grpc(Double(), Broken(EngineError("it broke"))) as server:
        yield server


@pytest.fixture
def channel(server: RunningGrpc) -> Iterator[Any]:
    with channel_to(server) as channel:
        yield channel


def failed(channel: Any, message: Any, name: str = "ModelInfer", **more: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask_grpc(channel, name, message, **more)
    return status_of(caught.value)


def test_raw_and_typed_requests_answer_the_same(channel: Any) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for typed in (False, True):
        message = request_of({"x": x}, typed=typed)
        message.id = "7"
        response = ask_grpc(channel, "ModelInfer", message)
        assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
        found = arrays_of(response)
        np.testing.assert_array_equal(found["double"], x * 2, strict=True)
        np.testing.assert_array_equal(found["total"], x.sum(axis=1), strict=True)


def test_each_answer_has_its_request_s_own_id_numbers_and_outputs(channel: Any) -> None:
    for index, request_id in enumerate(["1", "2", "", "", "1"]):
        message = request_of({"x": np.full((1, 3), index, np.float32)}, outputs=["total"] if index % 2 else [])
        message.id = request_id
        response = ask_grpc(channel, "ModelInfer", message)
        assert response.id == request_id
        found = arrays_of(response)
        assert set(found) == ({"total"} if index % 2 else {"double", "total"})
        assert found["total"].tolist() == [3 * index]


def test_only_the_outputs_that_are_asked_for_in_their_order(channel: Any) -> None:
    assert list(arrays_of(ask_grpc(channel, "ModelInfer", ones(outputs=["total"])))) == ["total"]
    assert list(arrays_of(ask_grpc(channel, "ModelInfer", ones(outputs=["total", "double"])))) == ["total", "double"]


def test_a_request_larger_than_a_batch_and_one_with_views(channel: Any) -> None:
    x = np.random.default_rng(1).random((10_000, 3), np.float32)
    found = arrays_of(ask_grpc(channel, "ModelInfer", request_of({"x": x})))
    np.testing.assert_array_equal(found["double"], x * 2)


def test_an_answer_explains_itself_on_request(channel: Any) -> None:
    response = ask_grpc(channel, "ModelInfer", ones(3), metadata=[("tauten-explain", "1")])
    assert response.parameters["tauten_batch_rows"].int64_param == 3
    assert response.parameters["tauten_left_because"].string_param
    assert not ask_grpc(channel, "ModelInfer", ones()).parameters


def test_statuses(channel: Any) -> None:
    code, details = failed(channel, request_of({"x": np.zeros((1, 4), np.float32)}))
    assert (code, details) == ("INVALID_ARGUMENT", "x: expected shape (batch, 3), got (1, 4)")
    assert failed(channel, ones(model="q"))[0] == "NOT_FOUND"
    version = ones()
    version.model_version = "2"
    assert failed(channel, version)[0] == "NOT_FOUND"
    assert failed(channel, b"\xff\xff")[0] == "INVALID_ARGUMENT"
    assert failed(channel, ones(model="n"))[0] == "INTERNAL"
    code, details = failed(channel, METHODS["RepositoryModelLoad"].request(model_name="m"), "RepositoryModelLoad")
    assert code == "PERMISSION_DENIED"
    assert "--repository" in details
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/LogSettings")(b"", timeout=WAIT_S)
    assert status_of(caught.value)[0] == "UNIMPLEMENTED"


def test_what_a_server_says_of_itself_and_of_its_models(channel: Any) -> None:
    def model(method: str, name: str = "m", version: str = "") -> Any:
        return ask_grpc(channel, method, METHODS[method].request(name=name, version=version))

    assert ask_grpc(channel, "ServerLive").live
    assert ask_grpc(channel, "ServerReady").ready
    assert model("ModelReady").ready
    assert not model("ModelReady", "q").ready
    assert not model("ModelReady", "m", "2").ready
    assert ask_grpc(channel, "ServerMetadata").name == "tauten"
    metadata = model("ModelMetadata")
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("x", "FP32", [-1, 3])]
    config = model("ModelConfig").config
    assert (config.name, config.input[0].data_type, config.instance_group[0].count) == ("m", 11, 1)
    assert [one.name for one in model("ModelStatistics", "").model_stats] == ["m", "n"]
    assert [one.state for one in ask_grpc(channel, "RepositoryIndex").models] == ["READY", "READY"]
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        assert failed(channel, METHODS[method].request(name="q"), method)[0] == "NOT_FOUND"


def test_a_request_is_counted_as_over_http() -> None:
    with running_grpc(Double()) as server, channel_to(server) as channel:
        ask_grpc(channel, "ModelInfer", ones(4))
        failed(channel, request_of({"z": np.zeros((1, 3), np.float32)}))
        statistics = server.models[0].statistics
        assert (statistics.successes, statistics.inferences, statistics.executions) == (1, 4, 1)
        assert statistics.failures == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 1}
        assert all(phase.count == 1 and phase.total_ns > 0 for phase in statistics.phases.values())


def test_random_bytes_are_refused_and_nothing_else_happens(channel: Any) -> None:
    draw = random.Random(1)
    valid = ones(2, typed=True, outputs=["total"]).SerializeToString()
    call = channel.unary_unary(INFER)
    codes = set()
    for count in range(600):
        if count % 3:
            broken = bytearray(valid)
            for _ in range(draw.randint(1, 3)):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
            data = bytes(broken[: draw.randint(1, len(broken))])
        else:
            data = draw.randbytes(draw.randint(0, 60))
        try:
            call(data, timeout=WAIT_S)
        except grpc.RpcError as fault:
            codes.add(status_of(fault)[0])
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(INFER)(iter(()), timeout=WAIT_S)
    assert status_of(caught.value) == ("INVALID_ARGUMENT", "expected a message, got none")
    assert codes <= {"INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}, codes
    assert ask_grpc(channel, "ServerReady").ready


def test_messages_and_metadata_have_limits() -> None:
    limits = Limits(max_body_bytes=100_000, max_head_bytes=4096)
    with running_grpc(Double(), limits=limits) as server, channel_to(server) as channel:
        code, details = failed(channel, ones(10_000))
        assert (code, "larger than max" in details) == ("RESOURCE_EXHAUSTED", True)
        # A compressed message counts as what it becomes.
        assert failed(channel, ones(10_000), compression=grpc.Compression.Gzip)[0] == "RESOURCE_EXHAUSTED"
        assert failed(channel, ones(), metadata=[("x", "y" * 20_000)])[0] in ("RESOURCE_EXHAUSTED", "INTERNAL")
        assert ask_grpc(channel, "ModelInfer", ones(), compression=grpc.Compression.Gzip).outputs


def test_a_full_queue_is_exhausted_and_says_when_to_come_again() -> None:
    engine = Gated()
    with running_grpc(engine, queue=1, run_in="thread") as server, channel_to(server) as channel:
        call = channel.unary_unary(INFER)
        data = ones().SerializeToString()
        first = call.future(data)
        engine.wait_entered()
        second = call.future(data)
        until(lambda: server.models[0].waiting)
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=WAIT_S)
        assert status_of(caught.value)[0] == "RESOURCE_EXHAUSTED"
        assert ("grpc-retry-pushback-ms", "1000") in caught.value.trailing_metadata()
        engine.gate.set()
        assert first.result(WAIT_S)
        assert second.result(WAIT_S)
        assert server.models[0].statistics.failures["REJECTED"] == 1


def test_a_cancelled_rpc_leaves_before_it_is_computed() -> None:
    engine = Gated()
    with running_grpc(engine, run_in="thread") as server, channel_to(server) as channel:
        call = channel.unary_unary(INFER)
        first = call.future(ones().SerializeToString())
        engine.wait_entered()
        second = call.future(ones().SerializeToString())
        until(lambda: server.models[0].waiting)
        second.cancel()
        until(lambda: server.models[0].statistics.failures["CANCELED"])
        engine.gate.set()
        assert first.result(WAIT_S)
        ask_grpc(channel, "ModelInfer", ones())
        assert engine.calls == 2


def test_deadlines_are_the_rpcs_and_the_requests() -> None:
    engine = Gated()
    with running_grpc(engine, run_in="thread") as server, channel_to(server) as channel:
        call = channel.unary_unary(INFER)
        first = call.future(ones().SerializeToString())
        engine.wait_entered()
        with pytest.raises(grpc.RpcError) as caught:
            call(ones().SerializeToString(), timeout=0.2)
        assert status_of(caught.value)[0] == "DEADLINE_EXCEEDED"
        message = ones()
        message.parameters["timeout"].int64_param = 200_000
        began = time.monotonic()
        code, details = failed(channel, message)
        assert (code, "own deadline" in details) == ("DEADLINE_EXCEEDED", True)
        assert 0.2 <= time.monotonic() - began < 5
        engine.gate.set()
        assert first.result(WAIT_S)
        ask_grpc(channel, "ModelInfer", ones())
        assert engine.calls == 2


def test_what_the_engine_does_not_answer_in_time_is_not_the_clients_deadline() -> None:
    engine = Gated()
    with running_grpc(engine, answer_s=0.3, run_in="thread") as server, channel_to(server) as channel:
        assert failed(channel, ones())[0] == "UNAVAILABLE"
        engine.gate.set()


def test_a_hundred_at_once_get_their_own_answers(server: RunningGrpc) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary(INFER)
        arrays = [np.full((1 + index % 3, 3), index, np.float32) for index in range(100)]
        futures = [call.future(request_of({"x": array}).SerializeToString()) for array in arrays]
        for array, future in zip(arrays, futures, strict=True):
            found = arrays_of(METHODS["ModelInfer"].response.FromString(future.result(WAIT_S)))
            np.testing.assert_array_equal(found["double"], array * 2)


class Silence:
    """A client's messages that do not come, until the test ends."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.over.wait()
        raise StopIteration


@contextmanager
def silence() -> Iterator[Silence]:
    silent = Silence()
    try:
        yield silent
    finally:
        silent.over.set()


def streamed(channel: Any, messages: Any, **more: Any) -> Iterator[Any]:
    data = (message if isinstance(message, bytes) else message.SerializeToString() for message in messages)
    for response in channel.stream_stream(STREAM.path)(data, timeout=WAIT_S, **more):
        yield STREAM.response.FromString(response)


def test_a_stream_answers_in_order_and_goes_on_after_a_mistake(channel: Any) -> None:
    messages = [request_of({"x": np.full((1, 3), index, np.float32)}) for index in range(2 * STREAM_DEPTH)]
    for index, message in enumerate(messages):
        message.id = str(index)
    messages[3].inputs[0].datatype = "FP64"
    messages[4].model_name = "n"
    answers = list(streamed(channel, [*messages, b"\xff"]))
    assert answers[3].error_message == "x: expected datatype FP32, got 'FP64'"
    assert answers[4].error_message == "it broke"
    assert answers[4].infer_response.id == "4"
    assert "are none" in answers[-1].error_message
    for index in {*range(2 * STREAM_DEPTH)} - {3, 4}:
        assert not answers[index].error_message
        assert answers[index].infer_response.id == str(index)
        np.testing.assert_array_equal(arrays_of(answers[index].infer_response)["double"], [[index * 2] * 3])


def test_the_last_answer_in_a_stream_says_so_on_request(channel: Any) -> None:
    message = ones()
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    first, second = streamed(channel, [message, ones()])
    assert first.infer_response.parameters["triton_final_response"].bool_param
    assert not second.infer_response.parameters


def test_a_cancelled_stream_gives_up_what_it_asked() -> None:
    engine = Gated()
    with running_grpc(engine, run_in="thread") as server, channel_to(server) as channel:
        never = iter(lambda: ones().SerializeToString(), None)
        stream = channel.stream_stream(STREAM.path)(never)
        engine.wait_entered()
        until(lambda: server.models[0].waiting == STREAM_DEPTH - 1)
        stream.cancel()
        until(lambda: server.models[0].statistics.failures["CANCELED"] == STREAM_DEPTH)
        engine.gate.set()
        ask_grpc(channel, "ModelInfer", ones())
        assert engine.calls == 2


def test_stopping_finishes_what_is_under_way() -> None:
    engine = Gated()
    with running_grpc(engine, run_in="thread") as server, channel_to(server) as channel, silence() as silent:
        call = channel.unary_unary(INFER)
        busy = call.future(ones().SerializeToString())
        engine.wait_entered()
        stream = channel.stream_stream(STREAM.path)(chain([ones().SerializeToString()] * 2, silent))
        until(lambda: server.models[0].waiting == 2)
        stopped = server.stop_soon()
        with channel_to(server) as late, pytest.raises(grpc.RpcError) as caught:
            late.unary_unary(INFER)(b"", timeout=WAIT_S)
        assert status_of(caught.value)[0] == "UNAVAILABLE"
        assert not stopped.done()
        engine.gate.set()
        assert busy.result(WAIT_S)
        assert len([next(stream), next(stream)]) == 2
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert status_of(ended.value) == ("UNAVAILABLE", "the server is stopping")
        assert stopped.result(WAIT_S) == 0


def test_stopping_waits_only_so_long() -> None:
    engine = Gated()
    with running_grpc(engine, drain_s=0.3, run_in="thread") as server, channel_to(server) as channel:
        busy = channel.unary_unary(INFER).future(ones().SerializeToString())
        engine.wait_entered()
        assert server.stop_soon().result(WAIT_S) == 1
        with pytest.raises(grpc.RpcError):
            busy.result(WAIT_S)
        engine.gate.set()


def test_a_client_that_sends_nothing_is_cut() -> None:
    limits = Limits(receive_s=0.3)
    with running_grpc(Double(), limits=limits) as server, channel_to(server) as channel, silence() as silent:
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(INFER)(silent, timeout=WAIT_S)
        assert status_of(caught.value) == ("DEADLINE_EXCEEDED", "the message did not come within 0.3 seconds")
        # Between two messages a stream may pause.
        stream = channel.stream_stream(STREAM.path)(chain([ones().SerializeToString()], silent))
        assert next(stream)
        time.sleep(1)
        assert stream.is_active()


def test_a_port_in_use_is_an_error_that_names_the_option(server: RunningGrpc) -> None:
    with pytest.raises(ServeError, match="--grpc-port"), running_grpc(Double(), grpc_port=server.port):
        pass


def test_a_token_is_asked_for_but_not_by_health_checks() -> None:
    token = "sixteen-letters-of-it"
    with running_grpc(Double(), security=Security(token=token)) as server, channel_to(server) as channel:
        for metadata in ([], [("authorization", "Bearer other")], [("authorization", token)]):
            code, details = failed(channel, ones(), metadata=metadata)
            assert (code, "Bearer TOKEN" in details) == ("UNAUTHENTICATED", True)
        assert ask_grpc(channel, "ModelInfer", ones(), metadata=[("authorization", f"Bearer {token}")]).outputs
        assert ask_grpc(channel, "ServerReady").ready
        assert failed(channel, b"", "ServerMetadata")[0] == "UNAUTHENTICATED"


def test_an_access_log_tells_each_rpc_and_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tauten.access")
    with running_grpc(Double(), observing=Observing(access_log=True)) as server, channel_to(server) as channel:
        call = channel.unary_unary(INFER)
        _, answered = call.with_call(ones().SerializeToString(), metadata=[("x-request-id", "mine")], timeout=WAIT_S)
        assert dict(answered.trailing_metadata())["x-request-id"] == "mine"
        with pytest.raises(grpc.RpcError) as caught:
            call(ones(model="q").SerializeToString(), timeout=WAIT_S)
        given = dict(caught.value.trailing_metadata())["x-request-id"]
        assert len(list(streamed(channel, [ones()]))) == 1
        until(lambda: len(caplog.records) == 3)
    fields: list[Any] = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [one["status"] for one in fields] == ["OK", "NOT_FOUND", "OK"]
    assert [one["request_id"] for one in fields][:2] == ["mine", given]
    assert fields[0]["path"] == INFER
    assert fields[0]["sent_bytes"] > 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_encrypted_connections(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    for security in (Security(certificate=certificate, key=key), Security(certificate=both)):
        with running_grpc(Double(), host="localhost", security=security) as server:
            trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
            with grpc.secure_channel(f"localhost:{server.port}", trusted) as channel:
                assert ask_grpc(channel, "ModelInfer", ones()).outputs
            with channel_to(server) as plain:
                assert failed(plain, ones())[0] == "UNAVAILABLE"
    wrong = Security(certificate=key)
    with pytest.raises(ConfigError, match="certificate"), running_grpc(Double(), security=wrong):
        pass


def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    null_artifact(tmp_path / "a")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    catalog = Catalog(directory=str(tmp_path))
    with running_grpc(Double(), catalog=catalog) as server, channel_to(server) as channel:

        def change(method: str, name: str) -> Any:
            return METHODS[method].request(model_name=name)

        def index(*, ready: bool = False) -> dict[str, str]:
            asked = METHODS["RepositoryIndex"].request(ready=ready)
            return {one.name: one.state for one in ask_grpc(channel, "RepositoryIndex", asked).models}

        assert index() == {"m": "READY", "a": "UNAVAILABLE", "broken": "UNAVAILABLE"}
        assert "model_repository" in ask_grpc(channel, "ServerMetadata").extensions
        ask_grpc(channel, "RepositoryModelLoad", change("RepositoryModelLoad", "a"))
        assert index(ready=True) == {"m": "READY", "a": "READY"}
        assert ask_grpc(channel, "ModelInfer", ones(2, model="a")).outputs[0].shape == [2]
        assert failed(channel, change("RepositoryModelLoad", "q"), "RepositoryModelLoad")[0] == "NOT_FOUND"
        assert failed(channel, change("RepositoryModelLoad", "broken"), "RepositoryModelLoad")[0] == "INVALID_ARGUMENT"
        other = change("RepositoryModelLoad", "a")
        other.parameters["config"].string_param = "{}"
        assert failed(channel, other, "RepositoryModelLoad")[0] == "INVALID_ARGUMENT"
        shutil.rmtree(tmp_path / "a")
        linear_artifact(tmp_path / "a")
        ask_grpc(channel, "RepositoryModelLoad", change("RepositoryModelLoad", "a"))
        response = ask_grpc(channel, "ModelInfer", ones(2, model="a"))  # the same bytes, and another model
        assert arrays_of(response)["y"].tolist() == [[2, 2]] * 2
        ask_grpc(channel, "RepositoryModelUnload", change("RepositoryModelUnload", "a"))
        assert failed(channel, ones(model="a"))[0] == "NOT_FOUND"


def test_asyncios_own_loop_serves_as_well() -> None:
    with running_grpc(Double(), loops=asyncio.new_event_loop) as server, channel_to(server) as channel:
        assert ask_grpc(channel, "ModelInfer", ones()).outputs
