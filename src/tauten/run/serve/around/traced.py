"""Traces in OpenTelemetry's form: a span for each request, with its wait and its computing inside.

The client's context is taken from ``traceparent`` (W3C Trace Context), so that a request is one trace from end to end.
"""

from __future__ import annotations

from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

from tauten.errors import ExtraMissing
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.http import Handler, Respond, Ticket
from tauten.run.serve.protocol.messages import Request, Response

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_CONTEXT_HEADERS: Final = (b"traceparent", b"tracestate")
_QUIET: Final = (b"/v2/health/", b"/metrics")
"""Paths that are asked for every few seconds by machines, and tell nothing."""


class Traced:
    """Makes a span of each request that is handed on. ``provider`` says where spans go."""

    def __init__(self, handler: Handler, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._handler = handler
        self._trace = trace
        self._tracer = provider.get_tracer("tauten.serve")
        self._extract = TraceContextTextMapPropagator().extract
        self._offset_ns = time_ns() - perf_counter_ns()  # spans are told in time of day

    def __call__(self, request: Request, respond: Respond) -> Ticket | None:
        head = request.head
        if head.target.startswith(_QUIET):
            return self._handler(request, respond)
        carrier = {
            name.decode(): value.decode("latin-1")
            for name in _CONTEXT_HEADERS
            if (value := head.headers.get(name)) is not None
        }
        method, path = head.method.decode("latin-1"), head.target.partition(b"?")[0].decode("latin-1")[:500]
        span = self._tracer.start_span(
            f"{method} {path}",
            context=self._extract(carrier) if carrier else None,
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path, "http.request.body.size": len(request.body)},
        )
        spanned = _Spanned(self, span, respond)
        spanned.ticket = self._handler(request, spanned.answer)
        if spanned.response is not None:
            spanned.finish()
            return None
        spanned.later = True
        return spanned

    def inside(self, span: Any, call: Call) -> None:
        """The spans of a call inside its request's."""
        context = self._trace.set_span_in_context(span)
        offset = self._offset_ns
        span.set_attribute("tauten.rows", call.rows)
        span.set_attribute("tauten.cached", call.cached)
        if not call.started_ns or call.cached:
            return
        waited = self._tracer.start_span("queue", context, start_time=call.arrived_ns + offset)
        waited.end(call.started_ns + offset)
        computed = self._tracer.start_span(
            "compute",
            context,
            start_time=call.started_ns + offset,
            attributes={"tauten.batch_rows": call.batch_rows, "tauten.left_because": call.why},
        )
        computed.end(call.ended_ns + offset)


class _Spanned:
    """One request on its way."""

    __slots__ = ("_respond", "_span", "_traced", "later", "response", "ticket")

    def __init__(self, traced: Traced, span: Any, respond: Respond) -> None:
        self._traced = traced
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
            self._traced.inside(self._span, self.ticket)
        if self.response is not None:
            self._span.set_attribute("http.response.status_code", self.response.status)
            if self.response.status >= 500:
                self._span.set_status(self._traced._trace.StatusCode.ERROR)
        self._span.end()

    def cancel(self) -> None:
        if self.ticket is not None:
            self.ticket.cancel()
        self._span.set_attribute("tauten.client_left", True)
        self._span.end()


def make_provider() -> TracerProvider:
    """Sends spans by OTLP over HTTP, to where ``OTEL_EXPORTER_OTLP_ENDPOINT`` and its like say.

    Raises ``ExtraMissing`` where OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as fault:
        raise ExtraMissing(f"tracing ({fault.name} is not installed)", "traces") from None
    # What the environment says of the resource, such as another service's name, goes before.
    provider = TracerProvider(resource=Resource({SERVICE_NAME: "tauten"}).merge(Resource.create()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
