"""A model that comes as an ONNX file, made elsewhere: a module around its graph, and a task around calibration data.

What needs the code of a PyTorch module (pruning, training) refuses it; quantization, measurement and serving work.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime
import torch
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper
from torch import nn

from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec, check_arrays
from tauten.errors import ConfigError, InputError, TaskError
from tauten.make.model.task import Batch, Task

OLDEST_OPSET: Final = 13
"""Before it, a weight could not have a scale for each channel; older graphs are converted to ``OPSET``."""
OPSET: Final = 18
MAX_BYTES: Final = 2**31 - 1
"""What one ONNX file may weigh, weights included."""
_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_BATCH_OF_DATA: Final = 16
_QUANTIZED: Final = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")


class OnnxModule(nn.Module):
    """Runs an ONNX graph with ONNX Runtime, on tensors: ``forward`` takes its inputs in order and returns a dict.

    ``graph`` holds the serialized model, ``(bytes,)`` of uint8, so that two modules are equal where their graphs are.
    It has no parameter: nothing in it can be trained.
    """

    graph: torch.Tensor

    def __init__(self, graph: bytes, inputs: tuple[str, ...], outputs: tuple[TensorSpec, ...]) -> None:
        super().__init__()
        self.register_buffer("graph", torch.frombuffer(bytearray(graph), dtype=torch.uint8))
        self.inputs = inputs
        self.outputs = outputs
        self._session: onnxruntime.InferenceSession | None = None

    def proto(self) -> ModelProto:
        """A copy of the graph, weights inside."""
        return onnx.load_from_string(self.graph.numpy().tobytes())

    def forward(self, *given: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name."""
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4
            onnxruntime.disable_telemetry_events()
            data = self.graph.numpy().tobytes()
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        feeds = {name: tensor.numpy() for name, tensor in zip(self.inputs, given, strict=True)}
        names = [spec.name for spec in self.outputs]
        answers = self._session.run(names, feeds)
        return {name: torch.from_numpy(array) for name, array in zip(names, answers, strict=True)}

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        # A session cannot be copied; the copy opens its own.
        return OnnxModule(self.graph.numpy().tobytes(), self.inputs, self.outputs)


def onnx_task(
    path: str | os.PathLike[str], calibrate: Arrays, *, labels: Array | None = None, metric: str | None = None
) -> Task:
    """A task of an ONNX file and calibration samples ``(samples, ...)`` by input name.

    Half of the samples calibrate, the other half validates; with fewer than 4 all do both. Without ``metric``, quality
    is accuracy where there are ``labels`` ``(samples, ...)``, and agreement with the file's own answers where not: in
    the first place of classes (``agreement``) for an output of shape ``(batch, classes)``, else in direction
    (``cosine``). Raises ``TaskError`` for a file or samples that do not fit.
    """
    where = Path(path)
    module, inputs = read_onnx(where)
    if set(calibrate) != {spec.name for spec in inputs}:
        raise TaskError(f"calibration data: expected {[spec.name for spec in inputs]}, got {sorted(calibrate)}")
    counts = {name: len(array) if array.ndim else 0 for name, array in calibrate.items()}
    count = min(counts.values())
    if len(set(counts.values())) > 1 or (labels is not None and len(labels) != count) or not count:
        raise TaskError(f"calibration data: expected as many samples of each input (and label), got {counts}")
    # A model that is fixed at a batch is fed with as many at a time.
    size = next((spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)), _BATCH_OF_DATA)
    samples = [_rows(calibrate, labels, at, size) for at in range(0, count - count % size or count, size)]
    try:
        check_arrays(inputs, {name: array[:size] for name, array in calibrate.items()})
    except InputError as fault:
        raise TaskError(f"calibration data for {where.name}: {fault}") from None
    half = len(samples) // 2
    shared = len(samples) < 2
    first = module.outputs[0]
    default = "accuracy" if labels is not None else "agreement" if len(first.shape) == 2 else "cosine"
    return Task(
        name=re.sub(r"[^A-Za-z0-9_.+-]", "-", where.stem).lstrip("-_.+") or "model",
        model=module,
        inputs=inputs,
        outputs=tuple(spec.name for spec in module.outputs),
        calibrate=samples if shared else samples[:half],
        validate=samples if shared else samples[half:],
        metric=metric or default,
    )


def read_onnx(path: Path) -> tuple[OnnxModule, tuple[TensorSpec, ...]]:
    """The module and the specs of its inputs; the first dimension of each input is the batch where it is open.

    Weights in files beside it are read from its own folder alone. Raises ``TaskError`` for a file that is missing, too
    large, no ONNX, quantized already, or that needs operations of a domain that engines do not know.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TaskError(f"{path}: expected at most {MAX_BYTES} bytes of ONNX")
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as fault:
        raise TaskError(f"{fault.filename or path}: no such file") from None
    except TaskError:
        raise
    except Exception as fault:  # protobuf and the checker raise classes of their own, without a common base
        raise TaskError(f"{path}: expected an ONNX model: {_line(fault)}") from fault
    odd = sorted({opset.domain for opset in model.opset_import} - set(_DOMAINS))
    if odd:
        raise TaskError(f"{path}: expected operations of ONNX and its runtime, got the domains {odd}")
    quantized = sorted({node.op_type for node in model.graph.node if node.op_type in _QUANTIZED})
    if quantized:
        raise TaskError(f"{path}: it is quantized already ({', '.join(quantized)}): bring the float model")
    return _module(path, _modern(path, model))


def _module(path: Path, model: ModelProto) -> tuple[OnnxModule, tuple[TensorSpec, ...]]:
    _forget_weights_as_inputs(model.graph)
    dims: dict[str, str] = {}
    try:
        inputs = tuple(_spec(value, dims, batch_first=True) for value in model.graph.input)
        known = onnx.shape_inference.infer_shapes(model).graph
        outputs = tuple(_spec(value, dims, batch_first=BATCH in dims.values()) for value in known.output)
    except (ConfigError, ValueError) as fault:
        raise TaskError(f"{path}: {fault}") from None
    if not inputs:
        raise TaskError(f"{path}: expected a model with inputs, got one that computes a constant")
    module = OnnxModule(model.SerializeToString(deterministic=True), tuple(spec.name for spec in inputs), outputs)
    return module.eval(), inputs


def _modern(path: Path, model: ModelProto) -> ModelProto:
    version = max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=OPSET)
    if version >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as fault:  # the converter raises RuntimeError and classes of its own
        raise TaskError(
            f"{path}: expected opset {OLDEST_OPSET} or later, got {version}, and it does not convert: {_line(fault)}"
        ) from fault


def _forget_weights_as_inputs(graph: GraphProto) -> None:
    """Old files list each weight among the inputs as well."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def _spec(value: ValueInfoProto, dims: dict[str, str], *, batch_first: bool) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type == TensorProto.UNDEFINED:
        raise ConfigError(f"{value.name}: expected a tensor, got {value.type.WhichOneof('value')}")
    if not tensor.HasField("shape"):
        raise ConfigError(f"{value.name}: expected a tensor whose number of dimensions is known")
    shape: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            shape.append(dim.dim_value)
            continue
        name = dim.dim_param or f"{value.name}.{axis}"
        if axis == 0 and batch_first:
            dims.setdefault(name, BATCH)
        shape.append(dims.setdefault(name, "d_" + re.sub(r"\W", "_", name, flags=re.ASCII)))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec.from_json({"name": value.name, "shape": shape, "dtype": dtype})


def _rows(arrays: Arrays, labels: Array | None, at: int, size: int) -> Batch | Arrays:
    part = {name: array[at : at + size] for name, array in arrays.items()}
    return part if labels is None else (part, labels[at : at + size])


def _line(fault: BaseException) -> str:
    return " ".join(str(fault).split())[:300] or type(fault).__name__
