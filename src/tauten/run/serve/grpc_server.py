"""The Open Inference Protocol V2 over gRPC, beside the HTTP server and in its event loop.

::

    GrpcServer ── Router (grpc_rpcs) ── GrpcInfer      ── ServedModel
       └───────── Rpcs                ├─ GrpcEndpoints ── metadata, configuration, statistics, repository
                                      └─ Health, Reflection (grpc_services)
"""

from __future__ import annotations

import asyncio
import logging
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc import aio

from tauten.errors import ServeError
from tauten.run.serve.grpc_endpoints import GrpcEndpoints
from tauten.run.serve.grpc_infer import GrpcInfer
from tauten.run.serve.grpc_rpcs import Around, Router, Rpc, Rpcs, Stream, Unary
from tauten.run.serve.grpc_services import Health, Reflection
from tauten.run.serve.manager import Manager
from tauten.run.serve.protocol.grpc.messages import HEALTH, INFERENCE, REFLECTIONS
from tauten.run.serve.protocol.limits import Limits
from tauten.run.serve.repository import Repository
from tauten.run.serve.settings import Security, ServeSettings
from tauten.run.serve.tls import server_context

if TYPE_CHECKING:
    from tauten.run.serve.around.spans import Spans

log = logging.getLogger("tauten.serve")

MAX_STREAMS: Final = 1024
"""RPCs that one connection may have under way."""

_KEEPALIVE_S: Final = 60
_KEEPALIVE_ANSWER_S: Final = 20
_COUNTING_S: Final = 0.1
_OPEN: Final = frozenset(
    {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    | {f"/{INFERENCE.service_name}/{name}" for name in ("ServerLive", "ServerReady")}
)
"""Where no token is asked for, and no span made: those who look whether a server is well have none, and look often."""


class GrpcServer:
    """Serves the models of a repository, which somebody else starts and stops, at the settings' ``grpc_port``.

    Who may ask, over what, how much one may cost and what is told of it are as for HTTP; ``spans`` makes the traces.
    Raises ``ConfigError`` for a certificate that cannot be read.
    """

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        version: str,
        manager: Manager,
        spans: Spans | None = None,
    ) -> None:
        self._spans = spans
        self._repository = repository
        self._settings = settings
        self._version = version
        self._credentials = _credentials(settings.security)
        self._manager = manager
        self._server: Any = None
        self._rpcs: Rpcs | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port that is open; the system's choice where the settings say 0."""
        if self._server is None:
            raise ServeError("the gRPC server is not started")
        return self._port

    async def start(self) -> None:
        """Open the port. Raises ``ServeError`` where that cannot be."""
        rpcs = Rpcs(self._settings.limits.receive_s)
        unary, streams = self._methods(rpcs)
        router = Router(rpcs, self._settings.security.token, _OPEN, self._around(frozenset((*unary, *streams))))
        router.add(unary, streams)
        server = aio.server(handlers=[router], options=_options(self._settings.limits, self._settings.fronts > 1))
        host, port = self._settings.host, self._settings.grpc_port or 0
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._credentials is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, self._credentials)
        except RuntimeError:
            raise ServeError(
                f"cannot listen for gRPC on {address}: is the port in use? "
                "Choose another with --grpc-port (0 lets the system choose)"
            ) from None
        await server.start()
        self._server, self._rpcs = server, rpcs

    async def stop(self) -> int:
        """Take no new RPC, finish those under way within ``drain_s``, and say how many had to be cut."""
        if self._server is None or self._rpcs is None:
            return 0
        server, rpcs = self._server, self._rpcs
        self._server = self._rpcs = None
        rpcs.stopping.set()
        drain_s = self._settings.drain_s
        # At the end of its own patience gRPC ends what is left, but does not say how much that was.
        stopped = asyncio.ensure_future(server.stop(drain_s + _COUNTING_S))
        await asyncio.wait({stopped}, timeout=drain_s)
        cut = 0 if stopped.done() else len(rpcs.open)
        await stopped
        if cut:
            log.warning("cut %d RPCs that had not finished within %g s", cut, drain_s)
        return cut

    def _around(self, paths: frozenset[str]) -> Around:
        """What stands around all that answers at ``paths`` and refuses at others."""
        arounds: list[Around] = []
        if self._spans is not None:
            from tauten.run.serve.grpc_traced import traced

            arounds.append(traced(self._spans, paths, _OPEN))
        if self._settings.observing.access_log:
            from tauten.run.serve.grpc_access import logged

            arounds.append(logged)
        return lambda path, handle: reduce(lambda inner, around: around(path, inner), arounds, handle)

    def _methods(self, rpcs: Rpcs) -> tuple[dict[str, Unary], dict[str, Stream]]:
        """What answers, by path: single messages, and streams."""
        settings = self._settings
        infer = GrpcInfer(self._repository, exact=settings.exact_batches)
        endpoints = GrpcEndpoints(self._repository, self._manager, self._version, rpcs.stopping.is_set)
        health = Health(endpoints.serves)
        services = [schema.service_name for schema in (INFERENCE, HEALTH, *REFLECTIONS)]
        ours = f"/{INFERENCE.service_name}/"
        unary: dict[str, Unary] = {ours + name: _at_once(answer) for name, answer in endpoints.at_once.items()}
        unary[ours + "ModelInfer"] = infer.infer
        unary[ours + "ServerReady"] = lambda data, rpc: endpoints.server_ready(data)
        unary[ours + "ModelReady"] = lambda data, rpc: endpoints.model_ready(data)
        unary[ours + "ModelStatistics"] = lambda data, rpc: endpoints.statistics(data)
        unary[ours + "RepositoryIndex"] = lambda data, rpc: endpoints.index(data)
        unary[ours + "RepositoryModelLoad"] = lambda data, rpc: endpoints.load(data)
        unary[ours + "RepositoryModelUnload"] = lambda data, rpc: endpoints.unload(data)
        unary[f"/{HEALTH.service_name}/Check"] = lambda data, rpc: health.check(data)
        streams: dict[str, Stream] = {
            ours + "ModelStreamInfer": infer.stream,
            f"/{HEALTH.service_name}/Watch": health.watch,
        }
        for schema in REFLECTIONS:
            streams[f"/{schema.service_name}/ServerReflectionInfo"] = Reflection(schema, services).stream
        return unary, streams


def _credentials(security: Security) -> Any:
    """What encrypts connections; ``None`` where they are not."""
    if security.certificate is None:
        return None
    server_context(security.certificate, security.key)  # says what is wrong, which gRPC does not
    pair = ((security.key or security.certificate).read_bytes(), security.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair])


def _at_once(answer: Any) -> Unary:
    async def respond(data: bytes, rpc: Rpc) -> bytes:
        found: bytes = answer(data)
        return found

    return respond


def _options(limits: Limits, shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_head_bytes),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_ANSWER_S * 1000),
        # Elsewhere than among fronts a second server on the same port is an error, and not half of the requests.
        ("grpc.so_reuseport", int(shared)),
    ]
