"""Connections that end while requests are on their way: none of them is reset."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import ExitStack

import pytest

from tauten.run.serve.protocol.connections import GRACE_S
from tauten.run.serve.server import loop_factory
from tests.unit.serve.tiny import (
    GET_LIVE,
    WAIT_S,
    Double,
    LoopFactory,
    ones_request,
    post,
    read_all,
    read_replies,
    running,
    until,
    wire,
)

INFER = post("/v2/models/m/infer", json.dumps(ones_request()).encode())


@pytest.fixture(params=[loop_factory(), asyncio.new_event_loop], ids=["fastest", "asyncio"])
def factory(request: pytest.FixtureRequest) -> LoopFactory:
    made: LoopFactory = request.param
    return made


def test_a_request_that_crosses_the_stop_is_answered_and_told_that_the_connection_ends(factory: LoopFactory) -> None:
    with running(Double(), factory=factory) as server, wire(server.port) as used, wire(server.port) as fresh:
        used.sendall(GET_LIVE)
        read_replies(used, 1)
        stopped = server.stop_soon()
        until(lambda: server.server._endpoints.draining)
        time.sleep(0.2)
        for connection in (used, fresh):
            connection.sendall(INFER)
        for connection in (used, fresh):
            reply = read_all(connection)
            assert reply.startswith(b"HTTP/1.1 200 OK")
            assert reply.count(b"HTTP/1.1") == 1
            assert b"\r\nConnection: close\r\n" in reply
            connection.close()
        assert stopped.result(WAIT_S) == 0


def test_pipelined_requests_are_all_answered_by_a_server_that_stops() -> None:
    with running(Double()) as server, wire(server.port) as connection:
        connection.sendall(GET_LIVE)
        read_replies(connection, 1)
        stopped = server.stop_soon()
        until(lambda: server.server._endpoints.draining)
        connection.sendall(INFER * 5)
        reply = read_all(connection)
        assert reply.count(b"HTTP/1.1 200 OK") == 5
        assert reply.count(b"\r\nConnection: close\r\n") == 1
        connection.close()
        assert stopped.result(WAIT_S) == 0


def test_who_says_nothing_does_not_hold_up_the_stop(factory: LoopFactory) -> None:
    with running(Double(), factory=factory) as server, wire(server.port) as connection:
        begun = time.monotonic()
        assert server.stop_soon().result(WAIT_S) == 0
        assert time.monotonic() - begun < GRACE_S + 0.9, "it was waited for the client's own close"
        assert connection.recv(1) == b""


def test_who_was_idle_for_a_while_is_left_at_once(factory: LoopFactory) -> None:
    with running(Double(), factory=factory) as server, wire(server.port) as connection:
        connection.sendall(GET_LIVE)
        read_replies(connection, 1)
        time.sleep(GRACE_S + 0.1)
        begun = time.monotonic()
        assert server.stop_soon().result(WAIT_S) == 0
        assert time.monotonic() - begun < 0.9 * GRACE_S
        assert connection.recv(1) == b""  # and no reset


def test_clients_that_the_system_has_accepted_are_served_by_a_server_that_stops(factory: LoopFactory) -> None:
    with running(Double(), factory=factory) as server, ExitStack() as opened:
        server.loop.call_soon_threadsafe(time.sleep, 0.5)  # nobody is accepted meanwhile
        time.sleep(0.1)
        connections = [opened.enter_context(wire(server.port)) for _ in range(20)]
        for connection in connections:
            connection.sendall(INFER)
        stopped = server.stop_soon()
        for connection in connections:
            assert read_all(connection).startswith(b"HTTP/1.1 200 OK")
            connection.close()
        assert stopped.result(WAIT_S) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)


def test_a_request_that_crosses_the_end_of_an_idle_connection_resets_nothing(factory: LoopFactory) -> None:
    with running(Double(), factory=factory, limits={"idle_s": 0.2}) as server, wire(server.port) as connection:
        connection.sendall(GET_LIVE)
        (reply,) = read_replies(connection, 1)
        assert reply.status == 200
        assert connection.recv(1) == b""  # the server says no more
        for _ in range(3):
            connection.sendall(INFER)
            time.sleep(0.1)
            assert connection.recv(1) == b""  # and a reset would raise here


def test_an_answer_is_read_to_its_end_behind_a_body_that_nobody_reads(factory: LoopFactory) -> None:
    """The client wants one answer, and sends more than that: the close must not take the answer from it."""
    request = b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n"
    with running(Double(), factory=factory) as server, wire(server.port) as connection:
        connection.sendall(request + b"x" * 300_000)
        time.sleep(0.3)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert f"Content-Length: {len(body)}".encode() in head


def test_one_that_does_not_close_is_closed_after_a_moment() -> None:
    with running(Double(), limits={"idle_s": 0.2}) as server, wire(server.port) as connection:
        assert connection.recv(1) == b""
        connections = server.server._connections
        assert connections is not None
        assert len(connections) == 1
        until(lambda: len(connections) == 0)
