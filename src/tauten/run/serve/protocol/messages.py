"""HTTP requests and responses as values, and the bytes of a response's head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import orjson

from tauten.errors import TautenError

JSON_TYPE: Final = b"application/json"
BINARY_TYPE: Final = b"application/octet-stream"
RETRY_AFTER_S: Final = 1

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}
_TRY_AGAIN: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that came whole. ``target`` is the path and query as sent, header names are lower-case."""

    method: bytes
    target: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    keep_alive: bool = True
    old: bool = False
    """HTTP/1.0, where keep-alive must be said."""


@dataclass(frozen=True, slots=True)
class Response:
    """A status and a body in parts; ``headers`` beside type and length."""

    status: int
    body: tuple[bytes | bytearray | memoryview, ...] = ()
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())

    def head(self, date_line: bytes, connection: bytes = b"") -> bytes:
        """Status line and headers, up to the empty line. ``connection`` is a whole header line or nothing."""
        length = sum(len(part) for part in self.body)
        extra = b"".join(b"%b: %b\r\n" % header for header in self.headers)
        kind = b"Content-Type: %b\r\n" % self.content_type if length else b""
        return b"%b%b%bContent-Length: %d\r\n%b%b\r\n" % (
            _STATUS_LINES[self.status],
            date_line,
            kind,
            length,
            extra,
            connection,
        )


def json_response(document: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """``document`` as JSON."""
    return Response(status, (orjson.dumps(document),), headers=headers)


def error_response(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """``{"error": message}``; where trying again can help, the response says when."""
    if status in _TRY_AGAIN:
        headers = (*headers, (b"Retry-After", b"%d" % RETRY_AFTER_S))
    text = message.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate from a URL is no JSON
    return json_response({"error": text}, status, headers)


def fault_response(fault: TautenError) -> Response:
    """The response to an error that was raised on purpose."""
    return error_response(fault.http_status, str(fault))
