"""What runs an artifact: one file an engine; its backend is imported by that file alone.

::

    Engine
    ├── onnx        ONNX Runtime
    ├── openvino    OpenVINO (extra ``openvino``)
    ├── executorch  ExecuTorch with XNNPACK (extra ``edge``)
    ├── inductor    PyTorch's compiler
    ├── eager       PyTorch, one operation after the other (the yardstick)
    └── null        answers zeros (the yardstick of everything above an engine)
"""

from __future__ import annotations

import os
from dataclasses import replace

from tauten.artifact.read import Artifact, read_artifact
from tauten.core.registry import Registry
from tauten.errors import ArtifactError, ExtraMissing, PluginError
from tauten.run.engines.engine import Engine

ENGINES: Registry[type[Engine]] = Registry("engine", "tauten.run.engines", besides=("engine",))


def load(
    artifact: Artifact | str | os.PathLike[str], *, threads: int | None = None, spinning: bool | None = None
) -> Engine:
    """The engine that the artifact names, with the artifact in it.

    ``threads`` overrides the intra-op threads of the artifact's target, ``spinning`` how they wait. Raises
    ``ArtifactError`` for an artifact that is not whole, ``EngineError`` for one that the engine cannot run,
    ``ExtraMissing`` for a missing backend.
    """
    if not isinstance(artifact, Artifact):
        artifact = read_artifact(artifact)
    try:
        engine = ENGINES.get(artifact.manifest.engine)
    except ExtraMissing:
        raise
    except PluginError as fault:
        raise ArtifactError(f"{artifact.path}: {fault}") from None
    if spinning is not None:
        target = artifact.manifest.target.model_copy(update={"spinning": spinning})
        artifact = replace(artifact, manifest=artifact.manifest.model_copy(update={"target": target}))
    return engine.load(artifact, threads=threads or artifact.manifest.target.threads)
