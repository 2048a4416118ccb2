"""Which path answers what: the Open Inference Protocol V2 over HTTP, ``/metrics``, ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from tauten.errors import NotFound, TautenError
from tauten.run.serve.infer import Infer
from tauten.run.serve.manager import Manager
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.http import Respond, Ticket
from tauten.run.serve.protocol.messages import (
    HTML_TYPE,
    Request,
    Response,
    error_response,
    fault_response,
    json_response,
)
from tauten.run.serve.protocol.metadata import model_config, model_metadata, server_metadata
from tauten.run.serve.repository import Repository
from tauten.run.serve.repository_endpoints import RepositoryEndpoints
from tauten.run.serve.settings import ServeSettings
from tauten.run.serve.statistics_document import statistics_document

if TYPE_CHECKING:
    from tauten.run.serve.metrics import Metrics
    from tauten.run.serve.together import Together

Endpoint = Callable[[Request, Respond], Ticket | None]
Methods = dict[bytes, Endpoint]

log = logging.getLogger("tauten.serve")

_FAILED: Final = error_response(500, "internal error: the server's log has the details")
_METRICS_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_PAGE_HEADERS: Final = (
    (b"Content-Security-Policy", b"default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"),
    (b"X-Content-Type-Options", b"nosniff"),
)


class Endpoints:
    """Answers one request. Paths are looked up whole; what is not there is taken apart to say what is wrong."""

    def __init__(self, repository: Repository, manager: Manager, version: str, settings: ServeSettings) -> None:
        self._repository = repository
        self._settings = settings
        self._version = version
        self._management = RepositoryEndpoints(manager)
        self._managed = manager.managed
        self._infer: dict[ServedModel, Infer] = {}
        self._openapi: Response | None = None
        self._together: Together | None = None
        self.draining = False
        self._fixed: dict[bytes, Methods] = {
            b"/v2": _get(lambda: server_metadata(version, managed=manager.managed)),
            b"/v2/health/live": _get(lambda: {"live": True}),
            b"/v2/health/ready": _at_once(lambda: self._ready(None)),
            b"/v2/models/stats": _get(lambda: statistics_document(*repository)),
            b"/v2/repository/index": self._management.index,
            b"/metrics": _at_once(lambda: Response(200, (self.metrics_here(),), _METRICS_TYPE)),
            b"/openapi.json": _at_once(self._described),
            b"/docs": _at_once(_page),
        }
        self._routes: dict[bytes, Methods] = {}
        self._renew()
        repository.on_change(self._renew)

    def __call__(self, request: Request, respond: Respond) -> Ticket | None:
        """Answer ``request``, now or later; errors that are raised on purpose become their status."""
        head = request.head
        methods = self._routes.get(head.target)
        try:
            if methods is None:
                methods = self._find(head.target)
            endpoint = methods.get(head.method)
            if endpoint is None and head.method == b"HEAD":
                endpoint = methods.get(b"GET")
            if endpoint is not None:
                return endpoint(request, respond)
            respond(_not_allowed(head.method, methods))
        except TautenError as fault:
            respond(fault_response(fault))
        return None

    def _renew(self) -> None:
        """Routes to the models that are there now."""
        exact = self._settings.exact_batches
        self._infer = {model: self._infer.get(model) or Infer(model, exact=exact) for model in self._repository}
        routes = dict(self._fixed)
        for name in self._repository.names:
            versions = self._repository.versions(name)
            chosen = self._repository.find(name)
            for model in versions:
                paths = [f"/v2/models/{name}/versions/{model.version}"]
                if model is chosen:
                    paths.append(f"/v2/models/{name}")
                for action, methods in self._of_model(model, [other.version for other in versions]).items():
                    routes.update({path.encode("ascii") + action: methods for path in paths})
        self._routes = routes
        self._openapi = None

    def metrics_here(self) -> bytes:
        """The metrics of this server alone, where several share a port."""
        return self.metrics.text()

    @cached_property
    def metrics(self) -> Metrics:
        """This server's figures. Made when they are first wanted: what writes them takes long to import."""
        from tauten.run.serve.metrics import Metrics

        return Metrics(self._repository)

    def join(self, together: Together) -> None:
        """Answer for all servers that share the port."""
        self._together = together

        async def metrics() -> Response:
            return Response(200, (await together.metrics(),), _METRICS_TYPE)

        async def statistics() -> Response:
            return json_response(await together.statistics())

        self._fixed[b"/metrics"] = _later(metrics)
        self._fixed[b"/v2/models/stats"] = _later(statistics)
        self._fixed[b"/v2/health/ready"] = _later(partial(self._all_ready, together, None))
        self._renew()

    def _of_model(self, model: ServedModel, versions: list[str]) -> dict[bytes, Methods]:
        metadata = model_metadata(model.name, versions, model.platform, model.inputs, model.outputs)

        def config() -> dict[str, Any]:
            return model_config(
                model.name, model.platform, model.max_batch, model.instances, model.inputs, model.outputs, model.ragged
            )

        return {
            b"": _get(lambda: metadata),
            b"/ready": _at_once(lambda: self._ready(model)),
            b"/config": _get(config),
            b"/stats": _get(partial(statistics_document, model)),
            b"/infer": {b"POST": self._infer[model]},
            **({} if self._together is None else self._of_all(self._together, model)),
        }

    def _of_all(self, together: Together, model: ServedModel) -> dict[bytes, Methods]:
        """What is asked of a model in every server that shares the port."""

        async def statistics() -> Response:
            return json_response(await together.statistics(model.name, model.version))

        return {b"/ready": _later(partial(self._all_ready, together, model)), b"/stats": _later(statistics)}

    def _described(self) -> Response:
        """The OpenAPI document, made when it is asked for first."""
        if self._openapi is None:
            from tauten.run.serve.protocol.openapi import Described, openapi_document

            models = [
                Described(
                    model.name,
                    model.version,
                    model is self._repository.find(model.name),
                    model.platform,
                    tuple(model.inputs),
                    tuple(model.outputs),
                )
                for model in self._repository
            ]
            document = openapi_document(self._version, models, managed=self._managed)
            self._openapi = json_response(document)
        return self._openapi

    def _find(self, target: bytes) -> Methods:
        """The route of a target that has a query or escapes, or a ``NotFound`` that names what is missing."""
        path = target.partition(b"?")[0]
        if path.startswith((b"http://", b"https://")):
            # The absolute form, which a server must take as well (RFC 9112, 3.2.2).
            path = b"/" + path.split(b"/", 3)[3] if path.count(b"/") > 2 else b"/"
        parts = [unquote_to_bytes(part) for part in path.rstrip(b"/").split(b"/")]
        methods = self._routes.get(b"/".join(parts))
        if methods is not None and not any(b"/" in part for part in parts):  # an escaped slash separates nothing
            return methods
        names = [part.decode("utf-8", "replace") for part in parts]
        if names[:4] == ["", "v2", "repository", "models"] and len(names) == 6:
            found = self._management.of_model(names[4], names[5])
            if found is not None:
                return found
        if names[:3] == ["", "v2", "models"] and len(names) > 3:
            self._repository.find(names[3], names[5] if len(names) > 5 and names[4] == "versions" else None)
        raise NotFound(f"nothing at {path.decode('latin-1')!r:.200}")

    async def _all_ready(self, together: Together, model: ServedModel | None) -> Response:
        ready = await (together.ready() if model is None else together.ready(model.name, model.version))
        return self._ready(model, ready)

    def _ready(self, model: ServedModel | None, others: bool = True) -> Response:
        ready = self._repository.ready if model is None else model.ready
        if ready and others and not self.draining:
            return json_response({"ready": True} if model is None else {"name": model.name, "ready": True})
        return error_response(503, "the server is stopping" if self.draining else "not ready")


def _get(document: Callable[[], object]) -> Methods:
    return _at_once(lambda: json_response(document()))


def _at_once(answer: Callable[[], Response]) -> Methods:
    def endpoint(request: Request, respond: Respond) -> None:
        respond(answer())

    return {b"GET": endpoint}


def _later(answer: Callable[[], Awaitable[Response]]) -> Methods:
    """What has to be asked of others first."""

    async def answered() -> Response:
        try:
            return await answer()
        except TautenError as fault:
            return fault_response(fault)

    def endpoint(request: Request, respond: Respond) -> Ticket:
        def tell(done: asyncio.Task[Response]) -> None:
            if done.cancelled():
                return
            fault = done.exception()
            if fault is not None:
                log.error("%r failed", request.head.target.decode("latin-1"), exc_info=fault)
            respond(_FAILED if fault is not None else done.result())

        task = asyncio.get_running_loop().create_task(answered())
        task.add_done_callback(tell)
        return task

    return {b"GET": endpoint}


def _page() -> Response:
    page = files("tauten.run.serve.protocol").joinpath("docs.html").read_bytes()
    return Response(200, (page,), HTML_TYPE, _PAGE_HEADERS)


def _not_allowed(method: bytes, methods: Methods) -> Response:
    allowed = [*methods, b"HEAD"] if b"GET" in methods else [*methods]
    names = b", ".join(allowed)
    message = f"expected {names.decode()}, got {method.decode()}"
    return error_response(405, message, ((b"Allow", names),))
