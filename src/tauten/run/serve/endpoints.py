"""Which path answers what: the Open Inference Protocol V2 over HTTP, and ``/metrics``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter_ns, time
from typing import Any
from urllib.parse import unquote_to_bytes

from tauten.errors import EngineError, InputError, NotFound, Overloaded, TautenError
from tauten.run.serve.metrics import CONTENT_TYPE, Metrics, statistics_document
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.messages import (
    BINARY_TYPE,
    JSON_TYPE,
    Request,
    Response,
    error_response,
    fault_response,
    json_response,
)
from tauten.run.serve.protocol.metadata import model_config, model_metadata, server_metadata
from tauten.run.serve.protocol.v2 import HEADER_LENGTH, InferResponse, decode_request, encode_response
from tauten.run.serve.repository import Repository

Answer = Response | Coroutine[Any, Any, Response]
Endpoint = Callable[[Request], Answer]
Methods = dict[bytes, Endpoint]

log = logging.getLogger("tauten.serve")

_HEADER_LENGTH = HEADER_LENGTH.lower().encode("ascii")


class Endpoints:
    """Answers one request. Paths are looked up whole; what is not there is taken apart to say what is wrong."""

    def __init__(self, repository: Repository, version: str, instances: int) -> None:
        self._repository = repository
        self._metrics = Metrics(repository)
        self._instances = instances
        self.draining = False
        self._routes: dict[bytes, Methods] = {
            b"/v2": _get(lambda: server_metadata(version)),
            b"/v2/health/live": {b"GET": lambda request: Response(200)},
            b"/v2/health/ready": {b"GET": lambda request: self._ready(None)},
            b"/metrics": {b"GET": lambda request: Response(200, (self._metrics.text(),), CONTENT_TYPE)},
        }
        for model in repository:
            for path in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
                for action, methods in self._of_model(model).items():
                    self._routes[path.encode("ascii") + action] = methods

    def __call__(self, request: Request) -> Answer:
        """The answer, now or later; errors that are raised on purpose become their status."""
        methods = self._routes.get(request.target)
        try:
            if methods is None:
                methods = self._find(request.target)
            endpoint = methods.get(request.method)
            if endpoint is None and request.method == b"HEAD":
                endpoint = methods.get(b"GET")
            if endpoint is None:
                return _not_allowed(request.method, methods)
            return endpoint(request)
        except TautenError as fault:
            return fault_response(fault)

    def _of_model(self, model: ServedModel) -> dict[bytes, Methods]:
        metadata = model_metadata(model.name, model.version, model.platform, model.inputs, model.outputs)
        config = model_config(model.name, model.platform, model.max_batch, self._instances, model.inputs, model.outputs)
        return {
            b"": _get(lambda: metadata),
            b"/ready": {b"GET": lambda request: self._ready(model)},
            b"/config": _get(lambda: config),
            b"/stats": _get(partial(statistics_document, model)),
            b"/infer": {b"POST": partial(infer, model)},
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


async def infer(model: ServedModel, request: Request) -> Response:
    """Decode, run and encode one request; what it took goes into the model's statistics."""
    started = perf_counter_ns()
    statistics = model.statistics
    try:
        asked = decode_request(request.body, _header_length(request), model.inputs, model.outputs)
        decoded = perf_counter_ns()
        outcome = await model.infer(asked.inputs)
        computed = perf_counter_ns()
        answer = InferResponse(model.name, model.version, outcome.outputs, asked.id)
        message = encode_response(answer, asked.outputs)
    except TautenError as fault:
        statistics.failed(_reason(fault), perf_counter_ns() - started)
        if isinstance(fault, EngineError):
            log.error("model %s failed", model.name, exc_info=fault)
        return fault_response(fault)
    except BaseException as fault:
        reason = "CANCELED" if isinstance(fault, asyncio.CancelledError) else "OTHER"
        statistics.failed(reason, perf_counter_ns() - started)
        raise
    ended = perf_counter_ns()
    durations = (ended - started, outcome.queue_ns, decoded - started, outcome.infer_ns, ended - computed)
    statistics.succeeded(_samples(model, asked.inputs), durations, int(time() * 1000))
    if message.header_length is None:
        return Response(200, tuple(message.parts), JSON_TYPE)
    length = b"%d" % message.header_length
    return Response(200, tuple(message.parts), BINARY_TYPE, ((HEADER_LENGTH.encode("ascii"), length),))


def _header_length(request: Request) -> int | None:
    encoding = request.headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise InputError(f"expected a body without Content-Encoding, got {encoding.decode('latin-1')!r:.80}")
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise InputError(f"{HEADER_LENGTH}: expected a count of bytes, got {text.decode('latin-1')!r:.80}")
    return int(text)


def _samples(model: ServedModel, inputs: dict[str, Any]) -> int:
    """How many samples a request holds: the size of the batch dimension, 1 where the model has none."""
    for spec in model.inputs:
        if spec.batch_axis is not None:
            return int(inputs[spec.name].shape[spec.batch_axis])
    return 1


def _reason(fault: TautenError) -> str:
    if isinstance(fault, Overloaded):
        return "REJECTED"
    return "BACKEND" if isinstance(fault, EngineError) else "OTHER"


def _get(document: Callable[[], object]) -> Methods:
    return {b"GET": lambda request: json_response(document())}


def _not_allowed(method: bytes, methods: Methods) -> Response:
    allowed = [*methods, b"HEAD"] if b"GET" in methods else [*methods]
    names = b", ".join(allowed)
    message = f"expected {names.decode()}, got {method.decode()}"
    return error_response(405, message, ((b"Allow", names),))
