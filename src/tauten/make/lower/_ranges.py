"""Ranges of activations that leave out what lies far from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from tauten.core.tensor import Arrays
from tauten.make.lower._compare import open_session, run_session
from tauten.make.model.ranges import BINS, CHOOSERS, Range


def find_ranges(
    graph: ModelProto,
    names: Sequence[str],
    batches: Sequence[Arrays],
    method: Literal["minmax", "percentile", "mse", "entropy"],
) -> dict[str, Range]:
    """The range of each float value of ``names``; one that is zero throughout has none.

    Two walks over ``batches``, one for the extremes and one for histograms between them (which ``minmax`` needs not):
    memory does not grow with the data, and a value far out costs resolution but no time. A range always holds 0, which
    padding needs.
    """
    if not names:
        return {}
    names = list(names)
    opened = ModelProto()
    opened.CopyFrom(graph)
    present = {value.name for value in graph.graph.output}
    opened.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in present)
    session = open_session(opened, optimize=False)
    ends: dict[str, Range] = dict.fromkeys(names, (0.0, 0.0))
    for batch in batches:
        for name, array in run_session(session, names, batch).items():
            low, high = ends[name]
            # Copied only where something is not finite, which is rare: these are all values of a network.
            if array.size and not np.isfinite([array.min(), array.max()]).all():
                array = array[np.isfinite(array)]
            if array.size:
                ends[name] = (min(low, float(array.min())), max(high, float(array.max())))
    if method == "minmax":
        return {name: (low, high) for name, (low, high) in ends.items() if low < high}
    counts = {name: np.zeros(BINS) for name in names}
    for batch in batches:
        for name, array in run_session(session, names, batch).items():
            if ends[name][0] < ends[name][1]:
                # Zeros, of which a ReLU makes many, are exact in any range and would outweigh all else.
                counts[name] += np.histogram(array[array != 0], bins=BINS, range=ends[name])[0]
    choose = CHOOSERS[method]
    return {name: choose(counts[name], ends[name]) for name in names if counts[name].any()}


def float_values(graph: ModelProto, kinds: Sequence[str]) -> list[str]:
    """The float values that an operation of ``kinds`` reads or makes, but for weights."""
    known = onnx.shape_inference.infer_shapes(graph).graph
    values = (*known.input, *known.value_info, *known.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes = [node for node in graph.graph.node if node.op_type in kinds]
    names = {name for node in nodes for name in (*node.input, *node.output)}
    return sorted(names & floats - {tensor.name for tensor in graph.graph.initializer})
