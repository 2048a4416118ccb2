"""OpenVINO on the CPU.

The graph names no file: its weights are handed over as arrays. Threads are set as they are for any engine: as many as
asked for, one stream, and none of them bound to a core, because several instances in one server would all be bound to
the same ones (OpenVINO binds them by default).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import Field

from tauten.artifact.read import Artifact
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.core.value import Value
from tauten.errors import ArtifactError, ConfigError, EngineError, ExtraMissing
from tauten.run.engines._openvino_ir import read_graph
from tauten.run.engines._openvino_names import read_weights
from tauten.run.engines._padding import Padding, Shortener
from tauten.run.engines._telemetry import no_telemetry
from tauten.run.engines._threads import unmet
from tauten.run.engines.engine import Engine, OperationTime

try:
    with no_telemetry():
        import openvino as ov
except ModuleNotFoundError as fault:
    raise ExtraMissing(f"engine 'openvino' ({fault.name} is not installed)", "openvino") from fault

__all__ = ["OpenVino"]

_KEPT: Final = 8  # requests that wait for the next call; more callers than that at once make their own
_UNSEEN: Final = ("Const", "Input", "Output")  # where numbers come from and go to; nothing is computed
_PRODUCTS: Final = ("Convolution", "MatMul", "FullyConnected", "Attention", "MHA", "RNN", "LSTM", "GRU", "QKV", "MLP")
_PRECISIONS: Final = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8", "u8": "int8",
    "i4": "int4", "u4": "int4", "i32": "int32", "i64": "int64", "boolean": "bool",
}  # fmt: skip

# What the public method calls; that makes a dictionary of ports besides, which costs as much as a small model.
_INFER: Final[Any] = ov.InferRequest.__base__.infer


class Settings(Value):
    """How an artifact asks to be run.

    ``precision`` is that of what is not quantized. The graph is compiled for each batch size of ``batches`` when it is
    loaded, and for any other when one comes. ``rounds_inputs`` lets OpenVINO round the inputs of products with
    whole-number weights to 8 bits as they come. ``padding`` is left out of calls.
    """

    precision: Literal["f32", "bf16"] = "f32"
    batches: Annotated[tuple[Annotated[int, Field(ge=1, le=2**20)], ...], Field(max_length=4)] = ()
    rounds_inputs: bool = False
    padding: Padding | None = None


class Compiled:
    """A graph made ready for some shapes of its inputs, with requests that wait to be used again."""

    def __init__(self, model: ov.CompiledModel, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.model = model
        self._places = inputs, outputs
        self._free: deque[Any] = deque(maxlen=_KEPT)

    @contextmanager
    def request(self) -> Iterator[Any]:
        """A request that nobody else uses until the block ends."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self.model.create_infer_request()
        yield request
        # A request that failed is not used again.
        self._free.append(request)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs in the manifest's order, for inputs in that order."""
        reads, gives = self._places
        # Shared where OpenVINO can read it as it lies (it writes to no input). It holds no reference: the list does.
        arrays = [array if array.flags.carray else np.array(array, order="C") for array in inputs]
        with self.request() as request:
            for place, array in zip(reads, arrays, strict=True):
                request.set_input_tensor(place, ov.Tensor(array, True))
            _INFER(request, {}, share_outputs=True, decode_strings=False)
            # The request's memory is used again by the next call.
            return [np.array(request.get_output_tensor(place).data) for place in gives]


class OpenVino(Engine):
    """Runs an OpenVINO graph on the CPU, in one stream."""

    def __init__(self, graph: ov.Model, artifact: Artifact, settings: Settings, threads: int) -> None:
        super().__init__(artifact.manifest.inputs, artifact.manifest.outputs)
        self._graph: ov.Model | None = graph
        self._artifact = artifact
        self._settings = settings
        self._threads = threads
        self._fallbacks: list[str] = []
        if settings.precision == "bf16" and not has_bfloat16():
            self._fallbacks.append("bfloat16: this processor has no products of bfloat16; float32 is used")
            settings = settings.model_copy(update={"precision": "f32"})
        self._fallbacks += unmet(
            artifact.manifest.target, threads,
            affinity="OpenVINO takes no cores by name; threads are not bound",
            spinning="OpenVINO decides how its threads wait for work",
        )  # fmt: skip
        self._options = options(settings, threads)
        self._shorten = Shortener(settings.padding, self.inputs, self.outputs)
        self.padding = settings.padding
        self._names = [spec.name for spec in self.inputs]
        self._answers = [spec.name for spec in self.outputs]
        self._reads = find_ports("input", self.inputs, graph.inputs)
        self._gives = find_ports("output", self.outputs, graph.outputs)
        self._counts = next(((spec.name, spec.batch_axis) for spec in self.inputs if spec.batch_axis is not None), None)
        self._open: Compiled | None = None
        self._opening = threading.Lock()
        self._fixed = {batch: self._compile(batch) for batch in settings.batches}
        if not self._fixed:
            self._open = self._compile()
            self._graph = None  # nothing else will be compiled: its weights need not stay beside the compiled ones

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """The artifact's graph, compiled.

        Raises ``ArtifactError`` where the graph is none of OpenVINO's, holds what may not be in it, or does not fit the
        weights or the manifest; ``EngineError`` where OpenVINO refuses it.
        """
        manifest = artifact.manifest
        if manifest.target.device != "cpu":
            raise EngineError(
                f"{artifact.path}: OpenVINO runs on the CPU here; its target {manifest.target.name} asks for "
                f"{manifest.target.device}"
            )
        if manifest.stages:
            raise ArtifactError(f"{artifact.path}: an OpenVINO artifact has one graph, this one has stages")
        try:
            settings = Settings.from_json(manifest.settings)
            return cls(parse(artifact.graph(), artifact.weights()), artifact, settings, threads)
        except (ArtifactError, ConfigError) as fault:
            raise ArtifactError(f"{artifact.path}: {fault}") from None
        except RuntimeError as fault:
            raise EngineError(f"{artifact.path}: OpenVINO: {one_line(fault)}") from fault

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        inputs = self._shorten(inputs)
        try:
            answers = self._for(inputs).run([inputs[name] for name in self._names])
        except RuntimeError as fault:
            raise EngineError(f"{self._artifact.path}: OpenVINO: {one_line(fault)}") from fault
        return dict(zip(self._answers, answers, strict=True))

    def describe(self) -> dict[str, Any]:
        """Version and settings, the batch sizes compiled for, and what runs after optimization, by precision.

        Each compiled graph holds weights in an order of its own, beside those of the others.
        """
        compiled = self._some()
        found = compiled.model.get_property
        return {
            "engine": "openvino",
            "version": ov.get_version(),
            "device": "CPU",
            "threads": found("INFERENCE_NUM_THREADS"),
            "streams": found("NUM_STREAMS"),
            "bound_to_cores": bool(found("ENABLE_CPU_PINNING")),
            "precision": _PRECISIONS[found("INFERENCE_PRECISION_HINT").to_string()],
            "compiled_for_batches": sorted(self._fixed),
            "compiled_for_any_batch": self._open is not None,
            "copies_of_weights": len(self._fixed) + (self._open is not None),
            **self._shorten.describe(),
            "operations": by_precision(compiled.model.get_runtime_model(), self._settings),
            **({"fallbacks": list(self._fallbacks)} if self._fallbacks else {}),
        }

    def profile(self, inputs: Mapping[str, Array], repeats: int = 10) -> tuple[OperationTime, ...]:
        """What each operation takes on ``inputs``, by OpenVINO's own clock; the graph is compiled once more for it."""
        inputs = self._shorten(inputs)
        batch = self._batch(inputs)
        try:
            graph = parse(self._artifact.graph(), self._artifact.weights())
            compiled = self._compile(batch if batch in self._fixed else None, graph=graph, counted=True)
            arrays = [inputs[name] for name in self._names]
            running = compiled.model.get_runtime_model().get_ops()
            precisions = {one.get_friendly_name(): _precision(one, self._settings) for one in running}
            weights = read_weights(graph, running, self._artifact.weights())
            compiled.run(arrays)
            spent: Counter[tuple[str, str]] = Counter()
            for _ in range(repeats):
                compiled.run(arrays)
                with compiled.request() as request:
                    for part in request.get_profiling_info():
                        if part.status == ov.ProfilingInfo.Status.EXECUTED and part.node_type not in _UNSEEN:
                            spent[part.node_name, part.node_type] += part.real_time.total_seconds() * 1e3 / repeats
        except RuntimeError as fault:
            raise EngineError(f"{self._artifact.path}: OpenVINO: {one_line(fault)}") from fault
        return tuple(
            OperationTime(
                name=name, kind=kind, precision=precisions.get(name, ""), milliseconds=spent[name, kind],
                weight=weights.get(name, "") if _multiplies(kind) else "",
            )
            for name, kind in spent
        )  # fmt: skip

    def close(self) -> None:
        with self._opening:
            self._graph = self._open = None
            self._fixed = {}

    def _for(self, inputs: Mapping[str, Array]) -> Compiled:
        """What is compiled for the shapes of ``inputs``."""
        if self._fixed and (fixed := self._fixed.get(self._batch(inputs))) is not None:
            return fixed
        if self._open is not None:
            return self._open
        return self._some(any_batch=True)

    def _some(self, any_batch: bool = False) -> Compiled:
        """Something compiled; with ``any_batch`` what takes each batch size, compiled when it is first asked for."""
        with self._opening:
            if self._open is None and (any_batch or not self._fixed):
                self._open = self._compile()
                self._graph = None
            return self._open or next(iter(self._fixed.values()))

    def _batch(self, inputs: Mapping[str, Array]) -> int:
        return 1 if self._counts is None else int(inputs[self._counts[0]].shape[self._counts[1]])

    def _compile(self, batch: int | None = None, *, graph: ov.Model | None = None, counted: bool = False) -> Compiled:
        model = graph or self._graph
        if model is None:
            raise EngineError(f"{self._artifact.path}: the engine was closed")
        if batch is not None:
            model = fix_batch(model, self.inputs, self._reads, batch)
        return Compiled(compile_model(model, {**self._options, "PERF_COUNT": counted}), self._reads, self._gives)


_CORE: list[ov.Core] = []


def core() -> ov.Core:
    """OpenVINO's plug-ins, loaded once a process."""
    if not _CORE:
        _CORE.append(ov.Core())
    return _CORE[0]


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def parse(packed: bytes, weights: Mapping[str, Array]) -> ov.Model:
    """OpenVINO's graph of an artifact's document and weights.

    Raises ``ArtifactError`` for what may not be there, ``RuntimeError`` where OpenVINO refuses the rest.
    """
    graph, arrays = read_graph(packed, weights)
    # Memory of OpenVINO's own: what it compiles may go on reading it.
    memory = ov.Tensor(ov.Type.u8, ov.Shape([max(graph.size, 1)]))
    graph.fill(memory.data, arrays)
    return core().read_model(graph.document, memory)


def options(settings: Settings, threads: int) -> dict[str, Any]:
    """OpenVINO's properties for an artifact that asks for ``settings``."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": settings.precision,
        # By default, OpenVINO would round the inputs of products with compressed weights.
        **({} if settings.rounds_inputs else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
    }


def compile_model(model: ov.Model, properties: Mapping[str, Any]) -> ov.CompiledModel:
    """``model`` made ready for the CPU; it stays as it is. Raises OpenVINO's ``RuntimeError``."""
    return core().compile_model(model, "CPU", dict(properties))


def fix_batch(model: ov.Model, specs: Sequence[TensorSpec], places: Sequence[int], batch: int) -> ov.Model:
    """A copy of ``model`` whose inputs, which are at ``places``, have ``batch`` samples."""
    copy = model.clone()
    shapes = {
        place: ov.PartialShape([batch if dim == "batch" else dim if isinstance(dim, int) else -1 for dim in spec.shape])
        for place, spec in zip(places, specs, strict=True)
    }
    copy.reshape(shapes)
    return copy


def find_ports(what: str, specs: Sequence[TensorSpec], ports: Sequence[Any]) -> list[int]:
    """Where each spec is among a graph's inputs or outputs.

    Raises ``ArtifactError`` where names, dtypes or ranks are not those of the specs.
    """
    found: dict[str, int] = {}
    for place, port in enumerate(ports):
        for name in port.names:
            found.setdefault(name, place)
    places = [found.get(spec.name, -1) for spec in specs]
    if -1 in places or len(ports) != len(specs):
        raise ArtifactError(
            f"the manifest declares {what}s {[spec.name for spec in specs]}, the graph has "
            f"{[sorted(port.names) for port in ports]}"
        )
    for spec, place in zip(specs, places, strict=True):
        port = ports[place]
        dtype, shape = port.element_type.to_dtype().name, port.partial_shape
        wrong_rank = shape.rank.is_static and len(shape) != len(spec.shape)
        if dtype != spec.dtype or wrong_rank:
            raise ArtifactError(
                f"the manifest declares {what} {spec.name} as {spec.dtype} {spec.shape_text}, the graph has "
                f"{dtype} {shape}"
            )
    return places


def one_line(fault: Exception) -> str:
    """OpenVINO's message, which has several lines and says where in its sources."""
    lines = [line.strip() for line in str(fault).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))[:1000]


def by_precision(model: ov.Model, settings: Settings) -> dict[str, Any]:
    """``{"int8": {kind: count}, "other": {kind: count}, "int8_share_of_products": …}`` of a graph as it runs."""
    int8: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for operation in model.get_ops():
        kind = _note(operation, "layerType")
        if kind not in _UNSEEN:
            (int8 if _precision(operation, settings) == "int8" else other)[kind] += 1
    low, high = (sum(count for kind, count in counts.items() if _multiplies(kind)) for counts in (int8, other))
    share = low / (low + high) if low + high else 0.0
    return {
        "int8": dict(sorted(int8.items())),
        "other": dict(sorted(other.items())),
        "int8_share_of_products": float(np.round(share, 4)),
    }


def _multiplies(kind: str) -> bool:
    return any(part in kind for part in _PRODUCTS)


def _precision(operation: ov.Node, settings: Settings) -> str:
    """What an operation of a graph as it runs computes in."""
    found = _note(operation, "runtimePrecision")
    if _multiplies(_note(operation, "layerType")):
        # A kernel's name ends in what it computes in; OpenVINO's own note is the weight's, which may be widened first.
        kernel = _note(operation, "primitiveType").rpartition("_")[2].lower()
        narrow = found in ("i8", "u8", "i4", "u4")
        if kernel in _PRECISIONS:
            found = "i8" if narrow and settings.rounds_inputs else kernel
    return _PRECISIONS.get(found, found)


def _note(operation: ov.Node, name: str) -> str:
    notes = operation.get_rt_info()
    return str(notes[name].astype(str)) if name in notes else ""
