"""The two models that are served, and the requests for them.

``lenet`` is LeNet, trained on MNIST and quantized to eight bits: some ten microseconds of computing, so that what is
measured is the server. ``minilm`` is the sentence encoder with its published weights in dynamic int8, on sentences of
64 tokens: milliseconds of computing, so that what is measured is what the server leaves to the model.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench._latency_models import CACHE, Subject, subject
from tauten.core.tensor import Array, Arrays

FOLDER = CACHE / "serving"
"""Everything that is made once; remove it to make it anew."""
VARIANTS = 64
"""Requests that differ; a client sends them in turn."""
RECIPES: dict[str, tuple[dict[str, Any], ...]] = {
    "lenet": ({"pass": "quantize.post_training"},),
    "minilm": ({"pass": "quantize.dynamic"},),
}
DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True)
class Served:
    """A model on disk: the artifact for Tauten, the same graph and weights as one ONNX file for everybody else."""

    name: str
    artifact: Path
    onnx: Path
    samples: Path

    def arrays(self) -> Arrays:
        """``VARIANTS`` samples by input."""
        with np.load(self.samples) as stored:
            return {name: stored[name] for name in stored.files}


def served(name: str) -> Served:
    """The model of that name, made where it is not there yet."""
    folder = FOLDER / name
    found = Served(name, folder / "artifact", folder / "model.onnx", folder / "samples.npz")
    if not found.samples.is_file():  # written last
        _make(found)
    return found


def nothing(name: str, size: int) -> Served:
    """A model of the null engine: rows of ``size`` bytes in, ten zeros out."""
    from tauten.artifact.manifest import Manifest
    from tauten.artifact.write import write_artifact
    from tauten.codecs import CODECS
    from tauten.core.target import Target
    from tauten.core.tensor import TensorSpec

    folder = FOLDER / name
    found = Served(name, folder / "artifact", folder / "model.onnx", folder / "samples.npz")
    if not found.samples.is_file():
        files = {"graph.bin": b"none", "weights.bin": CODECS.get("plain").encode({})}
        manifest = Manifest(
            name="nothing",
            created="2026-01-01T00:00:00Z",
            tauten="0",
            engine="null",
            target=Target(name="bench", engine="null", threads=1),
            inputs=(TensorSpec(name="x", shape=("batch", size // 4)),),
            outputs=(TensorSpec(name="y", shape=("batch", 10)),),
            graph="graph.bin",
            weights="weights.bin",
            weights_bytes=0,
            files={file: len(data) for file, data in files.items()},
        )
        write_artifact(found.artifact, manifest, files)
        variants = max(1, min(VARIANTS, 2**22 // size))
        samples = np.random.default_rng(0).random((variants, size // 4), np.float32)
        np.savez(found.samples, x=samples)
    return found


def _make(wanted: Served) -> None:
    import tauten
    from tauten.core.target import Target
    from tauten.make.convert import write_file
    from tauten.make.lower import LOWERINGS
    from tauten.make.lower.artifact import to_artifact
    from tauten.make.model.apply import apply
    from tauten.make.model.build import to_model
    from tauten.make.model.pass_ import Context
    from tauten.make.search.recipe import pass_from_json

    print(f"{wanted.name}: making the model", flush=True)
    wanted.artifact.parent.mkdir(parents=True, exist_ok=True)
    source = subject(wanted.name)
    task = tauten.Task(
        name=wanted.name,
        model=source.module,
        inputs=source.inputs,
        outputs=("answer",),
        calibrate=list(_batches(source.calibrate, 16)),
        metric="sqnr",
    )
    model = to_model(task)
    context = Context(task, model.module)
    for step in RECIPES[wanted.name]:
        model = apply(pass_from_json(step), model, context)
    target = Target(name="bench", engine="onnx", threads=1, batch=32)
    lowered = LOWERINGS.get("onnx")(model, target, context, {})
    artifact = to_artifact(lowered, wanted.artifact, name=wanted.name, engine="onnx", target=target)
    write_file(artifact, wanted.onnx)
    np.savez(wanted.samples, **_samples(source))


def _samples(source: Subject) -> Arrays:
    if source.name == "lenet":
        # Scans with sensor noise, rounded to six digits: a plain one is mostly zeros, which JSON writes in three bytes.
        images = source.judge["image"][:VARIANTS]
        noise = np.random.default_rng(0).uniform(0.01, 0.1, images.shape)
        return {"image": np.round(np.clip(images * 0.9 + noise, 0, 1), 6).astype(np.float32)}
    return {name: array[:VARIANTS] for name, array in source.judge.items()}


def _batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    count = len(next(iter(arrays.values())))
    for at in range(0, count, size):
        yield {name: np.ascontiguousarray(array[at : at + size]) for name, array in arrays.items()}


def rows(arrays: Arrays) -> list[Arrays]:
    """The samples one by one, each a batch of one."""
    return list(_batches(arrays, 1))


def v2_json(row: Arrays) -> bytes:
    """The body of a request of the Open Inference Protocol, all in JSON; the outputs come back in JSON as well."""
    inputs = [{**_described(name, array), "data": _listed(array)} for name, array in row.items()]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def v2_binary(row: Arrays) -> tuple[bytes, int]:
    """The body with the tensors as bytes behind the JSON, whose length is given too; outputs are asked for as bytes."""
    inputs = [
        {**_described(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in row.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    return head + raw(row), len(head)


def raw(row: Arrays) -> bytes:
    """The tensors' bytes, one after the other."""
    return b"".join(array.tobytes() for array in row.values())


def _described(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)]}


def _listed(array: Array) -> list[Any]:
    values = array.ravel().tolist()
    # As a client would write them that rounded to six digits; the nearest float32 is the same one.
    return [round(value, 6) for value in values] if array.dtype.kind == "f" else values


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def write_requests(path: Path, requests: list[bytes]) -> Path:
    """A file of requests for the load generator: each with its length in front, as four bytes, little-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_bytes(b"".join(struct.pack("<I", len(one)) + one for one in requests))
    return written.replace(path)  # whole or not at all, while another run reads it
