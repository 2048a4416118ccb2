"""Faults as gRPC's status codes."""

from __future__ import annotations

from typing import Any, Final

import grpc

from tauten.errors import ServeError, TautenError
from tauten.run.serve.protocol.messages import RETRY_AFTER_S

Pairs = tuple[tuple[str, str], ...]

_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_TRY_AGAIN: Final = (429, 503)
_WHEN: Final = (("grpc-retry-pushback-ms", str(RETRY_AFTER_S * 1000)), ("retry-after", str(RETRY_AFTER_S)))
"""To clients whose library retries by itself (gRFC A6), and, as over HTTP, to those that see to it themselves."""
_DETAILS_BYTES: Final = 2000
"""Details travel in a trailer, whose size clients bound; each byte may become three there."""


def code_of(fault: TautenError) -> Any:
    """The status code for an error that was raised on purpose: the one that its HTTP status stands for."""
    return _CODES.get(fault.http_status, grpc.StatusCode.INTERNAL)


def details_of(fault: BaseException) -> str:
    """Its message, cut to what fits into a trailer."""
    return str(fault).encode("utf-8", "replace")[:_DETAILS_BYTES].decode("utf-8", "ignore")


def trailers_of(fault: TautenError) -> Pairs:
    """Where trying again can help: when."""
    return _WHEN if fault.http_status in _TRY_AGAIN else ()


class DeadlineExceeded(ServeError):
    """A request's own deadline has passed."""

    http_status = 504
