"""The client, for code that waits and for event loops, against a real server and against bad ones."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.client.asynchronous import AsyncClient
from tauten.client.conversation import Exchange, Pause, Send, Url, converse
from tauten.client.retries import Retries
from tauten.client.sync import Client
from tauten.core.tensor import TensorSpec
from tauten.errors import ConfigError, InputError, NotFound, NotReady, Overloaded, ServeError, TooLarge
from tauten.run.load.client import Answer
from tauten.run.serve.protocol.v2 import InferResponse, encode_response
from tests.unit.scripted import DROP, SILENCE, answer, scripted
from tests.unit.serve.tiny import Double, Gated, Same, running

X = np.arange(6, dtype=np.float32).reshape(2, 3)
QUICK = Retries(tries=4, first_s=0.001)
GOOD = answer(
    200,
    encode_response(InferResponse("m", "1", {"y": np.array([1.5], np.float32)}), {"y": False}).parts[0],  # type: ignore[arg-type]
)

Asking = Callable[..., Any]


class InLoop:
    """An ``AsyncClient`` that is asked as a ``Client`` is, so that one test holds for both."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._client = AsyncClient(*arguments, **named)
        self._runner = asyncio.Runner()

    def __enter__(self) -> InLoop:
        return self

    def __exit__(self, *fault: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Asking:
        return lambda *arguments, **named: self._runner.run(getattr(self._client, name)(*arguments, **named))


@pytest.fixture(params=[Client, InLoop])
def made(request: pytest.FixtureRequest) -> Callable[..., Any]:
    kind: Callable[..., Any] = request.param
    return kind


@pytest.mark.parametrize("binary", [True, False])
def test_it_asks_a_real_server(made: Callable[..., Any], binary: bool) -> None:
    with running(Double()) as server, made(server.url, binary=binary) as client:
        outputs = client.infer("m", {"x": X})
        np.testing.assert_array_equal(outputs["double"], X * 2)
        np.testing.assert_array_equal(outputs["total"], X.sum(axis=1))
        assert outputs["double"].dtype == np.float32
        only = client.infer("m", {"x": X[:1]}, outputs=["total"], version="1", deadline_s=10, priority=2)
        assert list(only) == ["total"]


def test_it_says_what_is_there(made: Callable[..., Any]) -> None:
    with running(Double()) as server, made(server.url) as client:
        assert client.live()
        assert client.ready()
        assert client.ready("m")
        assert client.ready("m", version="1")
        assert not client.ready("other")
        assert client.metadata()["name"] == "tauten"
        assert client.metadata("m")["inputs"][0]["name"] == "x"
        with pytest.raises(NotFound, match="other"):
            client.metadata("other")


def test_types_travel_as_they_are(made: Callable[..., Any]) -> None:
    arrays = {
        name: np.array([[0, 1], [1, 0]], name) for name in ("bool", "int8", "int64", "uint16", "float16", "float64")
    }
    specs = [TensorSpec(name=name, shape=("batch", 2), dtype=name) for name in arrays]
    with running(Same(specs)) as server, made(server.url) as client:
        outputs = client.infer("m", {**arrays, "float64": arrays["float64"].astype(">f8")})
        for name, array in arrays.items():
            assert outputs[f"out_{name}"].dtype == name
            np.testing.assert_array_equal(outputs[f"out_{name}"], array)


def test_what_does_not_fit_is_an_error_that_says_why(made: Callable[..., Any]) -> None:
    with running(Double()) as server, made(server.url) as client:
        with pytest.raises(InputError, match=r"shape"):
            client.infer("m", {"x": X[:, :2]})
        with pytest.raises(InputError, match="FP32"):
            client.infer("m", {"x": X.astype(np.float64)})
        with pytest.raises(InputError, match="complex64"):
            client.infer("m", {"x": X.astype(np.complex64)})
        with pytest.raises(InputError, match="NaN"):
            client.infer("m", {"x": X * np.nan}, binary=False)
        with pytest.raises(InputError, match="other objects"):
            client.infer("m", {"x": np.array([None])})
        with pytest.raises(ConfigError, match="deadline_s above 0"):
            client.infer("m", {"x": X}, deadline_s=0)


def test_it_comes_again_where_the_server_is_busy(made: Callable[..., Any]) -> None:
    busy, stopping = answer(429, b'{"error": "full"}', "Retry-After: 0"), answer(503, b'{"error": "not yet"}')
    with scripted(busy, stopping, DROP, GOOD) as server, made(server.url, retries=QUICK) as client:
        assert client.infer("m", {"x": X})["y"] == 1.5
        assert len(server.asked) in (4, 5)
        assert len(set(server.asked)) == 1


def test_it_waits_as_long_as_the_server_says(made: Callable[..., Any]) -> None:
    busy = answer(429, b'{"error": "full"}', "Retry-After: 1")
    with scripted(busy, GOOD) as server, made(server.url, retries=QUICK) as client:
        begun = time.monotonic()
        client.infer("m", {"x": X})
        assert time.monotonic() - begun >= 1


def test_it_does_not_wait_longer_than_it_may(made: Callable[..., Any]) -> None:
    with scripted(answer(429, b'{"error": "full"}', "Retry-After: 3600")) as server, made(server.url) as client:
        begun = time.monotonic()
        with pytest.raises(Overloaded, match="full"):
            client.infer("m", {"x": X})
        assert time.monotonic() - begun < 20
        assert len(server.asked) == 1


def test_in_the_end_it_says_what_the_server_said(made: Callable[..., Any]) -> None:
    with scripted(answer(503, b'{"error": "stopping"}')) as server, made(server.url, retries=QUICK) as client:
        with pytest.raises(NotReady, match="stopping"):
            client.infer("m", {"x": X})
        assert len(server.asked) == QUICK.tries
        assert not client.ready()
        assert len(server.asked) == QUICK.tries + 1


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (answer(413, b'{"error": "too large"}'), TooLarge, "too large"),
        (answer(500, b'{"error": "broken"}'), ServeError, "broken"),
        (answer(500, b"<html>"), ServeError, "status 500"),
        (answer(401, b'{"error": "who are you"}'), ServeError, "token"),
        (answer(200, b"[]"), ServeError, "inference response"),
        (answer(200, b"{}", "Inference-Header-Content-Length: -1"), ServeError, "count of bytes"),
        (answer(200, b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [9]}]}'), ServeError, "data"),
    ],
)
def test_other_answers_are_errors_at_once(
    made: Callable[..., Any], reply: bytes, kind: type[Exception], words: str
) -> None:
    with scripted(reply) as server, made(server.url, retries=QUICK) as client:
        with pytest.raises(kind, match=words):
            client.infer("m", {"x": X})
        assert len(server.asked) == 1


def test_no_server_is_an_error_that_names_it(made: Callable[..., Any]) -> None:
    with scripted(GOOD) as server:
        url, port = server.url, server.port
    with made(url, retries=QUICK) as client:
        with pytest.raises(ServeError, match=f"cannot reach a server at 127.0.0.1:{port}"):
            client.infer("m", {"x": X})
        assert not client.live()
        assert not client.ready()


def test_what_is_no_http_is_an_error(made: Callable[..., Any]) -> None:
    with (
        scripted(b"220 smtp.example.org ready\r\n") as server,
        made(server.url, retries=QUICK) as client,
        pytest.raises(ServeError, match="no HTTP"),
    ):
        client.metadata()


def test_silence_is_an_error_in_time(made: Callable[..., Any]) -> None:
    with scripted(SILENCE) as server, made(server.url, timeout_s=0.3) as client:
        begun = time.monotonic()
        with pytest.raises(ServeError, match=r"no answer from 127.0.0.1:\d+ within 0.3 seconds"):
            client.infer("m", {"x": X})
        assert time.monotonic() - begun < 10
        assert len(server.asked) == 1


def test_after_silence_the_next_answer_is_its_own(made: Callable[..., Any]) -> None:
    engine = Gated()
    with running(engine) as server, made(server.url) as client:
        with pytest.raises(ServeError, match="no answer"):
            client.infer("m", {"x": X}, timeout_s=0.2)
        engine.gate.set()
        np.testing.assert_array_equal(client.infer("m", {"x": X + 1})["double"], X * 2 + 2)


def test_a_connection_is_used_again(made: Callable[..., Any]) -> None:
    with scripted(GOOD) as server, made(server.url) as client:
        for _ in range(5):
            client.infer("m", {"x": X})
        assert server.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_no_failure(made: Callable[..., Any]) -> None:
    with scripted(GOOD, DROP, GOOD) as server, made(server.url, retries=Retries(tries=1)) as client:
        client.infer("m", {"x": X})
        client.infer("m", {"x": X})
        assert server.connections == 2


def test_a_connection_that_the_server_ends_is_not_kept(made: Callable[..., Any]) -> None:
    with scripted(answer(200, b"{}", "Connection: close")) as server, made(server.url) as client:
        client.metadata()
        client.metadata()
        assert server.connections == 2


def test_it_says_who_it_is(made: Callable[..., Any]) -> None:
    with scripted(GOOD) as server, made(f"{server.url}/behind/a proxy/", token="secret") as client:
        client.infer("m/n", {"x": X}, deadline_s=0.25, priority=3)
        head, _, body = server.asked[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /behind/a%20proxy/v2/models/m%2Fn/infer HTTP/1.1\r\n")
        assert b"\r\nAuthorization: Bearer secret\r\n" in head
        document = json.JSONDecoder().raw_decode(body.decode("latin-1"))[0]
        assert document["parameters"] == {"timeout": 250_000, "priority": 3, "binary_data_output": True}


@pytest.mark.parametrize("token", ["a\r\nb", "ä", "\0"])
def test_a_token_cannot_add_headers(made: Callable[..., Any], token: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        made("http://127.0.0.1", token=token)


def test_many_threads_share_a_client() -> None:
    with running(Double()) as server, Client(server.url, connections=3) as client:
        faults: list[BaseException] = []

        def ask(number: int) -> None:
            try:
                for _ in range(30):
                    x = np.full((1, 3), number, np.float32)
                    np.testing.assert_array_equal(client.infer("m", {"x": x})["double"], x * 2)
            except BaseException as fault:  # noqa: BLE001 - told in the test's own thread
                faults.append(fault)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert len(client._idle) <= 3


def test_many_requests_share_a_few_connections() -> None:
    async def main(url: str) -> None:
        async with AsyncClient(url, connections=4) as client:
            inputs = [np.full((1, 3), number, np.float32) for number in range(100)]
            outputs = await asyncio.gather(*(client.infer("m", {"x": x}) for x in inputs))
            for x, found in zip(inputs, outputs, strict=True):
                np.testing.assert_array_equal(found["double"], x * 2)
            assert len(client._idle) <= 4
            slow = asyncio.create_task(client.infer("m", {"x": X}))
            await asyncio.sleep(0)
            slow.cancel()
            np.testing.assert_array_equal((await client.infer("m", {"x": X}))["double"], X * 2)

    with running(Double()) as server:
        asyncio.run(main(server.url))


def test_it_speaks_https(made: Callable[..., Any], tmp_path: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    try:
        subprocess.run(
            [*command, "-keyout", tmp_path / "key", "-out", tmp_path / "certificate", *subject],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with scripted(GOOD, tls=context) as server:
        trusted = ssl.create_default_context(cafile=str(tmp_path / "certificate"))
        with made(server.url, tls=trusted) as client:
            assert client.infer("m", {"x": X})["y"] == 1.5
        with made(server.url, retries=QUICK) as client, pytest.raises(ServeError, match="certificate"):
            client.infer("m", {"x": X})


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://u@a", "http://a/?q"])
def test_a_url_that_is_none_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL"):
        Client(url)


def test_urls() -> None:
    assert Url.parse("https://example.org") == Url("example.org", 443, True, "")
    assert Url.parse("http://[::1]:81/a/").authority == "[::1]:81"
    assert Url.parse("http://[::1]:81/a/").prefix == "/a"


def test_importing_it_loads_no_engine() -> None:
    code = "import sys, tauten; tauten.Client, tauten.AsyncClient; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "onnxruntime", "tauten.make", "tauten.run.serve.server"}.isdisjoint(loaded)


@given(
    st.lists(st.sampled_from([200, 404, 429, 503, None]), min_size=10, max_size=10),
    st.integers(1, 6),
    st.floats(0.1, 100),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_a_conversation_ends_in_time_and_after_as_many_tries_as_allowed(
    outcomes: list[int | None], tries: int, timeout_s: float, draw: float, retry_after_s: int
) -> None:
    clock = 0.0
    exchange = Exchange(b"", (), lambda answer: answer.status)
    talk = converse(exchange, "there", Retries(tries=tries), timeout_s, lambda: clock, lambda: draw)
    sent = 0
    result: int | None = None
    try:
        step = next(talk)
        while True:
            if isinstance(step, Pause):
                assert step.seconds >= (retry_after_s if outcomes[sent - 1] is not None else 0)
                clock += step.seconds
                step = next(talk)
                continue
            assert isinstance(step, Send)
            assert step.within_s == pytest.approx(timeout_s - clock)
            status = outcomes[sent]
            sent += 1
            headers = {b"retry-after": b"%d" % retry_after_s}
            step = talk.send(Answer(status, headers, b"", 0) if status is not None else ConnectionRefusedError("no"))
    except StopIteration as end:
        result = end.value
    except (Overloaded, NotReady, ServeError):
        pass
    assert clock < timeout_s
    assert sent <= tries
    assert result == (outcomes[sent - 1] if outcomes[sent - 1] in (200, 404) else None)
