"""Weights that are stored in 8 or 4 bits, and multiplied in float or by a kernel that reads them packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tauten.core.tensor import Array
from tauten.make.lower._graph import drop_unused
from tauten.make.lower._quantize_weights import Rounded, replace_nodes

PACKED: Final = "_packed"
"""Ends the name of a weight of two 4-bit numbers a byte, as ``MatMulNBits`` reads it."""

BLOCKS: Final = (16, 32, 64, 128, 256)
"""How many numbers may share a scale in ``MatMulNBits``."""

_MICROSOFT: Final = "com.microsoft"
_WHOLE: Final = (128, 64, 32, 16)  # blocks of a weight whose channels have one scale each: large ones are fast
_ACCURACY: Final = 4  # inputs are rounded to 8 bits a block: with float ones the kernel takes 2 to 60 times as long
_WIDENED: Final = "float32; widened once, while it loads"


def store_weights(model: ModelProto, chosen: Mapping[str, Rounded]) -> dict[str, str]:
    """Hold each weight of ``chosen`` in whole numbers, in place; by its name, how it is computed with.

    Matrices become ONNX Runtime's product with packed weights, ``MatMulNBits``, unless their groups are of a size that
    it does not know, or a table holds the same numbers the other way round, which then need not be stored twice. Of a
    table only the rows that are looked up are widened. All other weights are widened by
    operations on constants, which a runtime carries out once, while it loads: the file is small, the memory is that of
    float. (It leaves ``DequantizeLinear`` of a constant to each call.)
    """
    graph = model.graph
    maker = _Maker(graph, chosen)
    twins = _turned_tables(graph, chosen)
    nodes: list[NodeProto] = []
    for node in graph.node:
        names = [name for name in node.input if name in chosen]
        rounded = chosen[names[0]] if names else None
        if rounded is None:
            nodes.append(node)
        elif node.op_type == "MatMul" and names[0] in twins and not rounded.group:
            nodes += maker.dequantized_product(node, names[0])
        elif node.op_type == "MatMul" and rounded.group in (0, *BLOCKS) and rounded.axis in (1, None):
            nodes += maker.packed_product(node, names[0])
        elif node.op_type == "Gather" and rounded.axis in (0, None):
            nodes += maker.look_up(node, names[0])
        else:
            for name in names:
                nodes += maker.widen(name)
            node.input[:] = [f"{name}_float" if name in chosen else name for name in node.input]
            nodes.append(node)
    replace_nodes(graph, nodes)
    if any(node.domain == _MICROSOFT for node in graph.node):
        use_own_operations(model)
    drop_unused(graph)
    return maker.ways


def use_own_operations(model: ModelProto) -> None:
    """Declare that the graph has operations of ONNX Runtime's own, in place."""
    if all(opset.domain != _MICROSOFT for opset in model.opset_import):
        model.opset_import.add(domain=_MICROSOFT, version=1)


def pack_pairs(numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Numbers from 0 to 15, two a byte along the last dimension, the first in the low half."""
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    low, high = numbers[..., 0::2], numbers[..., 1::2]
    return np.bitwise_or(low, np.left_shift(high, 4, dtype=np.uint8), dtype=np.uint8)


def _turned_tables(graph: GraphProto, chosen: Mapping[str, Rounded]) -> set[str]:
    """The matrices whose codes are the transpose of a table's."""
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & chosen.keys()
    turned = [chosen[name].codes.T for name in tables]
    return {
        name for name in chosen.keys() - tables if any(np.array_equal(chosen[name].codes, table) for table in turned)
    }


def _each(zero_point: npt.NDArray[np.int8], channels: int, blocks: int) -> npt.NDArray[np.int8]:
    """A channel's zero point, or the only one, for each of its blocks."""
    return np.broadcast_to(zero_point.reshape(-1, 1), (channels, blocks))


class _Maker:
    def __init__(self, graph: GraphProto, chosen: Mapping[str, Rounded]) -> None:
        self._graph = graph
        self._chosen = chosen
        self._added: set[str] = set()
        self._widened: set[str] = set()
        self.ways: dict[str, str] = {}

    def packed_product(self, node: NodeProto, name: str) -> list[NodeProto]:
        rounded = self._chosen[name]
        codes = rounded.codes if rounded.axis == 0 else rounded.codes.T
        channels, width = codes.shape
        bits = 4 if rounded.bits <= 4 else 8
        block = rounded.group or next((size for size in _WHOLE if size <= width), _WHOLE[-1])
        offset, blocks = 2 ** (bits - 1), -(-width // block)
        parts = [f"{name}{PACKED if bits == 4 else '_quantized'}", f"{name}_scale"]
        nodes: list[NodeProto] = []
        zero = None
        if rounded.zero_point is not None:
            zero = rounded.zero_point if rounded.group else _each(rounded.zero_point, channels, blocks)
            zeros = np.add(zero, offset, dtype=np.int16).astype(np.uint8)
            parts.append(f"{name}_zero_point")
            self._add(parts[2], (pack_pairs(zeros) if bits == 4 else zeros).reshape(-1))
        # What fills the last block up stands for zero.
        filled = np.zeros((channels, blocks * block), np.int16)
        filled += 0 if zero is None else np.repeat(zero, block, axis=1)
        filled[:, :width] = codes
        numbers = (filled + offset).astype(np.uint8).reshape(channels, blocks, block)
        self._add(parts[0], pack_pairs(numbers) if bits == 4 else numbers)
        if rounded.group:
            self._add(parts[1], rounded.scale.reshape(-1))
        else:
            # The file holds one scale a channel; a constant operation repeats it for the kernel's blocks.
            self._add(parts[1], rounded.scale.reshape(-1, 1))
            self._add(f"{name}_blocks", np.array([channels, blocks]))
            if name not in self._widened:
                self._widened.add(name)
                given = [parts[1], f"{name}_blocks"]
                nodes.append(helper.make_node("Expand", given, [f"{name}_scales"], name=f"{name}_expand"))
            parts[1] = f"{name}_scales"
        self.ways[name] = f"{bits}-bit kernel, inputs rounded to 8 bits a block"
        product = helper.make_node(
            "MatMulNBits", [node.input[0], *parts], node.output, name=node.name, domain=_MICROSOFT, K=width,
            N=channels, bits=bits, block_size=block, accuracy_level=_ACCURACY,
        )  # fmt: skip
        return [*nodes, product]

    def dequantized_product(self, node: NodeProto, name: str) -> list[NodeProto]:
        """A float product behind ``DequantizeLinear``, which ONNX Runtime joins to one kernel for packed weights.

        Each product has one of its own: shared, it would be carried out at each call.
        """
        rounded, target = self._chosen[name], f"{node.output[0]}_weight"
        along: dict[str, Any] = {} if rounded.axis is None else {"axis": rounded.axis}
        given = self._tensors(name)
        node.input[1] = target
        self.ways[name] = "8-bit kernel, inputs rounded to 8 bits a block"
        return [helper.make_node("DequantizeLinear", given, [target], name=f"{target}_dequantize", **along), node]

    def look_up(self, node: NodeProto, name: str) -> list[NodeProto]:
        rounded = self._chosen[name]
        indices, output = node.input[1], node.output[0]
        codes, *others = self._tensors(name)
        self.ways[name] = "float32; only rows that are looked up are widened"
        whole, last = f"{output}_codes", f"{output}_wide"
        nodes = [
            helper.make_node("Gather", [codes, indices], [whole], name=f"{whole}_rows", axis=0),
            helper.make_node("Cast", [whole], [last], name=f"{whole}_cast", to=TensorProto.FLOAT),
        ]
        found = []
        for other in others:
            if rounded.axis is None:
                found.append(other)
            else:
                nodes.append(
                    helper.make_node("Gather", [other, indices], [f"{output}_rows{other[len(name) :]}"], axis=0)
                )
                found.append(nodes[-1].output[0])
            if rounded.group:
                # Each row's groups, repeated for the numbers that they are of.
                given = [found[-1], self._places(name, rounded)]
                nodes.append(helper.make_node("Gather", given, [f"{found[-1]}_spread"], axis=-1))
                found[-1] = nodes[-1].output[0]
        if len(found) > 1:
            nodes.append(helper.make_node("Cast", [found[1]], [f"{output}_offset"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Sub", [last, f"{output}_offset"], [f"{last}_from_zero"]))
            last = f"{last}_from_zero"
        return [*nodes, helper.make_node("Mul", [last, found[0]], [output], name=node.name)]

    def widen(self, name: str) -> list[NodeProto]:
        """What makes ``{name}_float`` of the codes, once."""
        self.ways.setdefault(name, _WIDENED)
        if name in self._widened:
            return []
        self._widened.add(name)
        rounded = self._chosen[name]
        codes, *others = self._tensors(name)
        last = f"{name}_wide"
        nodes = [helper.make_node("Cast", [codes], [last], name=f"{name}_cast", to=TensorProto.FLOAT)]
        if len(others) > 1:
            spread, more = self._spread(name, others[1], rounded)
            nodes += more
            nodes.append(helper.make_node("Cast", [spread], [f"{name}_offset"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Sub", [last, f"{name}_offset"], [f"{name}_from_zero"]))
            last = f"{name}_from_zero"
        spread, more = self._spread(name, others[0], rounded)
        return [*nodes, *more, helper.make_node("Mul", [last, spread], [f"{name}_float"], name=f"{name}_widen")]

    def _spread(self, name: str, what: str, rounded: Rounded) -> tuple[str, list[NodeProto]]:
        """A scale or zero point so that it goes with the codes: a group's is repeated for its numbers."""
        if not rounded.group:
            return what, []
        given = [what, self._places(name, rounded)]
        nodes = [helper.make_node("Gather", given, [f"{what}_spread"], axis=1)]
        if rounded.axis == 1:
            nodes.append(helper.make_node("Transpose", [f"{what}_spread"], [f"{what}_turned"], perm=[1, 0]))
        return nodes[-1].output[0], nodes

    def _places(self, name: str, rounded: Rounded) -> str:
        """The name of a tensor that says in which group each number along a channel is."""
        places = f"{name}_groups"
        self._add(places, (np.arange(rounded.codes.shape[1 - (rounded.axis or 0)]) // rounded.group).astype(np.int32))
        return places

    def _tensors(self, name: str) -> list[str]:
        """The names of a weight's codes and scale, and of its zero point where it has one.

        Scales have the shape that they are read in: flat for ``DequantizeLinear``, a row each for a table's.
        """
        rounded = self._chosen[name]
        names = [f"{name}_quantized", f"{name}_scale"]
        self._add(names[0], rounded.codes)
        flat = rounded.group or rounded.axis is None or (rounded.axis == 1 and rounded.codes.ndim == 2)
        self._add(names[1], rounded.scale if flat else rounded.spread(rounded.scale))
        if rounded.zero_point is not None:
            names.append(f"{name}_zero_point")
            self._add(names[2], rounded.zero_point if flat else rounded.spread(rounded.zero_point))
        return names

    def _add(self, name: str, array: Array) -> None:
        if name not in self._added:
            self._added.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
