"""What every artifact must hold, and a tiny one to test with.

Each function of ``CHECKS`` takes an artifact and an empty folder to work in, and raises ``AssertionError`` where the
contract is broken. The artifact itself is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from tauten.artifact.layers import layers
from tauten.artifact.manifest import CHECKSUMS, MANIFEST, Manifest
from tauten.artifact.read import Artifact, read_artifact
from tauten.artifact.write import SIZE, copy_artifact, write_artifact, write_measures
from tauten.codecs import CODECS
from tauten.core.measure import Measure
from tauten.core.target import Target
from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import ArtifactError
from tauten.testing._hold import hold


def tiny_artifact(
    path: str | os.PathLike[str], *, weights: Arrays | None = None, graph: bytes = b"no graph", **fields: Any
) -> Artifact:
    """A small artifact for the null engine: ``image (batch, 4)`` in, ``scores (batch, 3)`` out.

    ``fields`` replace the manifest's.
    """
    weights = weights if weights is not None else {"linear.weight": np.arange(12, dtype=np.float32).reshape(3, 4)}
    codec = CODECS.get(fields.get("codec", "plain"))
    name = f"weights{codec.suffix}"
    manifest: dict[str, Any] = {
        "name": "tiny",
        "created": "2026-01-01T00:00:00+00:00",
        "tauten": "0.1.0",
        "engine": "null",
        "target": Target(name="server-cpu", batch=16),
        "inputs": (TensorSpec(name="image", shape=("batch", 4)),),
        "outputs": (TensorSpec(name="scores", shape=("batch", 3)),),
        "graph": "graph.bin",
        "weights": name,
        "weights_bytes": sum(array.nbytes for array in weights.values()),
        "files": {},
        "layers": {"linear.weight": "linear"},
    }
    contents = {"graph.bin": graph, name: codec.encode(weights)}
    return write_artifact(path, Manifest(**{**manifest, **fields}), contents)


def reads_back_equal(artifact: Artifact, folder: Path) -> None:
    """Reading it again, or a copy of it, gives the same manifest and checksums."""
    again, copied = read_artifact(artifact.path), copy_artifact(artifact, folder / "copy")
    for other in (again, copied):
        hold(other.manifest == artifact.manifest, "the manifest differs after reading again")
        hold(other.checksums == artifact.checksums, "the checksums differ after reading again")


def weighs_what_it_says(artifact: Artifact, folder: Path) -> None:
    """``size_bytes`` is what the folder's files hold on disk, and what the manifest states, after measures too."""
    noted = write_measures(
        copy_artifact(artifact, folder / "noted"),
        {"latency_p50_ms": Measure(value=1.25, low=1, high=2, unit="ms", better="lower")},
    )
    for one in (artifact, noted):
        on_disk = sum(entry.stat().st_size for entry in one.path.iterdir())
        hold(one.size_bytes == on_disk, f"says {one.size_bytes} bytes, and has {on_disk}")
        stated = one.manifest.measures.get(SIZE)
        weights_only = stated is not None and stated.on == "weights file"
        hold(stated is not None, f"the manifest has no {SIZE}")
        expected = one.manifest.files[one.manifest.weights] if weights_only else on_disk
        hold(stated and stated.value == expected, f"the manifest states {stated}, and it is {expected}")


def fits_the_published_schema(artifact: Artifact, folder: Path) -> None:
    """``manifest.json`` is valid by ``schema.json``. Needs jsonschema."""
    import jsonschema  # type: ignore[import-untyped]

    schema = json.loads(files("tauten.artifact").joinpath("schema.json").read_text("utf-8"))
    document = json.loads((artifact.path / MANIFEST).read_text("utf-8"))
    faults = [fault.message for fault in jsonschema.Draft202012Validator(schema).iter_errors(document)]
    hold(not faults, f"manifest.json does not fit schema.json: {faults}")


def tells_its_layers(artifact: Artifact, folder: Path) -> None:
    """The bytes of the layers add up to those of the decoded weights."""
    total = sum(layer.bytes for layer in layers(artifact))
    hold(total == artifact.manifest.weights_bytes, f"layers add up to {total}, not {artifact.manifest.weights_bytes}")


def agrees_with_sha256sum(artifact: Artifact, folder: Path) -> None:
    """The checksums file is what ``sha256sum --check`` reads."""
    lines = (artifact.path / CHECKSUMS).read_text("ascii").splitlines()
    hold(len(lines) == len(artifact.manifest.files) + 1, f"expected a line a file, got {lines}")
    for line in lines:
        digest, name = line.split("  ")
        hold(digest == hashlib.sha256((artifact.path / name).read_bytes()).hexdigest(), f"{name}: another sha256")


def holds_no_pickle(artifact: Artifact, folder: Path) -> None:
    """No file starts as a pickle or a PyTorch archive does."""
    for entry in artifact.path.iterdir():
        start = entry.read_bytes()[:4]
        hold(not (start[:1] == b"\x80" and start[1:2] <= b"\x05"), f"{entry.name} looks like a pickle")
        hold(start != b"PK\x03\x04", f"{entry.name} looks like a zip archive")


def refuses_damage(artifact: Artifact, folder: Path) -> None:
    """Every file missing, cut, lengthened or changed in one byte (at up to 40 places) gives ``ArtifactError``."""
    copy = copy_artifact(artifact, folder / "copy")
    for name in (*artifact.manifest.files, MANIFEST, CHECKSUMS):
        path = copy.path / name
        good = path.read_bytes()
        path.unlink()
        _refused(copy.path, f"{name} missing")
        damaged = {"lengthened": good + b"\n", "cut": good[:-1]} if good else {"lengthened": b"\n"}
        for place in sorted({int(at) for at in np.linspace(0, len(good) - 1, 40)} if good else ()):
            damaged[f"changed at {place}"] = good[:place] + bytes([good[place] ^ 0x01]) + good[place + 1 :]
        for what, bad in damaged.items():
            path.write_bytes(bad)
            _refused(copy.path, f"{name} {what}")
        path.unlink()
        path.symlink_to(artifact.path.absolute() / name)
        _refused(copy.path, f"{name} as a link")
        path.unlink()
        path.write_bytes(good)
    read_artifact(copy.path)
    shutil.rmtree(copy.path)


def _refused(path: Path, what: str) -> None:
    try:
        read_artifact(path).weights()
    except ArtifactError:
        return
    raise AssertionError(f"expected ArtifactError, but it was read with {what}")


CHECKS: Final[tuple[Callable[[Artifact, Path], None], ...]] = (
    reads_back_equal,
    weighs_what_it_says,
    fits_the_published_schema,
    tells_its_layers,
    agrees_with_sha256sum,
    holds_no_pickle,
    refuses_damage,
)
