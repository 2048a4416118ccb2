"""PyTorch, one operation after the other: the yardstick, from a document of operations (``_operations``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import fx

from tauten.artifact.read import Artifact
from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines._operations import rebuild, to_tensor
from tauten.run.engines._threads import OPENMP, UNBOUND, unmet
from tauten.run.engines.engine import Engine

__all__ = ["Eager"]


class Eager(Engine):
    """Runs a graph of ATen operations on the CPU, as ``module(*inputs)`` under ``torch.inference_mode`` would.

    PyTorch has one number of threads a process: the engine that was loaded last sets it.
    """

    def __init__(self, module: fx.GraphModule, artifact: Artifact) -> None:
        super().__init__(artifact.manifest.inputs, artifact.manifest.outputs)
        self._module: fx.GraphModule | None = module
        self._path = artifact.path
        self._target = artifact.manifest.target

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """A module over the artifact.

        Raises ``ArtifactError`` where the graph is malformed, calls what it must not, or does not fit the weights,
        ``EngineError`` where the target is no processor.
        """
        if artifact.manifest.target.device != "cpu":
            raise EngineError(
                f"{artifact.path}: the eager engine runs on the CPU; target {artifact.manifest.target.name} asks for "
                f"{artifact.manifest.target.device}"
            )
        try:
            module = rebuild(
                artifact.graph(), artifact.weights(), [spec.name for spec in artifact.manifest.inputs],
                len(artifact.manifest.outputs),
            )  # fmt: skip
        except ArtifactError as fault:
            raise ArtifactError(f"{artifact.path}: {fault}") from None
        torch.set_num_threads(threads)
        return cls(module, artifact)

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        module = self._module
        if module is None:
            raise EngineError(f"{self._path}: the engine was closed")
        try:
            with torch.inference_mode():
                answers = module(*(to_tensor(inputs[spec.name]) for spec in self.inputs))
                return {spec.name: answer.numpy() for spec, answer in zip(self.outputs, answers, strict=True)}
        except Exception as fault:  # an operation raises RuntimeError, IndexError, ValueError, TypeError and others
            raise EngineError(f"{self._path}: PyTorch: {type(fault).__name__}: {fault}") from fault

    def describe(self) -> dict[str, Any]:
        """Versions, and the threads that the process has by now: the engine loaded last has set them."""
        threads = torch.get_num_threads()
        fallbacks = unmet(self._target, threads, affinity=UNBOUND, spinning=OPENMP)
        return {
            "engine": "eager",
            "version": torch.__version__,
            "provider": "cpu",
            "threads": threads,
            **({"fallbacks": fallbacks} if fallbacks else {}),
        }

    def close(self) -> None:
        self._module = None
