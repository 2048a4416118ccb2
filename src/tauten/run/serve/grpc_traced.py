"""A span for each RPC, by OpenTelemetry's conventions for them; what is inside is that of requests over HTTP."""

from __future__ import annotations

from functools import partial
from typing import Final

from tauten.run.serve.around.access_log import LONGEST_PATH
from tauten.run.serve.around.spans import CONTEXT, Spans
from tauten.run.serve.grpc_rpcs import Around, Handle, Rpc, until_its_end

_OTHER: Final = "_OTHER"
_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The statuses that are a server's fault, by the conventions for spans of gRPC."""


def traced(spans: Spans, paths: frozenset[str], quiet: frozenset[str]) -> Around:
    """Makes a span of each RPC, but those at ``quiet`` paths. Those at others than ``paths`` have one name.

    In a stream, each request has a span inside the stream's.
    """

    def around(path: str, handle: Handle) -> Handle:
        if path in quiet:
            return handle
        method = path.removeprefix("/")
        facts = {"rpc.system.name": "grpc", "rpc.method": method}
        if path not in paths:
            facts |= {"rpc.method": _OTHER, "rpc.method_original": method[:LONGEST_PATH]}

        async def spanned(rpc: Rpc) -> bytes | None:
            carrier = {name: value for name, value in rpc.metadata if name in CONTEXT and isinstance(value, str)}
            span = spans.begin(facts["rpc.method"], carrier, facts)
            if rpc.streams:
                rpc.answered = partial(spans.one_of, span)

            def ended(status: str) -> None:
                span.set_attribute("rpc.response.status_code", status)
                if status == "CANCELLED":
                    spans.left(span)
                else:
                    if rpc.call is not None and not rpc.streams:
                        spans.inside(span, rpc.call)
                    spans.end(span, status if status in _FAULTS else None)

            with until_its_end(rpc, ended):
                return await handle(rpc)

        return spanned

    return around
