"""What stands around the endpoints: the token, TLS, the access log and traces."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from tauten.errors import ConfigError, EngineError
from tauten.run.serve.around.guard import Guarded
from tauten.run.serve.checks import thread_warnings
from tauten.run.serve.instances import cores
from tauten.run.serve.logs import JsonLines, TextLines
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.connections import GRACE_S
from tauten.run.serve.settings import Security, ServeSettings
from tauten.run.serve.tls import server_context
from tests.unit.serve.collector import PARENT, attributes_of, collecting
from tests.unit.serve.tiny import (
    GET_LIVE,
    WAIT_S,
    Broken,
    Double,
    Gated,
    ask,
    ones_request,
    post,
    read_replies,
    running,
    until,
    wire,
)

INFER = "/v2/models/m/infer"
TOKEN = "a-token-of-the-tests"


def test_without_the_token_nothing_is_told_but_that_the_server_lives() -> None:
    with running(Double(), security={"token": TOKEN}) as server:
        for path in ("/v2", "/metrics", "/v2/models/m", "/nowhere"):
            reply = ask(server.port, "GET", path)
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
            assert "Authorization" in reply.json()["error"]
        for header in ("Bearer wrong-token-of-tests", f"Basic {TOKEN}", TOKEN, "Bearer", "", f"Bearer {TOKEN}x"):
            assert ask(server.port, "POST", INFER, ones_request(), {"Authorization": header}).status == 401
        assert ask(server.port, "GET", "/v2/health/live").status == 200
        assert ask(server.port, "GET", "/v2/health/ready").status == 200


def test_with_the_token_all_is_as_ever() -> None:
    with running(Double(), security={"token": TOKEN}) as server:
        for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            assert ask(server.port, "POST", INFER, ones_request(), {"Authorization": header}).status == 200
        # On a connection whose heads are known by now, a request without it is another head.
        with wire(server.port) as connection:
            known = post(INFER, json.dumps(ones_request()).encode(), f"Authorization: Bearer {TOKEN}")
            for sent, status in ((known, b"200"), (known, b"200"), (known, b"200")):
                connection.sendall(sent)
                assert connection.recv(65536).split()[1] == status
            connection.sendall(known.replace(TOKEN.encode(), b"b-token-of-the-tests"))
            assert connection.recv(65536).split()[1] == b"401"


def test_a_token_is_compared_whole() -> None:
    guarded = Guarded(lambda request, respond: None, TOKEN)
    assert guarded.admits(f"Bearer {TOKEN}".encode())
    assert not guarded.admits(f"Bearer {TOKEN[:-1]}".encode())
    assert not guarded.admits(None)


@pytest.mark.parametrize("token", ["short", "with blanks in it, and commas", "ends with a newline\n", "ä" * 20])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        Security(token=token)


def test_settings_with_a_token_do_not_show_it() -> None:
    assert TOKEN not in repr(ServeSettings(security={"token": TOKEN}))


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_a_certificate_makes_it_https(pem: tuple[Path, Path]) -> None:
    certificate, key = pem
    with running(Double(), security={"certificate": certificate, "key": key}) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=WAIT_S)
        for _ in range(3):
            connection.request("POST", INFER, json.dumps(ones_request()))
            assert connection.getresponse().read().startswith(b'{"model_name"')
        connection.close()
        with wire(server.port) as plain:  # who speaks without TLS is not answered
            plain.sendall(post(INFER, json.dumps(ones_request()).encode()))
            assert b"200" not in plain.recv(100)


def test_an_idle_client_that_says_no_goodbye_over_tls_does_not_hold_up_the_stop(pem: tuple[Path, Path]) -> None:
    certificate, key = pem
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        running(Double(), security={"certificate": certificate, "key": key}) as server,
        wire(server.port) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(GET_LIVE)
        read_replies(connection, 1)
        time.sleep(GRACE_S + 0.1)
        begun = time.monotonic()
        assert server.stop_soon().result(WAIT_S) == 0
        assert time.monotonic() - begun < 1.5


def test_files_that_are_no_certificate_are_refused(pem: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pem
    (tmp_path / "text").write_text("nothing")
    for pair in (
        (tmp_path / "none", None),
        (tmp_path / "text", None),
        (certificate, tmp_path / "text"),
        (certificate, None),
    ):
        with pytest.raises(ConfigError, match="PEM"):
            server_context(*pair)
    with pytest.raises(ConfigError, match="key alone"):
        Security(key=key)


def test_each_answer_has_a_line_and_an_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tauten.access")
    with running(Double(), observing={"access_log": True}) as server:
        given = ask(server.port, "POST", INFER, ones_request(2), {"X-Request-Id": "abc-1"})
        made = ask(server.port, "GET", "/v2/models/nobody", None, {"X-Request-Id": "two words"})
    assert given.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == 16
    first, second = (getattr(record, "fields") for record in caplog.records if record.name == "tauten.access")  # noqa: B009
    assert first["request_id"] == "abc-1"
    assert (first["method"], first["path"], first["status"], first["batch_rows"]) == ("POST", INFER, 200, 2)
    assert first["sent_bytes"] == len(given.body)
    assert first["duration_ms"] >= first["compute_ms"] > 0
    assert (second["status"], second["request_id"]) == (404, made.headers["x-request-id"])


def test_a_client_that_leaves_is_logged_and_not_computed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tauten.access")
    engine = Gated()
    with running(engine, observing={"access_log": True}) as server:
        with wire(server.port) as first:
            first.sendall(post(INFER, json.dumps(ones_request()).encode()))
            engine.wait_entered()
            with wire(server.port) as second:
                second.sendall(post(INFER, json.dumps(ones_request()).encode()))
                until(lambda: server.waiting() == 1)
            until(lambda: any(getattr(record, "fields", {}).get("status") == 499 for record in caplog.records))
            engine.gate.set()
            assert first.recv(100)
        assert engine.calls == 1


def test_logs_are_lines_for_people_or_for_machines() -> None:
    try:
        raise ValueError("no luck")
    except ValueError as fault:
        record = logging.LogRecord(
            "tauten", logging.ERROR, "", 0, "model %s", ("m",), (ValueError, fault, fault.__traceback__)
        )
    record.fields = {"request_id": "7", "status": 500}
    document = json.loads(JsonLines().format(record))
    assert (document["level"], document["message"], document["request_id"], document["status"]) == (
        "error",
        "model m",
        "7",
        500,
    )
    assert "no luck" in document["error"]
    assert "\n" not in JsonLines().format(record)
    assert "ERROR tauten: model m" in TextLines().format(record)
    assert TextLines().format(record).endswith("[7]")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    with collecting(monkeypatch) as spans:
        yield spans


def test_a_request_is_a_span_of_the_client_s_trace_with_its_wait_and_its_computing_inside(collector: list[Any]) -> None:
    with running(Double(), observing={"traces": True}) as server:
        assert ask(server.port, "POST", INFER, ones_request(2), {"traceparent": PARENT}).status == 200
        assert ask(server.port, "GET", "/v2/models/nobody", None).status == 404
        assert ask(server.port, "GET", "/metrics").status == 200
    spans = {span.name: span for span in collector}  # the server has sent all when it has stopped
    assert set(spans) == {f"POST {INFER}", "queue", "compute", "GET /v2/models/nobody"}
    request = spans[f"POST {INFER}"]
    assert request.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert request.parent_span_id.hex() == "00f067aa0ba902b7"
    for name in ("queue", "compute"):
        inner = spans[name]
        assert (inner.trace_id, inner.parent_span_id) == (request.trace_id, request.span_id)
        assert inner.start_time_unix_nano <= inner.end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["compute"].start_time_unix_nano
    attributes = attributes_of(request)
    assert (attributes["http.response.status_code"], attributes["tauten.rows"]) == (200, 2)
    assert spans["GET /v2/models/nobody"].trace_id != request.trace_id


def test_a_server_that_fails_marks_its_span(collector: list[Any]) -> None:
    with running(Broken(EngineError("it broke")), observing={"traces": True}) as server:
        assert ask(server.port, "POST", INFER, ones_request()).status == 500
        assert ask(server.port, "POST", INFER, b"{").status == 400
    spans = [span for span in collector if span.name == f"POST {INFER}"]
    failed, refused = sorted(spans, key=lambda span: len(span.attributes), reverse=True)
    assert (failed.status.code, attributes_of(failed)["error.type"]) == (2, "500")
    assert (refused.status.code, "error.type" in attributes_of(refused)) == (0, False)


def test_threads_against_cores() -> None:
    assert thread_warnings(models=1, instances=2, threads=2, cores=4) == []
    (many,) = thread_warnings(models=1, instances=4, threads=2, cores=4)
    assert "--instances 2" in many
    (wide,) = thread_warnings(models=1, instances=1, threads=8, cores=4)
    assert "--threads 4" in wide
    assert len(thread_warnings(models=4, instances=2, threads=2, cores=4)) == 1
    assert thread_warnings(models=1, instances=2, threads=1, cores=4, fronts=2) == []
    (shared,) = thread_warnings(models=1, instances=4, threads=1, cores=4, fronts=2)
    assert "2 of the 4 cores" in shared
    assert "--instances 2" in shared
    (fronts,) = thread_warnings(models=1, instances=1, threads=1, cores=4, fronts=8)
    assert "--fronts 4" in fronts


def test_a_server_warns_once_also_where_a_model_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "--instances" in record.getMessage()]

    with running(Double(), instances=cores() + 1) as server:
        (first,) = told()
        assert f"{cores() + 1} instances" in first

        def load_another() -> None:
            model = ServedModel("later", Double())
            model.start(server.server.settings)
            server.server._repository.put("later", [model])

        server.loop.call_soon_threadsafe(load_another)
        until(lambda: len(told()) > 1)
        (again,) = told()[1:]
        assert again.startswith("2 models")
