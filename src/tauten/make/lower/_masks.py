"""Masks of attention said plainly: without the exporter's detours where a mask is looked up by position."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from tauten.make.lower._shapes import BROADCAST, ONE, SAME, Shape, attribute
from tauten.make.lower._view import View, modern


def plain_masks(model: ModelProto) -> int:
    """Take out of a graph, in place, what its masks do not need; returns how many nodes were replaced.

    - A mask that is gathered at the positions ``0 … n - 1`` (as ``transformers`` writes masks) is the mask itself.
    - What is true everywhere (a position that is not below 0) adds nothing to a mask, and a mask that is open
      everywhere adds nothing to scores. A mask that had a row for each query only for that is left with one for all.
    """
    if not modern(model):
        return 0
    view = View(model)
    done = sum(_gathered_in_place(view, node) for node in list(view.nodes))
    done += sum(_true_operand(view, node) for node in list(view.nodes))
    done += sum(_open_everywhere(view, node) for node in list(view.nodes))
    done += sum(_nothing_added(view, node) for node in list(view.nodes))
    if done:
        view.settle()
    return done


def _gathered_in_place(view: View, node: NodeProto) -> bool:
    """``GatherND(mask, every position)`` as the mask with dimensions of 1 put in."""
    if node.op_type != "GatherND" or attribute(node, "batch_dims", 0):
        return False
    data, out, joined = view.shape(node.input[0]), view.shape(node.output[0]), view.maker(node.input[1], "Concat")
    if data is None or out is None or joined is None or len(joined.input) != len(data):
        return False
    if attribute(joined, "axis") not in (-1, len(out)):
        return False
    axes = []
    for name in joined.input:
        last = view.maker(name, "Unsqueeze")
        added = None if last is None else view.constant(last.input[1])
        if last is None or added is None or added.tolist() not in ([-1], [len(out)]):
            return False
        axes.append(_counts_along(view, last.input[0]))
    kept = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(len(out)) if axis not in kept]
    if len(kept) < len(axes) or kept != sorted(set(kept)) or any(out[axis] != ONE for axis in rest):
        return False
    if tuple(out[axis] for axis in kept) != data or node.output[0] in view.outputs:
        return False
    name = node.input[0]
    if rest:
        inserted = view.hold(f"{node.output[0]}_axes", np.array(rest))
        name = view.add("Unsqueeze", [name, inserted], f"{node.output[0]}_plain", out)
    view.redirect(node.output[0], name)
    return True


def _counts_along(view: View, name: str) -> int | None:
    """The axis along which a value counts 0, 1, 2, …, and is the same along all others; ``None`` where it does not."""
    shape, array = view.shape(name), view.constant(name)
    if shape is None:
        return None
    if array is not None:
        axes = [axis for axis, size in enumerate(array.shape) if size > 1]
        counts = len(axes) == 1 and np.array_equal(array.reshape(-1), np.arange(array.size))
        return axes[0] if counts else None
    made = view.maker(name, "Range", "Unsqueeze", "Expand", "Cast")
    if made is None:
        return None
    if made.op_type == "Range":
        start, _, step = (view.constant(given) for given in made.input)
        return 0 if start is not None and step is not None and start.item() == 0 and step.item() == 1 else None
    before, source = _counts_along(view, made.input[0]), view.shape(made.input[0])
    if before is None or source is None:
        return None
    if made.op_type == "Cast":
        return before
    if made.op_type == "Expand":
        return before + len(shape) - len(source) if source[before] == shape[before + len(shape) - len(source)] else None
    added = view.constant(made.input[1])
    if added is None:
        return None
    put_in = {int(axis) % len(shape) for axis in added.reshape(-1)}
    return [axis for axis in range(len(shape)) if axis not in put_in][before]


def _true(view: View, name: str) -> bool:
    """Whether a mask is open everywhere, whatever the input."""
    array = view.constant(name)
    if array is not None:
        return array.dtype == np.bool_ and bool(array.all())
    made = view.maker(name, "And", "Expand", "Unsqueeze", "Reshape", "GreaterOrEqual")
    if made is None:
        return False
    if made.op_type == "And":
        return all(_true(view, given) for given in made.input)
    if made.op_type == "GreaterOrEqual":
        least = view.constant(made.input[1])
        return (
            least is not None
            and bool(np.all(np.less_equal(least.astype(np.float64), 0)))
            and _counts_along(view, made.input[0]) is not None
        )
    return _true(view, made.input[0])


def _true_operand(view: View, node: NodeProto) -> bool:
    """``And(true, mask)`` as the mask."""
    if node.op_type != "And":
        return False
    for sure, other in (node.input, (node.input[1], node.input[0])):
        if _true(view, sure) and not _true(view, other):
            return _stand_in(view, node, other)
    return False


def _open_everywhere(view: View, node: NodeProto) -> bool:
    """``Where(true, zeros, closed)`` as the zeros."""
    return node.op_type == "Where" and _true(view, node.input[0]) and _stand_in(view, node, node.input[1])


def _nothing_added(view: View, node: NodeProto) -> bool:
    """``Add(scores, zeros)`` as the scores. A bias of zeros, which has one axis, is no mask: it stays."""
    if node.op_type != "Add":
        return False
    for zeros, other in (node.input, (node.input[1], node.input[0])):
        array = view.constant(zeros)
        same = view.shape(other) == view.shape(node.output[0]) is not None
        if same and array is not None and array.ndim != 1 and not array.any():
            return _stand_in(view, node, other)
    return False


def _stand_in(view: View, node: NodeProto, name: str) -> bool:
    """Let ``name`` stand for what ``node`` makes, if its readers stretch the one as they do the other."""
    shape, old = view.shape(name), node.output[0]
    if shape is None or old in view.outputs:
        return False
    narrower: dict[str, Shape] = {}
    if shape != view.shape(old) and not _stretches(view, old, shape, narrower):
        return False
    view.redirect(old, name)
    for value, size in narrower.items():
        view.shapes.shape[view.rename_output(view.makers[value], f"{value}_plain")] = size
    return True


def _stretches(view: View, name: str, shape: Shape, narrower: dict[str, Shape]) -> bool:
    """Whether what is computed stays the same where ``name`` has ``shape`` and is stretched by its readers.

    Collects the values in between that become narrower too.
    """
    if name in view.outputs:
        return False
    for reader in view.readers(name):
        if reader.domain or reader.op_type not in BROADCAST | SAME:
            return False
        shapes = [shape if given == name else narrower.get(given, view.shape(given)) for given in reader.input]
        result = reader.output[0]
        known = [given for given in shapes if given is not None]
        if len(known) != len(shapes):
            return False
        made = view.shapes.broadcast(known)
        if made != view.shape(result):
            narrower[result] = made
            if not _stretches(view, result, made, narrower):
                return False
    return True
