"""A span for each request over HTTP."""

from __future__ import annotations

from typing import Any, Final

from tauten.run.serve.around.spans import CONTEXT, Spans
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.http import Handler, Respond, Ticket
from tauten.run.serve.protocol.messages import Request, Response

_CONTEXT_HEADERS: Final = tuple((name, name.encode("ascii")) for name in CONTEXT)
_QUIET: Final = (b"/v2/health/", b"/metrics")
"""Paths that are asked for every few seconds by machines, and tell nothing."""


class Traced:
    """Makes a span of each request that is handed on."""

    def __init__(self, handler: Handler, spans: Spans) -> None:
        self._handler = handler
        self._spans = spans

    def __call__(self, request: Request, respond: Respond) -> Ticket | None:
        head = request.head
        if head.target.startswith(_QUIET):
            return self._handler(request, respond)
        carrier = {
            name: value.decode("latin-1")
            for name, header in _CONTEXT_HEADERS
            if (value := head.headers.get(header)) is not None
        }
        method, path = head.method.decode("latin-1"), head.target.partition(b"?")[0].decode("latin-1")[:500]
        span = self._spans.begin(
            f"{method} {path}",
            carrier,
            {"http.request.method": method, "url.path": path, "http.request.body.size": len(request.body)},
        )
        spanned = _Spanned(self._spans, span, respond)
        spanned.ticket = self._handler(request, spanned.answer)
        if spanned.response is not None:
            spanned.finish()
            return None
        spanned.later = True
        return spanned


class _Spanned:
    """One request on its way."""

    __slots__ = ("_respond", "_span", "_spans", "later", "response", "ticket")

    def __init__(self, spans: Spans, span: Any, respond: Respond) -> None:
        self._spans = spans
        self._span = span
        self._respond = respond
        self.ticket: Ticket | None = None
        self.response: Response | None = None
        self.later = False

    def answer(self, response: Response) -> None:
        self.response = response
        self._respond(response)
        if self.later:
            self.finish()

    def finish(self) -> None:
        """End the span, once the call is known and it was answered."""
        if isinstance(self.ticket, Call):
            self._spans.inside(self._span, self.ticket)
        error = None
        if self.response is not None:
            status = self.response.status
            self._span.set_attribute("http.response.status_code", status)
            error = str(status) if status >= 500 else None
        self._spans.end(self._span, error)

    def cancel(self) -> None:
        if self.ticket is not None:
            self.ticket.cancel()
        self._spans.left(self._span)
