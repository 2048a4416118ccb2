"""Shapes of every value of an ONNX graph in terms of its open dimensions.

ONNX's own inference gives up where two open sizes meet; here a size is a product of a number and of names (``12 *
batch``), so that sizes that are equal in every run can be told from ones that happen to be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

Dim = tuple[int, tuple[str, ...]]
"""A size: a number, and the sorted names of the open sizes that it is multiplied with."""

Shape = tuple[Dim, ...]

ONE: Final[Dim] = (1, ())
SAME: Final = frozenset(
    {
        "Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
        "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh",
    }
)  # fmt: skip
"""Operations on each number by itself; the shape is that of the first input."""

BROADCAST: Final = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
        "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
    }
)  # fmt: skip
"""Operations on numbers in the same place, each input stretched where its size is 1."""

NORMS: Final = frozenset({"LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"})
"""Operations along some axes that keep the first input's shape."""

_UP_TO: Final = "~"  # before a name: a size that is the named one, or less where a table has fewer rows
_LONGEST_VALUE: Final = 16  # numbers of a shape that is computed with; longer vectors of integers are data


def number(value: int) -> Dim:
    """A size that is known."""
    return (int(value), ())


def product(sizes: Sequence[Dim]) -> Dim:
    """The sizes multiplied."""
    coefficient, names = 1, list[str]()
    for size in sizes:
        coefficient *= size[0]
        names += size[1]
    return (coefficient, tuple(sorted(names)))


def divide(size: Dim, by: Dim) -> Dim | None:
    """``size`` over ``by`` where that comes out even whatever the open sizes are, else ``None``."""
    if not by[0] or size[0] % by[0]:
        return None
    names = list(size[1])
    for name in by[1]:
        if name not in names:
            return None
        names.remove(name)
    return (size[0] // by[0], tuple(names))


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute of a node, or ``default`` where it is not given."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


class Shapes:
    """What is known of a graph's values: ``shape`` by name, and ``values`` of short vectors of integers.

    A size that is not known has a name of its own, which begins with a question mark. A value whose rank is not known
    is absent.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._unknown = (f"?{index}" for index in itertools.count())
        self._base: dict[str, Shape] | None = None
        self.shape: dict[str, Shape] = {}
        self.values: dict[str, tuple[Dim, ...]] = {}
        for tensor in model.graph.initializer:
            self.shape[tensor.name] = tuple(number(size) for size in tensor.dims)
            if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) < 2:
                array = numpy_helper.to_array(tensor).reshape(-1)
                if array.size <= _LONGEST_VALUE:
                    self.values[tensor.name] = tuple(map(number, array))
        for value in model.graph.input:
            if value.name not in self.shape and value.type.tensor_type.HasField("shape"):
                self.shape[value.name] = self._declared(value)
        for node in model.graph.node:
            self._infer(node)

    def broadcast(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of what an elementwise operation makes from these."""
        rank = max(map(len, shapes))
        padded = [(ONE,) * (rank - len(shape)) + shape for shape in shapes]
        return tuple(self._meet(sizes) for sizes in zip(*padded, strict=True))

    def new(self) -> Dim:
        """A size of which nothing is known."""
        return (1, (next(self._unknown),))

    def _meet(self, sizes: Sequence[Dim]) -> Dim:
        wider = list(dict.fromkeys(size for size in sizes if size != ONE))
        if len(wider) < 2:
            return wider[0] if wider else ONE
        numbers = [size for size in wider if not size[1] and size[0] > 1]
        if numbers:  # the others are the same or 1, or the graph does not run
            return numbers[0]
        names = [size for size in wider if not any(name.startswith(_UP_TO) for name in size[1])]
        if len(names) == 1 and all(s == names[0] or s == (1, (f"{_UP_TO}{_name(names[0])}",)) for s in wider):
            return names[0]
        return self.new()

    def _infer(self, node: NodeProto) -> None:
        known = [self.shape.get(name) for name in node.input]
        rule = _RULES.get(node.op_type) if not node.domain else None
        found: Shape | None = None
        if not node.domain and node.op_type in BROADCAST:
            shapes = [shape for shape in known if shape is not None]
            found = self.broadcast(shapes) if len(shapes) == len(known) else None
            self._compute(node)
        elif not node.domain and (node.op_type in SAME or node.op_type in NORMS):
            found = known[0]
            if node.op_type in ("Cast", "Identity") and node.input[0] in self.values:
                self.values[node.output[0]] = self.values[node.input[0]]
        elif rule is not None and known and known[0] is not None:
            found = rule(self, node, known)
        if found is not None:
            self.shape[node.output[0]] = found
            return
        for name in node.output:
            if name and name in (base := self._inferred()):
                self.shape[name] = base[name]

    def _inferred(self) -> dict[str, Shape]:
        """What ONNX infers: for operations that have no rule here."""
        if self._base is None:
            graph = onnx.shape_inference.infer_shapes(self._model, data_prop=True).graph
            values = (*graph.value_info, *graph.output)
            self._base = {v.name: self._declared(v) for v in values if v.type.tensor_type.HasField("shape")}
        return self._base

    def _declared(self, value: onnx.ValueInfoProto) -> Shape:
        return tuple(
            number(size.dim_value) if size.HasField("dim_value")
            else (1, (size.dim_param,)) if size.dim_param else self.new()
            for size in value.type.tensor_type.shape.dim
        )  # fmt: skip

    def _compute(self, node: NodeProto) -> None:
        """A product of sizes."""
        if node.op_type == "Mul" and all(name in self.values for name in node.input):
            left, right = (self.values[name] for name in node.input)
            if len(left) == len(right):
                self.values[node.output[0]] = tuple(product(pair) for pair in zip(left, right, strict=True))


Known = Sequence[Shape | None]
Rule = Callable[[Shapes, NodeProto, Known], Shape | None]


def _name(size: Dim) -> str:
    return size[1][0] if len(size[1]) == 1 and size[0] == 1 else ""


def _ints(shapes: Shapes, node: NodeProto, index: int, name: str) -> list[int] | None:
    """Integers that a node is given as an input or, before that was the way, as an attribute."""
    if len(node.input) > index and node.input[index]:
        values = shapes.values.get(node.input[index])
        return None if values is None or any(value[1] for value in values) else [value[0] for value in values]
    found = attribute(node, name)
    return None if found is None else list(found)


def _matmul(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    left, right = known[:2]
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    return (*shapes.broadcast([left[:-2], right[:-2]]), left[-2], right[-1])


def _gemm(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    left, right = known[:2]
    if left is None or right is None:
        return None
    return (left[1 if attribute(node, "transA", 0) else 0], right[0 if attribute(node, "transB", 0) else 1])


def _transpose(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given = known[0] or ()
    return tuple(given[axis] for axis in attribute(node, "perm", range(len(given))[::-1]))


def _reshape(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given, wanted = known[0] or (), shapes.values.get(node.input[1])
    if wanted is None:
        return None
    copies = not attribute(node, "allowzero", 0)
    sizes = [
        given[axis] if size == (0, ()) and copies and axis < len(given) else size for axis, size in enumerate(wanted)
    ]
    if (-1, ()) in sizes:
        place = sizes.index((-1, ()))
        rest = product(sizes[:place] + sizes[place + 1 :])
        sizes[place] = divide(product(given), rest) or shapes.new()
    return tuple(sizes)


def _shape(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    kept = (known[0] or ())[slice(attribute(node, "start", 0), attribute(node, "end", None))]
    shapes.values[node.output[0]] = kept
    return (number(len(kept)),)


def _slice(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given = known[0] or ()
    starts, steps = _ints(shapes, node, 1, "starts"), None
    ends = shapes.values.get(node.input[2]) if len(node.input) > 2 else None
    if starts is None or ends is None:
        return tuple(shapes.new() for _ in given)
    axes = _ints(shapes, node, 3, "axes") if len(node.input) > 3 else list(range(len(starts)))
    steps = _ints(shapes, node, 4, "steps") if len(node.input) > 4 else [1] * len(starts)
    if axes is None or steps is None:
        return tuple(shapes.new() for _ in given)
    sizes = list(given)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = given[axis]
        if not size[1] and not end[1]:
            sizes[axis] = number(len(range(size[0])[start : end[0] : step]))
        elif start == 0 and step == 1 and (size == end or (not end[1] and end[0] >= 2**31 - 1)):
            sizes[axis] = size
        else:
            whole = start == 0 and step == 1 and _name(end)
            sizes[axis] = (1, (f"{_UP_TO}{whole}",)) if whole else shapes.new()
    held = shapes.values.get(node.input[0])
    if held is not None and len(given) == 1 and not ends[0][1]:
        shapes.values[node.output[0]] = held[starts[0] : ends[0][0] : steps[0]]
    return tuple(sizes)


def _concat(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given = [shape for shape in known if shape is not None]
    if len(given) != len(known):
        return None
    if all(name in shapes.values for name in node.input) and len(given[0]) == 1:
        shapes.values[node.output[0]] = tuple(size for name in node.input for size in shapes.values[name])
    axis = attribute(node, "axis", 0) % len(given[0])
    along = [shape[axis] for shape in given]
    total = shapes.new() if any(size[1] for size in along) else number(sum(size[0] for size in along))
    return (*given[0][:axis], total, *given[0][axis + 1 :])


def _gather(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    data, indices = known[0], known[1]
    if data is None or indices is None:
        return None
    axis = attribute(node, "axis", 0) % len(data)
    held, wanted = shapes.values.get(node.input[0]), _ints(shapes, node, 1, "")
    if held is not None and wanted is not None and all(-len(held) <= index < len(held) for index in wanted):
        shapes.values[node.output[0]] = tuple(held[index] for index in wanted)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _squeeze(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given = known[0] or ()
    axes = _ints(shapes, node, 1, "axes")
    if node.input[0] in shapes.values:
        shapes.values[node.output[0]] = shapes.values[node.input[0]]
    if axes is None:
        return tuple(size for size in given if size != ONE) if not any(size[1] for size in given) else None
    drop = {axis % len(given) for axis in axes}
    return tuple(size for axis, size in enumerate(given) if axis not in drop)


def _unsqueeze(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given = known[0] or ()
    axes = _ints(shapes, node, 1, "axes")
    if axes is None:
        return None
    if node.input[0] in shapes.values and not given:
        shapes.values[node.output[0]] = shapes.values[node.input[0]]
    rank = len(given) + len(axes)
    added, rest = {axis % rank for axis in axes}, iter(given)
    return tuple(ONE if axis in added else next(rest) for axis in range(rank))


def _expand(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    wanted = shapes.values.get(node.input[1])
    return None if wanted is None else shapes.broadcast([known[0] or (), wanted])


def _range(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    start, limit, step = (shapes.values.get(name) for name in node.input)
    plain = start == (number(0),) and step == (number(1),) and limit is not None
    return (limit[0],) if plain and limit is not None else (shapes.new(),)


def _gather_elements(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    return known[1]


def _gather_nd(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    data, indices = known[0], known[1]
    if data is None or indices is None or attribute(node, "batch_dims", 0) or indices[-1][1]:
        return None
    return (*indices[:-1], *data[indices[-1][0] :])


def _reduce(shapes: Shapes, node: NodeProto, known: Known) -> Shape | None:
    given, axes = known[0] or (), _ints(shapes, node, 1, "axes")
    if axes is None:
        return None
    over, keeps = {axis % len(given) for axis in axes}, attribute(node, "keepdims", 1)
    return tuple(ONE if axis in over else size for axis, size in enumerate(given) if keeps or axis not in over)


_RULES: Final[Mapping[str, Rule]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
