"""Size: the bytes that are shipped."""

from __future__ import annotations

from tauten.artifact.read import Artifact
from tauten.core.measure import Measure


def measure_size(artifact: Artifact) -> Measure:
    """The bytes of all files of the artifact, counted on disk."""
    return Measure.exact(artifact.size_bytes, "bytes", "lower", on="files of the artifact")
