"""What stands around the endpoints: each is a handler that takes a handler, and is there only where it is asked for.

::

    HttpConnection ── AccessLog ── Traced ── Guarded ── Endpoints
    Router (gRPC)  ── logged ───── traced ── its token ─ GrpcInfer, GrpcEndpoints
                                     └── Spans: one for both
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauten.run.serve.protocol.http import Handler
from tauten.run.serve.settings import ServeSettings

if TYPE_CHECKING:
    from tauten.run.serve.around.spans import Spans


class Around:
    """What the settings ask for around a server's endpoints. ``spans`` makes traces, where those are asked for.

    Raises ``ExtraMissing`` where they are and OpenTelemetry is not installed.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.spans: Spans | None = None
        if settings.observing.traces:
            from tauten.run.serve.around.spans import make_spans

            self.spans = make_spans()

    def http(self, handler: Handler) -> Handler:
        """``handler`` with all of it around."""
        if self._settings.security.token is not None:
            from tauten.run.serve.around.guard import Guarded

            handler = Guarded(handler, self._settings.security.token)
        if self.spans is not None:
            from tauten.run.serve.around.traced import Traced

            handler = Traced(handler, self.spans)
        if self._settings.observing.access_log:
            from tauten.run.serve.around.access_log import AccessLog

            handler = AccessLog(handler)
        return handler

    def close(self) -> None:
        """The server has stopped: send what has not been sent. Takes a moment where nobody listens."""
        if self.spans is not None:
            self.spans.close()
