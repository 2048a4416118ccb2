"""Holds an ONNX graph against the module that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import ModelProto, ValueInfoProto
from torch.export import ExportedProgram

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Array, Arrays
from tauten.errors import LoweringError, MismatchError
from tauten.make.layers.choice import watch_choices
from tauten.make.lower._export import lifted, module_path
from tauten.make.model.model import Model
from tauten.make.model.run import forward

IntArray = npt.NDArray[np.int64]

TOLERANCE: Final = 1e-3
"""How far a number may be off, as a share of the largest number in the module's output. Float32 in another order of
addition is off by about 1e-6 an operation; a wrong operation by far more than this."""

_INTEGERS_OFF: Final = 1e-3  # share of integers (an argmax) that may differ, where the numbers behind them nearly tie
_NEAR_TIE: Final = 2e-5  # a choice by less, as a share of what was compared, may fall otherwise in another engine
_ONE, _FEW = 1, 3  # batch sizes beside the full one; none is the size that was exported


def check_same(graph: ModelProto, program: ExportedProgram, model: Model, inputs: Arrays) -> float:
    """Compare on ``inputs``, and on their first sample and first three alone.

    Returns the largest difference, as a share of the largest number. A sample for which a layer's choice nearly ties is
    left out (``make.layers.choice``). Raises ``MismatchError`` that names the first
    operation whose result differs.
    """
    session = open_session(graph)
    largest = 0.0
    for name, batch, off in differences(lambda names, batch: run_session(session, names, batch), model, inputs):
        largest = max(largest, off)
        if off > TOLERANCE:
            size = count_rows(model.inputs, batch)
            raise MismatchError(
                f"{name}: the graph differs from the module by {off:.3g} of its largest value (batch {size}, "
                f"at most {TOLERANCE:g} is allowed); {_first_that_differs(graph, program, model, batch)}"
            )
    return largest


def differences(
    run: Callable[[list[str], Arrays], Arrays], model: Model, inputs: Arrays
) -> Iterator[tuple[str, Arrays, float]]:
    """How far ``run`` is off from the module: an output's name, the inputs, and the difference, for each output.

    The inputs are ``inputs``, and their first sample and first three alone. A sample for which a layer's choice nearly
    ties is left out.
    """
    for batch in _sizes(model, inputs):
        with watch_choices() as margins:
            expected = forward(model.module, model.inputs, model.outputs, batch)
        answers = run(list(expected), batch)
        clear = _clear(margins, count_rows(model.inputs, batch))
        for name, wanted in expected.items():
            yield name, batch, difference(*(_rows(array, clear) for array in (wanted, answers[name])))


def _clear(margins: list[torch.Tensor], batch: int) -> IntArray | None:
    """The samples whose choices another order of addition would not change; ``None`` where no layer chooses."""
    counted = [margin.cpu().numpy() for margin in margins if margin.shape == (batch,)]
    return np.flatnonzero(np.min(counted, axis=0) > _NEAR_TIE) if counted else None


def _rows(array: Array, clear: IntArray | None) -> Array:
    return array if clear is None or not array.ndim or len(array) <= clear.max(initial=-1) else array[clear]


def difference(wanted: Array, came: Array) -> float:
    """The largest difference as a share of the largest number in ``wanted``; infinity where the two do not compare.

    For integers and booleans: 0, or infinity where more than one in a thousand differs.
    """
    if wanted.shape != came.shape or wanted.dtype != came.dtype:
        return float("inf")
    if not wanted.size:
        return 0.0
    if not np.issubdtype(wanted.dtype, np.floating):
        return 0.0 if np.mean(wanted != came) <= _INTEGERS_OFF else float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], came[~finite], equal_nan=True) or not np.isfinite(came[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    reals = wanted[finite].astype(np.float64)
    scale = max(float(np.abs(reals).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(reals - came[finite].astype(np.float64)).max()) / scale


def open_session(graph: ModelProto, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """A session over a graph with its weights inside, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    onnxruntime.disable_telemetry_events()
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # each status of the runtime is an exception class of its own, without a base
        raise LoweringError(f"ONNX Runtime refuses the graph: {fault}") from fault


def run_session(session: onnxruntime.InferenceSession, names: list[str], inputs: Mapping[str, Array]) -> Arrays:
    """Outputs by name; ``LoweringError`` where the graph does not run."""
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4
    try:
        return dict(zip(names, session.run(names, dict(inputs), quiet), strict=True))
    except Exception as fault:  # each status of the runtime is an exception class of its own, without a base
        shapes = {name: array.shape for name, array in inputs.items()}
        raise LoweringError(f"ONNX Runtime cannot run the graph on {shapes}: {fault}") from fault


def _sizes(model: Model, inputs: Arrays) -> Iterator[Arrays]:
    yield inputs
    size = count_rows(model.inputs, inputs)
    if any(spec.batch_axis is not None for spec in model.inputs):
        for fewer in (_ONE, _FEW):
            if fewer < size:
                yield take_rows(model.inputs, inputs, range(fewer))


def _first_that_differs(graph: ModelProto, program: ExportedProgram, model: Model, inputs: Arrays) -> str:
    """Run both one operation after the other; the exporter names a node's result after the program's node."""
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    alias = {str(node): name for node, name in zip(returned, model.outputs, strict=True)}
    theirs = _every_value(graph, inputs)
    arguments = iter(torch.from_numpy(inputs[spec.name]) for spec in model.inputs)
    flat = [next(arguments) if tensor is None else tensor for tensor in lifted(program)]
    interpreter = _Recorder(program.graph_module)
    with torch.inference_mode():
        interpreter.run(*flat)
    for node, ours in interpreter.results:
        name = alias.get(node.name, node.name)
        if name in theirs and (off := difference(ours, theirs[name])) > TOLERANCE:
            where = module_path(node)
            return (
                f"the first operation that differs is {_operation(node)} ({node.name}"
                f"{f', in module {where}' if where else ''}), by {off:.3g} of its largest value"
            )
    return "no single operation differs when the graph is not optimized: ONNX Runtime's optimization changes the answer"


class _Recorder(torch.fx.Interpreter):
    """Keeps the tensor that each operation made."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.results: list[tuple[torch.fx.Node, Array]] = []

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor):
            self.results.append((n, result.detach().numpy().copy()))
        return result


def _operation(node: torch.fx.Node) -> str:
    """The operation's name; for one of several results, the operation that made them."""
    while node.target.__class__.__name__ == "builtin_function_or_method" and node.args:
        source = node.args[0]
        if not isinstance(source, torch.fx.Node):
            break
        node = source
    return str(node.target)


def _every_value(graph: ModelProto, inputs: Arrays) -> Arrays:
    """Each value that the graph computes, by name, as it is without optimization."""
    opened = ModelProto()
    opened.CopyFrom(graph)
    present = {value.name for value in opened.graph.output}
    names = list(present)
    for node in opened.graph.node:
        for name in node.output:
            if name and name not in present:
                present.add(name)
                opened.graph.output.append(ValueInfoProto(name=name))
                names.append(name)
    return run_session(open_session(opened, optimize=False), names, inputs)
