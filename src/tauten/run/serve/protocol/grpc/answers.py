"""Answers over gRPC: arrays to the bytes of messages. They are raw, behind what says whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Final

from tauten.core.tensor import Array, TensorSpec
from tauten.run.serve.protocol.datatypes import datatype_of, to_bytes
from tauten.run.serve.protocol.grpc.codec import Asked
from tauten.run.serve.protocol.grpc.messages import MESSAGES

RESPONSE: Final = MESSAGES.of("inference.ModelInferResponse")
STREAMED: Final = MESSAGES.of("inference.ModelStreamInferResponse")

_RAW_OUTPUT: Final = 6 << 3 | 2
_STREAMED_RESPONSE: Final = 2 << 3 | 2
_NOTED: Final = 16


class Encoder:
    """Writes the answers of a model: the bytes of a ``ModelInferResponse``."""

    def __init__(self, name: str, version: str, outputs: Sequence[TensorSpec]) -> None:
        self._name = name
        self._version = version
        self._outputs = [spec.name for spec in outputs]

    def __call__(
        self,
        asked: Asked,
        results: Sequence[Array],
        request_id: str = "",
        parameters: Mapping[str, bool | int | str] = MappingProxyType({}),
    ) -> bytes:
        """``results`` are the model's outputs, in its order."""
        arrays = [results[place] for place in asked.outputs]
        key = tuple([(array.dtype, array.shape, array.flags.c_contiguous) for array in arrays])
        plain = not request_id and not parameters
        if plain and (before := asked.answers.get(key)) is not None:
            raw = [array.data for array in arrays]
            return b"".join(chain.from_iterable(zip(before, raw, strict=True)))
        raw = [to_bytes(array) for array in arrays]
        before = self._before(asked, arrays, raw, request_id, parameters)
        if plain and len(asked.answers) < _NOTED and all(map(_travels_as_it_is, arrays)):
            asked.answers[key] = before
        return b"".join(chain.from_iterable(zip(before, raw, strict=True)))

    def _before(
        self,
        asked: Asked,
        arrays: Sequence[Array],
        raw: Sequence[memoryview],
        request_id: str,
        parameters: Mapping[str, bool | int | str],
    ) -> tuple[bytes, ...]:
        """What stands before the ``raw`` elements of each of ``arrays``, which are the outputs that are asked for.

        These follow the message as protobuf would write them, without the two copies that go through it.
        """
        message = RESPONSE(model_name=self._name, model_version=self._version, id=request_id)
        tags: list[bytes] = []
        for place, array, data in zip(asked.outputs, arrays, raw, strict=True):
            datatype = datatype_of(array.dtype.name)
            message.outputs.add(name=self._outputs[place], datatype=datatype, shape=array.shape)
            tags.append(_tagged(_RAW_OUTPUT, data.nbytes))
        for key, value in parameters.items():
            kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
            setattr(message.parameters[key], f"{kind}_param", value)
        return (message.SerializeToString() + tags[0], *tags[1:])


def _travels_as_it_is(array: Array) -> bool:
    """Whether the memory of ``array`` is what ``to_bytes`` gives, in every array of its dtype that is as contiguous."""
    return array.flags.c_contiguous and array.dtype.kind in "biuf" and array.dtype.newbyteorder("<") == array.dtype


def encode_streamed(response: bytes) -> bytes:
    """A ``ModelInferResponse`` as the ``ModelStreamInferResponse`` that holds it."""
    return _tagged(_STREAMED_RESPONSE, len(response)) + response


def encode_streamed_fault(message: str, request_id: str) -> bytes:
    """A ``ModelStreamInferResponse`` that says why a request has no answer."""
    streamed = STREAMED(error_message=message)
    streamed.infer_response.id = request_id
    data: bytes = streamed.SerializeToString()
    return data


def _tagged(tag: int, size: int) -> bytes:
    """A field's tag and length."""
    head = bytearray((tag,))
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)
