"""A line in the log for each RPC, with an id that the client is told too, as for each answer over HTTP."""

from __future__ import annotations

import asyncio
import secrets
from time import perf_counter_ns
from typing import Any, Final

import grpc

from tauten.run.serve.around.access_log import GIVEN, HEADER, log
from tauten.run.serve.grpc_rpcs import Handle

_HEADER: Final = HEADER.decode("ascii").lower()
_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def logged(path: str, handle: Handle) -> Handle:
    """``handle``, with a line in the log when it has answered. An RPC keeps the id that ``x-request-id`` gives it."""

    async def around(requests: Any, context: Any) -> bytes | None:
        started_ns = perf_counter_ns()
        request_id = _id_of(context)
        context.set_trailing_metadata(((_HEADER, request_id),))
        status, sent = "OK", 0
        try:
            response = await handle(requests, context)
            sent = len(response or b"")
            return response
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        except Exception:
            code = context.code()
            status = _NAMES.get(getattr(code, "value", (code,))[0], "UNKNOWN")
            raise
        finally:
            fields: dict[str, object] = {
                "request_id": request_id,
                "method": "gRPC",
                "path": path,
                "status": status,
                "duration_ms": round((perf_counter_ns() - started_ns) * 1e-6, 3),
                "sent_bytes": sent,
            }
            log.info("%(method)s %(path)s %(status)s %(duration_ms)g ms", fields, extra={"fields": fields})

    return around


def _id_of(context: Any) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == _HEADER and isinstance(value, str) and GIVEN.fullmatch(value.encode()):
            return value
    return secrets.token_hex(8)
