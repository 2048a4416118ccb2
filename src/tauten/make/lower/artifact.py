"""From a lowered model to an artifact on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from tauten.artifact.manifest import Manifest
from tauten.artifact.read import Artifact
from tauten.artifact.recode import code_weights
from tauten.artifact.write import write_artifact
from tauten.core.environment import environment
from tauten.core.measure import Measure
from tauten.core.record import Record
from tauten.core.target import Target
from tauten.core.tensor import Array
from tauten.make.lower.lowering import Lowered


def to_artifact(
    lowered: Lowered,
    path: str | os.PathLike[str],
    *,
    name: str,
    engine: str,
    target: Target,
    recipe: Mapping[str, Any] | None = None,
    history: tuple[Record, ...] = (),
    key: str = "",
    measures: Mapping[str, Measure] | None = None,
    codec: str = "plain",
) -> Artifact:
    """Write ``lowered`` to the folder ``path``, its weights coded by ``codec``, and read it back.

    Raises ``ConfigError`` where a value does not fit the manifest, ``PluginError`` for an unknown codec.
    """
    weights = {name: _without_signed_zeros(array) for name, array in lowered.weights.items()}
    coded = code_weights(weights, codec, lowered.four_bit)
    files = {lowered.graph_name: lowered.graph, **lowered.more, coded.name: coded.data}
    manifest = Manifest(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tauten=version("tauten"),
        engine=engine,
        target=target,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        graph=lowered.graph_name,
        stages=lowered.stages,
        weights=coded.name,
        codec=codec,
        four_bit=coded.four_bit,
        settings=dict(lowered.settings),
        weights_bytes=coded.weights_bytes,
        files={name: len(data) for name, data in files.items()},
        key=key,
        recipe=dict(recipe or {}),
        history=history,
        measures=dict(measures or {}),
        layers=dict(lowered.layers),
        environment=environment(),
    )
    return write_artifact(path, manifest, files)


def _without_signed_zeros(array: Array) -> Array:
    """A float matrix with 0.0 for each -0.0, which rounding and pruning leave.

    No sum of products tells the two apart, and a codec, which gives back every bit, would have to tell them everywhere.
    """
    if array.dtype.kind != "f" or array.ndim < 2:
        return array
    signed = (array == 0) & np.signbit(array)
    return np.where(signed, np.zeros((), array.dtype), array) if signed.any() else array
