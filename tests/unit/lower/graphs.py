"""What the tests of rewrites share: small ONNX graphs from text, and whether two of them answer alike."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from tauten.core.tensor import Array
from tauten.make.lower._compare import open_session, run_session


def parse(text: str, **constants: Array) -> ModelProto:
    """A model from ONNX's text form, ``inputs => outputs { nodes }``, with constants by name."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def copy(model: ModelProto) -> ModelProto:
    """Another model with the same content."""
    made = ModelProto()
    made.CopyFrom(model)
    return made


def kinds(model: ModelProto) -> list[str]:
    """The operations of a graph, in order."""
    return [node.op_type for node in model.graph.node]


def assert_same(before: ModelProto, after: ModelProto, **inputs: Array) -> None:
    """Both answer alike, up to the order of additions; not a number where the other is not one."""
    onnx.checker.check_model(after, full_check=True)
    names = [value.name for value in before.graph.output]
    assert [value.name for value in after.graph.output] == names
    wanted = run_session(open_session(before), names, inputs)
    came = run_session(open_session(after), names, inputs)
    for name in names:
        assert came[name].shape == wanted[name].shape
        np.testing.assert_allclose(came[name], wanted[name], rtol=2e-5, atol=2e-6)


def draw(*shape: int, seed: int = 0) -> Array:
    """Normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
