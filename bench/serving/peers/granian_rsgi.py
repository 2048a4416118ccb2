"""A bare application on granian's own interface (RSGI): the baseline."""

from __future__ import annotations

from typing import Any

from served_model import ServedModel

model = ServedModel()
JSON = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    body = await protocol()
    length = scope.headers.get("inference-header-content-length")
    if length is None:
        protocol.response_bytes(200, JSON, model.answer_json(body))
        return
    answer, head = model.answer_binary(body, int(length))
    headers = [("content-type", "application/octet-stream"), ("inference-header-content-length", str(head))]
    protocol.response_bytes(200, headers, answer)
