"""Which path answers what: the Open Inference Protocol V2 over HTTP, and ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

from tauten.errors import NotFound, TautenError
from tauten.run.serve.infer import Infer
from tauten.run.serve.metrics import CONTENT_TYPE, Metrics, statistics_document
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.http import Respond, Ticket
from tauten.run.serve.protocol.messages import Request, Response, error_response, fault_response, json_response
from tauten.run.serve.protocol.metadata import model_config, model_metadata, server_metadata
from tauten.run.serve.repository import Repository
from tauten.run.serve.settings import ServeSettings

Endpoint = Callable[[Request, Respond], Ticket | None]
Methods = dict[bytes, Endpoint]


class Endpoints:
    """Answers one request. Paths are looked up whole; what is not there is taken apart to say what is wrong."""

    def __init__(self, repository: Repository, version: str, settings: ServeSettings) -> None:
        self._repository = repository
        self._metrics = Metrics(repository)
        self._settings = settings
        self.draining = False
        self._routes: dict[bytes, Methods] = {
            b"/v2": _get(lambda: server_metadata(version)),
            b"/v2/health/live": _at_once(lambda: Response(200)),
            b"/v2/health/ready": _at_once(lambda: self._ready(None)),
            b"/metrics": _at_once(lambda: Response(200, (self._metrics.text(),), CONTENT_TYPE)),
        }
        for model in repository:
            for path in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
                for action, methods in self._of_model(model).items():
                    self._routes[path.encode("ascii") + action] = methods

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

    def _of_model(self, model: ServedModel) -> dict[bytes, Methods]:
        metadata = model_metadata(model.name, model.version, model.platform, model.inputs, model.outputs)
        config = model_config(
            model.name, model.platform, model.max_batch, self._settings.instances, model.inputs, model.outputs
        )
        return {
            b"": _get(lambda: metadata),
            b"/ready": _at_once(lambda: self._ready(model)),
            b"/config": _get(lambda: config),
            b"/stats": _get(partial(statistics_document, model)),
            b"/infer": {b"POST": Infer(model, exact=self._settings.exact_batches)},
        }

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
        if names[:3] == ["", "v2", "models"] and len(names) > 3:
            self._repository.find(names[3], names[5] if len(names) > 5 and names[4] == "versions" else None)
        raise NotFound(f"nothing at {path.decode('latin-1')!r:.200}")

    def _ready(self, model: ServedModel | None) -> Response:
        ready = self._repository.ready if model is None else model.ready
        if ready and not self.draining:
            return Response(200)
        return error_response(503, "the server is stopping" if self.draining else "not ready")


def _get(document: Callable[[], object]) -> Methods:
    return _at_once(lambda: json_response(document()))


def _at_once(answer: Callable[[], Response]) -> Methods:
    def endpoint(request: Request, respond: Respond) -> None:
        respond(answer())

    return {b"GET": endpoint}


def _not_allowed(method: bytes, methods: Methods) -> Response:
    allowed = [*methods, b"HEAD"] if b"GET" in methods else [*methods]
    names = b", ".join(allowed)
    message = f"expected {names.decode()}, got {method.decode()}"
    return error_response(405, message, ((b"Allow", names),))
