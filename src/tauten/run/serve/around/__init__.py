"""What stands around the endpoints: each is a handler that takes a handler, and is there only where it is asked for.

::

    HttpConnection ── AccessLog ── Traced ── Guarded ── Endpoints
"""

from __future__ import annotations

from collections.abc import Callable

from tauten.run.serve.protocol.http import Handler
from tauten.run.serve.settings import ServeSettings


def surround(handler: Handler, settings: ServeSettings) -> tuple[Handler, Callable[[], None]]:
    """``handler`` with what the settings ask for around it, and what to call when the server has stopped.

    Raises ``ExtraMissing`` where traces are asked for and OpenTelemetry is not installed.
    """
    end: Callable[[], None] = _nothing
    if settings.security.token is not None:
        from tauten.run.serve.around.guard import Guarded

        handler = Guarded(handler, settings.security.token)
    if settings.observing.traces:
        from tauten.run.serve.around.traced import Traced, make_provider

        provider = make_provider()
        handler, end = Traced(handler, provider), provider.shutdown
    if settings.observing.access_log:
        from tauten.run.serve.around.access_log import AccessLog

        handler = AccessLog(handler)
    return handler, end


def _nothing() -> None:
    pass
