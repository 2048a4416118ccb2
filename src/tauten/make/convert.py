"""From an artifact to another engine's, or to a plain file for the world outside.

Only what an engine's graph still says can be converted: ONNX becomes OpenVINO's, and each engine's graph becomes the
file that other tools know it by.
"""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from tauten.artifact.nibbles import fits_nibbles
from tauten.artifact.read import Artifact
from tauten.core.record import Record
from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError, ConfigError, LoweringError, MismatchError, TautenError
from tauten.make.lower.artifact import to_artifact
from tauten.make.lower.lowering import Lowered
from tauten.run.engines import load
from tauten.run.measure.precision import ones

FILES: Final = {".onnx": "onnx", ".xml": "openvino", ".pte": "executorch"}
"""Which engine's artifacts become a file with that ending."""
_LEAST_DB: Final = 20.0
"""Two engines round alike, but not the same: below this they answer differently."""
_MAKE_ANEW: Final = "make it from the model: tauten optimize TASK --engine {engine}"


@dataclass(frozen=True)
class Converted:
    """What was written, and how far its answers are from the artifact's, in dB (signal to noise; 200 for the same)."""

    path: Path
    bytes: int
    sqnr_db: float


def convert(artifact: Artifact, engine: str, path: str | os.PathLike[str]) -> Converted:
    """Write the artifact for another engine to the folder ``path`` and hold the two against each other.

    Raises ``LoweringError`` where the graph does not say enough for that engine, ``MismatchError`` where the answers
    are not alike (nothing stays written), ``ArtifactError`` where something is at ``path``, ``ExtraMissing`` where the
    engine is not installed.
    """
    source = artifact.manifest.engine
    if engine == source:
        raise ConfigError(f"{artifact.path}: is an artifact for {engine} already; copy the folder")
    if (source, engine) != ("onnx", "openvino"):
        raise LoweringError(
            f"{artifact.path}: an artifact for {source} does not say what {engine} needs; "
            f"{_MAKE_ANEW.format(engine=engine)}"
        )
    if Path(path).exists():
        raise ArtifactError(f"{path}: there already; remove it or choose another name")
    lowered = _to_openvino(artifact)
    manifest = artifact.manifest
    target = Target.from_json({**manifest.target.to_json(), "engine": engine, "engines": [engine]})
    record = Record(
        name=f"convert.{engine}",
        parameters={"from": source},
        seed=0,
        seconds=0.0,
        before=manifest.key,
        after="",
        notes={},
    )
    made = to_artifact(
        lowered,
        path,
        name=manifest.name,
        engine=engine,
        target=target,
        recipe=manifest.recipe,
        history=(*manifest.history, record),
        codec=manifest.codec,
    )
    try:
        return Converted(made.path, made.size_bytes, _hold(artifact, made))
    except TautenError:
        shutil.rmtree(made.path)
        raise


def write_file(artifact: Artifact, path: str | os.PathLike[str]) -> Converted:
    """Write the graph with its weights inside as the file that its engine's own tools read.

    ``model.onnx`` of an artifact for onnx, ``model.xml`` and ``model.bin`` for openvino, ``model.pte`` for executorch.
    Raises ``ConfigError`` for another ending, or one of another engine, ``ArtifactError`` where a file is there.
    """
    where = Path(path)
    engine = FILES.get(where.suffix)
    if engine is None:
        raise ConfigError(f"{where}: expected a name that ends in {', '.join(FILES)}")
    if engine != artifact.manifest.engine:
        raise ConfigError(
            f"{where}: a {where.suffix} file comes from an artifact for {engine}, and this one is for "
            f"{artifact.manifest.engine}; {_MAKE_ANEW.format(engine=engine)}"
        )
    if len(artifact.manifest.graphs) > 1:
        raise ConfigError(f"{artifact.path}: its early exits are several graphs, which one file cannot hold")
    parts = {"onnx": _onnx_file, "openvino": _openvino_files, "executorch": _pte_file}[engine](artifact)
    names = {where.with_suffix(ending): data for ending, data in parts.items()}
    there = [str(name) for name in names if name.exists()]
    if there:
        raise ArtifactError(f"{', '.join(there)}: there already; remove it or choose another name")
    where.parent.mkdir(parents=True, exist_ok=True)
    for name, data in names.items():
        _write(name, data)
    return Converted(where, sum(len(data) for data in names.values()), 200.0)


def whole_graph(artifact: Artifact) -> ModelProto:
    """The ONNX graph of an artifact with its weights inside."""
    model = onnx.load_from_string(artifact.graph())
    weights = artifact.weights()
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return model


def _onnx_file(artifact: Artifact) -> dict[str, bytes]:
    return {".onnx": whole_graph(artifact).SerializeToString(deterministic=True)}


def _pte_file(artifact: Artifact) -> dict[str, bytes]:
    return {".pte": artifact.graph()}


def _openvino_files(artifact: Artifact) -> dict[str, bytes]:
    from tauten.run.engines._openvino_ir import read_graph

    graph, arrays = read_graph(artifact.graph(), artifact.weights())
    data = np.zeros(graph.size, np.uint8)
    graph.fill(data, arrays)
    return {".xml": graph.document, ".bin": data.tobytes()}


def _to_openvino(artifact: Artifact) -> Lowered:
    from tauten.make.lower._openvino_ir import write_graph
    from tauten.run.engines.openvino import Settings, core, one_line

    manifest = artifact.manifest
    if manifest.stages:
        raise LoweringError(f"{artifact.path}: early exits need a graph for each stage, which OpenVINO does not run")
    borders = [spec.name for spec in (*manifest.inputs, *manifest.outputs)]
    try:
        graph = core().read_model(io.BytesIO(whole_graph(artifact).SerializeToString()))
        written = write_graph(graph, borders, manifest.four_bit or _four_bit(artifact))
    except RuntimeError as fault:
        raise LoweringError(f"{artifact.path}: OpenVINO: {one_line(fault)}") from fault
    return Lowered(
        graph=written.graph,
        graph_name="model.xml.gz",
        weights=written.weights,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        layers=manifest.layers,
        four_bit=written.four_bit,
        settings=Settings().to_json(),
    )


def _four_bit(artifact: Artifact) -> list[str]:
    """The weights of 4-bit numbers in an artifact whose codec looks at numbers, so that it need not name them."""
    return [name for name, array in artifact.weights().items() if fits_nibbles(array)]


def _hold(first: Artifact, second: Artifact) -> float:
    """Signal to noise in dB between the two on ones and on noise; the least over outputs."""
    engines = [load(one) for one in (first, second)]
    least = 200.0
    for inputs in _samples(first):
        wanted, came = (engine(inputs) for engine in engines)
        least = min(least, *(_decibel(wanted[name], came[name]) for name in wanted))
    if least < _LEAST_DB:
        raise MismatchError(
            f"{second.path}: expected answers as those of {first.path} to {_LEAST_DB:g} dB, got {least:.1f} dB"
        )
    return least


def _samples(artifact: Artifact) -> tuple[Arrays, ...]:
    plain = ones(artifact.manifest.inputs)
    generator = np.random.default_rng(0)
    noise = {
        name: generator.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in plain.items()
    }
    return plain, noise


def _decibel(wanted: Array, came: Array) -> float:
    signal = float(np.square(np.asarray(wanted, np.float64)).sum())
    noise = float(np.square(np.asarray(wanted, np.float64) - np.asarray(came, np.float64)).sum())
    if noise == 0:
        return 200.0
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -200, 200))


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.partial")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
