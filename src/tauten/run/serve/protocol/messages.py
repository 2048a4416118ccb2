"""HTTP requests and responses as values, and the bytes of a response's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson

from tauten.errors import TautenError

JSON_TYPE: Final = b"application/json"
BINARY_TYPE: Final = b"application/octet-stream"
HTML_TYPE: Final = b"text/html; charset=utf-8"
RETRY_AFTER_S: Final = 1

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}
_TRY_AGAIN: Final = (429, 503)


class Head:
    """Request line and headers. ``target`` is the path and query as sent, header names are lower-case.

    ``length`` is the body's, where a header says it. ``keep_alive`` is whether the client wants another answer here,
    ``old`` that it speaks HTTP/1.0, where keep-alive must be said. ``notes`` are what the one who answers has read in
    it: a head that comes again is the same object.
    """

    __slots__ = ("headers", "keep_alive", "length", "method", "notes", "old", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: Mapping[bytes, bytes], keep_alive: bool = True, old: bool = False
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.old = old
        length = headers.get(b"content-length")
        self.length = None if length is None else int(length)
        self.notes: Any = None


class Request:
    """A request that came whole. A large body is a view of memory, and read-only as bytes are."""

    __slots__ = ("body", "head")

    def __init__(self, head: Head, body: bytes | memoryview) -> None:
        self.head = head
        self.body = body


Part = bytes | bytearray | memoryview


class Response:
    """A status and a body in parts; ``headers`` beside type and length.

    ``fixed`` is what stands in the head before the date, where that was made before: status, type, length, headers.
    """

    __slots__ = ("body", "content_type", "fixed", "headers", "status")

    def __init__(
        self,
        status: int,
        body: Sequence[Part] = (),
        content_type: bytes = JSON_TYPE,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        fixed: bytes = b"",
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.fixed = fixed

    def head(self, date_line: bytes, connection: bytes = b"") -> bytes:
        """Status line and headers, up to the empty line. ``connection`` is a whole header line or nothing."""
        return b"%b%b%b\r\n" % (self.fixed or self.render(), date_line, connection)

    def render(self) -> bytes:
        """What ``fixed`` is."""
        length = size_of(self.body)
        kind = b"Content-Type: %b\r\n" % self.content_type if length else b""
        extra = b"".join(b"%b: %b\r\n" % header for header in self.headers)
        return b"%b%bContent-Length: %d\r\n%b" % (_STATUS_LINES[self.status], kind, length, extra)


def size_of(parts: Sequence[Part]) -> int:
    """Bytes of all ``parts``."""
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)


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
