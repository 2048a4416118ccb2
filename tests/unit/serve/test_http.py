"""The transport: what a client may do to a connection, and what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tauten.run.serve.server import loop_factory
from tests.unit.serve.tiny import (
    GET_LIVE,
    WAIT_S,
    Double,
    Gated,
    Running,
    ask,
    ones_request,
    post,
    read_all,
    read_replies,
    running,
    until,
    wire,
)

INFER = "/v2/models/m/infer"
BODY = json.dumps(ones_request()).encode()
LIVE = b'{"live":true}'


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="module", params=[loop_factory(), asyncio.new_event_loop], ids=["fastest", "asyncio"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """Makes servers, in each of the event loops that a user may have."""
    return partial(running, factory=request.param)


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[Running]:
    with serve(Double(), limits={"max_body_bytes": 1000, "max_head_bytes": 1000}) as server:
        yield server


def only_reply(server: Running, sent: bytes) -> tuple[int, str]:
    """Status and error of the one response to ``sent``, after which the server closes."""
    with wire(server.port) as connection:
        connection.sendall(sent)
        (reply,) = read_replies(connection, 1)
        assert reply.headers["connection"] == "close"
        assert connection.recv(1) == b""
        return reply.status, reply.json()["error"]


def test_a_connection_serves_many_requests(server: Running) -> None:
    with wire(server.port) as connection:
        for _ in range(3):
            connection.sendall(post(INFER, BODY))
            (reply,) = read_replies(connection, 1)
            assert reply.status == 200
            assert "connection" not in reply.headers
            assert reply.headers["date"].endswith("GMT")


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    sent = b""
    for number in range(20):
        sent += post(INFER, json.dumps(ones_request(id=str(number))).encode()) + GET_LIVE
    with wire(server.port) as connection:
        connection.sendall(sent)
        replies = read_replies(connection, 40)
    assert [reply.json()["id"] for reply in replies[::2]] == [str(number) for number in range(20)]
    assert all(reply.status == 200 and reply.body == LIVE for reply in replies[1::2])


def test_a_slow_answer_holds_back_the_quick_one_behind_it(serve: Serve) -> None:
    engine = Gated()
    with serve(engine) as server, wire(server.port) as connection:
        connection.sendall(post(INFER, BODY) + GET_LIVE)
        engine.wait_entered()
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(WAIT_S)
        engine.gate.set()
        first, second = read_replies(connection, 2)
        assert first.json()["outputs"]
        assert second.body == LIVE


def test_a_request_may_come_byte_by_byte(server: Running) -> None:
    with wire(server.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(INFER, BODY):
            connection.sendall(bytes([byte]))
        (reply,) = read_replies(connection, 1)
    assert reply.status == 200


def test_a_chunked_body_is_put_together(server: Running) -> None:
    parts = [BODY[:5], BODY[5:6], BODY[6:]]
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with wire(server.port) as connection:
        connection.sendall(head + chunks + GET_LIVE)
        first, second = read_replies(connection, 2)
    assert first.json()["outputs"][0]["data"] == [2.0, 2.0, 2.0]
    assert second.status == 200


def test_continue_is_said_when_asked_for_and_only_then(server: Running) -> None:
    head, body = post(INFER, BODY, "Expect: 100-continue").split(b"\r\n\r\n", 1)
    with wire(server.port) as connection:
        connection.sendall(head + b"\r\n\r\n")
        expected = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(expected), socket.MSG_WAITALL) == expected
        connection.sendall(body)
        (reply,) = read_replies(connection, 1)
        assert reply.status == 200
        connection.sendall(head + b"\r\n\r\n" + body)  # the client did not wait for the word
        (reply,) = read_replies(connection, 1)
        assert reply.status == 200


def test_continue_waits_for_the_answers_before_it(serve: Serve) -> None:
    engine = Gated()
    head, body = post(INFER, BODY, "Expect: 100-continue").split(b"\r\n\r\n", 1)
    with serve(engine) as server, wire(server.port) as connection:
        connection.sendall(post(INFER, BODY) + head + b"\r\n\r\n")
        engine.wait_entered()
        engine.gate.set()
        first, word = read_replies(connection, 2)
        assert (first.status, word.status) == (200, 100)
        connection.sendall(body)
        (reply,) = read_replies(connection, 1)
        assert reply.status == 200


def test_another_expectation_is_refused(server: Running) -> None:
    assert only_reply(server, post(INFER, BODY, "Expect: cake"))[0] == 417


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(server: Running) -> None:
    head = post(INFER, b"x" * 1001, "Expect: 100-continue").split(b"\r\n\r\n")[0] + b"\r\n\r\n"
    status, error = only_reply(server, head)
    assert (status, error) == (413, "expected a body of at most 1000 bytes, got 1001")


def test_a_refused_body_that_still_comes_does_not_hide_the_refusal(server: Running) -> None:
    with wire(server.port) as connection:
        connection.sendall(post(INFER, b"x" * 1001)[:-1001])
        connection.sendall(b"x" * 200_000)
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"at most 1000 bytes" in reply


def test_a_chunked_body_is_counted(server: Running) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    status, error = only_reply(server, head + b"1f4\r\n" + b" " * 500 + b"\r\n" + b"1f5\r\n" + b" " * 501 + b"\r\n")
    assert (status, error) == (413, "expected a body of at most 1000 bytes, got more")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nA: " + b"a" * 1000 + b"\r\n\r\n",
        b"GET /" + b"a" * 1000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 200 + b"\r\n",
    ],
    ids=["value", "target", "count"],
)
def test_a_large_head_is_refused(server: Running, head: bytes) -> None:
    assert only_reply(server, head) == (431, "expected at most 1000 bytes of headers")


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nA: ",
        f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;".encode(),
        f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\nTrailer: ".encode(),
    ],
    ids=["header", "chunk extension", "trailer"],
)
def test_a_head_or_trailer_without_end_is_refused(server: Running, start: bytes) -> None:
    with wire(server.port) as connection:
        assert flood(connection, start, b"a" * 500).startswith(b"HTTP/1.1 431 ")


def flood(connection: socket.socket, start: bytes, more: bytes) -> bytes:
    """Send ``start``, and ``more`` again and again until something comes back or the server hangs up."""
    connection.sendall(start)
    for _ in range(2000):
        if select.select([connection], [], [], 0.005)[0]:
            return connection.recv(65536)
        connection.sendall(more)
    raise TimeoutError("the server took everything")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_refused(server: Running, sent: bytes) -> None:
    status, error = only_reply(server, sent)
    assert status == 400
    assert error.startswith("malformed HTTP: ")


WHOLE = post(INFER, BODY) + GET_LIVE + post(INFER, BODY, "Connection: close")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_gets_whole_answers_and_no_fault_of_the_server(server: Running, data: st.DataObject) -> None:
    sent = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(sent)))
        sent[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    with wire(server.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cut = data.draw(st.integers(0, len(sent)))
        received = b""
        with contextlib.suppress(OSError):  # the server may have closed before everything was sent
            connection.sendall(sent[:cut])
            connection.sendall(sent[cut:])
            connection.shutdown(socket.SHUT_WR)
            received = read_all(connection)
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert status in (100, 200, 400, 404, 405, 413, 417, 431)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        assert len(received) >= length
        received = received[length:]
    assert ask(server.port, "POST", INFER, BODY).status == 200


def test_requests_before_a_malformed_one_are_answered(server: Running) -> None:
    with wire(server.port) as connection:
        connection.sendall(post(INFER, BODY) + GET_LIVE + b"nonsense\r\n\r\n" + GET_LIVE)
        replies = read_replies(connection, 3)
        assert [reply.status for reply in replies] == [200, 200, 400]
        assert connection.recv(1) == b""


def test_close_is_honoured_and_nothing_after_it_is_read(server: Running) -> None:
    with wire(server.port) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n" + GET_LIVE)
        (reply,) = read_replies(connection, 1)
        assert reply.headers["connection"] == "close"
        assert connection.recv(1) == b""


def test_http_1_0_closes_unless_keep_alive_is_asked_for(server: Running) -> None:
    with wire(server.port) as connection:
        connection.sendall(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        (reply,) = read_replies(connection, 1)
        assert reply.headers["connection"] == "keep-alive"
        connection.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        (reply,) = read_replies(connection, 1)
        assert reply.headers["connection"] == "close"
        assert connection.recv(1) == b""


def test_a_proposed_upgrade_is_passed_over(server: Running) -> None:
    upgrade = b"GET /v2 HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with wire(server.port) as connection:
        connection.sendall(upgrade + GET_LIVE + upgrade)
        assert [reply.status for reply in read_replies(connection, 3)] == [200, 200, 200]


def test_what_was_answered_reaches_a_client_that_sends_no_more(serve: Serve) -> None:
    with serve(Double()) as server, wire(server.port) as connection:
        connection.sendall(GET_LIVE * 3)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 3


def test_head_has_no_body(server: Running) -> None:
    reply = ask(server.port, "HEAD", "/v2")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 0


def test_a_request_that_does_not_end_is_given_up(serve: Serve) -> None:
    with serve(Double(), limits={"receive_s": 0.2}) as server:
        for part in (b"GET /v2 HT", post(INFER, BODY)[:-3]):
            status, error = only_reply(server, part)
            assert (status, error) == (408, "expected a whole request within 0.2 seconds")


def test_an_idle_connection_is_closed(serve: Serve) -> None:
    with serve(Double(), limits={"idle_s": 0.2}) as server, wire(server.port) as connection:
        connection.sendall(GET_LIVE)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 1


def test_a_long_answer_is_not_an_idle_connection(serve: Serve) -> None:
    engine = Gated()
    with serve(engine, limits={"idle_s": 0.1, "receive_s": 0.1}) as server, wire(server.port) as connection:
        connection.sendall(post(INFER, BODY))
        engine.wait_entered()
        time.sleep(1.2)  # two looks at the deadlines
        engine.gate.set()
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_reads_late_is_not_idle(serve: Serve) -> None:
    count = 400
    with serve(Double(), limits={"idle_s": 0.1}) as server, wire(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * count)
        time.sleep(1.2)  # two looks at the deadlines
        assert [reply.status for reply in read_replies(connection, count)] == [200] * count


def test_a_client_that_does_not_read_is_cut(serve: Serve) -> None:
    with serve(Double(), limits={"send_s": 0.2}) as server, wire(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = threading.Thread(target=send_for_ever, args=[connection, b"GET /metrics HTTP/1.1\r\n\r\n" * 100])
        sender.start()
        sender.join(WAIT_S)
        assert not sender.is_alive()
        assert ask(server.port, "GET", "/v2").status == 200


def send_for_ever(connection: socket.socket, data: bytes) -> None:
    """Returns when the other side has cut the connection."""
    connection.settimeout(None)
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sendall(data)


@pytest.mark.parametrize("how", ["closes", "resets", "sends no more"])
def test_a_client_that_leaves_takes_its_waiting_request_along(serve: Serve, how: str) -> None:
    engine = Gated()
    with serve(engine) as server:
        with wire(server.port) as first, wire(server.port) as second:
            first.sendall(post(INFER, BODY))
            engine.wait_entered()
            second.sendall(post(INFER, BODY))
            until(lambda: server.waiting() == 1)
            if how == "sends no more":
                second.shutdown(socket.SHUT_WR)
            else:
                if how == "resets":
                    second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                second.close()
            until(lambda: 'reason="CANCELED",version="1"} 1.0' in ask(server.port, "GET", "/metrics").body.decode())
            engine.gate.set()
            assert read_replies(first, 1)[0].status == 200
        assert ask(server.port, "POST", INFER, BODY).status == 200
        assert engine.calls == 2
