"""Inference over gRPC: messages become calls, and the calls' results messages.

The way between is that of requests over HTTP: the same ``ServedModel.submit``, the same statistics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

from grpc.aio import EOF

from tauten.core.tensor import Array
from tauten.errors import EngineError, NotReady, Overloaded, TautenError
from tauten.run.serve.call import Call
from tauten.run.serve.infer import EXPLAIN, count_answered, explanation, reason_of
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.grpc.codec import (
    Asked,
    Decoder,
    encode_response,
    encode_streamed,
    encode_streamed_fault,
    parse_request,
)
from tauten.run.serve.protocol.grpc.status import DeadlineExceeded, details_of
from tauten.run.serve.repository import Repository

log = logging.getLogger("tauten.serve")

STREAM_DEPTH: Final = 64
"""Requests of one stream that are under way at once; further ones are read when the first of these is answered."""

_EXPLAIN: Final = EXPLAIN.lower()
_FINAL: Final = "triton_final_response"


class _Pending(NamedTuple):
    """A request that was handed on. ``limit_ns`` is when its own deadline passes, 0 for none."""

    model: ServedModel
    call: Call
    asked: Asked
    id: str
    answered: asyncio.Future[None]
    decoded_ns: int
    limit_ns: int


class GrpcInfer:
    """The methods ModelInfer and ModelStreamInfer. Where it is ``exact``, requests share no batches."""

    def __init__(self, repository: Repository, *, exact: bool = False) -> None:
        self._repository = repository
        self._exact = exact
        self._decoders: WeakKeyDictionary[ServedModel, Decoder] = WeakKeyDictionary()

    async def infer(self, data: bytes, context: Any) -> bytes:
        """The answer to one request. Raises its fault; cancelling it cancels the call."""
        pending = self._submit(data, context)
        return await self._finish(pending, explain=_explains(context))

    async def stream(self, context: Any, stopping: asyncio.Event) -> None:
        """Answer the requests of one stream, in order, until it ends.

        A request that fails is answered with its message in ``error_message``, and the stream goes on. Where the server
        is ``stopping``, what has been read is answered, and then ``NotReady`` is raised.
        """
        explain = _explains(context)
        places = asyncio.Semaphore(STREAM_DEPTH)
        waiting: asyncio.Queue[_Pending | TautenError | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(context, places, waiting))
        stopper = asyncio.create_task(_cancel_when(stopping, reader))
        reader.add_done_callback(lambda task: waiting.put_nowait(None))
        try:
            while (item := await waiting.get()) is not None:
                await context.write(await self._streamed(item, explain=explain))
                places.release()
            if reader.cancelled():
                raise NotReady("the server is stopping")
            reader.result()
        finally:
            reader.cancel()
            stopper.cancel()
            while not waiting.empty():
                if isinstance(left := waiting.get_nowait(), _Pending):
                    self._given_up(left)

    async def _read(
        self, context: Any, places: asyncio.Semaphore, waiting: asyncio.Queue[_Pending | TautenError | None]
    ) -> None:
        """Hand on the requests of a stream as they come. Between its waits it holds none."""
        while True:
            await places.acquire()
            data = await context.read()
            if data is EOF:
                return
            try:
                waiting.put_nowait(self._submit(data, context))
            except TautenError as fault:
                waiting.put_nowait(fault)

    async def _streamed(self, item: _Pending | TautenError, *, explain: bool) -> bytes:
        try:
            if isinstance(item, TautenError):
                raise item
            return encode_streamed(await self._finish(item, explain=explain, in_stream=True))
        except TautenError as fault:
            return encode_streamed_fault(details_of(fault), item.id if isinstance(item, _Pending) else "")

    def _submit(self, data: bytes, context: Any) -> _Pending:
        """Decode a request and hand it on. Raises ``NotFound``, ``InputError`` and ``Overloaded``."""
        started = perf_counter_ns()
        message, raw = parse_request(data)
        model = self._repository.find(message.model_name, message.model_version or None)
        try:
            if model.full:  # before it costs anything more
                raise Overloaded("the queue is full: try again later")
            decode = self._decoders.get(model)
            if decode is None:
                decode = self._decoders[model] = Decoder(model.inputs, model.outputs, batches=not self._exact)
            asked = decode(message, raw)
        except TautenError as fault:
            model.statistics.failed(reason_of(fault), perf_counter_ns() - started)
            raise
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call = Call(asked.buffers, asked.shapes, asked.rows, asked.group, _settle, answered)
        call.arrived_ns = started
        call.priority = asked.priority
        limits = [started + asked.timeout_ns] if asked.timeout_ns else []
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s < 1e6:
            limits.append(started + int(remaining_s * 1e9))
        call.deadline_ns = min(limits, default=0)
        pending = _Pending(model, call, asked, message.id, answered, perf_counter_ns(), call.deadline_ns)
        model.submit(call)
        return pending

    async def _finish(self, pending: _Pending, *, explain: bool, in_stream: bool = False) -> bytes:
        """The answer to a request, as bytes, when it is there; what it took goes into the statistics."""
        model, call, asked = pending.model, pending.call, pending.asked
        statistics = model.statistics
        try:
            await pending.answered
            if call.fault is not None:
                raise call.fault
            parameters: dict[str, bool | int | str] = _explanation(pending) if explain else {}
            if in_stream and asked.wants_final:
                parameters[_FINAL] = True
            results = dict(
                zip((spec.name for spec in model.outputs), cast("Sequence[Array]", call.result), strict=True)
            )
            outputs = [(name, results[name]) for name in asked.outputs]
            data = encode_response(model.name, model.version, pending.id, outputs, parameters)
        except asyncio.CancelledError:
            self._given_up(pending)
            raise
        except Exception as fault:
            ended = perf_counter_ns()
            statistics.failed(reason_of(fault), ended - call.arrived_ns)
            if isinstance(fault, EngineError):
                log.error("model %s failed", model.name, exc_info=fault)
            if isinstance(fault, Overloaded | NotReady) and 0 < pending.limit_ns <= ended:
                raise DeadlineExceeded(f"the request's own deadline has passed: {fault}") from fault
            raise
        count_answered(statistics, call, pending.decoded_ns)
        return data

    def _given_up(self, pending: _Pending) -> None:
        """Nobody waits for this answer any more."""
        pending.call.cancel()
        pending.model.statistics.failed("CANCELED", perf_counter_ns() - pending.call.arrived_ns)


def _settle(call: Call) -> None:
    """Told by the worker: ``call`` has its result, or a fault."""
    answered: asyncio.Future[None] = call.context
    if not answered.done():
        answered.set_result(None)


def _explains(context: Any) -> bool:
    return any(name == _EXPLAIN for name, _ in context.invocation_metadata() or ())


def _explanation(pending: _Pending) -> dict[str, bool | int | str]:
    """What HTTP says in headers, as parameters: those every client can read."""
    facts = explanation(pending.call, pending.decoded_ns)
    return {name.lower().replace("-", "_"): value for name, value in facts.items()}


async def _cancel_when(stopping: asyncio.Event, reader: asyncio.Task[None]) -> None:
    await stopping.wait()
    reader.cancel()
