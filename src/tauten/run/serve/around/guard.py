"""A server for those alone who know its token (RFC 6750)."""

from __future__ import annotations

import hmac
from typing import Final

from tauten.run.serve.protocol.http import Handler, Respond, Ticket
from tauten.run.serve.protocol.messages import Request, error_response

OPEN: Final = frozenset((b"/v2/health/live", b"/v2/health/ready"))
"""What is answered to anyone: those who look whether a server lives have no token, and learn nothing else."""

_CHALLENGE: Final = ((b"WWW-Authenticate", b'Bearer realm="tauten"'),)


class Guarded:
    """Hands on requests that carry ``token``, and answers 401 to others."""

    def __init__(self, handler: Handler, token: str) -> None:
        self._handler = handler
        self._token = token.encode()

    def __call__(self, request: Request, respond: Respond) -> Ticket | None:
        head = request.head
        if head.target in OPEN or self.admits(head.headers.get(b"authorization")):
            return self._handler(request, respond)
        respond(
            error_response(
                401, "expected the header 'Authorization: Bearer TOKEN' with this server's token", _CHALLENGE
            )
        )
        return None

    def admits(self, header: bytes | None) -> bool:
        """Whether an ``Authorization`` header holds the token."""
        return admits(header, self._token)


def admits(header: bytes | None, token: bytes) -> bool:
    """Whether an ``Authorization`` header holds ``token``; as long for a wrong one as for another wrong one."""
    scheme, _, came = (header or b"").partition(b" ")
    return hmac.compare_digest(came.strip(), token) and scheme.lower() == b"bearer"
