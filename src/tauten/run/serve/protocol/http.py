"""HTTP/1.1 on one connection: an ``asyncio.Protocol`` over the parser of httptools.

Requests of one connection are answered in the order in which they came; those that came early wait, and while they
wait the socket is not read. What a client can make the server hold is bounded: one read, one head, one body.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, cast

import httptools

from tauten.run.serve.protocol.bodies import DIRECT_BYTES, LargeBody, lead_of
from tauten.run.serve.protocol.connections import GRACE_S, Connections
from tauten.run.serve.protocol.heads import Heads
from tauten.run.serve.protocol.limits import Limits
from tauten.run.serve.protocol.messages import Head, Request, Response, error_response, size_of

Respond = Callable[[Response], None]


class Ticket(Protocol):
    """A request that will be answered later. Once cancelled it is not answered any more."""

    def cancel(self) -> object: ...


Handler = Callable[[Request, Respond], Ticket | None]
"""Answers a request once, before it returns or later; what it raises in place of an answer becomes a 500."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE: Final = b"Connection: close\r\n"
_KEEP: Final = b"Connection: keep-alive\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_REPEATED_BYTES: Final = 2048
_ONE_PIECE: Final = 64 * 2**10
_LINGER_S: Final = 2.0

log = logging.getLogger("tauten.serve")


class _Refused(Exception):
    """Stops the parser inside one of its callbacks."""


class HttpConnection(asyncio.Protocol):
    """One client.

    The two deadlines are looked at by ``Connections`` now and then, so that a request costs no timer.
    """

    def __init__(self, handler: Handler, limits: Limits, connections: Connections) -> None:
        self._handler = handler
        self._limits = limits
        self._connections = connections
        self._heads: Heads = connections.heads
        self._loop = connections.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._waiting: deque[Request | Response] = deque()  # a response here is a refusal, the last thing sent
        self._current: Request | None = None  # what is being answered
        self._ticket: Ticket | None = None
        self._advancing = False
        self._previous = b""  # the last head, where it came whole at the beginning of what was read
        self._parsed: Head | None = None
        self._refusal: Response | None = None
        self._receiving = False
        self._deaf = False  # what still comes is not read as requests
        self._last = False  # close once everything is answered
        self._lingering = False
        self._lost = False
        self._reading = True
        self._writable = True
        self._continue_due = False
        self._quiet_bytes = 0
        self.read_deadline = math.inf
        self.write_deadline = math.inf

    # The transport's calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self.read_deadline = self._loop.time() + self._limits.idle_s

    def connection_lost(self, fault: Exception | None) -> None:
        self._lost = self._deaf = True
        self._connections.discard(self)
        self._waiting.clear()
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        fresh = not self._receiving and self._current is None and not self._waiting and not self._last
        end = data.find(_HEAD_END) + 4 if fresh else 0
        if end > 4:
            head = self._heads.get(data[:end])
            if head is not None and len(data) - end == (head.length or 0) and self._writable:
                self._advancing = True  # nothing else waits, and nothing follows
                self._answer(Request(head, data[end:]))
                self._advancing = False
                return
        self._quiet_bytes += len(data)
        self._parsed = None
        self._feed(data)
        if end > 4 and self._parsed is not None and len(data) - end == (self._parsed.length or 0):
            # A head is learned when it comes twice, so that those which change cost nothing more.
            if data[:end] == self._previous:
                self._heads.learn(self._previous, self._parsed)
            self._previous = data[:end] if end <= _REPEATED_BYTES else b""
        if self._receiving and not self._deaf:
            if self._quiet_bytes > self._limits.max_head_bytes:
                self._refuse(431, f"expected at most {self._limits.max_head_bytes} bytes of headers")
            elif self._body:
                self._receive_directly()
        self._advance()

    def body_came(self, body: memoryview) -> None:
        """Told by a ``LargeBody``: the body of the request that is being received is there."""
        self._complete(body)
        self._parser = httptools.HttpRequestParser(self)  # the old one waits for that body still
        self._receive_by(self)
        self._advance()

    def eof_received(self) -> bool:
        """The client will send no more, which is all that is seen of one that gave up: what waits is not computed.

        Nothing tells it from a client that would still read. Those are rare, and work for nobody is what an overloaded
        server dies of; what was answered before is still sent.
        """
        self._deaf = self._last = True
        self._receiving = False
        return False  # the transport closes, once what was answered is sent

    def pause_writing(self) -> None:
        self._writable = False
        self.write_deadline = self._loop.time() + self._limits.send_s

    def resume_writing(self) -> None:
        self._writable = True
        self.write_deadline = self._loop.time() + self._limits.send_s if self._lingering else math.inf
        self._advance()

    # The parser's calls.

    def on_message_begin(self) -> None:
        self._receiving = True
        self._quiet_bytes = 0
        self._head_bytes = 0
        self._body_bytes = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self.read_deadline = self._loop.time() + self._limits.receive_s

    def on_url(self, part: bytes) -> None:
        self._target += part
        self._count_head(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        length = self._headers.get(b"content-length")
        if length is not None and int(length) > self._limits.max_body_bytes:
            self._stop(413, f"expected a body of at most {self._limits.max_body_bytes} bytes, got {int(length)}")
        expect = self._headers.get(b"expect")
        if expect is not None:
            if expect.lower() != b"100-continue":
                self._stop(417, f"expected 'Expect: 100-continue' or none, got {expect!r:.80}")
            self._continue_due = True

    def on_body(self, part: bytes) -> None:
        self._quiet_bytes = 0
        self._continue_due = False
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.max_body_bytes:
            self._stop(413, f"expected a body of at most {self._limits.max_body_bytes} bytes, got more")
        self._body.append(part)

    def on_message_complete(self) -> None:
        self._complete(self._body[0] if len(self._body) == 1 else b"".join(self._body))

    def _complete(self, body: bytes | memoryview) -> None:
        """The request that is being received has come whole."""
        self._receiving = self._continue_due = False
        self.read_deadline = math.inf
        keep_alive = self._parser.should_keep_alive()
        self._body = []
        self._parsed = Head(
            self._parser.get_method(),
            self._target,
            self._headers,
            keep_alive,
            self._parser.get_http_version() == "1.0",
        )
        self._waiting.append(Request(self._parsed, body))
        if self._last or not keep_alive:
            self._deaf = self._last = True

    # What Connections calls.

    def drain(self) -> None:
        """Answer what has begun to come, or what comes next, and close after it: a request may be on its way.

        Not so where the client has said nothing for a while: that one is not waited for.
        """
        self._last = True
        self._dismiss()

    def leave(self) -> None:
        """Close, once what has begun to come is answered."""
        self._last = True
        self._dismiss()
        self._close_when_idle()

    def timed_out(self) -> None:
        """``read_deadline`` or ``write_deadline`` has passed."""
        now = self._loop.time()
        if self._lingering and now < self.write_deadline and self._transport.get_write_buffer_size():
            self.read_deadline = now + _LINGER_S  # the client reads its answer still
        elif now >= self.write_deadline or self._transport.is_closing() or self._deaf:
            self._transport.abort()
        elif self._receiving:
            self._refuse(408, f"expected a whole request within {self._limits.receive_s:g} seconds")
            self._advance()
        else:
            self._close()

    def abort(self) -> bool:
        """Close at once; whether that cut a request or an answer."""
        busy = self._current is not None or bool(self._waiting) or self._receiving
        busy = busy or self._transport.get_write_buffer_size() > 0
        self._transport.abort()
        return busy

    # The rest.

    def _feed(self, data: bytes) -> None:
        while data and not self._deaf:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Another protocol was proposed. A server may go on with HTTP/1.1 (RFC 9110, 7.8): so does this one.
                data = data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as fault:
                if self._refusal is not None:
                    self._enqueue_refusal(self._refusal)
                elif not self._deaf:
                    self._refuse(400, f"malformed HTTP: {fault}")
            return

    def _receive_directly(self) -> None:
        """Let the rest of a large body come where it stays; not of one in chunks, whose length nobody knows."""
        length = int(self._headers.get(b"content-length", b"0"))
        if length - self._body_bytes >= DIRECT_BYTES:
            self._receive_by(LargeBody(self, length, self._body, lead_of(self._headers)))
            self._body = []

    def _receive_by(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what comes to ``protocol``. uvloop looks at its kind only where reading begins."""
        self._transport.pause_reading()
        self._transport.set_protocol(protocol)
        if self._reading:
            self._transport.resume_reading()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            self._stop(431, f"expected at most {self._limits.max_head_bytes} bytes of headers")

    def _stop(self, status: int, message: str) -> None:
        self._refusal = error_response(status, message)
        raise _Refused

    def _refuse(self, status: int, message: str) -> None:
        self._enqueue_refusal(error_response(status, message))

    def _enqueue_refusal(self, response: Response) -> None:
        if self._transport.get_protocol() is not self:
            self._receive_by(self)
        self._waiting.append(response)
        self._receiving = self._continue_due = False
        self._deaf = self._last = True
        self._body = []
        self.read_deadline = math.inf

    def _advance(self) -> None:
        """Answer what waits, as far as the order and the client's reading allow."""
        self._advancing = True
        while self._waiting and self._current is None and self._writable and not self._lost:
            item = self._waiting.popleft()
            if isinstance(item, Response):
                self._advancing = False
                self._write(item, None)
                self._linger()
                return
            self._answer(item)
        self._advancing = False
        if self._lost:
            return
        if self._waiting or not self._reading:
            self._read_or_pause()
        if self._continue_due and self._current is None and not self._waiting:
            self._continue_due = False
            self._transport.write(_CONTINUE)
        if self._last:
            self._close_when_idle()

    def _answer(self, request: Request) -> None:
        """Hand on what is to be answered next."""
        self._current = request
        try:
            ticket = self._handler(request, self._respond)
        except Exception as fault:  # noqa: BLE001 - a fault in one answer must not end the connection; it is logged
            self._respond(self._failed(request, fault))
            return
        if self._current is not None:
            self._ticket = ticket
            if not self._receiving:
                self.read_deadline = math.inf

    def _respond(self, response: Response) -> None:
        """The answer to the current request."""
        request = self._current
        if request is None or self._lost:
            return
        self._current = self._ticket = None
        self._write(response, request)
        if not self._advancing and (self._waiting or self._last or self._continue_due or not self._reading):
            self._advance()

    def _failed(self, request: Request, fault: BaseException) -> Response:
        head = request.head
        log.error("%s %r failed", head.method.decode(), head.target.decode("latin-1"), exc_info=fault)
        return error_response(500, "internal error: the server's log has the details")

    def _write(self, response: Response, request: Request | None) -> None:
        close = request is None or (self._last and not self._waiting and not self._receiving)
        connection = _CLOSE if close else _KEEP if request is not None and request.head.old else b""
        head = response.head(self._connections.date_line, connection)
        if request is not None and request.head.method == b"HEAD":
            self._transport.write(head)
        elif response.fixed or size_of(response.body) <= _ONE_PIECE:
            # One write: a message in one piece costs one call of the system and one wake-up of the client.
            self._transport.write(b"".join((head, *response.body)))
        else:
            self._transport.writelines([head, *(memoryview(part).cast("B") for part in response.body)])
        if not self._receiving:
            self.read_deadline = self._loop.time() + self._limits.idle_s

    def _read_or_pause(self) -> None:
        if self._waiting:
            self.read_deadline = math.inf  # the client cannot be late with what is not read
        wanted = not self._waiting
        if wanted == self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if not wanted:
            self._transport.pause_reading()
            return
        self._transport.resume_reading()
        if self._receiving:
            self.read_deadline = self._loop.time() + self._limits.receive_s

    @property
    def _busy(self) -> bool:
        return self._current is not None or bool(self._waiting) or self._receiving or self._lingering

    def _close_when_idle(self) -> None:
        if self._last and not self._busy:
            self._close()

    def _dismiss(self) -> None:
        """Close for good where nothing has come or gone for so long that a reset takes nothing from the client."""
        now = self._loop.time()
        quiet_s = self._limits.idle_s - (self.read_deadline - now)
        if self._busy or self._deaf or quiet_s < GRACE_S or self._transport.get_write_buffer_size():
            return
        self._lingering = self._deaf = True
        self._transport.close()
        self.write_deadline = now  # TLS would wait for the client's own goodbye

    def _close(self) -> None:
        """Close after what was answered: by halves, where the connection has halves."""
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._linger()
            return
        self._deaf = True
        self._transport.close()  # TLS waits for the client's own goodbye
        self.write_deadline = min(self.write_deadline, self._loop.time() + self._limits.send_s)

    def _linger(self) -> None:
        """Say that no more is answered, and read on until the client closes, or for a moment.

        A close with bytes unread, such as of a request that was on its way, is a reset: it takes from the client what
        it has yet to read.
        """
        if self._lingering:
            return
        self._lingering = self._deaf = True
        if self._transport.can_write_eof():
            with suppress(OSError):  # the client has reset the connection, which is heard next
                self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        now = self._loop.time()
        self.read_deadline = now + _LINGER_S
        self.write_deadline = min(self.write_deadline, now + self._limits.send_s)
