"""What a server and its models say of themselves over gRPC: the same documents as over HTTP, as messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from tauten.errors import NotFound, NotReady
from tauten.run.serve.manager import Manager
from tauten.run.serve.protocol.grpc.codec import parse
from tauten.run.serve.protocol.grpc.messages import INFERENCE, MESSAGES
from tauten.run.serve.protocol.grpc.schema import Method
from tauten.run.serve.protocol.metadata import model_config, model_metadata, server_metadata
from tauten.run.serve.repository import Repository
from tauten.run.serve.repository_endpoints import refuse_overrides
from tauten.run.serve.statistics_document import statistics_document

Document = dict[str, Any]

_METHODS: Final = MESSAGES.methods(INFERENCE)


class GrpcEndpoints:
    """Each method: bytes of a request to bytes of the response. Those that answer at once are in a dict, by name."""

    def __init__(
        self,
        repository: Repository,
        manager: Manager,
        version: str,
        stopping: Callable[[], bool],
    ) -> None:
        self._repository = repository
        self._version = version
        self._stopping = stopping
        self._manager = manager
        self._changes: set[asyncio.Future[None]] = set()
        answers: dict[str, Callable[[Any], Document]] = {
            "ServerLive": lambda message: {"live": True},
            "ServerMetadata": lambda message: server_metadata(self._version, managed=manager.managed),
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
        }
        self.at_once = {name: _answering(_METHODS[name], answer) for name, answer in answers.items()}

    async def server_ready(self, data: bytes) -> bytes:
        """ServerReady; of all servers where several share the port, as the next two."""
        together = self._manager.together
        ready = self._ready() and (together is None or await together.ready())
        return _response(_METHODS["ServerReady"], {"ready": ready})

    async def model_ready(self, data: bytes) -> bytes:
        """ModelReady."""
        method, together = _METHODS["ModelReady"], self._manager.together
        asked = parse(method.request, data)
        ready = self._model_ready(asked.name, asked.version)
        ready = ready and (together is None or await together.ready(asked.name, asked.version or None))
        return _response(method, {"ready": ready})

    async def statistics(self, data: bytes) -> bytes:
        """ModelStatistics."""
        method, together = _METHODS["ModelStatistics"], self._manager.together
        asked = parse(method.request, data)
        if together is not None:
            return _response(method, await together.statistics(asked.name, asked.version or None))
        return _response(method, self._statistics(asked))

    async def index(self, data: bytes) -> bytes:
        """RepositoryIndex."""
        method = _METHODS["RepositoryIndex"]
        models = await self._manager.index(ready=parse(method.request, data).ready)
        return _response(method, {"models": models})

    async def load(self, data: bytes) -> bytes:
        """RepositoryModelLoad. It goes on where the client leaves."""
        return await self._change("RepositoryModelLoad", self._manager.load, data)

    async def unload(self, data: bytes) -> bytes:
        """RepositoryModelUnload. It goes on where the client leaves."""
        return await self._change("RepositoryModelUnload", self._manager.unload, data)

    async def _change(self, name: str, change: Callable[[str], Coroutine[Any, Any, None]], data: bytes) -> bytes:
        message = parse(_METHODS[name].request, data)
        refuse_overrides(message.parameters)
        task = asyncio.ensure_future(change(message.model_name))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)
        return b""

    async def serves(self, service: str) -> bool | None:
        """Whether a service is ready, for health checks: "" is the server, a model's name is that model."""
        name = "" if service == INFERENCE.service_name else service
        if not name:
            ready = self._ready()
        else:
            try:
                ready = self._repository.find(name).ready and not self._stopping()
            except NotReady:
                return False
            except NotFound:
                return None
        together = self._manager.together
        return ready and (together is None or await together.ready(name))

    def _ready(self) -> bool:
        return self._repository.ready and not self._stopping()

    def _model_ready(self, name: str, version: str) -> bool:
        """A model that is not there is not ready, as clients that wait for one expect."""
        try:
            return self._repository.find(name, version or None).ready and not self._stopping()
        except (NotFound, NotReady):
            return False

    def _metadata(self, message: Any) -> Document:
        model = self._repository.find(message.name, message.version or None)
        versions = [other.version for other in self._repository.versions(model.name)]
        return model_metadata(model.name, versions, model.platform, model.inputs, model.outputs)

    def _config(self, message: Any) -> Document:
        model = self._repository.find(message.name, message.version or None)
        return {
            "config": model_config(
                model.name, model.platform, model.max_batch, model.instances, model.inputs, model.outputs, model.ragged
            )
        }

    def _statistics(self, message: Any) -> Document:
        if message.name:
            return statistics_document(self._repository.find(message.name, message.version or None))
        return statistics_document(*self._repository)


def _answering(method: Method, answer: Callable[[Any], Document]) -> Callable[[bytes], bytes]:
    return lambda data: _response(method, answer(parse(method.request, data)))


def _response(method: Method, document: Document) -> bytes:
    """A document as the response of ``method``; what its message has no field for is left out."""
    data: bytes = ParseDict(document, method.response(), ignore_unknown_fields=True).SerializeToString()
    return data
