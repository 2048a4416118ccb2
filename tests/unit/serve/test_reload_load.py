"""A server process under load: models change, come and go, the process ends, and no request fails."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.serve.artifacts import null_artifact
from tests.unit.serve.tiny import WAIT_S, ask, ones_request, post

SECONDS = 3.0
CLIENTS = 4
REQUEST = post("/v2/models/m/infer", json.dumps(ones_request()).encode())
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")


class Client(threading.Thread):
    """Asks again and again on one connection, until it is told to stop or an answer says that the connection ends.

    Every request is answered: none is met by a reset, or by an end that no answer has told of.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.stopping = threading.Event()
        self.answered = 0
        self.failed: list[str] = []
        self.start()

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S) as connection:
            while not self.stopping.is_set():
                try:
                    connection.sendall(REQUEST)
                    reply = self._read(connection)
                except OSError as fault:
                    self.failed.append(repr(fault))
                    return
                if reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"}]}"):
                    self.answered += 1
                else:
                    self.failed.append(reply.decode("latin-1"))
                if b"\r\nConnection: close\r\n" in reply:
                    return

    def _read(self, connection: socket.socket) -> bytes:
        reply = b""
        while True:
            part = connection.recv(65536)
            reply += part
            head, end, body = reply.partition(b"\r\n\r\n")
            length = LENGTH.search(head + b"\r\n") if end else None
            if not part or (length is not None and len(body) >= int(length[1])):
                return reply


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """``tauten serve``: the process, its port, and the lines of its log so far."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tauten.cli.main", "serve", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []
    assert server.stdout is not None
    assert server.stderr is not None
    reader = threading.Thread(target=log.extend, args=(server.stderr,), daemon=True)
    reader.start()
    try:
        line = server.stdout.readline()
        assert line, log
        yield server, int(json.loads(line)["url"].rpartition(":")[2]), log
    finally:
        server.kill()
        server.wait(WAIT_S)
        reader.join(WAIT_S)
        server.stdout.close()
        server.stderr.close()


def finish(clients: list[Client]) -> int:
    """Stop the clients: how many requests were answered. None may have failed."""
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(WAIT_S)
        assert not client.failed, client.failed[:3]
        assert client.answered
    return sum(client.answered for client in clients)


def test_an_artifact_is_replaced_under_load_and_no_request_fails(tmp_path: Path) -> None:
    path = null_artifact(tmp_path / "models" / "m", "first")
    with process("--repository", str(tmp_path / "models"), "--watch", "0.1") as (server, port, log):
        clients = [Client(port) for _ in range(CLIENTS)]

        def swaps() -> int:
            return sum("model m: serving version 1" in line for line in log)

        begun, turn = time.monotonic(), 0
        while time.monotonic() < begun + SECONDS or (swaps() < 4 and time.monotonic() < begun + WAIT_S):
            turn += 1
            null_artifact(path, f"next{turn}")
            if turn % 3 == 1:
                server.send_signal(signal.SIGHUP)
            elif turn % 3 == 2:
                assert ask(port, "POST", "/v2/repository/models/m/load").status == 200
            time.sleep(0.2)
        assert swaps() >= 4, log  # the first is the start
        assert all(client.is_alive() for client in clients)
        finish(clients)
        stats = ask(port, "GET", "/v2/models/m/stats").json()["model_stats"][0]
        assert stats["inference_stats"]["fail"]["count"] == 0
        assert stats["inference_count"] >= sum(client.answered for client in clients)


@pytest.mark.slow
def test_models_are_loaded_and_unloaded_under_load(tmp_path: Path) -> None:
    null_artifact(tmp_path / "m")
    null_artifact(tmp_path / "other")
    with process("--repository", str(tmp_path)) as (_, port, _log):
        clients = [Client(port) for _ in range(CLIENTS)]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for action, there in (("unload", 404), ("load", 200)):
                assert ask(port, "POST", f"/v2/repository/models/other/{action}").status == 200
                assert ask(port, "GET", "/v2/models/other").status == there
        assert all(client.is_alive() for client in clients)
        finish(clients)


def test_sigterm_under_load_loses_no_request(tmp_path: Path) -> None:
    with process(f"m={null_artifact(tmp_path / 'a')}") as (server, port, _log):
        clients = [Client(port) for _ in range(CLIENTS)]
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
        finish(clients)


def test_sigterm_while_models_are_loaded_ends_the_process(tmp_path: Path) -> None:
    for number in range(50):
        null_artifact(tmp_path / f"m{number}")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tauten.cli.main",
            "serve",
            "--repository",
            str(tmp_path),
            "--port",
            "0",
            "--watch",
            "9",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    try:
        while "serving version" not in (line := server.stderr.readline()):
            assert line
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
    finally:
        server.kill()
        server.communicate(timeout=WAIT_S)
