"""What stands around the gRPC server's answers: the token, the access log and traces, as over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tauten.errors import EngineError
from tauten.run.serve.settings import Observing, Security
from tests.unit.serve.collector import PARENT, attributes_of, collecting
from tests.unit.serve.grpc_tiny import METHODS, ask_grpc, channel_to, ones, running_grpc, status_of
from tests.unit.serve.tiny import WAIT_S, Broken, Double, Gated, ask, ones_request, running, until

INFER = METHODS["ModelInfer"].path
STREAM = METHODS["ModelStreamInfer"].path
NOWHERE = "/inference.GRPCInferenceService/Nowhere"
TOKEN = "a-token-of-the-tests"
TRACED = Observing(traces=True)
LOGGED = Observing(access_log=True)
SERVER = 2  # a kind of span
ERROR = 2  # a status of one


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    with collecting(monkeypatch) as spans:
        yield spans


def ask_path(channel: Any, path: str, data: bytes = b"", **more: Any) -> str:
    """The name of the status with which an RPC ends."""
    try:
        channel.unary_unary(path)(data, timeout=WAIT_S, **more)
    except grpc.RpcError as fault:
        return status_of(fault)[0]
    return "OK"


def messages(*requests: Any) -> Iterator[bytes]:
    return iter([request.SerializeToString() for request in requests])


def test_both_protocols_tell_the_same_of_a_request_in_the_client_s_trace(collector: list[Any]) -> None:
    with running(Double(), observing=TRACED, grpc_port=0) as server:
        assert ask(server.port, "POST", "/v2/models/m/infer", ones_request(2), {"traceparent": PARENT}).status == 200
        with grpc.insecure_channel(server.server.grpc_target) as channel:
            ask_grpc(channel, "ModelInfer", ones(2), metadata=[("traceparent", PARENT)])
            ask_grpc(channel, "ServerLive")
    http, rpc = (
        next(span for span in collector if span.name == name)
        for name in ("POST /v2/models/m/infer", "inference.GRPCInferenceService/ModelInfer")
    )
    assert len(collector) == 6
    for span in (http, rpc):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT.split("-")[1], PARENT.split("-")[2])
    inside = [{span.name: span for span in collector if span.parent_span_id == outer.span_id} for outer in (http, rpc)]
    for over in inside:
        assert set(over) == {"queue", "compute"}
        assert over["queue"].end_time_unix_nano == over["compute"].start_time_unix_nano
    assert attributes_of(inside[0]["compute"]) == attributes_of(inside[1]["compute"])
    ours = [
        {name: value for name, value in attributes_of(span).items() if name.startswith("tauten.")}
        for span in (http, rpc)
    ]
    assert ours[0] == ours[1] == {"tauten.rows": 2, "tauten.cached": False}
    assert rpc.kind == http.kind
    assert {name: value for name, value in attributes_of(rpc).items() if name.startswith("rpc.")} == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
    }


def test_a_span_has_its_status_and_the_server_s_own_faults_are_marked(collector: list[Any]) -> None:
    with (
        running_grpc(Double(), Broken(EngineError("it broke")), observing=TRACED) as server,
        channel_to(server) as channel,
    ):
        found = {
            "NOT_FOUND": ask_path(channel, INFER, ones(model="q").SerializeToString()),
            "INTERNAL": ask_path(channel, INFER, ones(model="n").SerializeToString()),
            "UNIMPLEMENTED": ask_path(channel, NOWHERE),
        }
    assert found == {name: name for name in found}
    spans = {attributes_of(span)["rpc.response.status_code"]: span for span in collector if span.kind == SERVER}
    assert {name: span.status.code for name, span in spans.items()} == {
        "NOT_FOUND": 0,
        "INTERNAL": ERROR,
        "UNIMPLEMENTED": ERROR,
    }
    assert attributes_of(spans["INTERNAL"])["error.type"] == "INTERNAL"
    assert spans["UNIMPLEMENTED"].name == "_OTHER"  # names that clients make up are no names of spans
    assert attributes_of(spans["UNIMPLEMENTED"])["rpc.method_original"] == NOWHERE[1:]


def test_a_stream_is_a_span_with_one_for_each_request(collector: list[Any]) -> None:
    with (
        running_grpc(Double(), Broken(EngineError("it broke")), observing=TRACED) as server,
        channel_to(server) as channel,
    ):
        asked = messages(ones(2), ones(3), ones(model="n"))
        answers = channel.stream_stream(STREAM)(asked, timeout=WAIT_S, metadata=[("traceparent", PARENT)])
        assert len(list(answers)) == 3
    (stream,) = (span for span in collector if span.name == STREAM[1:])
    assert stream.parent_span_id.hex() == PARENT.split("-")[2]
    requests = [span for span in collector if span.name == "request"]
    assert {span.parent_span_id for span in requests} == {stream.span_id}
    assert sorted(attributes_of(span)["tauten.rows"] for span in requests) == [1, 2, 3]
    assert [attributes_of(span).get("error.type") for span in requests].count("EngineError") == 1
    computed = {span.parent_span_id for span in collector if span.name == "compute"}
    assert computed >= {span.span_id for span in requests if span.status.code != ERROR}


def test_a_client_that_leaves_is_told_of_in_its_span_and_its_line(
    collector: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tauten.access")
    engine = Gated()
    both = Observing(traces=True, access_log=True)
    with running_grpc(engine, run_in="thread", observing=both) as server, channel_to(server) as channel:
        call = channel.unary_unary(INFER)
        data = ones().SerializeToString()
        first = call.future(data)
        engine.wait_entered()
        second = call.future(data)
        until(lambda: server.models[0].waiting)
        second.cancel()
        with pytest.raises(grpc.RpcError):
            call(data, timeout=0.3)
        until(lambda: len(caplog.records) == 2)
        engine.gate.set()
        assert first.result(WAIT_S)
        until(lambda: len(caplog.records) == 3)
        assert engine.calls == 1
    assert [record.fields["status"] for record in caplog.records] == ["CANCELLED", "DEADLINE_EXCEEDED", "OK"]  # type: ignore[attr-defined]
    told = {attributes_of(span)["rpc.response.status_code"]: span for span in collector if span.kind == SERVER}
    assert set(told) == {"CANCELLED", "DEADLINE_EXCEEDED", "OK"}
    left = {name: attributes_of(span).get("tauten.client_left") for name, span in told.items()}
    assert left == {"CANCELLED": True, "DEADLINE_EXCEEDED": None, "OK": None}
    assert told["DEADLINE_EXCEEDED"].status.code == ERROR
    assert [span.name for span in collector].count("compute") == 1


def test_a_line_tells_the_same_over_both_protocols(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tauten.access")
    with running(Double(), observing=LOGGED, grpc_port=0) as server:
        ask(server.port, "POST", "/v2/models/m/infer", ones_request(2), {"X-Request-Id": "mine"})
        with grpc.insecure_channel(server.server.grpc_target) as channel:
            data = ones(2).SerializeToString()
            answer, _ = channel.unary_unary(INFER).with_call(data, metadata=[("x-request-id", "mine")], timeout=WAIT_S)
            until(lambda: len(caplog.records) == 2)
    http, rpc = (record.fields for record in caplog.records)  # type: ignore[attr-defined]
    assert set(rpc) == set(http)
    assert (rpc["request_id"], rpc["batch_rows"]) == (http["request_id"], http["batch_rows"]) == ("mine", 2)
    assert (rpc["received_bytes"], rpc["sent_bytes"]) == (len(data), len(answer))
    assert rpc["duration_ms"] >= rpc["compute_ms"] > 0


def test_who_is_refused_is_in_the_log_with_what_was_asked_and_has_an_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tauten.access")
    with (
        running_grpc(Double(), observing=LOGGED, security=Security(token=TOKEN)) as server,
        channel_to(server) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(b"", timeout=WAIT_S, metadata=[("x-request-id", "two words")])
        given = dict(caught.value.trailing_metadata())["x-request-id"]
        assert ask_path(channel, NOWHERE) == "UNAUTHENTICATED"  # as over HTTP, where a path is told to nobody either
        assert ask_path(channel, NOWHERE, metadata=[("authorization", f"Bearer {TOKEN}")]) == "UNIMPLEMENTED"
        until(lambda: len(caplog.records) == 3)
    fields = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [(one["path"], one["status"]) for one in fields] == [
        (INFER, "UNAUTHENTICATED"),
        (NOWHERE, "UNAUTHENTICATED"),
        (NOWHERE, "UNIMPLEMENTED"),
    ]
    assert fields[0]["request_id"] == given
    assert len(given) == 16


def test_what_is_a_token_over_http_is_one_over_grpc() -> None:
    with (
        running(Double(), security=Security(token=TOKEN), grpc_port=0) as server,
        grpc.insecure_channel(server.server.grpc_target) as channel,
    ):
        for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x"):
            sent = {"Authorization": header}
            over_http = ask(server.port, "POST", "/v2/models/m/infer", ones_request(), sent).status
            over_grpc = ask_path(channel, INFER, ones().SerializeToString(), metadata=[("authorization", header)])
            assert (over_http, over_grpc) in ((200, "OK"), (401, "UNAUTHENTICATED"))
        assert ask_path(channel, STREAM) == "UNAUTHENTICATED"
