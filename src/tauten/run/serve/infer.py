"""Answers inference requests: bytes to a call, and the call's result to bytes. Plain calls, in the event loop.

The two ends of the way are the costly ones for a small model, so what repeats from request to request is remembered:
a ``Decoder`` remembers what a request says beside its numbers, and with it stands what the answers to it begin with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from functools import partial
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, cast

from tauten.core.tensor import Array
from tauten.errors import EngineError, InputError, NotReady, Overloaded, TautenError
from tauten.run.serve.call import Call
from tauten.run.serve.model import ServedModel
from tauten.run.serve.pace import Pace
from tauten.run.serve.protocol.datatypes import DATATYPES, dump_numbers
from tauten.run.serve.protocol.http import Respond, Ticket
from tauten.run.serve.protocol.layout import Decoder, Layout
from tauten.run.serve.protocol.messages import (
    BINARY_TYPE,
    JSON_TYPE,
    Head,
    Request,
    Response,
    error_response,
    fault_response,
)
from tauten.run.serve.protocol.v2 import HEADER_LENGTH, InferResponse, encode_response
from tauten.run.serve.statistics import Statistics

EXPLAIN: Final = "Tauten-Explain"
"""A request header: with it, the answer's headers say how it came about."""

log = logging.getLogger("tauten.serve")

_HEADER_LENGTH: Final = HEADER_LENGTH.lower().encode("ascii")
_EXPLAIN: Final = EXPLAIN.lower().encode("ascii")
_FULL: Final = error_response(429, "the queue is full: try again later")
_NOTED: Final = 16
_ONE_PIECE: Final = 64 * 2**10


class _Notes(NamedTuple):
    """What inference reads in a request's head."""

    header_length: int | None
    explain: bool


class Infer:
    """The endpoint of one model. Where it is ``exact``, requests share no batches."""

    def __init__(self, model: ServedModel, *, exact: bool = False) -> None:
        self._model = model
        self._pace: Pace | None = None
        self._decode = Decoder(model.inputs, model.outputs, batches=not exact)
        self._names = [spec.name for spec in model.outputs]
        self._jsons: dict[Hashable, bytes] = {}
        self._places = {name: index for index, name in enumerate(self._names)}

    def __call__(self, request: Request, respond: Respond) -> Ticket | None:
        """Decode a request and hand it on; it is answered by ``respond``. What it took goes into the statistics."""
        started = perf_counter_ns()
        model = self._model
        if model.full:  # before it costs anything
            model.statistics.failed("REJECTED", perf_counter_ns() - started)
            if self._pace is None:
                self._pace = Pace(asyncio.get_running_loop())
            return self._pace.refuse(partial(respond, _FULL))
        try:
            notes = request.head.notes
            if notes is None:
                notes = request.head.notes = _notes(request.head)
            layout, buffers = self._decode(request.body, notes.header_length)
        except TautenError as fault:
            model.statistics.failed(reason_of(fault), perf_counter_ns() - started)
            respond(fault_response(fault))
            return None
        asked = (layout, respond, notes.explain, perf_counter_ns())  # what is needed again when it is answered
        call = Call(buffers, layout.shapes, layout.rows, layout.group, self._answer, asked)
        call.arrived_ns = started
        call.left = self._left
        if layout.priority:
            call.priority = layout.priority
        if layout.timeout_ns:
            call.deadline_ns = started + layout.timeout_ns
        model.submit(call)
        return call

    def _answer(self, call: Call) -> None:
        """Told by the worker: ``call`` has its result, or a fault."""
        statistics = self._model.statistics
        layout, respond, explain, decoded_ns = call.context
        try:
            if call.fault is not None:
                raise call.fault
            response = self._response(call, layout)
        except TautenError as fault:
            statistics.failed(reason_of(fault), perf_counter_ns() - call.arrived_ns)
            if isinstance(fault, EngineError):
                log.error("model %s failed", self._model.name, exc_info=fault)
            response = fault_response(fault)
        except Exception as fault:
            statistics.failed("OTHER", perf_counter_ns() - call.arrived_ns)
            log.error("model %s failed", self._model.name, exc_info=fault)
            response = error_response(500, "internal error: the server's log has the details")
        else:
            count_answered(statistics, call, decoded_ns)
        if explain:
            response = _explained(response, call, decoded_ns)
        respond(response)

    def _left(self, call: Call) -> None:
        """The client has gone before it was answered."""
        self._model.statistics.failed("CANCELED", perf_counter_ns() - call.arrived_ns)

    def _response(self, call: Call, layout: Layout) -> Response:
        results: Any = call.result  # an array for each output
        if len(results) == 1 and layout.id is None:
            # One output, the usual answer: all but the numbers are the same for results of one shape.
            result = results[0]
            if layout.outputs.get(self._names[0]):
                known = layout.answers.get(result.shape)
                if known is None:
                    known = self._beginning(layout, result)
                if known:
                    head, fixed = known
                    return Response(200, (head, result.data), BINARY_TYPE, (), fixed)
            else:
                return Response(200, (self._before_numbers(result), dump_numbers(self._names[0], result), b"}]}"))
        outputs = {name: results[self._places[name]] for name in layout.outputs}
        message = encode_response(
            InferResponse(self._model.name, self._model.version, outputs, layout.id), layout.outputs
        )
        if message.header_length is None:
            return Response(200, message.parts, JSON_TYPE)
        return Response(200, message.parts, BINARY_TYPE, _length_header(message.header_length))

    def _before_numbers(self, result: Array) -> bytes:
        """The JSON of an answer with this one output, up to its numbers."""
        key = (result.shape, result.dtype)
        known = self._jsons.get(key)
        if known is None:
            answer = InferResponse(self._model.name, self._model.version, {self._names[0]: result})
            whole = encode_response(answer, {self._names[0]: False}).parts[0]
            known = bytes(whole[: bytes(whole).rindex(b'"data":') + len(b'"data":')])
            if len(self._jsons) < _NOTED:
                self._jsons[key] = known
        return known

    def _beginning(self, layout: Layout, result: Array) -> tuple[bytes, bytes] | tuple[()]:
        """JSON and HTTP head in front of ``result``; nothing where it does not travel as it is."""
        known: tuple[bytes, bytes] | tuple[()] = ()
        plain = result.dtype.isnative and result.dtype.name in DATATYPES and result.flags.c_contiguous
        if plain and 0 < result.nbytes <= _ONE_PIECE:
            answer = InferResponse(self._model.name, self._model.version, {self._names[0]: result})
            message = encode_response(answer, layout.outputs)
            if message.header_length is not None:
                fixed = Response(200, message.parts, BINARY_TYPE, _length_header(message.header_length)).render()
                known = (bytes(message.parts[0]), fixed)
        if len(layout.answers) < _NOTED:
            layout.answers[result.shape] = known
        return known


def count_answered(statistics: Statistics, call: Call, decoded_ns: int) -> None:
    """``call``, whose request was read by ``decoded_ns``, has just been answered."""
    ended, started_ns, ended_ns = perf_counter_ns(), call.started_ns, call.ended_ns
    statistics.succeeded(
        call.rows,
        (
            ended - call.arrived_ns,
            started_ns - decoded_ns,
            decoded_ns - call.arrived_ns,
            ended_ns - started_ns,
            ended - ended_ns,
        ),
    )


def explanation(call: Call, decoded_ns: int) -> dict[str, int | str]:
    """In which batch a request ran, how long it waited and why that batch left; names are those of headers."""
    return {
        "Tauten-Cached": int(call.cached),
        "Tauten-Batch-Rows": call.batch_rows,
        "Tauten-Padded-Columns": call.padded,
        "Tauten-Queue-Us": max(0, call.started_ns - decoded_ns) // 1000,
        "Tauten-Compute-Us": max(0, call.ended_ns - call.started_ns) // 1000,
        "Tauten-Left-Because": call.why,
    }


def reason_of(fault: Exception) -> str:
    """Why a request failed, in the words of the metrics."""
    if isinstance(fault, Overloaded):
        return "REJECTED"
    return "BACKEND" if isinstance(fault, EngineError | NotReady) else "OTHER"


def _notes(head: Head) -> _Notes:
    encoding = head.headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise InputError(f"expected a body without Content-Encoding, got {encoding.decode('latin-1')!r:.80}")
    text = head.headers.get(_HEADER_LENGTH)
    if text is not None and (not text.isdigit() or len(text) > 18):
        raise InputError(f"{HEADER_LENGTH}: expected a count of bytes, got {text.decode('latin-1')!r:.80}")
    return _Notes(None if text is None else int(text), _EXPLAIN in head.headers)


def _length_header(length: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((HEADER_LENGTH.encode("ascii"), b"%d" % length),)


def _explained(response: Response, call: Call, decoded_ns: int) -> Response:
    """``response`` with headers that say how it came about."""
    facts = explanation(call, decoded_ns)
    headers = [
        *response.headers,
        *((name.encode("ascii"), str(value).encode("ascii")) for name, value in facts.items()),
    ]
    if response.fixed:  # its headers are in there
        length = len(cast("bytes", response.body[0]))
        headers[:0] = _length_header(length)
    return Response(response.status, response.body, response.content_type, tuple(headers))
