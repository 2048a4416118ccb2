"""What the protocol says of a server and of a model: plain JSON documents."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from tauten.core.tensor import TensorSpec
from tauten.run.serve.protocol.datatypes import datatype_of

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "statistics")
MANAGEMENT: Final = "model_repository"
"""The extension by which clients load and unload models."""


def server_metadata(version: str, *, managed: bool = False) -> dict[str, Any]:
    """The answer to ``GET /v2``; ``managed`` where clients may load and unload models."""
    extensions = [*EXTENSIONS, MANAGEMENT] if managed else [*EXTENSIONS]
    return {"name": "tauten", "version": version, "extensions": extensions}


def model_metadata(
    name: str, versions: Sequence[str], platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, Any]:
    """The answer to ``GET /v2/models/M`` with all its versions; a variable dimension is -1."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_tensor(spec) for spec in inputs],
        "outputs": [_tensor(spec) for spec in outputs],
    }


def model_config(
    name: str,
    platform: str,
    max_batch: int,
    instances: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    ragged: Collection[str] = (),
) -> dict[str, Any]:
    """The answer to ``GET /v2/models/M/config``, which load tools of other servers ask for.

    Where every tensor has the batch first, ``max_batch_size`` is ``max_batch`` and ``dims`` leave the batch out;
    elsewhere it is 0 and ``dims`` are whole, as that document's readers expect. ``ragged`` are inputs whose shapes may
    differ between requests that share a batch.
    """
    batched = all(spec.batch_axis == 0 for spec in (*inputs, *outputs))
    skip = 1 if batched else 0
    config = {
        "name": name,
        "platform": platform,
        "backend": platform,
        "version_policy": {"all": {}},
        "max_batch_size": max_batch if batched else 0,
        "input": [
            {**_config_tensor(spec, skip), **({"allow_ragged_batch": True} if spec.name in ragged else {})}
            for spec in inputs
        ],
        "output": [_config_tensor(spec, skip) for spec in outputs],
        "instance_group": [{"name": name, "kind": "KIND_CPU", "count": instances}],
        "response_cache": {"enable": False},
        "model_transaction_policy": {"decoupled": False},
    }
    if batched:
        config["dynamic_batching"] = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
    return config


def _dims(spec: TensorSpec) -> list[int]:
    return [-1 if isinstance(dim, str) else dim for dim in spec.shape]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": _dims(spec)}


def _config_tensor(spec: TensorSpec, skip: int) -> dict[str, Any]:
    kind = datatype_of(spec.dtype).replace("BYTES", "STRING")  # that document's own name
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": _dims(spec)[skip:]}
