"""The weights of a float ONNX graph that quantization treats, and whole numbers in their place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tauten.make.layers.quantized import Grid
from tauten.make.lower._graph import all_nodes, owners

Kind = Literal["matrix", "conv", "transposed", "table", "recurrent"]
Floats = npt.NDArray[np.float32]

_KINDS: Final[dict[str, Kind]] = {
    "Conv": "conv", "ConvTranspose": "transposed", "MatMul": "matrix", "Gemm": "matrix", "Gather": "table",
    "LSTM": "recurrent", "GRU": "recurrent", "RNN": "recurrent",
}  # fmt: skip
_FEWEST_ROWS: Final = 64  # of a table of vectors; a smaller one is not worth the work at each call
_SHARES: Final = np.linspace(1.0, 0.6, 9)  # of a channel's largest magnitude, tried where 16 steps must span it
_SHARED: Final = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT16)
_CLOSE: Final = 1e-5


@dataclass(frozen=True)
class Weight:
    """A weight, the module that owns it (``""``: unknown) and the nodes that read it.

    ``axis`` is the dimension of the stored tensor along which output channels (a table's rows) lie. ``plain`` says that
    each reader is a bare product, without factors of its own.
    """

    name: str
    module: str
    kind: Kind
    axis: int
    readers: tuple[NodeProto, ...]
    plain: bool


@dataclass(frozen=True)
class Rounded:
    """A weight in whole numbers: ``(codes - zero_point) * scale``, ``codes`` int8 in the stored tensor's shape.

    ``scale`` is ``()``, ``(channels,)`` along ``axis``, or ``(channels, groups)`` where each ``group`` numbers along
    the other dimension of a matrix have their own; ``zero_point`` (int8) likewise, ``None`` for all zero.
    ``decided`` says that a layer had fixed them.
    """

    codes: npt.NDArray[np.int8]
    scale: Floats
    zero_point: npt.NDArray[np.int8] | None
    axis: int | None
    bits: int
    group: int = 0
    decided: bool = False

    def spread(self, what: Any) -> Any:
        """``scale`` or ``zero_point`` in a shape that goes with ``codes``."""
        if self.axis is None:
            return what
        if self.group:
            other = 1 - self.axis
            wide = np.repeat(what, self.group, axis=1)[:, : self.codes.shape[other]]
            return wide if self.axis == 0 else wide.T
        return what.reshape([-1 if dim == self.axis else 1 for dim in range(self.codes.ndim)])

    @property
    def weight(self) -> Floats:
        """The float numbers that the codes stand for."""
        numbers = self.codes.astype(np.float32)
        if self.zero_point is not None:
            numbers = numbers - self.spread(self.zero_point.astype(np.float32))
        made: Floats = (numbers * self.spread(self.scale)).astype(np.float32)
        return made

    def transposed(self) -> Rounded:
        """The same matrix stored the other way round."""
        axis = None if self.axis is None else 1 - self.axis
        return replace(self, codes=np.ascontiguousarray(self.codes.T), axis=axis)

    @property
    def uniform(self) -> bool:
        """Whether all channels have the same zero point, as 8-bit convolutions need."""
        return self.zero_point is None or bool((self.zero_point == self.zero_point.flat[0]).all())


def find_weights(graph: GraphProto, modules: Sequence[str]) -> list[Weight]:
    """The float weights that products, tables and recurrent layers read, in the order of their first readers.

    One that something else reads too is left out.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    readers: dict[str, list[NodeProto]] = {}
    for node in all_nodes(graph):
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    top = {id(node) for node in graph.node}
    outputs = {value.name for value in graph.output}
    found: dict[str, Weight] = {}
    for node in graph.node:
        for name in _weights_of(node):
            if name in found or name not in tensors or name in outputs:
                continue
            places = {_place(reader, name, len(tensors[name].dims)) for reader in readers[name]}
            place = places.pop()
            if places or place is None or any(id(reader) not in top for reader in readers[name]):
                continue
            kind, axis = place
            if kind == "table" and tensors[name].dims[0] < _FEWEST_ROWS:
                continue
            owner = owners({name: None}, modules).get(name, "")
            plain = all(is_plain(reader) for reader in readers[name])
            found[name] = Weight(name, owner, kind, axis, tuple(readers[name]), plain)
    return list(found.values())


def untie(graph: GraphProto) -> None:
    """Give a table that a product reads too a copy for its lookups, in place; ``share`` joins what stays equal."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in list(graph.initializer):
        kinds = readers.get(tensor.name, set())
        if "Gather" not in kinds or not kinds & {"Gemm", "MatMul"} or len(tensor.dims) != 2:
            continue
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = f"{tensor.name}_rows"
        graph.initializer.append(copy)
        for node in graph.node:
            if node.op_type == "Gather" and node.input[0] == tensor.name:
                node.input[0] = copy.name


def share(graph: GraphProto) -> int:
    """Let a matrix that is another's transpose be read from that one, in place; returns how many were.

    Engines transpose it once, while they load: a table that is also the output layer's weight ships once.
    """
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    matrices = [tensor for tensor in graph.initializer if tensor.data_type in _SHARED and len(tensor.dims) == 2]
    matrices.sort(key=lambda tensor: tensor.name not in tables)  # a table stays as it is
    outputs = {value.name for value in graph.output}
    known: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    joined = 0
    for tensor in matrices:
        array = numpy_helper.to_array(tensor)
        own, turned = _content(tensor.data_type, array), _content(tensor.data_type, array.T)
        same = known.get(turned)
        if same is None or own == turned or tensor.name in outputs:
            known.setdefault(own, tensor.name)
            continue
        graph.initializer.remove(tensor)
        graph.node.insert(0, helper.make_node("Transpose", [same], [tensor.name], perm=[1, 0]))
        joined += 1
    return joined


def _content(kind: int, array: npt.NDArray[Any]) -> tuple[int, tuple[int, ...], bytes]:
    """What is the same of equal arrays alone, in a few bytes."""
    return kind, array.shape, hashlib.sha256(array.tobytes()).digest()


def round_weight(
    array: Floats, weight: Weight, bits: int, granularity: str, group: int = 0, reduced: bool = False
) -> Rounded:
    """``array`` on a symmetric grid whose ends are the largest magnitudes of its channels (or of groups of them).

    In 4 bits the ends are drawn in to where the squared error is least (after Banner et al., 2019, by trying a few).
    ``reduced`` uses 7 of 8 bits.
    """
    limit = 2 ** (bits - 1) - 1 if not reduced or bits < 8 else 63
    axis = None if granularity == "tensor" else weight.axis
    if group:
        flat = array if weight.axis == 0 else array.T
        padded = np.pad(flat, ((0, 0), (0, -flat.shape[1] % group)))
        runs: Floats = padded.reshape(len(flat), -1, group)
    elif axis is None:
        runs = array.reshape(1, -1)
    else:
        runs = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    scale = _scales(runs, limit, search=bits < 8)
    blank = Rounded(np.zeros(array.shape, np.int8), scale.reshape(()) if axis is None else scale, None, axis, bits)
    blank = replace(blank, group=group)
    codes = np.clip(np.rint(array / blank.spread(blank.scale)), -limit - (bits < 8), limit).astype(np.int8)
    return _ungrouped(replace(blank, codes=codes))


def decided_weight(array: Floats, weight: Weight, grid: Grid, codes: torch.Tensor | None = None) -> Rounded | None:
    """What a layer had fixed, in the layout of the stored tensor; ``None`` where the tensor lies on no such grid.

    A matrix may be stored transposed. With the layer's ``codes``, a batch norm that was folded into a convolution is
    seen too: it multiplies each channel's scale.
    """
    scale = grid.scale.detach().cpu().numpy().astype(np.float32)
    zero = None if grid.zero_point is None else grid.zero_point.detach().cpu().numpy().astype(np.int8)
    if zero is not None and not zero.any():
        zero = None
    for turned in (False, True) if array.ndim == 2 else (False,):
        mine = np.ascontiguousarray(array.T) if turned else array
        if grid.axis is not None and mine.shape[grid.axis] != len(scale):
            continue
        found = grid.encode(torch.from_numpy(mine.copy())).numpy()
        axis = grid.axis
        if turned:
            found, axis = np.ascontiguousarray(found.T), None if axis is None else 1 - axis
        rounded = Rounded(found, scale, zero, axis, grid.bits, grid.group, decided=True)
        if np.allclose(rounded.weight, array, rtol=_CLOSE, atol=_CLOSE * float(np.abs(array).max(initial=0))):
            return _ungrouped(rounded)
    folded = weight.kind in ("conv", "transposed") and codes is not None and not grid.group
    if folded and codes is not None and tuple(codes.shape) == array.shape:
        whole = codes.detach().cpu().numpy()
        return _rescaled(array, Rounded(whole, scale, zero, grid.axis, grid.bits, decided=True), weight.axis)
    return None


def is_plain(node: NodeProto) -> bool:
    """Whether a product has no factors and does not transpose its input."""
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return node.op_type != "Gemm" or (said.get("alpha", 1.0) == said.get("beta", 1.0) == 1.0 and not said.get("transA"))


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Give the graph these nodes in place of its own."""
    held = list(nodes)
    del graph.node[:]
    graph.node.extend(held)


def tensors_of(graph: GraphProto) -> Mapping[str, TensorProto]:
    """The initializers by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def _ungrouped(rounded: Rounded) -> Rounded:
    """The same, without groups where each channel is one."""
    if not rounded.group or rounded.scale.shape[1] != 1:
        return rounded
    zero = rounded.zero_point
    return replace(rounded, scale=rounded.scale[:, 0], zero_point=None if zero is None else zero[:, 0], group=0)


def _rescaled(array: Floats, rounded: Rounded, axis: int) -> Rounded | None:
    if rounded.axis not in (None, axis):
        return None
    came = rounded.weight
    others = tuple(dim for dim in range(array.ndim) if dim != axis)
    power = np.square(came).sum(axis=others)
    factor = np.where(power > 0, (came * array).sum(axis=others) / np.where(power > 0, power, 1), 1).astype(np.float32)
    shape = [-1 if dim == axis else 1 for dim in range(array.ndim)]
    if (factor <= 0).any() or not np.allclose(came * factor.reshape(shape), array, rtol=1e-4, atol=1e-6):
        return None
    zero = rounded.zero_point
    if rounded.axis is None and zero is not None:
        zero = np.full(factor.shape, zero, np.int8)
    return replace(rounded, scale=rounded.scale * factor, zero_point=zero, axis=axis)


def _scales(runs: Floats, limit: int, *, search: bool) -> Floats:
    """A scale for each run of numbers along the last dimension."""
    largest = np.abs(runs).max(axis=-1, initial=0).astype(np.float32)
    best = largest / np.float32(limit)
    best = np.where(best > np.finfo(np.float32).tiny, best, 1).astype(np.float32)
    if not search:
        return best
    full, least = best, np.full(best.shape, np.inf)
    for share in _SHARES:
        scale = (full * np.float32(share)).astype(np.float32)
        codes = np.clip(np.rint(runs / scale[..., None]), -limit - 1, limit)
        error = np.square(runs - codes * scale[..., None]).sum(axis=-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _weights_of(node: NodeProto) -> Sequence[str]:
    kind = _KINDS.get(node.op_type)
    if kind is None or node.domain not in ("", "ai.onnx"):
        return ()
    first, last = {"table": (0, 1), "recurrent": (1, 3)}.get(kind, (1, 2))
    return list(node.input)[first:last]


def _place(node: NodeProto, name: str, rank: int) -> tuple[Kind, int] | None:
    """What the weight is to the node, and the axis of its output channels; ``None`` where it is something else."""
    if list(node.input).count(name) != 1 or name not in _weights_of(node):
        return None
    kind = _KINDS[node.op_type]
    said: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
    if kind == "matrix" or kind == "table":
        axis = {"MatMul": 1, "Gemm": 0 if said.get("transB") else 1, "Gather": said.get("axis", 0)}[node.op_type]
        return (kind, axis) if rank == 2 and (kind == "matrix" or axis == 0) else None
    if kind == "recurrent":
        return (kind, 1) if rank == 3 else None
    return (kind, 0 if kind == "conv" else 1) if rank >= 3 else None
