"""Inference over gRPC: messages become calls, and the calls' results messages.

The way between is that of requests over HTTP: the same ``ServedModel.submit``, the same statistics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Final, NamedTuple, cast

from grpc.aio import EOF

from tauten.core.tensor import Array
from tauten.errors import EngineError, NotReady, Overloaded, TautenError
from tauten.run.serve.call import Call
from tauten.run.serve.grpc_rpcs import Rpc
from tauten.run.serve.infer import EXPLAIN, count_answered, explanation, reason_of
from tauten.run.serve.model import ServedModel
from tauten.run.serve.pace import Pace
from tauten.run.serve.protocol.grpc.answers import Encoder, encode_streamed, encode_streamed_fault
from tauten.run.serve.protocol.grpc.codec import Asked, Decoder, parse_request
from tauten.run.serve.protocol.grpc.seen import SeenRequests, cut
from tauten.run.serve.protocol.grpc.status import DeadlineExceeded, details_of
from tauten.run.serve.repository import Repository

log = logging.getLogger("tauten.serve")

STREAM_DEPTH: Final = 64
"""Requests of one stream that are under way at once; further ones are read when the first of these is answered."""

REFUSALS_A_SECOND: Final = 100
"""A tenth of those over HTTP: a refusal costs gRPC's library ten times as much."""

_EXPLAIN: Final = EXPLAIN.lower()
_FINAL: Final = "triton_final_response"


class _Way(NamedTuple):
    """A model, and how its requests are read and its answers written."""

    model: ServedModel
    decode: Decoder
    encode: Encoder


class _Pending(NamedTuple):
    """A request that was handed on. ``limit_ns`` is when its own deadline passes, 0 for none."""

    rpc: Rpc
    way: _Way
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
        self._pace = Pace(asyncio.get_running_loop(), rate=REFUSALS_A_SECOND)
        self._forget()
        repository.on_change(self._forget)

    async def infer(self, data: bytes, rpc: Rpc) -> bytes:
        """The answer to one request. Raises its fault; cancelling it cancels the call."""
        try:
            return await self._finish(self._submit(data, rpc), explain=_explains(rpc))
        except Overloaded:
            await self._pace.turn()
            raise

    async def stream(self, rpc: Rpc, stopping: asyncio.Event) -> None:
        """Answer the requests of one stream, in order, until it ends.

        A request that fails is answered with its message in ``error_message``, and the stream goes on. Where the server
        is ``stopping``, what has been read is answered, and then ``NotReady`` is raised.
        """
        explain = _explains(rpc)
        places = asyncio.Semaphore(STREAM_DEPTH)
        waiting: asyncio.Queue[_Pending | TautenError | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(rpc, places, waiting))
        stopper = asyncio.create_task(_cancel_when(stopping, reader))
        reader.add_done_callback(lambda task: waiting.put_nowait(None))
        try:
            while (item := await waiting.get()) is not None:
                await rpc.write(await self._streamed(item, explain=explain))
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
        self, rpc: Rpc, places: asyncio.Semaphore, waiting: asyncio.Queue[_Pending | TautenError | None]
    ) -> None:
        """Hand on the requests of a stream as they come. Between its waits it holds none.

        One that is refused is told so at once, and the next is read when a refusal may be said: a client that finds its
        stream full sends no faster.
        """
        while True:
            await places.acquire()
            data = await rpc.read()
            if data is EOF:
                return
            try:
                waiting.put_nowait(self._submit(data, rpc))
            except TautenError as fault:
                waiting.put_nowait(fault)
                if isinstance(fault, Overloaded):
                    await self._pace.turn()

    async def _streamed(self, item: _Pending | TautenError, *, explain: bool) -> bytes:
        try:
            if isinstance(item, TautenError):
                raise item
            return encode_streamed(await self._finish(item, explain=explain, in_stream=True))
        except TautenError as fault:
            return encode_streamed_fault(details_of(fault), item.id if isinstance(item, _Pending) else "")

    def _forget(self) -> None:
        """Other models are there, or the same under other names: nothing that is known of requests holds."""
        self._ways: dict[ServedModel, _Way] = {}
        self._seen = SeenRequests[_Way]()

    def _submit(self, data: bytes, rpc: Rpc) -> _Pending:
        """Decode a request and hand it on. Raises ``NotFound``, ``NotReady``, ``InputError`` and ``Overloaded``."""
        started = perf_counter_ns()
        request_id = ""
        seen = self._seen.find(data)
        if seen is None:
            message, raw = parse_request(data)
            way = self._way(self._repository.find(message.model_name, message.model_version or None))
        else:
            way = seen.way
        model = way.model
        try:
            if model.full:  # before it costs anything more
                raise Overloaded("the queue is full: try again later")
            if seen is None:
                asked, buffers = way.decode(message, raw)
                request_id = message.id
                if not request_id:
                    self._seen.learn(data, way, asked)
            else:
                asked = seen.asked
                buffers = way.decode.again(asked, cut(data, seen.cuts))
        except TautenError as fault:
            model.statistics.failed(reason_of(fault), perf_counter_ns() - started)
            raise
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call = rpc.call = Call(buffers, asked.shapes, asked.rows, asked.group, _settle, answered)
        call.arrived_ns = started
        call.priority = asked.priority
        deadline_ns = rpc.deadline_ns(started)
        if asked.timeout_ns and not 0 < deadline_ns <= started + asked.timeout_ns:
            deadline_ns = started + asked.timeout_ns
        call.deadline_ns = deadline_ns
        pending = _Pending(rpc, way, call, asked, request_id, answered, perf_counter_ns(), deadline_ns)
        model.submit(call)
        return pending

    def _way(self, model: ServedModel) -> _Way:
        way = self._ways.get(model)
        if way is None:
            decode = Decoder(model.inputs, model.outputs, batches=not self._exact)
            way = self._ways[model] = _Way(model, decode, Encoder(model.name, model.version, model.outputs))
        return way

    async def _finish(self, pending: _Pending, *, explain: bool, in_stream: bool = False) -> bytes:
        """The answer to a request, as bytes, when it is there; what it took goes into the statistics."""
        way, call, asked = pending.way, pending.call, pending.asked
        model = way.model
        statistics = model.statistics
        try:
            await pending.answered
            if call.fault is not None:
                raise call.fault
            parameters: dict[str, bool | int | str] = _explanation(pending) if explain else {}
            if in_stream and asked.wants_final:
                parameters[_FINAL] = True
            data = way.encode(asked, cast("Sequence[Array]", call.result), pending.id, parameters)
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
        finally:
            if pending.rpc.answered is not None and not call.cancelled:
                pending.rpc.answered(call)
        count_answered(statistics, call, pending.decoded_ns)
        return data

    def _given_up(self, pending: _Pending) -> None:
        """Nobody waits for this answer any more."""
        pending.call.cancel()
        pending.way.model.statistics.failed("CANCELED", perf_counter_ns() - pending.call.arrived_ns)


def _settle(call: Call) -> None:
    """Told by the worker: ``call`` has its result, or a fault."""
    answered: asyncio.Future[None] = call.context
    if not answered.done():
        answered.set_result(None)


def _explains(rpc: Rpc) -> bool:
    return any(name == _EXPLAIN for name, _ in rpc.metadata)


def _explanation(pending: _Pending) -> dict[str, bool | int | str]:
    """What HTTP says in headers, as parameters: those every client can read."""
    facts = explanation(pending.call, pending.decoded_ns)
    return {name.lower().replace("-", "_"): value for name, value in facts.items()}


async def _cancel_when(stopping: asyncio.Event, reader: asyncio.Task[None]) -> None:
    await stopping.wait()
    reader.cancel()
