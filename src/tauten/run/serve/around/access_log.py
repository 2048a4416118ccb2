"""A line in the log for each answer, with an id that the client is told too."""

from __future__ import annotations

import logging
import re
import secrets
from time import perf_counter_ns
from typing import Final

from tauten.run.serve.call import Call
from tauten.run.serve.protocol.http import Handler, Respond, Ticket
from tauten.run.serve.protocol.messages import Request, Response, size_of

log = logging.getLogger("tauten.access")

HEADER: Final = b"X-Request-Id"
GIVEN: Final = re.compile(rb"[A-Za-z0-9_.:+/=-]{1,128}")
"""The ids that a client may give its requests."""

LONGEST_PATH: Final = 500
"""Characters of a path that are told; a client may send any."""


class AccessLog:
    """Logs who asked what, and what came of it, after it was answered.

    A request keeps the id that its ``X-Request-Id`` gives it; another gets one. A client that left is logged with the
    status 499.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def __call__(self, request: Request, respond: Respond) -> Ticket | None:
        entry = _Entry(request, respond)
        entry.ticket = self._handler(request, entry.answer)
        return None if entry.done else entry


class _Entry:
    """One request on its way."""

    __slots__ = ("done", "id", "request", "respond", "started_ns", "ticket")

    def __init__(self, request: Request, respond: Respond) -> None:
        given = request.head.headers.get(HEADER.lower())
        self.id = given if given is not None and GIVEN.fullmatch(given) else secrets.token_hex(8).encode()
        self.request = request
        self.respond = respond
        self.started_ns = perf_counter_ns()
        self.ticket: Ticket | None = None
        self.done = False

    def answer(self, response: Response) -> None:
        self.done = True
        fixed = response.fixed and response.fixed + b"%b: %b\r\n" % (HEADER, self.id)
        headers = (*response.headers, (HEADER, self.id))
        self.respond(Response(response.status, response.body, response.content_type, headers, fixed))
        self._write(response.status, size_of(response.body))

    def cancel(self) -> None:
        if self.ticket is not None:
            self.ticket.cancel()
        self.done = True
        self._write(499, 0)

    def _write(self, status: int, sent: int) -> None:
        head = self.request.head
        fields: dict[str, object] = {
            "request_id": self.id.decode("ascii"),
            "method": head.method.decode("latin-1"),
            "path": head.target.decode("latin-1")[:LONGEST_PATH],
            "status": status,
            "duration_ms": round((perf_counter_ns() - self.started_ns) * 1e-6, 3),
            "received_bytes": len(self.request.body),
            "sent_bytes": sent,
        }
        if isinstance(self.ticket, Call):
            fields.update(computed(self.ticket))
        log.info("%(method)s %(path)s %(status)d %(duration_ms)g ms", fields, extra={"fields": fields})


def computed(call: Call) -> dict[str, object]:
    """What a line tells of a request's computing; nothing where it did not come to that."""
    if not call.ended_ns:
        return {}
    return {"batch_rows": call.batch_rows, "compute_ms": round((call.ended_ns - call.started_ns) * 1e-6, 3)}
