"""A line in the log for each RPC, with an id that the client is told too, as for each answer over HTTP."""

from __future__ import annotations

import secrets
from time import perf_counter_ns
from typing import Final

from tauten.run.serve.around.access_log import GIVEN, HEADER, LONGEST_PATH, computed, log
from tauten.run.serve.grpc_rpcs import Handle, Rpc, until_its_end

_HEADER: Final = HEADER.decode("ascii").lower()


def logged(path: str, handle: Handle) -> Handle:
    """``handle``, with a line in the log when it has answered. An RPC keeps the id that ``x-request-id`` gives it."""

    async def around(rpc: Rpc) -> bytes | None:
        started_ns = perf_counter_ns()
        request_id = _id_of(rpc)
        rpc.context.set_trailing_metadata(((_HEADER, request_id),))

        def ended(status: str) -> None:
            fields: dict[str, object] = {
                "request_id": request_id,
                "method": "gRPC",
                "path": path[:LONGEST_PATH],
                "status": status,
                "duration_ms": round((perf_counter_ns() - started_ns) * 1e-6, 3),
                "received_bytes": rpc.received_bytes,
                "sent_bytes": rpc.sent_bytes,
            }
            if rpc.call is not None and not rpc.streams:  # a stream has many
                fields.update(computed(rpc.call))
            log.info("%(method)s %(path)s %(status)s %(duration_ms)g ms", fields, extra={"fields": fields})

        with until_its_end(rpc, ended):
            return await handle(rpc)

    return around


def _id_of(rpc: Rpc) -> str:
    for name, value in rpc.metadata:
        if name == _HEADER and isinstance(value, str) and GIVEN.fullmatch(value.encode()):
            return value
    return secrets.token_hex(8)
