"""Traces in OpenTelemetry's form: a span for each request, with its wait and its computing inside.

The client's context is taken from ``traceparent`` (W3C Trace Context), so that a request is one trace from end to end.
What a request came over says how its span is named (``traced``, ``grpc_traced``); all else is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

from tauten.errors import ExtraMissing
from tauten.run.serve.call import Call

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CONTEXT: Final = ("traceparent", "tracestate")
"""Names of the headers, over gRPC of the metadata, in which a client tells its context."""


class Spans:
    """Makes spans of requests. ``provider`` says where they go."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("tauten.serve")
        self._extract = TraceContextTextMapPropagator().extract
        self._offset_ns = time_ns() - perf_counter_ns()  # spans are told in time of day

    def begin(self, name: str, carrier: Mapping[str, str], attributes: Mapping[str, str | int]) -> Any:
        """The span of a request that has just come; ``carrier`` holds what came under the names of ``CONTEXT``."""
        return self._tracer.start_span(
            name,
            context=self._extract(carrier) if carrier else None,
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
        )

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
        if not call.ended_ns:  # it took too long, and may run still
            return
        computed = self._tracer.start_span(
            "compute",
            context,
            start_time=call.started_ns + offset,
            attributes={"tauten.batch_rows": call.batch_rows, "tauten.left_because": call.why},
        )
        computed.end(call.ended_ns + offset)

    def one_of(self, span: Any, call: Call) -> None:
        """A span for a call that is one of many inside of ``span``, which is a stream's; it ends now."""
        context = self._trace.set_span_in_context(span)
        inner = self._tracer.start_span("request", context, start_time=call.arrived_ns + self._offset_ns)
        self.inside(inner, call)
        self.end(inner, None if call.fault is None else type(call.fault).__name__)

    def end(self, span: Any, error: str | None = None) -> None:
        """It was answered, or not: then ``error`` is what to look for, a status where the server is at fault."""
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def left(self, span: Any) -> None:
        """The client went before it was answered."""
        span.set_attribute("tauten.client_left", True)
        span.end()

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def make_spans() -> Spans:
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
    return Spans(provider)
