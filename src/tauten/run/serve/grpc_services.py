"""The two services that every gRPC server should have beside its own: health checks and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc.aio import EOF

from tauten.errors import NotFound
from tauten.run.serve.grpc_rpcs import Rpc
from tauten.run.serve.protocol.grpc.codec import parse
from tauten.run.serve.protocol.grpc.messages import MESSAGES
from tauten.run.serve.protocol.grpc.schema import Schema

_LOOK_S: Final = 0.5
_SERVING, _NOT_SERVING, _UNKNOWN = 1, 2, 3
_CHECK: Final = MESSAGES.of("grpc.health.v1.HealthCheckRequest")
_STATUS: Final = MESSAGES.of("grpc.health.v1.HealthCheckResponse")
_NOT_FOUND: Final = 5


class Health:
    """``grpc.health.v1.Health``. ``serves`` says of a service whether it is ready, ``None`` where there is no such."""

    def __init__(self, serves: Callable[[str], Awaitable[bool | None]]) -> None:
        self._serves = serves

    async def check(self, data: bytes) -> bytes:
        """Raises ``NotFound`` for a service that is not there."""
        service = parse(_CHECK, data).service
        status = await self._status(service)
        if status == _UNKNOWN:
            raise NotFound(f"no service or model named {service!r:.80}")
        return _serialized(_STATUS(status=status))

    async def watch(self, rpc: Rpc, stopping: asyncio.Event) -> None:
        """Tell the status, and each change of it, until the server is ``stopping``."""
        if (data := await rpc.read()) is EOF:
            return
        service = parse(_CHECK, data).service
        told = None
        while True:
            status = await self._status(service)
            if status != told:
                await rpc.write(_serialized(_STATUS(status=status)))
                told = status
            if stopping.is_set():
                return
            try:
                async with asyncio.timeout(_LOOK_S):
                    await stopping.wait()
            except TimeoutError:
                pass

    async def _status(self, service: str) -> int:
        serves = await self._serves(service)
        return _UNKNOWN if serves is None else _SERVING if serves else _NOT_SERVING


class Reflection:
    """``grpc.reflection`` in one version: what services there are, and the descriptors of their messages."""

    def __init__(self, schema: Schema, services: Sequence[str]) -> None:
        self._request = MESSAGES.of(f"{schema.package}.ServerReflectionRequest")
        self._response = MESSAGES.of(f"{schema.package}.ServerReflectionResponse")
        self._services = sorted(services)

    async def stream(self, rpc: Rpc, stopping: asyncio.Event) -> None:
        """Answer one stream of questions."""
        while (data := await rpc.read()) is not EOF and not stopping.is_set():
            await rpc.write(self.answer(data))

    def answer(self, data: bytes) -> bytes:
        """The answer to one question; what is not there is an answer as well."""
        request = parse(self._request, data)
        response = self._response(valid_host=request.host, original_request=request)
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                self._file(response, MESSAGES.pool.FindFileByName, request.file_by_filename)
            case "file_containing_symbol":
                self._file(response, MESSAGES.pool.FindFileContainingSymbol, request.file_containing_symbol)
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                if self._file(response, MESSAGES.pool.FindMessageTypeByName, name):
                    response.all_extension_numbers_response.base_type_name = name
            case _:
                _not_found(response, "no extension is declared here")
        return _serialized(response)

    def _file(self, response: Any, find: Callable[[str], Any], name: str) -> bool:
        """Put the descriptor of the file that ``find`` finds into ``response``."""
        try:
            found = find(name)
        except KeyError:
            _not_found(response, f"nothing named {name!r:.80}")
            return False
        proto = FileDescriptorProto()
        getattr(found, "file", found).CopyToProto(proto)
        response.file_descriptor_response.file_descriptor_proto.append(proto.SerializeToString())
        return True


def _not_found(response: Any, message: str) -> None:
    response.error_response.error_code = _NOT_FOUND
    response.error_response.error_message = message


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
