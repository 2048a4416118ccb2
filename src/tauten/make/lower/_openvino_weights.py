"""Weights in 16, 8 or 4 bits before operations in float: what OpenVINO widens in its kernels, or while it compiles.

Its kernels for linear layers and for tables read weights of 8 and 4 bits as they lie, where they come as a constant, a
conversion, the subtraction of zero points and the multiplication by scales. Others are widened once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from tauten.artifact.nibbles import pack_nibbles
from tauten.core.tensor import Array
from tauten.make.lower._grids import Decided
from tauten.make.lower._half import Half, upper_bits
from tauten.make.lower._quantize_plan import choose, halves
from tauten.make.lower._quantize_weights import Rounded, find_weights, untie
from tauten.make.lower._recurrent import name_recurrent
from tauten.make.model.model import Model, QuantizationPlan

if TYPE_CHECKING:
    import openvino as ov

_LARGEST: Final = float(np.finfo(np.float16).max)
_DYNAMIC: Final = ("matrix", "table")


class Stored:
    """A float ONNX graph whose weights shall be held in fewer bits, as a plan says."""

    def __init__(self, graph: ModelProto, model: Model, plan: QuantizationPlan, decided: Mapping[str, Decided]) -> None:
        self.graph = onnx.ModelProto()
        self.graph.CopyFrom(graph)
        name_recurrent(self.graph.graph, model.module.state_dict())
        untie(self.graph.graph)
        weights = find_weights(self.graph.graph, [name for name, _ in model.module.named_modules()])
        choices = choose(self.graph.graph, weights, model.module, plan, decided)
        self._halves = halves(self.graph.graph, choices, plan, model.module)
        self._rounded: dict[str, Rounded] = {}
        self._float: dict[str, str] = {}
        for choice in choices:
            if choice.rounded is None or (plan.method == "dynamic" and choice.weight.kind not in _DYNAMIC):
                if choice.way != "half":
                    self._float[choice.weight.name] = choice.why or "dynamic int8 is for linear layers"
            else:
                self._rounded[choice.weight.name] = choice.rounded

    def apply(self, model: ov.Model) -> dict[str, Any]:
        """Store the weights in ``model``, which was read from ``graph``, in place; notes say what became of each."""
        constants = {
            operation.get_friendly_name(): operation
            for operation in model.get_ops()
            if operation.get_type_name() == "Constant"
        }
        low: dict[str, str] = {}
        left = dict(self._float)
        for name, rounded in self._rounded.items():
            if name not in constants:
                left[name] = "OpenVINO has taken it apart"
                continue
            _replace(constants[name], _widened(name, rounded))
            low[name] = f"int{4 if rounded.bits <= 4 else 8}"
        for name, half in self._halves.items():
            why = _no_half(constants.get(name), half)
            if why:
                left[name] = why
                continue
            _replace(constants[name], _half(name, constants[name].data, half))
            low[name] = half
        model.validate_nodes_and_infer_types()
        return {"weights": low, "in_float": left}


def _widened(name: str, rounded: Rounded) -> ov.Node:
    """Float numbers out of whole ones, as OpenVINO's kernels recognize it."""
    import openvino.opset13 as ops  # not before the engine has imported it, which keeps its telemetry out

    turned = bool(rounded.group) and rounded.axis == 1
    if turned:
        rounded = rounded.transposed()
    codes, width = rounded.codes, rounded.codes.shape[-1]
    if rounded.group:
        codes = np.pad(codes, ((0, 0), (0, -width % rounded.group)))
        codes = codes.reshape(len(codes), -1, rounded.group)
    node = ops.convert(_constant(f"{name}_quantized", codes, rounded.bits), np.float32)
    if rounded.zero_point is not None:
        zero = _constant(f"{name}_zero_point", _beside(rounded, rounded.zero_point), rounded.bits)
        node = ops.subtract(node, ops.convert(zero, np.float32))
    node = ops.multiply(node, _named(ops.constant(_beside(rounded, rounded.scale)), f"{name}_scale"))
    if rounded.group:
        node = ops.reshape(node, np.array([len(codes), -1], np.int64), special_zero=False)
        if codes.shape[1] * rounded.group > width:
            ends = (np.array([number], np.int64) for number in (0, width, 1, 1))
            node = ops.slice(node, *ends)
    return ops.transpose(node, np.array([1, 0], np.int64)) if turned else node


def _beside(rounded: Rounded, what: Array) -> Array:
    """Scales or zero points in a shape that goes with the codes: a group's along the middle one of three dimensions."""
    if rounded.group:
        return what.reshape(*what.shape, 1)
    if rounded.axis is None:
        return what
    return what.reshape([-1 if dim == rounded.axis else 1 for dim in range(rounded.codes.ndim)])


def _constant(name: str, codes: Array, bits: int) -> ov.Node:
    import openvino as ov

    if bits > 4:
        return _named(ov.opset13.constant(codes), name)
    packed = pack_nibbles(codes)
    tensor = ov.Tensor(packed, ov.Shape(codes.shape), ov.Type.i4)
    return _named(ov.op.Constant(tensor, shared_memory=False), name)


def _no_half(constant: ov.Node | None, half: Half) -> str:
    """Why a weight cannot be held in half; empty where it can."""
    if constant is None or constant.get_element_type().to_string() != "f32":
        return "OpenVINO has taken it apart"
    largest = float(np.abs(constant.data).max(initial=0))
    if half == "float16" and largest > _LARGEST:
        return f"its numbers reach {largest:.3g}, float16 ends at {_LARGEST:.0f}"
    return ""


def _half(name: str, numbers: npt.NDArray[np.float32], half: Half) -> ov.Node:
    import openvino as ov

    if half == "float16":
        constant = ov.opset13.constant(numbers.astype(np.float16))
    else:
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(numbers.shape))
        tensor.data[...] = upper_bits(numbers).view(np.float16)  # its bits: NumPy has no bfloat16
        constant = ov.op.Constant(tensor, shared_memory=False)
    return ov.opset13.convert(_named(constant, name), np.float32)


def _named(node: ov.Node, name: str) -> ov.Node:
    node.set_friendly_name(name)
    return node


def _replace(old: ov.Node, new: ov.Node) -> None:
    for reader in old.output(0).get_target_inputs():
        reader.replace_source_output(new.output(0))
