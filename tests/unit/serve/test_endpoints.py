"""The protocol's paths over a real socket: what is answered, with which status, and what is said of a fault."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import numpy as np
import pytest

from tauten.core.tensor import TensorSpec
from tauten.errors import ConfigError, EngineError, InputError
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.datatypes import DATATYPES
from tauten.run.serve.protocol.v2 import HEADER_LENGTH, decode_response, encode_request
from tauten.run.serve.server import Server
from tests.unit.serve.tiny import (
    Broken,
    Double,
    Gated,
    Reply,
    Running,
    Same,
    ask,
    ones_request,
    post,
    read_replies,
    running,
    tensor,
    until,
    wire,
)

EVERY = [TensorSpec(name=f"in_{dtype}", shape=("batch", 2), dtype=dtype) for dtype in DATATYPES]
INFER = "/v2/models/m/infer"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Double(), Same(EVERY)) as server:
        yield server


def test_the_server_tells_what_it_is(server: Running) -> None:
    reply = ask(server.port, "GET", "/v2")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["name"] == "tauten"
    assert "binary_tensor_data" in reply.json()["extensions"]


@pytest.mark.parametrize("base", ["/v2/models/m", "/v2/models/m/versions/1"])
def test_a_model_tells_what_it_is(server: Running, base: str) -> None:
    assert ask(server.port, "GET", base).json() == {
        "name": "m",
        "versions": ["1"],
        "platform": "tauten",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [
            {"name": "double", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "total", "datatype": "FP32", "shape": [-1]},
        ],
    }
    config = ask(server.port, "GET", f"{base}/config").json()
    assert config["max_batch_size"] == 32
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"][1] == {"name": "total", "data_type": "TYPE_FP32", "dims": []}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/m/ready", {"name": "m", "ready": True}),
        ("/v2/models/m/versions/1/ready", {"name": "m", "ready": True}),
    ],
)
def test_health_is_a_status_and_what_clients_read_beside_it(
    server: Running, path: str, says: dict[str, object]
) -> None:
    reply = ask(server.port, "GET", path)
    assert (reply.status, reply.json()) == (200, says)


@pytest.mark.parametrize(
    "path", ["/v2/models/%6d", "/v2/models/m/", "/v2/models/m?verbose=1", "/%762/models/m/versions/1/"]
)
def test_a_path_may_be_written_in_other_ways(server: Running, path: str) -> None:
    assert ask(server.port, "GET", path).json()["name"] == "m"


def test_the_absolute_form_of_a_target_is_understood(server: Running) -> None:
    with wire(server.port) as connection:
        connection.sendall(b"GET http://any.where:80/v2/health/live HTTP/1.1\r\n\r\n")
        assert read_replies(connection, 1)[0].status == 200


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/v2/models/nope", "no model named 'nope': expected one of ['m', 'n']"),
        ("POST", "/v2/models/nope/infer", "no model named 'nope': expected one of ['m', 'n']"),
        ("GET", "/v2/models/m/versions/2", "model 'm' has no version '2': expected '1'"),
        ("POST", "/v2/models/m/versions/2/infer", "model 'm' has no version '2': expected '1'"),
        ("GET", "/v2/models/m/nope", "nothing at '/v2/models/m/nope'"),
        ("GET", "/v2/models", "nothing at '/v2/models'"),
        ("GET", "/", "nothing at '/'"),
        ("GET", "/v2/models/%ff%00", "no model named '\ufffd\\x00': expected one of ['m', 'n']"),
        ("GET", "/v2/models/m%2fready", "no model named 'm/ready': expected one of ['m', 'n']"),
        ("OPTIONS", "*", "nothing at '*'"),
    ],
)
def test_what_is_not_there_is_named(server: Running, method: str, path: str, says: str) -> None:
    reply = ask(server.port, method, path)
    assert (reply.status, reply.json()) == (404, {"error": says})


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", INFER, "POST"),
        ("HEAD", INFER, "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/m", "GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
        ("POST", "/v2/health/ready", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_are_allowed(server: Running, method: str, path: str, allow: str) -> None:
    reply = ask(server.port, method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allow)
    if method != "HEAD":
        assert reply.json() == {"error": f"expected {allow}, got {method}"}


def test_json_in_json_out(server: Running) -> None:
    request = {"id": "abc", "inputs": [tensor("x", "FP32", [2, 3], [[1, 2, 3], [4, 5, 6]])]}
    reply = ask(server.port, "POST", INFER, request)
    assert reply.status == 200
    assert HEADER_LENGTH.lower() not in reply.headers
    assert reply.json() == {
        "model_name": "m",
        "model_version": "1",
        "id": "abc",
        "outputs": [
            {"name": "double", "datatype": "FP32", "shape": [2, 3], "data": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]},
            {"name": "total", "datatype": "FP32", "shape": [2], "data": [6.0, 15.0]},
        ],
    }


def test_without_an_id_none_is_answered(server: Running) -> None:
    assert "id" not in ask(server.port, "POST", INFER, ones_request()).json()


def test_only_the_outputs_that_were_asked_for_come(server: Running) -> None:
    reply = ask(server.port, "POST", INFER, ones_request(outputs=[{"name": "total"}]))
    assert [output["name"] for output in reply.json()["outputs"]] == ["total"]


def binary_headers(length: int) -> dict[str, str]:
    return {HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}


def decoded(reply: Reply) -> dict[str, np.ndarray]:
    assert reply.status == 200, reply.body
    length = reply.headers.get(HEADER_LENGTH.lower())
    return decode_response(reply.body, None if length is None else int(length)).outputs


def test_every_datatype_travels_as_bytes(server: Running) -> None:
    draw = np.random.default_rng(0)
    inputs = {spec.name: draw.integers(0, 2, (3, 2)).astype(spec.dtype) for spec in EVERY}
    message = encode_request(inputs, binary=True)
    assert message.header_length is not None
    reply = ask(
        server.port, "POST", "/v2/models/n/infer", b"".join(message.parts), binary_headers(message.header_length)
    )
    assert reply.headers["content-type"] == "application/octet-stream"
    for name, array in decoded(reply).items():
        np.testing.assert_array_equal(array, inputs[name.removeprefix("out_")], strict=True)


def test_one_output_as_bytes_and_one_as_json(server: Running) -> None:
    outputs = [{"name": "total", "parameters": {"binary_data": True}}, {"name": "double"}]
    reply = ask(server.port, "POST", INFER, ones_request(2, outputs=outputs))
    head = json.loads(reply.body[: int(reply.headers[HEADER_LENGTH.lower()])])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert head["outputs"][1]["data"] == [2.0] * 6
    assert decoded(reply)["total"].tolist() == [3.0, 3.0]


def test_raw_mode(server: Running) -> None:
    x = np.arange(6, dtype=np.float32)
    outputs = decoded(ask(server.port, "POST", INFER, x.tobytes(), {HEADER_LENGTH: "0"}))
    np.testing.assert_array_equal(outputs["double"], x.reshape(2, 3) * 2)
    assert outputs["total"].tolist() == [3.0, 12.0]


def test_ten_megabytes_travel_both_ways() -> None:
    spec = TensorSpec(name="x", shape=("batch", 1000))
    x = np.random.default_rng(0).standard_normal((2500, 1000)).astype(np.float32)
    message = encode_request({"x": x}, binary=True)
    body = b"".join(message.parts)
    with running(Same([spec]), limits={"max_body_bytes": len(body)}) as server:
        reply = ask(server.port, "POST", INFER, body, binary_headers(message.header_length or 0))
        np.testing.assert_array_equal(decoded(reply)["out_x"], x, strict=True)
        assert ask(server.port, "POST", INFER, body + b" ", binary_headers(1)).status == 413


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"", {}, "expected a JSON object"),
        (b"{", {}, "expected a JSON object"),
        (b"[]", {}, "expected a JSON object, got a list"),
        (b"[" * 100_000, {}, "expected a JSON object"),
        (b"{}", {}, "expected 'inputs' to be a list of objects, got nothing"),
        (b"{}", {HEADER_LENGTH: "3"}, "expected 0 to 2, the bytes of the body, got 3"),
        (b"{}", {HEADER_LENGTH: "-1"}, "expected a count of bytes, got '-1'"),
        (b"{}", {HEADER_LENGTH: "9" * 5000}, "expected a count of bytes"),
        (b"{}", {HEADER_LENGTH: "two"}, "expected a count of bytes, got 'two'"),
        (b"{}", {"Content-Encoding": "gzip"}, "expected a body without Content-Encoding, got 'gzip'"),
        (json.dumps({"inputs": [tensor("x", "FP32", [1, 4], [1, 2, 3, 4])]}).encode(), {}, "expected shape (batch, 3)"),
    ],
)
def test_a_request_that_cannot_be_is_refused(server: Running, body: bytes, headers: dict[str, str], says: str) -> None:
    reply = ask(server.port, "POST", INFER, body, headers)
    assert reply.status == 400
    assert says in reply.json()["error"]


def test_inputs_that_disagree_on_the_batch_are_refused(server: Running) -> None:
    inputs = {spec.name: np.zeros((2 if spec is EVERY[3] else 1, 2), spec.dtype) for spec in EVERY}
    message = encode_request(inputs, binary=True)
    headers = binary_headers(message.header_length or 0)
    reply = ask(server.port, "POST", "/v2/models/n/infer", b"".join(message.parts), headers)
    assert reply.status == 400
    assert "dimension 'batch' is 2 here and 1 in another input" in reply.json()["error"]


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (InputError("token 9 is not in the vocabulary"), 400, "token 9 is not in the vocabulary"),
        (EngineError("the runtime gave up"), 500, "the runtime gave up"),
        (RuntimeError("secret"), 500, "internal error: the server's log has the details"),
        (MemoryError(), 500, "internal error: the server's log has the details"),
    ],
)
def test_a_fault_in_the_engine_is_an_answer_and_the_connection_lives(
    fault: Exception, status: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Broken(fault)) as server, wire(server.port) as connection:
        for _ in range(2):
            connection.sendall(post(INFER, json.dumps(ones_request()).encode()))
            (reply,) = read_replies(connection, 1)
            assert (reply.status, reply.json()) == (status, {"error": says})
    if status == 500:
        assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


def test_a_full_queue_says_when_to_come_again() -> None:
    engine = Gated()
    with running(engine, queue=1) as server, wire(server.port) as first, wire(server.port) as second:
        first.sendall(post(INFER, json.dumps(ones_request()).encode()))
        engine.wait_entered()
        second.sendall(post(INFER, json.dumps(ones_request()).encode()))
        until(lambda: server.waiting() == 1)
        reply = ask(server.port, "POST", INFER, ones_request())
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert "queue is full" in reply.json()["error"]
        engine.gate.set()
        assert read_replies(first, 1)[0].status == read_replies(second, 1)[0].status == 200
        assert ask(server.port, "POST", INFER, ones_request()).status == 200


def test_a_model_name_must_stand_in_a_url() -> None:
    with pytest.raises(ConfigError, match="expected a model name"):
        ServedModel("a/b", Double())


def test_a_server_needs_models_of_distinct_names() -> None:
    with pytest.raises(ConfigError, match="'m' twice in version 1"):
        Server([ServedModel("m", Double()), ServedModel("m", Double())])
    with pytest.raises(ConfigError, match="at least one model"):
        Server([])
