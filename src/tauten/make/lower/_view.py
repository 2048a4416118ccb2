"""A graph that is being rewritten: who makes each value, who reads it, what it holds, and new nodes put in."""

from __future__ import annotations

from typing import Any, Final

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tauten.core.tensor import Array
from tauten.make.lower._graph import all_nodes, drop_unused, subgraphs
from tauten.make.lower._shapes import Shape, Shapes, attribute

OLDEST: Final = 18
"""The first version of ONNX's operations whose reductions take their axes as an input, as the nodes made here do."""


class View:
    """The graph of ``model``, whose nodes are changed in place; ``settle`` puts it in order again.

    A value keeps its name as long as it keeps its meaning: the comparison with the module goes by names.
    """

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.shapes = Shapes(model)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = {*self._tensors, *self.makers, *(value.name for value in model.graph.input)}
        self._readers: dict[str, list[NodeProto]] = {}
        self._held: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        for node in self.nodes:
            for name in self._reads(node):
                self._readers.setdefault(name, []).append(node)

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a value, one with branches where these read it, each once."""
        return list({id(node): node for node in self._readers.get(name, ())}.values())

    def maker(self, name: str, *kinds: str) -> NodeProto | None:
        """The node that makes a value, if it is one of ``kinds``."""
        node = self.makers.get(name)
        return node if node is not None and not node.domain and node.op_type in kinds else None

    def shape(self, name: str) -> Shape | None:
        """A value's shape; ``None`` where not even its rank is known."""
        return self.shapes.shape.get(name)

    def constant(self, name: str) -> Array | None:
        """What a value holds, where the graph says it."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        node = self.maker(name, "Constant")
        value = None if node is None else attribute(node, "value")
        return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else None

    def name(self, base: str) -> str:
        """``base``, or with a number where there is a value of that name."""
        found, count = base, 1
        while found in self._names:
            found, count = f"{base}_{count}", count + 1
        self._names.add(found)
        return found

    def hold(self, base: str, array: Array) -> str:
        """A new constant, or one of the same content that was made here before; its name."""
        content = (array.dtype.str, array.shape, array.tobytes())
        if content in self._held:
            return self._held[content]
        name = self._held[content] = self.name(base)
        tensor = numpy_helper.from_array(array, name)
        self.graph.initializer.append(tensor)
        self._tensors[name] = tensor
        self.shapes.shape[name] = tuple((size, ()) for size in array.shape)
        return name

    def add(self, kind: str, inputs: list[str], base: str, shape: Shape | None, **attributes: Any) -> str:
        """A new node whose one output is named after ``base``; the output's name."""
        output = self.name(base)
        node = helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes)
        self.nodes.append(node)
        self.makers[output] = node
        if shape is not None:
            self.shapes.shape[output] = shape
        for name in inputs:
            self._readers.setdefault(name, []).append(node)
        return output

    def rename_output(self, node: NodeProto, base: str) -> str:
        """Give a node's first output another name, for its readers too, and free the old one; the new name."""
        old, new = node.output[0], self.name(base)
        self._names.discard(old)
        node.output[0] = new
        self.makers[new] = self.makers.pop(old)
        if old in self.shapes.shape:
            self.shapes.shape[new] = self.shapes.shape[old]
        self.redirect(old, new)
        return new

    def redirect(self, old: str, new: str, *, readers: list[NodeProto] | None = None) -> None:
        """Let ``readers`` (all, where not given) read ``new`` in place of ``old``. Not for the graph's outputs."""
        for node in self.readers(old) if readers is None else readers:
            for index, name in enumerate(node.input):
                if name == old:
                    self.set_input(node, index, new)

    def set_input(self, node: NodeProto, index: int, new: str) -> None:
        """Let a node read ``new`` as its input ``index``."""
        old = node.input[index]
        node.input[index] = new
        if old not in self._reads(node):
            self._readers[old] = [reader for reader in self._readers.get(old, ()) if reader is not node]
        self._readers.setdefault(new, []).append(node)

    def settle(self) -> None:
        """Write the nodes back, each after what it reads, without those that nothing reads."""
        ordered: list[NodeProto] = []
        done: set[int] = set()
        wanted = {id(node) for node in self._needed()}
        for first in self.nodes:
            stack = [first] if id(first) in wanted else []
            while stack:
                node = stack[-1]
                before = [self.makers[name] for name in self._reads(node) if name in self.makers]
                waiting = [maker for maker in before if id(maker) not in done]
                if id(node) in done or not waiting:
                    stack.pop()
                    if id(node) not in done:
                        done.add(id(node))
                        ordered.append(node)
                else:
                    stack += waiting
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        drop_unused(self.graph)

    def _needed(self) -> list[NodeProto]:
        found: dict[int, NodeProto] = {}
        open_ = list(self.outputs)
        while open_:
            node = self.makers.get(open_.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                open_ += self._reads(node)
        return list(found.values())

    def _reads(self, node: NodeProto) -> list[str]:
        names = list(node.input)
        for inner in subgraphs(node):
            names += (name for below in all_nodes(inner) for name in below.input)
            names += (value.name for value in inner.output)
        return [name for name in names if name]


def modern(model: ModelProto) -> bool:
    """Whether a graph's operations are of a version that nodes made here may stand beside."""
    return any(not opset.domain and opset.version >= OLDEST for opset in model.opset_import)
