"""A request for a model without its numbers: what clients send again and again, read and checked once.

The JSON in front of raw tensors is the same, byte for byte, in request after request of most clients. ``Decoder``
remembers what it made of it, so that such a request costs one look-up and the cutting of its tensors. Nothing is taken
on trust: equal bytes were checked whole, by the same rules, when they were seen first.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tauten.core.tensor import BATCH, TensorSpec
from tauten.errors import InputError
from tauten.run.serve.protocol import numbers
from tauten.run.serve.protocol.buffer import ALONE, Buffer
from tauten.run.serve.protocol.datatypes import datatype_of, from_bytes, item_bytes, to_bytes
from tauten.run.serve.protocol.elements import BytesSpec, Packed, pack_elements, unpack_elements
from tauten.run.serve.protocol.v2 import (
    HEADER_LENGTH,
    Cursor,
    choose_outputs,
    decode_data,
    flag,
    kind,
    objects,
    parameters_of,
    shape_of,
    split,
    string,
)

_REMEMBERED: Final = 512
_REMEMBERED_BYTES: Final = 4096
MOST_MICROSECONDS: Final = 86_400 * 10**6
MOST_PRIORITY: Final = 2**31 - 1


@dataclass(slots=True)
class Layout:
    """What a request says beside its numbers.

    ``shapes`` are in the order of the model's inputs; calls of one ``group`` fit into one batch. ``outputs`` says which
    are asked for, in order, and whether each as bytes. ``cuts`` are begin and end of each input's bytes behind the JSON
    and ``total`` the bytes of all of them, where all inputs came so. ``answers`` is for the one who answers, to
    remember what the answers to such requests begin with.
    """

    shapes: tuple[tuple[int, ...], ...]
    rows: int
    group: Hashable
    outputs: dict[str, bool]
    id: str | None = None
    priority: int = 0
    timeout_ns: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    total: int = 0
    answers: dict[Any, Any] = field(default_factory=dict)


class Decoder:
    """Reads requests for a model with these inputs and outputs."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batches: bool = True) -> None:
        self._inputs = tuple(inputs)
        self._specs = {spec.name: spec for spec in inputs}
        self._names = [spec.name for spec in outputs]
        self._shares = batches and all(spec.batch_axis == 0 for spec in (*inputs, *outputs))
        self._truths = [index for index, spec in enumerate(inputs) if spec.dtype == "bool"]
        self._elements = [index for index, spec in enumerate(inputs) if isinstance(spec, BytesSpec)]
        self._known: dict[bytes, Layout] = {}
        self._checked: set[tuple[str, tuple[int, ...]]] = set()
        self._around: dict[tuple[bytes, bytes], Layout] = {}
        self._raws: dict[int, Layout] = {}
        self._fits: dict[tuple[tuple[int, ...], ...], tuple[int, Hashable]] = {}

    def __call__(self, body: bytes | memoryview, header_length: int | None) -> tuple[Layout, Sequence[Buffer]]:
        """The layout of the request in ``body``, and a buffer of elements for each input, in the model's order.

        Raises ``InputError`` that says what was expected and what came, and nothing else, whatever the bytes.
        """
        if header_length is None:
            return self._numbers(body if type(body) is bytes else bytes(body))
        if header_length == 0:
            known = self._raws.get(len(body))
            return self._raw(memoryview(body)) if known is None else (known, (body,))
        head = body[:header_length]
        if type(head) is not bytes:
            head = bytes(head)
        layout = self._known.get(head)
        if layout is None:
            return self._first(body, head, header_length)
        if len(body) - len(head) != layout.total:
            self._first(body, head, header_length)  # says what is wrong
        data = memoryview(body)
        begin, end = layout.cuts[0]
        if len(layout.cuts) == 1:
            buffers: Sequence[Buffer] = (data[header_length + begin : header_length + end],)
        else:
            buffers = [data[header_length + begin : header_length + end] for begin, end in layout.cuts]
        if self._truths:
            self._check_truths(layout, buffers)
        if self._elements:
            buffers = self._check_elements(layout, buffers)
        return layout, buffers

    def _first(self, body: bytes | memoryview, head: bytes, header_length: int) -> tuple[Layout, Sequence[Buffer]]:
        """A head that was not seen before. What is its own data, and not JSON's, is remembered with it."""
        layout, buffers = self._decode(*split(memoryview(body), header_length))
        if layout.cuts and layout.id is None and len(head) <= _REMEMBERED_BYTES:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[head] = layout
        return layout, buffers

    def _numbers(self, body: bytes) -> tuple[Layout, Sequence[Buffer]]:
        """All in JSON.

        Where all but the numbers came before, the numbers alone are read. Elsewhere it is the fast reader where that
        is sure of itself, and else the exact one, whose errors tell.
        """
        at = body.find(b"[", body.find(b'"data"')) if len(self._inputs) == 1 else -1
        around = b"", b""
        if at > 0:
            end = body.find(b"]", at) + 1  # of a flat list; of another it makes no list, and what follows is not known
            around = body[:at], body[end:]
            layout = self._around.get(around)
            if layout is not None:
                array = numbers.read_list(body[at:end], self._inputs[0].dtype, math.prod(layout.shapes[0]))
                if array is not None:
                    return layout, (array.data,)
        document = numbers.read(body, self._specs)
        exact = split(memoryview(body), None) if document is None else (document, memoryview(b""))
        layout, buffers = self._decode(*exact)
        if document is not None and len(buffers[0]) and self._around_numbers(around):
            if len(self._around) >= _REMEMBERED:
                self._around.clear()
            self._around[around] = layout
        return layout, buffers

    def _around_numbers(self, around: tuple[bytes, bytes]) -> bool:
        """Whether what stands between these two is the one input's data, in a request that can be read.

        With an empty list there the data must be empty: elsewhere, as inside of a string, it would be as it was.
        """
        begin, end = around
        if not begin or len(begin) + len(end) > _REMEMBERED_BYTES:
            return False
        try:
            (entry,) = orjson.loads(begin + b"[]" + end)["inputs"]
        except (orjson.JSONDecodeError, ValueError):
            return False
        return bool(entry["data"] == [])

    def _decode(self, document: dict[str, Any], rest: memoryview) -> tuple[Layout, Sequence[Buffer]]:
        request_id = document.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise InputError(f"expected 'id' to be a string, got {kind(request_id)}")
        tensors = Cursor(rest)
        shapes: dict[str, tuple[int, ...]] = {}
        buffers: dict[str, Buffer] = {}
        cuts: dict[str, tuple[int, int]] = {}
        for entry in objects(document, "inputs"):
            name = string(entry, "name", "an input")
            spec = self._specs.get(name)
            if spec is None:
                raise InputError(f"no input named {name!r:.80}: expected {list(self._specs)}")
            if name in shapes:
                raise InputError(f"input {name!r} came twice")
            datatype = string(entry, "datatype", name)
            if datatype != datatype_of(spec.dtype):
                raise InputError(f"{name}: expected datatype {datatype_of(spec.dtype)}, got {datatype!r:.80}")
            shape = tuple(shape_of(entry, name))
            if (name, shape) not in self._checked:
                check_shape(spec, shape)
                if len(self._checked) < _REMEMBERED:
                    self._checked.add((name, shape))
            shapes[name] = shape
            begin = tensors.at
            array = decode_data(entry, name, spec.dtype, shape, tensors)
            buffers[name] = Packed(to_bytes(array)) if isinstance(spec, BytesSpec) else array.data
            if "data" not in entry:
                cuts[name] = (begin, tensors.at)
        tensors.expect_end()
        if len(shapes) != len(self._specs):
            raise InputError(f"expected inputs {list(self._specs)}, got {list(shapes)}")
        asked = parameters_of(document, "request")
        as_bytes = flag(asked, "binary_data_output", False)
        layout = self._layout(
            tuple(shapes[name] for name in self._specs), choose_outputs(document, self._names, as_bytes), asked
        )
        layout.id = request_id
        if len(cuts) == len(self._specs):
            layout.cuts, layout.total = tuple(cuts[name] for name in self._specs), len(rest)
        return layout, [buffers[name] for name in self._specs]

    def _layout(self, shapes: tuple[tuple[int, ...], ...], outputs: dict[str, bool], asked: dict[str, Any]) -> Layout:
        found = self._fits.get(shapes)
        if found is None:
            found = fit(self._inputs, shapes)
            if len(self._fits) < _REMEMBERED:
                self._fits[shapes] = found
        rows, group = found
        return Layout(
            shapes,
            rows,
            group if self._shares else ALONE,
            outputs,
            priority=whole(asked, "priority", MOST_PRIORITY),
            timeout_ns=1000 * whole(asked, "timeout", MOST_MICROSECONDS),
        )

    def _raw(self, data: memoryview) -> tuple[Layout, Sequence[Buffer]]:
        """Raw mode: no JSON, the body is the one input; its shape follows from its length. Answered as bytes."""
        if len(self._inputs) != 1:
            raise InputError(f"{HEADER_LENGTH}: 0 needs a model of one input, this one has {len(self._inputs)}")
        spec = self._inputs[0]
        shape = [1 if isinstance(dim, str) else dim for dim in spec.shape]
        if isinstance(spec, BytesSpec) and math.prod(shape) == 1:
            # The body is the one element, such as a file.
            layout = self._layout((tuple(shape),), dict.fromkeys(self._names, True), {})
            return layout, (Packed(pack_elements([bytes(data)])),)
        open_axes = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]
        if len(open_axes) > 1:
            raise InputError(
                f"{HEADER_LENGTH}: 0 needs at most one variable dimension, the model has {spec.shape_text}"
            )
        row = item_bytes(spec.dtype) * math.prod(shape)
        if open_axes and row:
            rows, odd = divmod(len(data), row)
            if odd or not rows:
                raise InputError(f"{spec.name}: expected a multiple of {row} bytes, got {len(data)}")
            shape[open_axes[0]] = rows
        array = from_bytes(spec.name, spec.dtype, shape, data)
        layout = self._layout((tuple(shape),), dict.fromkeys(self._names, True), {})
        if len(self._raws) < _REMEMBERED and not self._truths:
            self._raws[len(data)] = layout
        return layout, (array.data,)

    def _check_truths(self, layout: Layout, buffers: Sequence[Buffer]) -> None:
        for index in self._truths:
            from_bytes(self._inputs[index].name, "bool", layout.shapes[index], memoryview(buffers[index]))

    def _check_elements(self, layout: Layout, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        found = list(buffers)
        for index in self._elements:
            unpack_elements(self._inputs[index].name, layout.shapes[index], found[index])
            found[index] = Packed(found[index])
        return found


def fit(specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int]]) -> tuple[int, Hashable]:
    """How many rows inputs of ``shapes`` have, and what other inputs must equal to fit into one batch with them.

    Raises ``InputError`` where a named dimension has two sizes.
    """
    sizes: dict[str, int] = {}
    for spec, shape in zip(specs, shapes, strict=True):
        for dim, size in spec.sizes(shape).items():
            if sizes.setdefault(dim, size) != size:
                raise InputError(f"{spec.name}: dimension {dim!r} is {size} here and {sizes[dim]} in another input")
    return sizes.pop(BATCH, 1), tuple(sizes.values())


def check_shape(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Hold ``shape`` against ``spec`` before anything is allocated; a variable dimension is at least 1."""
    for name, size in spec.sizes(shape).items():
        if size < 1:
            raise InputError(f"{spec.name}: expected dimension {name!r} to be at least 1, got shape {list(shape)}")


def whole(asked: dict[str, Any], name: str, most: int) -> int:
    """A parameter that is a whole number, 0 where it is not there."""
    value = asked.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InputError(f"expected the parameter '{name}' to be a whole number from 0 to {most}, got {kind(value)}")
    return value
