"""A client of the gRPC port that sends what no client should, and sees what comes."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

import grpc

from tauten.run.serve.protocol.grpc.messages import INFERENCE, MESSAGES

LIMIT_S: Final = 10.0
CLOSED: Final = "CLOSED"
"""In place of a status: what came was no HTTP/2, and the server closed, or said in HTTP/2 that it is none."""

_SERVICE: Final = f"/{INFERENCE.service_name}/"
_METHODS: Final = MESSAGES.methods(INFERENCE)
_STREAM: Final = "ModelStreamInfer"
_UNARY: Final = (*(_SERVICE + name for name in _METHODS if name != _STREAM), "/grpc.health.v1.Health/Check")
_NOWHERE: Final = ("/", "/a/b/c", _SERVICE, _SERVICE + "modelinfer", "/grpc.reflection.v2.None/Info", "/%00/\t")
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class MalformedGrpcClient:
    """Sends spoilt copies of a request for one row of the model ``name``, and counts the answers by status.

    ``shape`` is that of the model's one input ``tensor``, of FP32.
    """

    def __init__(self, port: int, name: str, tensor: str, shape: Sequence[int], seed: int) -> None:
        self._port = port
        self._draw = Random(seed)
        self._request = _METHODS["ModelInfer"].request(model_name=name)
        self._request.inputs.add(name=tensor, datatype="FP32", shape=shape)
        size = 4
        for dim in shape:
            size *= dim
        self._request.raw_input_contents.append(bytes(size))
        # A channel of its own: those of one address share their connection.
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        self.hung = 0

    def good(self) -> str:
        """The status of a request with nothing wrong in it."""
        return self._call(_SERVICE + "ModelInfer", self._request.SerializeToString())

    def run(self, count: int) -> Counter[str]:
        """Answers to ``count`` requests, by status."""
        return Counter(self._draw.choice(_KINDS)(self) for _ in range(count))

    def close(self) -> None:
        self._channel.close()

    def _call(self, path: str, data: bytes) -> str:
        return self._status(lambda: self._channel.unary_unary(path)(data, timeout=LIMIT_S))

    def _status(self, call: Callable[[], object]) -> str:
        began = time.monotonic()
        try:
            call()
        except grpc.RpcError as fault:
            self.hung += time.monotonic() - began >= LIMIT_S
            return str(fault.code().name)
        return "OK"

    # What can be wrong.

    def _bytes(self) -> str:
        """Bytes that were flipped, cut, doubled or drawn, to any method."""
        return self._call(self._draw.choice(_UNARY), self._spoilt(self._request.SerializeToString()))

    def _stream(self) -> str:
        """A stream in which some messages are spoilt; each is answered in the stream, or ends it."""
        good = self._request.SerializeToString()
        parts = [good if self._draw.random() < 0.5 else self._spoilt(good) for _ in range(self._draw.randint(1, 4))]
        call = self._channel.stream_stream(_SERVICE + _STREAM)
        return self._status(lambda: list(call(iter(parts), timeout=LIMIT_S)))

    def _field(self) -> str:
        """A message that can be read and says what cannot be."""
        draw, request = self._draw, type(self._request)()
        request.CopyFrom(self._request)
        (tensor,) = request.inputs
        spoil: Sequence[Callable[[], Any]] = (
            lambda: setattr(request, "model_name", draw.choice(("", "nowhere", "a/b", "\0", "x" * 10_000))),
            lambda: setattr(request, "model_version", draw.choice(("0", "-1", "latest", "9" * 400))),
            lambda: setattr(tensor, "name", draw.choice(("", "other", "é" * 300))),
            lambda: setattr(tensor, "datatype", draw.choice(("", "FP16", "BYTES", "INT64", "fp32", "?"))),
            lambda: tensor.shape.__setitem__(0, draw.choice((-1, 0, 2, 2**31, 2**62, -(2**63)))),
            lambda: tensor.shape.append(draw.choice((1, 0, -1, 2**40))),
            lambda: tensor.shape.pop(),
            lambda: request.inputs.add().CopyFrom(tensor),
            lambda: request.ClearField("inputs"),
            lambda: request.ClearField("raw_input_contents"),
            lambda: request.raw_input_contents.append(b"more"),
            lambda: request.raw_input_contents.__setitem__(0, draw.randbytes(draw.randrange(64))),
            lambda: tensor.contents.fp32_contents.extend([1.0] * draw.randrange(1, 9)),
            lambda: tensor.contents.bytes_contents.append(b"\xff" * 9),
            lambda: request.outputs.add(name=draw.choice(("", "nothing", "y"))),
            lambda: setattr(request.parameters["timeout"], "int64_param", draw.choice((-1, 2**62))),
            lambda: setattr(request.parameters["priority"], "string_param", "high"),
            lambda: setattr(tensor.parameters["binary_data_size"], "int64_param", -5),
            lambda: setattr(tensor.parameters["shared_memory_region"], "string_param", "region"),
        )
        for change in draw.sample(spoil, draw.randint(1, 3)):
            with suppress(IndexError):  # what it would change was taken out by another
                change()
        return self._call(_SERVICE + "ModelInfer", request.SerializeToString())

    def _nowhere(self) -> str:
        """A method that is not there."""
        return self._call(self._draw.choice(_NOWHERE), self._draw.randbytes(self._draw.randrange(40)))

    def _wire(self) -> str:
        """What is no HTTP/2, or soon ends to be."""
        noise = self._draw.randbytes(self._draw.randrange(1, 400))
        begin = self._draw.choice((b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", _PREFACE, _PREFACE + bytes(9)))
        with socket.create_connection(("127.0.0.1", self._port), timeout=LIMIT_S) as connection:
            try:
                connection.sendall(begin + noise)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except TimeoutError:
                self.hung += 1
            except OSError:
                pass
        return CLOSED

    def _spoilt(self, data: bytes) -> bytes:
        draw, changed = self._draw, bytearray(data)
        kind = draw.randrange(4)
        if kind == 0:
            for _ in range(draw.randint(1, 8)):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[draw.randrange(len(changed)) :]
        elif kind == 2:
            at = draw.randrange(len(changed))
            changed[at:at] = changed[: draw.randrange(len(changed))]
        else:
            changed = bytearray(draw.randbytes(draw.randrange(200)))
        return bytes(changed)


_KINDS: Final = (
    MalformedGrpcClient._bytes,
    MalformedGrpcClient._bytes,
    MalformedGrpcClient._field,
    MalformedGrpcClient._field,
    MalformedGrpcClient._stream,
    MalformedGrpcClient._nowhere,
    MalformedGrpcClient._wire,
)
