"""A collector of traces: a listener that takes OTLP over HTTP, as servers of OpenTelemetry do."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.unit.serve.tiny import WAIT_S

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
"""What a client that has a trace of its own sends as ``traceparent``."""


@contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that come, as OTLP's own messages; the environment says that they go here.

    All of a server's are there when it has stopped.
    """
    trace_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    spans: list[Any] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = trace_pb2.ExportTraceServiceRequest()
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            message.ParseFromString(body)
            for resource in message.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    listener = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.server_port}")
    try:
        yield spans
    finally:
        listener.shutdown()
        thread.join(WAIT_S)
        listener.server_close()


def attributes_of(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
