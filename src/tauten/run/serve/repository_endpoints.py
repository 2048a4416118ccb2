"""The protocol's model repository extension over HTTP: what models there are, loading and unloading them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import orjson

from tauten.errors import InputError, TautenError
from tauten.run.serve.manager import Manager
from tauten.run.serve.protocol.http import Respond, Ticket
from tauten.run.serve.protocol.messages import Request, Response, error_response, fault_response, json_response
from tauten.run.serve.protocol.v2 import flag, kind

Endpoint = Callable[[Request, Respond], Ticket | None]

log = logging.getLogger("tauten.serve")

_NOT_HERE: Final = ("config", "file:")


def refuse_overrides(parameters: Iterable[str]) -> None:
    """Raise ``InputError`` where a request to load would say what the model is."""
    for key in parameters:
        if key.startswith(_NOT_HERE):
            raise InputError(f"the parameter {key!r:.80} is not taken: a model is served as its artifact says")


class RepositoryEndpoints:
    """The endpoints. What they do takes its time: others are answered meanwhile."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._tasks: set[asyncio.Task[None]] = set()
        self.index: dict[bytes, Endpoint] = {b"POST": self._index}

    def of_model(self, name: str, action: str) -> dict[bytes, Endpoint] | None:
        """What loads or unloads one model, whatever its name; ``None`` for another action."""
        if action == "load":
            return {b"POST": lambda request, respond: self._change(self._manager.load, name, request, respond)}
        if action == "unload":
            return {b"POST": lambda request, respond: self._change(self._manager.unload, name, request, respond)}
        return None

    def _index(self, request: Request, respond: Respond) -> None:
        ready = flag(_document(request), "ready", False)

        async def answer() -> Response:
            return json_response(await self._manager.index(ready=ready))

        self._later(answer, respond)

    def _change(self, change: Callable[[str], Awaitable[None]], name: str, request: Request, respond: Respond) -> None:
        parameters = _document(request).get("parameters", {})
        if not isinstance(parameters, dict):
            raise InputError(f"expected 'parameters' to be an object, got {kind(parameters)}")
        refuse_overrides(parameters)

        async def answer() -> Response:
            await change(name)
            return Response(200)

        self._later(answer, respond)

    def _later(self, answer: Callable[[], Awaitable[Response]], respond: Respond) -> None:
        """Answer when it is done. It goes on where the client leaves."""

        async def run() -> None:
            try:
                response = await answer()
            except TautenError as fault:
                response = fault_response(fault)
            except Exception as fault:
                log.error("a request to the repository failed", exc_info=fault)
                response = error_response(500, "internal error: the server's log has the details")
            respond(response)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _document(request: Request) -> dict[str, Any]:
    """The JSON object in a body; an empty body is one without members."""
    if not request.body:
        return {}
    try:
        document = orjson.loads(request.body)
    except orjson.JSONDecodeError as fault:
        raise InputError(f"expected a JSON object or no body: {fault}") from None
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object or no body, got {kind(document)}")
    return document
