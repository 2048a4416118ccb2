"""Attention as engines know it: keys that are turned once, one scale, and no guard between softmax and product.

Engines run ``softmax(q kᵀ + mask) v`` in one kernel where they recognize it. What the exporter puts in their way is
taken out here, without a change of what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tauten.core.tensor import Array
from tauten.make.lower._shapes import ONE, Shape, attribute, product
from tauten.make.lower._view import View, modern

_LARGEST: Final = float(np.finfo(np.float32).max)
_DEEPEST: Final = 32
_COMPUTED: Final = ("MatMul", "Gemm", "Conv", "LayerNormalization", "Softmax")
_MOVED: Final = ("Expand", "Gather", "Identity", "Neg", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_TRUTHS: Final = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor")


@dataclass(frozen=True)
class _Rows:
    """Names of two values: 1 for each row of a mask that is open anywhere and 0 for others, and the mask without them.

    In the second, a row that was closed whole is open.
    """

    open: str
    mask: str


def plain_attention(model: ModelProto) -> dict[str, int]:
    """Rewrite a graph in place; returns how often each of ``keys``, ``scales``, ``shapes`` and ``guards`` was.

    - keys: a transposition of the last two axes by way of three dimensions is one transposition, next to the product.
    - scales: where queries and keys are both multiplied with a number, the queries are with both.
    - shapes: a shape that is computed is said as a constant, where the sizes that are open are copied from the input.
    - guards: ``Where(IsNaN(p), 0, p)`` after a softmax ``p``, for rows without any open position (see ``_unguard``).
    """
    if not modern(model):
        return dict.fromkeys(("keys", "scales", "shapes", "guards"), 0)
    view, rows = View(model), dict[str, _Rows]()
    done = {
        "keys": sum(_transpose_last(view, node) for node in list(view.nodes)),
        "scales": sum(_scale_once(view, node) for node in list(view.nodes)),
        "shapes": sum(_say_shape(view, node) for node in list(view.nodes)),
        "guards": sum(_unguard(view, node, rows) for node in list(view.nodes)),
    }
    done["keys"] += sum(_split_transpose(view, node) for node in list(view.nodes))
    if any(done.values()):
        view.settle()
    return done


def _transpose_last(view: View, node: NodeProto) -> bool:
    """``Reshape`` to three dimensions, ``Transpose`` of the last two, ``Reshape`` back: one ``Transpose``."""
    middle = view.maker(node.input[0], "Transpose") if node.op_type == "Reshape" and not node.domain else None
    first = None if middle is None else view.maker(middle.input[0], "Reshape")
    if first is None or middle is None or list(attribute(middle, "perm", ())) != [0, 2, 1]:
        return False
    before, merged, after = view.shape(first.input[0]), view.shape(first.output[0]), view.shape(node.output[0])
    if before is None or merged is None or after is None or len(before) < 3:
        return False
    if merged != (product(before[:-2]), *before[-2:]) or after != (*before[:-2], before[-1], before[-2]):
        return False
    if node.output[0] in view.outputs:
        return False
    rank = len(before)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    view.redirect(node.output[0], view.add("Transpose", [first.input[0]], f"{node.output[0]}_plain", after, perm=perm))
    return True


def _split_transpose(view: View, node: NodeProto) -> bool:
    """A ``Transpose`` right before a product as two: heads before tokens, and the last two axes.

    OpenVINO takes the second into the product, and moves whole rows of a head in the first: a sixth of the time of one
    transposition that does both. ONNX Runtime joins the two.
    """
    made = view.maker(node.input[1], "Transpose") if node.op_type == "MatMul" and not node.domain else None
    perm = None if made is None else attribute(made, "perm")
    if made is None or perm is None or len(perm) < 3:
        return False
    first = [*perm[:-2], perm[-1], perm[-2]]
    shape = view.shape(made.output[0])
    if first[-1] != len(perm) - 1 or first == sorted(first) or shape is None:
        return False
    turned = (*shape[:-2], shape[-1], shape[-2])
    name = view.add("Transpose", [made.input[0]], f"{made.output[0]}_heads", turned, perm=first)
    last = [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]
    view.set_input(node, 1, view.add("Transpose", [name], f"{made.output[0]}_last", shape, perm=last))
    return True


def _scale_once(view: View, node: NodeProto) -> bool:
    """``(a · q) (b · k)ᵀ`` as ``(a b · q) kᵀ``."""
    if node.op_type != "MatMul" or node.domain:
        return False
    queries, keys = (_scaled(view, name) for name in node.input)
    if queries is None or keys is None:
        return False
    (left, by, kind), (right, and_by, _) = queries, keys
    factor = view.hold(f"{node.output[0]}_scale", np.array(by * and_by, kind))
    view.set_input(node, 0, view.add("Mul", [left, factor], f"{node.output[0]}_scaled", view.shape(left)))
    view.set_input(node, 1, right)
    return True


def _scaled(view: View, name: str) -> tuple[str, float, np.dtype[np.generic]] | None:
    """What a value is before it is multiplied with a number, and the number."""
    node = view.maker(name, "Mul")
    for value, factor in (node.input, (node.input[1], node.input[0])) if node is not None else ():
        array = view.constant(factor)
        if array is not None and array.size == 1 and view.shape(value) == view.shape(name) is not None:
            return value, float(array.item()), array.dtype
    return None


def _say_shape(view: View, node: NodeProto) -> bool:
    """A ``Reshape`` to a constant: 0 where the input's size at the same place stays, -1 for one that is open."""
    if node.op_type != "Reshape" or node.domain:
        return False
    before, after = view.shape(node.input[0]), view.shape(node.output[0])
    if before is None or after is None or (0, ()) in after:
        return False
    target = [
        0 if axis < len(before) and before[axis] == size else -1 if size[1] else size[0]
        for axis, size in enumerate(after)
    ]
    given = view.constant(node.input[1])
    if target.count(-1) > 1 or (given is not None and given.tolist() == target):
        return False
    view.set_input(node, 1, view.hold(f"{node.output[0]}_shape", np.array(target, np.int64)))
    for old in [found for found in node.attribute if found.name == "allowzero"]:
        node.attribute.remove(old)
    return True


def _unguard(view: View, node: NodeProto, found: dict[str, _Rows]) -> bool:
    """Take a guard out from between a softmax and a product.

    A softmax is not a number only in a row where every score is minus infinity: where a mask closes every position.
    Without a mask, and with one that closes no row whole, the guard just goes. With any other, such rows are found
    from the mask, which is smaller than the scores; the mask leaves them open, and their products are multiplied
    with 0. Scores that are infinite or not numbers by themselves are not considered: no answer comes of them.
    """
    if node.op_type != "Where" or node.domain:
        return False
    check, soft = view.maker(node.input[0], "IsNaN"), view.maker(node.input[2], "Softmax")
    zero, guarded = view.constant(node.input[1]), node.output[0]
    if check is None or soft is None or check.input[0] != soft.output[0] or zero is None or zero.any():
        return False
    shape, scores = view.shape(soft.output[0]), soft.input[0]
    if shape is None or attribute(soft, "axis", -1) not in (-1, len(shape) - 1) or guarded in view.outputs:
        return False
    adder, index = _mask_of(view, scores)
    if index is None and not _bounded(view, scores):
        return False
    if adder is None or index is None or _leaves_open(view.constant(adder.input[index])):
        view.redirect(guarded, soft.output[0])
        return True
    mask = view.shape(adder.input[index])
    alone = all(
        len(view.readers(name)) == count and name not in view.outputs
        for name, count in ((scores, 1), (soft.output[0], 2), (check.output[0], 1))
    )
    readers = view.readers(guarded)
    into_products = all(reader.op_type == "MatMul" and list(reader.input).index(guarded) == 0 for reader in readers)
    if not mask or len(mask) > len(shape) or not alone or not into_products:
        return False
    rows = found.get(adder.input[index]) or _find_rows(view, adder.input[index], mask, zero)
    found[adder.input[index]] = rows
    view.set_input(adder, index, rows.mask)
    view.redirect(guarded, soft.output[0])
    for reader in readers:
        name = reader.output[0]
        plain = view.rename_output(reader, f"{name}_open")
        later = view.readers(plain)
        view.redirect(plain, view.add("Mul", [plain, rows.open], name, view.shape(plain)), readers=later)
    return True


def _find_rows(view: View, mask: str, shape: Shape, zero: Array) -> _Rows:
    each = (*shape[:-1], ONE)
    largest = view.add("ReduceMax", [mask, view.hold(f"{mask}_last", np.array([-1]))], f"{mask}_largest", each)
    lowest = view.hold(f"{mask}_closed", np.array(-np.inf, zero.dtype))
    some = view.add("Greater", [largest, lowest], f"{mask}_some", each)
    factor = view.add("Cast", [some], f"{mask}_rows", each, to=helper.np_dtype_to_tensor_dtype(zero.dtype))
    nothing = view.hold(f"{mask}_nothing", np.array(0, zero.dtype))
    return _Rows(factor, view.add("Where", [some, mask, nothing], f"{mask}_opened", shape))


def _mask_of(view: View, scores: str) -> tuple[NodeProto | None, int | None]:
    """The addition of what may be minus infinity to scores that are not, and which of its inputs that is."""
    adder = view.maker(scores, "Add")
    if adder is None:
        return None, None
    free = [index for index in (0, 1) if not _bounded(view, adder.input[index])]
    return adder, free[0] if len(free) == 1 else None


def _leaves_open(mask: Array | None) -> bool:
    """Whether a mask that is a constant has an open position in every row."""
    if mask is None or not mask.ndim:
        return False
    numbers = mask.astype(np.float64)
    return bool((numbers < np.inf).all() and np.isfinite(numbers).any(axis=-1).all())


def _bounded(view: View, name: str) -> bool:
    bound = _bound(view, name)
    return bound is not None and bound <= _LARGEST


def _bound(view: View, name: str, depth: int = 0) -> float | None:
    """The largest size of a value's numbers, as constants in it set it; ``None`` where it may be infinite.

    Products of activations count as 0, beside constants that stand for infinity.
    """
    array = view.constant(name)
    if array is not None:
        finite = np.issubdtype(array.dtype, np.number) and np.isfinite(array).all()
        return float(np.abs(array).max(initial=0)) if finite else None
    if depth > _DEEPEST or name not in view.makers:
        return None
    node = view.makers[name]
    if node.domain:
        return None
    if node.op_type in _COMPUTED:
        return 0.0
    if node.op_type == "Cast":
        return 1.0 if view.maker(node.input[0], *_TRUTHS) is not None else _bound(view, node.input[0], depth + 1)
    if node.op_type in _MOVED:
        return _bound(view, node.input[0], depth + 1)
    read = {"Where": node.input[1:], "Add": node.input, "Sub": node.input, "Mul": node.input, "Concat": node.input}
    bounds = [_bound(view, given, depth + 1) for given in read.get(node.op_type, ())]
    known = [bound for bound in bounds if bound is not None]
    if not known or len(known) < len(bounds):
        return None
    if node.op_type == "Mul":
        return known[0] * known[1]
    return max(known) if node.op_type in ("Where", "Concat") else sum(known)
