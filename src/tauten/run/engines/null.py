"""The engine that computes nothing: what it costs is the overhead of the layers above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from tauten.artifact.read import Artifact
from tauten.core.tensor import Array, Arrays, check_arrays
from tauten.run.engines.engine import Engine

__all__ = ["Null"]


class Null(Engine):
    """Answers zeros in the shape of each output's spec.

    A named dimension takes its size from the inputs; one that no input names becomes 1. The artifact's graph and
    weights are not looked at.
    """

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        return cls(artifact.manifest.inputs, artifact.manifest.outputs)

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        sizes = check_arrays(self.inputs, inputs)
        return {spec.name: np.zeros(spec.concrete(**sizes), dtype=spec.dtype) for spec in self.outputs}

    def describe(self) -> dict[str, Any]:
        return {"engine": "null"}
