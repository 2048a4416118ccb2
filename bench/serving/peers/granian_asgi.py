"""The same bare application on ASGI."""

from __future__ import annotations

from typing import Any

from served_model import ServedModel

model = ServedModel()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    parts, more = [], True
    while more:
        event = await receive()
        parts.append(event["body"])
        more = event.get("more_body", False)
    body = b"".join(parts)
    headers = [(b"content-type", b"application/json")]
    length = dict(scope["headers"]).get(b"inference-header-content-length")
    if length is None:
        answer = model.answer_json(body)
    else:
        answer, head = model.answer_binary(body, int(length))
        headers = [(b"content-type", b"application/octet-stream"), (b"inference-header-content-length", b"%d" % head)]
    headers.append((b"content-length", b"%d" % len(answer)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
