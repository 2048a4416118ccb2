"""An HTTP/1.1 client that keeps one connection: one request under way at a time."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson

from tauten.errors import ConfigError, ServeError
from tauten.run.serve.protocol.v2 import HEADER_LENGTH, Message


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """From ``http://host:port``; raises ``ConfigError`` for anything else."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as fault:
            raise ConfigError(f"expected a URL such as http://127.0.0.1:8000, got {url!r}: {fault}") from None
        if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query or parts.username:
            raise ConfigError(f"expected a URL such as http://127.0.0.1:8000, got {url!r}")
        return cls(host, port)

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: ``received_bytes`` counts body and head."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    received_bytes: int


def encode_get(address: Address, path: str) -> bytes:
    """A whole GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {address.authority}\r\n\r\n".encode("latin-1")


def encode_post(address: Address, path: str, message: Message) -> bytes:
    """A whole POST request, head and body."""
    binary = message.header_length is not None
    kind = "application/octet-stream" if binary else "application/json"
    extra = f"{HEADER_LENGTH}: {message.header_length}\r\n" if binary else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.authority}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {message.length}\r\n{extra}\r\n"
    )
    return b"".join([head.encode("latin-1"), *message.parts])


class AnswerReader:
    """Makes an answer of the bytes of one response; ``keep_alive`` says whether another may follow it."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.keep_alive = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._received = 0

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises ``ConnectionError`` where they are no HTTP."""
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            raise ConnectionError(f"the answer is no HTTP: {fault}") from None

    # The parser's calls.

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.keep_alive = self._parser.should_keep_alive()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self.answer = Answer(status, self._headers, body, self._received)


class Client(asyncio.Protocol):
    """Sends whole requests to ``address``; connects when needed, again where the server closed. ``tls`` encrypts."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None

    async def send(self, request: bytes) -> Answer:
        """The response to ``request``. Raises ``OSError`` where the connection fails before it came whole."""
        if not self.open:
            await self._loop.create_connection(lambda: self, self._address.host, self._address.port, ssl=self._tls)
        transport = cast("asyncio.Transport", self._transport)
        self._answer = self._loop.create_future()
        transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            transport.abort()  # what may still come would be taken for the next answer
            raise
        finally:
            self._answer = None

    @property
    def open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    @property
    def gone(self) -> bool:
        """Whether there is no connection any more, not even one that is being closed."""
        return self._transport is None

    def abort(self) -> None:
        """Close the connection at once, without what has not been sent, which may never be read."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._reader = AnswerReader()

    def connection_lost(self, fault: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError("the server closed the connection before it had answered"))

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except ConnectionError as fault:
            self._fail(fault)
            self.close()
            return
        answer = self._reader.answer
        if answer is None:
            return
        if not self._reader.keep_alive:
            self.close()
        self._reader = AnswerReader()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _fail(self, fault: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(fault)


async def get_json(address: Address, path: str, timeout_s: float) -> Any:
    """The JSON document at ``path``. Raises ``ServeError`` that says why there is none."""
    client = Client(address)
    try:
        async with asyncio.timeout(timeout_s):
            answer = await client.send(encode_get(address, path))
    except TimeoutError:
        raise ServeError(f"no answer from {address.authority} within {timeout_s:g} seconds") from None
    except OSError as fault:
        raise ServeError(f"cannot reach a server at {address.authority}: {fault}") from None
    finally:
        client.close()
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        raise ServeError(f"{address.authority}{path}: expected JSON, got status {answer.status}") from None
    if answer.status != 200:
        reason = document.get("error") if isinstance(document, dict) else None
        raise ServeError(f"{address.authority}{path}: status {answer.status}: {reason}")
    return document
