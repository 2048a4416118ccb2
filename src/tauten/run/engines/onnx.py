"""ONNX Runtime, on the CPU or on a CUDA device, as the artifact's target and settings say.

The graph holds no weights: they are handed over as arrays, so that they may be stored by any codec and so that nothing
in a graph can make the runtime open a file. A model with early exits is a graph a stage, for ONNX Runtime optimizes
less inside the branches of one graph: convolutions there lose their channel-blocked layout.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import onnxruntime

from tauten.artifact.manifest import Stage
from tauten.artifact.read import Artifact
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines._onnx_names import name_nodes
from tauten.run.engines._onnx_profile import read_profile
from tauten.run.engines._onnx_threads import Threads
from tauten.run.engines._onnx_wire import survey
from tauten.run.engines._padding import Padding, Shortener
from tauten.run.engines._providers import choose_providers
from tauten.run.engines._stages import Stages, Step
from tauten.run.engines.engine import Engine, OperationTime

__all__ = ["Onnx"]

_QUIET: Final = 4  # faults come as exceptions; nothing is printed beside them
_TYPES: Final = {"float": "float32", "double": "float64"}


class Onnx(Engine):
    """Runs an ONNX graph with ONNX Runtime, with threads as the artifact's target wishes them."""

    def __init__(self, sessions: Sequence[onnxruntime.InferenceSession], artifact: Artifact, threads: Threads) -> None:
        super().__init__(artifact.manifest.inputs, artifact.manifest.outputs)
        # What the session calls once it has checked names, which are checked here, for another time.
        self._call: Any = getattr(sessions[0], "_sess", sessions[0]).run
        self._names = [spec.name for spec in self.outputs]
        self._stages: Stages | None = None
        self._artifact = artifact
        padding = Padding.of(artifact)
        self._shorten = Shortener(padding, self.inputs, self.outputs)
        self._threads = threads
        self._operations: dict[str, Any] | None = None
        self._describing = threading.Lock()
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = _QUIET
        if artifact.manifest.stages:
            steps = [self._step(*pair) for pair in zip(artifact.manifest.stages, sessions, strict=True)]
            self._stages = Stages(steps, self.inputs, self.outputs)
        else:
            self.padding = padding

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """A session over the artifact, or one for each of its stages.

        Raises ``ArtifactError`` where a graph points to files, is no ONNX or does not fit the weights or the manifest,
        ``EngineError`` where ONNX Runtime refuses it.
        """
        settled = Threads.settle(artifact.manifest.target, threads)
        sessions = _sessions(artifact, [_options(settled) for _ in artifact.manifest.graphs])
        if artifact.manifest.stages:
            _check_stages(artifact, sessions)
        else:
            _check_border("input", artifact, artifact.manifest.inputs, sessions[0].get_inputs())
            _check_border("output", artifact, artifact.manifest.outputs, sessions[0].get_outputs())
        return cls(sessions, artifact, settled)

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        call = self._call
        if call is None:
            raise EngineError(f"{self._artifact.path}: the engine was closed")
        try:
            if self._stages is not None:
                return self._stages.run(inputs)
            inputs = self._shorten(inputs)
            answers = call(self._names, inputs if type(inputs) is dict else dict(inputs), self._quiet)
        except Exception as fault:  # each status of the runtime is an exception class of its own, without a base
            raise EngineError(f"{self._artifact.path}: ONNX Runtime: {fault}") from fault
        return dict(zip(self._names, answers, strict=True))

    def _step(self, stage: Stage, session: onnxruntime.InferenceSession) -> Step:
        gives = [value.name for value in session.get_outputs()]
        reads = tuple(value.name for value in session.get_inputs())
        return Step(stage, reads, tuple(gives), lambda arrays: session.run(gives, arrays, self._quiet))

    def describe(self) -> dict[str, Any]:
        """Versions and settings, and the operations that run after ONNX Runtime's optimization, by precision.

        Where there are early exits, also the stages, with the rows that have left after each since the engine is there.
        The first call optimizes the graph once more, to look at it; the answer is kept.
        """
        with self._describing:
            if self._operations is None:
                self._operations = _optimized_operations(self._artifact, self._threads)
        return {
            "engine": "onnx",
            "version": onnxruntime.__version__,
            "provider": choose_providers(self._artifact, onnxruntime.get_available_providers())[0][0],
            **self._threads.describe(),
            "graph_optimization": "all",
            **self._shorten.describe(),
            "operations": self._operations,
            **({} if self._stages is None else {"stages": self._stages.describe()}),
        }

    def profile(self, inputs: Mapping[str, Array], repeats: int = 10) -> tuple[OperationTime, ...]:
        """What each operation takes on ``inputs``, by ONNX Runtime's own clock; the graph is loaded once more for it.

        Where there are early exits, a name begins with its stage's file.
        """
        names = self._artifact.manifest.graphs
        with tempfile.TemporaryDirectory() as folder:
            options = [_options(self._threads) for _ in names]
            for index, option in enumerate(options):
                option.enable_profiling = True
                option.profile_file_prefix = str(Path(folder) / str(index))
            named = [name_nodes(graph) for graph in self._artifact.graphs()]
            sessions = _sessions(self._artifact, options, [one.graph for one in named])
            watched = type(self)(sessions, self._artifact, self._threads)
            for _ in range(repeats + 1):  # the first call makes room for the others, and is not counted
                watched.run(inputs)
            files = [Path(session.end_profiling()).read_bytes() for session in sessions]
        prefixes = [f"{name}: " for name in names] if len(names) > 1 else [""]
        weights = self._artifact.weights()
        return tuple(
            time
            for data, one, prefix in zip(files, named, prefixes, strict=True)
            for time in read_profile(data, repeats, _is_int8, one, weights, prefix)
        )

    def close(self) -> None:
        self._stages = self._call = None


def _options(threads: Threads) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    modes = onnxruntime.ExecutionMode
    options.intra_op_num_threads = threads.intra
    options.inter_op_num_threads = threads.inter
    options.execution_mode = modes.ORT_PARALLEL if threads.inter > 1 else modes.ORT_SEQUENTIAL
    # A thread that spins after a request takes the core from the next instance's request.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads.spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", str(int(threads.spinning)))
    if threads.affinities:
        options.add_session_config_entry("session.intra_op_thread_affinities", threads.affinities)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _QUIET
    # Without this the runtime guesses the format from the bytes.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _sessions(
    artifact: Artifact, options: Sequence[onnxruntime.SessionOptions], graphs: Sequence[bytes] = ()
) -> list[onnxruntime.InferenceSession]:
    """A session for each graph of the artifact, or for others in their place, set up by one of ``options`` each."""
    providers = choose_providers(artifact, onnxruntime.get_available_providers())
    provider = providers[0][0]
    graphs, weights = graphs or artifact.graphs(), artifact.weights()
    wanted = _check_weights(artifact, graphs, weights)
    onnxruntime.disable_telemetry_events()
    sessions = []
    for graph, names, option in zip(graphs, wanted, options, strict=True):
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in names]
        try:
            if values:
                option.add_external_initializers(names, values)
            session = onnxruntime.InferenceSession(graph, option, providers=providers)
        except Exception as fault:  # each status of the runtime is an exception class of its own, without a base
            raise EngineError(f"{artifact.path}: ONNX Runtime: {fault}") from fault
        if session.get_providers()[0] != provider:
            raise EngineError(f"{artifact.path}: {provider} did not start; ONNX Runtime uses {session.get_providers()}")
        sessions.append(session)
    return sessions


def _check_weights(artifact: Artifact, graphs: Sequence[bytes], weights: Arrays) -> list[list[str]]:
    """The names of the weights that each graph reads, which are there as it expects them."""
    try:
        wanted = [survey(graph).externals for graph in graphs]
    except ArtifactError as fault:
        raise ArtifactError(f"{artifact.path}: {fault}") from None
    odd = sorted({name for externals in wanted for name in externals} ^ set(weights))
    if odd:
        raise ArtifactError(f"{artifact.path}: graph and weights do not name the same initializers: {odd[:8]}")
    for name, tensor in ((name, tensor) for externals in wanted for name, tensor in externals.items()):
        array = weights[name]
        if array.dtype.name != tensor.dtype or array.shape != tensor.shape:
            raise ArtifactError(
                f"{artifact.path}: the graph expects {name} as {tensor.dtype}{tensor.shape}, "
                f"the weights hold {array.dtype.name}{array.shape}"
            )
    return [list(externals) for externals in wanted]


def _check_border(what: str, artifact: Artifact, specs: tuple[TensorSpec, ...], found: list[Any]) -> None:
    """Hold the manifest's names and dtypes against those of the graph."""
    expected = {spec.name: spec.dtype for spec in specs}
    came = {value.name: _dtype(value.type) for value in found}
    if expected != came:
        raise ArtifactError(f"{artifact.path}: the manifest declares {what}s {expected}, the graph has {came}")


def _check_stages(artifact: Artifact, sessions: Sequence[onnxruntime.InferenceSession]) -> None:
    """See that each stage reads what there is by then, and answers as the manifest declares."""
    manifest = artifact.manifest
    there = {spec.name: spec.dtype for spec in manifest.inputs}
    answers = {spec.name: spec.dtype for spec in manifest.outputs}
    unread = set(there)
    for stage, session in zip(manifest.stages, sessions, strict=True):
        where = f"{artifact.path}: {stage.graph}"
        reads = {value.name: _dtype(value.type) for value in session.get_inputs()}
        gives = {value.name: _dtype(value.type) for value in session.get_outputs()}
        missing = {name: kind for name, kind in reads.items() if there.get(name) != kind}
        if missing:
            raise ArtifactError(f"{where}: reads {missing}, which no stage before it gives")
        due = {**answers, **({stage.decides: "bool"} if stage.decides else {})}
        lacking = {name: kind for name, kind in due.items() if gives.get(name) != kind}
        again = (gives.keys() - due.keys()) & there.keys()
        if lacking or again:
            raise ArtifactError(f"{where}: expected it to give {due} and nothing twice, it gives {gives}")
        there.update({name: kind for name, kind in gives.items() if name not in due})
        unread -= reads.keys()
    if unread:
        raise ArtifactError(f"{artifact.path}: the manifest declares inputs {sorted(unread)}, which no stage reads")


def _dtype(kind: str) -> str:
    """``tensor(float)`` to ``float32``; what is no tensor stays as it is."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return _TYPES.get(inner, inner) if kind.startswith("tensor(") else kind


def _optimized_operations(artifact: Artifact, threads: Threads) -> dict[str, Any]:
    """``{"int8": {op: count}, "other": {op: count}, "int8_share": …}`` of the graph as ONNX Runtime runs it."""
    operations: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.onnx" for index in range(len(artifact.manifest.graphs))]
        options = [_options(threads) for _ in paths]
        for option, path in zip(options, paths, strict=True):
            option.optimized_model_filepath = str(path)
        _sessions(artifact, options)
        for path in paths:
            operations += survey(path.read_bytes()).operations
    return by_precision(operations)


def by_precision(operations: Counter[str]) -> dict[str, Any]:
    """Counts by operation, apart for those that compute on int8, and the share of int8 among those that multiply."""
    int8 = {name: count for name, count in sorted(operations.items()) if _is_int8(name)}
    other = {name: count for name, count in sorted(operations.items()) if not _is_int8(name)}
    multiply = {name: count for name, count in operations.items() if _multiplies(name)}
    total = sum(multiply.values())
    share = sum(count for name, count in multiply.items() if _is_int8(name)) / total if total else 0.0
    return {"int8": int8, "other": other, "int8_share_of_products": float(np.round(share, 4))}


def _is_int8(operation: str) -> bool:
    # MatMulNBits, with weights of 8 or 4 bits, rounds its inputs to 8 at the accuracy level that lowering asks for.
    return operation.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulInteger")) or (
        operation
        in ("ConvInteger", "NhwcMaxPoolInt8", "QMoE", "DynamicQuantizeLSTM", "QEmbedLayerNormalization", "MatMulNBits")
    )


def _multiplies(operation: str) -> bool:
    return any(part in operation for part in ("Conv", "MatMul", "Gemm", "Attention", "LSTM", "GRU"))
