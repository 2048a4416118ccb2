"""Large bodies: received where they stay, and never more memory than the client has paid for."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tauten.core.tensor import Array, TensorSpec
from tauten.run.serve.protocol.bodies import LargeBody, lead_of
from tauten.run.serve.protocol.messages import Request
from tauten.run.serve.server import loop_factory
from tests.unit.serve.tiny import GET_LIVE, WAIT_S, Running, Same, ask, post, read_replies, running, wire

INFER = "/v2/models/m/infer"
MIB = 2**20


class Taken:
    """A connection that only takes the body."""

    body: memoryview | None = None

    def body_came(self, body: memoryview) -> None:
        self.body = body

    def connection_lost(self, fault: Exception | None) -> None: ...

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


@given(
    st.integers(2, 3 * MIB), st.integers(0, MIB // 2), st.integers(0, 300), st.lists(st.integers(1, MIB), max_size=5)
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_comes_in_any_pieces_is_the_body_and_lies_aligned(
    length: int, begun: int, lead: int, pieces: list[int]
) -> None:
    sent = np.random.default_rng(length).bytes(length)
    at = min(begun, length - 1)
    taken = Taken()
    receiving = LargeBody(taken, length, [sent[: at // 2], sent[at // 2 : at]], lead)
    while at < length:
        room = receiving.get_buffer(-1)
        assert 0 < len(room) <= max(MIB, 8 * at)  # no more memory than that
        count = min(len(room), pieces.pop() if pieces else length)
        room[:count] = sent[at : at + count]
        at += count
        receiving.buffer_updated(count)
    assert taken.body is not None
    assert taken.body == sent
    assert taken.body.readonly
    assert (np.frombuffer(taken.body, np.uint8).__array_interface__["data"][0] + lead) % 64 == 0


def test_a_head_that_says_no_number_leads_nothing() -> None:
    name = b"inference-header-content-length"
    said = [{}, {name: b"17"}, {name: b"x"}, {name: b"-1"}, {name: b"9" * 40}]
    assert [lead_of(headers) for headers in said] == [0, 17, 0, 0, 0]


COLUMNS = 16_384
SPEC = TensorSpec(name="x", shape=("batch", COLUMNS))


class Watched(Same):
    """Answers what came, and keeps how it came."""

    def __init__(self) -> None:
        super().__init__([SPEC])
        self.seen: list[Array] = []

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.seen.append(inputs["x"])
        return super().run(inputs)


@pytest.fixture(params=[loop_factory(), asyncio.new_event_loop], ids=["fastest", "asyncio"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(Watched(), factory=request.param) as found:
        yield found


def binary(rows: int, pad: int) -> tuple[bytes, int, bytes]:
    """The body of a request for so many rows, the length of its JSON, and its numbers."""
    numbers = np.random.default_rng(rows).standard_normal((rows, COLUMNS)).astype(np.float32).tobytes()
    entry = {
        "name": "x",
        "shape": [rows, COLUMNS],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(numbers)},
    }
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode() + b" " * pad
    return head + numbers, len(head), numbers


@pytest.mark.parametrize("pad", range(4))
def test_an_engine_reads_a_large_tensor_where_it_was_received(server: Running, pad: int) -> None:
    body, length, numbers = binary(8, pad)
    head = f"Inference-Header-Content-Length: {length}"
    with wire(server.port) as connection:
        for _ in range(3):  # and a small one after each, on the same connection
            connection.sendall(post(INFER, body, head) + GET_LIVE)
            first, second = read_replies(connection, 2)
            assert first.status == 200, first.body
            assert first.body[int(first.headers["inference-header-content-length"]) :] == numbers
            assert second.status == 200


def test_a_large_tensor_is_not_copied_on_its_way_to_the_engine() -> None:
    engine = Watched()
    with running(engine) as server:
        handler = server.server._handler
        came: list[memoryview] = []

        def watching(request: Request, respond: object) -> object:
            if isinstance(request.body, memoryview):
                came.append(request.body)
            return handler(request, respond)  # type: ignore[arg-type]

        server.server._handler = watching  # type: ignore[assignment]
        for pad in range(4):  # wherever the JSON ends
            body, length, _ = binary(24, pad)
            assert ask(server.port, "POST", INFER, body, {"Inference-Header-Content-Length": str(length)}).status == 200
    assert len(came) == len(engine.seen) == 4
    for body, array in zip(came, engine.seen, strict=True):
        assert np.shares_memory(np.frombuffer(body, np.uint8), array)
        assert not array.flags.writeable


def test_a_large_body_of_json_and_one_in_chunks_are_read_too(server: Running) -> None:
    rows = 20
    entry = {"name": "x", "shape": [rows, COLUMNS], "datatype": "FP32", "data": [0.5] * (rows * COLUMNS)}
    body = json.dumps({"inputs": [entry]}).encode()
    assert len(body) > MIB
    with wire(server.port) as connection:
        connection.sendall(post(INFER, body))
        head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        connection.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        for reply in read_replies(connection, 2):
            assert reply.status == 200
            assert reply.json()["outputs"][0]["data"] == [0.5] * (rows * COLUMNS)


def test_a_large_body_after_the_word_to_go_on(server: Running) -> None:
    body, length, numbers = binary(16, 0)
    head, _ = post(INFER, body, f"Inference-Header-Content-Length: {length}", "Expect: 100-continue").split(
        b"\r\n\r\n", 1
    )
    with wire(server.port) as connection:
        connection.sendall(head + b"\r\n\r\n")
        expected = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(expected), socket.MSG_WAITALL) == expected
        connection.sendall(body)
        (reply,) = read_replies(connection, 1)
        assert reply.body.endswith(numbers)


@pytest.mark.parametrize("factory", [loop_factory(), asyncio.new_event_loop], ids=["fastest", "asyncio"])
def test_a_large_body_that_does_not_end_is_given_up(factory: object) -> None:
    body, length, _ = binary(16, 0)
    sent = post(INFER, body, f"Inference-Header-Content-Length: {length}")
    with running(Watched(), factory=factory, limits={"receive_s": 0.3}) as server, wire(server.port) as connection:  # type: ignore[arg-type]
        connection.sendall(sent[:-1])
        (reply,) = read_replies(connection, 1)
        assert reply.status == 408
        assert connection.recv(1) == b""


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: Running, how: str) -> None:
    body, length, _ = binary(16, 0)
    sent = post(INFER, body, f"Inference-Header-Content-Length: {length}")
    with wire(server.port) as connection:
        connection.sendall(sent[: len(sent) // 2])
        time.sleep(0.1)
        if how == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert ask(server.port, "GET", "/v2").status == 200
    connections = server.server._connections
    assert connections is not None
    end = time.monotonic() + WAIT_S
    while len(connections):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_large_body_that_is_coming_when_the_server_stops_is_answered(server: Running) -> None:
    body, length, numbers = binary(16, 0)
    sent = post(INFER, body, f"Inference-Header-Content-Length: {length}")
    with wire(server.port) as connection:
        connection.sendall(sent[: len(sent) // 2])
        time.sleep(0.1)
        stopped = server.stop_soon()
        time.sleep(0.2)
        connection.sendall(sent[len(sent) // 2 :])
        (reply,) = read_replies(connection, 1)
        assert reply.headers["connection"] == "close"
        assert reply.body.endswith(numbers)
        assert connection.recv(1) == b""
        connection.close()
        assert stopped.result(WAIT_S) == 0
