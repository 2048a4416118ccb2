"""What an ExecuTorch program (``.pte``) would run, read from its bytes: kernels, delegates, and XNNPACK's own graphs.

The layouts are those of ExecuTorch's ``program.fbs`` (identifier ``ET12``) and of its XNNPACK ``schema.fbs``.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tauten.errors import ArtifactError
from tauten.run.engines._flatbuffer import Table

XNNPACK: Final = "XnnpackBackend"
METHOD: Final = "forward"

# Places of fields in program.fbs.
_PLANS, _INLINE, _SEGMENTS = 1, 3, 4
_NAME, _CHAINS, _OPERATORS, _DELEGATES = 0, 5, 6, 7
_INSTRUCTIONS = 2
_KERNEL_CALL, _DELEGATE_CALL = 1, 2
_IN_SEGMENT = 1
# Places of fields in XNNPACK's schema.fbs, and its header before them.
_NODES, _VALUES = 1, 2
_HEADER: Final = "<HIIIQ"  # its size; offset and size of the graph; offset and size of the constants
_TENSOR, _QUANTIZED = 1, 2
_INT8: Final = frozenset({3, 4, 6, 9, 11})  # qint8, quint8, qcint8, qdint8, qpint8
_INT4: Final = frozenset({8, 10})  # qcint4, qbint4

_NODE_NAMES: Final = (
    "", "Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d", "Div",
    "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum", "DepthwiseConv2d", "MaxPooling2d",
    "Multiply", "Subtract", "Floor", "Convert", "GlobalAvgPooling2d", "StaticReshape", "ArgMaxPooling2d", "SquareRoot",
    "Ceiling", "Hardswish", "LeakyReLU", "Maximum", "Negate", "Square", "ELU", "Abs", "PReLU", "Concatenate2",
    "Concatenate3", "Concatenate4", "StaticSlice", "ScaledDotProductAttention", "BatchMatrixMultiply", "Concatenate5",
    "ConvTranspose2d", "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin", "Copy", "Cos",
)  # fmt: skip
# Products, with the places of what is read: the first input, and the weight or second input.
_PRODUCTS: Final = {
    "FullyConnected": (0, 1), "Conv2d": (15, 16), "DepthwiseConv2d": (15, 16), "ConvTranspose2d": (15, 16),
    "BatchMatrixMultiply": (0, 1), "ScaledDotProductAttention": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """Counts by name: operations inside XNNPACK (apart those whose products are of whole numbers), and kernels outside.

    ``int8`` names products of two int8 (or int8 by int4) tensors, ``weights`` those whose weight alone is;
    ``delegates`` counts the calls of XNNPACK.
    """

    int8: Counter[str] = field(default_factory=Counter)
    weights: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    delegates: int = 0

    @property
    def int8_share(self) -> float:
        """The share of XNNPACK's and the kernels' products that multiply whole numbers."""
        counted = sum(self.int8.values())
        others = sum(count for name, count in (self.other + self.weights).items() if name in _PRODUCTS)
        outside = sum(count for name, count in self.kernels.items() if _multiplies(name))
        total = counted + others + outside
        return round(counted / total, 4) if total else 0.0


def method_for(rows: int) -> str:
    """What the method is called that answers batches of ``rows`` rows and no others."""
    return f"{METHOD}_{rows}"


def survey(data: bytes, methods: Sequence[str] = (METHOD,)) -> Survey:
    """What the first of the program's methods runs; the others are looked through as well.

    Raises ``ArtifactError`` where the bytes are no such program, hold other methods, or hand work to another delegate
    than XNNPACK.
    """
    program, start = _program(data)
    plans = {}
    for plan in program.tables(_PLANS):
        name = plan.text(_NAME)
        if name not in methods or name in plans:
            raise ArtifactError(f"expected a program with the methods {list(methods)}, got {name!r} as one of them")
        plans[name] = plan
    if len(plans) < len(methods):
        raise ArtifactError(f"expected a program with the methods {list(methods)}, got {list(plans)}")
    found = {name: _survey_plan(data, program, start, plan) for name, plan in plans.items()}
    return found[methods[0]]


def _survey_plan(data: bytes, program: Table, start: int | None, plan: Table) -> Survey:
    """What one method runs."""
    found = Survey()
    operators = [".".join(filter(None, (one.text(0), one.text(1)))) for one in plan.tables(_OPERATORS)]
    delegates = list(plan.tables(_DELEGATES))
    odd = sorted({delegate.text(0) for delegate in delegates} - {XNNPACK})
    if odd:
        raise ArtifactError(f"expected a program for {XNNPACK} alone, it hands work to {odd}")
    calls = 0
    for chain in plan.tables(_CHAINS):
        for instruction in chain.tables(_INSTRUCTIONS):
            kind, call = instruction.number(0, "<B"), instruction.table(1)
            if kind == _KERNEL_CALL and call is not None:
                index = call.number(0, "<i")
                if not 0 <= index < len(operators):
                    raise ArtifactError(f"the program calls kernel {index} of {len(operators)}")
                found.kernels[operators[index]] += 1
            calls += kind == _DELEGATE_CALL
    for delegate in delegates:
        _graph(_payload(data, program, start, delegate), found)
    return Survey(found.int8, found.weights, found.other, found.kernels, calls)


def _program(data: bytes) -> tuple[Table, int | None]:
    """The program, and where its segments begin."""
    if len(data) < 16 or data[4:8] != b"ET12":
        raise ArtifactError(f"expected an ExecuTorch program (ET12), got {len(data)} bytes that begin {data[:8]!r}")
    if data[8:12] != b"eh00" or len(data) < 32:
        return Table.root(data), None
    size, base = struct.unpack_from("<QQ", data, 16)
    if not 32 <= size <= len(data) or not (base == 0 or size <= base <= len(data)):
        raise ArtifactError(f"the program says it has {size} bytes and segments from {base} on, it has {len(data)}")
    return Table.root(data[:size]), base


def _payload(data: bytes, program: Table, start: int | None, delegate: Table) -> bytes:
    """The bytes that a delegate gets."""
    reference = delegate.table(1)
    if reference is None:
        raise ArtifactError("a delegate of the program has no data")
    index = reference.number(1)
    if reference.number(0, "<B") != _IN_SEGMENT:
        for place, inline in enumerate(program.tables(_INLINE)):
            if place == index:
                return inline.bytes(0)
        raise ArtifactError(f"a delegate reads data {index}, which is not there")
    for place, segment in enumerate(program.tables(_SEGMENTS)):
        if place == index and start is not None:
            first = start + segment.number(0, "<Q")
            last = first + segment.number(1, "<Q")
            if last > len(data):
                raise ArtifactError(f"segment {index} of the program ends at {last}, the file at {len(data)}")
            return data[first:last]
    raise ArtifactError(f"a delegate reads segment {index}, which is not there")


def _graph(payload: bytes, found: Survey) -> None:
    """Count the nodes of one XNNPACK graph."""
    if len(payload) < 30 or payload[4:8] != b"XH00":
        raise ArtifactError(f"expected an XNNPACK graph (XH00), got bytes that begin {payload[:8]!r}")
    _, offset, size, constants, constants_size = struct.unpack_from(_HEADER, payload, 8)
    if offset + size > len(payload) or constants + constants_size > len(payload):
        raise ArtifactError(f"an XNNPACK graph leads outside its {len(payload)} bytes")
    graph = Table.root(payload[offset : offset + size])
    kinds: dict[int, int] = {}
    for value in graph.tables(_VALUES):
        tensor = value.table(1)
        if tensor is not None and value.number(0, "<B") == _QUANTIZED:
            tensor = tensor.table(0)
        if tensor is not None:
            kinds[tensor.number(6)] = tensor.number(0, "<h")
    for node in graph.tables(_NODES):
        kind, inner = node.number(0, "<B"), node.table(1)
        if not 0 < kind < len(_NODE_NAMES) or inner is None:
            raise ArtifactError(f"an XNNPACK graph has a node of the unknown kind {kind}")
        name = _NODE_NAMES[kind]
        if name not in _PRODUCTS:
            found.other[name] += 1
            continue
        first, second = (kinds.get(inner.number(place), 0) for place in _PRODUCTS[name])
        whole = second in _INT8 | _INT4
        (found.int8 if whole and first in _INT8 else found.weights if whole else found.other)[name] += 1


def _multiplies(kernel: str) -> bool:
    return any(part in kernel for part in ("conv", "mm", "linear", "attention"))
