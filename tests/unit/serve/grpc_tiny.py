"""A gRPC server in a thread, and calls to it with bare bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import numpy as np

from tauten.run.engines.engine import Engine
from tauten.run.serve.around import Around
from tauten.run.serve.catalog import Catalog
from tauten.run.serve.grpc_server import GrpcServer
from tauten.run.serve.manager import Manager
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.datatypes import DATATYPES
from tauten.run.serve.protocol.grpc.messages import INFERENCE, MESSAGES
from tauten.run.serve.repository import Repository
from tauten.run.serve.server import loop_factory
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.tiny import WAIT_S

METHODS = MESSAGES.methods(INFERENCE)
REQUEST = METHODS["ModelInfer"].request
RESPONSE = METHODS["ModelInfer"].response


class RunningGrpc(NamedTuple):
    """A server in a thread, its models and its event loop."""

    server: GrpcServer
    models: Sequence[ServedModel]
    loop: asyncio.AbstractEventLoop
    port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop_soon(self) -> Any:
        """Begin to stop; the future's result is the number of RPCs that were cut."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop)


@contextmanager
def running_grpc(
    *engines: Engine,
    names: Sequence[str] = ("m", "n"),
    loops: Any = None,
    catalog: Catalog | None = None,
    **settings: Any,
) -> Iterator[RunningGrpc]:
    """A gRPC server of ``engines`` on a port that the system chose; what ``catalog`` finds can be loaded."""
    models = [ServedModel(name, engine) for name, engine in zip(names, engines, strict=False)]
    chosen = ServeSettings(**{"grpc_port": 0, "instances": 1, **settings})
    repository = Repository(models)
    manager = Manager(repository, chosen, lambda model: model.start(chosen), catalog)
    around = Around(chosen)
    server = GrpcServer(repository, chosen, "0", manager, around.spans)

    async def start() -> None:
        for model in models:
            model.start(chosen)
        await server.start()

    async def stop() -> None:
        await server.stop()
        await manager.close()
        around.close()
        for model in repository:
            model.stop()

    with asyncio.Runner(loop_factory=loops or loop_factory()) as runner:
        loop = runner.get_loop()
        runner.run(start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield RunningGrpc(server, models, loop, server.port)
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(WAIT_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(WAIT_S)


@contextmanager
def channel_to(server: RunningGrpc, **options: int) -> Iterator[Any]:
    """A connection of its own."""
    chosen = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), *options.items()]
    with grpc.insecure_channel(server.target, options=chosen) as channel:
        yield channel


def ask_grpc(channel: Any, name: str, message: Any = b"", **more: Any) -> Any:
    """The response to ``message``, bytes or a message, by one method of the inference service."""
    method = METHODS[name]
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return method.response.FromString(channel.unary_unary(method.path)(data, timeout=WAIT_S, **more))


def status_of(fault: grpc.RpcError) -> tuple[str, str]:
    """Name of the code, and the details."""
    call: Any = fault
    return call.code().name, call.details()


def request_of(
    arrays: dict[str, np.ndarray[Any, Any]], *, model: str = "m", typed: bool = False, outputs: Sequence[str] = ()
) -> Any:
    """A ``ModelInferRequest`` with these inputs."""
    message = REQUEST(model_name=model)
    for name, array in arrays.items():
        dtype = array.dtype.name
        tensor = message.inputs.add(name=name, datatype=DATATYPES[dtype], shape=array.shape)
        if typed:
            getattr(tensor.contents, field_of(dtype)).extend(array.ravel().tolist())
        else:
            message.raw_input_contents.append(array.tobytes())
    for output in outputs:
        message.outputs.add(name=output)
    return message


def field_of(dtype: str) -> str:
    """The field of typed contents for a type."""
    if dtype in ("int8", "int16", "int32", "uint8", "uint16", "uint32"):
        return "uint_contents" if dtype.startswith("u") else "int_contents"
    return {"bool": "bool", "float32": "fp32", "float64": "fp64", "bytes": "bytes"}.get(dtype, dtype) + "_contents"


def arrays_of(response: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of a ``ModelInferResponse`` by name."""
    types = {datatype: dtype for dtype, datatype in DATATYPES.items()}
    return {
        output.name: np.frombuffer(raw, types[output.datatype]).reshape(list(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def ones(rows: int = 1, **more: Any) -> Any:
    """A request of ones for ``Double``."""
    return request_of({"x": np.ones((rows, 3), np.float32)}, **more)
